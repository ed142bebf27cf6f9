"""max_pool and avg_pool: an interior box whose windows lie inside the input, taps unrolled, and border slabs.

A slab's windows are cut at the input's edge by loop bounds, so no padding exists anywhere. The vector axis is the one
that is contiguous in the output (channels, in channels-last memory).
"""

from __future__ import annotations

import math
from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Affine, Box, Cursor, anchor_args, emit_boxes, move_cost, plan_boxes, straight

_UNROLLED_TAPS = 36


def plan(region: Region) -> list[Plan]:
    (x,) = anchor_args(region)
    assert x is not None
    attrs, size, out = region.attrs, region.body.type(x).dims, region.anchor_type.dims
    rank = len(attrs["kernel_shape"])
    spans = {a: (0, out[2 + a]) for a in range(rank)}  # (base, extent) of what is not filled yet
    boxes = []

    def box(dynamic: tuple[int, ...]) -> Box:
        bases = [spans[a][0] for a in range(rank)]
        source: list[Affine] = [(0, ((0, 1),)), (0, ((1, 1),))]
        source += [(0, () if a in dynamic else ((2 + a, attrs["strides"][a]),)) for a in range(rank)]
        extents = (*out[:2], *(spans[a][1] for a in range(rank)))
        data = {"dynamic": dynamic, "bases": bases}
        solo = tuple(range(rank + 2)) if attrs.get("indices") else ()
        scalar = tuple(2 + a for a in dynamic)
        return Box(extents, straight([0, 0, *bases]), ((x, tuple(source)),), solo, scalar, data)

    for axis in range(rank):
        low, high = _interior(axis, size[2 + axis], out[2 + axis], attrs)
        behind = tuple(range(axis, rank))
        if low > 0:
            spans[axis] = (0, low)
            boxes.append(box(behind))
        if high < out[2 + axis]:
            spans[axis] = (high, out[2 + axis] - high)
            boxes.append(box(behind))
        spans[axis] = (low, high - low)
    boxes.insert(0, box(()))
    taps = math.prod(attrs["kernel_shape"])
    vectors = region.anchor_type.size * taps / region.machine.lanes
    cost = move_cost(region) + vectors / 2.5
    return plan_boxes(region, "pool", boxes, cost=cost, work=max(1.0, taps / 3))


