"""The entry point ``nervure`` (and ``python -m nervure``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from .guard import guarded


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code. Without typer and rich (a device with numpy alone), ``run`` works."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no error
    if find_spec("typer") is None or find_spec("rich") is None:
        from .minimal import run_minimal

        sys.exit(guarded(lambda: run_minimal(given), given))
    from .app import app

    app(given, prog_name="nervure")
    raise SystemExit(0)  # app() exits by itself
