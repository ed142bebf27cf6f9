"""Structures over a network: how much channels, heads, units and blocks matter, beside each other and their cost.

A unit's score is the sum over all its weights, in every layer that it belongs to: the rows that make it and the columns
that read it, the latter because what a channel is worth shows there too (Fang et al. 2023, "DepGraph"). Magnitudes are
then divided by their group's mean, as torch-pruning does by default, because groups differ in scale and in how many
weights a unit has. Taylor's scores are changes of the loss, add up, and compare as they are (Molchanov et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..ir import Graph
from .budget import counted
from .criteria import Scores
from .select import Pool
from .settings import Settings
from .shrink import shrink
from .structure import Group, Unit
from .weights import weights

_NATURAL = ("taylor", "movement")


def unit_scores(group: Group, scores: Scores, criterion: str, seed: int = 0) -> np.ndarray:
    """How much each unit of a group matters: [units] float64."""
    if criterion == "random":
        return np.random.default_rng([seed, *group.name.encode()]).random(len(group.units))
    lines: dict[tuple[str, int], np.ndarray] = {}
    tensors = {s.tensor for u in group.units for s in u.slices if s.tensor in scores}
    if criterion == "bn_scale":  # the scales speak for the units that have any
        tensors = {t for t in tensors if scores[t].ndim == 1} or tensors
    found = np.array([_sum(u, scores, tensors, lines) for u in group.units])
    if criterion == "l2":
        found = np.sqrt(found)
    return found if criterion in _NATURAL else found / max(float(found.mean()), 1e-300)


def _sum(unit: Unit, scores: Scores, tensors: set[str], lines: dict[tuple[str, int], np.ndarray]) -> float:
    total = 0.0
    for part in unit.slices:
        if part.tensor not in tensors:
            continue
        key = (part.tensor, part.axis)
        if key not in lines:
            array = scores[part.tensor]
            lines[key] = array.sum(axis=tuple(i for i in range(array.ndim) if i != part.axis))
        total += float(lines[key][part.index].sum())
    return total


class Units:
    """What structured pruning may take: a pool for each group."""

    def __init__(self, graph: Graph, groups: Sequence[Group], scores: Scores, settings: Settings, lanes: int) -> None:
        self.graph, self.groups, self._settings, self._lanes = graph, tuple(groups), settings, lanes
        self._keys = [unit_scores(g, scores, settings.criterion, settings.seed) for g in self.groups]
        self._arrays = {w.name: w.array for w in weights(graph)}

    def pools(
        self, shares: Mapping[str, float], costs: Mapping[str, float] | None = None, finer: float = 1
    ) -> list[Pool]:
        """The pools. ``shares``: what is to go of a group, by name; ``costs``: of whole weights, by name: keys are then
        scores per cost that goes with a unit; ``finer`` divides what numbers of channels are multiples of."""
        found = []
        for group, scores in zip(self.groups, self._keys, strict=True):
            keys = scores
            if costs is not None:
                saved = np.array([self._saved(u, costs) for u in group.units])
                keys = scores / np.maximum(saved, 1e-9 * max(1e-300, float(saved.max(initial=0.0))))
            floor = max(1, math.ceil(self._settings.least * len(keys)))
            found.append(Pool(group.name, keys, floor, shares.get(group.name), self.multiple(group, finer), scores))
        return found

    def multiple(self, group: Group, finer: float = 1) -> int:
        """What the number of channels is a multiple of: half a vector, where a group has several; kernels compute
        whole vectors of outputs anyway. Where the user says nothing, for targets of time and work only."""
        if group.kind not in ("channels", "units"):
            return 1
        said = self._settings.multiple
        if said is not None:
            return said
        target = self._settings.target
        if target is None or target.kind not in ("latency", "macs"):
            return 1
        half = max(1, self._lanes // 2)
        wanted = self._lanes if len(group.units) >= 8 * self._lanes else half if len(group.units) >= 2 * half else 1
        return min(max(1, int(wanted / finer)), self._lanes)

    def _saved(self, unit: Unit, costs: Mapping[str, float]) -> float:
        """What goes with a unit, each weight's cost shared by its elements."""
        total = 0.0
        for part in unit.slices:
            array = self._arrays.get(part.tensor)
            if array is not None and array.shape[part.axis]:
                total += costs.get(part.tensor, 0.0) * len(part.index) / array.shape[part.axis]
        return total

    def numbers(self, removed: Sequence[np.ndarray]) -> dict[str, tuple[int, ...]]:
        """The units that go, by group; groups that stay whole are left out."""
        pairs = zip(self.groups, removed, strict=True)
        return {g.name: tuple(int(i) for i in np.flatnonzero(gone)) for g, gone in pairs if gone.any()}

    def counts(self, removed: Sequence[np.ndarray]) -> dict[str, float]:
        """Multiply-adds and parameters of the graph without these units; ``sparsity``: the part of the units left."""
        every = sum(len(gone) for gone in removed)
        left = sum(int((~gone).sum()) for gone in removed)
        return {**counted(self.made(removed)), "sparsity": left / max(1, every)}

    def made(self, removed: Sequence[np.ndarray]) -> Graph:
        """The graph without these units."""
        numbers = self.numbers(removed)
        return shrink(self.graph, numbers) if numbers else self.graph


__all__ = ["Units", "unit_scores"]
