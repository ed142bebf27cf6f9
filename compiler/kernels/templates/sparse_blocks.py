"""Matrix products and convolutions of weights that are zero for whole vectors of columns at once.

Lanes are columns, as in the dense kernels. A group of columns (a vector, or several that share their zeros) has a list
of the rows in which it has any weight: where A begins for that row, as a small integer, and the weights themselves. A
register tile takes one entry of the list after the other, so that what is left out costs neither time nor bytes, and
equal shapes share a kernel whatever their zeros are. Any pattern fits whose cells span a vector (``block:1x16``,
``2:4x16``); which of the others have vectors that are zero by chance is for the cost to say. What a weight of zero
makes of an infinite or undefined input is left out with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _sparse_walks, conv, matmul
from ._sparse import DENSE, alive_columns, compact, sparse_matrix
from ._tile import (
    GHZ,
    Columns,
    Shape,
    Tile,
    conflicts,
    cut_blocks,
    epilogue_inputs,
    epilogue_work,
    fits,
    inplace_pairs,
    pack_vector,
    tile_candidates,
    vectors,
)

VECTORS = (1, 2, 3, 4, 6, 8)  # of a group: as many as share their zeros
LEAST_SUMS = 8  # sums in flight that hide how long one takes


@dataclass(frozen=True)
class Walked:
    """What of a layer decides how it is cut: its ``shape``, how many ``lists`` the taps at a border make of the one of
    a group, the part of all ``tiles`` that meet such a border, and the part of the products that lie ``inside``."""

    shape: Shape
    lists: int = 1
    border: float = 0.0
    inside: float = 1.0


@dataclass(frozen=True)
class Lists:
    """Columns in groups, and the rows that each group has (bool ``[K, groups]``). ``kinds``: groups of equal widths as
    ``(widths, entries, groups)``."""

    columns: Columns
    groups: np.ndarray
    kinds: tuple[tuple[tuple[int, ...], int, int], ...]

    @property
    def nbytes(self) -> int:
        """Weights and places that are kept."""
        return sum(entries * (4 * sum(widths) + 2) for widths, entries, _ in self.kinds)

    @property
    def kept(self) -> float:
        """The part of the weights that is kept, as vectors have them."""
        return self.nbytes / max(1, int(self.groups.shape[0]) * self.columns.packed * 4)


@dataclass(frozen=True)
class Choice:
    tile: Tile
    unroll: int
    lists: Lists


def plan(region: Region) -> list[Plan]:
    """One plan, where zeros leave enough out."""
    if region.anchor_type.dtype != "float32" or not fits(region) or region.operand(0) is None:
        return []
    matrix = sparse_matrix(region)
    if matrix is None or region.inputs[region.operand(0)].type.dtype != "float32":  # type: ignore[index]
        return []
    reads = epilogue_inputs(region)
    return _product(region, matrix, reads) if region.op == "matmul" else _convolution(region, matrix, reads)


def _product(region: Region, matrix: np.ndarray, reads: list[int]) -> list[Plan]:
    p = matmul.product(region, reads)
    shape = Shape(
        rows=p.rows.extent,
        lines=math.prod(o.extent for o in p.outer),
        columns=p.columns,
        depth=p.depth,
        row_step=abs(p.rows.a) * 4,
        line_bytes=p.rows.extent * p.depth * 4,
        epilogue=epilogue_work(region),
        exact_columns=region.small,
        alone=True,
    )
    choice = choose(region.machine, Walked(shape), matrix)
    if choice is None:
        return []
    config = matmul.configure(region, p, choice.tile, "float32", reads, False)
    return [_assemble(region, matrix, choice, config, np.arange(p.depth) * p.a_step)]


def _convolution(region: Region, matrix: np.ndarray, reads: list[int]) -> list[Plan]:
    g = conv.Geometry(region)
    if g.flat(region, reads):
        g.flatten()
    cut = any(g.border(i) for i in range(3))
    lists = math.prod(g.kernel) if cut else 1
    inside = [
        sum(g.inside(i, p, t) for p in range(g.out[i]) for t in range(g.kernel[i])) / (g.out[i] * g.kernel[i])
        for i in range(3)
    ]
    border = min(1.0, g.kernel[2] * 8 / max(1, g.out[2])) if g.border(2) else 0.0
    shape = conv.shape_of(region, g)
    choice = choose(region.machine, Walked(shape, lists, border, math.prod(inside)), matrix)
    if choice is None:
        return []
    config = conv.configure(region, g, choice.tile, "float32", reads)
    taps = np.zeros(1, np.int64)
    for step, dilation, kernel in zip(g.step, g.dilations, g.kernel, strict=True):
        taps = (taps[:, None] + np.arange(kernel) * (step * dilation)).reshape(-1)
    places = (taps[:, None] + np.arange(g.depth) * g.x.strides[1]).reshape(-1)
    return [_assemble(region, matrix, choice, config, places, lists, cut)]


# -- how it is cut -------------------------------------------------------------------------------------------------


def choose(machine: Machine, walked: Walked, matrix: np.ndarray) -> Choice | None:
    """The cheapest register tile (deterministic); None where next to nothing can be left out."""
    shape = walked.shape
    widths, valid = vectors(shape.columns, machine.lanes, exact=shape.exact_columns)
    alive = alive_columns(matrix, widths)
    if alive.mean() > DENSE:
        return None
    tiles = sorted(tile_candidates(machine, shape, len(widths)))
    best: Choice | None = None
    for nv in VECTORS:
        if nv > len(widths):
            break
        lists = _lists(Columns(shape.columns, machine.lanes, nv, widths, valid), alive)
        for rows in [r for r, n in tiles if n == nv]:
            unroll = _unroll(machine, rows, nv)
            cycles = _cycles(machine, walked, lists, rows, unroll)
            if best is None or cycles < 0.995 * best.tile.cycles:
                best = Choice(Tile(rows, lists.columns, 1, 0, cycles), unroll, lists)
    assert best is not None
    tile, kept = best.tile, best.lists.nbytes
    line_block, row_block, extra = cut_blocks(machine, shape, tile.rows, tile.columns, kept, tile.cycles)
    return replace(best, tile=replace(tile, line_block=line_block, row_block=row_block, cycles=tile.cycles + extra))


def _lists(columns: Columns, alive: np.ndarray) -> Lists:
    """The rows of each group of columns, from those that each vector has."""
    spans = [(g * columns.nv, (g + 1) * columns.nv) for g in range(columns.full)] + columns.rests
    groups = np.logical_or.reduceat(alive, [first for first, _ in spans], axis=1)
    kinds: dict[tuple[int, ...], tuple[int, int]] = {}
    for (i, j), count in zip(spans, groups.sum(axis=0).tolist(), strict=True):
        entries, number = kinds.get(columns.widths[i:j], (0, 0))
        kinds[columns.widths[i:j]] = entries + count, number + 1
    return Lists(columns, groups, tuple((widths, *found) for widths, found in kinds.items()))


def _unroll(machine: Machine, rows: int, nv: int) -> int:
    """Entries at once, each with sums of its own, where a tile alone has too few."""
    wanted = -(-LEAST_SUMS // (rows * nv))
    return min(4, wanted, max(1, (machine.registers - 2) // (2 * rows * nv)))


def _cycles(machine: Machine, walked: Walked, lists: Lists, rows: int, unroll: int) -> float:
    """All tiles of all lines."""
    shape, kept, total = walked.shape, lists.nbytes, 0.0
    stream = machine.l2_bandwidth if kept <= machine.l2 else machine.l3_bandwidth
    if kept > max(machine.l3, machine.l2):
        stream = machine.memory_bandwidth
    runs = 1 + walked.border * (walked.lists - 1)
    for r, tiles in ((rows, shape.rows // rows), (shape.rows % rows, 1)):
        if not r or not tiles:
            continue
        for widths, entries, number in lists.kinds:
            step = entry_cycles(machine, r, widths, unroll)
            if conflicts(machine, r, shape.row_step):
                step *= 1.4
            step = max(step, (sum(widths) * 4 + 2) / stream)
            around = 14 + 10 * runs + r * len(widths) * (1.5 + shape.epilogue) + unroll * r * len(widths) / 2
            total += tiles * (entries * step * walked.inside + number * around)
    cold = kept / (machine.l3_bandwidth if machine.l3 and kept < machine.l3 / 16 else machine.memory_bandwidth)
    return total * shape.lines + 0.5 * cold


def entry_cycles(machine: Machine, rows: int, widths: Sequence[int], unroll: int) -> float:
    """Cycles of one entry whose operands lie in the first-level cache."""
    lanes = machine.lanes
    half = 0.5 if machine.fma_ports == 1 and lanes == 16 else 1.0
    fma = rows * sum(max(half, w / lanes) if w < lanes else 1.0 for w in widths) / machine.fma_ports
    scalar_loads = min(2.0, 2 * machine.load_ports) if lanes == 16 or machine.load_ports < 1 else machine.load_ports
    loads = (rows + 1) / scalar_loads + len(widths) / machine.load_ports
    return max(fma, loads, machine.fma_latency / unroll) + (0.15 if machine.fma_ports >= 2 else 0.03) * loads


# -- what is kept --------------------------------------------------------------------------------------------------


def _assemble(
    region: Region,
    matrix: np.ndarray,
    choice: Choice,
    config: dict[str, Any],
    places: np.ndarray,
    lists: int = 1,
    border: bool = False,
) -> Plan:
    """The plan of a contraction with a chosen cut. ``places``: where A begins for each row of the matrix; ``lists`` of
    each group, one for each tap where some taps fall outside at a ``border``."""
    columns = choice.tile.columns
    index, unit = compact(places)
    weights, rows, starts = packed(matrix, columns, choice.lists.groups, lists)
    config["lists"] = {
        "dtype": index.dtype.name,
        "unit": unit,
        "taps": lists,
        "border": border,
        "count": columns.groups,
        "entries": matrix.shape[0] * columns.groups,
        "unroll": choice.unroll,
    }
    consts = [weights]
    x, bias = region.operand(0), region.operand(2)
    assert x is not None
    args = [Arg("in", x), Arg("const", 0)]
    if config["bias"]:
        held = region.inputs[bias].const if bias is not None else None
        assert held is not None
        args.append(Arg("const", len(consts)))
        consts.append(pack_vector(held.astype(np.float32), columns))
    args += [Arg("in", i) for i in config["reads"]] + [Arg("out", j) for j in range(len(region.outputs))]
    args += [Arg("const", len(consts)), Arg("const", len(consts) + 1)]
    consts += [index[rows], starts]
    cycles = choice.tile.cycles
    y = region.outputs[0]
    if region.op == "conv" and y.type.dims[1] > 1 and y.strides[1] != 1:
        cycles += 2.0 * y.type.size  # channels apart in memory: vectors are stored lane by lane
    return Plan(
        "sparse_blocks",
        (Draft(KernelSpec("sparse_blocks", config), tuple(args), matmul.tasks_of(config)),),
        cost=cycles / GHZ + 50,
        consts=tuple(consts),
        inplace=inplace_pairs(region),
        detail=f"lists {choice.tile.describe()}, {choice.lists.kept:.0%} kept",
    )


def packed(
    matrix: np.ndarray, columns: Columns, groups: np.ndarray, lists: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, entry after entry; the matrix's row of each entry; where each group's list of each tap begins, the last
    one's end, and for each group of fewer vectors what to add to the place of its weights."""
    number, rows = np.nonzero(groups.T)
    tap = rows // (matrix.shape[0] // lists)
    counts = np.bincount(number * lists + tap, minlength=columns.groups * lists)
    starts = [0, *np.cumsum(counts)]
    at = np.searchsorted(number, np.arange(columns.groups + 1))
    parts: list[np.ndarray] = []
    shifts: list[int] = []
    done = 0
    for g, (first, _, widths, valid) in enumerate(columns.slices()):
        own = matrix[rows[at[g] : at[g + 1]], first : first + sum(valid)]
        if sum(widths) > sum(valid):
            own = np.pad(own, ((0, 0), (0, sum(widths) - sum(valid))))
        if g >= columns.full:
            shifts.append(done - int(at[g]) * sum(widths))
        parts.append(own.reshape(-1))
        done += own.size
    return np.concatenate(parts), rows, np.array([*starts, *shifts], np.int32)


TEMPLATE = Template("sparse_blocks", ("conv", "matmul"), plan, {"sparse_blocks": _sparse_walks.emit})
