"""grid_sample and roi_align: places that are data. In channels-last memory a place is worked out once a pixel (it does
not depend on the channel, so it leaves the innermost loop) and its taps are channel vectors."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, as_coord, emit_boxes, expr32, index32, inside, plan_boxes, straight

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
_CUBIC_A = -0.75


def plan(region: Region) -> list[Plan]:
    args = anchor_args(region)
    assert args[0] is not None and args[1] is not None
    out, shape = region.anchor_type.dims, region.body.type(args[0]).dims
    if 0 in shape and 0 not in out:
        return []
    rank = len(out)
    if region.op == "grid_sample":
        each = float(_TAPS[region.attrs["mode"]] ** (rank - 2))
    else:
        each = 4.0 * max(1, region.attrs["sampling_ratio"] or 2) ** 2
    vector = abs(region.outputs[0].strides[1]) == 1
    rate = each / region.machine.lanes if vector else each
    place = 40.0 / out[1] if vector and out[1] else 10.0
    cost = 100 + region.anchor_type.size * (rate + place) / 2.5
    box = Box(out, straight([0] * rank), (), tuple(range(rank)))
    if region.op == "roi_align":
        box = Box(out, straight([0] * rank), (), tuple(range(rank)), scalar=(0, 2, 3))
    return plan_boxes(region, f"sample.{region.op}", [box], cost=cost, work=each + place)


# -- grid_sample -----------------------------------------------------------------------------------------------------


def grid_sample(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import splat

    k, shape, attrs = cursor.k, cursor.shape(0), cursor.attrs
    rank = len(shape) - 2
    width = lanes if any(step != 0 for a, (_, step) in enumerate(index) if a != 1) else 1
    types = [cursor.dtype(i) for i in (0, 1)]
    wide = "float64" if "float64" in types else "float32"
    axes = []
    for a in range(rank):
        where = [index[0], *index[2:], (rank - 1 - a, 0)]
        at = k.bind(cast(cursor.value(1, where, width), wide), "at")
        axes.append(_taps(k, at, shape[2 + a], attrs))
    terms = []
    for taps in product(*axes):
        weight = math.prod((w for _, w in taps[1:]), start=taps[0][1])
        x = cursor.value(0, [*index[:2], *(as_coord(i) for i, _ in taps)], lanes)
        terms.append(cast(x, wide) * splat(weight, lanes))
    return cast(k.fold(terms, lambda a, b: a + b), types[0])


def _taps(k: Any, g: Any, size: int, attrs: Any) -> list[tuple[Any, Any]]:
    """(index, weight) of each tap along one axis for the normalised coordinate ``g``."""
    from .. import vecmath
    from ..functions import cast
    from ..tir import like, maximum, minimum

    one, half = like(1, g), like(0.5, g)
    scaled = (g + one) * like(size - 1, g) if attrs["align_corners"] else (g + one) * like(size, g) - one
    at = scaled * half
    mode = attrs["mode"]
    if mode == "nearest":
        at = vecmath.round_even(k, k.bind(at))
    if mode != "cubic" or attrs["padding"] == "reflection":
        at = _bounded(k, at, size, attrs)
    at = k.bind(maximum(minimum(at, like(size + 4, g)), like(-4, g)), "at")
    if mode == "nearest":
        found = [(at, one)]
    else:
        base = k.bind(vecmath.floor(k, at), "base")
        part = k.bind(at - base, "part")
        found = [(base + like(t, g), w) for t, w in (_linear(part) if mode == "linear" else _cubic(k, part))]
    taps = []
    for place, weight in found:
        place = k.bind(cast(vecmath.round_even(k, _bounded(k, place, size, attrs)), "int32"), "place")
        inner = k.bind(maximum(minimum(place, like(size - 1, place)), like(0, place)), "inner")
        if attrs["padding"] == "zeros":
            weight = _where_equal(inner, place, weight)
        taps.append((inner, k.bind(weight, "weight")))
    return taps


def _where_equal(a: Any, b: Any, value: Any) -> Any:
    from tvm import tirx

    from ..tir import like, select

    return select(tirx.EQ(a, b), value, like(0, value))


def _linear(part: Any) -> list[tuple[int, Any]]:
    from ..tir import like

    return [(0, like(1, part) - part), (1, part)]


def _cubic(k: Any, part: Any) -> list[tuple[int, Any]]:
    """The cubic convolution kernel (Keys 1981) at the distances of four taps."""
    from ..tir import like

    def c(value: float) -> Any:
        return like(value, part)

    def near(d: Any) -> Any:
        return (c(_CUBIC_A + 2) * d - c(_CUBIC_A + 3)) * d * d + c(1)

    def far(d: Any) -> Any:
        return ((d - c(5)) * d + c(8)) * d * c(_CUBIC_A) - c(4 * _CUBIC_A)

    rest = k.bind(c(1) - part, "rest")
    return [(-1, far(part + c(1))), (0, near(part)), (1, near(rest)), (2, far(rest + c(1)))]


def _bounded(k: Any, at: Any, size: int, attrs: Any) -> Any:
    """A place brought into the axis as ``padding`` says."""
    from tvm import tirx

    from .. import vecmath
    from ..tir import like, maximum, minimum, select

    if attrs["padding"] == "border":
        return maximum(minimum(at, like(size - 1, at)), like(0, at))
    if attrs["padding"] == "zeros":
        return at
    low, span = (0.0, size - 1) if attrs["align_corners"] else (-0.5, size)
    if span == 0:
        return like(0, at)
    at = k.bind(at, "place")
    period, least = like(2 * span, at), like(low, at)
    distance = k.bind(vecmath.absolute(k, at - least), "distance")
    beyond = k.bind(distance - vecmath.floor(k, distance / period) * period, "beyond")
    outside = tirx.Or(at < least, at > like(low + span, at))
    return select(outside, least + minimum(beyond, period - beyond), at)


# -- roi_align -------------------------------------------------------------------------------------------------------


def roi_align(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import constant, like, maximum, select, splat

    k, attrs = cursor.k, cursor.attrs
    dtype = cursor.dtype(0)
    wide = "float64" if dtype == "float64" else "float32"
    axes = [_roi_axis(cursor, index, a) for a in (0, 1)]
    average = attrs["mode"] == "avg"
    total = k.register(wide, lanes, "total")
    total.set(constant(0.0 if average else -math.inf, wide, lanes))
    with k.loop(axes[0]["samples"]) as i:
        rows = _roi_taps(cursor, axes[0], i)
        with k.loop(axes[1]["samples"]) as j:
            columns = _roi_taps(cursor, axes[1], j)
            for (y, v), (x, w) in product(rows, columns):
                pixel = cursor.value(0, [_batch(cursor, index), index[1], (y, 0), (x, 0)], lanes)
                term = cast(pixel, wide) * splat(cast(v * w, wide), lanes)
                total.set(total.get() + term if average else maximum(total.get(), term))
    count = k.bind(axes[0]["samples"] * axes[1]["samples"], "count")
    count = count if not isinstance(count, int) else constant(count, "int32")
    some = splat(count > constant(0, "int32"), lanes)
    value = total.get()
    if average:
        value = value / splat(maximum(cast(count, wide), constant(1, wide)), lanes)
    return cast(select(some, value, like(0, value)), dtype)


def _batch(cursor: Cursor, index: list[Any]) -> Any:
    at = index32(cursor.k, cursor.value(2, [index[0]], 1))
    return as_coord(inside(cursor.k, at, cursor.shape(0)[0]))


def _roi_axis(cursor: Cursor, index: list[Any], axis: int) -> Any:
    """Where the samples of a bin lie along one axis (0: rows): the bin's start, a sample's step, their number."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant, maximum, minimum

    k, attrs = cursor.k, cursor.attrs
    half = attrs["coordinate"] == "half_pixel"
    exact = "float64" if cursor.dtype(1) == "float64" else "float32"
    bins = attrs["output_height" if axis == 0 else "output_width"]

    def edge(column: int) -> Any:
        value = cast(cursor.value(1, [index[0], (column, 0)], 1), exact)
        value = value * constant(attrs["spatial_scale"], exact)
        return value - constant(0.5, exact) if half else value

    start = k.bind(edge(1 - axis), "start")
    length = edge(3 - axis) - start
    length = length if half else maximum(length, constant(1.0, exact))
    step = k.bind(length / constant(bins, exact), "step")
    samples: Any = attrs["sampling_ratio"]
    if not samples:
        ceiling = maximum(minimum(tirx.ceil(step), constant(1 << 20, exact)), constant(0.0, exact))
        samples = k.bind(cast(ceiling, "int32"), "samples")
        number = maximum(cast(samples, exact), constant(1.0, exact))
    else:
        number = constant(samples, exact)
    first = start + cast(expr32(index[2 + axis][0]), exact) * step
    return {"samples": samples, "start": k.bind(first, "first"), "step": step, "number": number, "axis": axis}


