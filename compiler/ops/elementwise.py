"""Elementwise operators: one output element from the same (broadcast) element of each input.

Element types are never promoted: operands have one type, and a frontend writes the casts. Integers wrap.
Transcendental references are computed in float64 and rounded once.
"""

from __future__ import annotations

import math

import numpy as np

from .gradient import Call as Grad
from .gradient import Sym
from .numeric import divide, erf, normal_cdf, power, sigmoid
from .record import Case
from .rows import binary, transcendental, unary
from .sampling import f32
from .shapes import ANY, BOOLS, INTEGERS, NUMBERS

# -- functions of one tensor -------------------------------------------------------------------------------------


def _isinf(x: np.ndarray, positive: bool, negative: bool) -> np.ndarray:
    return np.asarray(np.isinf(x) & (((x > 0) & positive) | ((x < 0) & negative)))


def _gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    if approximate == "none":
        return np.asarray(x * normal_cdf(x))
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _hard_sigmoid(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    return np.clip(alpha * x + beta, 0.0, 1.0)


def _clip(x: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """An integer's bounds are moved inward to integers that its type holds."""
    if x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        bounded = [info.min if low is None else math.ceil(low), info.max if high is None else math.floor(high)]
        low, high = (min(max(b, int(info.min)), int(info.max)) for b in bounded)
    below = x if low is None else np.maximum(x, np.asarray(low).astype(x.dtype))
    return below if high is None else np.minimum(below, np.asarray(high).astype(x.dtype))


# -- their gradients; what reads the output rather than the input leaves the input free to be overwritten ----------


def _silu_gradient(c: Grad) -> Sym:
    s = c.x.op("sigmoid")
    return c.g * (s + c.y * (1 - s))


def _gelu_gradient(c: Grad) -> Sym:
    """Of x s(x): s + x s'. By tanh, s is the sigmoid of twice tanh's argument."""
    if c.attrs["approximate"] == "none":
        density = (c.x * c.x * -0.5).op("exp") * (1 / math.sqrt(2 * math.pi))
        return c.g * (0.5 + 0.5 * (c.x * math.sqrt(0.5)).op("erf") + c.x * density)
    square, slope = c.x * c.x, 2 * math.sqrt(2 / math.pi)
    s = (slope * c.x * (0.044715 * square + 1)).op("sigmoid")
    return c.g * (s + c.y * (1 - s) * (slope + 3 * 0.044715 * slope * square))


def _signed(c: Grad) -> Sym:
    """What has x's sign."""
    return c.y if c.attrs["alpha"] >= 0 else c.x


def _within(x: Sym, low: float, high: float) -> Sym:
    return (x > low).op("logical_and", x < high)


def _elu_gradient(c: Grad) -> Sym:
    return (_signed(c) > 0).where(c.g, c.g * (c.y + c.attrs["alpha"]))


def _hard_swish_gradient(c: Grad) -> Sym:
    return _within(c.x, -3, 3).where(c.g * (c.x * (1 / 3) + 0.5), (c.x > 0).where(c.g, 0))


def _clip_gradient(c: Grad) -> Sym:
    """Zero at a bound, as of relu at 0."""
    low, high, passed = c.attrs["low"], c.attrs["high"], c.g
    if low is not None:
        passed = (c.y > low).where(passed, 0)
    return passed if high is None else (c.y < high).where(passed, 0)


def _pow_gradient(c: Grad) -> list[Sym]:
    """At a = 0 the limits, as far as there are any: 0 for b = 0, and for the gradient of b."""
    a, b = c.x, c.input(1)
    none = a.op("equal", 0).op("logical_and", b >= 0)
    return [b.op("equal", 0).where(0, c.g * b * a.op("pow", b - 1)), none.where(0, c.g * c.y * a.op("log"))]


def _extremum_gradient(c: Grad) -> list[Sym]:
    """Equals share, as in PyTorch."""
    share = c.x.op("equal", c.input(1)).where(c.g * 0.5, c.g)
    return [x.op("equal", c.y).where(share, 0) for x in (c.x, c.input(1))]


def _mod_gradient(c: Grad) -> list[Sym]:
    """y = a - n b, for the whole number n of times that b goes into a."""
    return [c.g, -c.g * ((c.x - c.y) / c.input(1)).op("round")]


EXPONENTIAL = ("exp", "log", "log1p", "expm1", "sinh", "cosh", "tanh", "erf", "pow", "sigmoid", "gelu", "silu", "elu")

UNARY = (
    unary("neg", np.negative, "-x.", onnx="Neg", accepts=NUMBERS, gradient=lambda c: -c.g),
    unary("abs", np.abs, "|x|.", onnx="Abs", accepts=NUMBERS, gradient=lambda c: c.g * c.x.op("sign")),
    unary("sign", np.sign, "-1, 0 or 1; NaN stays.", onnx="Sign", accepts=NUMBERS, gradient=lambda c: None),
    unary(
        "sqrt",
        np.sqrt,
        "The square root; NaN below 0.",
        onnx="Sqrt",
        work=4,
        low=0.0,
        gradient=lambda c: 0.5 * c.g / c.y,
    ),
    unary(
        "rsqrt",
        lambda x: 1.0 / np.sqrt(x),
        "1 / sqrt(x).",
        work=8,
        wide=True,
        low=0.1,
        gradient=lambda c: -0.5 * c.g * (c.y * c.y * c.y),
    ),
    unary(
        "reciprocal",
        lambda x: 1.0 / x,
        "1 / x.",
        onnx="Reciprocal",
        work=4,
        wide=True,
        low=0.2,
        gradient=lambda c: -c.g * (c.y * c.y),
    ),
    transcendental("exp", np.exp, "e to the power x.", "Exp", gradient=lambda c: c.g * c.y),
    transcendental("log", np.log, "The natural logarithm.", "Log", low=0.05, gradient=lambda c: c.g / c.x),
    transcendental("log1p", np.log1p, "log(1 + x), exact near 0.", low=-0.9, gradient=lambda c: c.g / (c.x + 1)),
    transcendental("expm1", np.expm1, "exp(x) - 1, exact near 0.", gradient=lambda c: c.g * (c.y + 1)),
    transcendental("sin", np.sin, "Sine; radians.", "Sin", gradient=lambda c: c.g * c.x.op("cos")),
    transcendental("cos", np.cos, "Cosine; radians.", "Cos", gradient=lambda c: -c.g * c.x.op("sin")),
    transcendental(
        "tan", np.tan, "Tangent; radians.", "Tan", low=-1.4, high=1.4, gradient=lambda c: c.g * (c.y * c.y + 1)
    ),
    transcendental(
        "asin",
        np.arcsin,
        "Inverse sine.",
        "Asin",
        low=-1.0,
        high=1.0,
        gradient=lambda c: c.g * (1 - c.x * c.x).op("rsqrt"),
    ),
    transcendental(
        "acos",
        np.arccos,
        "Inverse cosine.",
        "Acos",
        low=-1.0,
        high=1.0,
        gradient=lambda c: -c.g * (1 - c.x * c.x).op("rsqrt"),
    ),
    transcendental("atan", np.arctan, "Inverse tangent.", "Atan", gradient=lambda c: c.g / (c.x * c.x + 1)),
    transcendental("sinh", np.sinh, "Hyperbolic sine.", "Sinh", gradient=lambda c: c.g * c.x.op("cosh")),
    transcendental("cosh", np.cosh, "Hyperbolic cosine.", "Cosh", gradient=lambda c: c.g * c.x.op("sinh")),
    transcendental("tanh", np.tanh, "Hyperbolic tangent.", "Tanh", gradient=lambda c: c.g * (1 - c.y * c.y)),
    transcendental(
        "asinh", np.arcsinh, "Inverse hyperbolic sine.", "Asinh", gradient=lambda c: c.g * (c.x * c.x + 1).op("rsqrt")
    ),
    transcendental(
        "acosh",
        np.arccosh,
        "Inverse hyperbolic cosine.",
        "Acosh",
        low=1.0,
        gradient=lambda c: c.g * ((c.x - 1) * (c.x + 1)).op("rsqrt"),
    ),
    transcendental(
        "atanh",
        np.arctanh,
        "Inverse hyperbolic tangent.",
        "Atanh",
        low=-0.95,
        high=0.95,
        gradient=lambda c: c.g / (1 - c.x * c.x),
    ),
    transcendental(
        "erf",
        erf,
        "The error function.",
        "Erf",
        gradient=lambda c: c.g * (2 / math.sqrt(math.pi)) * (-(c.x * c.x)).op("exp"),
    ),
    transcendental(
        "sigmoid",
        sigmoid,
        "1 / (1 + exp(-x)).",
        "Sigmoid",
        low=-20.0,
        high=20.0,
        gradient=lambda c: c.g * (c.y * (1 - c.y)),
    ),
    transcendental("silu", lambda x: x * sigmoid(x), "x sigmoid(x).", low=-20.0, high=20.0, gradient=_silu_gradient),
    transcendental(
        "softplus",
        lambda x: np.logaddexp(0.0, x),
        "log(1 + exp(x)).",
        "Softplus",
        low=-20.0,
        high=20.0,
        gradient=lambda c: c.g * c.x.op("sigmoid"),
    ),
    transcendental(
        "gelu",
        _gelu,
        "x times the normal distribution function of x, exact or by tanh (Hendrycks and Gimpel 2016).",
        "Gelu",
        attrs={"approximate": "none"},
        variants=[{"approximate": "tanh"}],
        gradient=_gelu_gradient,
    ),
    transcendental(
        "elu",
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        "x above 0, alpha (exp(x) - 1) below.",
        "Elu",
        attrs={"alpha": 1.0},
        variants=[{"alpha": 0.3}],
        gradient=_elu_gradient,
    ),
    unary(
        "relu",
        lambda x: np.maximum(x, x.dtype.type(0)),
        "max(x, 0).",
        onnx="Relu",
        accepts=NUMBERS,
        gradient=lambda c: (c.y > 0).where(c.g, 0),
    ),
    unary(
        "leaky_relu",
        lambda x, alpha: np.where(x < 0, alpha * x, x),
        "x above 0, alpha x below.",
        onnx="LeakyRelu",
        attrs={"alpha": 0.01},
        variants=[{"alpha": 0.25}],
        work=2,
        wide=True,
        gradient=lambda c: (_signed(c) > 0).where(c.g, c.g * c.attrs["alpha"]),
    ),
    unary(
        "hard_sigmoid",
        _hard_sigmoid,
        "clip(alpha x + beta, 0, 1).",
        onnx="HardSigmoid",
        attrs={"alpha": 0.2, "beta": 0.5},
        variants=[{"alpha": 1 / 6, "beta": 0.5}, {"alpha": 0.3, "beta": 0.25}],
        work=4,
        wide=True,
        low=-5.0,
        high=5.0,
        gradient=lambda c: _within(c.y, 0, 1).where(c.g * c.attrs["alpha"], 0),
    ),
    unary(
        "hard_swish",
        lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
        "x clip(x / 6 + 1/2, 0, 1) (Howard et al. 2019).",
        onnx="HardSwish",
        work=5,
        wide=True,
        low=-5.0,
        high=5.0,
        gradient=_hard_swish_gradient,
    ),
    unary("floor", np.floor, "The next integer below.", onnx="Floor", special=True, gradient=lambda c: None),
    unary("ceil", np.ceil, "The next integer above.", onnx="Ceil", special=True, gradient=lambda c: None),
    unary(
        "round",
        np.rint,
        "The nearest integer, halves to the even one.",
        onnx="Round",
        special=True,
        gradient=lambda c: None,
    ),
    unary("logical_not", np.logical_not, "Not x.", onnx="Not", accepts=BOOLS),
    unary("bitwise_not", np.invert, "Every bit turned over.", onnx="BitwiseNot", accepts=INTEGERS),
    unary("isnan", np.isnan, "Whether x is NaN.", onnx="IsNaN", predicate=True, special=True),
    unary(
        "isinf",
        _isinf,
        "Whether x is one of the chosen infinities.",
        attrs={"positive": True, "negative": True},
        variants=[{"positive": False}, {"negative": False}],
        predicate=True,
        special=True,
    ),
    unary(
        "clip",
        _clip,
        "x bounded to [low, high]; a bound of None is no bound, NaN passes, low above high gives high.",
        accepts=NUMBERS,
        attrs={"low": None, "high": None},
        variants=[{"low": -1.0}, {"high": 1.5}, {"low": -0.5, "high": 0.5}, {"low": 1.0, "high": -1.0}],
        work=2,
        special=True,
        gradient=_clip_gradient,
    ),
    unary(
        "identity",
        lambda x: x,
        "x itself; passes remove it.",
        onnx="Identity",
        accepts=ANY,
        work=0,
        gradient=lambda c: c.g,
    ),
    unary(
        "stop_gradient",
        lambda x: x,
        "x itself, which no gradient goes back through; passes remove it.",
        accepts=ANY,
        work=0,
        gradient=lambda c: None,
    ),
)

# -- functions of two tensors ------------------------------------------------------------------------------------

_DIVIDENDS = np.array([7, -7, 7, -7, 6, -6, 0, 1], np.int32)
_DIVISORS = np.array([2, 2, -2, -2, 3, 3, 5, -9], np.int32)
_SIGNS = [Case((_DIVIDENDS.astype(d), _DIVISORS.astype(d)), note=f"signs {d}") for d in ("int32", "int64", "float32")]
_POWERS = (
    Case((f32(3, 4), np.array([2.0], np.float32)), note="square"),
    Case((np.array([-2, -1, 0, 1, 3, -1], np.int32), np.array([3, -3, 2, -1, -2, -4], np.int32)), note="signs"),
)

BINARY = (
    binary("add", np.add, "a + b.", onnx="Add", commutative=True, gradient=lambda c: [c.g, c.g]),
    binary("sub", np.subtract, "a - b.", onnx="Sub", gradient=lambda c: [c.g, -c.g]),
    binary("mul", np.multiply, "a b.", onnx="Mul", commutative=True, gradient=lambda c: [c.g * c.input(1), c.g * c.x]),
    binary(
        "div",
        divide,
        "a / b; of integers truncated toward 0.",
        onnx="Div",
        work=4,
        low=1.0,
        high=9.0,
        more=_SIGNS,
        gradient=lambda c: [c.g / c.input(1), -(c.g / c.input(1)) * c.y],
    ),
    binary("pow", power, "a to the power b.", work=20, low=0.0, more=_POWERS, gradient=_pow_gradient),
    binary("minimum", np.minimum, "The smaller; NaN wins.", commutative=True, gradient=_extremum_gradient),
    binary("maximum", np.maximum, "The larger; NaN wins.", commutative=True, gradient=_extremum_gradient),
    binary(
        "mod",
        np.mod,
        "The remainder with the sign of b.",
        work=6,
        low=1.0,
        high=9.0,
        more=_SIGNS,
        gradient=_mod_gradient,
    ),
    binary(
        "fmod",
        np.fmod,
        "The remainder with the sign of a, as in C.",
        work=6,
        low=1.0,
        high=9.0,
        more=_SIGNS,
        gradient=_mod_gradient,
    ),
    binary(
        "straight_through",
        lambda a, b: np.broadcast_to(a, np.broadcast_shapes(a.shape, b.shape)),
        "a, whose gradient is that of b (a straight-through estimator: Bengio et al. 2013); passes remove it.",
        accepts=ANY,
        work=0,
        gradient=lambda c: [None, c.g],
    ),
    binary("logical_and", np.logical_and, "a and b.", onnx="And", accepts=BOOLS, commutative=True),
    binary("logical_or", np.logical_or, "a or b.", onnx="Or", accepts=BOOLS, commutative=True),
    binary("logical_xor", np.logical_xor, "Either a or b.", onnx="Xor", accepts=BOOLS, commutative=True),
    binary("bitwise_and", np.bitwise_and, "a & b.", onnx="BitwiseAnd", accepts=INTEGERS, commutative=True),
    binary("bitwise_or", np.bitwise_or, "a | b.", onnx="BitwiseOr", accepts=INTEGERS, commutative=True),
    binary("bitwise_xor", np.bitwise_xor, "a ^ b.", onnx="BitwiseXor", accepts=INTEGERS, commutative=True),
    binary("left_shift", np.left_shift, "a << b; 0 from the type's width on.", accepts=INTEGERS, low=0.0, high=6.0),
    binary("right_shift", np.right_shift, "a >> b, with the sign.", accepts=INTEGERS, low=0.0, high=6.0),
    binary("equal", np.equal, "a == b.", onnx="Equal", accepts=ANY, predicate=True, commutative=True),
    binary("less", np.less, "a < b.", onnx="Less", predicate=True),
    binary("less_equal", np.less_equal, "a <= b.", onnx="LessOrEqual", predicate=True),
    binary("greater", np.greater, "a > b.", onnx="Greater", predicate=True),
    binary("greater_equal", np.greater_equal, "a >= b.", onnx="GreaterOrEqual", predicate=True),
)

OPS = (*UNARY, *BINARY)
