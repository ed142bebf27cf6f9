"""Image operators: sampling at computed, fractional places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import TensorType, is_float
from .indexing import INDEX
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32
from .shapes import known, require_dtype, require_length, require_rank

# -- resize ------------------------------------------------------------------------------------------------------

RESIZE_MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Taps:
    """How one axis is resized: output i is the sum of ``weights[i, t]`` times input ``indices[i, t]``; where
    ``inside`` is false it is the extrapolation value."""

    indices: np.ndarray  # int64 [out, taps]
    weights: np.ndarray  # float64 [out, taps]
    inside: np.ndarray  # bool [out]


def resize_taps(size: int, out: int, axis: int, rank: int, attrs: Mapping[str, Any]) -> Taps | None:
    """The taps of ``axis``, from ``size`` to ``out`` elements, by the attributes of ``resize``; None where the axis
    stays as it is. Everything here is known at compile time."""
    scales, roi, coordinate = attrs["scales"], attrs["roi"], attrs["coordinate"]
    scale = np.float32(scales[axis] if scales is not None else out / size)
    crop = coordinate == "tf_crop_and_resize" and roi is not None
    start, end = (np.float32(roi[axis]), np.float32(roi[axis + rank])) if crop else (np.float32(0), np.float32(1))
    if size == out and scale == 1 and start == 0 and end == 1:
        return None
    at = _source(coordinate, size, out, scale, start, end)
    inside = np.ones(out, bool) if coordinate != "tf_crop_and_resize" else (at >= 0) & (at <= size - 1)
    if attrs["mode"] == "nearest":
        taps = _round(at, attrs["nearest"])[:, None]
        weights = np.ones((out, 1))
    else:
        kernel, radius = (_triangle, 1) if attrs["mode"] == "linear" else (_cubic(attrs["cubic_a"]), 2)
        shrink = min(float(scale), 1.0) if attrs["antialias"] else 1.0
        reach = math.ceil(radius / shrink)
        taps = np.floor(at).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
        weights = kernel(np.abs(taps - at[:, None].astype(np.float64)) * shrink)
        if attrs["exclude_outside"]:
            within = weights * ((taps >= 0) & (taps < size))
            weights = np.where(within.sum(axis=1, keepdims=True) == 0, weights, within)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return Taps(np.clip(taps, 0, size - 1), weights, inside)


def _source(coordinate: str, size: int, out: int, scale: np.float32, start: np.float32, end: np.float32) -> np.ndarray:
    """The input coordinate of each output one. In float32 as other runtimes do, so that ties fall alike."""
    half = np.float32(0.5)
    i = np.arange(out, dtype=np.float32)
    if coordinate == "half_pixel" or (coordinate == "pytorch_half_pixel" and out > 1):
        return (i + half) / scale - half
    if coordinate == "half_pixel_symmetric":
        adjusted = np.float32(out) / (scale * np.float32(size))
        offset = np.float32(size / 2) * (np.float32(1) - adjusted)
        return offset + (i + half) / scale - half
    if coordinate == "asymmetric":
        return i / scale
    if coordinate == "tf_half_pixel_for_nn":
        return (i + half) / scale
    if coordinate == "tf_crop_and_resize" and out == 1:
        return half * (start + end) * np.float32(size - 1) + i
    if out == 1:
        return i  # pytorch_half_pixel, align_corners
    last = np.float32(size - 1)
    if coordinate == "align_corners":
        return i * last / np.float32(out - 1)
    return start * last + i * (end - start) * last / np.float32(out - 1)


def _round(at: np.ndarray, how: str) -> np.ndarray:
    if how == "round_prefer_floor":
        rounded = np.ceil(at - np.float32(0.5))
    elif how == "round_prefer_ceil":
        rounded = np.floor(at + np.float32(0.5))
    else:
        rounded = np.floor(at) if how == "floor" else np.ceil(at)
    return np.asarray(rounded, np.int64)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - distance, 0))


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """The cubic convolution kernel (Keys 1981) over distances."""

    def kernel(d: np.ndarray) -> np.ndarray:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((d - 5) * d + 8) * d * a - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return kernel


def _resize_infer(call: Call) -> list[TensorType]:
    x, attrs = call.type(0), call.attrs
    for name, allowed in (("mode", RESIZE_MODES), ("coordinate", COORDINATES), ("nearest", NEAREST)):
        if attrs[name] not in allowed:
            raise OpError(f"{name} must be one of {', '.join(allowed)}; got {attrs[name]!r}")
    shape = tuple(attrs["shape"])
    require_length(shape, x.rank, "shape")
    if attrs["scales"] is not None:
        require_length(attrs["scales"], x.rank, "scales")
        if any(s <= 0 for s in attrs["scales"]):
            raise OpError(f"scales must be positive, got {attrs['scales']}")
    if attrs["roi"] is not None:
        require_length(attrs["roi"], 2 * x.rank, "roi (starts, then ends)")
    for size, out in zip(x.shape, shape, strict=True):
        if size != out and (known(size, "a resized axis") == 0 or known(out, "a resized axis") < 0):
            raise OpError(f"cannot resize {x} to {shape}")
    return [x.with_shape(shape)]


def _resize(x: np.ndarray, shape: Sequence[int], **attrs: Any) -> np.ndarray:
    if x.size == 0 or 0 in shape:
        return np.zeros(shape, x.dtype)
    y = x if attrs["mode"] == "nearest" else x.astype(np.float64)
    outside = np.zeros((1,) * x.ndim, bool)
    for axis in range(x.ndim):
        taps = resize_taps(x.shape[axis], shape[axis], axis, x.ndim, attrs)
        if taps is None:
            continue
        column = [1] * x.ndim
        column[axis] = shape[axis]
        outside = outside | ~taps.inside.reshape(column)
        if attrs["mode"] == "nearest":
            y = np.take(y, taps.indices[:, 0], axis=axis)
        else:
            pairs = zip(taps.indices.T, taps.weights.T, strict=True)
            y = sum(np.take(y, i, axis=axis) * w.reshape(column) for i, w in pairs)
    return np.where(outside, attrs["extrapolation"], y).astype(x.dtype) if outside.any() else y.astype(x.dtype)


def _resize_cost(call: Call) -> Cost:
    x = call.type(0)
    out = math.prod(call.attrs["shape"])
    if call.attrs["mode"] == "nearest":
        return Cost(0.0)
    changed = sum(1 for a, b in zip(x.shape, call.attrs["shape"], strict=True) if a != b)
    taps = 2 if call.attrs["mode"] == "linear" else 4
    return Cost(2.0 * out * taps**changed)


# -- grid_sample ---------------------------------------------------------------------------------------------------

PADDINGS = ("zeros", "border", "reflection")


def _grid_sample_infer(call: Call) -> list[TensorType]:
    x, grid = call.type(0), call.type(1)
    for name, allowed in (("mode", RESIZE_MODES), ("padding", PADDINGS)):
        if call.attrs[name] not in allowed:
            raise OpError(f"{name} must be one of {', '.join(allowed)}; got {call.attrs[name]!r}")
    spatial = x.rank - 2
    if spatial not in (2, 3) or grid.rank != x.rank or (grid.shape[0], grid.shape[-1]) != (x.shape[0], spatial):
        raise OpError(f"expected x [n,c,h,w] and grid [n,h',w',2], or one dimension more; got {x} and {grid}")
    if not is_float(grid.dtype):
        raise OpError(f"grid must be of floats, got {grid}")
    return [x.with_shape((x.shape[0], x.shape[1], *grid.shape[1:-1]))]


def _grid_sample(x: np.ndarray, grid: np.ndarray, mode: str, padding: str, align_corners: bool) -> np.ndarray:
    sizes = x.shape[2:]
    axes = [_grid_taps(grid[..., -1 - k], size, mode, padding, align_corners) for k, size in enumerate(sizes)]
    batch = np.arange(x.shape[0]).reshape(-1, *[1] * len(sizes))
    y = np.zeros((*grid.shape[:-1], x.shape[1]))
    for taps in itertools.product(*axes):
        weight = math.prod(w for _, w in taps)
        place: tuple[Any, ...] = (batch, slice(None), *(i for i, _ in taps))
        y += x[place] * np.asarray(weight)[..., None]
    return np.asarray(np.moveaxis(y, -1, 1), x.dtype)


def _grid_taps(
    grid: np.ndarray, size: int, mode: str, padding: str, align_corners: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(index, weight) of each tap along one axis, for every point of the grid."""
    g = grid.astype(np.float32) if grid.dtype.itemsize < 4 else grid
    at = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
    if mode == "nearest":
        at = np.rint(at)
    if mode != "cubic" or padding == "reflection":  # cubic at a border: each tap is bounded, not the place itself
        at = _bounded(at, size, padding, align_corners)
    at = np.clip(at, -4, size + 4)  # further out is as far out
    if mode == "nearest":
        taps = [(at, np.ones(at.shape))]
    else:
        base = np.floor(at)
        kernel, reach = (_triangle, 1) if mode == "linear" else (_cubic(-0.75), 2)
        taps = [(base + k, kernel(np.abs(base + k - at))) for k in range(1 - reach, reach + 1)]
    found = []
    for place, weight in taps:
        place = np.rint(_bounded(place, size, padding, align_corners)).astype(np.int64)
        found.append((np.clip(place, 0, size - 1), weight * ((place >= 0) & (place < size))))
    return found


