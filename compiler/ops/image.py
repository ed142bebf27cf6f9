"""Image operators: sampling at fractional places, known at compile time (``resize``) or data (``regions``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import TensorType
from . import regions
from .channels_moved import RESIZE
from .gradient import Call as Grad
from .gradient import Sym
from .interpolation import MODES, cubic, triangle
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32
from .shapes import known, require_length

# -- resize ------------------------------------------------------------------------------------------------------

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
        kernel, radius = (triangle, 1) if attrs["mode"] == "linear" else (cubic(attrs["cubic_a"]), 2)
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


def _resize_infer(call: Call) -> list[TensorType]:
    x, attrs = call.type(0), call.attrs
    for name, allowed in (("mode", MODES), ("coordinate", COORDINATES), ("nearest", NEAREST)):
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


def _resize_gradient(c: Grad) -> list[Sym]:
    """Each axis is a constant matrix [out, size]; elements that were only repeated are summed, all axes at once."""
    if 0 in (*c.g.shape, *c.x.shape):
        return [c.x.zeros()]
    g, pairs = c.g, []
    for axis, (size, out) in enumerate(zip(c.x.shape, c.g.shape, strict=True)):
        taps = resize_taps(size, out, axis, c.x.rank, c.attrs)
        times = 1
        if taps is not None:
            matrix = np.zeros((out, size))
            np.add.at(matrix, (np.arange(out)[:, None], taps.indices), taps.weights * taps.inside[:, None])
            if np.array_equal(matrix, np.repeat(np.eye(size), out // size, axis=0)):
                times = out // size
            else:
                g = g.along(axis, matrix)
        pairs += [size, times]
    repeated = [i for i in range(1, len(pairs), 2) if pairs[i] > 1]
    return [g.reshape(pairs).sum(repeated).reshape(c.x.shape)]


def _resize_cost(call: Call) -> Cost:
    x = call.type(0)
    out = math.prod(call.attrs["shape"])
    if call.attrs["mode"] == "nearest":
        return Cost(0.0)
    changed = sum(1 for a, b in zip(x.shape, call.attrs["shape"], strict=True) if a != b)
    taps = 2 if call.attrs["mode"] == "linear" else 4
    return Cost(2.0 * out * taps**changed)


# -- cases ---------------------------------------------------------------------------------------------------------


def _resize_cases() -> Iterator[Case]:
    x = (f32(1, 2, 5, 6),)
    for shape in [(1, 2, 10, 12), (1, 2, 3, 4), (1, 2, 7, 3)]:
        for mode in MODES:
            for coordinate in COORDINATES[:5]:
                yield Case(x, {"shape": shape, "mode": mode, "coordinate": coordinate})
    for nearest in NEAREST:
        yield Case(x, {"shape": (1, 2, 8, 9), "nearest": nearest, "coordinate": "asymmetric"})
    scales = (1.0, 1.0, 1.7, 0.6)
    for mode in MODES:
        yield Case(x, {"shape": (1, 2, 8, 3), "scales": scales, "mode": mode}, note="not a whole size")
    for mode in ("linear", "cubic"):
        yield Case(x, {"shape": (1, 2, 3, 4), "mode": mode, "antialias": True})
        yield Case(x, {"shape": (1, 2, 2, 9), "mode": mode, "antialias": True, "exclude_outside": True})
    yield Case(x, {"shape": (1, 2, 9, 9), "mode": "cubic", "exclude_outside": True, "cubic_a": -0.5})
    crop = {"coordinate": "tf_crop_and_resize", "roi": (0, 0, 0.2, -0.3, 1, 1, 0.7, 1.2), "extrapolation": 9.5}
    for mode in MODES:
        yield Case(x, {"shape": (1, 2, 4, 7), "mode": mode, **crop})
    yield Case((f32(1, 1, 3, 4, 3),), {"shape": (1, 1, 6, 2, 5), "mode": "linear"}, note="three axes")
    yield Case((f32(1, 2, 8),), {"shape": (1, 2, 5), "mode": "linear"}, note="one axis")


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
        gradient=_resize_gradient,
        channels=RESIZE,
    ),
    *regions.OPS,
)
