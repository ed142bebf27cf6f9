"""resize: which input elements an output element is made of, and their weights, are tables made at compile time.

Each resized axis has its taps (one for nearest, two for linear, four for cubic, more with antialiasing); an element is
the sum over their product. In channels-last memory all of it is a weighted sum of channel vectors.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from ...ops.image import resize_taps
from ..spec import Plan, Region, Template
from ._boxes import Affine, Box, Cursor, anchor_args, as_coord, emit_boxes, plan_boxes, straight

_UNROLLED_TAPS = 36


def plan(region: Region) -> list[Plan]:
    (x,) = anchor_args(region)
    assert x is not None
    type, out, attrs = region.body.type(x), region.anchor_type.dims, region.attrs
    if type.size == 0 and 0 not in out:
        return []
    wide = compute_type(type.dtype)
    source: list[Affine] = []
    axes: list[dict[str, Any]] = []
    consts: list[np.ndarray] = []
    for axis, (size, extent) in enumerate(zip(type.dims, out, strict=True)):
        taps = resize_taps(size, extent, axis, type.rank, attrs) if extent else None
        source.append((0, ((axis, 1),) if taps is None else ()))
        if taps is None:
            continue
        row = {"axis": axis, "taps": taps.indices.shape[1], "extent": extent, "indices": len(consts)}
        consts.append(np.ascontiguousarray(taps.indices.T, np.int32))
        if attrs["mode"] != "nearest":
            row["weights"] = len(consts)
            consts.append(np.ascontiguousarray(taps.weights.T, wide))
        if not taps.inside.all():
            row["inside"] = len(consts)
            consts.append(taps.inside.astype(np.int32))
        axes.append(row)
    solo = tuple(row["axis"] for row in axes)
    box = Box(out, straight([0] * len(out)), ((x, tuple(source)),), solo, data={"axes": axes, "wide": wide})
    each = math.prod(row["taps"] for row in axes)
    across = any(abs(region.outputs[0].strides[a]) == 1 and out[a] > 1 for a in solo)
    rate = 1.0 if across else 1.0 / region.machine.lanes  # a gathered element, or one of a vector
    cost = 100 + region.anchor_type.size * (each * rate / 2.5 + type.itemsize / 10)
    return plan_boxes(region, "resize", [box], consts=consts, cost=cost, work=max(1.0, each / 2), detail="resize")


def compute_type(dtype: str) -> str:
    """The float type in which elements are weighted: one that holds them."""
    return "float64" if dtype in ("float64", "int32", "uint32", "int64", "uint64") else "float32"


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant, dtype_of, like, select, splat

    axes, k = cursor.data["axes"], cursor.k
    weighted = any("weights" in row for row in axes)
    if weighted:
        value = _weighted(cursor, index, lanes)
    else:
        coords = list(index)
        for row in axes:
            coords[row["axis"]] = as_coord(_entry(cursor, row, "indices", 0, index))
        value = cursor.value(0, coords, lanes)
    dtype = cursor.dtype(0)
    within: Any = None
    for row in axes:
        if "inside" in row:
            entry = _entry(cursor, row, "inside", 0, index)
            here = splat(tirx.NE(entry, like(0, entry)), lanes)
            within = here if within is None else tirx.And(within, here)
    value = cast(value, dtype)
    if within is None:
        return value
    value = k.bind(value)
    return select(within, value, constant(cursor.attrs["extrapolation"], dtype_of(value), lanes))


def _entry(cursor: Cursor, row: Any, table: str, tap: Any, index: list[Any]) -> Any:
    at, step = index[row["axis"]]
    return cursor.k.load(cursor.tables[row[table]], tap * row["extent"] + at, cursor.lanes if step else 1)


def _weighted(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..tir import constant

    k, axes = cursor.k, cursor.data["axes"]
    counts = [row["taps"] for row in axes]
    if math.prod(counts) <= _UNROLLED_TAPS:
        terms = [_term(cursor, index, taps, lanes) for taps in product(*(range(n) for n in counts))]
        return k.fold(terms, lambda a, b: a + b)
    total = k.register(cursor.data["wide"], lanes, "total")
    total.set(constant(0, cursor.data["wide"], lanes))

    def loops(taps: list[Any]) -> None:
        if len(taps) == len(counts):
            total.set(total.get() + _term(cursor, index, taps, lanes))
            return
        with k.loop(counts[len(taps)]) as i:
            loops([*taps, i])

    loops([])
    return total.get()


def _term(cursor: Cursor, index: list[Any], taps: Any, lanes: int) -> Any:
    """One product of weights and input element."""
    from ..functions import cast
    from ..tir import splat

    coords, weight = list(index), None
    for row, tap in zip(cursor.data["axes"], taps, strict=True):
        coords[row["axis"]] = as_coord(_entry(cursor, row, "indices", tap, index))
        here = _entry(cursor, row, "weights", tap, index)
        here = splat(here, lanes) if index[row["axis"]][1] else here
        weight = here if weight is None else _times(weight, here, lanes)
    return cast(cursor.value(0, coords, lanes), cursor.data["wide"]) * splat(weight, lanes)


def _times(a: Any, b: Any, lanes: int) -> Any:
    from ..tir import lanes_of, splat

    width = max(lanes_of(a), lanes_of(b))
    return splat(a, width) * splat(b, width)


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("resize", ("resize",), plan, {"resize": emit})
