"""A graph, a target, and what goes to meet it.

Units of a structure are taken out; weights of a pattern become zero. The weights are scored (``criteria``), put in one
order (``units``, ``cells``), and the place in that order is searched at which the graph meets the target (``reach``),
as the compiler's own plan of it says (``budget``). A pattern that does not pay in a layer is taken back there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine
from ..ir import Graph, Value
from ..passes.bind import named_dimensions
from ..quantize.observe import Progress, silent
from ..quantize.samples import Samples
from ..quantize.settings import matching
from .budget import Measure, Target, counted, static
from .cells import Cells, candidates, masked
from .criteria import Scores, scores
from .layers import prepare
from .patterns import Pattern, parse
from .reach import Prunable, reach
from .rows import Row, losing, make_rows, plans, refusal
from .select import Found, Ranking
from .settings import LEARNED, Settings
from .shrink import shrink
from .slopes import Labels
from .structure import Group, find_structure
from .units import Units
from .weights import Weight, positions, weights

_ROUNDS = 4  # of taking patterns back where they do not pay
_MOST_LINES = 12


@dataclass(frozen=True)
class Pruned:
    """A pruned graph. ``masks``: for a pattern, which weights stay (bool, by weight name); ``removed``: for a structure,
    the numbers of the units that went, by group. ``before`` and ``after``: the whole network by every measure of
    ``budget.measure``, latency by the cost model. ``amount``: what was reached, in the target's own unit (microseconds
    as measured, if they were; for sparsity the part of the weights, or units, that take part that went)."""

    graph: Graph
    masks: Mapping[str, np.ndarray]
    removed: Mapping[str, tuple[int, ...]]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    target: Target | None = None
    amount: float = 0.0


def prune(
    graph: Graph,
    settings: Settings,
    machine: Machine,
    samples: Samples | None = None,
    labels: Labels = None,
    tell: Progress = silent,
    *,
    measure: Measure | None = None,
    gradients: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Pruned:
    """Prunes a graph to ``settings.target`` for ``machine``.

    ``samples`` and ``labels`` serve the criteria that look at data (``criteria.scores``), ``gradients`` instead of
    them. ``measure`` tells the latency of a static graph in microseconds; without it the cost model does. Open sizes
    are those of the samples or of ``sizes``, else one, for the criteria and the measures; in the result they are open.

    ``NervureError``: nothing can be pruned, the target cannot be met (it names the nearest), data do not fit, names
    match nothing, or the pattern pays in no layer.
    """
    job = _Job(graph, settings, machine, samples, sizes, tell, measure)
    if settings.kinds:
        work: _Structured | _Patterned = _Structured(job)
    else:
        work = _Patterned(job, parse(settings.structure, machine))
    work.check()
    found = scores(job.fixed, settings.criterion, samples, gradients, settings.seed, labels=labels, tell=tell)
    return work.run(found)


class _Job:
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
        self.dense = plans(self.fixed, machine)
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
        return reach(
            things, ranking, target, self.settings.tolerance, self.machine, lambda: why, self.measure, self.tell
        )

    def costs(self, kind: str) -> dict[str, float] | None:
        """By weight, what the target's measure says of the whole of it, where items are ranked by score per cost."""
        rank = self.settings.rank
        if rank == "score" or (rank == "auto" and not (kind == "latency" and self.settings.criterion in LEARNED)):
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
        found: Found | None,
        masks: Mapping[str, np.ndarray],
        removed: Mapping[str, tuple[int, ...]],
        patterns: Mapping[str, Pattern],
        refused: Mapping[str, str],
        left_out: Mapping[str, str],
    ) -> Pruned:
        """The result, from the pruned graph and the same with its sizes bound."""
        plan = plans(after, self.machine)
        rows = make_rows(self.fixed, after, self.dense, plan, patterns, refused, left_out)
        target = self.settings.target
        amount = found.amount if found is not None else 0.0
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


# -- structure ---------------------------------------------------------------------------------------------------------


