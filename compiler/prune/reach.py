"""The place in a ranking at which a graph meets its target, by counting, by the cost model or by measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...targets.machine import Machine
from ..ir import Graph
from ..quantize.observe import Progress, silent
from .budget import PLANNED, Measure, Target, planned
from .select import Found, Ranking, search
from .settings import Settings

MEASURED = 6  # graphs that are measured on the machine, for one target


@dataclass(frozen=True)
class Timer:
    """How a static graph's latency is measured, and what that of the dense one is (microseconds)."""

    measure: Measure
    dense: float


class Prunable(Protocol):
    """What a ranking is of: ``removed`` says for each pool which items go."""

    def counts(self, removed: Sequence[np.ndarray]) -> dict[str, float]:
        """Multiply-adds, parameters and the part of what is counted as sparsity that is left."""

    def made(self, removed: Sequence[np.ndarray]) -> Graph:
        """The static graph without them."""


def reach(
    things: Prunable,
    ranking: Ranking,
    target: Target,
    settings: Settings,
    machine: Machine,
    why: Callable[[], str],
    timer: Timer | None = None,
    tell: Progress = silent,
) -> Found:
    """How many items of the ranking go; ``NervureError`` where the target cannot be met. A latency that is to be
    measured is looked for with the cost model, which is corrected by each measurement."""
    tolerance = settings.tolerance
    tried = _Amounts(things, ranking, target.kind, machine, settings.optimize, tell)
    if timer is None:
        return search(len(ranking), tried, target, tolerance, why)
    dense = timer.dense
    wanted = Target("latency", target.absolute(dense), relative=False)
    tried.scale = dense / max(tried(0), 1e-9)
    best: tuple[float, Found] | None = None
    for _ in range(MEASURED - 1):
        found = search(len(ranking), tried, wanted, tolerance / 2, why)
        got = dense if not found.count else timer.measure(things.made(ranking.removed(found.count)))
        off = abs(got / wanted.value - 1)
        if best is None or off < best[0]:
            best = (off, Found(found.count, got, found.evaluations))
        if off <= tolerance or not found.count:
            break
        tried.scale *= got / found.amount
    assert best is not None
    return best[1]


class _Amounts:
    """What is left when ``count`` items go, each worked out once."""

    def __init__(
        self, things: Prunable, ranking: Ranking, kind: str, machine: Machine, optimize: str, tell: Progress
    ) -> None:
        self._things, self._ranking, self._kind = things, ranking, kind
        self._machine, self._optimize = machine, optimize
        self._known: dict[int, float] = {}
        self._tell = tell
        self.scale = 1.0

    def __call__(self, count: int) -> float:
        if count not in self._known:
            removed = self._ranking.removed(count)
            if self._kind in PLANNED:
                self._known[count] = planned(self._things.made(removed), self._machine, self._optimize)[self._kind]
            else:
                self._known[count] = self._things.counts(removed)[self._kind]
            self._tell("searching", len(self._known), len(self._known) + 1)
        return self._known[count] * self.scale


__all__ = ["Prunable", "Timer", "reach"]
