"""Quantization as ONNX: QuantizeLinear and DequantizeLinear, which ONNX Runtime makes its integer kernels of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.ir import Graph, Value
from ...compiler.ops.selection import step_bounds
from ...compiler.types import TensorType
from ...errors import NervureError
from .export_math import Rule
from .exporter import Call, Writer

RULES: dict[str, Rule] = {}
STORED_STEPS = ("int8", "uint8", "int16", "uint16", "int32")


def _granularity(x: TensorType, scale: TensorType) -> tuple[list[int], int | None] | None:
    """The shape and axis in which ONNX wants the scale; None where it broadcasts in a way ONNX cannot say."""
    wide = [a for a, d in enumerate(scale.dims) if d != 1]
    if not wide:
        return [], None
    if len(wide) == 1:
        axis = wide[0] + x.rank - scale.rank
        return [scale.dims[wide[0]]], axis
    return None


def quantization(w: Writer, n: Call) -> None:
    """One scale, one along an axis, or one for each block is QuantizeLinear; everything else is spelled out."""
    if n.attrs.get("block") is not None:
        _blocked(w, n)
        return
    to, grain = n.attrs["to"], _granularity(n.type(), n.type(1))
    zero = _zero_point(w, n)
    source = n.type().dtype if n.op == "quantize" else to
    storage = to if n.op == "quantize" else n.type().dtype
    simple = storage in STORED_STEPS and (storage != "int32" or (not n.has(2) and n.op == "dequantize"))
    if grain is None or zero is None or source != "float32" or n.type(1).dtype != "float32" or not simple:
        _spelled_out(w, n, n.inputs[2] if n.has(2) else "")
        return
    shape, axis = grain
    given = [n.inputs[0], _shaped(w, n.inputs[1], n.type(1), shape), _shaped(w, zero, n.type(1), shape)]
    if n.op == "quantize":
        given[0] = _bounded(w, n, n.inputs[2] if n.has(2) else "")
    w.emit("QuantizeLinear" if n.op == "quantize" else "DequantizeLinear", given, n.outs, axis=axis)


RULES.update(quantize=quantization, dequantize=quantization)


def _zero_point(w: Writer, n: Call) -> str | None:
    """A zero point in the scale's shape: ONNX Runtime's integer kernels want one, even where it is 0. None where the
    graph's has another shape and is not stored."""
    dims, dtype = n.type(1).dims, n.attrs["to"] if n.op == "quantize" else n.type().dtype
    if not n.has(2):
        return w.const(np.zeros(dims), dtype)
    if n.type(2).dims == dims:
        return n.inputs[2]
    array = w.array(n.inputs[2])
    try:
        return None if array is None else w.const(np.broadcast_to(array, dims), dtype)
    except ValueError:
        return None


def _shaped(w: Writer, name: str, t: TensorType, shape: Sequence[int]) -> str:
    """A stored tensor is stored once more in that shape, so that the scale is one that tools find."""
    if list(t.dims) == list(shape):
        return name
    array = w.array(name)
    if array is None:
        return w.emit("Reshape", [name, w.const(list(shape))])
    return w.const(array.reshape(shape), str(array.dtype))


def _bounded(w: Writer, n: Call, zero: str) -> str:
    """What is quantized, clipped to narrower bounds than the type's (QuantizeLinear has none, Clip not every type of
    integers): rounding is monotone, so that it may come later."""
    name, scale, whole = n.inputs[0], n.inputs[1], np.iinfo(n.attrs["to"])
    limits = []
    for bound in step_bounds(n.attrs["low"], n.attrs["high"], n.attrs["to"]):
        if bound in (whole.min, whole.max):
            limits.append("")
            continue
        limits.append(_real(w, bound, scale, zero))
    if any(limits) and not n.type(1).dims:
        return w.emit("Clip", [name, *limits])
    for op, limit in zip(("Max", "Min"), limits, strict=True):
        name = w.emit(op, [name, limit]) if limit else name
    return name


def _real(w: Writer, bound: int, scale: str, zero: str) -> str:
    """The number that a step stands for."""
    known, point = w.array(scale), w.array(zero) if zero else np.zeros((), np.int8)
    if known is not None and point is not None:
        return w.const(known * (np.float32(bound) - point.astype(np.float32)), "float32")
    steps = w.const(bound, "float32")
    if zero:
        steps = w.emit("Sub", [steps, w.cast(zero, "float32")])
    return w.emit("Mul", [steps, scale])


def _spelled_out(w: Writer, n: Call, zero: str) -> None:
    to = n.attrs["to"]
    if n.op == "dequantize":
        x = w.cast(n.inputs[0], "float64")
        if zero:
            x = w.emit("Sub", [x, w.cast(zero, "float64")])
        w.cast(w.emit("Mul", [x, w.cast(n.inputs[1], "float64")]), to, n.outs)
        return
    work = "float64" if n.type().dtype == "float64" else "float32"
    y = w.emit("Round", [w.emit("Div", [w.cast(n.inputs[0], work), w.cast(n.inputs[1], work)])])
    if zero:
        y = w.emit("Add", [y, w.cast(zero, work)])
    low, high = step_bounds(n.attrs["low"], n.attrs["high"], to)
    y = w.emit("Clip", [y, w.const(low, work), w.const(high, work)])
    w.cast(y, to, n.outs)


