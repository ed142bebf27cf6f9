"""``nervure new``: a script to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....errors import NervureError
from .. import options as o

EXAMPLE = "nervure new words --like lstm"


def new_command(
    name: Annotated[str | None, typer.Argument(help="What to call it: NAME.py is written.")] = None,
    like: Annotated[str, typer.Option("--like", "-l", help="A network or way of learning; --list shows them.")] = "mlp",
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where to write it.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the networks and ways of learning.")] = False,
    as_json: o.Json = False,
) -> None:
    """Write a script that trains a network of the zoo, compiles it and runs it: change it into your own."""
    from ... import starting
    from ...zoo import zoo
    from ..console import out, print_json

    if show:
        return _list(as_json)
    if name is None:
        raise NervureError("nervure new needs a NAME", hint=f"{EXAMPLE}; nervure new --list shows what there is")
    row = zoo[like]
    paths = [str(path) for path in starting.start(name, like, folder, force=force)]
    if as_json:
        return print_json({"written": paths, "like": row.name, "needs": list(row.extras)})
    screen = out()
    screen.print(f"{paths[0]}: {row.line}", markup=False, highlight=False, soft_wrap=True)
    for path in paths[1:]:
        screen.print(f"{path}, which it uses", markup=False, highlight=False, soft_wrap=True)
    extras = ",".join(row.extras)
    screen.print(f"Needs: pip install 'nervure[{extras}]'. Run: python {paths[0]}", markup=False, soft_wrap=True)
    return None


def _list(as_json: bool) -> None:
    """The zoo."""
    from ...zoo import ROWS
    from ..console import out, print_json, row, table

    if as_json:
        found = [{"name": r.name, "learns": r.learns, "like": list(r.like), "what": r.line} for r in ROWS]
        return print_json({"zoo": found})
    made = table("Networks and ways of learning", "--like", "or", "learns", "what it is")
    for r in ROWS:
        row(made, r.name, ", ".join(r.like), r.learns, r.line)
    return out().print(made)
