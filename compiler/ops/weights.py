"""Products with weights that are stored narrow: integers with scales for groups of them, or floats of 16 bits.

Activations and sums are float32; a weight is ``(w - zero_point) scale`` or ``w`` itself, made a float32 where the
kernel uses it. ``block = (axis, size)``: that many neighbours along ``axis`` of the weights have one scale, the last
ones fewer (ONNX DequantizeLinear's ``block_size``); along any other axis there is one scale, or one for each element.
Integers that 4 bits hold are stored in 4 bits: how wide they are is a matter of their values, not of the graph.

The pass ``weights`` makes these operators from what the graph says (``dequantize``, ``cast``). Training differentiates
before that, so they have no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .blocks import Block, blocks_shape, require_block, spread
from .contractions import matmul_shape
from .convolutions import conv_columns, conv_output
from .indexing import INDEX
from .numeric import numpy_dtype, quiet, widen
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import count, normalise_axis, optional, require_dtype, require_shape

CODES = ("int8", "uint8")
HALVES = ("float16", "bfloat16")


def widened(w: np.ndarray, scale: np.ndarray | None, zero: np.ndarray | None, block: Block) -> np.ndarray:
    """Stored weights as float32."""
    if scale is None:
        return w.astype(np.float32)
    steps = w.astype(np.float64)
    if zero is not None:
        steps = steps - spread(zero.astype(np.float64), w.shape, block)
    return np.asarray(steps * spread(scale.astype(np.float64), w.shape, block)).astype(np.float32)


def _check_weights(call: Call, at: int, first: int) -> TensorType:
    """The type of the weights ``at``, whose scale and zero point are inputs ``first`` and the next."""
    w, scale, zero = call.type(at), optional(call, first), optional(call, first + 1)
    require_dtype(w, (*CODES, *HALVES), "w")
    if (scale is None) == (w.dtype in CODES):
        raise OpError("scale: integers need one, floats have none")
    if scale is not None:
        require_dtype(scale, ("float32", "float16"), "scale")
        require_block(call.attrs["block"], w, scale)
    if zero is not None:
        require_dtype(zero, (w.dtype,), "zero_point")
        require_block(call.attrs["block"], w, zero, "zero_point")
    return w


def _bias(call: Call, channels: Any) -> None:
    b = optional(call, 2)
    if b is not None:
        require_dtype(b, ("float32",), "b")
        require_shape(b, (channels,), "b")


def _matmul_infer(call: Call) -> Sequence[TensorType]:
    a, w = call.type(0), _check_weights(call, 1, 3)
    require_dtype(a, ("float32",), "a")
    if w.rank != 2:
        raise OpError(f"w: expected a matrix; got {w}")
    _bias(call, w.shape[1])
    return (a.with_shape(matmul_shape(a.shape, w.shape)),)


def _matmul(
    a: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    zero: np.ndarray | None = None,
    *,
    block: Block,
) -> np.ndarray:
    y = np.asarray(np.matmul(widen(a), widen(widened(w, scale, zero, block))))
    return np.asarray(y if b is None else y + b).astype(np.float32)


def _conv_infer(call: Call) -> Sequence[TensorType]:
    x, w = call.type(0), _check_weights(call, 1, 3)
    require_dtype(x, ("float32",), "x")
    y = conv_output(call, x, w)
    _bias(call, y[1])
    return (x.with_shape(y),)


def _conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    zero: np.ndarray | None = None,
    *,
    block: Block,
    **window: Any,
) -> np.ndarray:
    y = conv_columns(widen(x), widen(widened(w, scale, zero, block)), **window)
    return np.asarray(y if b is None else y + b.reshape(-1, *[1] * (y.ndim - 2))).astype(np.float32)


def _gather_infer(call: Call) -> Sequence[TensorType]:
    w, indices = _check_weights(call, 0, 2), call.type(1)
    require_dtype(indices, INDEX, "indices")
    axis = normalise_axis(call.attrs["axis"], w.rank)
    return (TensorType("float32", w.shape[:axis] + indices.shape + w.shape[axis + 1 :]),)


def _gather(
    w: np.ndarray,
    indices: np.ndarray,
    scale: np.ndarray | None = None,
    zero: np.ndarray | None = None,
    *,
    axis: int,
    block: Block,
) -> np.ndarray:
    return np.asarray(np.take(widened(w, scale, zero, block), indices, axis=axis))


# -- samples -------------------------------------------------------------------------------------------------------


def sample_weights(
    shape: Sequence[int], bits: int, block: Block, *, axis: int = 0, zero: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Random codes, scales (one for each block, or each element of ``axis``) and zero points."""
    rng = np.random.default_rng((seed, bits, *shape))
    least = -(1 << (bits - 1))
    codes = rng.integers(least, -least, shape).astype(np.int8)
    held = blocks_shape(shape, block) if block else tuple(d if i == axis else 1 for i, d in enumerate(shape))
    scale = (rng.uniform(0.5, 1.5, held) / -least).astype(np.float32)
    points = rng.integers(least, -least, held).astype(np.int8) if zero else None
    return codes, scale, points


