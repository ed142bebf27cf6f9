"""What is printed: tables and notes by rich, JSON by the standard library, progress on stderr.

Everything that may come from a model file goes through ``cell`` or ``errors.printable``: no terminal escape and no
markup of a hostile name is ever acted on.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ...errors import printable

Stages = Callable[[str, int, int], None]
PIPED_WIDTH = 400  # a pipe has no width: wide enough that nothing is cut or folded


def out() -> Console:
    """stdout: the product."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)


def err() -> Console:
    """stderr: notes and progress."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def cell(value: Any, style: str = "") -> Text:
    """A table cell or line in which nothing is interpreted."""
    return Text(printable(str(value), 200), style=style)


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns named in ``right`` hold figures."""
    made = Table(
        title=cell(title, "bold") if title else None,
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", no_wrap=name in right, overflow="fold")
    return made


def row(made: Table, *values: Any) -> None:
    made.add_row(*(v if isinstance(v, Text) else cell(v) for v in values))


def note(text: str) -> None:
    """A line for the reader, on stderr."""
    err().print(cell(f"note: {text}", "dim"))


def print_json(value: Any) -> None:
    """Exactly one JSON object on stdout. NaN and infinity are null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


@contextmanager
def progress(title: str) -> Iterator[Stages]:
    """A bar on stderr for ``(stage, done, total)``; nothing at all where stderr is no terminal."""
    console = err()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        name = printable(title, 60)
        task = bar.add_task(name, total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{name}: {stage}", completed=done, total=total if total > 1 else None)

        yield tell


def size(nbytes: float) -> str:
    """Bytes in words: 1536 is ``1.5 KB`` (1 KB = 1,024 bytes)."""
    for unit in ("B", "KB", "MB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GB"


def count(number: float) -> str:
    """A number of operations in words: ``12.3 M``."""
    for unit in ("", " K", " M"):
        if abs(number) < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.2f} G"
