"""What a search for architectures has found: candidates, the front of those that no other one beats, a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import NervureError
from .dsl.network import Network
from .search_costs import Costs


@dataclass(frozen=True)
class Candidate:
    """An architecture. ``choices``: what was chosen, by name. ``net``: the network, trained as far as the search went.
    ``costs``: ``ram``, ``flash``, ``latency`` (see ``Costs``). ``history``: the score after each epoch. ``refused``:
    why it was not trained, or "". ``stopped``: whether its training was cut short. ``build(seed)`` makes the network
    anew, untrained."""

    number: int
    choices: dict[str, Any]
    build: Callable[..., Network] = field(repr=False)
    net: Network
    costs: Costs | None
    history: tuple[float, ...] = ()
    refused: str = ""
    stopped: bool = False

    @property
    def score(self) -> float:
        """The accuracy on the validation data at the end of its training; 0 where it was refused."""
        return self.history[-1] if self.history else 0.0

    def value(self, objective: str) -> float:
        """``accuracy``, ``ram``, ``flash`` or ``latency``."""
        return self.score if objective == "accuracy" else float(getattr(self.costs, objective))

    def beats(self, other: Candidate, objectives: Sequence[str]) -> bool:
        """Whether it is as good in every objective and better in one."""
        pairs = [_signed(self.value(o), other.value(o), o) for o in objectives]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@dataclass(frozen=True)
class Found:
    """What a search has found: ``candidates`` in order, and the ``study`` of Optuna behind them."""

    candidates: tuple[Candidate, ...]
    objectives: tuple[str, ...]
    limits: dict[str, float] = field(default_factory=dict)
    study: Any = None

    @property
    def trained(self) -> list[Candidate]:
        """Those whose training was finished."""
        return [c for c in self.candidates if c.history and not c.stopped]

    @property
    def best(self) -> Candidate:
        """The most accurate one; of several the one with the least flash. ``NervureError`` where nothing fitted."""
        if not self.trained:
            why = next((c.refused for c in self.candidates if c.refused), None)
            raise NervureError("no candidate was trained", why=why, hint="wider limits, a smaller space, more trials")
        return max(self.trained, key=lambda c: (c.score, -c.value("flash")))

    @property
    def front(self) -> list[Candidate]:
        """Those that no other one beats (Pareto), the least flash first."""
        rows = self.trained
        kept = [c for c in rows if not any(o.beats(c, self.objectives) for o in rows)]
        return sorted(kept, key=lambda c: c.value("flash"))

    def table(self) -> str:
        """A line for each candidate; those of the front are marked."""
        best = {c.number for c in self.front}
        lines = [f"    {'accuracy':>8}  {'RAM':>8}  {'flash':>8}  {'latency':>9}  choices"]
        for c in self.candidates:
            chosen = ", ".join(f"{name} {value}" for name, value in c.choices.items())
            cost = f"{c.costs.ram:8,}  {c.costs.flash:8,}  {c.costs.latency:9,.0f}" if c.costs else " " * 29
            said = f"{c.score:8.1%}" if c.history else f"{'':8}"
            note = f"; refused: {c.refused}" if c.refused else f"; stopped after {len(c.history)}" if c.stopped else ""
            lines.append(f"{'*' if c.number in best else ' '}{c.number:2} {said}  {cost}  {chosen}{note}")
        return "\n".join(lines)


def _signed(a: float, b: float, objective: str) -> tuple[float, float]:
    """Both so that more is better."""
    return (a, b) if objective == "accuracy" else (-a, -b)
