"""``nervure inspect``."""

from __future__ import annotations


def inspect_command() -> None:
    """Not there yet."""


inspect_command.example = "nervure inspect"  # type: ignore[attr-defined]