class _Structured:
    """Pruning of channels, heads, units, groups or blocks."""

    def __init__(self, job: _Job) -> None:
        self.job, self.settings = job, job.settings
        self.structure = find_structure(job.plain, job.settings.kinds)
        self.stay = {f.where: f.why for f in self.structure.fixed}

    def check(self) -> None:
        """Raises where there is no target, or nothing to prune."""
        if self.settings.target is None:
            raise NervureError("how much is to go?", hint="a target: sparsity, macs, params, ram, file or latency")
        if not self.structure.groups:
            raise _nothing("+".join(self.settings.kinds), self.stay)

    def run(self, found: Scores) -> Pruned:
        job, target = self.job, self.settings.target
        assert target is not None
        groups = self.groups()
        units = Units(job.fixed, groups, found, self.settings, job.machine.lanes)
        ranking, place = self._meet(units, target)
        numbers = units.numbers(ranking.removed(place.count))
        graph = shrink(job.plain, numbers) if numbers else job.plain
        after = shrink(job.fixed, numbers) if numbers else job.fixed
        return job.made(graph, after, place, {}, numbers, {}, {}, self.stay)

    def groups(self) -> tuple[Group, ...]:
        """The groups that may lose units: not those that the user keeps."""
        kept = self.job.named(self.settings.keep, self.structure.groups)
        outputs = {(w.name, axis) for w in self.job.weights for axis in _output_axes(w) if self._is_kept(w, kept)}
        found = []
        for group in self.structure.groups:
            touched = {(s.tensor, s.axis) for s in group.units[0].slices}
            if group.name in kept or touched & outputs:
                self.stay.setdefault(group.name, "it is kept, as asked")
            else:
                found.append(group)
        if not found:
            raise _nothing("+".join(self.settings.kinds), self.stay)
        return tuple(found)

    def _is_kept(self, weight: Weight, kept: set[str]) -> bool:
        return weight.name in kept or any(n in kept for n in self.job.results(weight))

    def _shares(self, groups: Sequence[Group]) -> dict[str, float]:
        """The user's parts by group: of the group itself, or of a layer whose outputs it is."""
        said = self.job.shares(self.structure.groups)
        by_axis = {
            (w.name, axis): said[n]
            for w in self.job.weights
            for n in (w.name, *self.job.results(w))
            for axis in _output_axes(w)
            if n in said
        }
        found = {}
        for group in groups:
            layers = [by_axis[s.tensor, s.axis] for s in group.units[0].slices if (s.tensor, s.axis) in by_axis]
            if group.name in said or layers:
                found[group.name] = said.get(group.name, layers[0] if layers else 0.0)
        return found

    def _meet(self, units: Units, target: Target) -> tuple[Ranking, Found]:
        """The ranking and the place in it. Numbers of channels that suit the machine are tried first, finer ones where
        they do not come near enough to the target."""
        job, shares, costs = self.job, self._shares(units.groups), self.job.costs(target.kind)
        best: tuple[Ranking, Found] | None = None
        for finer in (1, 2, 4, 8, 16, 32, 64):
            ranking = Ranking(units.pools(shares, costs, finer), self.settings.scope)
            coarse = any(p.multiple > 1 for p in ranking.pools) and self.settings.multiple is None
            try:
                found = job.reach(units, ranking, target, self._why())
            except NervureError:
                if not coarse:
                    raise
                continue
            if best is None or found.amount > best[1].amount:
                best = (ranking, found)
            dense = job.dense.totals.get(target.kind) or units.counts(ranking.removed(0))[target.kind]
            wanted = target.absolute(dense)
            if not coarse or job.measure is not None or found.amount >= wanted * (1 - self.settings.tolerance):
                break
        assert best is not None
        return best

    def _why(self) -> str:
        floor = f"{self.settings.least:.0%} of each group of {'+'.join(self.settings.kinds)} always stay"
        return "; ".join([floor, *_lines(self.stay, "stays")])


def _output_axes(weight: Weight) -> set[int]:
    """The axes of a weight that are no inputs (not negative)."""
    rank = weight.array.ndim
    return set(range(rank)) - {use.axis % rank for use in weight.uses}


def _lines(told: Mapping[str, str], verb: str, most: int = 4) -> list[str]:
    lines = [f"{name} {verb}: {why}" for name, why in told.items()]
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def _nothing(what: str, stay: Mapping[str, str]) -> NervureError:
    return NervureError(
        f"there is nothing to prune: no {what} that could go",
        where=_lines(stay, "stays", _MOST_LINES),
        hint="another structure (channels, heads, units, groups, blocks) or a sparse pattern",
    )


# -- patterns ----------------------------------------------------------------------------------------------------------


