"""Boards: a core and its memory map, as TOML. ``get("nucleo-l4r5zi")``, or a path to a file of one's own."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..errors import NervureError

FOLDER = Path(__file__).parent / "boards"


@dataclass(frozen=True, slots=True)
class Memory:
    """A range of addresses. ``kind``: ``flash`` (read-only) or ``ram``; those that are listed first are the fastest."""

    name: str
    kind: str
    origin: int
    size: int


@dataclass(frozen=True, slots=True)
class Board:
    """``core`` names the target whose code it runs."""

    name: str
    title: str
    core: str
    memory: tuple[Memory, ...]

    def first(self, kind: str) -> Memory:
        """The first memory of that kind."""
        return next(m for m in self.memory if m.kind == kind)


def names() -> list[str]:
    """The boards that come along."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def get(name: str) -> Board:
    """The board of that name or in that file; ``NervureError`` says what is wrong with it."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise NervureError(f"there is no board {name!r}", hint=f"boards: {', '.join(names())}") from error
    memory = tuple(Memory(m["name"], m["kind"], int(m["origin"]), nbytes(m["size"])) for m in data["memory"])
    return Board(path.stem, data["title"], data["core"], memory)


def nbytes(size: str | int) -> int:
    """``"64K"`` as 65536."""
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"(\d+)([KM]?)", size)
    if found is None:
        raise NervureError(f"{size!r} is no size", hint='write a number of bytes, or "64K", "2M"')
    return int(found[1]) << {"": 0, "K": 10, "M": 20}[found[2]]
