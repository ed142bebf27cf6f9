"""Rules of arithmetic.

1. Neutral elements go: x + 0, x - 0, x * 1, x / 1, x ** 1; x and True, x or False; where all or nothing is chosen.
2. Inverses and repetitions go: two neg or not; abs of abs, neg or relu; relu, floor, ceil, round, sign twice.
3. Powers: 2 and 3 are products, 0.5 sqrt, -0.5 rsqrt, -1 reciprocal.
4. Subtraction of a constant is addition; division by one is multiplication, if its reciprocal is exact or nothing
   behind it rounds or compares (49 * (1/49) is less than 1). 0 - x and x * -1 are neg; x + -y is x - y.
5. 1 / x is reciprocal, 1 / sqrt(x) rsqrt, x * reciprocal(y) a division. log of softmax is log_softmax.
6. minimum and maximum with a number are clips, clips in a row are one, clip from 0 up is relu.
7. Constants in a row of additions, or of multiplications, are brought together; factors not where a step of a
   quantized tensor is computed from them, which must come out the same whether a scale is a constant or learned.
8. A sum over n elements times 1/n is a mean.
9. A transpose of the last two axes of a product is the product of the transposes the other way round, where its factors
   can be transposed at no cost, or the left one is a transpose itself (the gradient of a transposed weight).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..ir import Graph, Value
from ..types import is_float
from .pattern import Const, Match, Pattern, Scalar, Var, call, close, either
from .rewrite import Rule, near_users

_X, _Y, _C = Var("x"), Var("y"), Const("c")
_STEPS = ("quantize", "requantize")
_ROUNDING = ("floor", "ceil", "round", "cast", "mod", "fmod", "sign", *_STEPS)
_COMPARING = ("equal", "less", "less_equal", "greater", "greater_equal")
Build = Callable[[Match], Value | None]


def _x(m: Match) -> Value:
    return m["x"]


def _to(op: str) -> Build:
    """``op(x)``."""
    return lambda m: m.add(op, m["x"])


def _to_binary(op: str) -> Build:
    return lambda m: m.add(op, m["x"], m["y"])


def _floating(m: Match) -> bool:
    return is_float(m.graph.type(m["x"]).dtype)


# -- 1, 2: what goes ---------------------------------------------------------------------------------------------


def _keep(m: Match) -> Value | None:
    """x in the shape of the result, which the neutral element may have widened."""
    x, wanted = m["x"], m.node.types[0]
    if m.graph.type(x) == wanted:
        return x
    return m.add("expand", x, shape=wanted.shape) if m.graph.type(x).dtype == wanted.dtype else None


def _neutral_truth(m: Match) -> Value | None:
    array = m.array("c")
    neutral = m.node.op == "logical_and"
    return _keep(m) if bool(np.all(array == neutral)) else None


def _chosen(m: Match) -> Value | None:
    array = m.array("c")
    if array.size == 0 or bool(array.any()) != bool(array.all()):
        return None
    value, wanted = m["x" if array.all() else "y"], m.node.types[0]
    return value if m.graph.type(value) == wanted else m.add("expand", value, shape=wanted.shape)


# -- 3, 4, 5: powers, differences, quotients ---------------------------------------------------------------------


def _power(m: Match) -> Value | None:
    x, exponent = m["x"], m.number("p")
    if m.graph.type(x) != m.node.types[0]:
        return None
    if exponent == 1:
        return x
    if exponent == 2:
        return m.add("mul", x, x)
    if exponent == 3:
        return m.add("mul", m.add("mul", x, x), x)
    roots = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    return m.add(roots[exponent], x) if exponent in roots and _floating(m) else None


def _add_negative(m: Match) -> Value | None:
    array = m.array("c")
    if array.dtype.kind in "ub":
        return None
    return m.add("add", m["x"], m.const(np.negative(array), m["c"]))


def _reciprocal_factor(m: Match) -> Value | None:
    array = m.array("c")
    if not _floating(m):
        return None
    wide = array.astype(np.float64)
    mantissa, _ = np.frexp(wide)
    exact = bool(np.all(np.abs(mantissa) == 0.5))
    if not exact and _behind(m.graph, m.root, (*_ROUNDING, *_COMPARING)):
        return None
    with np.errstate(all="ignore"):
        inverse = (1.0 / wide).astype(array.dtype)
        size = np.abs(inverse.astype(np.float64))
    tiny = 2.0**-14 if array.dtype == np.float16 else 2.0**-126
    if not bool(np.all(np.isfinite(size) & (size >= tiny))):
        return None
    return m.add("mul", m["x"], m.const(inverse, m["c"]))


def _behind(graph: Graph, key: int, ops: tuple[str, ...]) -> bool:
    """Whether an operation that turns a rounding error into a step lies close behind."""
    behind = near_users(graph, graph.nx.successors(key), 3)
    return any(graph.node(user).op in ops for user in behind)


def _log_softmax(m: Match) -> Value | None:
    return m.add("log_softmax", m["x"], axis=m.graph.node(m["softmax"]).attrs["axis"])


# -- 6: clips ----------------------------------------------------------------------------------------------------


def _bound(m: Match) -> Value | None:
    """minimum and maximum with a number."""
    x, number = m["x"], m.number("b")
    exact = math.isfinite(number) and (_floating(m) or abs(number) <= 2**53)
    if m.graph.type(x) != m.node.types[0] or not exact:
        return None
    if m.node.op == "minimum":
        return m.add("clip", x, high=number)
    return m.add("relu", x) if number == 0 else m.add("clip", x, low=number)


def _limits(graph: Graph, value: Value) -> tuple[float, float]:
    """Low and high of a clip or relu; infinite where there is none."""
    node = graph.node(value)
    if node.op == "relu":
        return 0.0, math.inf
    low, high = node.attrs["low"], node.attrs["high"]
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _clip(m: Match, low: float, high: float) -> Value:
    if low == 0 and high == math.inf:
        return m.add("relu", m["x"])
    if m.graph.type(m["x"]).dtype.startswith(("int", "uint")):
        low = math.ceil(low) if math.isfinite(low) else low
        high = math.floor(high) if math.isfinite(high) else high
    return m.add("clip", m["x"], low=None if low == -math.inf else low, high=None if high == math.inf else high)


def _clip_of_clip(m: Match) -> Value | None:
    (a, b), (c, d) = _limits(m.graph, m["inner"]), _limits(m.graph, m.out)
    if a > b or c > d:
        return None
    return _clip(m, min(max(a, c), d), min(max(b, c), d))


def _clip_alone(m: Match) -> Value | None:
    low, high = _limits(m.graph, m.out)
    if (low, high) == (-math.inf, math.inf):
        return m["x"]
    plain = (m.node.attrs["low"], m.node.attrs["high"])
    if (low, high) == (0, math.inf):
        return m.add("relu", m["x"])
    infinite = [v for v in plain if v is not None and math.isinf(v)]
    return _clip(m, low, high) if infinite and low < high else None


# -- 7, 8, 9: chains of constants, means, products -----------------------------------------------------------------


def _chain(m: Match) -> Value | None:
    """(x + a) + b, or (x * a) * b. Brought together only if that takes no more memory than they did."""
    a, b = m.array("a"), m.array("b")
    shape = np.broadcast_shapes(a.shape, b.shape)
    if math.prod(shape) > max(a.size, b.size) or (m.node.op == "mul" and _behind(m.graph, m.root, (*_STEPS, "round"))):
        return None
    wide = np.float64 if a.dtype.kind not in "iu" else a.dtype
    with np.errstate(all="ignore"):
        both = (np.add if m.node.op == "add" else np.multiply)(a.astype(wide), b.astype(wide)).astype(a.dtype)
    if a.dtype.kind not in "iu" and not bool(np.all(np.isfinite(both.astype(np.float64)))):
        return None
    return m.add(m.node.op, m["x"], m.const(both, m["b"]))


def _mean(m: Match) -> Value | None:
    total = m.graph.node(m["sum"])
    x = m.graph.type(m["x"])
    if not x.static or not _floating(m):
        return None
    count = math.prod(x.dims[a] for a in total.attrs["axes"])
    if not count or not close(m.number("r"), 1.0 / count, 1e-6):
        return None
    return m.add("reduce_mean", m["x"], axes=total.attrs["axes"], keepdims=total.attrs["keepdims"])


def swaps_last(graph: Graph, value: Value) -> bool:
    """Whether a tensor is a transpose of the last two axes and nothing else."""
    node = graph.node(value)
    if node.op != "transpose":
        return False
    perm, rank = tuple(node.attrs["perm"]), node.types[0].rank
    return rank >= 2 and perm == (*range(rank - 2), rank - 1, rank - 2)


def _product_transposed(m: Match) -> Value | None:
    graph, a, b = m.graph, m["x"], m["y"]
    if not swaps_last(graph, m.out) or graph.type(a).rank < 2 or graph.type(b).rank < 2:
        return None
    constants = [graph.node(v).op == "const" and graph.uses(v) == 1 for v in (a, b)]
    free = [c or swaps_last(graph, v) for c, v in zip(constants, (a, b), strict=True)]
    if all(constants) or not (all(free) or swaps_last(graph, a)):
        return None
    return m.add("matmul", _swapped(m, b), _swapped(m, a))


def _swapped(m: Match, value: Value) -> Value:
    rank = m.graph.type(value).rank
    return m.add("transpose", value, perm=(*range(rank - 2), rank - 1, rank - 2))


def _rule(name: str, pattern: Pattern, build: Build, condition: Callable[[Match], bool] | None = None) -> Rule:
    return Rule(name, pattern, build, condition, closed=False)


def _same_shape(m: Match) -> bool:
    return m.graph.type(m["x"]) == m.node.types[0]


def _const_free(m: Match) -> bool:
    """A constant operand is folding's work."""
    return all(m.graph.constant(a) is None for a in m.graph.args(m.root))


