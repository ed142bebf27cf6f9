"""A script to start from: the example of a network, under a name of one's own."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from ..errors import NervureError
from ..targets.files import write_atomic
from . import zoo


def script(name: str, like: str = "mlp") -> str:
    """The text of a script NAME.py that does what the zoo's example for ``like`` does, writing files called NAME.

    ``NervureError``: the zoo has nothing of that kind, or NAME is no name of a module.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        hint = f"use letters, digits and _, for example {re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_') or 'net'}"
        raise NervureError(f"{name!r} is no name for a Python file", hint=hint)
    row = zoo.zoo[like]
    text = row.path.read_text(encoding="utf-8").replace(f"examples/{row.name}.py", f"{name}.py")
    return re.sub(rf"\b{row.name}(?=(_\w+)?\.(so|h|png|svg)\b)", name, text)


def start(name: str, like: str = "mlp", folder: str | Path = ".", *, force: bool = False) -> list[Path]:
    """Writes NAME.py into a folder; returns the files written: other examples that it imports come along.

    ``NervureError`` where one is there already (``force`` writes over NAME.py), and as ``script``.
    """
    text, place = script(name, like), Path(folder)
    wanted = {place / f"{name}.py": text, **{place / f"{n}.py": t for n, t in _imported(text).items()}}
    for path in wanted:
        if path.exists() and not force:
            raise NervureError(f"{path} is there already", hint="choose another name, or --force writes over it")
    for path, content in wanted.items():
        write_atomic(path, content.encode())
    return list(wanted)


def _imported(text: str) -> dict[str, str]:
    """The examples that a script imports, by name, with their texts."""
    found: dict[str, str] = {}
    for name in re.findall(r"^(?:from|import) (\w+)", text, re.M):
        path = zoo.EXAMPLES / f"{name}.py"
        if path.exists() and name not in found:
            found[name] = path.read_text(encoding="utf-8")
            found |= _imported(found[name])
    return found
