"""The documentation as data: fenced blocks of a page, and how each kind is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^(?:<!-- (?P<note>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_FILE = re.compile(r"(?:#|/\*) ([\w/]+\.(?:py|c))\b")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts at, and the comment right above it, if any."""

    kind: str
    text: str
    line: int
    note: str = ""

    @property
    def file(self) -> str | None:
        """The file that the block's first line names in a comment."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page that name a language, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text[: found.start("kind")].count("\n") + 1
        yield Block(found["kind"], found["text"], line, found["note"] or "")


def environment(package: Path | None = None) -> dict[str, str]:
    """What snippets run in: this Python's programs first on the path, ``package``'s parent before what is installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = {**os.environ, "PATH": path}
    if package is not None:
        found["PYTHONPATH"] = str(package.parent)
    return found


def run(block: Block, folder: Path, env: dict[str, str]) -> None:
    """Runs a block in ``folder``; ``AssertionError`` with what it printed when it fails.

    Python and shell blocks are scripts; of console blocks the lines after ``$`` are run; C blocks are only written
    down, for a later block to compile.
    """
    if block.kind == "sh":
        _call(["bash", "-euc", block.text], folder, env, f"the block at line {block.line}")
        return
    if block.kind == "console":
        for line in block.text.splitlines():
            if line.startswith("$ "):
                _call(["bash", "-euc", line[2:]], folder, env, f"line {block.line}: {line}")
        return
    name = block.file or f"line_{block.line}.{block.kind}"
    (folder / name).write_text(block.text)
    if block.kind == "python":
        _call([sys.executable, name], folder, env, f"the block at line {block.line}")


def _call(command: list[str], folder: Path, env: dict[str, str], what: str) -> None:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{what} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def copy_package(folder: Path) -> Path:
    """A copy of the checkout's package in ``folder``, to be edited; the path of its root."""
    root = folder / "nervure"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for room in ("compiler", "frontends", "runtime", "targets", "tests"):
        shutil.copytree(ROOT / room, root / room, ignore=ignored)
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(file, root)
    return root


def follow(page: Path, root: Path) -> None:
    """Does what a page says to a copy of the package: edits and new files first, then what it says to try."""
    tries = []
    for block in blocks(page):
        if block.note == "try":
            tries.append(block)
        elif block.note:
            apply(block, root)
    assert tries
    for block in tries:
        run(block, root.parent, environment(root))


def apply(block: Block, root: Path) -> None:
    """Edits a file as the comment above a block says: ``new file FILE``, or FILE and ``before``, ``after`` or
    ``instead of`` the first line that starts with a text."""
    if block.note.startswith("new file "):
        (root / block.note.removeprefix("new file ")).write_text(block.text)
        return
    found = re.fullmatch(r"(?P<file>\S+), (?P<where>before|after|instead of) `(?P<line>.+)`", block.note)
    assert found, f"line {block.line}: cannot read {block.note!r}"
    path = root / found["file"]
    lines = path.read_text().splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if line.startswith(found["line"])), None)
    assert at is not None, f"{found['file']} has no line that starts with {found['line']!r}"
    first, end = {"before": (at, at), "after": (at + 1, at + 1), "instead of": (at, at + 1)}[found["where"]]
    gap = "\n\n" if block.kind == "python" and found["where"] == "before" else ""  # between functions
    lines[first:end] = [block.text + gap]
    path.write_text("".join(lines))
