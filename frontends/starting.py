"""A script to start from: the example of a network, under a name of one's own."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from ..compiler.names import prefix_of
from ..errors import NervureError
from ..targets.files import write_atomic
from . import zoo


def script(name: str, like: str = "mlp") -> str:
    """The text of a script NAME.py that does what the zoo's example for ``like`` does, writing files called NAME.

    ``NervureError``: the zoo has nothing of that kind, or NAME is no name of a Python module and of a C library.
    """
    if name != prefix_of(name) or keyword.iskeyword(name):
        hint = f"lower-case letters, digits and single _, for example {prefix_of(name or 'network')}"
        raise NervureError(f"{name!r} is no name for a Python file and a C library", hint=hint)
    row = zoo.zoo[like]
    text = row.path.read_text(encoding="utf-8").replace(f"examples/{row.name}.py", f"{name}.py")
    return re.sub(rf'\b{row.name}(?=(_\w+)?\.(so|h|png|svg)\b|")', name, text)


def start(name: str, like: str = "mlp", folder: str | Path = ".", *, force: bool = False) -> list[Path]:
    """Writes NAME.py into a folder; returns the files written: other examples that it imports come along, and C
    programs (in ``c/``) that they build.

    ``NervureError`` where another one is there (``force`` writes over it), and as ``script``.
    """
    text, place = script(name, like), Path(folder)
    wanted = {place / f"{name}.py": text, **{place / f"{n}.py": t for n, t in _imported(text).items()}}
    for program in sorted({p for t in wanted.values() for p in re.findall(r'"(\w+\.c)"', t)}):
        source = zoo.EXAMPLES / "c" / program
        if source.exists():
            wanted[place / "c" / program] = _renamed(source.read_text(encoding="utf-8"), zoo.zoo[like].name, name)
    for path, content in wanted.items():
        if path.exists() and not force and path.read_bytes() != content.encode():
            raise NervureError(f"{path} is there already", hint="choose another name, or --force writes over it")
    for path, content in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.encode())
    return list(wanted)


def _renamed(program: str, old: str, new: str) -> str:
    """A C program around a library of another name."""
    program = re.sub(rf"\b{old}(?=[_.])", new, program)
    return re.sub(rf"\b{old.upper()}(?=_)", new.upper(), program)


def _imported(text: str) -> dict[str, str]:
    """The examples that a script imports, by name, with their texts."""
    found: dict[str, str] = {}
    for name in re.findall(r"^(?:from|import) (\w+)", text, re.M):
        path = zoo.EXAMPLES / f"{name}.py"
        if path.exists() and name not in found:
            found[name] = path.read_text(encoding="utf-8")
            found |= _imported(found[name])
    return found
