"""``nervure profile``."""

from __future__ import annotations


def profile_command() -> None:
    """Not there yet."""


profile_command.example = "nervure profile"  # type: ignore[attr-defined]
