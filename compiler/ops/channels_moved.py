"""Which axes of operators that only move elements go together (``Op.channels``, see axes.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..types import Dim, TensorType
from .axes import Change, Channels, Kept, Merge, Pin, Relation, Tie, aligned, into, out, same
from .record import Call
from .shapes import normalise_axis

MIXED = "it is cut up and counted through anew"


def _shape(call: Call, outs: Sequence[TensorType], kept: Kept) -> Change:
    """The attribute ``shape`` is the result's."""
    return Change({"shape": _left(outs[0], kept)})


def _left(result: TensorType, kept: Kept) -> tuple[Dim, ...]:
    return tuple(d if isinstance(d, str) else len(kept(out(i))) for i, d in enumerate(result.shape))


# -- reshape -----------------------------------------------------------------------------------------------------


def _reshape(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """Axes that stay as they are, that are cut up, and that are joined; anything else stays whole."""
    for before, after in _blocks(call.type(0).shape, outs[0].shape):
        left, right = [into(0, i) for i in before], [out(i) for i in after]
        if len(left) == len(right) == 1:
            yield Tie(left[0], right[0])
        elif len(left) == 1 and right:
            yield Merge(left[0], tuple(right))
        elif len(right) == 1 and left:
            yield Merge(right[0], tuple(left))
        else:
            yield from (Pin(axis, MIXED) for axis in (*left, *right))


def _blocks(before: Sequence[Dim], after: Sequence[Dim]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of axes on both sides that hold as many elements; axes of one element belong to none."""
    left = [i for i, d in enumerate(before) if d != 1]
    right = [i for i, d in enumerate(after) if d != 1]
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        while (have := _size(before, a)) != (want := _size(after, b)):
            short = have[1] <= want[1] if have[0] == want[0] else len(have[0]) < len(want[0])
            if short and left:
                a.append(left.pop(0))
            elif right:
                b.append(right.pop(0))
            elif left:
                a.append(left.pop(0))
            else:
                break
        yield a, b
    if left or right:
        yield left, right


def _size(shape: Sequence[Dim], axes: Sequence[int]) -> tuple[tuple[str, ...], int]:
    """Named dimensions, and the product of the others."""
    dims = [shape[i] for i in axes]
    count = 1
    for d in dims:
        count *= d if isinstance(d, int) else 1
    return tuple(sorted(d for d in dims if isinstance(d, str))), count


# -- transpose, expand, slice, concat, pad, tile ---------------------------------------------------------------------


def _transpose(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    return [Tie(into(0, source), out(i)) for i, source in enumerate(call.attrs["perm"])]


def _expand(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """An axis that comes into being is free: every position of it is the same, and what is tied to it decides."""
    yield from aligned(call, outs, (0,))
    x, y = call.type(0), outs[0]
    ahead = y.rank - x.rank
    stretched = (i for i, d in enumerate(y.shape) if i < ahead or x.shape[i - ahead] != d)
    yield from (Tie(out(i), out(i)) for i in stretched)


def _slice(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    x = call.type(0)
    for i, (start, stop, step) in enumerate(_ranges(call)):
        if x.shape[i] == outs[0].shape[i] and step == 1:
            yield Tie(into(0, i), out(i))
        elif abs(step) == 1:
            yield Tie(out(i), into(0, i), np.arange(start, stop, step))
        else:
            yield Pin(into(0, i), f"every {step}. is taken")


def _ranges(call: Call) -> Iterable[tuple[int, int, int]]:
    return zip(*(call.attrs[name] for name in ("starts", "stops", "steps")), strict=True)


def _slice_shrink(call: Call, outs: Sequence[TensorType], kept: Kept) -> Change:
    starts, stops, steps = [], [], []
    for i, (start, stop, step) in enumerate(_ranges(call)):
        if isinstance(call.type(0).shape[i], int) and abs(step) == 1:
            left, count = kept(into(0, i)), len(kept(out(i)))
            low, high = (start, stop) if step > 0 else (stop + 1, start + 1)
            first = int(np.searchsorted(left, low))
            assert int(np.searchsorted(left, high)) - first == count
            start, stop = (first, first + count) if step > 0 else (first + count - 1, first - 1)
        starts.append(start)
        stops.append(stop)
        steps.append(step)
    return Change({"starts": tuple(starts), "stops": tuple(stops), "steps": tuple(steps)})


def _concat(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    rank, at = outs[0].rank, 0
    axis = normalise_axis(call.attrs["axis"], rank)
    for number in range(len(call.types)):
        size = call.type(number).shape[axis]
        yield from same(rank, but=(axis,), tensor=number)
        if isinstance(size, str):
            yield Tie(into(number, axis), out(axis))
            continue
        yield Tie(into(number, axis), out(axis), np.arange(at, at + size))
        at += size


def _pad(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """A border of a constant has positions of its own; one that is copied depends on what lies beside."""
    rank, pads = outs[0].rank, call.attrs["pads"]
    for i in range(rank):
        before, after = pads[i], pads[i + rank]
        if not (before or after):
            yield Tie(into(0, i), out(i))
        elif call.attrs["mode"] == "constant":
            size = int(call.type(0).shape[i])
            yield Tie(into(0, i), out(i), np.arange(before, before + size))
        else:
            yield Pin(into(0, i), "its border is a copy of it")


def _pad_shrink(call: Call, outs: Sequence[TensorType], kept: Kept) -> Change:
    rank, pads = outs[0].rank, list(call.attrs["pads"])
    for i, size in enumerate(call.type(0).shape):
        if isinstance(size, int) and call.attrs["mode"] == "constant":
            left, before = kept(out(i)), call.attrs["pads"][i]
            pads[i], pads[i + rank] = int((left < before).sum()), int((left >= before + size).sum())
    return Change({"pads": tuple(pads)})


def _tile(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    for i, times in enumerate(call.attrs["repeats"]):
        size = call.type(0).shape[i]
        if times == 1:
            yield Tie(into(0, i), out(i))
        elif isinstance(size, int) and times:
            yield Tie(out(i), into(0, i), np.arange(size * times) % size)


# -- lookup ----------------------------------------------------------------------------------------------------------


def _gather(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    """Of constant indices each names its position; data may name any."""
    x, indices = call.type(0), call.type(1)
    axis = normalise_axis(call.attrs["axis"], x.rank)
    for i in range(x.rank):
        if i != axis:
            yield Tie(into(0, i), out(i if i < axis else i + indices.rank - 1))
    chosen = call.value(1)
    size = x.shape[axis]
    if chosen is None:
        yield from (Tie(into(1, i), out(axis + i)) for i in range(indices.rank))
        yield Pin(into(0, axis), "data say which of it is read")
    elif isinstance(size, int) and indices.rank == 1:
        yield Tie(out(axis), into(0, axis), chosen % size)
    elif isinstance(size, int):
        yield Pin(into(0, axis), "it is read from at fixed places", np.unique(chosen % size))


def _gather_shrink(call: Call, outs: Sequence[TensorType], kept: Kept) -> Change:
    chosen = call.value(1)
    if chosen is None:
        return Change()
    axis = normalise_axis(call.attrs["axis"], call.type(0).rank)
    size = int(call.type(0).shape[axis])
    places = np.full(size, -1)
    left = kept(into(0, axis))
    places[left] = np.arange(len(left))
    if chosen.ndim == 1:
        chosen = chosen[kept(out(axis))]
    return Change(values={1: places[chosen % size].astype(chosen.dtype)})


def _resize(call: Call, outs: Sequence[TensorType]) -> Iterable[Relation]:
    x, scales, roi = call.type(0), call.attrs["scales"], call.attrs["roi"]
    for i, size in enumerate(x.shape):
        full = roi is None or (roi[i], roi[i + x.rank]) == (0, 1)
        if size == outs[0].shape[i] and (scales is None or scales[i] == 1) and full:
            yield Tie(into(0, i), out(i))
        else:
            yield Pin(into(0, i), "it is resized")


COPY = Channels(lambda call, outs: same(outs[0].rank))
RESHAPE = Channels(_reshape, _shape)
TRANSPOSE = Channels(_transpose)
EXPAND = Channels(_expand, _shape)
SLICE = Channels(_slice, _slice_shrink)
CONCAT = Channels(_concat)
PAD = Channels(_pad, _pad_shrink)
TILE = Channels(_tile)
GATHER = Channels(_gather, _gather_shrink)
SAMPLED = Channels(lambda call, outs: [Tie(into(0, 1), out(1))])  # at places that data give, channel by channel
RESIZE = Channels(_resize, _shape)
