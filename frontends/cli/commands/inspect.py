"""``nervure inspect``: what a model is made of, as text, as JSON and as a page."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import options as o


class Stage(enum.StrEnum):
    imported = "imported"
    canonical = "canonical"
    fused = "fused"


EXAMPLE = "nervure inspect model.onnx --html model.html"


def inspect_command(
    model: o.ModelOrLibrary,
    html: Annotated[Path | None, typer.Option("--html", help="Write one self-contained page to this file.")] = None,
    graph: Annotated[Stage | None, typer.Option("--graph", help="Print the IR's text at this stage instead.")] = None,
    target: o.TargetOrNone = None,
    board: o.Board = None,
    threads: o.Threads = 1,
    precision: o.PrecisionOption = o.Precision.default,
    optimize: o.OptimizeOption = o.Optimize.speed,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Show a model's fused steps with their cost, its memory and its weights; nothing is compiled.

    --html draws the graph, the fusion groups, the cost of every step, the memory plan and what is alive at each step.
    """
    from ....compiler.pipeline import Options
    from ....errors import NervureError
    from ....runtime.artifact import read_artifact
    from ...build import board_options, get_target
    from ..console import print_json, progress
    from ..microcontroller import tell_batch
    from ..network import is_library, network
    from ..overview import graph_text, of_artifact, of_network

    if is_library(model):
        if graph:
            raise NervureError("a compiled library holds no graph", where=model, hint="give the model it was made from")
        view = of_artifact(read_artifact(model), threads)
    else:
        given, machine = network(model, dim or (), shape or ()), get_target(target, board)
        if machine.system == "bare":
            given = tell_batch(given)
        if graph:
            typer.echo(graph_text(given, graph.value))
            return
        with progress(given.title) as tell:
            tell("planning", 0, 1)
            kept = Options(precision.value, optimize.value, threads, name=given.title, **board_options(board))
            view = of_network(given, machine, target or machine.name, kept)
    if html is not None:
        _write(html, view)
    if as_json:
        return print_json(view.facts | {"file": str(html) if html else view.facts.get("file")})
    _show(view.facts, html)


def _write(path: Path, view: Any) -> None:
    from ....targets.files import write_atomic
    from ..page import render

    write_atomic(path, render(view).encode("utf-8", "replace"))


def _show(facts: dict[str, Any], html: Path | None) -> None:
    from ..console import cell, count, out, row, size, table

    screen = out()
    screen.print(cell(f"{facts['model']} for {facts['target']} ({facts['machine']})", "bold"))
    for kind in ("inputs", "outputs"):
        for p in facts[kind]:
            screen.print(cell(f"  {kind[:-1]:6} {p['name']}: {p['dtype']}{p['shape']}"))
    screen.print(cell(f"  operators: {', '.join(f'{k} {v}' for k, v in facts['operators'].items())}"))
    if facts["problem"]:
        for line in facts["problem"].splitlines():
            screen.print(cell(line, "red"))
    if facts["steps"]:
        figures = ("#", "FLOP", "bytes", "weights", "cost")
        made = table("", "#", "step", "operations", *figures[1:], "kernel", right=figures)
        total = sum(s["cycles"] for s in facts["steps"]) or 1
        for s in facts["steps"]:
            cost = f"{s['cycles'] / total:.1%}"
            row(
                made,
                s["step"],
                _cut(s["name"]),
                _cut(s["op"]),
                count(s["flops"]),
                size(s["bytes"]),
                size(s["weight_bytes"]),
                cost,
                _cut(s["detail"]),
            )
        screen.print(made)
    if facts["arena_bytes"] is not None:
        bound = facts["arena_lower_bound_bytes"]
        ratio = facts["arena_bytes"] / (bound or 1)
        words = f"arena {size(facts['arena_bytes'])} ({ratio:.2f}x the bound of {size(bound)})"
        words += (
            f", weights {size(facts['weights_bytes'])}, {count(facts['flops'])} FLOP a run, {len(facts['steps'])} steps"
        )
        screen.print(cell(words))
    for line in _memory(facts):
        screen.print(cell(line))
    if len(facts.get("ram", {})) > 4:  # more entry points than one
        screen.print(cell("RAM: " + ", ".join(f"{name} {size(n)}" for name, n in facts["ram"].items())))
    if html is not None:
        screen.print(cell(f"page written to {html}"))


def _memory(facts: dict[str, Any]) -> Iterator[str]:
    """What a static library takes, and the step at which most is alive."""
    from ..console import size

    if "footprint" in facts:
        flash, ram = facts["footprint"]["flash"], facts["footprint"]["ram"]
        words = f"RAM {size(ram['bytes'])} and stack"
        words += f"; flash {size(flash['bytes'])}: code {size(flash['code_bytes'])}, constants "
        yield words + f"{size(flash['constant_bytes'])}, weights {size(flash['weight_bytes'])}"
    if facts["live"]:
        most = max(facts["live"], key=lambda r: (r["bytes"], -r["step"]))
        shared = f", {size(most['saved_bytes'])} shared by overlapping" if most["saved_bytes"] else ""
        name = _cut(facts["steps"][most["step"]]["name"])
        yield f"most is alive at step {most['step']} ({name}): {size(most['bytes'])}{shared}"


def _cut(text: str) -> str:
    from ..page import shorten

    return shorten(text, 36)
