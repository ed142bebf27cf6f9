"""C text without any knowledge of kernels: long lines broken, lists in parentheses, a kernel's definition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 118


def folded(line: str) -> list[str]:
    """A long line, broken before an operator or behind a comma."""
    found = []
    indent = " " * (len(line) - len(line.lstrip()) + 8)
    while len(line) > WIDTH:
        at = max((m.start() for m in re.finditer(r"(?<=,) | (?=[-+*/?:&|=<>])", line[:WIDTH])), default=-1)
        if at <= len(indent):
            break
        found.append(line[:at].rstrip())
        line = indent + line[at + 1 :]
    return [*found, line]


def wrapped(parts: Sequence[str], start: str, end: str = ")") -> str:
    """A list in parentheses, broken before column 120."""
    lines, line = [], start
    for i, part in enumerate(parts or ["void"] * (end == ")")):
        piece = part + ("," if i + 1 < len(parts) else "")
        if len(line) + len(piece) + len(end) > WIDTH and line != start:
            lines.append(line.rstrip())
            line = " " * len(start) if len(start) < 50 else " " * 8
        line += piece + (" " if piece.endswith(",") else "")
    return "\n".join([*lines, line + end])


def definition(name: str, text: Mapping[str, Any], *, restrict: bool, before: str = "") -> str:
    """The C function of a kernel (``c99.Text`` as plain values) under that name, ``before`` first."""
    pointer = "*restrict " if restrict and text["noalias"] else "*"
    params = [f"{'const ' if only else ''}{kind} {pointer}{param}" for kind, param, only in text["params"]]
    return "\n".join([wrapped(params, f"{before}void {name}("), "{", *text["body"], "}", ""])
