"""What the templates of integer contractions share: instructions, packed weights, tiles and tasks.

An instruction folds ``fold`` neighbouring bytes of one point and of one column into an int32 lane. ``Walk`` says how A
is walked, ``Kit`` which instructions serve it; ``finished`` packs constant weights and makes the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ....targets.machine import Instruction, Machine
from ...ops import OPS, Kind
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region
from ._numbers import Numbers
from ._tile import GHZ, TASKS, WORTH_SHARING, Columns, conflicts, inplace_pairs, split

NARROW = ("int8", "uint8")
SLACK = 64  # bytes behind a copy of A that may be read
COPY = {"run": 0.05, "points": 0.3, "planes": 0.4, "scattered": 3.0}  # cycles a byte of such a copy costs


@dataclass(frozen=True)
class Kit:
    """Instructions of one kind by their lanes, most lanes first. ``flip`` says that A's sign must be exchanged,
    ``signed`` what A is then."""

    rows: tuple[tuple[int, Instruction], ...]
    fold: int
    signed: bool
    flip: bool

    @property
    def dtype(self) -> str:
        return "int8" if self.signed else "uint8"

    @property
    def lanes(self) -> int:
        return self.rows[0][0]

    @property
    def names(self) -> dict[str, str]:
        return {str(lanes): row.name for lanes, row in self.rows}


@cache
def kit(machine: Machine, dtype: str) -> Kit | None:
    """The exact instructions for weights of int8 and an A of ``dtype``: of its sign, if there are such."""
    for kind, fold in (("dot4", 4), ("dot2", 2)):
        for signed in (dtype == "int8", dtype != "int8"):
            found: dict[int, Instruction] = {}
            for row in machine.instructions:
                if row.kind == kind and row.signed == (signed, True) and not row.saturates:
                    found.setdefault(row.lanes, row)
            if found:
                rows = tuple(sorted(found.items(), reverse=True))
                return Kit(rows, fold, signed, signed != (dtype == "int8"))
    return None


def cover(count: int, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and valid lanes of the vectors that cover ``count`` columns; ``sizes`` fall."""
    widths = [sizes[0]] * (count // sizes[0])
    rest = count % sizes[0]
    tail: list[int] = []
    left = rest
    while left > 0:
        fitting = [s for s in sizes if s <= left]
        # the smallest that holds all, unless full ones of the next size leave less over
        chosen = fitting[0] if fitting and fitting[0] != left and len(tail) == 0 else min(s for s in sizes if s >= left)
        tail.append(chosen)
        left -= chosen
    above = [s for s in sizes if s >= rest]
    if rest and above and sum(tail) >= min(above):
        tail = [min(above)]
    widths += tail
    valid, left = [], count
    for w in widths:
        valid.append(min(w, left))
        left -= valid[-1]
    return tuple(widths), tuple(valid)


@dataclass(frozen=True)
class Walk:
    """How A is walked: points ``[line][point]`` of one result, ``taps`` (extent, step) of which each is a run of
    ``run`` bytes. ``overlap``: nothing behind a run may be read. ``again``: bytes copied for each block of lines
    (first number for a block, second for each line of it) at ``copy`` cycles a byte."""

    lines: int
    points: int
    taps: tuple[tuple[int, int], ...]
    run: int
    overlap: bool
    step: int  # bytes between points
    line_bytes: int
    again: tuple[int, int] = (0, 0)
    copy: float = 0.0

    @property
    def tap_count(self) -> int:
        return math.prod(t[0] for t in self.taps)


@dataclass(frozen=True)
class Tile:
    """``high`` lines of ``wide`` points by ``columns.nv`` vectors; ``block`` tiles of lines (of points, where there is
    one line) make a block."""

    high: int
    wide: int
    columns: Columns
    block: int
    cycles: float

    def describe(self) -> str:
        return f"{self.high}x{self.wide}x{self.columns.nv}v{self.columns.lanes} block {self.block}"


@dataclass(frozen=True)
class Work:
    """What the choice of a tile depends on besides the walk. ``times`` such walks are made."""

    columns: int
    times: int
    epilogue: float
    offset: bool
    cold: bool = True


def epilogue_cost(region: Region) -> float:
    """Cycles for one vector of results, roughly."""
    dear = {"requantize": 4.0, "add_integer": 6.0, "lookup": 16.0}
    ops = [region.body.node(n).op for n in region.body if n != region.anchor]
    return sum(dear.get(op, 1.0) for op in ops if OPS[op].kind is Kind.ELEMENTWISE)


def _step_cycles(machine: Machine, kit: Kit, rows: int, widths: Sequence[int], offset: bool) -> float:
    """Cycles of one step of a tile whose operands lie in the first-level cache."""
    row = kit.rows[0][1]
    half = 0.5 if machine.fma_ports == 1 and machine.lanes == 16 else 1.0
    lanes = sum(max(half, w / kit.lanes) for w in widths) + (widths[0] / kit.lanes if offset else 0)
    dots = rows * lanes / (machine.fma_ports * row.per_cycle)
    dots += 0.25 * rows * kit.flip / machine.fma_ports
    spreads = min(2.0, 2 * machine.load_ports) if machine.lanes == 16 or machine.load_ports < 1 else machine.load_ports
    loads = rows / spreads + len(widths) / machine.load_ports
    return max(dots, loads, float(machine.fma_latency)) + (0.15 if machine.fma_ports >= 2 else 0.03) * loads


def _tiles(machine: Machine, kit: Kit, walk: Walk, vectors: int, offset: bool) -> Iterator[tuple[int, int, int]]:
    """Lines, points and vectors of tiles that fit the registers."""
    long = len(kit.rows[0][1].body) > 4  # halves of both factors in registers of their own
    for nv in range(1, min(vectors, 12) + 1):
        free = machine.registers - nv * (1 + long) - (2 if nv <= 2 else 3) - long - offset
        most = max(1, min(16, free // (nv + offset)))
        for wide in range(1, min(walk.points, most) + 1):
            for high in range(1, min(walk.lines, most // wide) + 1) if wide == walk.points else (1,):
                yield high, wide, nv


@lru_cache(4096)
def choose(machine: Machine, kit: Kit, walk: Walk, work: Work) -> Tile:
    """The cheapest tile and blocking; deterministic."""
    widths, valid = cover(work.columns, [lanes for lanes, _ in kit.rows])
    steps = walk.tap_count * -(-walk.run // kit.fold)
    weights = steps * kit.fold * sum(widths)
    stream = machine.l2_bandwidth if weights <= machine.l2 else machine.l3_bandwidth
    if weights > max(machine.l2, machine.l3):
        stream = machine.memory_bandwidth
    best: tuple[float, int, int, Columns] | None = None
    for high, wide, nv in _tiles(machine, kit, walk, len(widths), work.offset):
        columns = Columns(work.columns, kit.lanes, nv, widths, valid)
        total = 0.0
        for group, times in _kinds(columns):
            for h, hs in ((high, walk.lines // high), (walk.lines % high, 1)):
                for w, ws in ((wide, walk.points // wide), (walk.points % wide, 1)):
                    if h and w and hs and ws:
                        r = h * w
                        step = _step_cycles(machine, kit, r, group, work.offset)
                        step *= 1.3 if conflicts(machine, r, walk.step) else 1.0
                        step = max(step, sum(group) * kit.fold / stream)
                        own = steps * step + 16 + 2 * walk.tap_count + r * len(group) * (2.0 + work.epilogue)
                        total += times * hs * ws * own
        if best is None or total < best[0] * 0.999:
            best = (total, high, wide, columns)
    assert best is not None
    cycles, high, wide, columns = best
    block, extra = _block(machine, walk, work, (high, wide), columns, weights, cycles)
    cold = weights / (machine.l3_bandwidth if machine.l3 and weights < machine.l3 / 16 else machine.memory_bandwidth)
    return Tile(high, wide, columns, block, (cycles + extra) * work.times + (0.5 * cold if work.cold else 0.0))


def _kinds(columns: Columns) -> list[tuple[tuple[int, ...], int]]:
    kinds = [(columns.widths[: columns.nv], columns.full)] if columns.full else []
    return kinds + [(columns.widths[i:j], 1) for i, j in columns.rests]


def _block(
    machine: Machine, walk: Walk, work: Work, tile: tuple[int, int], columns: Columns, weights: int, cycles: float
) -> tuple[int, float]:
    """Tiles of lines (or points) that are computed for all columns before the next ones, and the cycles that fetching
    A and B again and copying A cost."""
    lines = walk.lines > 1
    size = tile[0] if lines else tile[1]
    units = max(1, (walk.lines if lines else walk.points) // size)
    unit_bytes = size * (walk.line_bytes if lines else walk.step)
    far = machine.l3_bandwidth if machine.l3 else machine.memory_bandwidth
    best: tuple[float, int] | None = None
    sizes = {units} if walk.copy and not lines else {*(1 << i for i in range(units.bit_length())), units}
    for block in sorted(sizes):
        blocks = -(-units // block)
        copied = walk.again[0] + (block * size if lines else 1) * walk.again[1]
        cost = blocks * copied * walk.copy + copied / 256
        held = copied or block * unit_bytes
        if copied > 0.7 * machine.l1:
            cost += 2 * blocks * copied / machine.l2_bandwidth
        if weights > 0.6 * machine.l2:
            cost += 0.5 * (blocks - 1) * weights / far
        elif weights > 0.5 * machine.l1:
            cost += 0.2 * (blocks - 1) * weights / machine.l2_bandwidth
        if held > 0.6 * machine.l2:
            cost += 0.5 * (columns.groups - 1) * units * unit_bytes / far
        elif held > 0.6 * machine.l1:
            cost += 0.15 * (columns.groups - 1) * units * unit_bytes / machine.l2_bandwidth
        tasks = blocks * work.times * columns.groups
        if cycles * work.times > WORTH_SHARING and tasks < TASKS:
            cost += (0.02 if tasks >= TASKS // 2 else 0.1) * cycles * work.times
        if best is None or cost < best[0] - 1:
            best = (cost, block)
    assert best is not None
    return best[1], best[0]


# -- weights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """``steps``: int8 ``[outer, taps, steps, fold, columns]``; ``sums`` of each column and ``offset`` (or None), the
    number that each weight of a column is larger than its packed byte: int64 ``[outer, columns]``."""

    steps: np.ndarray
    sums: np.ndarray
    offset: np.ndarray | None = field(default=None)


def folded(weights: np.ndarray, fold: int, overlap: bool) -> Weights | None:
    """``[outer, taps, run, columns]`` (integers) cut into steps; None if a column's weights span more than 8 bits."""
    wide = weights.astype(np.int64)
    outer, taps, run, columns = wide.shape
    high, low = wide.max(axis=(1, 2), initial=0), wide.min(axis=(1, 2), initial=0)
    offset = np.where(high > 127, high - 127, np.where(low < -128, low + 128, 0))
    if (high - low > 255).any():
        return None
    sums = wide.sum(axis=(1, 2))
    narrow = (wide - offset[:, None, None, :]).astype(np.int8)
    steps = -(-run // fold)
    padded = np.zeros((outer, taps, steps * fold, columns), np.int8)
    whole = run // fold * fold
    padded[:, :, :whole] = narrow[:, :, :whole]
    if run > whole:
        first = whole + (fold - (run - whole) if overlap else 0)
        padded[:, :, first : first + run - whole] = narrow[:, :, whole:]
    return Weights(padded.reshape(outer, taps, steps, fold, columns), sums, offset if offset.any() else None)


def packed(weights: Weights, columns: Columns) -> np.ndarray:
    """The steps as ``[outer][group of columns][taps][step][column][fold]``, flat."""
    outer, taps, steps, fold, _ = weights.steps.shape
    parts = []
    for first, _, widths, valid in columns.slices():
        part = np.zeros((outer, taps, steps, sum(widths), fold), np.int8)
        part[..., : sum(valid), :] = weights.steps[..., first : first + sum(valid)].swapaxes(-1, -2)
        parts.append(part.reshape(outer, -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=1)).reshape(-1)


def spread(vector: np.ndarray, columns: Columns) -> np.ndarray:
    """``[outer, columns]`` (int64) as int32 where the packed columns have theirs, flat."""
    parts = []
    for first, _, widths, valid in columns.slices():
        part = np.zeros((len(vector), sum(widths)), np.int64)
        part[:, : sum(valid)] = vector[:, first : first + sum(valid)]
        parts.append(part)
    whole = np.concatenate(parts, axis=1).reshape(-1)
    return (whole & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def zero_as_read(zero: int, kit: Kit) -> int:
    """A's zero point after its sign is exchanged."""
    return zero if not kit.flip else zero - 128 if kit.signed else zero + 128


# -- plans ---------------------------------------------------------------------------------------------------------


def configuration(region: Region, kit: Kit, walk: Walk, tile: Tile, outer: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of a kernel's configuration that all templates fill alike."""
    columns = tile.columns
    lines = walk.lines > 1
    units = max(1, (walk.lines // tile.high) if lines else walk.points // tile.wide)
    blocks = -(-units // tile.block)
    dims = [*(o["extent"] for o in outer), blocks]
    wanted = max(1, -(-TASKS // (2 * math.prod(dims)))) if tile.cycles >= WORTH_SHARING else 1
    size = -(-max(1, columns.full) // wanted)
    chunks = -(-max(1, columns.full) // size)
    return {
        "program": serialize(region),
        "instructions": kit.names,
        "fold": kit.fold,
        "outer": outer,
        "tile": [tile.high, tile.wide],
        "block": tile.block,
        "blocks": blocks,
        "chunk": size,
        "chunks": chunks,
        "split": split([*dims, chunks], tile.cycles),
        "columns": columns.data(),
        "taps": [list(t) for t in walk.taps],
        "run": {"bytes": walk.run, "steps": -(-walk.run // kit.fold), "overlap": walk.overlap},
        "depth": walk.tap_count * -(-walk.run // kit.fold) * kit.fold,
        "border": None,
        "slab": False,
        "offset": False,
    }


def finished(
    region: Region,
    kit: Kit,
    tile: Tile,
    config: dict[str, Any],
    weights: Weights,
    template: str,
    zero: int,
    lists: Sequence[np.ndarray] | None = None,
) -> Plan:
    """The plan with constant weights; ``zero`` is A's zero point in the region. ``lists`` are packed weights in another
    form, and the arrays that say which those are (``config["lists"]``)."""
    columns = tile.columns
    bias = region.operand(2)
    held = None if bias is None else region.inputs[bias].const
    starts = -zero_as_read(zero, kit) * weights.sums
    if held is not None:
        starts = starts + held.astype(np.int64).reshape(-1, starts.shape[1])
    config["runtime_bias"] = bias if held is None else None
    config["reads"] = sorted({*config["reads"], *([bias] if held is None and bias is not None else [])})
    numbers = Numbers()
    config["program"] = numbers.program(config["program"])
    border = config["border"]
    if border and border["channels"] == border["pixel"]:
        border["zero"] = numbers.put(border["zero"])
    own = packed(weights, columns) if lists is None else lists[0]
    consts = [own, np.append(spread(starts, columns), np.int32(1)), numbers.array]
    config["starts"], config["numbers"] = (c.size for c in consts[1:])
    config.setdefault("weights", own.size)
    if weights.offset is not None:
        config["offset"] = True
        consts.append(np.append(spread(weights.offset, columns), np.int32(0)))
    consts += [] if lists is None else lists[1:]
    x = region.operand(0)
    assert x is not None
    args = [Arg("in", x), *(Arg("const", i) for i in range(len(consts)))]
    args += [Arg("in", i) for i in config["reads"]] + [Arg("out", j) for j in range(len(region.outputs))]
    if border:
        args.append(Arg("worker", 0))
    dims = [*(o["extent"] for o in config["outer"]), config["blocks"], config["chunks"]]
    tasks = math.prod(dims[: config["split"]]) if config["split"] else None
    return Plan(
        template,
        (Draft(KernelSpec(template, config), tuple(args), tasks),),
        cost=tile.cycles / GHZ + 50,
        consts=tuple(consts),
        worker_bytes=border["bytes"] if border else 0,
        inplace=inplace_pairs(region),
        detail=f"{kit.rows[0][1].name} {tile.describe()}{' copied' if border else ''}",
    )
