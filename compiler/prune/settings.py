"""What a user may say about pruning. Command-line options are made from these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import NervureError
from ..settings import check_options, option
from .budget import Target

_FLOORS = (0.1, 0.01)  # the part of a group, of a layer's weights, that stays where nothing is said
STRUCTURES = ("channels", "heads", "units", "groups", "blocks")  # the kinds of groups that structure.py finds
CRITERIA = ("l1", "l2", "bn_scale", "taylor", "movement", "wanda", "random")
LEARNED = ("taylor", "movement")  # need gradients
SEEN = (*LEARNED, "wanda")  # need samples


@dataclass(frozen=True)
class Settings:
    """How to prune (``metadata["doc"]`` of a field: what it does). ``NervureError`` for a value out of range.

    ``structure`` is one of ``STRUCTURES``, several joined by ``+`` (``channels+heads``), ``all`` of them, or a sparse
    pattern as ``patterns.parse`` reads it. ``target`` may be None for an N:M pattern alone, which says its own.
    """

    structure: str = option("channels", "channels, heads, units, groups, blocks (joined by +), all; or a pattern")
    criterion: str = option("l2", "what says how much a weight matters", CRITERIA)
    scope: str = option("global", "one ranking over all layers, or the same part of each", ("global", "layer"))
    target: Target | None = field(default=None, metadata={"doc": "what is to be reached", "choices": (), "range": None})
    keep: tuple[str, ...] = option((), "layers or weights that stay as they are (patterns of names)")
    parts: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"doc": "part taken of single layers (patterns of names -> 0 to 1)", "choices": (), "range": None},
    )
    floor: float | None = option(
        None, "the part of a layer or group that always stays (default: 0.1 of a group, 0.01 of a layer)", (), 0, 1
    )
    rank: str = option("auto", "what a ranking goes by: the score, or the score per cost", ("auto", "score", "cost"))
    multiple: int | None = option(None, "channels kept are a multiple of this (default: by target)", (), 1, 256)
    tolerance: float = option(0.02, "how far from the target is near enough, as a part of it", (), 1e-4, 0.5)
    optimize: str = option("speed", "what the model is compiled for: speed, or few bytes", ("speed", "size"))
    seed: int = option(0, "of everything drawn by chance")
    force: bool = option(False, "keep patterns that do not pay on the machine")

    def __post_init__(self) -> None:
        check_options(self, "pruning")
        wrong = sorted(n for n, part in self.parts.items() if not 0 <= part < 1)
        if wrong:
            raise NervureError(f"pruning: the part {self.parts[wrong[0]]!r} of {wrong[0]!r}", hint="from 0 to below 1")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of groups to be taken out; empty where ``structure`` is a sparse pattern."""
        if self.structure == "all":
            return STRUCTURES
        words = self.structure.split("+")
        return tuple(words) if all(w in STRUCTURES for w in words) else ()

    @property
    def least(self) -> float:
        """The part of a group (structures) or of a layer's weights (patterns) that always stays."""
        return self.floor if self.floor is not None else _FLOORS[0 if self.kinds else 1]
