"""Integer convolutions and products with constant weights by tile registers (x86 AMX), where the machine has them.

How A is walked and copied is that of ``dot_conv`` and ``dot_matmul``; a step of the reduction is a piece of up to 64
bytes of a run. Columns whose weights span more than 8 bits are left to those templates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ....targets.machine import Instruction, Machine, dot4
from ..spec import Plan, Region, Template
from . import _dot_tiles, dot_conv, dot_matmul
from ._dot_plan import NARROW, Kit, Tile, Walk, Weights, Work, epilogue_cost, finished, folded
from ._dot_tiles import COLUMNS, FOLD, ROWS
from ._tile import Columns, epilogue_inputs, fits, vectors
from .conv import Geometry
from .matmul import product

PIECE = 64  # bytes of a row of a register
CONFIGURE = 60.0  # cycles of a configuration and of the release


def piece_of(run: int) -> int:
    """Bytes of the equal pieces, multiples of 4, that a run is cut into."""
    count = -(-run // PIECE)
    return -(-run // count // FOLD) * FOLD


def _kit(machine: Machine, dtype: str, run: int) -> Kit:
    signed = dtype == "int8"
    row = Instruction("tiles", "tile", COLUMNS, (), f"int32x{COLUMNS}", (), (signed, True), dot4)
    return Kit(((COLUMNS, row),), piece_of(run), signed, flip=False)


def choose(machine: Machine, kit: Kit, walk: Walk, work: Work) -> Tile:
    """Two registers of points by two of columns, or fewer where there are fewer; blocks of one line of tiles."""
    widths, valid = vectors(work.columns, COLUMNS)
    columns = Columns(work.columns, COLUMNS, min(2, len(widths)), (COLUMNS,) * len(widths), valid)
    wide = min(walk.points, 2 * ROWS)
    pieces = walk.tap_count * -(-walk.run // kit.fold)
    assert machine.tiles is not None
    cycles = 0.0
    for points in (wide, walk.points % wide):
        times = walk.points // wide if points == wide else 1
        halves = -(-points // ROWS)
        for first in range(0, len(widths) if points else 0, columns.nv):
            nv = min(columns.nv, len(widths) - first)
            dots = halves * nv * machine.tiles.cycles
            loads = (halves + nv) * ROWS / 2
            cycles += times * (pieces * max(dots, loads) + points * nv * (4 + work.epilogue) + halves * nv * ROWS)
        cycles += times * CONFIGURE * (points != wide)
    total = cycles * walk.lines + sum(walk.again) * walk.lines * walk.copy
    return Tile(1, wide, columns, 1 if walk.lines > 1 else max(1, walk.points // wide), total * work.times + CONFIGURE)


def plan(region: Region) -> list[Plan]:
    """One plan, for constant weights of 8 bits."""
    operands = [region.operand(i) for i in (0, 1)]
    if region.machine.tiles is None or not fits(region) or None in operands:
        return []
    x, w = (region.inputs[i] for i in operands if i is not None)
    if x.type.dtype not in NARROW or w.const is None or 0 in w.type.dims or region.anchor_type.dtype != "int32":
        return []
    return _conv(region, x.type.dtype) if region.op == "conv_integer" else _product(region, x.type.dtype)


def _conv(region: Region, dtype: str) -> list[Plan]:
    g, reads = Geometry(region), epilogue_inputs(region)
    if g.group > 1 and g.depth == 1:
        return []
    if g.flat(region, reads):
        g.flatten()
    kit = _kit(region.machine, dtype, FOLD)
    copied = dot_conv.Copied(g) if dot_conv.must_copy(g, kit) else None
    walk = dot_conv.walk_of(g, kit, copied)
    if copied is None and piece_of(walk.run) > walk.run:
        copied = dot_conv.Copied(g)
        walk = dot_conv.walk_of(g, kit, copied)
    kit = replace(kit, fold=piece_of(walk.run))
    weights = _pieces(dot_conv.matrix(g, copied), kit, walk)
    if weights is None:
        return []
    work = Work(g.columns, g.batch * g.group * g.out[0], epilogue_cost(region), offset=False)
    tile = choose(region.machine, kit, walk, work)
    config = dot_conv.described(region, g, kit, copied, walk, tile)
    return [_plan(region, kit, tile, config, weights)]


def _product(region: Region, dtype: str) -> list[Plan]:
    reads = epilogue_inputs(region)
    p = product(region, reads)
    if p.column is None or p.a_step != 1 or piece_of(p.depth) > p.depth:
        return []
    walk = Walk(1, p.rows.extent, (), p.depth, overlap=True, step=abs(p.rows.a), line_bytes=p.rows.extent * p.depth)
    kit = _kit(region.machine, dtype, p.depth)
    weights = _pieces(dot_matmul.matrix(region, p), kit, walk)
    if weights is None:
        return []
    work = Work(p.columns, math.prod(o.extent for o in p.outer), epilogue_cost(region), offset=False)
    tile = choose(region.machine, kit, walk, work)
    config = dot_matmul.described(region, p, kit, walk, tile)
    return [_plan(region, kit, tile, config | {"reads": reads}, weights)]


def _pieces(matrix: np.ndarray, kit: Kit, walk: Walk) -> Weights | None:
    """Weights cut into pieces, and those into steps of 4 bytes; None where they do not fit 8 bits."""
    made = folded(matrix, kit.fold, walk.overlap)
    if made is None or made.offset is not None:
        return None
    outer, taps, pieces, piece, columns = made.steps.shape
    return replace(made, steps=made.steps.reshape(outer, taps, pieces * piece // FOLD, FOLD, columns))


def _plan(region: Region, kit: Kit, tile: Tile, config: dict[str, Any], weights: Weights) -> Plan:
    assert region.machine.tiles is not None
    functions = dict(region.machine.tiles.functions)
    named = {n: functions[n] for n in ("configure", "release", "zero", "load", "store")}
    named["dot"] = functions["dot_signed" if kit.signed else "dot_unsigned"]
    config |= {"instructions": {}, "tiles": named, "piece": kit.fold}
    return finished(region, kit, tile, config, weights, "dot_tiles", region.attrs["zero_point"])


TEMPLATE = Template("dot_tiles", ("conv_integer", "matmul_integer"), plan, {"dot_tiles": _dot_tiles.emit})
