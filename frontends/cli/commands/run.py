"""``nervure run``."""

from __future__ import annotations


def run_command() -> None:
    """Not there yet."""


run_command.example = "nervure run"  # type: ignore[attr-defined]