def _bounded(at: np.ndarray, size: int, padding: str, align_corners: bool) -> np.ndarray:
    if padding == "border":
        return np.asarray(np.clip(at, 0, size - 1))
    if padding == "reflection":
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if span == 0:
            return np.zeros_like(at)
        beyond = np.abs(at - low) % (2 * span)
        return np.where((at < low) | (at > low + span), low + np.minimum(beyond, 2 * span - beyond), at)
    return at


def _grid_sample_cost(call: Call) -> Cost:
    x, grid = call.type(0), call.type(1)
    taps = {"nearest": 0, "linear": 2, "cubic": 4}[call.attrs["mode"]]
    return Cost(2.0 * grid.size / (x.rank - 2) * x.dims[1] * taps ** (x.rank - 2))


# -- roi_align -----------------------------------------------------------------------------------------------------


def _roi_align_infer(call: Call) -> list[TensorType]:
    x, rois, batch = call.type(0), call.type(1), call.type(2)
    require_rank(x, 4, 4, "x")
    require_dtype(batch, INDEX, "batch_indices")
    if rois.shape != (*batch.shape, 4) or batch.rank != 1 or rois.dtype != x.dtype:
        raise OpError(f"expected rois [n,4] like x and batch_indices [n], got {x}, {rois} and {batch}")
    for name, allowed in (("mode", ("avg", "max")), ("coordinate", ("half_pixel", "output_half_pixel"))):
        if call.attrs[name] not in allowed:
            raise OpError(f"{name} must be one of {', '.join(allowed)}; got {call.attrs[name]!r}")
    if min(call.attrs["output_height"], call.attrs["output_width"]) < 1 or call.attrs["sampling_ratio"] < 0:
        raise OpError("output_height and output_width must be positive, sampling_ratio not negative")
    return [x.with_shape((*batch.shape, x.shape[1], call.attrs["output_height"], call.attrs["output_width"]))]


