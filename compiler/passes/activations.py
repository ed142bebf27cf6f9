"""Forms in which exporters write activation functions and softmax.

 1. gelu: x/2 (1 + erf(x/sqrt 2)); by tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) and its rearrangements.
 2. sigmoid: 1/(1 + exp -x), and 1/2 + tanh(x/2)/2; silu: x sigmoid(x), x/(1 + exp -x); softplus: log(1 + exp x).
 3. hard_sigmoid: clip(x + 3, 0, 6)/6, clip(a x + b, 0, 1); hard_swish: x times the first of them.
 4. leaky_relu: a choice between x and a x by the sign of x, max(x, a x); prelu (a slope for each channel) in the forms
    relu(x) + a min(x, 0), relu(x) - a relu(-x), a (x - |x|)/2 + relu(x) becomes where(x < 0, a x, x).
 5. softmax and log_softmax along one axis, with and without the largest element subtracted.

The factors of a product are found in any order and bracketing; constants as factors or as divisors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..ir import Graph, Value
from .pattern import ROUNDED, Match, Pattern, Scalar, Var, call, close, either, scaled
from .rewrite import Rule

X = Var("x")


# -- 1: gelu -----------------------------------------------------------------------------------------------------

_ROOT = math.sqrt(2.0 / math.pi)
_CUBE = 0.044715


def _times_cube(coefficient: float) -> Pattern:
    return either(
        scaled(coefficient, X, X, X),
        scaled(coefficient, call("pow", X, Scalar(3.0))),
        scaled(coefficient, X, call("pow", X, Scalar(2.0))),
    )


_TANH_ARGUMENT = either(
    scaled(_ROOT, call("add", X, _times_cube(_CUBE))),
    scaled(_ROOT, X, call("add", scaled(_CUBE, X, X), Scalar(1.0))),
    call("add", scaled(_ROOT, X), _times_cube(_ROOT * _CUBE)),
    scaled(1.0, X, call("add", scaled(_ROOT * _CUBE, X, X), Scalar(_ROOT, rel=ROUNDED))),
)


def _gelu(inner: Pattern) -> Pattern:
    return scaled(0.5, X, call("add", inner, Scalar(1.0)))


# -- 3: hard_sigmoid, hard_swish ---------------------------------------------------------------------------------

_CLIP_6 = call("clip", call("add", X, Scalar(3.0)), low=0, high=6)


def _hard_sigmoid(m: Match) -> Value | None:
    alpha = m.number("a")
    if alpha == 1 or not math.isfinite(alpha):  # clip(x + b, 0, 1) is best left to a bias and a clip
        return None
    return m.add("hard_sigmoid", m["x"], alpha=alpha, beta=m.number("b"))


def _sixth(m: Match) -> bool:
    attrs = m.graph.node(m["h"]).attrs
    return close(attrs["alpha"], 1 / 6, 1e-6) and close(attrs["beta"], 0.5, 1e-6)


# -- 4: leaky_relu, prelu ----------------------------------------------------------------------------------------

# What a slope is multiplied by: min(x, 0) itself, its negative, or twice it.
_PART = either(
    call("clip", X, low=None, high=0, name="part"),
    call("relu", call("neg", X), name="mirrored"),
    call("sub", X, call("abs", X), name="double"),
)


def _relu_and(part: Pattern) -> Pattern:
    """relu(x) plus or minus something."""
    return either(call("add", call("relu", X), part, name="plus"), call("sub", call("relu", X), part))


_BELOW = either(call("less|less_equal", X, Scalar(0.0)), call("greater|greater_equal", Scalar(0.0), X))
_ABOVE = either(call("greater|greater_equal", X, Scalar(0.0)), call("less|less_equal", Scalar(0.0), X))


def _factor(m: Match) -> float:
    """The number by which min(x, 0) is multiplied, a tensor ``a`` left aside."""
    factor = -m.number("k") if "mirrored" in m else 2 * m.number("k") if "double" in m else m.number("k")
    return factor if "plus" in m else -factor


def _prelu(m: Match) -> Value:
    x, slope, factor = m["x"], m["a"], _factor(m)
    if factor != 1:
        slope = m.add("mul", slope, m.scalar(factor, slope))
    return m.add("where", m.add("less", x, m.scalar(0.0, x)), m.add("mul", x, slope), x)


def _is_slope(m: Match) -> bool:
    """A stored slope: a computed one may be anything, such as another activation."""
    return m.graph.node(m["a"]).op in ("const", "param")


def _below_one(m: Match) -> bool:
    return 0 <= m.number("a") < 1


# -- 5: softmax --------------------------------------------------------------------------------------------------

_MAX = call("reduce_max", X, name="max")
_LOG_SUM = call("log", call("reduce_sum", call("exp", either(call("sub", X, _MAX), X)), name="sum"))
_EXP = call("exp", either(call("sub", X, _MAX), X))


def one_axis(graph: Graph, value: Value) -> int | None:
    """The only axis of a reduction that keeps its axes, counted from the front."""
    node = graph.node(value)
    axes = node.attrs["axes"]
    return axes[0] % node.types[0].rank if len(axes) == 1 and node.attrs["keepdims"] else None


def _over_axis(op: str) -> Callable[[Match], Value | None]:
    def build(m: Match) -> Value | None:
        axis = one_axis(m.graph, m["sum"])
        if axis is None or ("max" in m and one_axis(m.graph, m["max"]) != axis):
            return None
        return m.add(op, m["x"], axis=axis)

    return build


def _to(op: str) -> Callable[[Match], Value | None]:
    return lambda m: m.add(op, m["x"])


_PLUS_ONE = call("add", call("exp", call("neg", X)), Scalar(1.0))

RULES: tuple[Rule, ...] = (
    Rule("gelu", _gelu(call("erf", scaled(math.sqrt(0.5), X))), _to("gelu")),
    Rule("gelu tanh", _gelu(call("tanh", _TANH_ARGUMENT)), lambda m: m.add("gelu", m["x"], approximate="tanh")),
    Rule("sigmoid", call("reciprocal", _PLUS_ONE), _to("sigmoid")),
    Rule(
        "sigmoid tanh",
        call("add", scaled(0.5, call("tanh", scaled(0.5, X))), Scalar(0.5)),
        _to("sigmoid"),
    ),
    Rule("silu", scaled(1.0, X, call("sigmoid", X)), _to("silu")),
    Rule("silu quotient", call("div", X, _PLUS_ONE), _to("silu")),
    Rule(
        "softplus",
        either(call("log", call("add", call("exp", X), Scalar(1.0))), call("log1p", call("exp", X))),
        _to("softplus"),
    ),
    Rule("hard_swish", scaled(1 / 6, X, _CLIP_6), _to("hard_swish")),
    Rule("hard_swish product", scaled(1.0, X, call("hard_sigmoid", X, name="h")), _to("hard_swish"), _sixth),
    Rule("hard_sigmoid", scaled(1 / 6, _CLIP_6), lambda m: m.add("hard_sigmoid", m["x"], alpha=1 / 6, beta=0.5)),
    Rule(
        "hard_sigmoid clip", call("clip", call("add", scaled("a", X), Scalar(name="b")), low=0, high=1), _hard_sigmoid
    ),
    Rule(
        "leaky_relu",
        either(call("where", _BELOW, scaled("a", X), X), call("where", _ABOVE, X, scaled("a", X))),
        lambda m: m.add("leaky_relu", m["x"], alpha=m.number("a")),
    ),
    Rule(
        "leaky_relu maximum",
        call("maximum", X, scaled("a", X)),
        lambda m: m.add("leaky_relu", m["x"], alpha=m.number("a")),
        _below_one,
    ),
    Rule("leaky_relu sum", _relu_and(scaled("k", _PART)), lambda m: m.add("leaky_relu", m["x"], alpha=_factor(m))),
    Rule("prelu", _relu_and(scaled("k", Var("a"), _PART)), _prelu, _is_slope),
    Rule("softmax", call("div", _EXP, call("reduce_sum", _EXP, name="sum")), _over_axis("softmax")),
    Rule(
        "log_softmax",
        either(
            call("sub", call("sub", X, _MAX), _LOG_SUM),
            call("sub", X, call("add", _LOG_SUM, _MAX)),
            call("sub", X, _LOG_SUM),
        ),
        _over_axis("log_softmax"),
    ),
)
