"""Quantized operators in one piece, the standard's and ONNX Runtime's: their inputs dequantized, the operator on real
numbers, its result quantized. The pass ``integers`` makes integer arithmetic of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...compiler.ir import Value
from .context import Context, OnnxNode, Unsupported
from .lower_nn import convolve
from .lower_quant import MICROSOFT, checked_scale, dynamic_steps, integer_product
from .registry import RULES, Lowered, lowers

NEWEST = 21  # of the standard operators that those of com.microsoft are compared with


def real(
    c: Context, n: OnnxNode, x: Value, scale: Value, zero: Value | None, shape: Sequence[int] | None = None
) -> Value:
    """``x`` dequantized. ``shape`` is how a scale or zero point that is no single number stands beside it."""
    point = None if zero is None else _shaped(c, zero, shape)
    return c.op("dequantize", x, _shaped(c, checked_scale(c, n, scale), shape), point, to=c.dtype(scale))


def steps(
    c: Context, n: OnnxNode, y: Value, scale: Value, zero: Value | None, to: str, shape: Sequence[int] | None = None
) -> Value:
    """``y`` quantized to the zero point's type, or to ``to`` without one."""
    point = None if zero is None else _shaped(c, zero, shape)
    dtype = to if zero is None else c.dtype(zero)
    return c.op("quantize", y, _shaped(c, checked_scale(c, n, scale), shape), point, to=dtype)


def _shaped(c: Context, v: Value, shape: Sequence[int] | None) -> Value:
    one = c.type(v).size == 1
    return c.reshape(v, () if one else c.shape(v) if shape is None else shape)


def standard(c: Context, n: OnnxNode, op_type: str, *inputs: Value, version: int = NEWEST) -> Value:
    """What the rule of a standard operator makes of ``inputs``, with the node's attributes."""
    call = replace(n, op_type=op_type, domain="", version=version, inputs=list(inputs), outputs=n.outputs[:1])
    found = RULES["", op_type](c, call)
    return found if isinstance(found, Value) else next(iter(found))


# -- products ----------------------------------------------------------------------------------------------------------


def _vector(c: Context, v: Value, rank: int, axis: int) -> list[int]:
    """The shape of a vector along ``axis``."""
    return [c.shape(v)[0] if c.rank(v) and i == axis % rank else 1 for i in range(rank)]


def _columns(c: Context, v: Value, rank: int, axis: int) -> Sequence[int] | None:
    return _vector(c, v, rank, axis) if c.rank(v) == 1 and rank > 1 else None


@lowers("QLinearMatMul")
def qlinear_matmul(c: Context, n: OnnxNode) -> Lowered:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (n.input(i) for i in range(8))
    left = real(c, n, a, a_scale, a_zero, _columns(c, a_scale, c.rank(a), -2))
    right = real(c, n, b, b_scale, b_zero, _columns(c, b_scale, c.rank(b), -1))
    y = c.op("matmul", left, right)
    return steps(c, n, y, y_scale, y_zero, c.dtype(a), _columns(c, y_scale, c.rank(y), -2))


@lowers("QGemm", domain=MICROSOFT)
def qgemm(c: Context, n: OnnxNode) -> Lowered:
    a, a_scale, a_zero, b, b_scale, b_zero = (n.optional(i) for i in range(6))
    bias, y_scale, y_zero = (n.optional(i) for i in range(6, 9))
    assert a is not None and a_scale is not None and b is not None and b_scale is not None
    if n.attr("transA", 0):
        a = c.transpose(a, (1, 0))
    if n.attr("transB", 0):
        b = c.transpose(b, (1, 0))
    b_scale = c.op("mul", b_scale, c.like(n.attr("alpha", 1.0), b_scale))
    y = c.op("matmul", real(c, n, a, a_scale, a_zero), real(c, n, b, b_scale, b_zero, _columns(c, b_scale, 2, -1)))
    if bias is not None:
        y = c.op("add", y, real(c, n, bias, c.op("mul", c.reshape(a_scale, ()), b_scale), None))
    return y if y_scale is None else steps(c, n, y, y_scale, y_zero, c.dtype(a))


