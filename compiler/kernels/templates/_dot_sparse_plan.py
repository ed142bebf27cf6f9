"""What the sparse templates of integer contractions share: which steps are left, how they are taken, how packed.

``Runs`` are steps of neighbours, ``_dot_picks`` has the other form; ``choose`` finds the cheapest form and tile by the
model of ``_dot_plan``; ``lists`` packs weights, and where in A each step reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ....targets.machine import Machine
from . import _dot_gathers, _dot_picks
from ._dot_gathers import GATHERED, PART, Gathers
from ._dot_picks import Kind, Picks, Sequences
from ._dot_plan import Kit, Tile, Walk, Work, _block, _kinds, _tiles, cover
from ._tile import Columns, conflicts

VECTORS = (1, 2, 3, 4, 6, 8)  # of a group
OVERHEAD = 8.0  # cycles of a tile besides its steps and results
BOUND = 1 << 30  # elements that no list has
WAIT = 40.0  # cycles from the gathers of a part to its steps, which read what was just stored
WORTH_BYTES = 0.95  # of the cycles of a smaller form
WORTH_LISTS = 0.95  # of all steps
PICKS_AT_ONCE = 1.0  # byte shuffles that are issued a cycle


def chains(sums: int, latency: int, registers: int) -> int:
    """Sets of a tile's sums, so that enough instructions wait for none of the others."""
    return next((n for n in (4, 2) if sums * n <= registers // 2 and sums * (n // 2) < latency), 1)


class Runs:
    """Steps of ``fold`` neighbours for all columns of a group, of weights ``[taps, run, columns]``; those are left in
    which a column of the group has a weight."""

    vectors = VECTORS

    def __init__(self, matrix: np.ndarray, fold: int, overlap: bool) -> None:
        self.matrix, self.fold, self.kind = matrix, fold, Kind(0, float(fold))
        self.taps, self.run, self.columns = matrix.shape
        self.steps = -(-self.run // fold)
        self.late = (self.steps * fold - self.run) * overlap  # so much earlier begins the last step of a run
        self._alive: dict[int, np.ndarray] = {}

    @cached_property
    def cells(self) -> np.ndarray:
        """``[taps * steps, fold, columns]``."""
        filled = np.zeros((self.taps, self.steps * self.fold, self.columns), np.int8)
        rest = (self.steps - 1) * self.fold
        filled[:, :rest] = self.matrix[:, :rest]
        filled[:, rest + self.late : self.run + self.late] = self.matrix[:, rest:]
        return filled.reshape(-1, self.fold, self.columns)

    @cached_property
    def held(self) -> np.ndarray:
        """Bool ``[taps * steps, columns]``."""
        return np.asarray(self.cells.any(axis=1))

    def alive(self, columns: Columns) -> np.ndarray:
        """Bool ``[groups, taps * steps]``."""
        if columns.nv not in self._alive:
            starts = [first for first, *_ in columns.slices()]
            self._alive[columns.nv] = np.ascontiguousarray(np.logical_or.reduceat(self.held, starts, axis=1).T)
        return self._alive[columns.nv]

    def counts(self, columns: Columns) -> np.ndarray:
        return np.asarray(self.alive(columns).sum(axis=1))

    def places(self, at: np.ndarray, columns: Columns) -> np.ndarray:
        steps = np.arange(self.steps) * self.fold
        steps[-1] -= self.late
        every = (at[:, None] + steps).reshape(-1)
        return np.concatenate([every[own] for own in self.alive(columns)])

    def packed(self, columns: Columns) -> Iterator[tuple[np.ndarray, None]]:
        for own, (first, _, widths, valid) in zip(self.alive(columns), columns.slices(), strict=True):
            left = self.cells[..., first : first + sum(valid)][own]
            weights = np.zeros((len(left), sum(widths), self.fold), np.int8)
            weights[:, : sum(valid)] = left.swapaxes(1, 2)
            yield weights, None


Form = Runs | Picks | Gathers


@dataclass(frozen=True)
class Choice:
    form: Form
    tile: Tile
    steps: int  # of all groups


def choose(
    machine: Machine, kit: Kit, walk: Walk, work: Work, matrix: np.ndarray, below: float, most: float
) -> Choice | None:
    """The cheapest form, tile and blocking for weights ``[taps, run, columns]`` if it takes fewer cycles than ``below``
    and no more than ``most`` bytes; deterministic."""
    search = _Search(machine, kit, walk, work, below, most)
    search.take(Runs(matrix, kit.fold, walk.overlap))
    kinds = _dot_picks.kinds(machine, kit, walk.run)
    dense = -(-int(np.count_nonzero(matrix)) // (kit.fold * kit.lanes))  # steps if all places were used
    if any(search.could_gain(kind, dense) for kind in kinds):
        sequences = Sequences(matrix, kit.lanes, search.valid)
        fewest = sequences.fewest(kit.fold)
        for kind in kinds:
            if search.could_gain(kind, fewest):
                search.take(Picks(sequences, kind, kit.fold))
    search.take_gathers(matrix)
    return search.found


class _Search:
    """The best choice up to now, which another one must beat; more bytes must be worth it."""

    def __init__(self, machine: Machine, kit: Kit, walk: Walk, work: Work, below: float, most: float) -> None:
        self.machine, self.kit, self.walk, self.work = machine, kit, walk, work
        self.dense, self.below, self.most = below, below, most
        self.widths, self.valid = cover(work.columns, [lanes for lanes, _ in kit.rows])
        self.found: Choice | None = None

    def take(self, form: Form) -> None:
        """Keeps the best tile of a form if it is better than what was found."""
        for nv in (n for n in form.vectors if n <= len(self.widths)):
            columns = self.columns(nv)
            counts = form.counts(columns)
            if isinstance(form, Runs) and counts.sum() > WORTH_LISTS * columns.groups * form.taps * form.steps:
                continue
            for tile in self.tiles(form.kind, columns, counts):
                if tile.cycles < self.limit(form.kind):
                    self.below, self.found = tile.cycles, Choice(form, tile, int(counts.sum()))

    def take_gathers(self, matrix: np.ndarray) -> None:
        """Tries gathers where enough bytes of A count for no column of a group."""
        sizes = _dot_gathers.worth(self.machine, self.kit, self.walk.run)
        for nv in (n for n in VECTORS if n <= len(self.widths) and sizes is not None):
            assert sizes is not None
            columns = self.columns(nv)
            form = Gathers(matrix, self.kit.fold, *sizes, columns)
            least = form.fewest()
            gathers = -(-least * self.kit.fold // form.size)
            if any(t.cycles < self.limit(form.kind) for t in self.tiles(form.kind, columns, least, gathers)):
                counts = form.counts(columns)
                for tile in self.tiles(form.kind, columns, counts, form.gathers()):
                    if tile.cycles < self.limit(form.kind):
                        self.below, self.found = tile.cycles, Choice(form, tile, int(counts.sum()))

    def could_gain(self, kind: Kind, steps: int) -> bool:
        """Whether so few steps would be better."""
        columns = self.columns(1)
        counts = np.full(columns.groups, steps / columns.groups)
        return any(tile.cycles < self.limit(kind) for tile in self.tiles(kind, columns, counts))

    def columns(self, nv: int) -> Columns:
        return Columns(self.work.columns, self.kit.lanes, nv, self.widths, self.valid)

    def limit(self, kind: Kind) -> float:
        held = kind.bytes if self.found is None else self.found.form.kind.bytes
        if kind.bytes < held:
            return min(self.dense, self.below / WORTH_BYTES)
        return self.below * (WORTH_BYTES if kind.bytes > held else 0.999)

    def tiles(
        self, kind: Kind, columns: Columns, counts: np.ndarray, gathers: np.ndarray | None = None
    ) -> Iterator[Tile]:
        """Tiles whose sums, weights and picks fit the registers."""
        machine, work, nv = self.machine, self.work, columns.nv
        each = np.array([sum(widths) for _, _, widths, _ in columns.slices()])
        weights = int((counts * each).sum() * kind.bytes)
        if weights > self.most:
            return
        near = machine.l3 and weights < machine.l3 / 16
        cold = 0.5 * weights / (machine.l3_bandwidth if near else machine.memory_bandwidth) * work.cold
        most = max(1, (machine.registers - nv * (1 + (kind.window > 0)) - 4) // nv)
        shapes = {s[:2] for s in _tiles(machine, self.kit, self.walk, nv, False) if s[2] == nv and s[0] * s[1] <= most}
        for shape in sorted(shapes):
            cycles = self.cycles(kind, columns, counts, shape, weights)
            if gathers is not None:
                each_point = gather_cycles(machine, kind.gathered)
                cycles += float(gathers.sum()) * self.walk.lines * self.walk.points * each_point
                parts = float((-(-gathers * GATHERED // PART)).sum())
                cycles += parts * WAIT * -(-self.walk.lines // shape[0]) * -(-self.walk.points // shape[1])
            if cycles * work.times + cold < self.limit(kind):
                block, extra = _block(machine, self.walk, work, shape, columns, weights, cycles)
                yield Tile(*shape, columns, block, (cycles + extra) * work.times + cold)

    def cycles(self, kind: Kind, columns: Columns, counts: np.ndarray, shape: tuple[int, int], weights: int) -> float:
        """Cycles of all tiles of one walk."""
        machine, walk = self.machine, self.walk
        stream = machine.l2_bandwidth if weights <= machine.l2 else machine.l3_bandwidth
        stream = machine.memory_bandwidth if weights > max(machine.l2, machine.l3) else stream
        high, wide = shape
        total, first = 0.0, 0
        for group, times in _kinds(columns):
            count = float(counts[first : first + times].sum())
            first += times
            for h, hs in ((high, walk.lines // high), (walk.lines % high, 1)):
                for w, ws in ((wide, walk.points // wide), (walk.points % wide, 1)):
                    if h and w and hs and ws:
                        step = step_cycles(machine, self.kit, h * w, group, kind.window)
                        step *= 1.15 if conflicts(machine, h * w, walk.step) else 1.0
                        step = max(step, sum(group) * kind.bytes / stream)
                        own = OVERHEAD + h * w * len(group) * (2.0 + self.work.epilogue)
                        total += hs * ws * (count * step + times * own)
        return total


def step_cycles(machine: Machine, kit: Kit, rows: int, widths: Sequence[int], window: int) -> float:
    """Cycles of one step of a list for a tile whose operands lie in the first-level cache."""
    row = kit.rows[0][1]
    half = 0.5 if machine.fma_ports == 1 and machine.lanes == 16 else 1.0
    lanes = sum(max(half, w / kit.lanes) for w in widths)
    dots = rows * lanes / (machine.fma_ports * row.per_cycle)
    dots += 0.25 * rows * kit.flip / machine.fma_ports
    spreads = min(2.0, 2 * machine.load_ports) if machine.lanes == 16 or machine.load_ports < 1 else machine.load_ports
    each = machine.load_ports if window >= machine.vector_bytes else spreads
    split = 1 + max(0, window - 1) / machine.line  # a window may lie across two lines
    loads = 1 / spreads + rows * split / each + len(widths) * (2 if window else 1) / machine.load_ports
    if window:
        picked = (rows + (window <= _dot_picks.NIBBLE)) * lanes / PICKS_AT_ONCE
        dots = max(dots, picked) + min(dots, picked) / 3
    waits = machine.fma_latency / chains(rows * len(widths), machine.fma_latency, machine.registers)
    return max(dots, loads, float(waits), 1.5) + (0.15 if machine.fma_ports >= 2 else 0.03) * loads


def gather_cycles(machine: Machine, window: int) -> float:
    """Cycles of one gather for one point: a load (maybe of two lines), a shuffle, a store."""
    rate = machine.load_ports if window >= machine.vector_bytes else 2 * machine.load_ports
    return max((1 + max(0, window - 1) / machine.line) / rate, 1.0) + 0.3


# -- packed weights --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lists:
    """``weights`` int8 ``[group][step][column][fold]``; ``groups`` int32 ``[group][first step, steps, where its weights
    and its picks begin]``; ``places`` of all steps in A; ``picks`` uint8 (for windows of few bytes those of two steps
    together, the first one's in the low halves).

    With gathers: ``groups`` ``[group][first part, parts, where its weights begin, 0]``, ``places`` and ``picks`` of
    gathers, and ``parts`` int32 ``[part][first gather, gathers, steps]``, ``ends``: where each gather writes."""

    weights: np.ndarray
    groups: np.ndarray
    places: np.ndarray
    picks: np.ndarray | None
    parts: np.ndarray | None = None
    ends: np.ndarray | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        more = [a for a in (self.picks, self.parts, self.ends) if a is not None]
        every = [self.weights, self.groups, self.places, *more]
        return [a if a.size else np.zeros(1, a.dtype) for a in every]


def lists(form: Form, columns: Columns, taps: Sequence[Sequence[int]]) -> Lists:
    """What is left of the weights, packed for a tile's groups; ``taps`` are extents and steps in A."""
    at = np.zeros(1, np.int64)
    for extent, step in taps:
        at = (at[:, None] + np.arange(extent) * step).reshape(-1)
    places = form.places(at, columns)
    narrow = not places.size or (places.min() >= 0 and places.max() < 1 << 16)
    if isinstance(form, Gathers):
        return _gathered(form, columns, places.astype(np.uint16 if narrow else np.int32))
    rows, weights, picks = [], [], []
    step = first = picked = 0
    for own, numbers in form.packed(columns):
        rows.append((step, len(own), first, picked))
        weights.append(own.reshape(-1))
        step, first = step + len(own), first + own.size
        if numbers is not None:
            picks.append(numbers.reshape(-1))
            picked += numbers.size
    return Lists(
        np.concatenate(weights),
        np.array(rows, np.int32).reshape(-1),
        places.astype(np.uint16 if narrow else np.int32),
        np.concatenate(picks) if form.kind.window else None,
    )


def _gathered(form: Gathers, columns: Columns, places: np.ndarray) -> Lists:
    weights = [own.reshape(-1) for own, _ in form.packed(columns)]
    starts = np.cumsum([0, *(w.size for w in weights[:-1])])
    firsts = np.cumsum([0, *(len(own) for own in form.parts[:-1])])
    rows = [(first, len(own), start, 0) for first, own, start in zip(firsts, form.parts, starts, strict=True)]
    parts = [(p.first, p.gathers, p.steps) for own in form.parts for p in own]
    return Lists(
        np.concatenate(weights),
        np.array(rows, np.int32).reshape(-1),
        places,
        form.schedule.number.reshape(-1),
        np.array(parts, np.int32).reshape(-1),
        form.ends().astype(np.uint16) if parts else np.zeros(0, np.uint16),
    )


def described(config: dict[str, Any], machine: Machine, kit: Kit, form: Form, packed: Lists) -> None:
    """Adds to a kernel's configuration what it must know of the lists. Their lengths are not part of it, only a bound,
    so that layers of one shape share their kernel whatever is zero in them."""
    config["weights"] = BOUND
    config["window"] = form.kind.window
    config["waits"] = [machine.fma_latency, machine.registers]
    rows = _dot_picks.rows(machine, kit, form.kind.window) if form.kind.window else {}
    config["picks"] = {str(n): r.name for n, r in rows.items()}
    config["lists"] = [["groups", "int32", packed.groups.size], ["places", str(packed.places.dtype), BOUND]]
    config["lists"] += [] if packed.picks is None else [["picks", "uint8", BOUND]]
    if isinstance(form, Gathers):
        found = _dot_gathers.row(machine, form.matrix.shape[1])
        assert found is not None
        config["gathers"] = {"row": found[0].name, "window": form.window, "size": form.size}
        config["lists"] += [["parts", "int32", BOUND], ["ends", "uint16", BOUND]]
