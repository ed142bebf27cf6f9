"""Weights that all columns of a group have at the same places (N:M shared by a vector, single rows), as steps over the
bytes of A that count: those are gathered side by side first, by byte shuffles, for the points of a tile.

Gathers and steps come in parts, so that what is gathered fits a small array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ....targets.machine import Instruction, Machine
from ._dot_picks import WINDOWS, Kind, Schedule, Sequences, table
from ._dot_plan import Kit
from ._tile import Columns

PART = 512  # bytes that are gathered of a point before its steps are taken
GATHERED = 32  # bytes that one gather makes at most


def row(machine: Machine, run: int) -> tuple[Instruction, int] | None:
    """The instruction that gathers from the longest window that fits runs of ``run`` bytes, and the window."""
    fitting = [r for r in machine.instructions if r.kind in ("pick", "pick16") and (r.kind == "pick" or r.lanes == 16)]
    found = [(min(table(r), n), n, r) for r in fitting for n in WINDOWS if 8 <= n <= min(run, table(r))]
    if not found:
        return None
    _, window, best = max(found, key=lambda f: (f[0], f[2].lanes))
    return best, window


@dataclass(frozen=True)
class Part:
    """Gathers (first one, how many) and how many steps follow."""

    first: int
    gathers: int
    steps: int


class Gathers:
    """A form of steps; see the module. Of weights ``[taps, run, columns]``."""

    def __init__(self, matrix: np.ndarray, fold: int, window: int, size: int, columns: Columns) -> None:
        self.matrix, self.fold, self.window, self.size, self.columns = matrix, fold, window, size, columns
        self.kind, self.vectors = Kind(0, float(fold), window), (columns.nv,)

    @cached_property
    def alive(self) -> np.ndarray:
        """int8 ``[taps, run, groups]``: 1 where a group has some weight."""
        starts = [first for first, *_ in self.columns.slices()]
        return np.asarray(np.logical_or.reduceat(self.matrix != 0, starts, axis=2).astype(np.int8))

    def fewest(self) -> np.ndarray:
        """Steps of each group but for what parts waste."""
        return np.asarray(-(-self.alive.sum(axis=(0, 1), dtype=np.int64) // self.fold))

    @cached_property
    def schedule(self) -> Schedule:
        ones = (1,) * self.columns.groups
        return Sequences(self.alive, 1, ones).schedule(self.window, self.size)

    @cached_property
    def parts(self) -> list[list[Part]]:
        """Of each group."""
        made = self.schedule
        held = made.weight.sum(axis=(1, 2), dtype=np.int64)
        ends = np.cumsum(np.bincount(made.group, minlength=self.columns.groups))
        found = []
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            own, first, taken = [], int(begin), 0
            for e in range(int(begin), int(end)):
                if taken + self.size > PART:
                    own.append(Part(first, e - first, -(-taken // self.fold)))
                    first, taken = e, 0
                taken += int(held[e])
            if first < end:
                own.append(Part(first, int(end) - first, -(-taken // self.fold)))
            found.append(own)
        return found

    def counts(self, columns: Columns) -> np.ndarray:
        return np.array([sum(p.steps for p in own) for own in self.parts])

    def gathers(self) -> np.ndarray:
        """Gathers of each group."""
        return np.bincount(self.schedule.group, minlength=self.columns.groups)

    def places(self, at: np.ndarray, columns: Columns) -> np.ndarray:
        """Where each gather reads; ``at`` are the places of the taps."""
        return np.asarray(at[self.schedule.tap] + self.schedule.start)

    def ends(self) -> np.ndarray:
        """Where in its part each gather writes."""
        held = self.schedule.weight.sum(axis=(1, 2), dtype=np.int64)
        before = np.cumsum(held) - held
        return np.concatenate([before[p.first : p.first + p.gathers] - before[p.first] for g in self.parts for p in g])

    def packed(self, columns: Columns) -> Iterator[tuple[np.ndarray, None]]:
        """Each group's weights int8 ``[steps, columns, fold]``."""
        made, run = self.schedule, self.matrix.shape[1]
        flat = self.matrix.reshape(-1, self.matrix.shape[2])
        for own, (first, _, widths, valid) in zip(self.parts, columns.slices(), strict=True):
            weights = np.zeros((sum(p.steps for p in own), self.fold, sum(widths)), np.int8)
            at = 0
            for p in own:
                e = slice(p.first, p.first + p.gathers)
                place = (made.tap[e] * run + made.start[e])[:, None] + made.number[e, 0]
                lines = flat[place[made.weight[e, 0] != 0], first : first + sum(valid)]
                into = weights[at : at + p.steps].reshape(-1, sum(widths))
                into[: len(lines), : sum(valid)] = lines
                at += p.steps
            yield weights.swapaxes(1, 2), None


def worth(machine: Machine, kit: Kit, run: int) -> tuple[int, int] | None:
    """Window and size of gathers, if the machine has any."""
    found = row(machine, run)
    return None if found is None else (found[1], min(GATHERED, found[0].lanes))