class _Patterned:
    """Pruning of weights by a sparse pattern."""

    def __init__(self, job: _Job, pattern: Pattern) -> None:
        self.job, self.settings, self.pattern = job, job.settings, pattern
        self.kept = {name: "it is kept, as asked" for name in sorted(job.named(job.settings.keep))}
        self.parts, self.left_out = candidates(job.fixed, pattern, job.shares(), self.kept)

    def check(self) -> None:
        """Raises where no layer can take the pattern, or the target does not go with it."""
        own, target = self.pattern.sparsity, self.settings.target
        if not self.parts:
            raise _nothing(f"layer that {self.pattern} fits", self.left_out)
        if target is None and own is None:
            raise NervureError("how much is to go?", hint="a target: sparsity, macs, params, ram, file or latency")
        if own is not None and target is not None and target.kind == "sparsity" and target.value > own + 1e-9:
            raise NervureError(
                f"a sparsity of {target.value:.1%} cannot be met; the nearest that can is {own:.1%}",
                why=f"{self.pattern} leaves {1 - own:.1%} of the weights",
                hint=f"--sparsity {own:g}, or a pattern that leaves fewer",
            )

    def run(self, found: Scores) -> Pruned:
        job, refused = self.job, dict[str, str]()
        for _ in range(_ROUNDS):
            cells = Cells(job.fixed, self.parts, self.pattern, found, self.settings)
            masks, place = self._meet(cells)
            losers = {} if self.settings.force else self._losers(masks)
            if not losers:
                break
            refused |= losers
            parts, _ = candidates(job.fixed, self.pattern, job.shares(), self.kept | refused)
            if not parts:
                raise refusal(self.pattern, job.machine, refused, self._evens(refused))
            self.parts = parts
        else:
            masks = {w: m for w, m in masks.items() if w not in self._weights_of(losers)}
        if not masks and refused:
            raise refusal(self.pattern, job.machine, refused, self._evens(refused))
        patterns = dict.fromkeys(masks, self.pattern)
        if refused:
            job.notes.append(f"{self.pattern} does not pay in {len(refused)} layers, which stay dense: see their rows")
        return job.made(
            masked(job.plain, masks), masked(job.fixed, masks), place, masks, {}, patterns, refused, self.left_out
        )

    def _meet(self, cells: Cells) -> tuple[dict[str, np.ndarray], Found | None]:
        """The masks that meet the target; with an N:M pattern and no target, all of them."""
        target, costs = self.settings.target, None
        if target is not None:
            by_weight = self.job.costs(target.kind)
            costs = None if by_weight is None else {p.layer.name: by_weight[p.layer.weight] for p in self.parts}
        ranking = Ranking(cells.pools(costs), self.settings.scope)
        whole = self.pattern.group and (target is None or target.kind == "sparsity")
        if target is None or (whole and abs(target.value - (self.pattern.sparsity or 0)) < 1e-9):
            return cells.masks(ranking.removed(len(ranking))), None
        place = self.job.reach(cells, ranking, target, self._why())
        return cells.masks(ranking.removed(place.count)), place

    def _losers(self, masks: Mapping[str, np.ndarray]) -> dict[str, str]:
        """The layers in which the zeros do not pay, and the numbers."""
        made = plans(masked(self.job.fixed, masks), self.job.machine)
        kept = {w: float(m.mean()) for w, m in masks.items()}
        names = [(p.layer.name, p.layer.weight) for p in self.parts if p.layer.weight in masks]
        kind = self.settings.target.kind if self.settings.target is not None else "latency"
        return losing(names, self.job.dense, made, kind, kept)

    def _weights_of(self, layers: Mapping[str, str]) -> set[str]:
        return {p.layer.weight for p in self.parts if p.layer.name in layers}

    def _evens(self, layers: Mapping[str, str]) -> dict[str, str]:
        """By layer, the density below which the pattern would pay."""
        return {}

    def _why(self) -> str:
        if self.pattern.sparsity is not None:
            own = f"{self.pattern} leaves {1 - self.pattern.sparsity:.1%} of the weights of a layer"
        else:
            own = f"{self.settings.least:.0%} of each layer always stay"
        return "; ".join([own, *_lines(self.left_out, "stays dense")])


__all__ = ["Pruned", "constant", "prune", "sizes_of"]
