"""Quantized operators of ONNX: ``quantize`` and ``dequantize`` around what is computed, integer products as they are.

The pass ``integers`` makes integer arithmetic of what lies between a ``dequantize`` and a ``quantize``; the operators
that ONNX Runtime's quantizer writes in one piece (``lower_qlinear``) come apart into the same forms.
"""

from __future__ import annotations

import math

import numpy as np

from ...compiler.ir import Value
from ...errors import NervureError
from .context import Context, OnnxNode, Unsupported
from .lower_math import element_type
from .lower_nn import convolve
from .registry import Lowered, lowers
from .tensors import WIDENED, type_name

NARROW = {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}
MICROSOFT = "com.microsoft"


def checked_scale(c: Context, n: OnnxNode, scale: Value) -> Value:
    """``scale``; ``NervureError`` where it is known and not a positive number."""
    array = c.array(scale)
    if array is None or not c.is_float(scale):
        return scale
    numbers = array.astype(np.float64).reshape(-1)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if wrong.size:
        place = f"element {wrong[0]} is {numbers[wrong[0]]}" if numbers.size > 1 else f"it is {numbers[0]}"
        raise NervureError(
            "a scale of a quantized tensor must be positive and finite",
            where=n.path,
            why=place,
            hint="a tensor or channel of zeros can have any positive scale, such as 1",
        )
    return scale


