"""What a static library takes of a microcontroller: RAM, flash, the layer that needs most, beside a board's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..compiler.plan.liveness import Live, from_stored, peak
from ..errors import NervureError
from ..runtime.artifact import Artifact
from ..targets.boards import Board


@dataclass(frozen=True)
class Footprint:
    """Bytes. ``regions``: the caller's memory blocks by name, what stays included in the first. ``kept``: parameters,
    states and what is derived from them. ``stack``: what one run took of it in the emulator, None where it was not
    measured. ``code`` and ``constants`` are None for portable C: the C compiler decides. ``peak`` is the step with the
    largest live set: ``name``, ``op``, place (``step``), ``bytes``, and the ``saved_bytes`` that buffers share."""

    regions: Mapping[str, int]
    kept: int
    stack: int | None
    code: int | None
    constants: int | None
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
        """Code, constants and weights, as far as they are known."""
        return (self.code or 0) + (self.constants or 0) + self.weights

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
        code=int(flash["code"]) or None,
        constants=int(flash["constants"]) if flash["code"] else None,
        weights=int(flash["weights"]),
        peak=_peak(artifact),
    )


def _peak(artifact: Artifact) -> dict[str, Any] | None:
    """The step with the largest live set, of the entry point that needs most."""
    found = peak(live_layers(artifact))
    if found is None:
        return None
    return {"name": found.name, "op": found.op, "step": found.step, "bytes": found.bytes, "saved_bytes": found.saved}


def live_layers(artifact: Artifact) -> list[Live]:
    """What is alive at each step of the entry point that needs most."""
    most = max(range(len(artifact.entries)), key=lambda i: artifact.entries[i].arena_bytes())
    return from_stored(artifact.block["entries"][most])


def board_facts(board: Board) -> dict[str, Any]:
    """A board as plain data."""
    memory = [{"name": m.name, "kind": m.kind, "origin": m.origin, "bytes": m.size} for m in board.memory]
    names = {"name": board.name, "title": board.title, "core": board.core, "source": board.source}
    return names | {"stack_bytes": board.stack, "memory": memory}