@lowers("QLinearConv")
def qlinear_conv(c: Context, n: OnnxNode) -> Lowered:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (n.input(i) for i in range(8))
    bias = n.optional(8)
    x = real(c, n, x, x_scale, x_zero)
    weights = real(c, n, w, w_scale, w_zero, _vector(c, w_scale, c.rank(w), 0))
    if bias is not None:
        bias = real(c, n, bias, c.op("mul", c.reshape(x_scale, ()), w_scale), None)
    last = bool(n.attr("channels_last", 0))
    y = convolve(c, n, _channels_first(c, x, last), weights, bias)
    return steps(c, n, _channels_last(c, y, last), y_scale, y_zero, c.dtype(y_zero))


lowers("QLinearConv", domain=MICROSOFT)(qlinear_conv)


def _channels_first(c: Context, x: Value, last: bool) -> Value:
    rank = c.rank(x)
    return c.transpose(x, (0, rank - 1, *range(1, rank - 1))) if last else x


def _channels_last(c: Context, x: Value, last: bool) -> Value:
    return c.transpose(x, (0, *range(2, c.rank(x)), 1)) if last else x


@lowers("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(c: Context, n: OnnxNode) -> Lowered:
    a, b, a_scale, b_scale = (n.input(i) for i in range(4))
    return _scaled_product(c, n, (a, a_scale, n.optional(4)), (b, b_scale, n.optional(5)), n.optional(6))


@lowers("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(c: Context, n: OnnxNode) -> Lowered:
    q, scale, zero = dynamic_steps(c, n.input(0))
    return _scaled_product(c, n, (q, scale, zero), (n.input(1), n.input(2), n.optional(3)), n.optional(4))


Steps = tuple[Value, Value, Value | None]  # integers, their scale, zero point


def _scaled_product(c: Context, n: OnnxNode, a: Steps, b: Steps, bias: Value | None) -> Value:
    """The product of integers as a real number."""
    sums = integer_product(c, a[0], b[0], a[2], b[2])
    scale = c.op("mul", _shaped(c, checked_scale(c, n, a[1]), None), _shaped(c, checked_scale(c, n, b[1]), None))
    y = c.op("dequantize", sums, scale, to="float32")
    return y if bias is None else c.op("add", y, bias)


# -- one or two inputs and a result ------------------------------------------------------------------------------------

UNARY = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}


def _unary(c: Context, n: OnnxNode) -> Lowered:
    x, scale, zero, y_scale, y_zero = n.input(0), n.input(1), n.optional(2), n.input(3), n.optional(4)
    name = UNARY[n.op_type]
    version = n.attr("opset", 13) if name == "Softmax" else NEWEST
    last = bool(n.attr("channels_last", 0))
    y = standard(c, n, name, _channels_first(c, real(c, n, x, scale, zero), last), version=version)
    return steps(c, n, _channels_last(c, y, last), y_scale, y_zero, c.dtype(x))


lowers(*UNARY, domain=MICROSOFT)(_unary)


def _binary(op: str) -> Any:
    def rule(c: Context, n: OnnxNode) -> Lowered:
        a = real(c, n, n.input(0), n.input(1), n.optional(2))
        b = real(c, n, n.input(3), n.input(4), n.optional(5))
        return steps(c, n, c.op(op, a, b), n.input(6), n.optional(7), c.dtype(n.input(0)))

    return rule


lowers("QLinearAdd", domain=MICROSOFT)(_binary("add"))
lowers("QLinearMul", domain=MICROSOFT)(_binary("mul"))


@lowers("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(c: Context, n: OnnxNode) -> Lowered:
    y_scale, y_zero, first = n.input(0), n.input(1), n.input(2)
    count = (len(n.inputs) - 2) // 3
    parts = [real(c, n, n.input(2 + 3 * i), n.input(3 + 3 * i), n.optional(4 + 3 * i)) for i in range(count)]
    y = c.concat(parts, c.axis(n.attr("axis", 0), c.rank(first)))
    return steps(c, n, y, y_scale, y_zero, c.dtype(first))


@lowers("QLinearWhere", domain=MICROSOFT)
def qlinear_where(c: Context, n: OnnxNode) -> Lowered:
    x, y = (real(c, n, n.input(i), n.input(i + 1), n.optional(i + 2)) for i in (1, 4))
    return steps(c, n, c.op("where", n.input(0), x, y), n.input(7), n.optional(8), c.dtype(n.input(1)))


@lowers("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(c: Context, n: OnnxNode) -> Lowered:
    return _channels_last(c, standard(c, n, "MaxPool", _channels_first(c, n.input(0), True)), True)


# -- layers ------------------------------------------------------------------------------------------------------------


@lowers("QAttention", domain=MICROSOFT)
def qattention(c: Context, n: OnnxNode) -> Lowered:
    """Multi-head attention behind one product for queries, keys and values; everything behind that is float."""
    x, w, bias, x_scale, w_scale = (n.input(i) for i in range(5))
    mask, past = n.optional(5), n.optional(8)
    if past is not None or n.wants(1):
        raise Unsupported("attention with past keys and values", "attention over whole sequences")
    qkv = c.op("add", _scaled_product(c, n, (x, x_scale, n.optional(6)), (w, w_scale, n.optional(7)), None), bias)
    batch, length, width = c.shape(qkv)
    heads, hidden = n.attr("num_heads"), width // 3
    size = hidden // heads
    parts = (c.slice(qkv, 2, i * hidden, (i + 1) * hidden) for i in range(3))
    q, k, v = (c.transpose(c.reshape(p, (batch, length, heads, size)), (0, 2, 1, 3)) for p in parts)
    scores = c.op("matmul", q, c.transpose(k, (0, 1, 3, 2)))
    scores = c.op("mul", scores, c.like(n.attr("scale", 0.0) or size**-0.5, scores))
    if mask is not None:
        scores = c.op("add", scores, _masked(c, n, mask, (batch, length), scores))
    if n.attr("unidirectional", 0):
        seen = np.tril(np.ones((length, length), bool))
        scores = c.op("where", c.const(seen), scores, c.like(n.attr("mask_filter_value", -10000.0), scores))
    y = c.op("matmul", c.op("softmax", scores, axis=-1), v)
    return c.reshape(c.transpose(y, (0, 2, 1, 3)), (batch, length, hidden))


def _masked(c: Context, n: OnnxNode, mask: Value, shape: tuple[int, int], like: Value) -> Value:
    """What is added to the scores: 0 where a key is there (1), a large negative number where it is not (0)."""
    if c.shape(mask) != shape:
        raise Unsupported(f"a mask of shape {list(c.shape(mask))}", "a mask [batch, length] of 0 and 1")
    absent = c.op("sub", c.like(1, like), c.cast(mask, c.dtype(like)))
    row = c.op("mul", absent, c.like(n.attr("mask_filter_value", -10000.0), like))
    return c.reshape(row, (shape[0], 1, 1, shape[1]))


@lowers("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(c: Context, n: OnnxNode) -> Lowered:
    """The LSTM with its weights dequantized. ONNX Runtime also rounds x and h to 8 bits at each step: this is closer
    to the float model."""
    weights = []
    for at, scale, zero in ((1, 8, 9), (2, 10, 11)):
        w = n.input(at)
        each = (c.shape(w)[0], 1, c.shape(n.input(scale))[-1] if c.rank(n.input(scale)) == 2 else 1)
        weights.append(c.transpose(real(c, n, w, n.input(scale), n.optional(zero), each), (0, 2, 1)))
    rest = [n.optional(i) for i in range(3, 8)]
    call = replace(n, op_type="LSTM", domain="", version=NEWEST, inputs=[n.input(0), *weights, *rest])
    found: Lowered = RULES["", "LSTM"](c, call)
    return found
