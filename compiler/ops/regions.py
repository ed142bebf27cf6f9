"""Image operators that sample at places that are data, and the forms of them that are differentiated.

Their ``training`` forms say the same in gathers, products and elementwise work: what autodiff knows to turn round.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import NervureError
from ..types import TensorType, is_float
from .channels_moved import SAMPLED
from .gradient import Call as Grad
from .gradient import Sym
from .indexing import INDEX
from .interpolation import MODES, cubic, triangle
from .record import Call, Case, Cost, Kind, Op, OpError
from .sampling import f32
from .shapes import require_dtype, require_rank

# -- as gathers: indices and weights of the taps along each axis, then their products ---------------------------


def _outer(a: Sym, b: Sym) -> tuple[Sym, Sym]:
    """Two lots of taps [..., s] and [..., t] so that they meet as [..., s, t]."""
    return a.reshape([*a.shape, 1]), b.reshape([*b.shape[:-1], 1, b.shape[-1]])


def _flat(pairs: Sym) -> Sym:
    """[..., s, t] as [..., s t]."""
    return pairs.reshape([*pairs.shape[:-2], pairs.shape[-2] * pairs.shape[-1]])


def _tap_products(x: Sym, image: Sym, axes: Sequence[tuple[Sym, Sym]]) -> Sym:
    """x [n, c, spatial...] at every combination of taps, times its weights: [..., taps, c]. ``image`` holds indices in
    [0, n) that broadcast against those of ``axes``, one pair (indices, weights) [..., taps] a spatial axis."""
    at, weight = image, None
    for size, (indices, weights) in zip(x.shape[2:], axes, strict=True):
        here, there = _outer(at * size, indices)
        at = _flat(here + there)
        if weight is None:
            weight = weights
        else:
            first, second = _outer(weight, weights)
            weight = _flat(first * second)
    assert weight is not None
    rows = x.transpose((0, *range(2, x.rank), 1)).reshape((-1, x.shape[1]))
    return rows.op("gather", at, axis=0) * weight.cast(x.dtype).reshape((*at.shape, 1))


def _channels_second(pooled: Sym, shape: Sequence[int]) -> Sym:
    """[n, ..., c] as [n, c, ...]."""
    return pooled.transpose((0, pooled.rank - 1, *range(1, pooled.rank - 1))).reshape(shape)


# -- grid_sample ---------------------------------------------------------------------------------------------------

PADDINGS = ("zeros", "border", "reflection")


def _grid_sample_infer(call: Call) -> list[TensorType]:
    x, grid = call.type(0), call.type(1)
    for name, allowed in (("mode", MODES), ("padding", PADDINGS)):
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
        kernel, reach = (triangle, 1) if mode == "linear" else (cubic(_A), 2)
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


def _grid_sample_training(c: Grad) -> list[Sym]:
    x, grid, attrs = c.x, c.input(1), c.attrs
    if 0 in c.y.shape:
        return [c.y.zeros()]
    grid = grid if grid.dtype in ("float32", "float64") else grid.cast("float32")
    axes = []
    for k, size in enumerate(x.shape[2:]):
        last = grid.shape[-1] - 1 - k
        g = grid.cut((*[0] * (grid.rank - 1), last), (*grid.shape[:-1], last + 1))
        axes.append(_grid_axis(g, size, attrs["mode"], attrs["padding"], attrs["align_corners"]))
    image = c.x.constant(np.arange(x.shape[0]).reshape(-1, *[1] * (grid.rank - 1)), "int32")
    products = _tap_products(x, image.expand((*grid.shape[:-1], 1)), axes)
    return [_channels_second(products.sum([products.rank - 2]), c.y.shape)]


def _grid_axis(g: Sym, size: int, mode: str, padding: str, align_corners: bool) -> tuple[Sym, Sym]:
    """Indices and weights [..., taps] along one axis for the normalised places g [..., 1]: ``_grid_taps`` with weights
    that are polynomials of the way from the first tap, whose slopes are right on the taps themselves too."""
    at = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
    if mode == "nearest":
        at = at.op("round")
    if mode != "cubic" or padding == "reflection":
        at = _kept(at, size, padding, align_corners)
    at = at.op("clip", low=-4, high=size + 4)
    coefficients = {"nearest": _NEAREST, "linear": _LINEAR, "cubic": _CUBIC}[mode]
    base = at if mode == "nearest" else at.op("floor")
    part, taps = at - base, coefficients.shape[1]
    weights = part.constant(coefficients[-1])
    for row in coefficients[-2::-1]:
        weights = weights * part + part.constant(row)
    place = base + base.constant(np.arange(taps) - (taps - 1) // 2)
    place = _kept(place, size, padding, align_corners).op("round")
    on = (place >= 0).op("logical_and", place < size)
    weights = on.where(weights.expand(place.shape), 0)
    return place.op("clip", low=0, high=size - 1).cast("int32"), weights


def _kept(at: Sym, size: int, padding: str, align_corners: bool) -> Sym:
    """``_bounded``."""
    if padding == "border":
        return at.op("clip", low=0, high=size - 1)
    if padding == "reflection":
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if span == 0:
            return at.zeros()
        beyond = (at - low).op("abs").op("mod", at.constant(2 * span))
        turned = beyond.op("minimum", 2 * span - beyond) + low
        return (at < low).op("logical_or", at > low + span).where(turned, at)
    return at


_A = -0.75  # of the cubic kernel; the columns of these are taps, the rows powers of the way from the first one
_NEAREST = np.array([[1.0]])
_LINEAR = np.array([[1.0, 0.0], [-1.0, 1.0]])
_CUBIC = np.array(
    [[0, 1, 0, 0], [_A, 0, -_A, 0], [-2 * _A, -_A - 3, 2 * _A + 3, _A], [_A, _A + 2, -_A - 2, -_A]],
)


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
    exact: Any = np.float64 if rois.dtype == np.float64 else np.float32
    places = rois.astype(exact) * exact(spatial_scale) - exact(0.5 if coordinate == "half_pixel" else 0)
    out = np.zeros((len(rois), x.shape[1], output_height, output_width), x.dtype)
    for r, (x1, y1, x2, y2) in enumerate(places):
        smallest = exact(-np.inf if coordinate == "half_pixel" else 1)
        rows = _roi_taps(y1, max(y2 - y1, smallest), output_height, x.shape[2], sampling_ratio)
        columns = _roi_taps(x1, max(x2 - x1, smallest), output_width, x.shape[3], sampling_ratio)
        image = x[batch_indices[r]].astype(np.float64)
        out[r] = _roi_pool(image, rows, columns, mode)
    return out


def _roi_taps(start: Any, length: Any, bins: int, size: int, sampling_ratio: int) -> np.ndarray:
    """Interpolation weights [bins, samples, 2 taps, size] along one axis; zero for samples off the image."""
    exact = start.dtype.type
    step = length / exact(bins)
    samples = sampling_ratio or max(int(np.ceil(step)), 0)
    inner = (np.arange(samples, dtype=exact) + exact(0.5)) * step / exact(max(samples, 1))
    at = start + np.arange(bins, dtype=exact)[:, None] * step + inner
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


def _roi_align_training(c: Grad) -> list[Sym]:
    x, rois, attrs, half = c.x, c.input(1), c.attrs, c.attrs["coordinate"] == "half_pixel"
    samples, bins = attrs["sampling_ratio"], (attrs["output_height"], attrs["output_width"])
    if samples == 0:
        raise NervureError(
            "roi_align without a sampling ratio is not trained",
            where=x.origin,
            why="the number of its samples depends on the regions",
            hint="give it a sampling ratio, or freeze what lies before it",
        )
    if 0 in c.y.shape:
        return [c.y.zeros()]
    places = (rois if rois.dtype in ("float32", "float64") else rois.cast("float32")) * attrs["spatial_scale"]
    x1, y1, x2, y2 = ((places - (0.5 if half else 0)).cut((0, i), (places.shape[0], i + 1)) for i in range(4))
    axes = []
    for k, (low, high) in enumerate(((y1, y2), (x1, x2))):
        length = high - low if half else (high - low).op("clip", low=1)
        taps = _roi_axis(low, length, bins[k], x.shape[2 + k], samples)
        lead = (low.shape[0], bins[0], 1) if k == 0 else (low.shape[0], 1, bins[1])
        axes.append((taps[0].reshape((*lead, -1)), taps[1].reshape((*lead, -1))))
    image = c.input(2).cast("int32").reshape((places.shape[0], 1, 1, 1))
    products = _tap_products(x, image, axes)
    pooled = products.sum([3]) * (1 / samples**2) if attrs["mode"] == "avg" else products.op("reduce_max", axes=(3,))
    return [_channels_second(pooled, c.y.shape)]


def _roi_axis(start: Sym, length: Sym, bins: int, size: int, samples: int) -> tuple[Sym, Sym]:
    """Indices and weights [rois, bins, samples, 2 taps] along one axis: ``_roi_taps`` without its zeros."""
    column, step = (start.shape[0], 1, 1, 1), (length / bins).reshape((-1, 1, 1, 1))
    inner = (step.constant(np.arange(samples) + 0.5).reshape((samples, 1)) * step) / samples
    at = start.reshape(column) + step.constant(np.arange(bins)).reshape((bins, 1, 1)) * step + inner
    on = (at >= -1).op("logical_and", at <= size)
    at = at.op("clip", low=0, high=size - 1)
    low = at.op("floor")
    part, high = at - low, (low + 1).op("clip", high=size - 1)
    return low.concat(high).cast("int32"), on.where(1 - part, 0).concat(on.where(part, 0))


def _roi_align_cost(call: Call) -> Cost:
    samples = max(call.attrs["sampling_ratio"], 1) ** 2
    outputs = call.type(1).dims[0] * call.type(0).dims[1] * call.attrs["output_height"] * call.attrs["output_width"]
    return Cost(8.0 * outputs * samples)


def _grid_sample_cases() -> Iterator[Case]:
    for mode in MODES:
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
        "grid_sample",
        Kind.OPAQUE,
        _grid_sample_infer,
        _grid_sample,
        doc="x at the normalised places in grid, last axis (x, y[, z]) in [-1, 1] (ONNX GridSample 20).",
        inputs=("x", "grid"),
        attrs={"mode": "linear", "padding": "zeros", "align_corners": False},
        cost=_grid_sample_cost,
        cases=_grid_sample_cases,
        training=_grid_sample_training,
        channels=SAMPLED,
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
        training=_roi_align_training,
        channels=SAMPLED,
    ),
)
