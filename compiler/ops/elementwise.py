"""Elementwise operators: one output element from the same (broadcast) element of each input.

Element types are never promoted: operands have one type, and a frontend writes the casts. Integers wrap.
Transcendental references are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .numeric import divide, erf, normal_cdf, power, quiet, sigmoid, widen
from .record import Call, Case, Cost, Kind, Op
from .sampling import f32, t
from .shapes import (
    ANY,
    BOOLS,
    FLOATS,
    INTEGERS,
    NUMBERS,
    broadcast_shapes,
    count,
    require_dtype,
    require_same_dtype,
)

TRANSCENDENTAL = 10.0  # a polynomial approximation's operations, about


def _cost(work: float) -> Callable[[Call], Cost]:
    def cost(call: Call) -> Cost:
        return Cost(work * count(broadcast_shapes(*(i.shape for i in call.types if i is not None))))

    return cost


def _cases(accepts: frozenset[str], arity: int, low: float, high: float) -> Iterable[Case]:
    """The cases of an operator without attributes: plain, scalar, wide types, and every way to broadcast."""
    main = "float32" if "float32" in accepts else "int32" if "int32" in accepts else "bool"
    shapes: list[tuple[tuple[int, ...], ...]] = [((2, 3, 5),) * arity, ((),) * arity, ((67,),) * arity]
    if arity == 2:
        shapes += [((2, 3, 4), (4,)), ((2, 1, 4), (3, 1)), ((), (3, 2)), ((1, 3, 1, 5), (2, 1, 4, 1)), ((0, 3), (1, 3))]
    for shape in shapes:
        yield Case(tuple(t(main, *s) for s in shape), low=low, high=high)
    for dtype in ("float64", "float16", "int32", "int64", "int8", "uint8", "bool"):
        if dtype in accepts and dtype != main:
            yield Case((t(dtype, 4, 9),) * arity, low=low, high=high, note=dtype)


def _unary(
    name: str,
    function: Callable[..., Any],
    doc: str,
    *,
    onnx: str = "",
    accepts: frozenset[str] = FLOATS,
    attrs: Mapping[str, Any] | None = None,
    variants: Sequence[Mapping[str, Any]] = (),
    predicate: bool = False,
    work: float = 1.0,
    wide: bool = False,
    special: bool = False,
    low: float = -3.0,
    high: float = 3.0,
) -> Op:
    """A row of the unary table. ``wide`` computes in float64, ``predicate`` gives bool, ``variants`` are attribute
    settings of further cases, ``special`` adds cases with infinities, NaN and halves."""

    def infer(call: Call) -> Sequence[TensorType]:
        x = call.type(0)
        require_dtype(x, accepts, "x")
        return (x.with_dtype("bool") if predicate else x,)

    def reference(x: np.ndarray, **given: Any) -> np.ndarray:
        result = function(widen(x) if wide else x, **given)
        return np.asarray(result).astype(bool if predicate else x.dtype, copy=False)

    def cases() -> Iterable[Case]:
        yield from _cases(accepts, 1, low, high)
        for variant in variants:
            yield Case((f32(3, 40),), variant, low=low, high=high)
        for variant in ({}, *variants) if special else ():
            yield Case((_SPECIAL,), variant, note="special")

    return Op(
        name,
        Kind.ELEMENTWISE,
        infer,
        quiet(reference),
        doc,
        attrs=dict(attrs or {}),
        cost=_cost(work),
        cases=cases,
        onnx={onnx: {}} if onnx else {},
        inplace=() if predicate else (0,),
    )


def _binary(
    name: str,
    function: Callable[..., Any],
    doc: str,
    *,
    onnx: str = "",
    accepts: frozenset[str] = NUMBERS,
    predicate: bool = False,
    commutative: bool = False,
    work: float = 1.0,
    low: float = -3.0,
    high: float = 3.0,
    more: Sequence[Case] = (),
) -> Op:
    """A row of the binary table: numpy broadcasting, equal element types."""

    def infer(call: Call) -> Sequence[TensorType]:
        a, b = call.type(0), call.type(1)
        require_dtype(a, accepts, "a")
        require_same_dtype(a, b, ("a", "b"))
        return (TensorType("bool" if predicate else a.dtype, broadcast_shapes(a.shape, b.shape)),)

    def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(function(a, b)).astype(bool if predicate else a.dtype, copy=False)

    return Op(
        name,
        Kind.ELEMENTWISE,
        infer,
        quiet(reference),
        doc,
        inputs=("a", "b"),
        cost=_cost(work),
        cases=lambda: [*_cases(accepts, 2, low, high), *more],
        onnx={onnx: {}} if onnx else {},
        inplace=() if predicate else (0, 1),
        commutative=commutative,
    )


def _transcendental(name: str, function: Callable[..., Any], doc: str, onnx: str = "", **rest: Any) -> Op:
    return _unary(name, function, doc, onnx=onnx, work=TRANSCENDENTAL, wide=True, **rest)


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


_SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, -1.5, 2.5], np.float32)

UNARY = (
    _unary("neg", np.negative, "-x.", onnx="Neg", accepts=NUMBERS),
    _unary("abs", np.abs, "|x|.", onnx="Abs", accepts=NUMBERS),
    _unary("sign", np.sign, "-1, 0 or 1; NaN stays.", onnx="Sign", accepts=NUMBERS),
    _unary("sqrt", np.sqrt, "The square root; NaN below 0.", onnx="Sqrt", work=4, low=0.0),
    _unary("rsqrt", lambda x: 1.0 / np.sqrt(x), "1 / sqrt(x).", work=8, wide=True, low=0.1),
    _unary("reciprocal", lambda x: 1.0 / x, "1 / x.", onnx="Reciprocal", work=4, wide=True, low=0.2),
    _transcendental("exp", np.exp, "e to the power x.", "Exp"),
    _transcendental("log", np.log, "The natural logarithm.", "Log", low=0.05),
    _transcendental("log1p", np.log1p, "log(1 + x), exact near 0.", low=-0.9),
    _transcendental("expm1", np.expm1, "exp(x) - 1, exact near 0."),
    _transcendental("sin", np.sin, "Sine; radians.", "Sin"),
    _transcendental("cos", np.cos, "Cosine; radians.", "Cos"),
    _transcendental("tan", np.tan, "Tangent; radians.", "Tan", low=-1.4, high=1.4),
    _transcendental("asin", np.arcsin, "Inverse sine.", "Asin", low=-1.0, high=1.0),
    _transcendental("acos", np.arccos, "Inverse cosine.", "Acos", low=-1.0, high=1.0),
    _transcendental("atan", np.arctan, "Inverse tangent.", "Atan"),
    _transcendental("sinh", np.sinh, "Hyperbolic sine.", "Sinh"),
    _transcendental("cosh", np.cosh, "Hyperbolic cosine.", "Cosh"),
    _transcendental("tanh", np.tanh, "Hyperbolic tangent.", "Tanh"),
    _transcendental("asinh", np.arcsinh, "Inverse hyperbolic sine.", "Asinh"),
    _transcendental("acosh", np.arccosh, "Inverse hyperbolic cosine.", "Acosh", low=1.0),
    _transcendental("atanh", np.arctanh, "Inverse hyperbolic tangent.", "Atanh", low=-0.95, high=0.95),
    _transcendental("erf", erf, "The error function.", "Erf"),
    _transcendental("sigmoid", sigmoid, "1 / (1 + exp(-x)).", "Sigmoid", low=-20.0, high=20.0),
    _transcendental("silu", lambda x: x * sigmoid(x), "x sigmoid(x).", low=-20.0, high=20.0),
    _transcendental("softplus", lambda x: np.logaddexp(0.0, x), "log(1 + exp(x)).", "Softplus", low=-20.0, high=20.0),
    _transcendental(
        "gelu",
        _gelu,
        "x times the normal distribution function of x, exact or by tanh (Hendrycks and Gimpel 2016).",
        "Gelu",
        attrs={"approximate": "none"},
        variants=[{"approximate": "tanh"}],
    ),
    _transcendental(
        "elu",
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        "x above 0, alpha (exp(x) - 1) below.",
        "Elu",
        attrs={"alpha": 1.0},
        variants=[{"alpha": 0.3}],
    ),
    _unary("relu", lambda x: np.maximum(x, x.dtype.type(0)), "max(x, 0).", onnx="Relu", accepts=NUMBERS),
    _unary(
        "leaky_relu",
        lambda x, alpha: np.where(x < 0, alpha * x, x),
        "x above 0, alpha x below.",
        onnx="LeakyRelu",
        attrs={"alpha": 0.01},
        variants=[{"alpha": 0.25}],
        work=2,
        wide=True,
    ),
    _unary(
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
    ),
    _unary(
        "hard_swish",
        lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
        "x clip(x / 6 + 1/2, 0, 1) (Howard et al. 2019).",
        onnx="HardSwish",
        work=5,
        wide=True,
        low=-5.0,
        high=5.0,
    ),
    _unary("floor", np.floor, "The next integer below.", onnx="Floor", special=True),
    _unary("ceil", np.ceil, "The next integer above.", onnx="Ceil", special=True),
    _unary("round", np.rint, "The nearest integer, halves to the even one.", onnx="Round", special=True),
    _unary("logical_not", np.logical_not, "Not x.", onnx="Not", accepts=BOOLS),
    _unary("bitwise_not", np.invert, "Every bit turned over.", onnx="BitwiseNot", accepts=INTEGERS),
    _unary("isnan", np.isnan, "Whether x is NaN.", onnx="IsNaN", predicate=True, special=True),
    _unary(
        "isinf",
        _isinf,
        "Whether x is one of the chosen infinities.",
        attrs={"positive": True, "negative": True},
        variants=[{"positive": False}, {"negative": False}],
        predicate=True,
        special=True,
    ),
    _unary(
        "clip",
        _clip,
        "x bounded to [low, high]; a bound of None is no bound, NaN passes, low above high gives high.",
        accepts=NUMBERS,
        attrs={"low": None, "high": None},
        variants=[{"low": -1.0}, {"high": 1.5}, {"low": -0.5, "high": 0.5}, {"low": 1.0, "high": -1.0}],
        work=2,
        special=True,
    ),
    _unary("identity", lambda x: x, "x itself; passes remove it.", onnx="Identity", accepts=ANY, work=0),
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
    _binary("add", np.add, "a + b.", onnx="Add", commutative=True),
    _binary("sub", np.subtract, "a - b.", onnx="Sub"),
    _binary("mul", np.multiply, "a b.", onnx="Mul", commutative=True),
    _binary(
        "div", divide, "a / b; of integers truncated toward 0.", onnx="Div", work=4, low=1.0, high=9.0, more=_SIGNS
    ),
    _binary("pow", power, "a to the power b.", work=20, low=0.0, more=_POWERS),
    _binary("minimum", np.minimum, "The smaller; NaN wins.", commutative=True),
    _binary("maximum", np.maximum, "The larger; NaN wins.", commutative=True),
    _binary("mod", np.mod, "The remainder with the sign of b.", work=6, low=1.0, high=9.0, more=_SIGNS),
    _binary("fmod", np.fmod, "The remainder with the sign of a, as in C.", work=6, low=1.0, high=9.0, more=_SIGNS),
    _binary("logical_and", np.logical_and, "a and b.", onnx="And", accepts=BOOLS, commutative=True),
    _binary("logical_or", np.logical_or, "a or b.", onnx="Or", accepts=BOOLS, commutative=True),
    _binary("logical_xor", np.logical_xor, "Either a or b.", onnx="Xor", accepts=BOOLS, commutative=True),
    _binary("bitwise_and", np.bitwise_and, "a & b.", onnx="BitwiseAnd", accepts=INTEGERS, commutative=True),
    _binary("bitwise_or", np.bitwise_or, "a | b.", onnx="BitwiseOr", accepts=INTEGERS, commutative=True),
    _binary("bitwise_xor", np.bitwise_xor, "a ^ b.", onnx="BitwiseXor", accepts=INTEGERS, commutative=True),
    _binary("left_shift", np.left_shift, "a << b; 0 from the type's width on.", accepts=INTEGERS, low=0.0, high=6.0),
    _binary("right_shift", np.right_shift, "a >> b, with the sign.", accepts=INTEGERS, low=0.0, high=6.0),
    _binary("equal", np.equal, "a == b.", onnx="Equal", accepts=ANY, predicate=True, commutative=True),
    _binary("less", np.less, "a < b.", onnx="Less", predicate=True),
    _binary("less_equal", np.less_equal, "a <= b.", onnx="LessOrEqual", predicate=True),
    _binary("greater", np.greater, "a > b.", onnx="Greater", predicate=True),
    _binary("greater_equal", np.greater_equal, "a >= b.", onnx="GreaterOrEqual", predicate=True),
)

OPS = (*UNARY, *BINARY)
