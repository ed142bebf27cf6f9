"""Quantized regions in integers: what lies between ``dequantize`` and ``quantize`` becomes ``ops.integers``.

Below, D(q) is a dequantized tensor, Q(v) a quantized one; scales may be constants or computed (they are learned while
a network is trained: the same rules then give the same integers in training as in the finished model).

 1. conv(D, D) and matmul(D, D) with weights are sums of integers, dequantized with the product of the scales. A bias
    is rounded to that scale, where it is not such integers already.
 2. A factor for each channel behind such a sum joins its scale, an addend its bias.
 3. D moves behind operators that only choose elements: views, max pools, gather, concat of equal scales, pads by 0.
 4. Q moves in front of views and max pools. Q behind a sum, or behind another D, with relu and clip between them, is
    one ``requantize``; behind a D of the same scale it is nothing.
 5. Q(D + D), Q(D - D), Q(D * D), Q(mean D), Q(softmax D) and Q(concat D, D) have integer forms.
 6. Q of any other elementwise function of one 8-bit D with a constant scale is a table.

What is left is floating point. Every rule is exact, or is the definition of what it makes (see ``ops.integers``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..interpret import evaluate
from ..ir import Graph, Node, Value
from ..ops import OPS, Kind
from ..ops.integers import ADD_SHIFT, MOST_RATIO, STEPS, exp_table
from .pattern import Call, Match, any_call
from .recurrent_integers import lower_recurrent
from .rewrite import Rule, rewrite

DEEPEST = 60000  # products of 8-bit steps that an int32 holds the sum of
MOST_NODES = 24  # operations of a function that becomes a table
SINKS = ("reshape", "transpose", "slice", "expand", "max_pool", "gather", "tile", "identity", "copy")
SUMS = ("conv_integer", "matmul_integer")
MOVERS = ("reshape", "transpose", "expand", "tile", "max_pool")  # what a quantize moves in front of


def lower_integers(graph: Graph) -> Graph:
    """A copy of ``graph`` that computes with integers between its ``dequantize`` and ``quantize``."""
    if not graph.find("dequantize"):
        return graph.copy()
    lowered = rewrite(graph, RULES)
    recurrent = lower_recurrent(lowered)
    return lowered if recurrent is lowered else rewrite(recurrent, RULES)


@dataclass(frozen=True)
class Steps:
    """A dequantized tensor: its integers, their scale (one number unless said otherwise) and zero point."""

    q: Value
    scale: Value
    zero: int
    dtype: str


def steps_of(graph: Graph, value: Value | None, *, accept: tuple[str, ...] = STEPS) -> Steps | None:
    """What ``value`` is dequantized from, where one scale and zero point serve all of it."""
    found = _dequantized(graph, value)
    if found is None or found.dtype not in accept or graph.type(found.scale).size != 1:
        return None
    return found


def _dequantized(graph: Graph, value: Value | None) -> Steps | None:
    if value is None or graph.node(value).op != "dequantize" or graph.type(value).dtype != "float32":
        return None
    if graph.node(value).attrs["block"] is not None:
        return None
    q, scale, *zero = graph.args(value.node)
    assert q is not None and scale is not None
    if graph.type(scale).dtype != "float32":
        return None
    point = zero_of(graph, zero[0] if zero else None)
    return None if point is None else Steps(q, scale, point, graph.type(q).dtype)


def zero_of(graph: Graph, value: Value | None) -> int | None:
    """A zero point that is one known number; None where it is not."""
    if value is None:
        return 0
    array = graph.constant(value)
    if array is None or (array != array.reshape(-1)[0]).any():
        return None
    return int(array.reshape(-1)[0])


def scalar(m: Match, value: Value) -> Value:
    """A tensor of one element as one of rank 0."""
    return value if not m.shape(value) else m.add("reshape", value, shape=())


def number(m: Match, value: float, like: Value) -> Value:
    return m.const(np.asarray(value, np.float32), like)


# -- 1, 2: sums ----------------------------------------------------------------------------------------------------


def _weights(m: Match, value: Value | None, axis: int) -> tuple[Value, Value] | None:
    """Integer weights without a zero point and their scale: one number, or [channels] along ``axis``."""
    graph = m.graph
    if value is None or graph.node(value).op != "dequantize" or graph.type(value).dtype != "float32":
        return None
    if graph.node(value).attrs["block"] is not None:
        return None
    q, scale, *rest = graph.args(value.node)
    assert q is not None and scale is not None
    rank, kind = graph.type(q).rank, graph.type(q)
    if kind.dtype not in ("int8", "uint8", "int16") or graph.type(scale).dtype != "float32":
        return None
    full = (1,) * (rank - graph.type(scale).rank) + tuple(graph.type(scale).shape)
    if any(d != 1 for i, d in enumerate(full) if i != axis % rank):
        return None
    held = _without_zero(m, q, rest[0] if rest else None)
    if held is None or not _kept(graph, held):
        return None
    return held, scalar(m, scale) if full[axis] == 1 else m.add("reshape", scale, shape=(full[axis],))


def _without_zero(m: Match, q: Value, zero: Value | None) -> Value | None:
    graph = m.graph
    offset = None if zero is None else graph.constant(zero)
    if zero is not None and offset is None:
        return None
    if graph.type(q).dtype == "int8" and (offset is None or not offset.any()):
        return q
    array = graph.constant(q)
    if array is None:
        return None
    exact = array.astype(np.int32) - (0 if offset is None else offset.astype(np.int32))
    narrow = np.int8 if exact.min(initial=0) >= -128 and exact.max(initial=0) <= 127 else np.int16
    return None if np.abs(exact).max(initial=0) > 32767 else m.const(exact.astype(narrow), q)


def _kept(graph: Graph, q: Value) -> bool:
    """Whether a tensor only depends on what is stored, not on the inputs."""
    stack, seen = [q.node], set()
    while stack:
        key = stack.pop()
        if graph.node(key).op == "input" or len(seen) > 64:
            return False
        if key not in seen:
            seen.add(key)
            stack += list(graph.nx.predecessors(key))
    return True


def _conv(m: Match) -> Value | None:
    graph = m.graph
    x, w, *rest = graph.args(m.root)
    source = steps_of(graph, x)
    weights = _weights(m, w, 0) if source else None
    if source is None or weights is None or not m.node.types[0].static:
        return None
    if math.prod(graph.type(weights[0]).dims[1:]) > DEEPEST:
        return None
    rank = m.node.types[0].rank
    scale = m.add("mul", scalar(m, source.scale), weights[1])
    args = [source.q, weights[0]]
    if rest and rest[0] is not None:
        args.append(_bias(m, rest[0], scale, m.node.types[0].dims[1], source.dtype))
    sums = m.add("conv_integer", *args, **m.node.attrs, zero_point=source.zero)
    return m.add("dequantize", sums, _along(m, scale, rank - 2))


def _along(m: Match, scale: Value, behind: int) -> Value:
    """A scale for each channel, with ``behind`` axes behind the channels."""
    shape = m.shape(scale)
    return m.add("reshape", scale, shape=(*shape, *[1] * behind)) if shape and behind else scale


def _bias(m: Match, bias: Value, scale: Value, channels: int, dtype: str) -> Value:
    """The bias in steps of the sums."""
    graph = m.graph
    known = _dequantized(graph, bias)
    steps: Value | None = None
    if known is not None and known.dtype == "int32" and known.zero == 0 and _close(m, known.scale, scale):
        steps = known.q
    if steps is None:
        one = m.add("expand", scale, shape=(channels,)) if not m.shape(scale) else scale
        steps = m.add("quantize", m.add("reshape", bias, shape=(channels,)), one, to="int32")
    if m.shape(steps) != (channels,):
        steps = m.add("reshape", steps, shape=(channels,))
    return m.add("cast", steps, to="int64") if dtype.endswith("16") else steps


def _close(m: Match, a: Value, b: Value) -> bool:
    """Whether two scales are the same numbers, up to rounding."""
    arrays = [known_value(m.graph, v) for v in (a, b)]
    if arrays[0] is None or arrays[1] is None:
        return a == b
    x, y = (v.reshape(-1) for v in arrays if v is not None)
    return (x.size == y.size or 1 in (x.size, y.size)) and bool(np.allclose(x, y, rtol=1e-5, atol=0))


def known_value(graph: Graph, value: Value) -> np.ndarray | None:
    """The value of a constant, or of a few operations on constants."""
    node = graph.node(value)
    if node.op == "const":
        return node.array
    if node.op not in ("mul", "div", "reshape", "expand", "cast"):
        return None
    args = [None if a is None else known_value(graph, a) for a in graph.args(value.node)]
    return None if any(a is None for a in args) else np.asarray(evaluate(node, args)[value.index])


def _matmul(m: Match) -> Value | None:
    graph = m.graph
    a, b = graph.args(m.root)
    source = steps_of(graph, a)
    weights = _weights(m, b, -1) if source else None
    if source is None or weights is None or graph.type(weights[0]).rank < 2 or graph.type(source.q).rank < 2:
        return None
    if graph.type(weights[0]).dims[-2] > DEEPEST:
        return None
    sums = m.add("matmul_integer", source.q, weights[0], zero_point=source.zero)
    return m.add("dequantize", sums, m.add("mul", scalar(m, source.scale), weights[1]))


def _sum_of(graph: Graph, value: Value | None) -> Steps | None:
    """A dequantized sum of products that nothing else uses."""
    found = _dequantized(graph, value)
    if found is None or graph.node(found.q).op not in SUMS or graph.uses(found.q) != 1:
        return None
    return found


def _channel_vector(m: Match, value: Value, sums: Value) -> tuple[int, ...] | None:
    """The shape of a stored tensor that has one number, or one for each channel of ``sums``; else None."""
    graph = m.graph
    if not _kept(graph, value):
        return None
    rank = graph.type(sums).rank
    axis = 1 if graph.node(sums).op == "conv_integer" else rank - 1
    shape = m.shape(value)
    full = (1,) * (rank - len(shape)) + tuple(shape)
    if len(shape) > rank or any(d != 1 for i, d in enumerate(full) if i != axis):
        return None
    return (int(full[axis]),)


def _addend(m: Match) -> Value | None:
    """add(D(sum), b) and add(b, D(sum)): b becomes the bias of a sum that has none."""
    graph = m.graph
    args = graph.args(m.root)
    for value, other in (args, args[::-1]):
        found = _sum_of(graph, value)
        if found is None or other is None or len(graph.args(found.q.node)) > 2:
            continue
        shape = _channel_vector(m, other, found.q)
        if shape is None:
            continue
        node, (x, w) = graph.node(found.q), graph.args(found.q.node)
        conv = node.op == "conv_integer"
        channels = node.types[0].dims[1 if conv else -1]
        scale = _flat(m, found.scale)
        bias = other
        if shape == (1,):
            bias = m.add("expand", m.add("reshape", other, shape=(1,)), shape=(channels,))
        dtype = graph.type(x).dtype  # type: ignore[arg-type]
        sums = m.add(node.op, x, w, _bias(m, bias, scale, channels, dtype), **node.attrs)
        return m.add("dequantize", sums, found.scale)
    return None


def _flat(m: Match, scale: Value) -> Value:
    """A scale along the channels as [channels], a single one as a number."""
    size = m.graph.type(scale).size
    return scalar(m, scale) if size == 1 else m.add("reshape", scale, shape=(size,))


def _factor(m: Match) -> Value | None:
    """mul(D(sum), c): the scale takes c."""
    graph = m.graph
    args = graph.args(m.root)
    for value, other in (args, args[::-1]):
        found = _sum_of(graph, value)
        if found is None or other is None or _channel_vector(m, other, found.q) is None:
            continue
        array = graph.constant(other)
        if array is not None and bool((array > 0).all()):
            return m.add("dequantize", found.q, m.add("mul", found.scale, other))
    return None


# -- 3: movement ---------------------------------------------------------------------------------------------------


def _sink(m: Match) -> Value | None:
    graph, node = m.graph, m.node
    x, *rest = graph.args(m.root)
    found = steps_of(graph, x)
    if node.op == "max_pool" and node.attrs["indices"]:
        return None
    if found is None:
        return _sink_constant(m)
    moved = m.add(node.op, found.q, *rest, **node.attrs)
    return _again(m, moved, x)  # type: ignore[arg-type]


def _again(m: Match, q: Value, like: Value) -> Value:
    """``q`` dequantized as ``like`` is."""
    _, *parameters = m.graph.args(like.node)
    parameters = [None if p is None else scalar(m, p) for p in parameters]
    return m.add("dequantize", q, *parameters, **m.graph.node(like).attrs)


def _sink_constant(m: Match) -> Value | None:
    """A view of constants with a scale for each channel: the scale is viewed alike."""
    graph, node = m.graph, m.node
    (x, *rest) = graph.args(m.root)
    if x is None or rest or graph.node(x).op != "dequantize" or node.op not in ("reshape", "transpose", "slice"):
        return None
    if graph.node(x).attrs["block"] is not None:
        return None
    arrays = [None if a is None else graph.constant(a) for a in graph.args(x.node)]
    if any(a is None for a in arrays):
        return None
    q, *parameters = arrays
    reference = OPS[node.op].reference
    assert q is not None and reference is not None
    moved = [np.asarray(reference(q, **node.attrs))]
    for p in parameters:
        assert p is not None
        moved.append(_compressed(np.asarray(reference(np.broadcast_to(p, q.shape), **node.attrs))))
    names = [a for a in graph.args(x.node) if a is not None]
    values = [m.const(a, name) for a, name in zip(moved, names, strict=True)]
    return m.add("dequantize", *values, **graph.node(x).attrs)


def _compressed(array: np.ndarray) -> np.ndarray:
    """The array with extent 1 along every axis that does not matter."""
    for axis in range(array.ndim):
        first = np.take(array, [0], axis)
        if array.shape[axis] and bool((array == first).all()):
            array = first
    return array


def _pad(m: Match) -> Value | None:
    graph, node = m.graph, m.node
    (x,) = graph.args(m.root)
    found = steps_of(graph, x)
    if found is None or (node.attrs["mode"] == "constant" and node.attrs["value"] != 0):
        return None
    return _again(m, m.add("pad", found.q, **{**node.attrs, "value": float(found.zero)}), x)  # type: ignore[arg-type]


def _padded_conv(m: Match) -> Value | None:
    """conv_integer(pad(q, zero_point)) pads by itself."""
    graph = m.graph
    x, *rest = graph.args(m.root)
    pad = graph.node(x)  # type: ignore[arg-type]
    if pad.op != "pad" or pad.attrs["mode"] != "constant" or pad.attrs["value"] != m.node.attrs["zero_point"]:
        return None
    rank = m.node.types[0].rank
    pads = pad.attrs["pads"]
    if any(pads[i] for i in (0, 1, rank, rank + 1)):
        return None
    extra = (*pads[2:rank], *pads[rank + 2 :])
    total = tuple(a + b for a, b in zip(m.node.attrs["pads"], extra, strict=True))
    (source,) = graph.args(x.node)  # type: ignore[union-attr]
    return m.add("conv_integer", source, *rest, **{**m.node.attrs, "pads": total})


def _concat(m: Match) -> Value | None:
    """concat of tensors with the same scale and zero point."""
    graph = m.graph
    args = graph.args(m.root)
    found = [steps_of(graph, a) for a in args]
    first = found[0]
    if first is None:
        return None
    for other in found[1:]:
        if other is None or other.dtype != first.dtype or other.zero != first.zero:
            return None
        if other.scale != first.scale and not _equal(graph, other.scale, first.scale):
            return None
    moved = m.add("concat", *[f.q for f in found if f], **m.node.attrs)
    return _again(m, moved, args[0])  # type: ignore[arg-type]


def _equal(graph: Graph, a: Value, b: Value) -> bool:
    x, y = graph.constant(a), graph.constant(b)
    return x is not None and y is not None and x.size == y.size == 1 and x.item() == y.item()


# -- 4, 5, 6: what is quantized again --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """How a result is quantized, and bounds in real numbers that relu and clip have put before that."""

    scale: Value
    zero: int
    to: str
    low: float | None = None
    high: float | None = None
    steps: tuple[int | None, int | None] = (None, None)  # bounds that the quantization itself has


def _quantized(m: Match) -> Value | None:
    graph = m.graph
    source, scale, *rest = graph.args(m.root)
    assert source is not None and scale is not None
    zero = zero_of(graph, rest[0] if rest else None)
    to = m.node.attrs["to"]
    if zero is None or graph.type(scale).size != 1 or graph.type(scale).dtype != "float32" or to not in STEPS:
        return None
    target = Target(scalar(m, scale), zero, to, steps=(m.node.attrs["low"], m.node.attrs["high"]))
    plain, value = target, source
    while graph.node(value).op in ("relu", "clip", "identity"):
        node = graph.node(value)
        low, high = (0.0, None) if node.op == "relu" else (node.attrs.get("low"), node.attrs.get("high"))
        target = replace(target, low=_inner(target.low, low, max), high=_inner(target.high, high, min))
        (value,) = graph.args(value.node)  # type: ignore[assignment]
    for form in FORMS.get(graph.node(value).op, ()):
        found = form(m, value, target)
        if found is not None:
            return _within(m, found, target)
    return _table(m, source, plain)
    if graph.node(value).op in MOVERS:
        return _before(m, value, source)


def _inner(have: float | None, new: float | None, choose: Callable[..., float]) -> float | None:
    if new is None or not math.isfinite(new):
        return have
    return new if have is None else choose(have, new)

def _before(m: Match, moved: Value, source: Value) -> Value | None:
    """Q of a moved tensor is the moved Q: rounding is monotone, so that the largest may be chosen behind it."""
    graph, mover = m.graph, m.graph.node(moved)
    inner, *rest = graph.args(moved.node)
    if mover.attrs.get("indices") or graph.type(inner).dtype != "float32":  # type: ignore[arg-type]
        return None
    bounds = []
    while source != moved:
        bounds.append(graph.node(source))
        (source,) = graph.args(source.node)  # type: ignore[assignment]
    for node in reversed(bounds):
        inner = m.add(node.op, inner, **node.attrs)
    steps = m.add("quantize", inner, *graph.args(m.root)[1:], **m.node.attrs)
    return m.add(mover.op, steps, *rest, **mover.attrs)



def _within(m: Match, value: Value, target: Target) -> Value:
    """Bounds that ``_attrs`` could not give, as steps: rounding is monotone, so that it may come first."""
    for bound, op in ((target.low, "maximum"), (target.high, "minimum")):
        if bound is None or _step(m, bound, target) is not None:
            continue
        zero = m.const(np.asarray(target.zero, target.to), value)
        steps = m.add("quantize", number(m, bound, value), target.scale, zero, to=target.to)
        value = m.add(op, value, steps)
    return value


def _attrs(m: Match, target: Target) -> dict[str, Any]:
    lows, highs = ([_step(m, b, target), s] for b, s in zip((target.low, target.high), target.steps, strict=True))
    low = max((v for v in lows if v is not None), default=None)
    high = min((v for v in highs if v is not None), default=None)
    return {"zero_point": target.zero, "low": low, "high": high, "to": target.to}


def _step(m: Match, bound: float | None, target: Target) -> int | None:
    """The step that a bound falls on, where that is known now."""
    if bound is None or bound == 0:
        return None if bound is None else target.zero
    scale = known_value(m.graph, target.scale)
    if scale is None:
        return None
    zero = np.asarray(target.zero, target.to)
    return int(OPS["quantize"].reference(np.float32(bound), scale.reshape(()), zero, to=target.to))  # type: ignore[misc]


def _bounded(m: Match, value: Value, target: Target) -> Value:
    """The bounds that ``_attrs`` gives, behind an operation without bounds of its own."""
    attrs = _attrs(m, target)
    for bound, op in ((attrs["low"], "maximum"), (attrs["high"], "minimum")):
        if bound is not None:
            value = m.add(op, value, m.const(np.asarray(bound, target.to), value))
    return value


def _ratio(m: Match, scale: Value, target: Target) -> Value:
    held = m.graph.type(scale)
    return m.add("div", scalar(m, scale) if held.size == 1 else scale, target.scale)


def _requantize(m: Match, value: Value, target: Target) -> Value | None:
    graph = m.graph
    found = _dequantized(graph, value)
    if found is None:
        return None
    same = (found.dtype, found.zero, (None, None)) == (target.to, target.zero, target.steps)
    one = graph.type(found.scale).size == 1
    if same and one and (found.scale == target.scale or _equal(graph, found.scale, target.scale)):
        return _bounded(m, found.q, target)
    if found.dtype not in (*STEPS, "int32", "int64"):
        return None
    ratio = _ratio(m, found.scale, target)
    return m.add("requantize", found.q, ratio, x_zero_point=found.zero, **_attrs(m, target))


def _add(m: Match, value: Value, target: Target) -> Value | None:
    pair = _pair(m, value)
    if pair is None:
        return None
    sign = -1.0 if m.graph.node(value).op == "sub" else 1.0
    weights = []
    for found, factor in zip(pair, (1.0, sign), strict=True):
        ratio = _ratio(m, found.scale, target)
        known = known_value(m.graph, ratio)
        if known is not None and float(known) > MOST_RATIO:
            return None
        held = m.add("clip", ratio, low=-MOST_RATIO, high=MOST_RATIO)
        steps = m.add("round", m.add("mul", held, number(m, factor * (1 << ADD_SHIFT), found.q)))
        weights.append(m.add("cast", steps, to="int32"))
    zeros = {"a_zero_point": pair[0].zero, "b_zero_point": pair[1].zero}
    return m.add("add_integer", pair[0].q, pair[1].q, *weights, **zeros, **_attrs(m, target))


def _pair(m: Match, value: Value) -> tuple[Steps, Steps] | None:
    a, b = (steps_of(m.graph, v) for v in m.graph.args(value.node))
    if a is None or b is None or m.graph.type(a.q).itemsize != m.graph.type(b.q).itemsize:
        return None
    return a, b


def _mul(m: Match, value: Value, target: Target) -> Value | None:
    pair = _pair(m, value)
    if pair is None:
        return None
    a, b = pair
    product = m.add("mul_integer", a.q, b.q, a_zero_point=a.zero, b_zero_point=b.zero)
    scale = m.add("mul", scalar(m, a.scale), scalar(m, b.scale))
    return m.add("requantize", product, _ratio(m, scale, target), **_attrs(m, target))


def _mean(m: Match, value: Value, target: Target) -> Value | None:
    """avg_pool without unequal windows, and the mean over all spatial axes."""
    graph, node = m.graph, m.graph.node(value)
    found = steps_of(graph, graph.args(value.node)[0], accept=("int8", "uint8"))
    if found is None or not graph.type(found.q).static:
        return None
    dims = graph.type(found.q).dims
    rank = len(dims) - 2
    attrs = dict(node.attrs)
    if node.op == "reduce_mean":
        axes = sorted(a % len(dims) for a in node.attrs["axes"])
        if rank < 1 or axes != list(range(2, len(dims))):
            return None
        attrs = {"kernel_shape": dims[2:], "strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank}
    elif attrs.pop("ceil_mode") or (not attrs.pop("count_include_pad") and any(attrs["pads"])):
        return None
    size = math.prod(attrs["kernel_shape"])
    if size > 1 << 22:
        return None
    sums = m.add("sum_pool_integer", found.q, **attrs, zero_point=found.zero)
    scale = m.add("div", scalar(m, found.scale), number(m, size, found.q))
    steps = m.add("requantize", sums, _ratio(m, scale, target), **_attrs(m, target))
    return m.add("reshape", steps, shape=node.types[0].shape)


def _softmax(m: Match, value: Value, target: Target) -> Value | None:
    graph, node = m.graph, m.graph.node(value)
    found = steps_of(graph, graph.args(value.node)[0], accept=("int8", "uint8"))
    scale = graph.constant(found.scale) if found else None
    steps = graph.constant(target.scale)
    if found is None or scale is None or steps is None or not node.types[0].static:
        return None
    table = m.const(exp_table(scale.item(), node.types[0].dims[node.attrs["axis"]]), found.q)
    each = m.const(np.float32(1) / steps.astype(np.float32).reshape(()), target.scale)
    return m.add("softmax_integer", found.q, table, each, axis=node.attrs["axis"], **_attrs(m, target))


def _parts(m: Match, value: Value, target: Target) -> Value | None:
    """concat: each part is brought to the scale of the whole."""
    graph = m.graph
    args = graph.args(value.node)
    if any(steps_of(graph, a) is None for a in args):
        return None
    zero = m.const(np.asarray(target.zero, target.to), target.scale)
    parts = [m.add("quantize", a, target.scale, zero, to=target.to) for a in args]
    whole = m.add("concat", *parts, **graph.node(value).attrs)
    return _bounded(m, whole, target)


def _table(m: Match, source: Value, target: Target) -> Value | None:
    """Any elementwise function of one 8-bit tensor (and of numbers)."""
    graph = m.graph
    inner = _function(graph, source)
    steps = graph.constant(target.scale)
    if inner is None or steps is None:
        return None
    order, start = inner
    found = steps_of(graph, start, accept=("int8", "uint8"))
    scale = graph.constant(found.scale) if found else None
    if found is None or scale is None or m.shape(start) != m.shape(source) or start == source:
        return None
    every = np.arange(np.iinfo(found.dtype).min, np.iinfo(found.dtype).max + 1)
    held: dict[Value, np.ndarray] = {start: ((every - found.zero) * scale.astype(np.float32).reshape(())).astype("f4")}
    with np.errstate(all="ignore"):
        for key in order:
            args = [_known(graph, held, a) for a in graph.args(key)]
            held[Value(key)] = _everywhere(graph.node(key), args, len(every))
        zero = np.asarray(target.zero, target.to)
        bounds = dict(zip(("low", "high"), target.steps, strict=True))
        table = OPS["quantize"].reference(held[source], steps.reshape(()), zero, to=target.to, **bounds)  # type: ignore[misc]
    if not np.isfinite(held[source].astype(np.float64)).all():
        return None
    return m.add("lookup", found.q, m.const(np.asarray(table), found.q))


def _everywhere(node: Node, args: list[np.ndarray | None], count: int) -> np.ndarray:
    """An elementwise operation on a vector of ``count`` elements, whatever the shape that it has in the graph."""
    shaped = replace(node, types=(node.types[0].with_shape((count,)),))
    given = [None if a is None else np.broadcast_to(a, (count,)) for a in args]
    return np.asarray(evaluate(shaped, given)[0])


def _known(graph: Graph, held: dict[Value, np.ndarray], value: Value | None) -> np.ndarray | None:
    if value is None:
        return None
    if value in held:
        return held[value]
    array = graph.constant(value)
    assert array is not None
    return array.reshape(())


def _function(graph: Graph, value: Value) -> tuple[list[int], Value] | None:
    """The elementwise operations behind one tensor that a ``dequantize`` makes, in order, and that tensor."""
    nodes: set[int] = set()
    starts: set[Value] = set()
    stack = [value]
    while stack:
        v = stack.pop()
        node = graph.node(v)
        if node.op == "dequantize":
            starts.add(v)
        elif node.op == "const" and node.types[0].size == 1:
            continue
        elif OPS[node.op].kind is Kind.ELEMENTWISE and len(node.types) == 1 and node.op not in _NOT_TABLES:
            if v.node not in nodes:
                nodes.add(v.node)
                stack += [a for a in graph.args(v.node) if a is not None]
        else:
            return None
        if len(nodes) > MOST_NODES or len(starts) > 1:
            return None
    if len(starts) != 1:
        return None
    return [key for key in graph.order() if key in nodes], starts.pop()


_NOT_TABLES = ("iota", "trilu", "random_bits", "quantize", "where", "requantize", "add_integer", "mul_integer")
Form = Callable[[Match, Value, Target], Value | None]
FORMS: dict[str, tuple[Form, ...]] = {
    "dequantize": (_requantize,),
    "add": (_add,),
    "sub": (_add,),
    "mul": (_mul,),
    "avg_pool": (_mean,),
    "reduce_mean": (_mean,),
    "softmax": (_softmax,),
    "concat": (_parts,),
}


def _rule(name: str, op: str, build: Callable[[Match], Value | None]) -> Rule:
    pattern: Call = any_call(op)
    return Rule(name, pattern, build, closed=False)


RULES: tuple[Rule, ...] = (
    _rule("convolution of integers", "conv", _conv),
    _rule("product of integers", "matmul", _matmul),
    _rule("addend into the bias", "add", _addend),
    _rule("factor into the scale", "mul", _factor),
    *(_rule(f"{op} of integers", op, _sink) for op in SINKS),
    _rule("pad of integers", "pad", _pad),
    _rule("pad into a convolution of integers", "conv_integer", _padded_conv),
    _rule("concat of integers", "concat", _concat),
    _rule("quantized again", "quantize", _quantized),
)
