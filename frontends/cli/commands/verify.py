"""``nervure verify``."""

from __future__ import annotations


def verify_command() -> None:
    """Not there yet."""


verify_command.example = "nervure verify"  # type: ignore[attr-defined]
