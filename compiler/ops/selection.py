"""Elementwise operators with rules of their own: type conversion, choice by a condition or by coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...errors import NervureError
from ..types import DTYPES, TensorType, is_float
from .blocks import Block, require_block, spread
from .channels import NOTHING, TRIANGLE
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import numpy_dtype, quiet, threefry
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import (
    BOOLS,
    FLOATS,
    NUMBERS,
    broadcast_shapes,
    count,
    normalise_axis,
    optional,
    require_broadcast,
    require_dtype,
    require_rank,
    require_same_dtype,
    require_shape,
)

POSITIONAL = ("iota", "trilu", "random_bits")  # an element depends on where it is
QUANTIZED = ("int8", "uint8", "int16", "uint16", "int32")


def _element_type(name: object) -> str:
    if name not in DTYPES:
        raise OpError(f"to: expected one of {', '.join(DTYPES)}; got {name!r}")
    return str(name)


# -- conversion --------------------------------------------------------------------------------------------------


def _cast_infer(call: Call) -> Sequence[TensorType]:
    return (call.type(0).with_dtype(_element_type(call.attrs["to"])),)


def _cast(x: np.ndarray, to: str) -> np.ndarray:
    return x.astype(numpy_dtype(to))


def _cast_gradient(c: Grad) -> list[Sym]:
    return [c.g.cast(c.x.dtype) if is_float(c.x.dtype) else c.g]


def _cast_cases() -> Iterable[Case]:
    pairs = (
        "float32-float64 float64-float32 float32-float16 float16-float32 float32-bfloat16 bfloat16-float32 "
        "float32-int32 float32-int64 float32-int8 int32-float32 int64-float32 int64-int32 int32-int8 "
        "uint8-float32 uint8-int32 int8-int32 float32-bool int32-bool bool-float32 bool-int64 "
        "int32-int64 float64-int64 int64-float64"
    )
    for pair in pairs.split():
        source, to = pair.split("-")
        yield Case((t(source, 3, 17),), {"to": to}, low=0.0 if source == "uint8" else -9.0, high=9.0)
    yield Case((np.array([300, -129, 2**31 - 1, -(2**31)], np.int32),), {"to": "int8"}, note="wraps")


def _quantize_infer(call: Call) -> Sequence[TensorType]:
    x, scale, zero_point = call.type(0), call.type(1), optional(call, 2)
    to = call.attrs["to"]
    if to not in QUANTIZED:
        raise OpError(f"to: expected one of {', '.join(QUANTIZED)}; got {to!r}")
    require_dtype(x, FLOATS | {"int32"}, "x")
    require_dtype(scale, FLOATS, "scale")
    require_broadcast(scale, x.shape, "scale")
    if zero_point is not None:
        require_dtype(zero_point, (to,), "zero_point")
        require_broadcast(zero_point, x.shape, "zero_point")
    return (x.with_dtype(to),)


def _quantize(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
    *,
    to: str,
    low: int | None = None,
    high: int | None = None,
) -> np.ndarray:
    # The quotient is rounded to float32 first: a halfway case is decided there, as in ONNX Runtime.
    exact = np.float64 if x.dtype == np.float64 else np.float32
    steps = np.rint(x.astype(exact) / scale.astype(exact)).astype(np.float64)
    shifted = steps if zero_point is None else steps + zero_point
    return np.asarray(np.clip(shifted, *step_bounds(low, high, to))).astype(to)


def step_bounds(low: int | None, high: int | None, to: str) -> tuple[int, int]:
    """The range of a quantized tensor: that of its type, narrowed by ``low`` and ``high``."""
    info = np.iinfo(to)
    return max(int(info.min), info.min if low is None else low), min(int(info.max), info.max if high is None else high)


def _quantize_gradient(c: Grad) -> list[Sym | None]:
    """Straight through the rounding; zero for what lies beyond the bounds, before it is rounded (LSQ, Esser et al.
    2020, equations 3 and 5; the rest of the scale's is that of ``dequantize``)."""
    x, scale, zero = c.x, c.input(1).cast(c.x.dtype), c.optional(2)
    steps = x / scale
    steps = steps if zero is None else steps + zero.cast(x.dtype)
    low, high = step_bounds(c.attrs["low"], c.attrs["high"], c.attrs["to"])
    kept = (steps >= low).op("logical_and", steps <= high)
    g = kept.where(c.g.cast(x.dtype) / scale, 0)
    return [g, (-g * x / scale).cast(c.input(1).dtype), None]


def _quantize_cases() -> Iterable[Case]:
    scale, zero = np.array(0.037, np.float32), np.array(3, np.int8)
    each = np.array([0.1, 0.02, 0.5], np.float32).reshape(3, 1, 1)
    yield Case((f32(2, 30), scale, np.array(128, np.uint8)), {"to": "uint8"}, low=-8, high=8)
    yield Case((f32(2, 30), scale, zero), {"to": "int8"}, low=-8, high=8)
    yield Case((f32(2, 30), scale), {"to": "int8"}, low=-8, high=8)
    yield Case((f32(2, 3, 4, 4), each, np.array([1, -2, 3], np.int8).reshape(3, 1, 1)), {"to": "int8"}, low=-8, high=8)
    yield Case((np.arange(-8, 8, dtype=np.float32) / 2, np.array(1.0, np.float32)), {"to": "int8"}, note="halves")
    yield Case((f32(2, 30), scale, np.array(7, np.uint16)), {"to": "uint16"}, low=-8, high=8)
    yield Case((f32(2, 30), scale), {"to": "int8", "low": -8, "high": 7}, low=-0.5, high=0.5, note="4 bits")


def _dequantize_infer(call: Call) -> Sequence[TensorType]:
    x, scale, zero_point = call.type(0), call.type(1), optional(call, 2)
    to = _element_type(call.attrs["to"])
    if to not in FLOATS:
        raise OpError(f"to: expected a float type; got {to!r}")
    require_dtype(x, NUMBERS, "x")
    require_dtype(scale, FLOATS, "scale")
    block = call.attrs["block"]
    if zero_point is not None:
        require_same_dtype(x, zero_point, ("x", "zero_point"))
    for given, name in ((scale, "scale"), (zero_point, "zero_point")):
        if given is not None and block is not None:
            require_block(block, x, given, name)
        elif given is not None:
            require_broadcast(given, x.shape, name)
    return (x.with_dtype(to),)


def _dequantize(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None, *, to: str, block: Block = None
) -> np.ndarray:
    shifted = x.astype(np.float64)
    if zero_point is not None:
        shifted = shifted - spread(zero_point.astype(np.float64), x.shape, block)
    return np.asarray(shifted * spread(scale.astype(np.float64), x.shape, block)).astype(numpy_dtype(to))


def _dequantize_gradient(c: Grad) -> list[Sym | None]:
    if c.attrs["block"] is not None:
        raise NervureError(
            "scales of blocks cannot be differentiated",
            why="integers with a scale for each block are weights that are not trained",
            hint="train the model first, then quantize its weights",
        )
    x, scale, zero = c.x.cast(c.g.dtype), c.input(1).cast(c.g.dtype), c.optional(2)
    shifted = x if zero is None else x - zero.cast(c.g.dtype)
    g = (c.g * scale).cast(c.x.dtype) if is_float(c.x.dtype) else c.g * scale
    return [g, (c.g * shifted).cast(c.input(1).dtype), -g]


def _dequantize_cases() -> Iterable[Case]:
    scale = np.array(0.037, np.float32)
    each = np.array([0.1, 0.02, 0.5], np.float32).reshape(3, 1, 1)
    yield Case((t("uint8", 2, 30), scale, np.array(128, np.uint8)), low=0, high=255)
    yield Case((t("int8", 2, 30), scale, np.array(-5, np.int8)), low=-128, high=127)
    yield Case((t("int8", 2, 30), scale), low=-128, high=127)
    yield Case((t("int8", 2, 3, 4, 4), each, np.array([1, -2, 3], np.int8).reshape(3, 1, 1)), low=-128, high=127)
    yield Case((t("int32", 5), scale), low=-9999, high=9999)
    yield Case((t("int8", 2, 30), scale.astype(np.float16)), {"to": "float16"}, low=-128, high=127)
    blocks = np.array([[0.1, 0.02], [0.5, 1.5]], np.float32)
    yield Case((t("int8", 2, 30), blocks), {"block": (1, 16)}, low=-8, high=7, note="blocks")
    points = np.array([[3, -2], [0, 7]], np.int8)
    yield Case((t("int8", 2, 9), blocks, points), {"block": (1, 5)}, low=-8, high=7, note="blocks")


# -- choice ------------------------------------------------------------------------------------------------------


def _where_infer(call: Call) -> Sequence[TensorType]:
    condition, x, y = call.type(0), call.type(1), call.type(2)
    require_dtype(condition, BOOLS, "condition")
    require_same_dtype(x, y, ("x", "y"))
    return (x.with_shape(broadcast_shapes(condition.shape, x.shape, y.shape)),)


def _where(condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(condition, x, y)).astype(x.dtype, copy=False)


def _where_gradient(c: Grad) -> list[Sym | None]:
    return [None, c.x.where(c.g, 0), c.x.where(0, c.g)]


def _where_cases() -> Iterable[Case]:
    yield Case((t("bool", 2, 3, 4), f32(2, 3, 4), f32(2, 3, 4)))
    yield Case((t("bool", 3, 1), f32(2, 1, 4), f32()))
    yield Case((t("bool"), f32(5), f32(5)))
    yield Case((t("bool", 7), t("int64", 7), t("int64", 1)))
    yield Case((t("bool", 7), t("bool", 7), t("bool", 7)))


def _iota_infer(call: Call) -> Sequence[TensorType]:
    shape, axis = tuple(call.attrs["shape"]), call.attrs["axis"]
    dtype = _element_type(call.attrs["dtype"])
    normalise_axis(axis, len(shape))
    return (TensorType(dtype, shape),)


def _iota(shape: tuple[int, ...], axis: int, dtype: str) -> np.ndarray:
    counted = np.arange(shape[axis]).reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    return np.ascontiguousarray(np.broadcast_to(counted, shape)).astype(numpy_dtype(dtype))


def _trilu_infer(call: Call) -> Sequence[TensorType]:
    x = call.type(0)
    require_rank(x, 2, None, "x")
    return (x,)


def _trilu(x: np.ndarray, k: int, upper: bool) -> np.ndarray:
    kept = np.tri(x.shape[-2], x.shape[-1], k - 1 if upper else k, dtype=bool)
    return np.where(~kept if upper else kept, x, np.zeros((), x.dtype)).astype(x.dtype, copy=False)


def _trilu_cases() -> Iterable[Case]:
    for k in (-2, 0, 1, 9):
        yield Case((f32(2, 4, 5),), {"k": k, "upper": k != 1})
    yield Case((f32(2, 4, 5),), {"k": -1, "upper": False})
    yield Case((t("bool", 4, 4),), {"upper": False})
    yield Case((t("int64", 6, 3),))


def _random_bits_infer(call: Call) -> Sequence[TensorType]:
    require_dtype(call.type(0), ("uint32",), "key")
    require_shape(call.type(0), (2,), "key")
    if not call.attrs["shape"]:
        raise OpError("shape: expected at least one axis; got a scalar's")
    return (TensorType("uint32", tuple(call.attrs["shape"])),)


def _random_bits(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    place = np.arange(math.prod(shape), dtype=np.uint32)
    return threefry(key, place, np.zeros_like(place)).reshape(shape)


def _random_bits_cases() -> Iterable[Case]:
    for seed, shape in enumerate([(7,), (2,), (1, 1), (5, 67), (2, 3, 40), (4099,)]):
        yield Case((np.array([seed, 0x9E3779B9 * seed & 0xFFFFFFFF], np.uint32),), {"shape": shape})
    yield Case((np.array([0xFFFFFFFF, 0xFFFFFFFF], np.uint32),), {"shape": (3, 33)}, note="all bits of the key")


def _per_element(work: float) -> Any:
    def cost(call: Call) -> Cost:
        return Cost(work * count(broadcast_shapes(*(i.shape for i in call.types if i is not None))))

    return cost


OPS = (
    Op(
        "cast",
        Kind.ELEMENTWISE,
        _cast_infer,
        quiet(_cast),
        "The same numbers in another type: floats toward 0 to integers, integers modulo the width, bool is x != 0.",
        attrs={"to": REQUIRED},
        cost=_per_element(1),
        cases=_cast_cases,
        gradient=_cast_gradient,
    ),
    Op(
        "quantize",
        Kind.ELEMENTWISE,
        _quantize_infer,
        quiet(_quantize),
        "clip(round_half_even(x / scale) + zero_point) to the range of `to`, or [low, high] (ONNX QuantizeLinear).",
        inputs=("x", "scale", "zero_point?"),
        attrs={"to": "uint8", "low": None, "high": None},
        cost=_per_element(5),
        cases=_quantize_cases,
        gradient=_quantize_gradient,
    ),
    Op(
        "dequantize",
        Kind.ELEMENTWISE,
        _dequantize_infer,
        quiet(_dequantize),
        "(x - zero_point) scale (ONNX DequantizeLinear); with block = (axis, size), one scale for so many neighbours.",
        inputs=("x", "scale", "zero_point?"),
        attrs={"to": "float32", "block": None},
        cost=lambda call: Cost(2.0 * count(call.type(0).shape)),
        cases=_dequantize_cases,
        gradient=_dequantize_gradient,
    ),
    Op(
        "where",
        Kind.ELEMENTWISE,
        _where_infer,
        _where,
        "x where the condition holds, else y.",
        inputs=("condition", "x", "y"),
        cost=_per_element(1),
        cases=_where_cases,
        gradient=_where_gradient,
        onnx={"Where": {}},
        inplace=(1, 2),
    ),
    Op(
        "iota",
        Kind.ELEMENTWISE,
        _iota_infer,
        _iota,
        "The coordinate along one axis.",
        inputs=(),
        attrs={"shape": REQUIRED, "axis": 0, "dtype": "int64"},
        cost=lambda call: Cost(count(call.attrs["shape"])),
        cases=lambda: [
            Case((), {"shape": (7,)}),
            Case((), {"shape": (2, 3, 4), "axis": 1, "dtype": "int32"}),
            Case((), {"shape": (2, 3), "axis": -1, "dtype": "float32"}),
        ],
        channels=NOTHING,
    ),
    Op(
        "trilu",
        Kind.ELEMENTWISE,
        _trilu_infer,
        _trilu,
        "The upper or lower triangle of the last two axes from diagonal k, 0 elsewhere (ONNX Trilu).",
        attrs={"k": 0, "upper": True},
        cost=_per_element(1),
        cases=_trilu_cases,
        gradient=lambda c: [c.g.op("trilu", **c.attrs)],
        inplace=(0,),
        channels=TRIANGLE,
    ),
    Op(
        "random_bits",
        Kind.ELEMENTWISE,
        _random_bits_infer,
        quiet(_random_bits),
        "Uniform random uint32, the same on every machine: Threefry-2x32 of 13 rounds (Salmon et al. 2011) of the key "
        "(seed, counter) and the element's place in row-major order.",
        inputs=("key",),
        attrs={"shape": REQUIRED},
        cost=lambda call: Cost(90 * count(call.attrs["shape"])),
        cases=_random_bits_cases,
        channels=NOTHING,
    ),
)
