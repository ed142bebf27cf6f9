"""What the planners of convolutions for GPUs share: what is accessed together, axes, and plans of several parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, Operand, Plan, Region
from ._tile import accumulator, epilogue_inputs, inplace_pairs
from .conv import Geometry

WIDEST = 16  # bytes of one access
SCRATCH_STEP = 256  # bytes
REACH = (1 << 31) - 1  # elements that an index of a kernel reaches


def together(operand: Operand, axis: int, lanes: int) -> bool:
    """Whether ``lanes`` neighbours along an axis, from a multiple of ``lanes`` on, can be one access (or several whole
    ones)."""
    own, itemsize = operand.strides[axis], operand.type.itemsize
    if lanes == 1:
        return True
    step = min(lanes, WIDEST // itemsize)
    others = [s for a, (s, d) in enumerate(zip(operand.strides, operand.type.dims, strict=True)) if a != axis and d > 1]
    whole = operand.type.dims[axis] % lanes == 0 and all(s % step == 0 for s in others)
    return own == 1 and whole and step * itemsize <= operand.aligned


def reachable(region: Region) -> bool:
    return all(o.span <= REACH for o in (*region.inputs, *region.outputs))


def accesses(region: Region, lanes: int, axis: int = 1) -> dict[str, Any]:
    """For ``Lanes``: which inputs (by their own axis that meets the output's ``axis``) and outputs are read and written
    by ``lanes``."""
    rank = region.anchor_type.rank
    wide: dict[str, list[Any]] = {"inputs": [], "outputs": []}
    for operand in region.inputs:
        axes = range(operand.type.rank)
        wide["inputs"].append([a for a in axes if together(operand, a, lanes)])
    wide["outputs"] = [rank == o.type.rank and together(o, axis, lanes) for o in region.outputs]
    return {"lanes": lanes, "axis": axis, **wide}


def common(region: Region) -> dict[str, Any]:
    """What every convolution's emitter reads."""
    bias = region.operand(2)
    return {
        "program": serialize(region),
        "dtype": accumulator(region.anchor_type.dtype),
        "type": region.anchor_type.dtype,
        "bias": bias,
        "reads": sorted({*epilogue_inputs(region), *([] if bias is None else [bias])}),
        "zero": region.attrs.get("zero_point", 0),
        "rank": region.anchor_type.rank,
    }


def arguments(region: Region, first: Sequence[Arg]) -> tuple[Arg, ...]:
    """``first``, then what the epilogue reads and the outputs."""
    reads = common_reads(region)
    return (*first, *(Arg("in", i) for i in reads), *(Arg("out", j) for j in range(len(region.outputs))))


def common_reads(region: Region) -> list[int]:
    bias = region.operand(2)
    return sorted({*epilogue_inputs(region), *([] if bias is None else [bias])})


def axes_of(g: Geometry) -> list[dict[str, Any]]:
    """Slab, line and point as an emitter reads them."""
    return [
        {
            "extent": g.out[i],
            "taps": g.kernel[i],
            "step": g.step[i],
            "stride": g.strides[i],
            "dilation": g.dilations[i],
            "pad": g.pads[i],
            "size": g.size[i],
            "border": g.border(i),
            "first": g.place[i][0],
            "apart": g.place[i][1],
        }
        for i in range(3)
    ]


@dataclass(frozen=True)
class Part:
    """How one geometry of a region would be done: phases whose constants and scratch are numbered from 0."""

    drafts: tuple[Draft, ...]
    consts: tuple[np.ndarray, ...]
    scratch: int
    cost: float
    detail: str


def joined(region: Region, template: str, parts: Sequence[Part]) -> Plan:
    """The plan of parts that fill the output together, one after the other."""
    phases: list[Draft] = []
    consts: list[np.ndarray] = []
    scratch = 0
    for part in parts:
        for draft in part.drafts:
            args = [
                replace(a, index=a.index + len(consts))
                if a.kind == "const"
                else replace(a, offset=a.offset + scratch)
                if a.kind == "shared"
                else a
                for a in draft.args
            ]
            phases.append(replace(draft, args=tuple(args)))
        consts += part.consts
        scratch += -(-part.scratch // SCRATCH_STEP) * SCRATCH_STEP
    return Plan(
        template,
        tuple(phases),
        cost=sum(p.cost for p in parts),
        consts=tuple(consts),
        shared_bytes=scratch,
        inplace=inplace_pairs(region),
        detail=parts[0].detail if len(parts) == 1 else f"{len(parts)} phases, {parts[0].detail}",
    )


def is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def bytes_moved(region: Region, weights: int) -> float:
    """Bytes that cross the memory's border at least once."""
    reads = [region.inputs[i].type.nbytes for i in {*common_reads(region), region.operand(0)} if i is not None]
    return float(sum(reads) + weights + sum(o.type.nbytes for o in region.outputs))