def _roi_align(
    x: np.ndarray,
    rois: np.ndarray,
    batch_indices: np.ndarray,
    mode: str,
    output_height: int,
    output_width: int,
    sampling_ratio: int,
    spatial_scale: float,
    coordinate: str,
) -> np.ndarray:
    offset = np.float32(0.5 if coordinate == "half_pixel" else 0)
    places = rois.astype(np.float32) * np.float32(spatial_scale) - offset
    out = np.zeros((len(rois), x.shape[1], output_height, output_width), x.dtype)
    for r, (x1, y1, x2, y2) in enumerate(places):
        smallest = np.float32(-np.inf if coordinate == "half_pixel" else 1)
        rows = _roi_taps(y1, max(y2 - y1, smallest), output_height, x.shape[2], sampling_ratio)
        columns = _roi_taps(x1, max(x2 - x1, smallest), output_width, x.shape[3], sampling_ratio)
        image = x[batch_indices[r]].astype(np.float64)
        out[r] = _roi_pool(image, rows, columns, mode)
    return out


def _roi_taps(start: np.float32, length: np.float32, bins: int, size: int, sampling_ratio: int) -> np.ndarray:
    """Interpolation weights [bins, samples, 2 taps, size] along one axis; zero for samples off the image."""
    step = length / np.float32(bins)
    samples = sampling_ratio or max(int(np.ceil(step)), 0)
    inner = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * step / np.float32(max(samples, 1))
    at = start + np.arange(bins, dtype=np.float32)[:, None] * step + inner
    on = (at >= -1) & (at <= size)
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    part = (at - low).astype(np.float64)
    taps = [(low, (1 - part) * on), (high, part * on)]
    return np.stack([np.eye(size)[index] * weight[..., None] for index, weight in taps], axis=2)


