"""Boards: a core and its memory map, as TOML. ``get("nucleo-l4r5zi")``, or a path to a file of one's own.

A file has ``title``, ``core`` (a target) and ``source`` (where its figures come from), perhaps ``stack`` (bytes of the
first RAM that are kept free for the stack), and a ``[[memory]]`` for each range of addresses, fastest first: ``name``,
``kind`` (``flash`` or ``ram``), ``origin`` and ``size``.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import NervureError, printable

FOLDER = Path(__file__).parent / "boards"
KINDS = ("flash", "ram")
FIELDS: dict[str, Any] = {"title": str, "core": str, "source": str, "stack": (int, str), "memory": list}
MEMORY_FIELDS = ("name", "kind", "origin", "size")
ADDRESSES = 1 << 32
STACK = 8 << 10  # kept for the stack where a file does not say
LARGEST_FILE = 1 << 16
# what a linker script, C, or the generated header understands as something else
RESERVED = (
    "arena entry memory sections origin length assert provide align sizeof addr loadaddr keep void int char short long "
    "float double signed unsigned const volatile static extern register auto struct union enum typedef return if else "
    "for while do switch case default break continue goto sizeof inline restrict asm"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """A range of addresses. ``kind``: ``flash`` (read-only) or ``ram``; those that are listed first are the fastest."""

    name: str
    kind: str
    origin: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.origin + self.size


@dataclass(frozen=True, slots=True)
class Board:
    """``core`` names the target whose code it runs, ``stack`` the bytes of the first RAM that are kept for the stack,
    ``source`` where the figures come from."""

    name: str
    title: str
    core: str
    memory: tuple[Memory, ...]
    stack: int = STACK
    source: str = ""

    def first(self, kind: str) -> Memory:
        """The first memory of that kind."""
        return next(m for m in self.memory if m.kind == kind)

    def of(self, kind: str) -> tuple[Memory, ...]:
        """All memories of that kind, fastest first."""
        return tuple(m for m in self.memory if m.kind == kind)

    def size(self, kind: str) -> int:
        """Bytes of all memories of that kind."""
        return sum(m.size for m in self.of(kind))


def names() -> list[str]:
    """The boards that come along."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def get(name: str) -> Board:
    """The board of that name or in that file; ``NervureError`` says everything that is wrong with it."""
    own = name.endswith(".toml") or "/" in name
    if not own and name not in names():
        close = get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise NervureError(
            f"there is no board {printable(name, 80)!r}",
            hint=f"{hint}boards: {', '.join(names())}; or give the path of a TOML file",
        )
    return read(Path(name) if own else FOLDER / f"{name}.toml")


def read(path: Path) -> Board:
    """The board that a TOML file describes."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise NervureError("this is no board file", where=str(path), why=f"it has over {LARGEST_FILE} bytes")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NervureError("cannot read the board", where=str(path), why=error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NervureError("the board file is no TOML", where=str(path), why=str(error)) from error
    problems = _problems(data)
    if problems:
        raise NervureError(
            "the board file has a mistake" if len(problems) == 1 else f"the board file has {len(problems)} mistakes",
            where=str(path),
            why=problems[0] if len(problems) == 1 else "".join(f"\n  - {printable(p, 240)}" for p in problems[:20]),
            hint="docs/bare-metal.md says what a board file holds; `nervure targets nucleo-l4r5zi` shows one",
        )
    memory = tuple(Memory(m["name"], m["kind"], m["origin"], nbytes(m["size"])) for m in data["memory"])
    stack = nbytes(data.get("stack", min(STACK, next(m for m in memory if m.kind == "ram").size // 2)))
    return Board(path.stem, data["title"], data["core"], memory, stack, data.get("source", ""))


def nbytes(size: str | int) -> int:
    """``"64K"`` as 65536."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    found = re.fullmatch(r"(\d{1,12})([KM]?)", size) if isinstance(size, str) else None
    if found is None:
        raise NervureError(f"{size!r} is no size", hint='write a number of bytes, or "64K", "2M"')
    return int(found[1]) << {"": 0, "K": 10, "M": 20}[found[2]]


