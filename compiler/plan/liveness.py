"""What is alive in memory at each step: the largest live layer, and what overlapping saves there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..program import Buffer, Entry


@dataclass(frozen=True, slots=True)
class Live:
    """One step. ``bytes`` are what its live buffers cover in all regions, each shared byte counted once; ``saved`` is
    what they have in common. ``buffers`` are the largest first."""

    step: int
    name: str
    op: str
    bytes: int
    saved: int
    buffers: tuple[Buffer, ...]


def liveness(entry: Entry) -> list[Live]:
    """One row a step, in order. A buffer that is needed until the caller has read it lives on behind the last step."""
    return live_rows([(s.name, s.op) for s in entry.steps], entry.buffers)


def live_rows(steps: Sequence[tuple[str, str]], buffers: Sequence[Buffer]) -> list[Live]:
    """As ``liveness``, for steps as ``(name, op)``."""
    rows = []
    for t, (name, op) in enumerate(steps):
        live = sorted((b for b in buffers if b.first <= t <= b.last), key=lambda b: (-b.nbytes, b.region, b.offset))
        covered = _covered(live)
        rows.append(Live(t, name, op, covered, sum(b.nbytes for b in live) - covered, tuple(live)))
    return rows


def peak(rows: Sequence[Live]) -> Live | None:
    """The step with the most live bytes; the first of several."""
    return max(rows, key=lambda r: (r.bytes, -r.step), default=None)


def _covered(buffers: Sequence[Buffer]) -> int:
    total, end, region = 0, 0, -1
    for b in sorted(buffers, key=lambda b: (b.region, b.offset)):
        if b.region != region:
            region, end = b.region, 0
        total += max(0, b.offset + b.nbytes - max(end, b.offset))
        end = max(end, b.offset + b.nbytes)
    return total


def stored_rows(entry: Entry) -> list[list[Any]]:
    """The buffers as plain data for an artifact: name, region, offset, bytes, first and last step, whether scratch."""
    return [[b.name, b.region, b.offset, b.nbytes, b.first, b.last, int(b.scratch)] for b in entry.buffers]


def from_stored(entry: dict[str, Any]) -> list[Live]:
    """``liveness`` of an entry of an artifact's block (``artifact.block["entries"][i]``); empty where the artifact does
    not carry its buffers."""
    buffers = [Buffer(n, r, o, b, f, t, bool(s)) for n, r, o, b, f, t, s in entry.get("buffers", [])]
    return live_rows([(s["name"], s["op"]) for s in entry["steps"]], buffers) if buffers else []


__all__ = ["Live", "from_stored", "live_rows", "liveness", "peak", "stored_rows"]