def _roi_pool(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """[c, h, w] by rows [p, i, 2, h] and columns [q, j, 2, w] to [c, p, q]."""
    if rows.shape[1] * columns.shape[1] == 0:
        return np.zeros((image.shape[0], rows.shape[0], columns.shape[0]))
    taps = np.einsum("piah,chw,qjbw->cpqijab", rows, image, columns, optimize=True)
    pooled = taps.sum(axis=(5, 6)).mean(axis=(3, 4)) if mode == "avg" else taps.max(axis=(3, 4, 5, 6))
    return np.asarray(pooled)


def _roi_align_cost(call: Call) -> Cost:
    samples = max(call.attrs["sampling_ratio"], 1) ** 2
    outputs = call.type(1).dims[0] * call.type(0).dims[1] * call.attrs["output_height"] * call.attrs["output_width"]
    return Cost(8.0 * outputs * samples)


# -- cases ---------------------------------------------------------------------------------------------------------


def _resize_cases() -> Iterator[Case]:
    x = (f32(1, 2, 5, 6),)
    for shape in [(1, 2, 10, 12), (1, 2, 3, 4), (1, 2, 7, 3)]:
        for mode in RESIZE_MODES:
            for coordinate in COORDINATES[:5]:
                yield Case(x, {"shape": shape, "mode": mode, "coordinate": coordinate})
    for nearest in NEAREST:
        yield Case(x, {"shape": (1, 2, 8, 9), "nearest": nearest, "coordinate": "asymmetric"})
    scales = (1.0, 1.0, 1.7, 0.6)
    for mode in RESIZE_MODES:
        yield Case(x, {"shape": (1, 2, 8, 3), "scales": scales, "mode": mode}, note="not a whole size")
    for mode in ("linear", "cubic"):
        yield Case(x, {"shape": (1, 2, 3, 4), "mode": mode, "antialias": True})
        yield Case(x, {"shape": (1, 2, 2, 9), "mode": mode, "antialias": True, "exclude_outside": True})
    yield Case(x, {"shape": (1, 2, 9, 9), "mode": "cubic", "exclude_outside": True, "cubic_a": -0.5})
    crop = {"coordinate": "tf_crop_and_resize", "roi": (0, 0, 0.2, -0.3, 1, 1, 0.7, 1.2), "extrapolation": 9.5}
    for mode in RESIZE_MODES:
        yield Case(x, {"shape": (1, 2, 4, 7), "mode": mode, **crop})
    yield Case((f32(1, 1, 3, 4, 3),), {"shape": (1, 1, 6, 2, 5), "mode": "linear"}, note="three axes")
    yield Case((f32(1, 2, 8),), {"shape": (1, 2, 5), "mode": "linear"}, note="one axis")


def _grid_sample_cases() -> Iterator[Case]:
    for mode in RESIZE_MODES:
        for padding in PADDINGS:
            for align in (False, True):
                attrs = {"mode": mode, "padding": padding, "align_corners": align}
                yield Case((f32(2, 3, 5, 6), f32(2, 4, 3, 2)), attrs)
                yield Case((f32(1, 2, 4, 3, 5), f32(1, 2, 3, 2, 3)), attrs)


def _roi_align_cases() -> Iterator[Case]:
    rois = np.array([[0, 0, 9, 9], [1.5, 2.5, 7, 5.25], [-3, 4, 14, 8], [5, 5, 5.5, 5.5]], np.float32)
    batch = np.array([0, 1, 1, 0], np.int64)
    for mode in ("avg", "max"):
        for coordinate in ("half_pixel", "output_half_pixel"):
            for ratio in (0, 2):
                attrs = {"mode": mode, "coordinate": coordinate, "sampling_ratio": ratio, "spatial_scale": 0.8}
                yield Case((f32(2, 3, 10, 8), rois, batch), {"output_height": 3, "output_width": 2, **attrs})


OPS = (
    Op(
        "resize",
        Kind.INJECTIVE,
        _resize_infer,
        _resize,
        doc="x interpolated to shape, axis by axis (ONNX Resize 19); integers are cut off towards zero.",
        attrs={
            "shape": REQUIRED,
            "scales": None,  # default: shape over x's
            "mode": "nearest",
            "coordinate": "half_pixel",
            "nearest": "round_prefer_floor",
            "cubic_a": -0.75,
            "exclude_outside": False,
            "extrapolation": 0.0,
            "antialias": False,
            "roi": None,  # starts, then ends, as parts of x's size; all axes
        },
        cost=_resize_cost,
        cases=_resize_cases,
    ),
    Op(
        "grid_sample",
        Kind.OPAQUE,
        _grid_sample_infer,
        _grid_sample,
        doc="x at the normalised places in grid, last axis (x, y[, z]) in [-1, 1] (ONNX GridSample 20).",
        inputs=("x", "grid"),
        attrs={"mode": "linear", "padding": "zeros", "align_corners": False},
        cost=_grid_sample_cost,
        cases=_grid_sample_cases,
    ),
    Op(
        "roi_align",
        Kind.OPAQUE,
        _roi_align_infer,
        _roi_align,
        doc="Each region (x1, y1, x2, y2) of x pooled from interpolated samples (ONNX RoiAlign 16; max is over the "
        "weighted corners of the samples, as ONNX's reference has it).",
        inputs=("x", "rois", "batch_indices"),
        attrs={
            "mode": "avg",
            "output_height": 1,
            "output_width": 1,
            "sampling_ratio": 0,
            "spatial_scale": 1.0,
            "coordinate": "half_pixel",
        },
        cost=_roi_align_cost,
        cases=_roi_align_cases,
    ),
)
