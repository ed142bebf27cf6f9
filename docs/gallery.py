"""Writes docs/gallery.md from the zoo and the examples' docstrings: ``python docs/gallery.py``.

``python docs/gallery.py PICTURE.png ...`` makes pictures of examples small first and puts them into docs/gallery.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from nervure.frontends.zoo import ROWS, Row

PAGE = Path(__file__).with_name("gallery.md")
HEAD = """\
# Gallery

Written by `python docs/gallery.py` from the examples; do not edit.

Networks and ways of learning, each in one file of some hundred lines that reads from top to bottom: it trains on real
data, draws the picture, compiles, and runs the program from Python and from C. `pip install 'nervure[examples]'` brings
what they need; `nervure new words --like lstm` writes a script to start from (`--list` names them all), and `nv.zoo`
has the same in Python.

"""


def _paragraphs(row: Row) -> str:
    """The docstring without its first line and the command."""
    _, *rest = row.text.split("\n\n")
    return "\n\n".join(part for part in rest if not part.startswith("    "))


def _sections() -> Iterator[str]:
    yield "| | learns | |\n| --- | --- | --- |"
    for row in ROWS:
        yield f"| [{row.name}](#{row.name}) | {row.learns} | {row.line} |"
    for row in ROWS:
        extras = "" if not row.needs else f" Needs `nervure[{','.join(row.extras)}]`."
        yield f"\n## {row.name}\n\n[{row.path.name}](../examples/{row.path.name}): {row.line}{extras}\n"
        yield f"![{row.name}](gallery/{row.name}.png)\n\n{_paragraphs(row)}"


def text() -> str:
    """The whole page."""
    return HEAD + "\n".join(_sections()) + "\n"


def shrink(path: Path, width: int = 720, limit: int = 100_000) -> None:
    """A picture as the page shows it: at most ``width`` wide and ``limit`` bytes large, with a palette."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    for colours in (256, 192, 128):
        small = picture.resize((width, picture.height * width // picture.width), Image.Resampling.LANCZOS)
        target = PAGE.with_name("gallery") / path.name
        target.parent.mkdir(exist_ok=True)
        small.quantize(colours, Image.Quantize.MAXCOVERAGE).save(target, optimize=True)  # lines keep their colours
        if target.stat().st_size <= limit:
            return
    shrink(path, width * 9 // 10, limit)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        shrink(Path(name))
    PAGE.write_text(text())