def _interior(axis: int, size: int, out: int, attrs: Any) -> tuple[int, int]:
    """The outputs along ``axis`` whose windows lie wholly inside: ``[low, high)``; ``low == high == 0`` if none."""
    k, s, p, d = (attrs[n][axis] for n in ("kernel_shape", "strides", "pads", "dilations"))
    low = -(-p // s)
    high = min(out, (size - 1 - (k - 1) * d + p) // s + 1)
    return (low, high) if low < high else (0, 0)


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    if "value" not in cursor.memo:
        cursor.memo["value"], cursor.memo["index"] = _window(cursor, index, lanes)
    return cursor.memo["index" if cursor.number else "value"]


def _window(cursor: Cursor, index: list[Any], lanes: int) -> tuple[Any, Any]:
    """The pooled value of a window and, where it is asked for, the flat index of its maximum."""
    attrs, dynamic = cursor.attrs, cursor.data["dynamic"]
    kernel = attrs["kernel_shape"]
    firsts = []  # the input coordinate of the first tap
    for (at, step), base, s, p in zip(index[2:], cursor.data["bases"], attrs["strides"], attrs["pads"], strict=False):
        firsts.append(((at + base) * s - p, None if step is None else step * s))
    average = "count_include_pad" in attrs
    if "zero_point" in attrs:
        total = _Sum(cursor, lanes)
        bounds = [_bounds(cursor, a, firsts[a][0]) if a in dynamic else (0, kernel[a]) for a in range(len(kernel))]
        _loops(cursor, index, firsts, bounds, [], lanes, total)
        return total.total.get(), None
    if not dynamic and math.prod(kernel) <= _UNROLLED_TAPS and not attrs.get("indices"):
        return _unrolled(cursor, index, firsts, lanes, average), None
    fold: _Average | _Maximum = _Average(cursor, lanes) if average else _Maximum(cursor, lanes)
    bounds = [_bounds(cursor, a, firsts[a][0]) if a in dynamic else (0, kernel[a]) for a in range(len(kernel))]
    _loops(cursor, index, firsts, bounds, [], lanes, fold)
    counts = [_counted(cursor, a, firsts[a][0], bounds[a]) for a in range(len(kernel))] if average else []
    return fold.result(counts)


def _tap(cursor: Cursor, index: list[Any], firsts: list[Any], taps: Any) -> list[Any]:
    moved = [(b + t * d, s) for (b, s), t, d in zip(firsts, taps, cursor.attrs["dilations"], strict=True)]
    return [*index[:2], *moved]


def _unrolled(cursor: Cursor, index: list[Any], firsts: list[Any], lanes: int, average: bool) -> Any:
    from itertools import product

    from ..functions import cast
    from ..tir import dtype_of, like, maximum

    places = product(*(range(n) for n in cursor.attrs["kernel_shape"]))
    values = [cursor.value(0, _tap(cursor, index, firsts, taps), lanes) for taps in places]
    if not average:
        return cursor.k.fold(values, maximum)
    dtype = dtype_of(values[0])
    total = cursor.k.fold([cast(v, _wide(dtype)) for v in values], lambda a, b: a + b)
    return cast(total * like(1 / len(values), total), dtype)


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _bounds(cursor: Cursor, axis: int, first: Any) -> tuple[Any, Any]:
    """The taps ``[begin, end)`` along ``axis`` that meet the input."""
    from tvm import tirx

    from ..tir import maximum, minimum

    k, kernel, d = cursor.k, cursor.attrs["kernel_shape"][axis], cursor.attrs["dilations"][axis]
    size = cursor.shape(0)[2 + axis]
    first = k.bind(first, "first")
    begin = k.bind(maximum(tirx.floordiv(d - 1 - first, d), 0), "begin")
    end = k.bind(maximum(minimum(tirx.floordiv(size - first + d - 1, d), kernel), begin), "end")
    return begin, end


def _counted(cursor: Cursor, axis: int, first: Any, bounds: tuple[Any, Any]) -> Any:
    """How many taps along ``axis`` an average divides by: those on the input, or those on input and padding."""
    from tvm import tirx

    from ..tir import minimum

    attrs, rank = cursor.attrs, len(cursor.attrs["kernel_shape"])
    if not attrs["count_include_pad"] or axis not in cursor.data["dynamic"]:
        return bounds[1] - bounds[0]
    edge, d = cursor.shape(0)[2 + axis] + attrs["pads"][rank + axis], attrs["dilations"][axis]
    return minimum(tirx.floordiv(edge - first + d - 1, d), attrs["kernel_shape"][axis])


def _loops(cursor: Cursor, index: Any, firsts: Any, bounds: Any, taps: list[Any], lanes: int, fold: Any) -> None:
    axis = len(taps)
    if axis == len(bounds):
        at = _tap(cursor, index, firsts, taps)
        fold.add(cursor.value(0, at, lanes), at)
        return
    begin, end = bounds[axis]
    with cursor.k.loop(end - begin) as i:
        _loops(cursor, index, firsts, bounds, [*taps, begin + i], lanes, fold)


class _Sum:
    """The exact sum of what a window holds above the zero point."""

    def __init__(self, cursor: Cursor, lanes: int) -> None:
        from ..tir import constant

        self.zero_point = cursor.attrs["zero_point"]
        self.total = cursor.k.register("int32", lanes, "total")
        self.total.set(constant(0, "int32", lanes))

    def add(self, value: Any, at: list[Any]) -> None:
        from ..integers import shifted

        self.total.set(self.total.get() + shifted(value, self.zero_point, "int32"))


class _Average:
    def __init__(self, cursor: Cursor, lanes: int) -> None:
        from ..tir import like

        self.k, self.dtype = cursor.k, cursor.dtype(0)
        self.total = cursor.k.register(_wide(self.dtype), lanes, "total")
        self.total.set(like(0, self.total.get()))

    def add(self, value: Any, at: list[Any]) -> None:
        from ..functions import cast

        self.total.set(self.total.get() + cast(value, _wide(self.dtype)))

    def result(self, counts: list[Any]) -> tuple[Any, None]:
        from ..functions import cast
        from ..tir import constant, splat
        from ..vecmath import divided

        total = self.total.get()
        number: Any = 1
        for count in counts:
            number = number * count
        wide = _wide(self.dtype)
        divisor = constant(number, wide) if isinstance(number, int) else cast(number, wide)
        return cast(divided(self.k, total, splat(divisor, self.total.lanes)), self.dtype), None


class _Maximum:
    def __init__(self, cursor: Cursor, lanes: int) -> None:
        from ..tir import constant

        self.cursor, self.lanes = cursor, lanes
        dtype = cursor.dtype(0)
        self.best = cursor.k.register(dtype, lanes, "best")
        self.best.set(constant(lowest(dtype), dtype, lanes))
        self.where = cursor.k.register("int32", lanes, "where") if cursor.attrs["indices"] else None
        if self.where:
            self.where.set(constant(-1, "int32", lanes))

    def add(self, value: Any, at: list[Any]) -> None:
        from tvm import tirx

        from ..evaluate import lanewise
        from ..tir import constant, maximum, select, splat

        k = self.cursor.k
        if self.where:
            held, flat, step = k.bind(value), 0, 1
            for coord, size in reversed(list(zip(at, self.cursor.shape(0), strict=True))):
                flat = flat + splat(lanewise(coord, self.lanes), self.lanes) * constant(step, "int32", self.lanes)
                step *= size
            first = self.where.get() < constant(0, "int32", self.lanes)
            better = k.bind(tirx.Or(held > self.best.get(), first))
            self.where.set(select(better, flat, self.where.get()))
            value = held
        self.best.set(maximum(self.best.get(), value))

    def result(self, counts: list[Any]) -> tuple[Any, Any]:
        from ..functions import cast

        return self.best.get(), cast(self.where.get(), "int64") if self.where else None


def lowest(dtype: str) -> float | int:
    """The least value of an element type."""
    if dtype.startswith(("float", "bfloat")):
        return -math.inf
    return 0 if dtype.startswith("u") else -(1 << (int(dtype[3:]) - 1))


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("pool", ("max_pool", "avg_pool", "sum_pool_integer"), plan, {"pool": emit})
