"""What a static library takes of a microcontroller: RAM, flash, the layer that needs most, beside a board's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NervureError
from ..runtime.artifact import Artifact
from ..targets.boards import Board


@dataclass(frozen=True)
class Footprint:
    """Bytes. ``regions``: the caller's memory blocks by name, what stays included in the first. ``kept``: parameters,
    states and what is derived from them. ``stack``: what one run took of it in the emulator, None where it was not
    measured. ``peak`` is the step with the largest live set: its ``name``, ``op``, place (``step``) and ``bytes``."""

    regions: Mapping[str, int]
    kept: int
    stack: int | None
    code: int
    constants: int
    weights: int
    peak: Mapping[str, Any] | None

    @property
    def arena(self) -> int:
        """All memory blocks together."""
        return sum(self.regions.values())

    @property
    def ram(self) -> int:
        """Memory blocks and stack."""
        return self.arena + (self.stack or 0)

    @property
    def flash(self) -> int:
        """Code, constants and weights."""
        return self.code + self.constants + self.weights

    def as_dict(self, board: Board | None = None) -> dict[str, Any]:
        """Plain data; with a board its limits beside each figure."""
        made: dict[str, Any] = {
            "ram": {
                "bytes": self.ram,
                "arena_bytes": self.arena,
                "regions": dict(self.regions),
                "kept_bytes": self.kept,
                "stack_bytes": self.stack,
            },
            "flash": {
                "bytes": self.flash,
                "code_bytes": self.code,
                "constant_bytes": self.constants,
                "weight_bytes": self.weights,
            },
            "peak_layer": dict(self.peak) if self.peak else None,
        }
        if board is not None:
            made["ram"]["limit_bytes"] = board.size("ram")
            made["flash"]["limit_bytes"] = board.size("flash")
            made["board"] = board_facts(board)
        return made


def footprint(artifact: Artifact, stack: int | None = None) -> Footprint:
    """What a static library takes; ``stack`` is what a run in the emulator took."""
    bare = artifact.bare
    if bare is None:
        raise NervureError("this is no static library for a microcontroller", where=str(artifact.path))
    flash = bare["flash"]
    return Footprint(
        regions={r["name"]: int(r["bytes"]) for r in bare["regions"]},
        kept=int(bare["kept_bytes"]),
        stack=stack,
        code=int(flash["code"]),
        constants=int(flash["constants"]),
        weights=int(flash["weights"]),
        peak=_peak(artifact),
    )


def _peak(artifact: Artifact) -> dict[str, Any] | None:
    """The step with the largest live set, of the entry point that needs most."""
    entry = max(artifact.entries, key=lambda e: e.arena_bytes())
    rows = [(int(s.get("live_bytes", s["bytes"])), -i, s) for i, s in enumerate(entry.steps)]
    if not rows:
        return None
    nbytes, index, step = max(rows, key=lambda r: r[:2])
    return {"name": step["name"], "op": step["op"], "step": -index, "bytes": nbytes}


def board_facts(board: Board) -> dict[str, Any]:
    """A board as plain data."""
    memory = [{"name": m.name, "kind": m.kind, "origin": m.origin, "bytes": m.size} for m in board.memory]
    names = {"name": board.name, "title": board.title, "core": board.core, "source": board.source}
    return names | {"stack_bytes": board.stack, "memory": memory}