def _problems(data: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a board file, a line each."""
    found = [f"unknown key {k!r}{_near(k, FIELDS)}" for k in data if k not in FIELDS]
    for key in ("title", "core", "memory"):
        if key not in data:
            found.append(f"there is no {key}" if key != "memory" else "there is no [[memory]]")
    for key, kind in FIELDS.items():
        if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            found.append(f"{key} is {data[key]!r}, which is no {'list' if kind is list else 'text or number'}")
    found += _core(data.get("core"))
    rows = data.get("memory")
    if isinstance(rows, list):
        found += [line for i, row in enumerate(rows) for line in _memory(i, row)]
        found += _together([r for r in rows if isinstance(r, dict)], data.get("stack"))
    return found


def _core(core: Any) -> list[str]:
    from . import MACHINES

    cores = [m.name for m in MACHINES.values() if m.system == "bare"]
    if not isinstance(core, str) or core in cores:
        return []
    return [f"core {core!r} is none of {', '.join(cores)}{_near(core, cores)}"]


def _near(word: str, words: Any) -> str:
    close = get_close_matches(word, list(words), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _memory(index: int, row: Any) -> list[str]:
    """What is wrong with one memory by itself."""
    if not isinstance(row, dict):
        return [f"memory {index + 1} is no table; write [[memory]]"]
    name = row.get("name")
    label = f"memory {name!r}" if isinstance(name, str) else f"memory {index + 1}"
    found = [f"{label}: unknown key {k!r}{_near(k, MEMORY_FIELDS)}" for k in row if k not in MEMORY_FIELDS]
    found += [f"{label}: there is no {k}" for k in MEMORY_FIELDS if k not in row]
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,30}", name)):
        found.append(f"{label}: the name becomes one in C and in linker scripts: a letter, then letters, digits and _")
    elif isinstance(name, str) and name.lower() in RESERVED.split():
        found.append(f"{label}: this name means something in C or in linker scripts; take another")
    if "kind" in row and row["kind"] not in KINDS:
        found.append(f"{label}: kind {row['kind']!r} is neither flash nor ram")
    origin, size = _whole(row.get("origin")), _size(row.get("size"))
    if "origin" in row and (origin is None or not 0 <= origin < ADDRESSES):
        found.append(f"{label}: origin {row['origin']!r} is no address of 32 bits")
    if "size" in row and (size is None or size <= 0):
        found.append(f'{label}: size {row["size"]!r} is no size; write a number of bytes, or "64K", "2M"')
    elif origin is not None and size is not None and 0 <= origin < ADDRESSES < origin + size:
        found.append(f"{label}: it ends at {origin + size:#x}, behind the last address of 32 bits")
    return found


def _together(rows: list[dict[str, Any]], stack: Any) -> list[str]:
    """What is wrong with memories beside each other."""
    found = [f"there is no memory of kind {k}" for k in KINDS if k not in [r.get("kind") for r in rows]]
    names = [r["name"].lower() for r in rows if isinstance(r.get("name"), str)]
    found += [f"two memories are called {n!r}" for n in dict.fromkeys(names) if names.count(n) > 1]
    ranges = [(r.get("name"), _whole(r.get("origin")), _size(r.get("size"))) for r in rows]
    whole = [(n, o, o + s) for n, o, s in ranges if o is not None and s is not None and s > 0]
    for (a, a0, a1), (b, b0, b1) in combinations(whole, 2):
        if a0 < b1 and b0 < a1:
            low, high = max(a0, b0), min(a1, b1)
            found.append(
                f"{a} ({a0:#010x} to {a1 - 1:#010x}) and {b} ({b0:#010x} to {b1 - 1:#010x}) overlap: "
                f"both have {low:#010x} to {high - 1:#010x}, {high - low} bytes"
            )
    room = next((_size(r.get("size")) for r in rows if r.get("kind") == "ram"), None)
    kept = _size(stack) if stack is not None else 0
    if kept is None or kept < 0:
        found.append(f'stack {stack!r} is no size; write a number of bytes, or "4K"')
    elif room is not None and kept >= max(room, 1):
        found.append(f"stack: {kept} bytes do not fit into the first RAM of {room}")
    return found


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _size(value: Any) -> int | None:
    try:
        return nbytes(value)
    except NervureError:
        return None
