"""pad: the interior is one box of copies, the border is slabs, cut off the outermost axis in memory first."""

from __future__ import annotations

from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, as_coord, emit_boxes, plan_boxes, straight


def plan(region: Region) -> list[Plan]:
    (x,) = anchor_args(region)
    assert x is not None
    shape, out = region.body.type(x).dims, region.anchor_type.dims
    rank, pads = len(shape), region.attrs["pads"]
    copies = region.attrs["mode"] != "constant"
    inner = {a: (pads[a], d) for a, d in enumerate(shape)}
    spans = {a: (0, d) for a, d in enumerate(out)}  # (base, extent) of what is not filled yet
    boxes = []

    def box(**data: Any) -> Box:
        straight_axes = [a for a in range(rank) if spans[a] == inner[a]]
        place = straight([spans[a][0] for a in range(rank)])
        source = tuple((0, ((a, 1),) if a in straight_axes else ()) for a in range(rank))
        computed = tuple(a for a in range(rank) if a not in straight_axes)
        read = data["copy"]
        data = {**data, "bases": [None if a in straight_axes else spans[a][0] - pads[a] for a in range(rank)]}
        extents = tuple(spans[a][1] for a in range(rank))
        return Box(extents, place, ((x, source),) if read else (), computed if read else (), data=data)

    for axis in sorted(range(rank), key=lambda a: -abs(region.outputs[0].strides[a])):
        before, after = pads[axis], pads[axis + rank]
        if before:
            spans[axis] = (0, before)
            boxes.append(box(copy=copies))
        if after:
            spans[axis] = (out[axis] - after, after)
            boxes.append(box(copy=copies))
        spans[axis] = inner[axis]
    boxes.insert(0, box(copy=True))
    return plan_boxes(region, "pad", boxes)


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..tir import constant

    if not cursor.data["copy"]:
        return constant(cursor.attrs["value"], cursor.dtype(0), lanes)
    coords = []
    for (at, step), base, size in zip(index, cursor.data["bases"], cursor.shape(0), strict=True):
        coords.append((at, step) if base is None else _reflected(cursor, (at + base, step), size, lanes))
    return cursor.value(0, coords, lanes)


def _reflected(cursor: Cursor, coord: Any, size: int, lanes: int) -> Any:
    """The source coordinate of a place ``coord`` relative to the source's first element."""
    from tvm import tirx

    from ..evaluate import lanewise
    from ..tir import like, maximum, minimum

    at = lanewise(coord, lanes if coord[1] else 1)
    if cursor.attrs["mode"] == "edge" or size == 1:
        at = maximum(minimum(at, like(size - 1, at)), like(0, at))
    elif cursor.attrs["mode"] == "wrap":
        at = tirx.floormod(at, like(size, at))
    else:
        at = tirx.floormod(at, like(2 * (size - 1), at))
        at = minimum(at, like(2 * (size - 1), at) - at)
    return as_coord(cursor.k.bind(at, "at"))


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("pad", ("pad",), plan, {"pad": emit})
