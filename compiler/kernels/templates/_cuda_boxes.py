"""Boxes of an output on a GPU: each is filled by blocks of its own, all in one kernel (see ``_boxes``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...types import DTYPES
from ..expr import plain
from ..spec import Draft, KernelSpec, Plan, Region
from ._boxes import Box, Cursor, Source, anchor_args, box_args, box_config, box_strides
from ._cuda_walk import MOST, by_threads, device_nest, over, rounds_each, streaming
from ._nest import Data
from ._rows import operations

_MOVES = ("concat", "pad", "reshape", "tile")  # templates for CPUs that are one on a GPU
_LONG = 12.0  # work of an element from which a run has four elements at most


def plan_boxes(
    region: Region, template: str, boxes: Sequence[Box], *, consts: Sequence[np.ndarray], work: float, detail: str
) -> list[Plan]:
    """One plan of one kernel, ``cuda_`` and the name of the template for CPUs."""
    gpu = region.machine.gpu
    assert gpu is not None
    if any(o.span > MOST for o in (*region.inputs, *region.outputs)):
        return []
    rows: list[Data] = []
    most = 4 if work + operations(region) > _LONG else 16
    for box in (b for b in boxes if 0 not in b.extents):
        strides = box_strides(region, box)
        nest = device_nest(gpu, box.extents, strides, _widest(region), solo=box.solo, scalar=box.scalar, most=most)
        rows.append({"nest": nest, "place": plain(box.place), "data": plain(box.data)})
    blocks, threads = 0, max((r["nest"]["threads"] for r in rows), default=0)
    for row in rows:
        row["nest"], row["first"] = by_threads(gpu, row["nest"], threads), blocks
        blocks += row["nest"]["blocks"]
    name = f"cuda_move.{template}" if template in _MOVES else f"cuda_{template}"
    spec = KernelSpec(name, {**box_config(region, rows, consts), "blocks": blocks})
    return [
        Plan(
            name.split(".")[0],
            (Draft(spec, box_args(region, consts), blocks),) if rows else (),
            cost=streaming(region, gpu, blocks, threads, work=work + operations(region)) if rows else 0.0,
            consts=tuple(consts),
            detail=detail or template,
        )
    ]


def _widest(region: Region) -> int:
    """Bytes of the widest element that is computed or moved (not of index operands)."""
    indices = {a.node for a in anchor_args(region)[1:] if a is not None}
    moved = [region.body.node(n) for n in region.body if n not in indices]
    types = [t for n in moved for t in n.types if t.size > 1]
    return max((DTYPES[t.dtype][0] for t in types), default=4)


def emit_boxes(k: Any, config: Data, source: Source) -> None:
    """Writes the kernel. ``source`` gives the anchor's value at a box's indices."""
    cursor = Cursor(k, config, source)
    k.contract = not rounds_each(config["program"])
    with k.grid(config["blocks"], config["boxes"][0]["nest"]["threads"]) as (block, thread):
        for row in config["boxes"]:
            first, nest = row["first"], row["nest"]
            with k.when(_within(block, first, first + nest["blocks"], config["blocks"])):
                over(k, nest, block - first if first else block, thread, cursor.element(row))


def _within(block: Any, first: int, end: int, blocks: int) -> Any:
    from tvm import tirx

    if first == 0:
        return True if end == blocks else block < end
    return block >= first if end == blocks else tirx.And(block >= first, block < end)


def emitter(source: Source) -> Any:
    return lambda k, config: emit_boxes(k, config, source)