RULES: tuple[Rule, ...] = (
    _rule("add 0", either(call("add", _X, Scalar(0.0)), call("sub", _X, Scalar(0.0))), _keep),
    _rule("mul 1", either(call("mul", _X, Scalar(1.0, rel=0.0)), call("div", _X, Scalar(1.0, rel=0.0))), _keep),
    _rule("neutral truth", call("logical_and|logical_or", _X, _C), _neutral_truth),
    _rule("where constant", call("where", _C, _X, _Y), _chosen),
    _rule("where same", call("where", _Y, _X, _X), _keep),
    _rule("neg neg", call("neg", call("neg", _X)), _x),
    _rule("not not", call("logical_not", call("logical_not", _X)), _x),
    _rule("abs neg", call("abs", call("abs|neg", _X)), _to("abs")),
    _rule("abs relu", call("abs", call("relu", _X)), _to("relu")),
    *(_rule(f"{op} {op}", call(op, call(op, _X)), _to(op)) for op in ("relu", "floor", "ceil", "round", "sign")),
    _rule("power", call("pow", _X, Scalar(name="p")), _power),
    _rule("0 - x", call("sub", Scalar(0.0), _X), _to("neg"), _same_shape),
    _rule("x * -1", call("mul", _X, Scalar(-1.0, rel=0.0)), _to("neg"), _same_shape),
    _rule("x - constant", call("sub", _X, _C), _add_negative),
    _rule("x + -y", call("add", _X, call("neg", _Y)), _to_binary("sub")),
    _rule("x - -y", call("sub", _X, call("neg", _Y)), _to_binary("add")),
    _rule("x / constant", call("div", _X, _C), _reciprocal_factor),
    _rule("1 / sqrt", call("reciprocal", call("sqrt", _X)), _to("rsqrt")),
    _rule("1 / x", call("div", Scalar(1.0, rel=0.0), _X), _to("reciprocal"), lambda m: _same_shape(m) and _floating(m)),
    _rule("x * 1/y", call("mul", _X, call("reciprocal", _Y)), _to_binary("div"), _const_free),
    Rule("log softmax", call("log", call("softmax", _X, name="softmax")), _log_softmax),
    _rule("bound", call("minimum|maximum", _X, Scalar(name="b")), _bound),
    _rule("clip clip", call("clip|relu", call("clip|relu", _X, name="inner")), _clip_of_clip),
    _rule("clip alone", call("clip", _X), _clip_alone),
    Rule("add add", call("add", call("add", _X, Const("a")), Const("b")), _chain),
    Rule("mul mul", call("mul", call("mul", _X, Const("a")), Const("b")), _chain),
    _rule("mean", call("mul", call("reduce_sum", _X, name="sum"), Scalar(name="r")), _mean),
    Rule("product transposed", call("transpose", call("matmul", _X, _Y)), _product_transposed),
)
