"""What is quantized again: rules 4 to 6 of ``integers``, each operator's form as one function."""

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
from .pattern import Match
from .steps import Steps, dequantized, equal, known_value, number, scalar, steps_of, zero_of

MOST_NODES = 24  # operations of a function that becomes a table
MOVERS = ("reshape", "transpose", "expand", "tile", "max_pool")  # what a quantize moves in front of


@dataclass(frozen=True)
class Target:
    """How a result is quantized, and bounds in real numbers that relu and clip have put before that."""

    scale: Value
    zero: int
    to: str
    low: float | None = None
    high: float | None = None
    steps: tuple[int | None, int | None] = (None, None)  # bounds that the quantization itself has


def quantized(m: Match) -> Value | None:
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
    if graph.node(value).op in MOVERS:
        return _before(m, value, source)
    for form in FORMS.get(graph.node(value).op, ()):
        found = form(m, value, target)
        if found is not None:
            return _within(m, found, target)
    return _table(m, source, plain)


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


def _inner(have: float | None, new: float | None, choose: Callable[..., float]) -> float | None:
    if new is None or not math.isfinite(new):
        return have
    return new if have is None else choose(have, new)


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
    found = dequantized(graph, value)
    if found is None:
        return None
    same = (found.dtype, found.zero, (None, None)) == (target.to, target.zero, target.steps)
    one = graph.type(found.scale).size == 1
    if same and one and (found.scale == target.scale or equal(graph, found.scale, target.scale)):
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
