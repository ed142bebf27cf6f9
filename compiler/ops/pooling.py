"""Pooling over sliding windows: the largest and the mean. Global pools are reductions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .channels import POOL
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import lowest, quiet, widen
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import t
from .shapes import FLOATS, NUMBERS, count, known, require_dtype, require_same_dtype, require_shape, window_extent
from .windows import output_extents, pad_spatial, padding_for, spatial_rank, taps


def _pool_infer(call: Call, accepts: frozenset[str]) -> TensorType:
    x, attrs = call.type(0), call.attrs
    require_dtype(x, accepts, "x")
    spatial_rank(x, attrs, ("kernel_shape", "strides", "dilations"))
    extents = [known(d, "spatial axis") for d in x.shape[2:]]
    spans = [window_extent(k, d) for k, d in zip(attrs["kernel_shape"], attrs["dilations"], strict=True)]
    if any(p >= s for p, s in zip(attrs["pads"], spans * 2, strict=True)):
        # A window of nothing but padding has no largest element and no mean.
        raise OpError(f"pads: expected less than the window's extent {tuple(spans)}; got {tuple(attrs['pads'])}")
    window = (attrs["kernel_shape"], attrs["strides"], attrs["pads"], attrs["dilations"], attrs["ceil_mode"])
    return x.with_shape((*x.shape[:2], *output_extents(extents, *window)))


def _max_pool_infer(call: Call) -> Sequence[TensorType]:
    y = _pool_infer(call, NUMBERS)
    return (y, y.with_dtype("int64")) if call.attrs["indices"] else (y,)


def _max_pool(
    x: np.ndarray,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool,
    indices: bool,
) -> Any:
    outputs = output_extents(x.shape[2:], kernel_shape, strides, pads, dilations, ceil_mode)
    reach = padding_for(x.shape[2:], outputs, kernel_shape, strides, pads, dilations)
    padded = pad_spatial(x, reach, lowest(x.dtype))
    flat = pad_spatial(np.arange(x.size, dtype=np.int64).reshape(x.shape), reach, -1) if indices else None
    best = np.full((*x.shape[:2], *outputs), lowest(x.dtype), x.dtype)
    where = np.full(best.shape, -1, np.int64)
    for _, cut in taps(kernel_shape, outputs, strides, dilations):
        if flat is not None:
            better = (flat[cut] >= 0) & ((padded[cut] > best) | (where < 0))
            where = np.where(better, flat[cut], where)
        best = np.maximum(best, padded[cut])
    return (best, where) if indices else best


def _max_pool_grad_infer(call: Call) -> Sequence[TensorType]:
    x, g = call.type(0), call.type(1)
    require_same_dtype(x, g, ("x", "g"))
    require_shape(g, _pool_infer(call, FLOATS).shape, "g")
    return (x,)


def _max_pool_grad(x: np.ndarray, g: np.ndarray, **window: Any) -> np.ndarray:
    _, where = _max_pool(x, **window, indices=True)
    total = np.zeros(x.size)
    np.add.at(total, where.ravel(), widen(g).ravel())
    return total.reshape(x.shape).astype(x.dtype)


def _max_pool_gradient(c: Grad) -> list[Sym]:
    return [c.x.op("max_pool_grad", c.g, **{name: c.attrs[name] for name in _WINDOW})]


def _max_pool_grad_gradient(c: Grad) -> list[Sym | None]:
    """Nothing to x, which only chooses; to g what arrives at the chosen places."""
    _, chosen = c.x.ops("max_pool", **c.attrs, indices=True)
    return [None, c.g.reshape((c.g.type.size,)).op("gather", chosen, axis=0)]


def _avg_pool_infer(call: Call) -> Sequence[TensorType]:
    return (_pool_infer(call, FLOATS),)


def _avg_pool(
    x: np.ndarray,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> np.ndarray:
    outputs = output_extents(x.shape[2:], kernel_shape, strides, pads, dilations, ceil_mode)
    reach = padding_for(x.shape[2:], outputs, kernel_shape, strides, pads, dilations)
    padded = pad_spatial(widen(x), reach, 0.0)
    total = np.zeros((*x.shape[:2], *outputs))
    for _, cut in taps(kernel_shape, outputs, strides, dilations):
        total += padded[cut]
    number = _counted(x.shape[2:], kernel_shape, strides, pads, dilations, ceil_mode, count_include_pad)
    return np.asarray(total / number).astype(x.dtype)


def _counted(
    extents: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> np.ndarray:
    """How many elements each window's mean is over: those of x, and of the declared padding if asked for, never the
    overhang of ceil_mode."""
    outputs = output_extents(extents, kernel_shape, strides, pads, dilations, ceil_mode)
    reach = padding_for(extents, outputs, kernel_shape, strides, pads, dilations)
    counted = np.ones(extents)
    if count_include_pad:
        counted = pad_spatial(counted, pads, 1.0)
        reach = [r - p for r, p in zip(reach, pads, strict=True)]  # type: ignore[assignment]
    counted = pad_spatial(counted, reach, 0.0)
    number = np.zeros(outputs)
    for _, cut in taps(kernel_shape, outputs, strides, dilations):
        number += counted[cut]
    return number


def _avg_pool_gradient(c: Grad) -> list[Sym]:
    """Each window's share, spread over the window."""
    extents, attrs, channels = c.x.shape[2:], c.attrs, c.x.shape[1]
    kernel, strides, dilations = attrs["kernel_shape"], attrs["strides"], attrs["dilations"]
    number = _counted(extents, **attrs)
    share = c.g * (1 / number if np.ptp(number) else 1 / float(number.flat[0]))
    spans = [window_extent(k, d) for k, d in zip(kernel, dilations, strict=True)]
    tiles = [n * k for n, k in zip(c.g.shape[2:], kernel, strict=True)]
    if tuple(spans) == tuple(strides) == tuple(kernel) and tuple(tiles) == extents and not any(attrs["pads"]):
        return [_tiled(share, kernel)]
    pads = padding_for(extents, c.g.shape[2:], kernel, strides, attrs["pads"], dilations)
    rank = len(kernel)
    rows = zip(extents, c.g.shape[2:], strides, spans, pads[:rank], pads[rank:], strict=True)
    rest = tuple(e + begin + end - (n - 1) * stride - span for e, n, stride, span, begin, end in rows)
    ones = share.constant(np.ones((channels, 1, *kernel)))
    window = {"strides": strides, "pads": pads, "dilations": dilations, "group": channels}
    return [share.op("conv_transpose", ones, **window, output_padding=rest)]


