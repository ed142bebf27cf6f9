"""lookup: any function of one 8-bit tensor, read from its table of 256 entries."""

from __future__ import annotations

from typing import Any

from ...ops.integers import NARROW
from ..spec import Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, emit_boxes, plan_boxes, straight

_NONE = (0, ())


def plan(region: Region) -> list[Plan]:
    x, table = (a for a in anchor_args(region) if a is not None)
    out = region.anchor_type.dims
    place = straight([0] * len(out))
    alone = region.machine.instruction("table") is None  # then a vector is put together byte by byte, which is slower
    scalar = tuple(range(len(out))) if alone else ()
    box = Box(out, place, ((x, place), (table, (_NONE,))), scalar=scalar)
    return plan_boxes(region, "lookup", [box], work=2.0)


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import constant

    row = cursor.k.row("table", lanes)
    if row is not None and cursor.dtype(1) in NARROW:
        return _by_bytes(cursor, row, index, lanes)
    least = 0 if cursor.dtype(0).startswith("u") else -128
    entry = cast(cursor.value(0, index, lanes), "int32") - constant(least, "int32", lanes)
    return cursor.value(1, [(cursor.k.bind(entry), None if lanes > 1 else 0)], lanes)


def _by_bytes(cursor: Cursor, row: Any, index: list[Any], lanes: int) -> Any:
    """A table of 8-bit entries held in registers, read by the machine's own instruction, a part of it at a time."""
    from tvm import tirx

    from ..tir import as_dtype, like, reinterpreted, select

    k, wanted = cursor.k, cursor.dtype(1)
    place = k.bind(reinterpreted(cursor.value(0, index, lanes), as_dtype("uint8", lanes)))
    if cursor.dtype(0) == "int8":
        place = k.bind(place ^ like(128, place))
    held = len(row.operands) - 1
    parts: list[Any] = []
    for first in range(0, 256, held * lanes):
        table = {f"t{n}": cursor.value(1, [(first + n * lanes, 1)], lanes) for n in range(held)}
        parts.append(k.bind(k.instruction(row, **table, i=place - like(first, place) if len(parts) else place)))
    # two parts: the instruction looks at seven bits; four: it gives 0 for an index that is not in its part
    found = select(place < like(128, place), *parts) if len(parts) == 2 else k.fold(parts, tirx.bitwise_or)
    return reinterpreted(k.bind(found), as_dtype(wanted, lanes))


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("lookup", ("lookup",), plan, {"lookup": emit})
