"""Matrix products with few rows on a GPU: what bounds them is reading the matrix, so every byte of it is read once, 16
at a time, and no tensor core is needed.

The few rows lie in shared memory. Where the matrix' lines lie along the depth (weights are packed so), a warp takes
several lines, its lanes pieces of the depth, and sums by shuffles (``dot``); where they lie across it, a thread takes
neighbouring columns and every so-many-th step (``sum``). Several warps of a block may share the depth of a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ....targets.gpu import Gpu
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template, deferred
from ._cuda_cost import Load, nanoseconds
from ._cuda_mma import CHUNK, SUMS
from ._cuda_sides import Side, packed, side_of
from ._tile import epilogue_inputs, epilogue_work, fits, inplace_pairs
from .cuda_matmul import BYTES, constant, corrections, outer_axes, served, zero_points
from .matmul import Product, product

ROWS = 8  # at most: of the few
THREADS = 256
HELD = 40 << 10  # bytes of the few rows in shared memory, at most


@dataclass(frozen=True)
class Form:
    """``lines`` of each warp (dot) or lanes of 16 bytes side by side (sum), and how many warps (threads) share one's
    depth."""

    name: str
    lines: int
    share: int

    def per_block(self, width: int) -> int:
        """Lines of a block."""
        return THREADS // 32 // self.share * self.lines if self.name == "dot" else self.lines * width


@dataclass(frozen=True)
class Work:
    """The matrix is ``lines x depth``, the few are ``few x depth``."""

    few: int
    lines: int
    depth: int
    batch: int
    dtype: str
    item: int
    epilogue: int


def plan(region: Region) -> list[Plan]:
    """One plan, where at most eight rows (or columns) meet a matrix that can be read 16 bytes at a time."""
    gpu = region.machine.gpu
    if gpu is None or not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    reads = epilogue_inputs(region)
    p = product(region, reads)
    dtype = p.a.type.dtype
    if not served(region, p):
        return []
    zeros = zero_points(region, p)
    if dtype in BYTES and (p.b.const is None or zeros["b"] or p.rows.extent > ROWS):
        return []
    swapped = p.rows.extent > ROWS
    few, lines = (p.columns, p.rows.extent) if swapped else (p.rows.extent, p.columns)
    if few > ROWS or (swapped and p.b.const is not None):
        return []
    matrix = None if swapped else constant(p)
    big, consts = _matrix(p, matrix, swapped)
    if big["copy"] != CHUNK:
        return []
    batch = math.prod(o.extent for o in p.outer)
    work = Work(few, lines, p.depth, batch, dtype, p.a.type.itemsize, epilogue_work(region))
    if few * padded(work, big) * work.item > HELD:
        return []
    chosen = choose(gpu, work, big["layout"])
    if chosen is None:
        return []
    if matrix is not None and zeros["a"]:
        consts = (*consts, corrections(matrix, zeros))
        zeros |= {"fixed": True}
    return [_assembled(region, p, work, (big, chosen[0], swapped), zeros, consts, reads, chosen[1])]


def _matrix(p: Product, matrix: np.ndarray | None, swapped: bool) -> tuple[Side, tuple[np.ndarray, ...]]:
    """How the matrix is read, and its packed constants."""
    if matrix is not None:
        lines, side = packed(matrix, False)
        return side, (lines.reshape(-1),)
    if swapped:
        return side_of(p.a, p.rows.extent, p.rows.a, p.depth, p.a_step, [o.a for o in p.outer]), ()
    return side_of(p.b, p.columns, p.b_column, p.depth, p.b_step, [o.b for o in p.outer]), ()


def padded(work: Work, big: Side) -> int:
    """Elements of a row in shared memory: as far as copies of 16 bytes reach."""
    width = CHUNK // work.item
    return -(-work.depth // width) * width if big["layout"] == "k" else work.depth


def forms(layout: str) -> Iterator[Form]:
    """What the choice is among."""
    if layout == "k":
        for lines in (1, 2, 4):
            for share in (1, 2, 4, 8):
                yield Form("dot", lines, share)
    else:
        for lanes in (32, 16, 8, 4, 2):
            yield Form("sum", lanes, THREADS // lanes)


@lru_cache(4096)
def choose(gpu: Gpu, work: Work, layout: str) -> tuple[Form, float] | None:
    """The cheapest form and its nanoseconds; None where none fits the GPU."""
    best: tuple[Form, float] | None = None
    width = CHUNK // work.item
    for form in forms(layout):
        sums = work.few * (form.lines if form.name == "dot" else width)
        shared = few_bytes(work) + THREADS * sums * 8 // (1 if form.name == "sum" else 32)
        if sums > 64 or shared > gpu.shared:
            continue
        blocks = -(-work.lines // form.per_block(width)) * work.batch
        chunks = work.depth / width / 32 if form.name == "dot" else work.depth
        turns = math.ceil(chunks / form.share)
        matrix = float(work.batch * work.lines * work.depth * work.item)
        rows = blocks * work.few * work.depth * work.item
        folds = 5 * sums * 2 if form.name == "dot" else 0
        load = Load(
            blocks,
            THREADS,
            40 + sums * (2 if work.dtype == "float64" else 1),
            shared,
            macs=float(work.batch * work.lines * work.depth * work.few) * (1 if work.item == 4 else 2),
            plain=float(blocks * THREADS * (folds + 40) + blocks * work.few * work.depth / width * 4),
            far=matrix + work.batch * work.lines * work.few * work.item,
            near=float(rows),
            in_flight=CHUNK * min(8.0, turns * (form.lines if form.name == "dot" else 1)),
            chain=1200 + 12 * turns * (form.lines if form.name == "dot" else 1) + 4 * folds + 6 * form.share,
        )
        cost = nanoseconds(gpu, load)
        if best is None or cost < 0.995 * best[1]:
            best = (form, cost)
    return best


def few_bytes(work: Work) -> int:
    """Bytes of the few rows in shared memory, at most."""
    return work.few * (work.depth * work.item + CHUNK)


def _assembled(
    region: Region,
    p: Product,
    work: Work,
    how: tuple[Side, Form, bool],
    zeros: dict[str, Any],
    consts: tuple[np.ndarray, ...],
    reads: list[int],
    cost: float,
) -> Plan:
    big, form, swapped = how
    ia, ib, bias = region.operand(0), region.operand(1), region.operand(2)
    assert ia is not None and ib is not None
    held = sorted({*reads, *([] if bias is None else [bias])})
    a = {"dtype": p.a.type.dtype, "row": p.rows.a, "step": p.a_step}
    b = {"dtype": p.b.type.dtype, "row": p.b_column, "step": p.b_step}
    few, matrix = (b | {"span": p.b.span}, p.a) if swapped else (a | {"span": p.a.span}, p.b)
    blocks = -(-work.lines // form.per_block(CHUNK // work.item))
    config = {
        "program": serialize(region),
        "form": form.name,
        "lines": form.lines,
        "share": form.share,
        "big": big | {"span": consts[0].size if consts else matrix.span},
        "small": few,
        "few": work.few,
        "many": work.lines,
        "depth": work.depth,
        "pitch": padded(work, big),
        "outer": outer_axes(p, big),
        "swapped": swapped,
        "blocks": blocks,
        "columns": p.columns,
        "axes": {"rank": region.anchor_type.rank, "row": p.rows.out, "column": p.column},
        "reads": held,
        "bias": bias,
        "fixes": consts[1].size if zeros["fixed"] else 0,
        "sums": SUMS.get(work.dtype, "float32"),
    }
    operands = (Arg("const", 0) if consts else Arg("in", ia if swapped else ib), Arg("in", ib if swapped else ia))
    fixed = (Arg("const", 1),) if zeros["fixed"] else ()
    rest = (*(Arg("in", i) for i in held), *(Arg("out", j) for j in range(len(region.outputs))))
    draft = Draft(KernelSpec("cuda_gemv", config), (*operands, *fixed, *rest), blocks * work.batch)
    detail = f"{form.name} {form.lines} shared by {form.share}"
    found = Plan("cuda_gemv", (draft,), cost, consts, inplace=inplace_pairs(region), detail=detail)
    return replace(found, inplace=()) if {ia, ib} & set(reads) else found


TEMPLATE = Template(
    "cuda_gemv", ("matmul", "matmul_integer"), plan, {"cuda_gemv": deferred("_cuda_gemv_emit")}, device=True
)