def _tiled(x: Sym, kernel: Sequence[int]) -> Sym:
    """Each element at every place of its window, where windows tile the input."""
    single, full, joined = [*x.shape[:2]], [*x.shape[:2]], [*x.shape[:2]]
    for extent, size in zip(x.shape[2:], kernel, strict=True):
        single += [extent, 1]
        full += [extent, size]
        joined += [extent * size]
    return x.reshape(single).expand(full).reshape(joined)


def _pool_cost(call: Call) -> Cost:
    return Cost(count(_pool_infer(call, NUMBERS).shape) * math.prod(call.attrs["kernel_shape"]))


def _pool_case(x: Sequence[int], kernel: Sequence[int], dtype: str = "float32", **given: Any) -> Case:
    """A pool with stride 1 and without padding and dilation, unless given."""
    rank = len(kernel)
    attrs = {"kernel_shape": tuple(kernel), "strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank}
    return Case((t(dtype, *x),), {**attrs, **given}, low=-9 if dtype != "float32" else -2, high=9)


def _pool_cases() -> Iterable[Case]:
    yield _pool_case((1, 3, 8, 8), (2, 2), strides=(2, 2))
    yield _pool_case((1, 4, 13, 12), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    yield _pool_case((2, 3, 9, 7), (3, 2), pads=(0, 1, 2, 0))
    yield _pool_case((1, 3, 11, 11), (3, 3), strides=(2, 2), ceil_mode=True)
    yield _pool_case((1, 2, 10, 10), (3, 3), strides=(2, 2), ceil_mode=True)
    yield _pool_case((1, 2, 6, 6), (3, 3), strides=(3, 3), pads=(1, 1, 1, 1), ceil_mode=True)
    yield _pool_case((1, 2, 5, 5), (1, 1), strides=(3, 3), ceil_mode=True)
    yield _pool_case((1, 2, 12, 12), (3, 2), dilations=(2, 3))
    yield _pool_case((2, 3, 17), (4,), strides=(3,), pads=(2, 1))
    yield _pool_case((1, 2, 6, 5, 7), (2, 3, 2), strides=(2, 1, 2), pads=(0, 1, 1, 0, 1, 0))
    yield _pool_case((1, 2, 6, 6), (2, 2), dtype="float64")


def _max_pool_cases() -> Iterable[Case]:
    for case in _pool_cases():
        yield case
        yield Case(case.inputs, {**case.attrs, "indices": True}, case.low, case.high)
    yield _pool_case((1, 3, 8, 8), (3, 3), dtype="uint8", strides=(2, 2), pads=(1, 1, 1, 1))
    yield _pool_case((1, 3, 8, 8), (2, 2), dtype="int8", indices=True)


def _max_pool_grad_cases() -> Iterable[Case]:
    for case in _pool_cases():
        (x,) = case.inputs
        assert isinstance(x, TensorType)
        attrs = {"ceil_mode": False, **case.attrs}
        yield Case((x, _pool_infer(Call((x,), attrs), FLOATS)), attrs, case.low, case.high)
    ties = np.array([[[[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 2, 2], [0, 0, 2, 2]]]], np.float32)
    attrs = {"kernel_shape": (2, 2), "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    yield Case((ties, t("float32", 1, 1, 3, 3)), attrs, note="ties")


def _avg_pool_cases() -> Iterable[Case]:
    for case in _pool_cases():
        yield case
        yield Case(case.inputs, {**case.attrs, "count_include_pad": True}, case.low, case.high)


_WINDOW = {"kernel_shape": REQUIRED, "strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED, "ceil_mode": False}

OPS = (
    Op(
        "max_pool",
        Kind.CONTRACTION,
        _max_pool_infer,
        quiet(_max_pool),
        "The largest of each window; with indices also its flat position in x (ONNX MaxPool, storage order 0).",
        attrs={**_WINDOW, "indices": False},
        cost=_pool_cost,
        cases=_max_pool_cases,
        gradient=_max_pool_gradient,
        channels=POOL,
    ),
    Op(
        "max_pool_grad",
        Kind.CONTRACTION,
        _max_pool_grad_infer,
        quiet(_max_pool_grad),
        "The gradient of max_pool's x from its output's gradient g: each goes to the first largest of its window.",
        inputs=("x", "g"),
        attrs=_WINDOW,
        cost=_pool_cost,
        cases=_max_pool_grad_cases,
        gradient=_max_pool_grad_gradient,
    ),
    Op(
        "avg_pool",
        Kind.CONTRACTION,
        _avg_pool_infer,
        quiet(_avg_pool),
        "The mean of each window, over elements of x and, with count_include_pad, of its padding (ONNX AveragePool).",
        attrs={**_WINDOW, "count_include_pad": False},
        cost=_pool_cost,
        cases=_avg_pool_cases,
        gradient=_avg_pool_gradient,
        channels=POOL,
    ),
)
