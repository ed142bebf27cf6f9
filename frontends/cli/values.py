"""Values on the command line: sizes, shapes, dimensions, thread counts. Parsed here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import NervureError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str | None) -> int | None:
    """Bytes: ``256K``, ``1.5M``, ``2GB``, ``4096`` (K is 1,024)."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise NervureError(f"{text!r} is no size", hint="write it as 256K, 1.5M or 4096 (bytes)")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """Positive whole numbers: ``1,3,224,224``."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(v < 0 or v >= 1 << 40 for v in values):
        raise NervureError(f"{what} {text!r} is no list of whole numbers", hint="write it as 1,3,224,224")
    return values


def parse_named(given: Sequence[str], what: str) -> dict[str, tuple[int, ...]]:
    """``name=1,3,224,224`` for each; a name may itself hold ``=``."""
    found: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, equals, values = text.rpartition("=")
        if not equals or not name:
            raise NervureError(f"{what} {text!r} has no name", hint=f"write it as {what} name=1,8")
        if name in found:
            raise NervureError(f"{what} {name!r} is given twice")
        found[name] = parse_counts(values, what)
    return found


def parse_threads(text: str) -> list[int]:
    """Thread counts: ``1,2``."""
    values = parse_counts(text, "--threads")
    if any(not 1 <= v <= 256 for v in values):
        raise NervureError(f"--threads {text!r}", hint="give numbers from 1 to 256")
    return list(dict.fromkeys(values))
