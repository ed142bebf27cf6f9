"""Arithmetic, comparison, logic, activations, casts: one-to-one operators as rows, the rest composed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...compiler.ir import Value
from ...compiler.ops import OPS, REQUIRED
from .context import Context, OnnxNode, Unsupported
from .registry import RULES, Lowered, lowers
from .tensors import DTYPES, WIDENED, type_name

# -- one-to-one: the rows stand in the op table (``Op.onnx``), attributes have the same or the renamed names ---------


def _row(op: str, renames: Mapping[str, str]) -> Any:
    def rule(c: Context, n: OnnxNode) -> Lowered:
        attrs = {}
        for ours, default in OPS[op].attrs.items():
            given = n.attr(next((theirs for theirs, name in renames.items() if name == ours), ours))
            if given is not None or default is REQUIRED:
                attrs[ours] = given
        return c.op(op, *n.inputs, **attrs)

    return rule


BINARY = ("Add", "Sub", "Mul", "Div")
OWN_RULES = {"Identity", "Equal", "Gelu", "GatherND", "ScatterND", "ScatterElements", "Transpose", "Concat", "Gather"}
for _record in OPS.values():
    for _name, _renames in _record.onnx.items():
        if _name not in OWN_RULES and ("", _name) not in RULES:
            lowers(_name)(_row(_record.name, _renames))


@lowers("Identity")
def identity(c: Context, n: OnnxNode) -> Lowered:
    return n.input(0)


@lowers("Equal")
def equal(c: Context, n: OnnxNode) -> Lowered:
    return c.op("equal", n.input(0), n.input(1))


# -- variadic ----------------------------------------------------------------------------------------------------------


def _variadic(op: str) -> Any:
    def rule(c: Context, n: OnnxNode) -> Lowered:
        result = n.input(0)
        for i in range(1, len(n.inputs)):
            result = c.op(op, result, n.input(i))
        return result

    return rule


lowers("Sum")(_variadic("add"))
lowers("Max")(_variadic("maximum"))
lowers("Min")(_variadic("minimum"))


@lowers("Mean")
def mean(c: Context, n: OnnxNode) -> Lowered:
    total: Value = _variadic("add")(c, n)
    return c.op("div", total, c.like(len(n.inputs), total)) if len(n.inputs) > 1 else total


# -- arithmetic --------------------------------------------------------------------------------------------------------


@lowers("Pow")
def power(c: Context, n: OnnxNode) -> Lowered:
    base, exponent = n.input(0), n.input(1)
    to = c.dtype(base)
    if c.dtype(exponent) == to:
        return c.op("pow", base, exponent)
    if c.is_float(base) or not c.is_float(exponent):
        return c.op("pow", base, c.cast(exponent, to))
    wide = c.dtype(exponent)
    return c.cast(c.op("pow", c.cast(base, wide), exponent), to)


@lowers("Mod")
def mod(c: Context, n: OnnxNode) -> Lowered:
    return c.op("fmod" if n.attr("fmod", 0) else "mod", n.input(0), n.input(1))


@lowers("BitShift")
def bit_shift(c: Context, n: OnnxNode) -> Lowered:
    direction = n.attr("direction", "LEFT").lower()
    return c.op(f"{direction}_shift", n.input(0), n.input(1))


@lowers("IsInf")
def is_inf(c: Context, n: OnnxNode) -> Lowered:
    return c.op(
        "isinf", n.input(0), positive=bool(n.attr("detect_positive", 1)), negative=bool(n.attr("detect_negative", 1))
    )


@lowers("Clip")
def clip(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    if n.version < 11:
        return c.op("clip", x, low=_bound(n.attr("min")), high=_bound(n.attr("max")))
    low, high = n.optional(1), n.optional(2)
    fixed = [c.array(v) for v in (low, high)]
    if all(v is None or a is not None for v, a in zip((low, high), fixed, strict=True)):
        bounds = [None if a is None else a.reshape(-1)[0].item() for a in fixed]
        if not any(isinstance(b, float) and math.isnan(b) for b in bounds):
            return c.op("clip", x, low=bounds[0], high=bounds[1])
    if low is not None:
        x = c.op("maximum", x, c.reshape(low, ()))
    return x if high is None else c.op("minimum", x, c.reshape(high, ()))


def _bound(number: float | None) -> float | None:
    """Opset 6 writes "no bound" as the largest float."""
    return None if number is None or abs(number) >= float(np.finfo(np.float32).max) else number


# -- casts -------------------------------------------------------------------------------------------------------------


def element_type(code: int, what: str = "Cast") -> str:
    """Our name of an ONNX element type, ``Unsupported`` for text and narrow types."""
    if code not in DTYPES:
        raise Unsupported(
            f"{what} to {type_name(code)}", "float16, bfloat16, float32, float64, bool or 8 to 64 bit integers"
        )
    return DTYPES[code]


@lowers("Cast")
def cast(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    code = int(n.attr("to", 1))
    if c.stored_as.get(x) == type_name(code):
        return x
    return c.cast(x, element_type(code))


@lowers("CastLike")
def cast_like(c: Context, n: OnnxNode) -> Lowered:
    like = n.input(1)
    if c.stored_as.get(like) in WIDENED:
        raise Unsupported(f"CastLike to {c.stored_as[like]}")
    return c.cast(n.input(0), c.dtype(like))


# -- activations -------------------------------------------------------------------------------------------------------


@lowers("Gelu")
def gelu(c: Context, n: OnnxNode) -> Lowered:
    return c.op("gelu", n.input(0), approximate=n.attr("approximate", "none"))


@lowers("PRelu")
def prelu(c: Context, n: OnnxNode) -> Lowered:
    x, slope = n.input(0), n.input(1)
    if c.rank(slope) == 1 and c.rank(x) > 1 and c.shape(slope)[0] == c.shape(x)[1] and n.version < 7:
        slope = c.per_axis(slope, c.rank(x), 1)
    return c.op("where", c.op("less", x, c.like(0, x)), c.op("mul", x, slope), x)


@lowers("Selu")
def selu(c: Context, n: OnnxNode) -> Lowered:
    alpha, gamma = n.attr("alpha", 1.67326319217681884765625), n.attr("gamma", 1.05070102214813232421875)
    y = c.op("elu", n.input(0), alpha=float(alpha))
    return c.op("mul", y, c.like(gamma, y))


@lowers("Celu")
def celu(c: Context, n: OnnxNode) -> Lowered:
    x, alpha = n.input(0), float(n.attr("alpha", 1.0))
    if alpha == 1.0:
        return c.op("elu", x, alpha=1.0)
    low = c.op("minimum", c.like(0, x), c.op("mul", c.like(alpha, x), c.op("expm1", c.op("div", x, c.like(alpha, x)))))
    return c.op("add", c.op("maximum", x, c.like(0, x)), low)


@lowers("Mish")
def mish(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    return c.op("mul", x, c.op("tanh", c.op("softplus", x)))


def swish(c: Context, x: Value, alpha: float) -> Value:
    """x sigmoid(alpha x)."""
    return c.op("silu", x) if alpha == 1.0 else c.op("mul", x, c.op("sigmoid", c.op("mul", x, c.like(alpha, x))))


@lowers("Swish")
def swish_rule(c: Context, n: OnnxNode) -> Lowered:
    return swish(c, n.input(0), float(n.attr("alpha", 1.0)))


@lowers("SwiGLU")
def swiglu(c: Context, n: OnnxNode) -> Lowered:
    return c.op("mul", swish(c, n.input(0), float(n.attr("alpha", 1.0))), n.input(1))


@lowers("Softsign")
def softsign(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    return c.op("div", x, c.op("add", c.op("abs", x), c.like(1, x)))


@lowers("ThresholdedRelu")
def thresholded_relu(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    return c.op("where", c.op("greater", x, c.like(n.attr("alpha", 1.0), x)), x, c.like(0, x))


@lowers("Shrink")
def shrink(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    bias, lambd = n.attr("bias", 0.0), n.attr("lambd", 0.5)
    wide = x if c.is_float(x) else c.cast(x, "float32")
    high = c.op(
        "where", c.op("greater", wide, c.like(lambd, wide)), c.op("sub", wide, c.like(bias, wide)), c.like(0, wide)
    )
    y = c.op("where", c.op("less", wide, c.like(-lambd, wide)), c.op("add", wide, c.like(bias, wide)), high)
    return c.cast(y, c.dtype(x))