# -- weights in blocks -------------------------------------------------------------------------------------------------


def keep(graph: Graph, key: int, name: str, w: Writer) -> None:
    """Writes a stored tensor. Weights in blocks are INT4 where 4 bits hold them and their zero points, and their scales
    float16 where that holds them. (Other weights stay in 8 bits: ONNX Runtime's integer kernels take these alone.)"""
    array, uses = graph.node(key).array, graph.users(Value(key))
    blocked = [user for user, _ in uses if graph.node(user).attrs.get("block") is not None]
    if graph.node(key).op != "const" or not blocked or len(blocked) < len(uses) or Value(key) in graph.outputs:
        w.store(name, array)
    elif array.dtype in (np.int8, np.uint8) and all(_fits_four_bits(graph, user) for user in blocked):
        w.pack(name, array)
    elif array.dtype == np.float32 and (array.astype(np.float16).astype(np.float32) == array).all():
        w.hint = name
        w.cast(w.store(w.fresh(f"{name}_half"), array.astype(np.float16)), "float32", [name])
    else:
        w.store(name, array)


def _fits_four_bits(graph: Graph, key: int) -> bool:
    """Whether 4 bits hold what a ``dequantize`` reads, and its zero points: both are of one type."""
    q, _, *zero = graph.args(key)
    arrays = [graph.constant(a) for a in (q, *zero) if a is not None]
    low, high = (-8, 7) if graph.type(q).dtype == "int8" else (0, 15)  # type: ignore[arg-type]
    return all(a is not None and (a.size == 0 or (a.min() >= low and a.max() <= high)) for a in arrays)


def _blocked(w: Writer, n: Call) -> None:
    """DequantizeLinear with ``block_size``: scales and zero points stand for each block, and each element elsewhere."""
    axis, size = n.attrs["block"]
    held = [-(-d // size) if i == axis else d for i, d in enumerate(n.type().dims)]
    names = [n.inputs[0]]
    for i in (1, 2) if n.has(2) else (1,):
        wide = n.type(i).dims != tuple(held)
        names.append(w.emit("Expand", [n.inputs[i], w.const(held)]) if wide else n.inputs[i])
    to, codes = n.attrs["to"], n.type().dtype in ("int8", "uint8") and n.type(1).dtype in ("float32", "float16")
    if codes and to == n.type(1).dtype:
        w.emit("DequantizeLinear", names, n.outs, axis=axis, block_size=size)
        return
    at = w.const(np.arange(n.type().dims[axis]) // size)
    parts = [w.cast(w.emit("Gather", [name, at], axis=axis), "float64") for name in names[1:]]
    x = w.cast(names[0], "float64")
    if n.has(2):
        x = w.emit("Sub", [x, parts[1]])
    w.cast(w.emit("Mul", [x, parts[0]]), to, n.outs)


# -- integer products --------------------------------------------------------------------------------------------------


def _product(op_type: str) -> Rule:
    """ConvInteger or MatMulInteger of 8-bit operands; a right one of 16 bits (8-bit weights less their zero point) is
    written as the sum of two of 8 bits."""

    def rule(w: Writer, n: Call) -> None:
        x, b = n.type(0), n.type(1)
        if x.itemsize != 1:
            raise NervureError(
                f"no ONNX form for {n.op} of {x.dtype}", hint="export the graph before it is lowered to integers"
            )
        attrs = {k: n.attrs[k] for k in ("strides", "pads", "dilations", "group") if k in n.attrs}
        points = [w.const(n.attrs["zero_point"], x.dtype), w.const(n.attrs.get("b_zero_point", 0), b.dtype)]
        sums = []
        for part, point in _parts(w, n.inputs[1], b, points[1]):
            sums.append(w.emit(op_type, [n.inputs[0], part, points[0], point], **attrs))
        if n.has(2):
            bias = n.inputs[2]
            if op_type == "ConvInteger":
                bias = w.emit("Reshape", [bias, w.const([-1, *[1] * (n.type().rank - 2)])])
            sums.append(bias)
        total = sums[0]
        for other in sums[1:]:
            total = w.emit("Add", [total, other])
        w.emit("Identity", [total], n.outs)

    return rule


def _parts(w: Writer, name: str, t: TensorType, point: str) -> list[tuple[str, str]]:
    if t.itemsize == 1:
        return [(name, point)]
    wide = w.cast(name, "int32")
    low = w.emit("Clip", [wide, w.const(-128, "int32"), w.const(127, "int32")])
    zero = w.const(0, "int8")
    return [(w.cast(low, "int8"), zero), (w.cast(w.emit("Sub", [wide, low]), "int8"), zero)]


RULES.update(conv_integer=_product("ConvInteger"), matmul_integer=_product("MatMulInteger"))
