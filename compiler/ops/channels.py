"""Which axes of layers, norms, pools and reductions go together (``Op.channels``, see axes.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..types import TensorType
from .axes import Change, Channels, Dot, Kept, Mark, Pin, Relation, Tie, aligned, fans, given, into, out, own, same
from .record import Call
from .shapes import normalise_axes, normalise_axis

WINDOW = "a window moves over it"
NORMED = "a norm is taken over it, which each element changes"


def _elementwise(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """Operands that broadcast to the result. Where blocks of elements share a scale nothing is said, so all stays."""
    if call.attrs.get("block") is None:
        yield from aligned(call, outs, given(call))


def _triangle(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    rank = outs[0].rank
    yield from same(rank, but=(rank - 2, rank - 1))


# -- layers ------------------------------------------------------------------------------------------------------


def _conv(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    x, group = call.type(0), call.attrs["group"]
    outputs = call.type(1).dims[0]
    yield Tie(into(0, 0), out(0))
    yield Tie(into(1, 0), out(1))
    if 2 in given(call):
        yield Tie(into(2, 0), out(1))
    yield from (Pin(into(0, i), WINDOW) for i in range(2, x.rank))
    if group == 1:
        yield Tie(into(0, 1), into(1, 1))
        yield from _dot(call, 1)
    else:
        yield from _grouped(int(x.shape[1]), outputs, group)


def _dot(call: Call, axis: int) -> Iterable[Relation]:
    if call.value(1) is None:
        yield Dot(into(0, 1), into(1, axis))


def _grouped(channels: int, outputs: int, group: int) -> Iterable[Relation]:
    """Whole groups go, their inputs and outputs with them; one channel a group: depthwise."""
    groups = own(group)
    yield Tie(into(0, 1), groups, fans(channels, group))
    yield Tie(out(1), groups, fans(outputs, group))
    if channels > group:
        yield Mark(groups, "groups")


def _conv_shrink(call: Call, outs: Sequence[TensorType], kept: Kept) -> Change:
    group = call.attrs["group"]
    return Change({"group": group if group == 1 else len(kept(own(group)))})


def _conv_transpose(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    x, group = call.type(0), call.attrs["group"]
    yield Tie(into(0, 0), out(0))
    yield Tie(into(1, 0), into(0, 1))
    if 2 in given(call):
        yield Tie(into(2, 0), out(1))
    yield from (Pin(into(0, i), WINDOW) for i in range(2, x.rank))
    if group == 1:
        yield Tie(into(1, 1), out(1))
        yield from _dot(call, 0)
    else:
        yield from _grouped(int(x.shape[1]), call.type(1).dims[1] * group, group)


def _matmul(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    a, b, y = call.type(0), call.type(1), outs[0]
    inner = b.rank - 2 if b.rank > 1 else 0
    yield Tie(into(0, a.rank - 1), into(1, inner))
    computed = call.value(0) is None and call.value(1) is None
    if computed:
        yield Dot(into(0, a.rank - 1), into(1, inner))
    if b.rank > 1:
        yield Tie(into(1, b.rank - 1), out(y.rank - 1))
    if a.rank > 1:
        yield Tie(into(0, a.rank - 2), out(y.rank - 1 - (b.rank > 1)))
    batch = max(a.rank, b.rank) - 2
    for i, operand in enumerate((a, b)):
        ahead = batch - (operand.rank - 2)
        for axis, size in enumerate(operand.shape[:-2]):
            if size == y.shape[ahead + axis]:
                yield Tie(into(i, axis), out(ahead + axis))
    if computed:
        yield from (Mark(out(axis), "heads") for axis in range(max(batch, 0)))


# -- norms -------------------------------------------------------------------------------------------------------


def _batch_norm(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    yield from same(outs[0].rank)
    yield from (Tie(into(i, 0), out(1)) for i in range(1, 5))


def _last_axes(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """layer_norm and rms_norm: the axes from ``axis`` on stay."""
    rank = outs[0].rank
    axis = normalise_axis(call.attrs["axis"], rank)
    yield from same(rank, but=range(axis, rank))
    yield from (Pin(into(0, i), NORMED) for i in range(axis, rank))


def _group_norm(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """Whole groups go: within one, each element changes the deviation."""
    groups, channels = call.attrs["num_groups"], int(call.type(0).shape[1])
    yield from same(2)
    yield from (Pin(into(0, i), NORMED) for i in range(1 if groups == 1 else 2, outs[0].rank))
    yield Tie(into(0, 1), own(groups), fans(channels, groups))
    yield from (Tie(into(i, 0), out(1)) for i in given(call) if i)
    if channels > groups:
        yield Mark(own(groups), "groups")


def _group_norm_shrink(call: Call, outs: Sequence[TensorType], kept: Kept) -> Change:
    return Change({"num_groups": len(kept(own(call.attrs["num_groups"])))})


def _along(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """Softmax and running sums: each element along the axis changes the others."""
    rank = outs[0].rank
    axis = normalise_axis(call.attrs["axis"], rank)
    yield from same(rank, but=(axis,))
    yield Pin(into(0, axis), "each element along it changes the others")


# -- pools and reductions ----------------------------------------------------------------------------------------


def _pool(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """Positions that a max pool gives are counted through the whole tensor: then all stays."""
    if len(outs) == 1:
        yield from same(2)
        yield from (Pin(into(0, i), WINDOW) for i in range(2, outs[0].rank))


def _reduce(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    x = call.type(0)
    axes = normalise_axes(call.attrs["axes"], x.rank)
    left = [i for i in range(x.rank) if i not in axes]
    for number, axis in enumerate(left):
        yield Tie(into(0, axis), out(axis if call.attrs["keepdims"] else number))
    yield from (Pin(into(0, i), "all along it are folded into one") for i in axes)


def _sum(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """As ``_reduce``, but a zero more or less makes no difference."""
    for relation in _reduce(call, outs):
        yield Dot(relation.axis, relation.axis) if isinstance(relation, Pin) else relation


def _arg(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    x = call.type(0)
    axis = normalise_axis(call.attrs["axis"], x.rank)
    left = [i for i in range(x.rank) if i != axis]
    for number, i in enumerate(left):
        yield Tie(into(0, i), out(i if call.attrs["keepdims"] else number))
    yield Pin(into(0, axis), "its positions are the result")


def _topk(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    rank = outs[0].rank
    axis = normalise_axis(call.attrs["axis"], rank)
    for result in (0, 1):
        yield from same(rank, but=(axis,), result=result)
    yield Pin(into(0, axis), "its positions are the result")


# -- recurrent layers, attention ---------------------------------------------------------------------------------


def _recurrent(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """A unit has a row for each gate in w, r, biases and peepholes, a column in r, and its place in each state."""
    if call.value(1) is None or call.value(2) is None:
        return
    hidden = call.type(2).dims[2]
    units = own(hidden)
    yield Mark(units, "units")
    yield Tie(into(0, 2), into(1, 2))
    for i in given(call)[1:]:
        if i == 4:  # lengths
            continue
        axis = 2 if i > 4 and call.type(i).rank == 3 else 1
        yield Tie(into(i, axis), units, np.arange(int(call.type(i).shape[axis])) % hidden)
    yield Tie(into(2, 2), units)
    yield from (Tie(out(result.rank - 1, i), units) for i, result in enumerate(outs))


def _attention(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """The leading axes (heads), the features of q with those of k, those of v with the result's."""
    rank, (keys, features) = outs[0].rank, (outs[0].rank - 2, outs[0].rank - 1)
    for i in range(3):
        yield from same(rank, but=(keys, features), tensor=i)
    yield from (Mark(out(i), "heads") for i in range(rank - 2))
    yield Tie(into(0, features), into(1, features))
    yield Dot(into(0, features), into(1, features))
    yield Tie(into(2, features), out(features))
    yield Tie(into(1, keys), into(2, keys))
    yield Pin(into(1, keys), "each key changes the weights of the others")
    if 3 in given(call):
        mask = call.type(3)
        for axis, size in enumerate(mask.shape[:-2]):
            if size == outs[0].shape[rank - mask.rank + axis]:
                yield Tie(into(3, axis), out(rank - mask.rank + axis))


NOTHING = Channels(lambda call, outs: ())
ELEMENTWISE = Channels(_elementwise)
TRIANGLE = Channels(_triangle)
CONV = Channels(_conv, _conv_shrink)
CONV_TRANSPOSE = Channels(_conv_transpose, _conv_shrink)
MATMUL = Channels(_matmul)
BATCH_NORM = Channels(_batch_norm)
LAST_AXES = Channels(_last_axes)
GROUP_NORM = Channels(_group_norm, _group_norm_shrink)
ALONG = Channels(_along)
POOL = Channels(_pool)
REDUCE = Channels(_reduce)
SUM = Channels(_sum)
ARG = Channels(_arg)
TOPK = Channels(_topk)
RECURRENT = Channels(_recurrent)
ATTENTION = Channels(_attention)
