"""Settings as data: fields that say what they do and what they may be. Command lines are made from them."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

from ..errors import NervureError


def option(default: Any, doc: str, choices: tuple[Any, ...] = (), least: float | None = None, most: float = 0) -> Any:
    """A field; ``metadata``: ``doc`` (one line), ``choices``, and the ``range`` of a number."""
    limits = None if least is None else (least, most)
    return field(default=default, metadata={"doc": doc, "choices": choices, "range": limits})


def check_options(settings: Any, what: str) -> None:
    """``NervureError`` for a field that is none of its choices or out of its range; ``what`` begins the message."""
    for f in fields(settings):
        value, choices, limits = getattr(settings, f.name), f.metadata["choices"], f.metadata["range"]
        if choices and value not in choices:
            wanted = ", ".join(map(str, choices))
            raise NervureError(f"{what}: {f.name} is {value!r}", hint=f"use one of: {wanted}")
        if limits is None or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not limits[0] <= value <= limits[1]:
            hint = f"a number from {limits[0]:g} to {limits[1]:g}"
            raise NervureError(f"{what}: {f.name} is {value!r}", hint=hint)
