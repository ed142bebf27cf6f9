"""Accuracy control: which layers get 16 bits or stay in float, so that a quantized network keeps within a budget.

The loop of NNCF's quantization with accuracy control (rank by what restoring a layer brings, restore from the worst
on), with two differences: what is measured is the compiled artifact, and the number of restored layers is searched by
doubling and bisection, so that a network of a hundred layers takes tens of measurements and not hundreds.

Nothing here compiles or runs anything: ``measure`` does, and what it says is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Promotion = Mapping[str, str]  # layer -> "int16" or "float"
Progress = Callable[[str, int, int], None]
EXACT = 16  # layers whose damage is measured one by one; those behind them keep the cheap order
MOST_NARROWED = 8
TARGETS = ("auto", "int16", "float")


@dataclass(frozen=True)
class Score:
    """One measured artifact: ``noise`` is the power of an output's error over that of the output, the largest counts;
    ``value`` what the evaluation gave (higher is better)."""

    noise: float
    value: float | None = None

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, dB; infinite where there is no noise."""
        return decibels(self.noise)


def decibels(noise: float) -> float:
    """The ratio of signal to noise, dB, of noise given in parts of the signal."""
    return math.inf if noise <= 0 else -10 * math.log10(noise)


@dataclass(frozen=True)
class Budget:
    """What quantization may cost: ``drop`` of the evaluation's value below the float artifact's, and ``noise``."""

    drop: float | None = None
    noise: float | None = None

    def holds(self, score: Score, reference: float | None) -> bool:
        """Whether a score keeps within both bounds; NaN never does."""
        kept = True
        if self.drop is not None:
            assert score.value is not None and reference is not None
            kept = reference - score.value <= self.drop + 1e-12
        return kept and (self.noise is None or score.noise <= self.noise)


@dataclass(frozen=True)
class Trial:
    """A promotion and what it measured."""

    promoted: dict[str, str]
    score: Score
    holds: bool


@dataclass(frozen=True)
class Outcome:
    """What the control did. ``damage``: the part of the outputs' noise that goes when a layer alone is restored (of the
    layers that were tried). ``needed``: where ``met`` is False, the promotion that would hold, if there is one."""

    met: bool
    promoted: dict[str, str]
    score: Score
    damage: dict[str, float]
    trials: tuple[Trial, ...] = ()
    needed: dict[str, str] | None = None


@dataclass
class _Search:
    measure: Callable[[Promotion], Score]
    budget: Budget
    reference: float | None
    cost: Callable[[Promotion], float]
    progress: Progress
    trials: list[Trial] = field(default_factory=list)

    def trial(self, promoted: Promotion) -> Trial:
        wanted = dict(promoted)
        for held in self.trials:
            if held.promoted == wanted:
                return held
        score = self.measure(wanted)
        self.trials.append(Trial(wanted, score, self.budget.holds(score, self.reference)))
        return self.trials[-1]


def control(
    layers: Sequence[str],
    measure: Callable[[Promotion], Score],
    budget: Budget,
    reference: float | None = None,
    *,
    to: str = "auto",
    cost: Callable[[Promotion], float] | None = None,
    rough: Callable[[Promotion], float] | None = None,
    exact: int = EXACT,
    progress: Progress | None = None,
) -> Outcome:
    """Promotes layers until the budget holds.

    ``layers``: those that can be promoted, the worst first by a cheap measure. ``measure`` quantizes with a promotion,
    compiles, and scores the artifact; ``rough`` gives the noise alone, on fewer samples, which is enough for ranking
    (``measure`` is asked where it is not given). ``reference``: the float artifact's value. ``to``: ``float``,
    ``int16``, or ``auto``, which gives those layers 16 bits for which that is enough and, by ``cost``, no slower than
    float.
    """
    search = _Search(
        measure, budget, reference, cost or (lambda promoted: 0.0), progress or (lambda stage, done, total: None)
    )
    start = search.trial({})
    if start.holds or not layers:
        return Outcome(start.holds, {}, start.score, {}, tuple(search.trials))
    kind = "int16" if to == "int16" else "float"
    noise = rough or (lambda promoted: search.trial(promoted).score.noise)
    order, damage = _ranked(noise, layers, kind, exact, search.progress)
    best = _fewest(search, order, kind)
    if best is None:
        last = search.trial(dict.fromkeys(order, kind))
        other = _fewest(search, order, "float") if kind == "int16" else None
        needed = None if other is None else other.promoted
        return Outcome(False, last.promoted, last.score, damage, tuple(search.trials), needed)
    if to == "auto":
        best = _narrowed(search, best)
    return Outcome(True, best.promoted, best.score, damage, tuple(search.trials))


def _ranked(
    noise: Callable[[Promotion], float], layers: Sequence[str], kind: str, exact: int, progress: Progress
) -> tuple[list[str], dict[str, float]]:
    """The layers, the most damaging first, and the damage of those that were measured."""
    damage: dict[str, float] = {}
    tried = list(layers[:exact])
    whole = noise({})
    for number, name in enumerate(tried):
        progress("ranking", number, len(tried))
        damage[name] = (whole - noise({name: kind})) / whole if 0 < whole < math.inf else 0.0
    place = {name: i for i, name in enumerate(layers)}
    tried.sort(key=lambda name: (-damage[name], place[name]))
    return [*tried, *layers[exact:]], damage


def _fewest(search: _Search, order: Sequence[str], kind: str) -> Trial | None:
    """The shortest beginning of ``order`` whose promotion holds, by doubling and bisection; None where none does."""

    def first(count: int) -> Trial:
        search.progress("promoting", count, len(order))
        return search.trial(dict.fromkeys(order[:count], kind))

    low, high = 0, 1
    found = first(1)
    while not found.holds:
        if high >= len(order):
            return None
        low, high = high, min(2 * high, len(order))
        found = first(high)
    while high - low > 1:
        middle = (low + high) // 2
        tried = first(middle)
        if tried.holds:
            high, found = middle, tried
        else:
            low = middle
    return found


def _narrowed(search: _Search, best: Trial) -> Trial:
    """Float layers become int16 where the budget still holds and the artifact is not slower for it."""
    names, price = list(best.promoted), search.cost(best.promoted)
    whole = search.trial(dict.fromkeys(names, "int16"))
    if whole.holds and search.cost(whole.promoted) <= price:
        return whole
    for name in names[::-1][:MOST_NARROWED] if len(names) > 1 else ():
        tried = search.trial({**best.promoted, name: "int16"})
        if tried.holds and (now := search.cost(tried.promoted)) <= price:
            best, price = tried, now
    return best
