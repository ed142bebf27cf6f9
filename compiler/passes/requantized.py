"""What is quantized again: rules 4 to 6 of ``integers``, each operator's form as one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..interpret import evaluate
from ..ir import Graph, Node, Value
from ..ops import OPS, Kind
from ..ops.integers import ADD_BITS, ADD_SHIFTS, MOST_RATIO, NARROW, STEPS, add_multiplier, add_shift, exp_table
from .pattern import Match
from .steps import Steps, dequantized, equal, kept, known_value, number, scalar, steps_of, zero_of

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
    while (bounds := _bounds(graph, value)) is not None:
        value, low, high = bounds
        target = replace(target, low=_inner(target.low, low, max), high=_inner(target.high, high, min))
    if graph.node(value).op in MOVERS:
        return _before(m, value, source)
    for form in FORMS.get(graph.node(value).op, ()):
        found = form(m, value, target)
        if found is not None:
            return _within(m, found, target)
    return _table(m, source, plain) or (_chosen(m, value, target) if graph.node(value).op == "where" else None)


def _bounds(graph: Graph, value: Value) -> tuple[Value, float | None, float | None] | None:
    """What ``value`` is but for bounds, and these."""
    node, args = graph.node(value), graph.args(value.node)
    if node.op in ("relu", "clip", "identity"):
        low, high = (0.0, None) if node.op == "relu" else (node.attrs.get("low"), node.attrs.get("high"))
        return args[0], low, high  # type: ignore[return-value]
    if node.op in ("minimum", "maximum"):
        for inner, other in (args, args[::-1]):
            bound = graph.constant(other)
            if bound is not None and bound.size == 1 and graph.type(inner) == node.types[0]:  # type: ignore[arg-type]
                number = float(bound.reshape(())) if np.isfinite(bound).all() else None
                return (inner, number, None) if node.op == "maximum" else (inner, None, number)  # type: ignore[return-value]
    return None


def _before(m: Match, moved: Value, source: Value) -> Value | None:
    """Q of a moved tensor is the moved Q: rounding is monotone, so that the largest may be chosen behind it."""
    graph, mover = m.graph, m.graph.node(moved)
    inner, *rest = graph.args(moved.node)
    if mover.attrs.get("indices") or graph.type(inner).dtype != "float32":  # type: ignore[arg-type]
        return None
    while source != moved:
        found = _bounds(graph, source)
        assert found is not None
        source, *bounds = found
        inner = m.add("clip", inner, low=bounds[0], high=bounds[1]) if bounds != [None, None] else inner
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
    same = (found.dtype, found.zero) == (target.to, target.zero)
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
    ratios = [_ratio(m, found.scale, target) for found in pair]
    known = [known_value(m.graph, r) for r in ratios]
    largest = max((float(k) for k in known if k is not None), default=0.0)
    if largest > MOST_RATIO:
        return None
    a, b = (_widened(m, found) if _wide(pair) else found for found in pair)
    signs = (1.0, -1.0 if m.graph.node(value).op == "sub" else 1.0)
    zeros = {"a_zero_point": a.zero, "b_zero_point": b.zero, **_attrs(m, target)}
    if None not in known:
        shift = add_shift(largest)
        held = [m.const(add_multiplier(float(k) * f, shift), a.q) for k, f in zip(known, signs, strict=True)]  # type: ignore[arg-type]
        return m.add("add_integer", a.q, b.q, *held, **zeros, shift=shift)
    by, power = _learned_shift(m, ratios, a.q)
    weights = []
    for ratio, factor in zip(ratios, signs, strict=True):
        bounded = m.add("clip", ratio, low=-MOST_RATIO, high=MOST_RATIO)
        steps = m.add("round", m.add("mul", m.add("mul", bounded, power), number(m, factor, a.q)))
        weights.append(m.add("cast", steps, to="int32"))
    return m.add("add_integer", a.q, b.q, *weights, by, **zeros)


def _learned_shift(m: Match, ratios: list[Value], like: Value) -> tuple[Value, Value]:
    """``add_shift`` of ratios that are computed, and two to its power: exact, by comparisons with powers of two."""
    shifts = range(ADD_SHIFTS[1], ADD_SHIFTS[0] - 1, -1)
    limits = m.const(np.array([2.0 ** (ADD_BITS - s) for s in shifts[1:]], np.float32), like)
    passed = m.add("cast", m.add("less_equal", limits, m.add("maximum", *ratios)), to="int32")
    place = m.add("reduce_sum", passed, axes=(0,), keepdims=False)
    tables = (np.array(shifts, np.int32), np.array([2.0**s for s in shifts], np.float32))
    by, power = (m.add("gather", m.const(t, like), place, axis=0) for t in tables)
    return by, power


def _wide(pair: tuple[Steps, Steps]) -> bool:
    return any(found.dtype.endswith("16") for found in pair)


def _pair(m: Match, value: Value) -> tuple[Steps, Steps] | None:
    a, b = (steps_of(m.graph, v) for v in m.graph.args(value.node))
    return None if a is None or b is None else (a, b)


def _widened(m: Match, found: Steps) -> Steps:
    """The same numbers in 16 bits."""
    if found.dtype.endswith("16"):
        return found
    return replace(found, q=m.add("cast", found.q, to="int16"), dtype="int16")


def _mul(m: Match, value: Value, target: Target) -> Value | None:
    pair = _pair(m, value)
    if pair is None:
        return None
    a, b = (_widened(m, found) if _wide(pair) else found for found in pair)
    product = m.add("mul_integer", a.q, b.q, a_zero_point=a.zero, b_zero_point=b.zero)
    scale = m.add("mul", scalar(m, a.scale), scalar(m, b.scale))
    return m.add("requantize", product, _ratio(m, scale, target), **_attrs(m, target))


def _mean(m: Match, value: Value, target: Target) -> Value | None:
    """The mean over any axes: they stand behind the others as one window."""
    graph, node = m.graph, m.graph.node(value)
    found = steps_of(graph, graph.args(value.node)[0])
    if found is None or not graph.type(found.q).static:
        return None
    q, dims = found.q, graph.type(found.q).dims
    axes = sorted(a % len(dims) for a in node.attrs["axes"])
    kept = [i for i in range(len(dims)) if i not in axes]
    if not axes or math.prod(dims[a] for a in axes) > _most_summed(found):
        return None
    if len(kept) != 2 or [*kept, *axes] != list(range(len(dims))):
        q = m.add("transpose", q, perm=(*kept, *axes))
        q = m.add("reshape", q, shape=(1, math.prod(dims[k] for k in kept), *(dims[a] for a in axes)))
    window, rank = tuple(dims[a] for a in axes), len(axes)
    attrs = {"kernel_shape": window, "strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank}
    return _averaged(m, value, target, replace(found, q=q), attrs, np.float32(math.prod(window)))


def _pool(m: Match, value: Value, target: Target) -> Value | None:
    """avg_pool; where padding does not count, each place is divided by its own number of elements."""
    graph, attrs = m.graph, dict(m.graph.node(value).attrs)
    found = steps_of(graph, graph.args(value.node)[0])
    if found is None or not graph.type(found.q).static:
        return None
    size, outputs = graph.type(found.q).dims[2:], graph.node(value).types[0].dims[2:]
    whole, rank = attrs.pop("count_include_pad"), len(size)
    if attrs.pop("ceil_mode"):
        ends = [
            (y - 1) * s + (k - 1) * d + 1 - x - p
            for y, s, k, d, x, p in zip(
                outputs, attrs["strides"], attrs["kernel_shape"], attrs["dilations"], size, attrs["pads"], strict=False
            )
        ]
        ends = [max(a, b) for a, b in zip(ends, attrs["pads"][rank:], strict=True)]
        if whole and ends != list(attrs["pads"][rank:]):
            return None
        attrs["pads"] = (*attrs["pads"][:rank], *ends)
    if math.prod(attrs["kernel_shape"]) > _most_summed(found):
        return None
    counts: np.ndarray | np.float32 = np.float32(math.prod(attrs["kernel_shape"]))
    if not whole and any(attrs["pads"]):
        ones = np.ones((1, 1, *size), np.int8)
        counts = OPS["sum_pool_integer"].reference(ones, **attrs, zero_point=0).astype(np.float32)  # type: ignore[misc]
    if np.min(counts) < 1:
        return None
    alike = (found.dtype, found.zero) == (target.to, target.zero) and equal(graph, found.scale, target.scale)
    if alike and not (whole and any(attrs["pads"])) and np.max(counts) <= 1 << 12:
        return _mean_of_steps(m, target, found.q, attrs, counts)
    return _averaged(m, value, target, found, attrs, counts)


def _mean_of_steps(
    m: Match, target: Target, q: Value, window: Mapping[str, Any], counts: np.ndarray | np.float32
) -> Value:
    """An average in the steps of what it averages: halves away from zero, as TensorFlow Lite's kernel has it: four
    times the sum and one more in its direction is never a tie, and lies on the same side of every other."""
    sums = m.add("sum_pool_integer", q, **window, zero_point=0)
    beside = m.add("add", m.add("mul", sums, m.const(np.asarray(4, np.int32), q)), m.add("sign", sums))
    share = m.const(np.asarray(np.float32(0.25) / counts, np.float32), q)
    return m.add("requantize", beside, share, **{**_attrs(m, target), "zero_point": 0})


def _most_summed(found: Steps) -> int:
    """Elements of which an int32 holds the sum."""
    return ((1 << 31) - 1) // (0xFFFF if found.dtype.endswith("16") else 0xFF)


def _averaged(
    m: Match, value: Value, target: Target, found: Steps, window: Mapping[str, Any], counts: np.ndarray | np.float32
) -> Value:
    sums = m.add("sum_pool_integer", found.q, **window, zero_point=found.zero)
    scale = m.add("div", scalar(m, found.scale), m.const(np.asarray(counts), found.q))
    steps = m.add("requantize", sums, _ratio(m, scale, target), **_attrs(m, target))
    return m.add("reshape", steps, shape=m.graph.node(value).types[0].shape)


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
    parts = [_again(m, a, target) for a in m.graph.args(value.node)]
    return _bounded(m, m.add("concat", *parts, **m.graph.node(value).attrs), target)


def _chosen(m: Match, value: Value, target: Target) -> Value | None:
    """where: each of the two is quantized."""
    condition, *parts = m.graph.args(value.node)
    if all(steps_of(m.graph, p) is None for p in parts):
        return None
    return _bounded(m, m.add("where", condition, *(_again(m, p, target) for p in parts)), target)


def _again(m: Match, value: Value | None, target: Target) -> Value:
    """``value`` quantized without the bounds."""
    zero = m.const(np.asarray(target.zero, target.to), target.scale)
    low, high = target.steps
    return m.add("quantize", value, target.scale, zero, to=target.to, low=low, high=high)


def _scaled(m: Match, value: Value, target: Target) -> Value | None:
    """D times stored numbers that are not one: their product with the scale is the multiplier."""
    graph, args = m.graph, m.graph.args(value.node)
    for inner, other in (args, args[::-1]):
        found = steps_of(graph, inner)
        if found is None or other is None or not kept(graph, other) or graph.type(found.q).shape != m.shape(value):
            continue
        if graph.type(other).size == 1 and found.dtype in NARROW:
            continue  # a table says it more exactly
        multiplier = m.add("mul", other, _ratio(m, found.scale, target))
        return m.add("requantize", found.q, multiplier, x_zero_point=found.zero, **_attrs(m, target))
    return None


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


_NOT_TABLES = ("iota", "trilu", "random_bits", "quantize", "requantize", "add_integer", "mul_integer")
Form = Callable[[Match, Value, Target], Value | None]
FORMS: dict[str, tuple[Form, ...]] = {
    "dequantize": (_requantize,),
    "add": (_add,),
    "sub": (_add,),
    "mul": (_mul, _scaled),
    "avg_pool": (_pool,),
    "reduce_mean": (_mean,),
    "softmax": (_softmax,),
    "concat": (_parts,),
}
