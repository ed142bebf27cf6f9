"""Pruning of single weights by a sparse pattern to a target; it is taken back where it does not pay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import NervureError
from .breakeven import break_even
from .cells import Cells, candidates, masked
from .criteria import Scores
from .job import Job, Pruned, lines, nothing
from .layers import layers
from .patterns import Pattern
from .rows import losing, plans, refusal
from .select import Found, Ranking

_ROUNDS = 4  # of taking patterns back


class Patterned:
    """Pruning of weights by a sparse pattern."""

    def __init__(self, job: Job, pattern: Pattern) -> None:
        self.job, self.settings, self.pattern = job, job.settings, pattern
        self.kept = {name: "it is kept, as asked" for name in sorted(job.named(job.settings.keep))}
        self.parts, self.left_out = candidates(job.fixed, pattern, job.shares(), self.kept)

    def check(self) -> None:
        """Raises where no layer can take the pattern, or the target does not go with it."""
        own, target = self.pattern.sparsity, self.settings.target
        if not self.parts:
            raise nothing(f"layer that {self.pattern} fits", self.left_out)
        if target is None and own is None:
            raise NervureError("how much is to go?", hint="a target: sparsity, macs, params, ram, file or latency")
        if own is not None and target is not None and target.kind == "sparsity" and target.value > own + 1e-9:
            raise NervureError(
                f"a sparsity of {target.value:.1%} cannot be met; the nearest that can is {own:.1%}",
                why=f"{self.pattern} leaves {1 - own:.1%} of the weights",
                hint=f"--sparsity {own:g}, or a pattern that leaves fewer",
            )

    def run(self, found: Scores) -> Pruned:
        """The graph with the zeros."""
        job, refused = self.job, dict[str, str]()
        for _ in range(_ROUNDS):
            cells = Cells(job.fixed, self.parts, self.pattern, found, self.settings)
            masks, place = self._meet(cells)
            losers = {} if self.settings.force else self._losers(masks)
            if not losers:
                break
            evens = self._evens(losers)
            refused |= {name: f"{told}; {evens[name]}" for name, told in losers.items()}
            parts, _ = candidates(job.fixed, self.pattern, job.shares(), self.kept | refused)
            if not parts:
                raise refusal(self.pattern, job.machine, refused)
            self.parts = parts
        else:
            masks = {w: m for w, m in masks.items() if w not in self._weights_of(losers)}
        if not masks and refused:
            raise refusal(self.pattern, job.machine, refused)
        patterns = dict.fromkeys(masks, self.pattern)
        amount = place.amount if place is not None else 1 - (self.pattern.sparsity or 0.0)
        if refused:
            job.notes.append(f"{self.pattern} does not pay in {len(refused)} layers, which stay dense: see their rows")
        return job.made(
            masked(job.plain, masks), masked(job.fixed, masks), amount, masks, {}, patterns, refused, self.left_out
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
        made = plans(masked(self.job.fixed, masks), self.job.machine, self.settings.optimize)
        kept = {w: float(m.mean()) for w, m in masks.items()}
        names = [(p.layer.name, p.layer.weight) for p in self.parts if p.layer.weight in masks]
        kind = self.settings.target.kind if self.settings.target is not None else "latency"
        kind = "file" if self.settings.optimize == "size" and kind != "latency" else kind
        return losing(names, self.job.dense, made, kind, kept)

    def _weights_of(self, layers: Mapping[str, str]) -> set[str]:
        return {p.layer.weight for p in self.parts if p.layer.name in layers}

    def _evens(self, refused: Mapping[str, str]) -> dict[str, str]:
        """By layer, how few of its weights may be left for the pattern to pay."""
        found = {}
        for layer in (m for m in layers(self.job.fixed) if m.name in refused):
            even = break_even(layer, self.job.machine, self.pattern, self.job.fixed)
            found[layer.name] = f"it pays with {even:.1%} of the weights or fewer" if even else "it never pays here"
        return found

    def _why(self) -> str:
        if self.pattern.sparsity is not None:
            own = f"{self.pattern} leaves {1 - self.pattern.sparsity:.1%} of the weights of a layer"
        else:
            own = f"{self.settings.least:.0%} of each layer always stay"
        return "; ".join([own, *lines(self.left_out, "stays dense")])
