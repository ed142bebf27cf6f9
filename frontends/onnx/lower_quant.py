"""Quantized operators, in float: integers as exact float values, scaled and rounded where ONNX says so."""

from __future__ import annotations

import math

import numpy as np

from ...compiler.ir import Value
from ...compiler.types import is_integer
from .context import Context, OnnxNode, Unsupported
from .lower_math import element_type
from .lower_nn import convolve
from .registry import Lowered, lowers
from .tensors import WIDENED, type_name

EXACT = 1 << 24  # integers up to here are float32 values
NARROW = {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}


def _spread(c: Context, n: OnnxNode, x: Value, v: Value) -> Value:
    """A scale or zero point shaped to broadcast over ``x``: one, one along an axis, or one a block."""
    if math.prod(c.shape(v)) == 1 and c.rank(v) <= 1:
        return c.reshape(v, ())
    axis = c.axis(n.attr("axis", 1), c.rank(x))
    if c.rank(v) == 1 and not n.attr("block_size", 0):
        return c.per_axis(v, c.rank(x), axis)
    size, blocks = c.shape(x)[axis], c.shape(v)[axis]
    block = n.attr("block_size", 0) or -(-size // blocks)
    if size == blocks:
        return v
    lead, tail = c.shape(v)[:axis], c.shape(v)[axis + 1 :]
    wide = c.expand(c.reshape(v, (*lead, blocks, 1, *tail)), (*lead, blocks, block, *tail))
    return c.slice(c.reshape(wide, (*lead, blocks * block, *tail)), axis, 0, size)


@lowers("QuantizeLinear")
def quantize_linear(c: Context, n: OnnxNode) -> Lowered:
    x, scale, zero = n.input(0), n.input(1), n.optional(2)
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
    scale, zero = _spread(c, n, x, scale), None if zero is None else _spread(c, n, x, zero)
    if not (c.is_float(x) or c.dtype(x) == "int32"):
        raise Unsupported(f"quantization of {c.dtype(x)}")
    y = c.op("quantize", x, scale, zero, to=to)
    if narrow in NARROW:
        low, high = NARROW[narrow]
        y = c.op("clip", y, low=low, high=high)
        c.stored_as[y] = narrow
    return y


@lowers("DequantizeLinear")
def dequantize_linear(c: Context, n: OnnxNode) -> Lowered:
    x, scale, zero = n.input(0), n.input(1), n.optional(2)
    code = n.attr("output_dtype", 0)
    to = element_type(code, "dequantization") if code else c.dtype(scale)
    scale, zero = _spread(c, n, x, scale), None if zero is None else _spread(c, n, x, zero)
    if c.is_float(x):  # float8 that was widened; its zero point is 0
        return c.cast(c.op("mul", c.cast(x, "float32"), c.cast(scale, "float32")), to)
    return c.op("dequantize", x, scale, zero, to=to)


# -- integer products --------------------------------------------------------------------------------------------------


def _shifted(c: Context, x: Value, zero: Value | None, to: str, lead: tuple[int, ...] | None = None) -> Value:
    """x - zero_point as exact values of type ``to``. ``lead`` shapes a zero point that is a vector."""
    wide = c.cast(x, to)
    if zero is None:
        return wide
    array = c.array(zero)
    if array is not None and not array.any():
        return wide
    shape = () if math.prod(c.shape(zero)) == 1 and c.rank(zero) <= 1 else lead or c.shape(zero)
    return c.op("sub", wide, c.cast(c.reshape(zero, shape), to))


def _working_type(c: Context, depth: int, *given: Value) -> str:
    """float32 where every sum of ``depth`` products of 8-bit differences is exact in it, else int32."""
    return "float32" if depth * 255 * 255 < EXACT and all(is_integer(c.dtype(v)) for v in given) else "int32"


@lowers("MatMulInteger")
def matmul_integer(c: Context, n: OnnxNode) -> Lowered:
    a, b = n.input(0), n.input(1)
    work = _working_type(c, c.shape(a)[-1], a, b)
    left = _shifted(c, a, n.optional(2), work, _rows(c, a, n.optional(2)))
    return c.cast(c.op("matmul", left, _shifted(c, b, n.optional(3), work)), "int32")


def _rows(c: Context, a: Value, v: Value | None) -> tuple[int, ...] | None:
    """A vector with one entry for each row of ``a`` stands as a column."""
    return (*c.shape(v), 1) if v is not None and c.rank(v) == 1 and c.rank(a) > 1 else None


@lowers("ConvInteger")
def conv_integer(c: Context, n: OnnxNode) -> Lowered:
    x, w = n.input(0), n.input(1)
    work = _working_type(c, math.prod(c.shape(w)[1:]), x, w)
    lead = (c.shape(w)[0], *[1] * (c.rank(w) - 1))
    y = convolve(c, n, _shifted(c, x, n.optional(2), work), _shifted(c, w, n.optional(3), work, lead), None)
    return c.cast(y, "int32")


@lowers("QLinearMatMul")
def qlinear_matmul(c: Context, n: OnnxNode) -> Lowered:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (n.input(i) for i in range(8))
    product = c.op(
        "matmul",
        _shifted(c, a, a_zero, "float32", _rows(c, a, a_zero)),
        _shifted(c, b, b_zero, "float32"),
    )
    a_scale = (
        c.reshape(a_scale, _rows(c, a, a_scale) or ()) if math.prod(c.shape(a_scale)) > 1 else c.reshape(a_scale, ())
    )
    b_scale = c.reshape(b_scale, ()) if math.prod(c.shape(b_scale)) == 1 else b_scale
    y = c.op("mul", product, c.op("mul", c.cast(a_scale, "float32"), c.cast(b_scale, "float32")))
    one = math.prod(c.shape(y_scale)) == 1
    lead = () if one else _rows(c, a, y_scale) or c.shape(y_scale)
    return c.op("quantize", y, c.cast(c.reshape(y_scale, lead), "float32"), c.reshape(y_zero, lead), to=c.dtype(y_zero))


@lowers("QLinearConv")
def qlinear_conv(c: Context, n: OnnxNode) -> Lowered:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (n.input(i) for i in range(8))
    lead = (c.shape(w)[0], *[1] * (c.rank(w) - 1))
    bias = n.optional(8)
    y = convolve(
        c,
        n,
        _shifted(c, x, x_zero, "float32"),
        _shifted(c, w, w_zero, "float32", lead),
        None if bias is None else c.cast(bias, "float32"),
    )
    many = math.prod(c.shape(w_scale)) > 1
    w_scale = c.per_axis(w_scale, c.rank(y), 1) if many else c.reshape(w_scale, ())
    y = c.op("mul", y, c.op("mul", c.reshape(x_scale, ()), w_scale))
    return c.op("quantize", y, c.reshape(y_scale, ()), c.reshape(y_zero, ()), to=c.dtype(y_zero))


@lowers("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Context, n: OnnxNode) -> Lowered:
    """uint8 with the scale and zero point that the tensor's own range (with 0 in it) asks for."""
    x = n.input(0)
    zero = c.like(0, x)
    axes = range(c.rank(x))
    low = c.op("minimum", c.reduce("min", x, axes, keepdims=False), zero)
    high = c.op("maximum", c.reduce("max", x, axes, keepdims=False), zero)
    span = c.op("sub", high, low)
    scale = c.op("where", c.op("equal", span, zero), c.like(1, x), c.op("div", span, c.like(np.float32(255), x)))
    point = c.op("clip", c.op("round", c.op("div", c.op("neg", low), scale)), low=0.0, high=255.0)
    point = c.cast(point, "uint8")
    return c.op("quantize", x, scale, point, to="uint8"), scale, point
