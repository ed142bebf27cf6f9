"""gather, gather_elements, gather_nd, one_hot: coordinates from data.

Indices of any integer type count from the end where negative; one out of range is clamped, so that no kernel reads
outside its tensor. Rows behind the gathered axis are copied as vectors.
"""

from __future__ import annotations

from typing import Any

from ...ir import Value
from ..spec import Plan, Region, Template
from ._boxes import Affine, Box, Cursor, Place, anchor_args, as_coord, emit_boxes, index32, inside, plan_boxes, straight

_NONE: Affine = (0, ())


def _axes(first: int, count: int) -> Place:
    return tuple((0, ((first + i, 1),)) for i in range(count))


def plan(region: Region) -> list[Plan]:
    args = [a for a in anchor_args(region) if a is not None]
    shapes = [region.body.type(a).dims for a in args]
    out = region.anchor_type.dims
    reads, solo = READS[region.op](region, args, shapes)
    if 0 in shapes[0] and 0 not in out:
        return []  # nothing to read: an error of the model
    box = Box(out, straight([0] * len(out)), reads, solo)
    work = 1.0 if region.op == "gather" else 3.0
    cost = 100 + (2.0 * region.anchor_type.nbytes + work * region.body.type(args[1]).nbytes) / 20
    return plan_boxes(region, f"gather.{region.op}", [box], cost=cost, work=work)


Reads = tuple[tuple[tuple[Value, Place], ...], tuple[int, ...]]


def _gather_reads(region: Region, args: list[Value], shapes: list[tuple[int, ...]]) -> Reads:
    x, indices = shapes
    axis = region.attrs["axis"] % len(x)
    behind = _axes(axis + len(indices), len(x) - axis - 1)
    return ((args[0], (*_axes(0, axis), _NONE, *behind)), (args[1], _axes(axis, len(indices)))), ()


def _elements_reads(region: Region, args: list[Value], shapes: list[tuple[int, ...]]) -> Reads:
    rank = len(shapes[0])
    axis = region.attrs["axis"] % rank
    x: Place = tuple(_NONE if a == axis else p for a, p in enumerate(_axes(0, rank)))
    return ((args[0], x), (args[1], _axes(0, rank))), (axis,)


def _nd_reads(region: Region, args: list[Value], shapes: list[tuple[int, ...]]) -> Reads:
    x, indices = shapes
    batch, depth, lead = region.attrs["batch_dims"], indices[-1], len(indices) - 1
    behind = _axes(lead, len(x) - batch - depth)
    return ((args[0], (*_axes(0, batch), *[_NONE] * depth, *behind)), (args[1], (*_axes(0, lead), _NONE))), ()


def _hot_reads(region: Region, args: list[Value], shapes: list[tuple[int, ...]]) -> Reads:
    rank = len(shapes[0])
    axis = region.attrs["axis"] % (rank + 1)
    return ((args[0], tuple((0, ((a + (a >= axis), 1),)) for a in range(rank))),), (axis,)


READS = {
    "gather": _gather_reads,
    "gather_elements": _elements_reads,
    "gather_nd": _nd_reads,
    "one_hot": _hot_reads,
}


def _index(cursor: Cursor, coords: list[Any], size: int, lanes: int) -> Any:
    """The coordinate that the index operand holds there: one for all lanes where they agree."""
    width = lanes if any(step != 0 for _, step in coords) else 1
    return as_coord(inside(cursor.k, index32(cursor.k, cursor.value(1, coords, width)), size))


def _gather(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    x, rank = cursor.shape(0), len(cursor.shape(1))
    axis = cursor.attrs["axis"] % len(x)
    at = _index(cursor, index[axis : axis + rank], x[axis], lanes)
    return cursor.value(0, [*index[:axis], at, *index[axis + rank :]], lanes)


def _gather_elements(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    x = cursor.shape(0)
    axis = cursor.attrs["axis"] % len(x)
    at = _index(cursor, index, x[axis], lanes)
    return cursor.value(0, [at if a == axis else c for a, c in enumerate(index)], lanes)


def _gather_nd(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    x, indices, batch = cursor.shape(0), cursor.shape(1), cursor.attrs["batch_dims"]
    lead = index[: len(indices) - 1]
    found = [_index(cursor, [*lead, (i, 0)], x[batch + i], lanes) for i in range(indices[-1])]
    return cursor.value(0, [*index[:batch], *found, *index[len(lead) :]], lanes)


def _one_hot(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from tvm import tirx

    from ..evaluate import lanewise
    from ..functions import cast
    from ..tir import dtype_of, like, select, splat

    k, depth = cursor.k, cursor.attrs["depth"]
    axis = cursor.attrs["axis"] % len(index)
    wanted = cursor.value(0, [c for a, c in enumerate(index) if a != axis], lanes)
    wanted = cast(wanted, "int32") if dtype_of(wanted).startswith("float") else index32(k, wanted)
    wanted = k.bind(wanted, "wanted")
    wanted = select(wanted < like(0, wanted), wanted + like(depth, wanted), wanted)
    off, on = (splat(cursor.value(1, [(i, 0)], 1), lanes) for i in (0, 1))
    return select(tirx.EQ(wanted, splat(lanewise(index[axis], lanes), lanes)), on, off)


SOURCES = {"gather": _gather, "gather_elements": _gather_elements, "gather_nd": _gather_nd, "one_hot": _one_hot}


def _emitter(source: Any) -> Any:
    return lambda k, config: emit_boxes(k, config, source)


TEMPLATE = Template("gather", tuple(READS), plan, {f"gather.{op}": _emitter(f) for op, f in SOURCES.items()})
