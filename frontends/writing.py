"""Where something is to be written: said before the work, not after it."""

from __future__ import annotations

from pathlib import Path

from ..errors import NervureError


def writable(path: Path, suffix: str, what: str) -> None:
    """``NervureError`` unless the path ends in ``suffix`` (``what`` says why it should) and its folder is there."""
    if path.suffix != suffix:
        raise NervureError(what, where=str(path), hint=f"{path.stem}{suffix}")
    if not path.parent.is_dir():
        raise NervureError("there is no such folder", where=str(path.parent))


def writable_record(path: Path) -> None:
    """The same of a tuning record."""
    writable(path, ".json", "a tuning record is a JSON file")
