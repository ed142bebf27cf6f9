"""One pruning: the graph, what the user said of it, and what every kind of pruning asks of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine
from ..ir import Graph, Value
from ..passes.bind import named_dimensions
from ..quantize.observe import Progress
from ..quantize.samples import Samples
from ..quantize.settings import matching
from .budget import Measure, Target, counted, static
from .criteria import Scores
from .layers import prepare
from .patterns import Pattern
from .reach import Prunable, Timer, reach
from .rows import Row, make_rows, plans
from .select import Found, Ranking
from .settings import Settings
from .structure import Group
from .weights import Weight, positions, weights


@dataclass(frozen=True)
class Pruned:
    """A pruned graph. ``masks``: for a pattern, which weights stay (bool, by weight name); ``removed``: for a
    structure, the numbers of the units that went, by group. ``before`` and ``after``: the whole network by every
    measure of ``budget.measure``, latency by the cost model. ``amount``: what was reached, in the target's own unit
    (microseconds as measured, if they were; for sparsity the part that went of the weights, or units, that take part).
    """

    graph: Graph
    masks: Mapping[str, np.ndarray]
    removed: Mapping[str, tuple[int, ...]]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    target: Target | None = None
    amount: float = 0.0
    scores: Scores = field(default_factory=dict, repr=False, compare=False)  # by weight: what it was chosen by


class Job:
    """One pruning: the graph as given (``plain``) and with its sizes bound (``fixed``), and what the user said."""

    def __init__(
        self,
        graph: Graph,
        settings: Settings,
        machine: Machine,
        samples: Samples | None,
        sizes: Mapping[str, int] | None,
        tell: Progress,
        measure: Measure | None,
    ) -> None:
        self.settings, self.machine, self.tell, self.measure = settings, machine, tell, measure
        self.plain = constant(prepare(graph))
        self.fixed = static(self.plain, {**sizes_of(self.plain, samples), **(sizes or {})})
        self.weights = weights(self.fixed)
        self.dense = plans(self.fixed, machine, settings.optimize)
        self.notes: list[str] = []

    def results(self, weight: Weight) -> tuple[str, ...]:
        """The names of the layers of a weight."""
        return tuple(self.fixed.tensor_name(Value(use.node)) for use in weight.uses)

    def named(self, patterns: Sequence[str], groups: Sequence[Group] = ()) -> set[str]:
        """The layers (results), weights and groups that patterns name; a weight stands for its layers."""
        names = [n for w in self.weights for n in (w.name, *self.results(w))]
        found = matching(patterns, [*names, *(g.name for g in groups)], "pattern of layers") if patterns else set()
        return found | {n for w in self.weights if w.name in found for n in self.results(w)}

    def shares(self, groups: Sequence[Group] = ()) -> dict[str, float]:
        """The part that is to go, by the names that the user's patterns match; later ones win."""
        return {n: part for pattern, part in self.settings.parts.items() for n in self.named([pattern], groups)}

    def reach(self, things: Prunable, ranking: Ranking, target: Target, why: str) -> Found:
        """Where the ranking meets the target."""
        return reach(things, ranking, target, self.settings, self.machine, lambda: why, self._timer(target), self.tell)

    def _timer(self, target: Target) -> Timer | None:
        if self.measure is None or target.kind != "latency":
            return None
        return Timer(self.measure, self.measured)

    def dense_amount(self, kind: str) -> float:
        """What the dense graph has by a measure (for sparsity: all of it)."""
        return 1.0 if kind == "sparsity" else {**counted(self.fixed), **self.dense.totals}[kind]

    @cached_property
    def measured(self) -> float:
        """The dense graph's latency as measured."""
        assert self.measure is not None
        return self.measure(self.fixed)

    def costs(self, kind: str) -> dict[str, float] | None:
        """By weight, what the target's measure says of the whole of it, where items are ranked by score per cost: by
        themselves only Taylor's, which are changes of the loss and add up (magnitudes per cost starve what many layers
        read)."""
        settings = self.settings
        additive = settings.criterion == "taylor" and settings.scope == "global" and kind in ("macs", "latency")
        if settings.rank == "score" or (settings.rank == "auto" and not additive):
            return None
        if kind == "latency":
            us = {n: c.us for n, c in self.dense.layers.items()}
            return {w.name: sum(us.get(n, 0.0) for n in self.results(w)) for w in self.weights}
        runs = positions(self.fixed) if kind == "macs" else {}
        return {w.name: float(w.array.size * runs.get(w.name, 1)) for w in self.weights}

    def made(
        self,
        graph: Graph,
        after: Graph,
        amount: float,
        masks: Mapping[str, np.ndarray],
        removed: Mapping[str, tuple[int, ...]],
        patterns: Mapping[str, Pattern],
        refused: Mapping[str, str],
        left_out: Mapping[str, str],
    ) -> Pruned:
        """The result, from the pruned graph and the same with its sizes bound."""
        if not masks and not removed:
            self.notes.append("the network meets the target as it is: nothing was pruned")
        plan = plans(after, self.machine, self.settings.optimize)
        rows = make_rows(self.fixed, after, self.dense, plan, patterns, refused, left_out)
        target = self.settings.target
        if target is not None and target.kind == "sparsity":
            amount = 1 - amount
        return Pruned(
            graph,
            masks,
            removed,
            rows,
            tuple(self.notes),
            {**counted(self.fixed), **self.dense.totals},
            {**counted(after), **plan.totals},
            target,
            amount,
        )


def constant(graph: Graph) -> Graph:
    """Params that nothing writes as constants: pruning looks at values."""
    work = graph.copy()
    for key in list(work.nx):
        if work.node(key).op == "param" and key not in work.bindings:
            work.set_node(key, op="const")
    return work


def sizes_of(graph: Graph, samples: Samples | None) -> dict[str, int]:
    """The open sizes, as samples have them; samples that lie along the first axis run one by one."""
    names = named_dimensions(graph)
    found: dict[str, int] = {}
    if samples is None or not names:
        return found
    each = isinstance(samples, Mapping)
    first = samples if isinstance(samples, Mapping) else next(iter(samples), {})
    for key in graph.inputs:
        node = graph.node(key)
        array = np.asarray(first[node.names[0]]) if node.names[0] in first else None
        shape = node.types[0].shape
        if array is None or array.ndim not in (len(shape), len(shape) + each):
            continue
        sizes = array.shape[array.ndim - len(shape) :]
        for axis, dim in enumerate(shape):
            if isinstance(dim, str):
                alone = each and axis == 0 and array.ndim == len(shape)
                found.setdefault(dim, 1 if alone else sizes[axis])
    return found


def lines(told: Mapping[str, str], verb: str, most: int = 4) -> list[str]:
    """What is said of each name, in words."""
    lines = [f"{name} {verb}: {why}" for name, why in told.items()]
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def nothing(what: str, stay: Mapping[str, str]) -> NervureError:
    """The error where there is nothing to prune, with what stays and why."""
    return NervureError(
        f"there is nothing to prune: no {what} that could go",
        where=lines(stay, "stays", 12),
        hint="another structure (channels, heads, units, groups, blocks) or a sparse pattern",
    )


__all__ = ["Job", "Pruned", "constant", "lines", "nothing", "sizes_of"]
