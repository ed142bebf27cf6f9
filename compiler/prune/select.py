"""What goes and what stays: one ranking over pools of items, and the place in it at which a target is met.

A pool is what may not be emptied: a layer's cells of a sparse pattern, a group's units. Items go in the order of their
keys, lowest first, over all pools at once (``global``), or the same part of each pool (``layer``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from .budget import Target, told

EVALUATIONS = 24  # at most, for one target


@dataclass(frozen=True)
class Pool:
    """Items that are weighed against each other. ``keys`` [n] float64: the lowest go first; ``floor`` of them always
    stay. With ``part`` that part of them goes, whatever the target. The number that stays is a multiple of
    ``multiple``, or all. ``scores``: what the keys are made of, where they are more than that."""

    name: str
    keys: np.ndarray
    floor: int = 1
    part: float | None = None
    multiple: int = 1
    scores: np.ndarray | None = None

    @property
    def score(self) -> np.ndarray:
        """What each item is worth, whatever it costs."""
        return self.keys if self.scores is None else self.scores


class Ranking:
    """All items of all pools in the order in which they go; of equal keys the one of the later pool and place."""

    def __init__(self, pools: Sequence[Pool], scope: str = "global") -> None:
        self.pools = tuple(pools)
        self._ranks = [_ranks(p.keys) for p in self.pools]
        keys, owner = [np.zeros(0)], [np.zeros(0, np.int32)]
        for i, pool in enumerate(self.pools):
            free = np.flatnonzero(self._ranks[i] < len(pool.keys) - pool.floor)
            if pool.part is not None or not free.size:
                continue
            by = pool.keys if scope == "global" else (self._ranks[i] + 0.5) / len(pool.keys)
            keys.append(by[free])
            owner.append(np.full(free.size, i, np.int32))
        order = np.argsort(np.concatenate(keys)[::-1], kind="stable")
        self._owner = np.concatenate(owner)[::-1][order]

    def __len__(self) -> int:
        """How many items may go at most."""
        return len(self._owner)

    def removed(self, count: int) -> list[np.ndarray]:
        """Which items of each pool go (bool), when the first ``count`` of the ranking do."""
        found = []
        counts = np.bincount(self._owner[:count], minlength=len(self.pools))
        for i, pool in enumerate(self.pools):
            n = len(pool.keys)
            going = counts[i] if pool.part is None else min(round(pool.part * n), n - pool.floor)
            found.append(self._rounded(i, self._ranks[i] < going))
        return found

    def kept(self, removed: Sequence[np.ndarray]) -> float:
        """The sum of the scores of what stays."""
        return sum(float(p.score[~gone].sum()) for p, gone in zip(self.pools, removed, strict=True))

    def _rounded(self, index: int, gone: np.ndarray) -> np.ndarray:
        pool, kept = self.pools[index], int((~gone).sum())
        wanted = min(len(gone), math.ceil(kept / pool.multiple) * pool.multiple)
        return self.restored(index, gone, wanted - kept)

    def restored(self, index: int, gone: np.ndarray, count: int) -> np.ndarray:
        """What goes of pool ``index`` when the best ``count`` of ``gone`` stay after all."""
        if not count:
            return gone
        places = np.flatnonzero(gone)
        best = places[np.argsort(-self._ranks[index][places], kind="stable")[:count]]
        found = gone.copy()
        found[best] = False
        return found


def _ranks(keys: np.ndarray) -> np.ndarray:
    """The place of each item when the lowest go first; of equal ones the last."""
    n = len(keys)
    ranks = np.empty(n, np.int64)
    ranks[n - 1 - np.argsort(keys[::-1], kind="stable")] = np.arange(n)
    return ranks


@dataclass(frozen=True)
class Found:
    """Where a search ended: ``count`` items of the ranking go, which leaves ``amount``."""

    count: int
    amount: float
    evaluations: int


def search(
    total: int,
    amount: Callable[[int], float],
    target: Target,
    tolerance: float,
    why: Callable[[], str] = str,
    evaluations: int = EVALUATIONS,
) -> Found:
    """The fewest items, of ``total``, that go so that ``amount`` (of what stays; it falls as more go, roughly) is at
    most the target's. Ends where it is less by no more than ``tolerance`` of it, or where the next fewer is more.

    ``NervureError`` where even all are not enough: it names the nearest amount, and ``why`` says what keeps it.
    """
    dense = amount(0)
    wanted = target.absolute(dense if target.kind != "sparsity" else 1.0)
    if dense <= wanted * (1 + 1e-9):
        return Found(0, dense, 1)
    least = amount(total) if total else dense
    if least > wanted * (1 + 1e-9):
        raise _unreachable(target, dense, least, why())
    low, high = (0, dense), (total, least)  # low is too much, high is enough
    spent, side = 2, 0
    while high[0] - low[0] > 1 and spent < evaluations and high[1] < wanted * (1 - tolerance):
        middle = _between(low, high, wanted * (1 - tolerance / 2), side)
        now = (middle, amount(middle))
        spent += 1
        if now[1] <= wanted * (1 + 1e-9):
            high, side = now, side + 1 if side > 0 else 1
        else:
            low, side = now, side - 1 if side < 0 else -1
    return Found(high[0], high[1], spent)


def _between(low: tuple[int, float], high: tuple[int, float], wanted: float, side: int) -> int:
    """Where a straight line meets the target; the middle, where the last two steps were on one side already."""
    width = high[0] - low[0]
    drop = low[1] - high[1]
    part = 0.5 if abs(side) >= 2 or drop <= 0 else (low[1] - wanted) / drop
    return low[0] + min(max(1, round(width * part)), width - 1)


def _unreachable(target: Target, dense: float, least: float, why: str) -> NervureError:
    if target.kind == "sparsity":
        nearest, hint = f"{1 - least:.1%}", f"--sparsity {math.floor((1 - least) * 1000) / 1000:g}"
        asked = f"{target.value:.1%}"
    else:
        part = math.ceil(least / dense * 1000) / 1000
        nearest = f"{told(target.kind, least)} ({part:g}x of {told(target.kind, dense)})"
        asked = f"{target.value:g}x" if target.relative else told(target.kind, target.value)
        hint = f"{part:g}x or more"
    return NervureError(
        f"a {target.kind} of {asked} cannot be met; the nearest that can is {nearest}", why=why or None, hint=hint
    )


__all__ = ["Found", "Pool", "Ranking", "search"]