def _matmul_cases() -> Iterable[Case]:
    for rows in (1, 3, 23):
        for bits, block in ((4, (0, 32)), (8, (0, 32)), (8, None)):
            w, scale, _ = sample_weights((80, 50), bits, block, axis=1)
            yield Case((f32(rows, 80), w, None, scale), {"block": block}, note=f"{bits} bits")
    for rows in (1, 40):
        w, scale, zero = sample_weights((70, 33), 4, (0, 16), zero=True)
        yield Case((f32(rows, 70), w, None, scale, zero), {"block": (0, 16)}, note="zero points")
    w, scale, _ = sample_weights((45, 40), 4, (1, 8))
    yield Case((f32(2, 9, 45), w, None, scale), {"block": (1, 8)}, note="blocks of columns")
    w, scale, _ = sample_weights((33, 20), 4, None, axis=1)
    yield Case((f32(33), w, f32(20), scale.astype(np.float16)), note="vector")
    for dtype in HALVES:
        for rows in (1, 9):
            yield Case((f32(rows, 37), _half(dtype, 37, 45)), note=dtype)


def _half(dtype: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(shape)
    return rng.uniform(-1, 1, shape).astype(numpy_dtype(dtype))


def _conv_case(x: Sequence[int], w: Sequence[int], bits: int, block: Block, zero: bool = False, **given: Any) -> Case:
    rank = len(x) - 2
    attrs = {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1, **given}
    codes, scale, points = sample_weights(w, bits, block, zero=zero)
    bias = None if zero else f32(w[0])
    return Case((f32(*x), codes, bias, scale, points), {**attrs, "block": block}, note=f"{bits} bits")


def _conv_cases() -> Iterable[Case]:
    yield _conv_case((1, 40, 7, 7), (50, 40, 1, 1), 4, (1, 32))
    yield _conv_case((1, 64, 1, 1), (24, 64, 1, 1), 4, (1, 32))
    yield _conv_case((2, 64, 5, 6), (33, 64, 1, 1), 8, (1, 64), zero=True)
    yield _conv_case((1, 24, 9, 10), (20, 24, 3, 3), 4, (1, 16), pads=(1, 1, 1, 1))
    yield _conv_case((1, 3, 15, 15), (16, 3, 3, 3), 4, None, pads=(1, 1, 1, 1), strides=(2, 2))
    yield _conv_case((1, 5, 9, 9), (7, 5, 3, 3), 8, (1, 4), zero=True)
    yield _conv_case((1, 32, 6, 6), (24, 16, 3, 3), 4, (1, 8), group=2, dilations=(2, 2), pads=(2, 2, 2, 2))
    yield _conv_case((1, 20, 9, 9), (20, 1, 3, 3), 4, None, group=20, pads=(1, 1, 1, 1))
    yield _conv_case((2, 16, 30), (8, 16, 4), 8, None, strides=(2,), pads=(1, 2))
    yield _conv_case((1, 4, 5, 6, 7), (6, 4, 3, 3, 3), 4, (1, 2), pads=(1, 1, 1, 1, 1, 1))
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    for dtype in HALVES:
        yield Case((f32(1, 8, 9, 9), _half(dtype, 12, 8, 3, 3), f32(12)), window, note=dtype)


def _gather_cases() -> Iterable[Case]:
    rows = np.array([[0, 3, -1], [5, 7, 2]], np.int64)
    for bits, block in ((4, (1, 16)), (8, (1, 16)), (8, None)):
        w, scale, _ = sample_weights((9, 40), bits, block)
        yield Case((w, rows, scale), {"block": block}, note=f"{bits} bits")
    w, scale, zero = sample_weights((9, 33), 4, (1, 32), zero=True)
    yield Case((w, t("int32", 2, 3), scale, zero), {"block": (1, 32)}, low=0, high=8, note="zero points")
    w, scale, _ = sample_weights((6, 9, 5), 4, (2, 2))
    yield Case((w, rows, scale), {"block": (2, 2), "axis": 1}, note="another axis")
    for dtype in HALVES:
        yield Case((_half(dtype, 9, 20), rows), note=dtype)


def _cost(output: Callable[[Call], Sequence[TensorType]], depth: Callable[[TensorType], float]) -> Any:
    return lambda call: Cost(2.0 * count(output(call)[0].shape) * depth(call.type(1)))


_WINDOW: Mapping[str, Any] = {"strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED}

OPS = (
    Op(
        "matmul_narrow",
        Kind.CONTRACTION,
        _matmul_infer,
        quiet(_matmul),
        "The product with a matrix that is stored narrow: of integers with scales, or of floats of 16 bits.",
        inputs=("a", "w", "b?", "scale?", "zero_point?"),
        attrs={"block": None},
        cost=_cost(_matmul_infer, lambda w: w.dims[0]),
        cases=_matmul_cases,
    ),
    Op(
        "conv_narrow",
        Kind.CONTRACTION,
        _conv_infer,
        quiet(_conv),
        "The convolution with weights that are stored narrow: integers with scales, or floats of 16 bits.",
        inputs=("x", "w", "b?", "scale?", "zero_point?"),
        attrs={**_WINDOW, "group": 1, "block": None},
        cost=_cost(_conv_infer, lambda w: count(w.shape[1:])),
        cases=_conv_cases,
    ),
    Op(
        "gather_narrow",
        Kind.OPAQUE,
        _gather_infer,
        quiet(_gather),
        "Slices of a table that is stored narrow, as float32.",
        inputs=("w", "indices", "scale?", "zero_point?"),
        attrs={"axis": 0, "block": None},
        cost=lambda call: Cost(2.0 * count(_gather_infer(call)[0].shape)),
        cases=_gather_cases,
    ),
)
