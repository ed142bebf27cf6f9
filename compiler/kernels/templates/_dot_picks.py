"""Weights that each column has at places of its own, as steps in which every column picks its bytes from a window.

A step takes up to ``fold`` weights of each column, in the order in which they stand; the window begins at the first
weight of any column that is not taken yet. So columns may be ahead of others by the length of a window, and a group
needs hardly more steps than its fullest column does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ....targets.machine import Instruction, Machine
from ._dot_plan import Kit
from ._tile import Columns

NIBBLE = 16  # numbers of bytes in a window up to this one fit half a byte
WINDOWS = (64, 32, 16, 8)
_NONE = np.iinfo(np.int32).max


def rows(machine: Machine, kit: Kit, window: int) -> dict[int, Instruction]:
    """The instruction that picks from ``window`` bytes, by the bytes of a vector of the kit; empty if there is none for
    some. One whose result is longer may serve too."""
    found: dict[int, Instruction] = {}
    for lanes, _ in kit.rows:
        size = lanes * kit.fold
        fitting = [r for r in machine.instructions if r.kind == "pick" and r.lanes >= size and table(r) >= window]
        if window <= NIBBLE:
            fitting += [r for r in machine.instructions if r.kind == "pick16" and r.lanes == size >= window]
        if not fitting:
            return {}
        found[size] = min(fitting, key=lambda r: r.lanes)
    return found


def table(row: Instruction) -> int:
    """Bytes that an instruction picks from."""
    return int(row.operands[0][1].split("x")[1])


class Kind(NamedTuple):
    """What steps cost: the window that columns pick from (0: none), bytes of weights and picks for a column, and the
    window that is gathered from before (0: nothing is)."""

    window: int
    bytes: float
    gathered: int = 0


def kinds(machine: Machine, kit: Kit, run: int) -> list[Kind]:
    """Windows worth a try for runs of ``run`` bytes: of those of few numbers the longest one."""
    usable = [n for n in WINDOWS if n <= run and rows(machine, kit, n)]
    small = [n for n in usable if n <= NIBBLE]
    tried = sorted({*(n for n in usable if n > NIBBLE), *small[:1]})
    return [Kind(n, (1.5 if n <= NIBBLE else 2.0) * kit.fold) for n in tried]


@dataclass(frozen=True)
class Schedule:
    """Steps in order of groups: ``group``, ``tap`` and first byte ``start`` (of the run) of each, and for each of its
    lanes and places the number of the byte in the window and the weight: uint8 and int8 ``[steps, lanes, fold]``."""

    group: np.ndarray
    tap: np.ndarray
    start: np.ndarray
    number: np.ndarray
    weight: np.ndarray


class Sequences:
    """The weights that are not zero, of ``matrix`` ``[taps, run, columns]``: one sequence for each tap and vector of
    columns (``valid`` of up to ``lanes``), one list for each lane."""

    def __init__(self, matrix: np.ndarray, lanes: int, valid: Sequence[int]) -> None:
        taps, self.run, _ = matrix.shape
        self.groups = len(valid)
        lane = np.concatenate([g * lanes + np.arange(count) for g, count in enumerate(valid)])
        turned = np.zeros((taps, self.groups * lanes, self.run), np.int8)
        turned[:, lane] = matrix.transpose(0, 2, 1)
        self.lanes, lines = lanes, turned.reshape(-1, self.run)
        line, self.byte = (a.astype(np.int32) for a in np.nonzero(lines))
        self.weight = lines[line, self.byte]
        ends = np.cumsum(np.bincount(line, minlength=len(lines)))
        self.end = ends.reshape(-1, lanes)
        self.begin = np.concatenate([[0], ends[:-1]]).reshape(-1, lanes)

    def fewest(self, fold: int) -> int:
        """Steps that are needed however long the window is."""
        return int((-(-(self.end - self.begin) // fold)).max(axis=1, initial=0).sum())

    def schedule(self, window: int, fold: int) -> Schedule:
        byte = np.append(self.byte, _NONE)
        weight = np.append(self.weight, np.int8(0))
        at, alive = self.begin.copy(), np.arange(len(self.begin))
        parts: list[tuple[Any, ...]] = []
        while alive.size:
            own, end = at[alive], self.end[alive]
            index = own[..., None] + np.arange(fold)
            index = np.where(index < end[..., None], index, len(self.byte))
            place = byte[index]
            start = place[..., 0].min(axis=1)
            left = start < _NONE
            alive, place, index, start = alive[left], place[left], index[left], start[left]
            start = np.minimum(start, self.run - window)
            taken = place < start[:, None, None] + window
            number = np.where(taken, place - start[:, None, None], 0).astype(np.uint8)
            parts.append((alive, start, number, np.where(taken, weight[index], 0).astype(np.int8)))
            at[alive] += taken.sum(axis=2)
        if not parts:
            none = np.zeros(0, np.int32)
            empty = np.zeros((0, self.lanes, fold))
            return Schedule(none, none, none, empty.astype(np.uint8), empty.astype(np.int8))
        sequence, start, number, held = (np.concatenate(p) for p in zip(*parts, strict=True))
        group, tap = sequence % self.groups, sequence // self.groups
        order = np.lexsort((np.arange(len(group)), tap, group))
        return Schedule(group[order], tap[order], start[order], number[order], held[order])


class Picks:
    """A form of steps; see the module."""

    vectors = (1,)

    def __init__(self, sequences: Sequences, kind: Kind, fold: int) -> None:
        self.sequences, self.kind, self.fold = sequences, kind, fold

    @cached_property
    def schedule(self) -> Schedule:
        return self.sequences.schedule(self.kind.window, self.fold)

    def counts(self, columns: Columns) -> np.ndarray:
        """Steps of each group."""
        return np.bincount(self.schedule.group, minlength=columns.groups)

    def places(self, at: np.ndarray, columns: Columns) -> np.ndarray:
        """Where each step reads; ``at`` are the places of the taps."""
        return np.asarray(at[self.schedule.tap] + self.schedule.start)

    def packed(self, columns: Columns) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each group's weights int8 ``[steps, columns, fold]`` and its numbers uint8 as the kernel reads them."""
        ends = np.cumsum(self.counts(columns))
        for begin, end, (_, _, widths, _) in zip([0, *ends[:-1]], ends, columns.slices(), strict=True):
            weights, numbers = (a[begin:end, : sum(widths)] for a in (self.schedule.weight, self.schedule.number))
            yield weights, numbers if self.kind.window > NIBBLE else _paired(numbers)


def _paired(numbers: np.ndarray) -> np.ndarray:
    """Numbers below 16 of two steps together in a byte, the first one's in the low half."""
    steps, *shape = numbers.shape
    padded = np.zeros((steps + steps % 2, *shape), np.uint8)
    padded[:steps] = numbers
    return np.asarray(padded[::2] | padded[1::2] << 4)
