"""Quantized regions in integers: what lies between ``dequantize`` and ``quantize`` becomes ``ops.integers``.

Below, D(q) is a dequantized tensor, Q(v) a quantized one; scales may be constants or computed (they are learned while
a network is trained: the same rules then give the same integers in training as in the finished model).

 1. conv(D, D) and matmul(D, D) with weights are sums of integers, dequantized with the product of the scales. A bias
    is rounded to that scale, where it is not such integers already.
 2. A factor for each channel behind such a sum joins its scale, an addend its bias.
 3. D moves behind operators that only choose elements: views, max pools, gather, concat of equal scales, pads by 0,
    relu, resize by nearest neighbours. Comparisons with 0 and argmax read the integers.
 4. Q (``requantized``) moves in front of views, max pools, concat and where. Q behind a sum, or behind another D, with
    relu and clip between them, is one ``requantize``; behind a D of the same scale it is nothing.
 5. Q(D + D), Q(D - D), Q(D * D), Q(D * stored numbers), Q(mean D) and Q(softmax D) have integer forms.
 6. Q of any other elementwise function of one 8-bit D with a constant scale is a table.

What is left is floating point. Every rule is exact, or is the definition of what it makes (see ``ops.integers``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..ir import Graph, Value
from ..ops import OPS
from .pattern import Call, Match, any_call
from .recurrent_integers import lower_recurrent
from .requantized import quantized
from .rewrite import Rule, rewrite
from .steps import Steps, dequantized, equal, kept, known_value, scalar, steps_of

DEEPEST = 60000  # products of 8-bit steps that an int32 holds the sum of
VIEWS = ("reshape", "transpose", "slice", "expand", "tile", "gather", "identity", "copy")
SINKS = (*VIEWS, "max_pool", "reduce_max", "reduce_min", "resize")
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal")
SUMS = ("conv_integer", "matmul_integer")


def lower_integers(graph: Graph) -> Graph:
    """A copy of ``graph`` that computes with integers between its ``dequantize`` and ``quantize``."""
    if not graph.find("dequantize"):
        return graph.copy()
    lowered = rewrite(graph, RULES)
    recurrent = lower_recurrent(lowered)
    return lowered if recurrent is lowered else rewrite(recurrent, RULES)


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
    if held is None or not kept(graph, held):
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
    known = dequantized(graph, bias)
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


def _matmul(m: Match) -> Value | None:
    graph = m.graph
    a, b = graph.args(m.root)
    source = steps_of(graph, a)
    if source is None or b is None or graph.type(b).rank < 2 or graph.type(source.q).rank < 2:
        return None
    weights = _weights(m, b, -1)
    if weights is None:
        return _matmul_of_two(m, source, b)
    if graph.type(weights[0]).dims[-2] > DEEPEST:
        return None
    sums = m.add("matmul_integer", source.q, weights[0], zero_point=source.zero)
    return m.add("dequantize", sums, m.add("mul", scalar(m, source.scale), weights[1]))


def _matmul_of_two(m: Match, a: Steps, b: Value) -> Value | None:
    """The product of two tensors that the inputs give."""
    other = steps_of(m.graph, b)
    if other is None or m.graph.type(b).dims[-2] > DEEPEST // 2 or a.dtype.endswith("16") != other.dtype.endswith("16"):
        return None
    sums = m.add("matmul_integer", a.q, other.q, zero_point=a.zero, b_zero_point=other.zero)
    return m.add("dequantize", sums, m.add("mul", scalar(m, a.scale), scalar(m, other.scale)))


def _sum_of(graph: Graph, value: Value | None) -> Steps | None:
    """A dequantized sum of products that nothing else uses."""
    found = dequantized(graph, value)
    if found is None or graph.node(found.q).op not in SUMS or graph.uses(found.q) != 1:
        return None
    return found


def _channel_vector(m: Match, value: Value, sums: Value) -> tuple[int, ...] | None:
    """The shape of a stored tensor that has one number, or one for each channel of ``sums``; else None."""
    graph = m.graph
    if not kept(graph, value):
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
    if node.attrs.get("indices") or node.attrs.get("mode", "nearest") != "nearest" or node.attrs.get("extrapolation"):
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


def _relu(m: Match) -> Value | None:
    """relu of D that something else than a quantizer reads."""
    graph = m.graph
    (x,) = graph.args(m.root)
    found = steps_of(graph, x)
    if found is None or all(graph.node(user).op in ("quantize", "clip") for user, _ in graph.users(m.out)):
        return None
    zero = m.const(np.asarray(found.zero, found.dtype), found.q)
    return _again(m, m.add("maximum", found.q, zero), x)  # type: ignore[arg-type]


def _ordered(m: Match) -> Value | None:
    """Where the largest stands, of integers."""
    found = steps_of(m.graph, m.graph.args(m.root)[0])
    return m.add(m.node.op, found.q, **m.node.attrs) if found else None


def _compared(m: Match) -> Value | None:
    """D compared with 0 is the integers compared with their zero point."""
    graph, args = m.graph, m.graph.args(m.root)
    for i in (0, 1):
        found, bound = steps_of(graph, args[i]), graph.constant(args[1 - i])
        if found is not None and bound is not None and bound.size == 1 and not bound.any():
            zero = m.const(np.full(bound.shape, found.zero, found.dtype), found.q)
            return m.add(m.node.op, *((found.q, zero) if i == 0 else (zero, found.q)))
    return None


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
        if other.scale != first.scale and not equal(graph, other.scale, first.scale):
            return None
    moved = m.add("concat", *[f.q for f in found if f], **m.node.attrs)
    return _again(m, moved, args[0])  # type: ignore[arg-type]


def _rule(name: str, op: str, build: Callable[[Match], Value | None]) -> Rule:
    pattern: Call = any_call(op)
    return Rule(name, pattern, build, closed=False)


RULES: tuple[Rule, ...] = (
    _rule("convolution of integers", "conv", _conv),
    _rule("product of integers", "matmul", _matmul),
    _rule("addend into the bias", "add", _addend),
    _rule("factor into the scale", "mul", _factor),
    *(_rule(f"{op} of integers", op, _sink) for op in SINKS),
    *(_rule(f"{op} of integers", op, _ordered) for op in ("argmax", "argmin")),
    *(_rule(f"{op} of integers", op, _compared) for op in COMPARISONS),
    _rule("relu of integers", "relu", _relu),
    _rule("pad of integers", "pad", _pad),
    _rule("pad into a convolution of integers", "conv_integer", _padded_conv),
    _rule("concat of integers", "concat", _concat),
    _rule("quantized again", "quantize", quantized),
)