def _spread(c: Context, n: OnnxNode, x: Value, v: Value, what: str) -> Value:
    """A scale or zero point shaped to broadcast over ``x``: one, one along an axis, or one a block."""
    if math.prod(c.shape(v)) == 1 and c.rank(v) <= 1:
        return c.reshape(v, ())
    axis = c.axis(n.attr("axis", 1), c.rank(x))
    block = n.attr("block_size", 0)
    if c.rank(v) == 1 and not block:
        _one_each(n, what, c.shape(v)[0], c.shape(x)[axis], axis)
        return c.per_axis(v, c.rank(x), axis)
    size, blocks = c.shape(x)[axis], c.shape(v)[axis]
    block = block or -(-size // blocks)
    if size == blocks:
        return v
    lead, tail = c.shape(v)[:axis], c.shape(v)[axis + 1 :]
    wide = c.expand(c.reshape(v, (*lead, blocks, 1, *tail)), (*lead, blocks, block, *tail))
    return c.slice(c.reshape(wide, (*lead, blocks * block, *tail)), axis, 0, size)


def _one_each(n: OnnxNode, what: str, found: int, size: int, axis: int) -> None:
    if found != size:
        raise NervureError(
            f"the {what} has {found} elements for {size} channels",
            where=n.path,
            why=f"along axis {axis}, each index has its own",
            hint="give one for the whole tensor, or check the node's axis",
        )


def _zero(c: Context, n: OnnxNode, x: Value, zero: Value | None, dtype: str | None = None) -> Value | None:
    """The zero point, shaped; ``NervureError`` where its type is not that of the quantized tensor."""
    if zero is None:
        return None
    if dtype is not None and c.dtype(zero) != dtype:
        raise NervureError(
            f"the zero point is {c.dtype(zero)} and the quantized tensor {dtype}",
            where=n.path,
            hint="both must have one type",
        )
    return _spread(c, n, x, zero, "zero point")


def _quantize_linear(c: Context, n: OnnxNode) -> Lowered:
    x, scale, zero = n.input(0), checked_scale(c, n, n.input(1)), n.optional(2)
    code = n.attr("output_dtype", 0)
    narrow = type_name(code) if code else c.stored_as.get(zero, "") if zero is not None else ""
    if narrow in WIDENED and narrow not in NARROW:
        raise Unsupported(f"quantization to {narrow}", "quantization to integers of 8 or 16 bits")
    if narrow in NARROW:
        to = WIDENED[narrow]
    elif zero is not None:
        to = c.dtype(zero)
    else:
        to = element_type(code, "quantization") if code else "uint8"
    scale, zero = _spread(c, n, x, scale, "scale"), _zero(c, n, x, zero, to)
    if not (c.is_float(x) or c.dtype(x) == "int32"):
        raise Unsupported(f"quantization of {c.dtype(x)}")
    low, high = NARROW.get(narrow, (None, None))
    y = c.op("quantize", x, scale, zero, to=to, low=low, high=high)
    if narrow in NARROW:
        c.stored_as[y] = narrow
    return y


def _dequantize_linear(c: Context, n: OnnxNode) -> Lowered:
    x, scale, zero = n.input(0), checked_scale(c, n, n.input(1)), n.optional(2)
    code = n.attr("output_dtype", 0)
    to = element_type(code, "dequantization") if code else c.dtype(scale)
    size = n.attr("block_size", 0)
    if size and not c.is_float(x) and c.rank(scale) == c.rank(x):
        axis = c.axis(n.attr("axis", 1), c.rank(x))
        return c.op("dequantize", x, scale, zero, to=to, block=(axis, size) if c.shape(scale)[axis] > 1 else None)
    scale = _spread(c, n, x, scale, "scale")
    if c.is_float(x):  # float8 that was widened; its zero point is 0
        return c.cast(c.op("mul", c.cast(x, "float32"), c.cast(scale, "float32")), to)
    return c.op("dequantize", x, scale, _zero(c, n, x, zero, c.dtype(x)), to=to)


for _domain in ("", MICROSOFT):
    lowers("QuantizeLinear", domain=_domain)(_quantize_linear)
    lowers("DequantizeLinear", domain=_domain)(_dequantize_linear)


@lowers("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Context, n: OnnxNode) -> Lowered:
    return dynamic_steps(c, n.input(0))


def dynamic_steps(c: Context, x: Value) -> tuple[Value, Value, Value]:
    """uint8 with the scale and zero point that the tensor's own range (with 0 in it) asks for."""
    zero = c.like(0, x)
    axes = range(c.rank(x))
    low = c.op("minimum", c.reduce("min", x, axes, keepdims=False), zero)
    high = c.op("maximum", c.reduce("max", x, axes, keepdims=False), zero)
    span = c.op("sub", high, low)
    scale = c.op("where", c.op("equal", span, zero), c.like(1, x), c.op("div", span, c.like(np.float32(255), x)))
    point = c.op("clip", c.op("round", c.op("div", c.op("neg", low), scale)), low=0.0, high=255.0)
    point = c.cast(point, "uint8")
    return c.op("quantize", x, scale, point, to="uint8"), scale, point


# -- integer products --------------------------------------------------------------------------------------------------


@lowers("MatMulInteger")
def matmul_integer(c: Context, n: OnnxNode) -> Lowered:
    return integer_product(c, n.input(0), n.input(1), n.optional(2), n.optional(3))


def integer_product(c: Context, a: Value, b: Value, a_zero: Value | None, b_zero: Value | None) -> Value:
    """int32 sums of (a - a_zero) (b - b_zero). What is not known of a zero point, or differs from row to row or from
    column to column, is subtracted behind the product: a_zero times the sums of b's columns."""
    known_a, known_b = _number(c, a_zero), _number(c, b_zero)
    if known_b is None:
        assert b_zero is not None
        b, b_zero, known_b = _less(c, b, b_zero, () if c.type(b_zero).size == 1 else c.shape(b_zero)), None, 0
    if c.rank(a) < 2 or c.rank(b) < 2:
        left = _wide(c, a, a_zero, _rows(c, a, a_zero))
        return c.op("matmul", left, _wide(c, b, b_zero))
    sums = c.op("matmul_integer", a, b, zero_point=known_a or 0, b_zero_point=known_b)
    if known_a is None:
        assert a_zero is not None
        columns = c.reduce("sum", c.op("sub", c.cast(b, "int32"), c.scalar(known_b, "int32")), (c.rank(b) - 2,))
        point = (
            c.reshape(a_zero, _rows(c, a, a_zero) or ()) if math.prod(c.shape(a_zero)) > 1 else c.reshape(a_zero, ())
        )
        sums = c.op("sub", sums, c.op("mul", c.cast(point, "int32"), columns))
    return sums


def _number(c: Context, zero: Value | None) -> int | None:
    """A zero point that is known now and one number; 0 where there is none."""
    if zero is None:
        return 0
    array = c.array(zero)
    if array is None or array.size == 0 or (array != array.reshape(-1)[0]).any():
        return None
    return int(array.reshape(-1)[0])


def _less(c: Context, x: Value, zero: Value, shape: tuple[int, ...]) -> Value:
    """8-bit integers less their zero points: int16, or int8 where they are known and that holds them."""
    array, points = c.array(x), c.array(zero)
    if array is None or points is None:
        return c.op("sub", c.cast(x, "int16"), c.cast(c.reshape(zero, shape), "int16"))
    exact = array.astype(np.int32) - points.astype(np.int32).reshape(shape)
    narrow = exact.size == 0 or (exact.min() >= -128 and exact.max() <= 127)
    return c.const(exact, "int8" if narrow else "int16")


def _wide(c: Context, x: Value, zero: Value | None, shape: tuple[int, ...] | None = None) -> Value:
    """x - zero_point in int32. ``shape`` is for a zero point that is a vector."""
    wide = c.cast(x, "int32")
    if zero is None:
        return wide
    one = math.prod(c.shape(zero)) == 1 and c.rank(zero) <= 1
    return c.op("sub", wide, c.cast(c.reshape(zero, () if one else shape or c.shape(zero)), "int32"))


def _rows(c: Context, a: Value, v: Value | None) -> tuple[int, ...] | None:
    """A vector with one entry for each row of ``a`` stands as a column."""
    return (*c.shape(v), 1) if v is not None and c.rank(v) == 1 and c.rank(a) > 1 else None


@lowers("ConvInteger")
def conv_integer(c: Context, n: OnnxNode) -> Lowered:
    """As the product: with a zero point that is not known, the borders, which count as 0, are those of a picture of
    ones."""
    x, w, x_zero, w_zero = n.input(0), n.input(1), n.optional(2), n.optional(3)
    lead = (c.shape(w)[0], *[1] * (c.rank(w) - 1))
    if _number(c, w_zero) != 0 or c.dtype(w) != "int8":
        w_zero = c.scalar(0, c.dtype(w)) if w_zero is None else w_zero
        w = _less(c, w, w_zero, () if c.type(w_zero).size == 1 else lead)
    point = _number(c, x_zero)
    sums = convolve(c, n, x, w, None, op="conv_integer", zero_point=point or 0)
    if point is None:
        assert x_zero is not None
        ones = c.const(np.ones((1, *c.shape(x)[1:]), np.int8))
        reach = convolve(c, n, ones, w, None, op="conv_integer", zero_point=0)
        sums = c.op("sub", sums, c.op("mul", c.cast(c.reshape(x_zero, ()), "int32"), reach))
    return sums
