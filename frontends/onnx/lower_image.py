"""Resize, Upsample, GridSample, RoiAlign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...compiler.ir import Value
from ...compiler.types import TensorType
from ...errors import NervureError
from .context import Context, OnnxNode, Unsupported
from .registry import Lowered, lowers


def _floats(c: Context, value: Value | None, what: str) -> tuple[float, ...]:
    """A constant list of numbers; empty if absent."""
    return () if value is None else tuple(float(v) for v in c.need(value, what).reshape(-1))


@lowers("Upsample")
def upsample(c: Context, n: OnnxNode) -> Lowered:
    scales = tuple(n.attr("scales", ())) if n.version < 9 else _floats(c, n.input(1), "the scales")
    return _asymmetric(c, n, scales)


def _asymmetric(c: Context, n: OnnxNode, scales: Sequence[float]) -> Value:
    """Upsample and the first Resize: nearest rounds down where an axis grows and up where it shrinks."""
    x, mode = n.input(0), n.attr("mode", "nearest")
    _fits(c, n, x, scales)
    for nearest, chosen in (("floor", [s >= 1 for s in scales]), ("ceil", [s < 1 for s in scales])):
        part = [s if take else 1.0 for s, take in zip(scales, chosen, strict=True)]
        if any(s != 1.0 for s in part):
            shape = [math.floor(d * s) for d, s in zip(c.shape(x), part, strict=True)]
            x = _resize(c, x, shape, part, mode=mode, coordinate="asymmetric", nearest=nearest)
    return x


def _fits(c: Context, n: OnnxNode, x: Value, scales: Sequence[float]) -> None:
    if len(scales) != c.rank(x) or not all(0 < s < 1e9 for s in scales):
        raise NervureError(f"{len(scales)} scales for {c.type(x)}", where=n.path, why=str(list(scales)[:16]))


def _resize(c: Context, x: Value, shape: Sequence[int], scales: Sequence[float], *, mode: str, **attrs: Any) -> Value:
    modes = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "cubic": "cubic"}
    if mode not in modes:
        raise Unsupported(f"mode {mode!r}", "nearest, linear or cubic")
    return c.op("resize", x, shape=tuple(shape), scales=tuple(map(float, scales)), mode=modes[mode], **attrs)


@lowers("Resize")
def resize(c: Context, n: OnnxNode) -> Lowered:
    if n.version < 11:
        return _asymmetric(c, n, _floats(c, n.input(1), "the scales"))
    x = n.input(0)
    rank, dims = c.rank(x), c.shape(x)
    axes = [c.axis(a, rank) for a in n.attr("axes", tuple(range(rank)))]
    scales = _floats(c, n.optional(2), "the scales")
    sizes = c.ints(n.optional(3), "the sizes") if n.optional(3) is not None else ()
    if bool(scales) == bool(sizes) or len(scales or sizes) != len(axes):
        raise NervureError("Resize takes scales or sizes, one for each axis", where=n.path)
    if sizes:
        scales, sizes = _from_sizes(n, sizes, [dims[a] for a in axes])
    factor, shape = [1.0] * rank, list(dims)
    for i, axis in enumerate(axes):
        factor[axis] = scales[i]
        shape[axis] = sizes[i] if sizes else math.floor(dims[axis] * scales[i])
    _fits(c, n, x, factor)
    coordinate = n.attr("coordinate_transformation_mode", "half_pixel")
    roi = None
    if coordinate == "tf_crop_and_resize":
        given = _floats(c, n.input(1), "the region")
        starts, ends = [0.0] * rank, [1.0] * rank
        for i, axis in enumerate(axes):
            starts[axis], ends[axis] = given[i], given[len(axes) + i]
        roi = (*starts, *ends)
    return _resize(
        c,
        x,
        shape,
        factor,
        mode=n.attr("mode", "nearest"),
        coordinate=coordinate,
        nearest=n.attr("nearest_mode", "round_prefer_floor"),
        cubic_a=float(n.attr("cubic_coeff_a", -0.75)),
        exclude_outside=bool(n.attr("exclude_outside", 0)),
        extrapolation=float(n.attr("extrapolation_value", 0.0)),
        antialias=bool(n.attr("antialias", 0)),
        roi=roi,
    )


def _from_sizes(n: OnnxNode, sizes: Sequence[int], dims: Sequence[int]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scales and sizes under the aspect ratio policy."""
    scales = [s / d for s, d in zip(sizes, dims, strict=True)]
    policy = n.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return tuple(scales), tuple(sizes)
    scale = min(scales) if policy == "not_larger" else max(scales)
    return (scale,) * len(dims), tuple(math.floor(scale * d + 0.5) for d in dims)


@lowers("GridSample")
def grid_sample(c: Context, n: OnnxNode) -> Lowered:
    x, mode = n.input(0), n.attr("mode", "linear")
    modes = {"bilinear": "linear", "bicubic": "cubic"}
    return c.op(
        "grid_sample",
        x,
        c.cast(n.input(1), c.dtype(x)),
        mode=modes.get(mode, mode),
        padding=n.attr("padding_mode", "zeros"),
        align_corners=bool(n.attr("align_corners", 0)),
    )


@lowers("AffineGrid")
def affine_grid(c: Context, n: OnnxNode) -> Lowered:
    """Each place of the output grid (x, y[, z], 1) times the affine matrix of its batch row."""
    theta = n.input(0)
    batch, _, *space = c.ints(n.input(1), "the size of the grid")
    c.guard(TensorType("float64", (*space, len(space) + 1)))
    lines = [_grid_line(size, bool(n.attr("align_corners", 0))) for size in space]
    places = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(space)], axis=-1)
    points = c.const(places.reshape(-1, len(space) + 1), c.dtype(theta))
    grid = c.op("matmul", points, c.transpose(theta, (0, 2, 1)))
    return c.reshape(grid, (batch, *space, len(space)))


def _grid_line(size: int, corners: bool) -> np.ndarray:
    """Coordinates from -1 to 1: of the outermost elements' centres, or of the outer edges."""
    if corners:
        return np.linspace(-1.0, 1.0, size) if size > 1 else np.zeros(1)
    return (2.0 * np.arange(size) + 1.0) / size - 1.0


@lowers("RoiAlign")
def roi_align(c: Context, n: OnnxNode) -> Lowered:
    default = "half_pixel" if n.version >= 16 else "output_half_pixel"
    return c.op(
        "roi_align",
        n.input(0),
        n.input(1),
        n.input(2),
        mode=n.attr("mode", "avg"),
        output_height=n.attr("output_height", 1),
        output_width=n.attr("output_width", 1),
        sampling_ratio=n.attr("sampling_ratio", 0),
        spatial_scale=float(n.attr("spatial_scale", 1.0)),
        coordinate=n.attr("coordinate_transformation_mode", default),
    )
