"""``nervure run`` where typer and rich are not installed: a device with numpy alone. argparse, plain text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ...errors import MissingTool, NervureError, printable
from . import running
from .inputs import read_inputs

_HINT = "pip install 'nervure[compile]'"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise NervureError(message, hint="nervure run --help")


def run_minimal(arguments: Sequence[str]) -> int:
    """``run`` for compiled libraries; every other command asks for what is missing."""
    if arguments and arguments[0] == "--version":
        from ... import __version__

        print(f"nervure {__version__}")
        return 0
    if arguments and arguments[0] not in ("run", "-h", "--help"):
        raise MissingTool(f"nervure {arguments[0]} needs typer and rich, which are not installed", hint=_HINT)
    parser = _Parser(prog="nervure", description=f"Run a compiled model. More commands: {_HINT}")
    commands = parser.add_subparsers(title="commands")
    run = commands.add_parser("run", help="run a compiled model once")
    run.add_argument("model", help="a compiled .so")
    run.add_argument("-i", "--input", action="append", default=[], metavar="[NAME=]FILE")
    run.add_argument("--preprocess", metavar="PRESET|KEYS")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--top", type=int, default=None)
    run.add_argument("--labels", type=Path)
    run.add_argument("-o", "--output", type=Path)
    run.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args(arguments)
    if not arguments or not hasattr(given, "model"):
        parser.print_help()
        return 0
    _run(given)
    return 0


def _run(given: Any) -> None:
    from ...runtime.session import load

    if Path(given.model).suffix != ".so":
        raise MissingTool("only compiled models (.so) run here: compiling is not installed", hint=_HINT)
    session = load(given.model, given.threads)
    inputs = read_inputs(given.input, session.artifact, given.preprocess)
    result = running.collect(session, inputs, given.top, given.labels, given.output)
    if given.as_json:
        print(json.dumps(result))
        return
    for line in running.lines(result):
        print(printable(line))