def _roi_taps(cursor: Cursor, row: Any, sample: Any) -> list[tuple[Any, Any]]:
    """The two (index, weight) of a sample; no weight where it lies off the image."""
    from tvm import tirx

    from .. import vecmath
    from ..functions import cast
    from ..tir import dtype_of, like, maximum, minimum, select

    k, size = cursor.k, cursor.shape(0)[2 + row["axis"]]
    offset = (cast(expr32(sample), dtype_of(row["step"])) + like(0.5, row["step"])) * row["step"] / row["number"]
    at = k.bind(row["start"] + offset, "at")
    on = k.bind(select(tirx.all(at >= like(-1, at), at <= like(size, at)), like(1, at), like(0, at)), "on")
    at = k.bind(maximum(minimum(at, like(size - 1, at)), like(0, at)), "at")
    base = k.bind(vecmath.floor(k, at), "base")
    part = k.bind(at - base, "part")
    low = k.bind(maximum(minimum(cast(base, "int32"), size - 1), 0), "low")
    high = k.bind(minimum(low + 1, size - 1), "high")
    return [(low, k.bind((like(1, at) - part) * on, "weight")), (high, k.bind(part * on, "weight"))]


def _emitter(source: Any) -> Any:
    return lambda k, config: emit_boxes(k, config, source)


TEMPLATE = Template(
    "sample",
    ("grid_sample", "roi_align"),
    plan,
    {"sample.grid_sample": _emitter(grid_sample), "sample.roi_align": _emitter(roi_align)},
)
