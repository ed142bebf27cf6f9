"""Writes docs/operators.md from the op table and the importer's rules: ``python docs/operators.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from nervure.compiler.ops import FAMILIES, REQUIRED, Op
from nervure.frontends.onnx.rules import RULES

PAGE = Path(__file__).with_name("operators.md")
HEAD = """\
# Operators

Written by `python docs/operators.py` from the op table (`compiler/ops/`) and the importer's rules; do not edit.

The IR has {count} operators. ONNX operators and DSL functions are lowered to them, so a network can use many more than
these. A `?` marks an optional input, a `*` any number of them; an attribute without a value must be given. *Fuses* says
how an operator joins its neighbours in one kernel: see [architecture.md](architecture.md). The numpy reference in an
operator's record is its exact meaning.
"""
ONNX = """\
## ONNX operators that are imported

Every opset from 7 on. Of each operator all forms with fixed shapes are taken, unless its error says otherwise;
operators that ONNX defines as functions of others come in through their definition.

"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _attributes(op: Op) -> str:
    return ", ".join(n if d is REQUIRED else f"{n}={d!r}" for n, d in op.attrs.items())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _family(name: str, ops: Iterable[Op]) -> Iterator[str]:
    yield f"## {name.capitalize()}\n\n| operator | inputs | attributes | computes | fuses |\n{'| --- ' * 5}|"
    for op in ops:
        cells = (_code(op.name), _code(", ".join(op.inputs)), _code(_attributes(op)), op.doc, op.kind.value)
        yield f"| {' | '.join(map(_cell, cells))} |"
    yield ""


def _imported() -> Iterator[str]:
    """The operators with a rule, by domain, as running text."""
    for domain in sorted({d for d, _ in RULES}):
        names = sorted(name for d, name in RULES if d == domain)
        yield f"**{domain or 'ai.onnx'}** ({len(names)}): " + ", ".join(names) + ".\n"


def text() -> str:
    """The whole page."""
    count = sum(len(family.OPS) for family in FAMILIES)
    lines = [HEAD.format(count=count)]
    for family in FAMILIES:
        lines += _family(family.__name__.rsplit(".", 1)[-1], family.OPS)
    return "\n".join([*lines, ONNX + "\n".join(_imported())])


if __name__ == "__main__":
    PAGE.write_text(text())
