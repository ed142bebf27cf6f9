"""What may be said about a pruning. Nothing heavy is imported: the command line is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..compiler.prune import budget
from ..compiler.prune.settings import Settings
from ..errors import NervureError

OWN = (
    "structure",
    "criterion",
    "scope",
    "target",
    "keep",
    "parts",
    "seed",
    "force",
    "optimize",
)  # said by arguments of prune


@dataclass(frozen=True)
class Tuning:
    """How the pruned network is trained on: ``epochs`` in all (0: not at all), divided among the ``steps``."""

    epochs: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 32
    distill: bool = False
    steps: int = 1

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("steps", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise NervureError(f"pruning: {name} is {value!r}", hint=f"a whole number from {least} on")
        if not 0 < self.learning_rate < float("inf"):
            raise NervureError(f"pruning: learning_rate is {self.learning_rate!r}", hint="for example 0.001")
        if self.distill and not self.epochs:
            raise NervureError("the dense model can teach only where there is training", hint="epochs=5, say")
        if self.steps > max(1, self.epochs):
            why = f"{self.steps} steps with {self.epochs} epochs of training in all"
            raise NervureError("each step needs an epoch of training", why=why, hint=f"epochs={self.steps} or more")

    def epochs_of(self, step: int) -> int:
        """Epochs after pruning number ``step``; what does not divide evenly is for the last ones."""
        return self.epochs * (step + 1) // self.steps - self.epochs * step // self.steps


def settings_for(targets: Mapping[str, Any], said: Mapping[str, Any]) -> Settings:
    """The settings, from at most one target and single fields. ``NervureError`` for several targets, none where one is
    needed, and an unknown field."""
    given = {kind: value for kind, value in targets.items() if value is not None}
    known = [f.name for f in fields(Settings)]
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise NervureError(
            f"pruning has no option {unknown[0]!r}", hint=f"options: {', '.join(n for n in known if n not in OWN)}"
        )
    if len(given) > 1:
        raise NervureError(
            "a pruning has one target", why=f"given: {', '.join(given)}", hint="leave all but one of them out"
        )
    target = next((_parsed(value, kind) for kind, value in given.items()), None)
    keep = said.get("keep", ())
    made = Settings(**{**said, "keep": (keep,) if isinstance(keep, str) else tuple(keep), "target": target})
    if target is None and not made.parts and (made.kinds or ":" not in made.structure or "block" in made.structure):
        raise NervureError(
            "pruning needs a target",
            hint="sparsity=0.5, or what is to be left: macs, params, ram, file or latency='0.6x'",
        )
    return made


def _parsed(value: Any, kind: str) -> budget.Target:
    if isinstance(value, budget.Target):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise NervureError(f"{value!r} is no {kind}", hint="0.5x, or a number with its unit")
    return budget.parse(value if isinstance(value, str) else f"{value:.12g}", kind)
