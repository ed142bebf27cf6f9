"""Pruning of channels, heads, recurrent units, groups of channels and whole branches to a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from .budget import Target, planned
from .criteria import Scores
from .job import Job, Pruned, lines, nothing
from .select import Ranking
from .shrink import shrink
from .structure import Group, find_structure
from .units import Units
from .weights import Weight

_FINER = (0.5, 1, 2, 4, 256)  # what numbers of channels that suit the machine are divided by, one after the other
_LESS, _QUICKER = 0.85, 0.9  # so much of the multiply-adds asked for will do, where it takes so much less time
_WORTH = 0.9  # of the scores of what stays, if the time is to count
_STEPS, _FEW = 8, 24  # of giving units back, in networks of so few groups
_TURNS = 3  # of keeping groups that are as fast whole
_SMALL = 4  # vectors: larger groups are seldom as fast whole
_FREE = 1.002  # a channel that costs less than this costs no time


@dataclass(frozen=True)
class _Option:
    """A choice of what goes (bool, by group); what is then left by the target's measure; its estimated time; the sum of
    the scores of what stays."""

    removed: list[np.ndarray]
    amount: float
    us: float
    score: float


class Structured:
    """Pruning of channels, heads, units, groups or blocks."""

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.settings
        self.structure = find_structure(job.plain, job.settings.kinds)
        self.stay = {f.where: f.why for f in self.structure.fixed}

    def check(self) -> None:
        """Raises where there is no target, or nothing to prune."""
        if self.settings.target is None:
            raise NervureError("how much is to go?", hint="a target: sparsity, macs, params, ram, file or latency")
        if not self.structure.groups:
            raise nothing("+".join(self.settings.kinds), self.stay)

    def run(self, found: Scores) -> Pruned:
        """The graph without the units that go."""
        job, target = self.job, self.settings.target
        assert target is not None
        units = Units(job.fixed, self.groups(), found, self.settings, job.machine.lanes)
        option = self._meet(units, target)
        numbers = units.numbers(option.removed)
        graph = shrink(job.plain, numbers) if numbers else job.plain
        after = shrink(job.fixed, numbers) if numbers else job.fixed
        return job.made(graph, after, option.amount, {}, numbers, {}, {}, self.stay)

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
            raise nothing("+".join(self.settings.kinds), self.stay)
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

    def _meet(self, units: Units, target: Target) -> _Option:
        """What goes. Numbers of channels that suit the machine are tried first, finer ones where those do not come near
        the target. Of times the best is what keeps most; of multiply-adds a few less than asked will do where the
        machine is much faster for it."""
        options: list[_Option] = []
        for finer in _FINER:
            last = finer == _FINER[-1] or all(units.multiple(g, finer) == 1 for g in units.groups)
            last = last or self.settings.multiple is not None
            try:
                options.append(self._at(units, target, finer))
            except NervureError:
                if last and not options:
                    raise
                continue
            if last or (finer >= 1 and self._near(options[-1], target)):
                break
        if target.kind == "latency":
            return max(options, key=lambda o: o.score)
        best = max(options, key=lambda o: o.amount)
        quicker = [o for o in options if o.us < _QUICKER * best.us and o.amount >= _LESS * best.amount]
        quick = max(quicker, key=lambda o: o.score, default=best)
        if target.kind == "macs" and quick is not best and quick.score >= _WORTH * best.score:
            quick = self._spent(units, quick, target, _QUICKER * best.us)
            less, time = quick.amount / best.amount, quick.us / best.us
            told = f"{less:.1%} of the multiply-adds asked for take {time:.0%} of the time of all of them"
            self.job.notes.append(f"numbers of channels suit the machine's vectors: {told} (else: multiple=1)")
            return quick
        return best

    def _spent(self, units: Units, option: _Option, target: Target, most: float) -> _Option:
        """With more units, a quarter of a vector at a time, where they cost least time for their score, as long as the
        target and ``most`` microseconds allow it."""
        wanted = target.absolute(self.job.dense_amount(target.kind)) * (1 + 1e-9)
        ranking = Ranking(units.pools(self._shares(units.groups)), self.settings.scope)
        step = max(1, self.job.machine.lanes // 4)
        for _ in range(_STEPS if len(units.groups) <= _FEW else 0):
            tried = []
            for i, gone in enumerate(option.removed):
                if gone.any() and ranking.pools[i].part is None:
                    removed = [*option.removed[:i], ranking.restored(i, gone, step), *option.removed[i + 1 :]]
                    now = self._option(units, ranking, removed, target.kind)
                    if now.amount <= wanted and now.us <= most:
                        tried.append(((now.score - option.score) / max(now.us - option.us, 1e-3), -i, now))
            if not tried:
                break
            option = max(tried, key=lambda t: t[:2])[2]
        return option

    def _at(self, units: Units, target: Target, finer: float) -> _Option:
        """What goes with numbers of channels that are so much finer than those that suit the machine best. A group that
        is as fast whole stays so, and the others are weighed anew: it may take several turns."""
        job, costs = self.job, self.job.costs(target.kind)
        shares = self._shares(units.groups)
        for turn in range(_TURNS):
            ranking = Ranking(units.pools(shares, costs, finer), self.settings.scope)
            found = job.reach(units, ranking, target, self._why())
            removed = ranking.removed(found.count)
            option = _Option(removed, found.amount, job.dense.totals["latency"], ranking.kept(removed))
            if target.kind not in ("macs", "latency") or job.measure is not None or self.settings.multiple is not None:
                return option
            option, whole = self._filled(units, ranking, option, target)
            if target.kind == "macs" or not whole or turn == _TURNS - 1:
                return option
            shares |= dict.fromkeys(whole, 0.0)
        return option

    def _near(self, option: _Option, target: Target) -> bool:
        tolerance = self.settings.tolerance
        if self.job.measure is not None and target.kind == "latency":
            return abs(option.amount / target.absolute(self.job.measured) - 1) <= 2 * tolerance
        return option.amount >= target.absolute(self.job.dense_amount(target.kind)) * (1 - tolerance)

    def _filled(self, units: Units, ranking: Ranking, option: _Option, target: Target) -> tuple[_Option, list[str]]:
        """With units back that cost no time, while the target holds: whole groups (their names come with it), or what
        fills the machine's vectors."""
        wanted, lanes = target.absolute(self.job.dense_amount(target.kind)) * (1 + 1e-9), self.job.machine.lanes
        best, whole = self._option(units, ranking, option.removed, target.kind), []
        for i, pool in enumerate(ranking.pools):
            gone = int(best.removed[i].sum())
            kept = len(pool.keys) - gone
            if pool.part is not None or not gone or units.groups[i].kind not in ("channels", "units"):
                continue
            steps = (
                (gone, min(gone, -kept % lanes)) if len(pool.keys) <= _SMALL * lanes else (min(gone, -kept % lanes),)
            )
            for more in dict.fromkeys(steps):
                removed = [*best.removed[:i], ranking.restored(i, best.removed[i], more), *best.removed[i + 1 :]]
                now = self._option(units, ranking, removed, target.kind) if more else best
                if more and now.amount <= wanted and now.us <= best.us * _FREE:
                    best = now
                    whole += [pool.name] if more == gone else []
                    break
        return best, whole

    def _option(self, units: Units, ranking: Ranking, removed: list[np.ndarray], kind: str) -> _Option:
        amounts = planned(units.made(removed), self.job.machine, self.settings.optimize)
        amount = amounts[kind] if kind in amounts else units.counts(removed)[kind]
        self.job.tell("searching", 1, 2)
        return _Option(removed, amount, amounts["latency"], ranking.kept(removed))

    def _why(self) -> str:
        floor = f"{self.settings.least:.0%} of each group of {'+'.join(self.settings.kinds)} always stay"
        return "; ".join([floor, *lines(self.stay, "stays")])


def _output_axes(weight: Weight) -> set[int]:
    """The axes of a weight that are no inputs (not negative)."""
    rank = weight.array.ndim
    return set(range(rank)) - {use.axis % rank for use in weight.uses}
