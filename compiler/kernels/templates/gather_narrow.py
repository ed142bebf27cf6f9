"""gather of a table that is stored narrow: rows are copied as vectors and widened on the way.

Along the last axis elements that share a scale lie together; of those that 4 bits hold, the first half are the lower
halves of bytes, the second half the upper ones, so that each half is one loop over neighbouring bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ops.blocks import spread
from ..spec import Draft, KernelSpec, Plan, Region, Template
from . import _narrow
from ._boxes import Affine, Box, Cursor, Place, as_coord, emit_boxes, index32, inside, plan_boxes

_NONE: Affine = (0, ())


def plan(region: Region) -> list[Plan]:
    """One plan, where the table is constant."""
    if not _narrow.known(region, 0, 2):
        return []
    args = region.body.args(region.anchor)  # type: ignore[arg-type]
    at = region.operand(0)
    assert at is not None
    w = region.inputs[at]
    assert w.const is not None
    table = _Table(w.const, *_narrow.operands(region, 2), region.attrs["block"])
    axis, rank = region.attrs["axis"] % w.type.rank, region.body.type(args[1]).rank  # type: ignore[arg-type]
    reads: Place = tuple((0, ((axis + i, 1),)) for i in range(rank))
    boxes = [
        Box(
            (*region.anchor_type.dims[:-1], part["blocks"], part["count"]),
            _place(region.anchor_type.rank, part),
            ((args[1], reads),),  # type: ignore[arg-type]
            scalar=tuple(range(region.anchor_type.rank)),
            data={**part, "rank": w.type.rank},
        )
        for part in table.parts
        if part["count"]
    ]
    cost = 100 + (2.0 * region.anchor_type.nbytes) / 20
    detail = f"gather of {table.bits}-bit rows"
    found = plan_boxes(region, "gather_narrow", boxes, consts=table.arrays, cost=cost, work=2.0, detail=detail)
    return [_without(region, p, [region.operand(i) for i in (0, 2, 3)]) for p in found]


def _place(rank: int, part: dict[str, Any]) -> Place:
    """The output's coordinates from the box's: those before the last one, blocks, elements of half a block."""
    lead: Place = tuple((0, ((i, 1),)) for i in range(rank - 1))
    return (*lead, (part["first"], ((rank - 1, part["step"]), (rank, 1))))


def _without(region: Region, plan: Plan, inputs: Sequence[int | None]) -> Plan:
    """The plan whose kernel does not read the given inputs."""
    skip = sorted(i for i in inputs if i is not None)
    phases = []
    for draft in plan.phases:
        args = tuple(a for a in draft.args if a.kind != "in" or a.index not in skip)
        phases.append(Draft(KernelSpec(draft.spec.template, {**draft.spec.config, "skip": skip}), args, draft.tasks))
    return replace(plan, phases=tuple(phases))


class _Table:
    """The packed table: ``arrays`` and what each box reads of them."""

    def __init__(self, w: np.ndarray, scale: Any, zero: Any, block: tuple[int, int] | None) -> None:
        self.arrays: list[np.ndarray] = []
        self.parts: list[dict[str, Any]] = []
        self.zero, self.bits = 0, 16
        last = w.ndim - 1
        size = block[1] if block is not None and block[0] == last else w.shape[-1]
        if scale is None:
            given = [_narrow.bits_of(w)]
        else:
            codes, points, self.zero, self.bits = _narrow.steps(w, None if zero is None else zero.const)
            along = None if block is None or block[0] == last else block
            factors = [a for a in (scale.const, points) if a is not None]
            own = (*w.shape[:-1], -1)
            given = [codes, *(_ranked(spread(a, own, along), w.ndim) for a in factors)]
        full, rest = divmod(w.shape[-1], size)
        for first, blocks, count in ((0, full, size), (full * size, min(rest, 1), rest)):
            if blocks:
                self._add(given, first, blocks, count, size)

    def _add(self, given: list[np.ndarray], first: int, blocks: int, count: int, size: int) -> None:
        """The boxes of ``blocks`` blocks of ``count`` elements from ``first`` on."""
        codes = given[0][..., first : first + blocks * count].reshape(*given[0].shape[:-1], blocks, count)
        half = -(-count // 2)
        halves = [(0, count, 0)] if self.bits != 4 else [(0, half, 0), (half, count - half, 4)]
        if self.bits == 4:
            upper = np.zeros_like(codes[..., :half])
            upper[..., : count - half] = codes[..., half:]
            codes = codes[..., :half] | (upper << 4)
        tables = [self._table(codes)]
        for factor in given[1:]:
            tables.append(self._table(_cut(factor, first, blocks, count, size, given[0].shape[-1])))
        for at, many, shift in halves:
            self.parts.append(
                {
                    "first": first + at,
                    "step": count,
                    "blocks": blocks,
                    "count": many,
                    "shift": shift,
                    "bits": self.bits,
                    "zero": self.zero,
                    "at": at,
                    "tables": tables,
                }
            )

    def _table(self, array: np.ndarray) -> dict[str, Any]:
        """Keeps an array; its number, extents and strides (0 along axes of extent 1)."""
        if array.dtype == np.float32 and (array.astype(np.float16).astype(np.float32) == array).all():
            array = array.astype(np.float16)
        steps = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
        self.arrays.append(np.ascontiguousarray(array).reshape(-1))
        strides = [0 if d == 1 else s for d, s in zip(array.shape, steps, strict=True)]
        return {"number": len(self.arrays) - 1, "strides": strides}


def _ranked(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _cut(factor: np.ndarray, first: int, blocks: int, count: int, size: int, whole: int) -> np.ndarray:
    """Scales of a part of the last axis, as ``[..., blocks or 1, elements or 1]``."""
    last = factor.shape[-1]
    if last == 1:
        return factor[..., None]
    if last == whole and size == whole:
        return factor[..., None, :]
    return factor[..., first // size : first // size + blocks, None]


def _row(cursor: Cursor, index: Sequence[Any]) -> list[Any]:
    """The coordinates in the packed table: the indices looked up."""
    rank, axis = cursor.data["rank"], cursor.attrs["axis"] % cursor.data["rank"]
    width = len(cursor.shape(1))
    found = cursor.value(1, index[axis : axis + width], 1)
    at = as_coord(inside(cursor.k, index32(cursor.k, found), cursor.shape(0)[axis]))
    return [*index[:axis], at, *index[axis + width :]][: rank + 1]


def _source(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import constant, shift_right

    k, data = cursor.k, cursor.data
    row = _row(cursor, index)

    def load(table: dict[str, Any], at: int) -> Any:
        coords = [*row[:-1], (row[-1][0] + at, row[-1][1])]
        base, step = cursor.ev.address(table["strides"], coords)
        buffer = cursor.tables[table["number"]]
        if data["bits"] == 16:
            return _narrow.widened(k, buffer, base, lanes)
        return k.load(buffer, base, lanes, step)

    tables = data["tables"]
    if data["bits"] == 16:
        return load(tables[0], 0)
    codes = cast(load(tables[0], 0), "int32")
    if data["bits"] == 4:
        codes = shift_right(codes, constant(data["shift"], "int32", lanes)) & constant(15, "int32", lanes)
    if len(tables) > 2:
        codes = codes - cast(load(tables[2], data["at"]), "int32")
    elif data["zero"]:
        codes = codes - constant(data["zero"], "int32", lanes)
    return cast(codes, "float32") * cast(load(tables[1], data["at"]), "float32")


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, _source)


TEMPLATE = Template("gather_narrow", ("gather_narrow",), plan, {"gather_narrow": emit})
