"""lookup: any function of one 8-bit tensor, read from its table of 256 entries."""

from __future__ import annotations

from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, emit_boxes, plan_boxes, straight

_NONE = (0, ())


def plan(region: Region) -> list[Plan]:
    x, table = (a for a in anchor_args(region) if a is not None)
    out = region.anchor_type.dims
    place = straight([0] * len(out))
    box = Box(out, place, ((x, place), (table, (_NONE,))), ())
    return plan_boxes(region, "lookup", [box], work=2.0)


def _source(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import constant

    least = 0 if cursor.dtype(0).startswith("u") else -128
    entry = cast(cursor.value(0, index, lanes), "int32") - constant(least, "int32", lanes)
    return cursor.value(1, [(cursor.k.bind(entry), None if lanes > 1 else 0)], lanes)


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, _source)


TEMPLATE = Template("lookup", ("lookup",), plan, {"lookup": emit})
