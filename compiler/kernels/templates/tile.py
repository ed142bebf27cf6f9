"""tile: over (repeat, element) index pairs, so that no division is needed."""

from __future__ import annotations

from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, emit_boxes, plan_boxes


def plan(region: Region) -> list[Plan]:
    (x,) = anchor_args(region)
    assert x is not None
    shape, repeats = region.body.type(x).dims, region.attrs["repeats"]
    extents = tuple(e for pair in zip(repeats, shape, strict=True) for e in pair)
    place = tuple((0, ((2 * a, d), (2 * a + 1, 1))) for a, d in enumerate(shape))
    source = tuple((0, ((2 * a + 1, 1),)) for a in range(len(shape)))
    return plan_boxes(region, "tile", [Box(extents, place, ((x, source),))])


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    return cursor.value(0, index[1::2], lanes)


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("tile", ("tile",), plan, {"tile": emit})
