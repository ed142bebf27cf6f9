"""``nervure bench``."""

from __future__ import annotations


def bench_command() -> None:
    """Not there yet."""


bench_command.example = "nervure bench"  # type: ignore[attr-defined]
