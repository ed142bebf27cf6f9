"""concat: one box an input, so each is copied in the largest runs that both sides allow."""

from __future__ import annotations

from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, emit_boxes, plan_boxes, straight


def plan(region: Region) -> list[Plan]:
    args = anchor_args(region)
    rank = region.anchor_type.rank
    axis, at, boxes = region.attrs["axis"] % rank, 0, []
    for i, value in enumerate(args):
        assert value is not None
        shape = region.body.type(value).dims
        place = straight([at if a == axis else 0 for a in range(rank)])
        boxes.append(Box(shape, place, ((value, straight([0] * rank)),), data={"arg": i}))
        at += shape[axis]
    return plan_boxes(region, "concat", boxes)


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    return cursor.value(cursor.data["arg"], index, lanes)


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("concat", ("concat",), plan, {"concat": emit})
