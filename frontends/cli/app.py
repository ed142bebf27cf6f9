"""The typer application: the table of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ...errors import NervureError
from .commands import bench, compile, doctor, inspect, new, profile, prune, quantize, run, targets, train, verify
from .guard import guarded

# typer has no public name for the base of its usage errors
_USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class Commands(TyperGroup):
    """A group whose errors end in nervure's exit codes (a wrong option is the user's error: 1)."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        invoke = super().main

        def call() -> Any:
            try:
                return invoke(given, *rest, **options)
            except _USAGE_ERROR as error:
                raise NervureError(error.format_message(), hint="nervure --help lists what there is") from error
            except typer.Abort:
                raise KeyboardInterrupt from None

        sys.exit(guarded(call, given))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MODULES = (new, compile, run, train, quantize, prune, verify, bench, profile, inspect, targets, doctor)
for _module in _MODULES:
    _name = _module.__name__.rpartition(".")[2]
    app.command(_name, epilog=f"Example:  {_module.EXAMPLE}")(getattr(_module, f"{_name}_command"))


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """nervure compiles neural networks (ONNX, or networks in Python) to self-contained native programs.

    Exit codes: 0 done, 1 your error, 2 a bug or a missing tool. Every command takes --json; docs/cli.md describes the
    objects.
    """
    if version:
        from ... import __version__

        typer.echo(f"nervure {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
