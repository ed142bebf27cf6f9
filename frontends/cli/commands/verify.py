"""``nervure verify``: does the compiled model compute what ONNX Runtime computes?"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from .. import options as o

EXAMPLE = "nervure verify model.onnx --target rpi4 --seeds 3"


def verify_command(
    model: o.Model,
    artifact: Annotated[
        str | None, typer.Argument(help="A library that was compiled from it; without it, MODEL is compiled.")
    ] = None,
    target: o.TargetOrNone = None,
    board: o.Board = None,
    input: o.Inputs = None,
    preprocess: o.Preprocess = None,
    seeds: Annotated[int, typer.Option("--seeds", min=0, max=100, help="Sets of seeded random inputs.")] = 3,
    tolerance: o.Tolerance = None,
    precision: o.PrecisionOption = o.Precision.default,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Compare a compiled model with ONNX Runtime; one for another machine runs in its emulator.

    MODEL and ARTIFACT may stand in either order. The error of an output is the largest relative error of its slices.
    Exit code 1 where it is above the tolerance.
    """
    from ....runtime.artifact import read_artifact
    from ...verify import TOLERANCE
    from ..checking import check, input_sets
    from ..console import print_json, progress
    from ..inputs import read_inputs
    from ..network import is_library, network
    from ..session import open_model

    if artifact is not None and is_library(model) and not is_library(artifact):
        model, artifact = artifact, model
    given = network(model, dim or (), shape or ())
    allowed = TOLERANCE[precision.value] if tolerance is None else tolerance
    with ExitStack() as stack:
        if artifact is None:
            path, _ = open_model(
                model, stack, dims=dim or (), shapes=shape or (), precision=precision.value, target=target, board=board
            )
        else:
            path, _ = open_model(artifact, stack, target=target, board=board)
        compiled = read_artifact(path)
        sets = input_sets(compiled, seeds, read_inputs(input, compiled, preprocess) if input else None)
        with progress(f"{given.title}: verifying"):
            verdict = check(given, compiled, sets, allowed)
        facts = {"model": given.title, "target": compiled.block["machine"]["name"], "sha256": compiled.sha256}
    if as_json:
        print_json(facts | verdict.as_dict())
    else:
        _show(facts, verdict)
    if not verdict.ok:
        raise typer.Exit(1)


def _show(facts: dict[str, Any], verdict: Any) -> None:
    from ..console import cell, out, row, table

    made = table("", "inputs", "output", "error", right=("error",))
    for c in verdict.checks:
        for name, error in c.errors.items():
            style = "green" if error <= (verdict.tolerance if c.limit is None else c.limit) else "bold red"
            row(made, c.label, name, cell(f"{error:.2e}", style))
    screen = out()
    screen.print(made)
    words = "agrees" if verdict.ok else "DOES NOT AGREE"
    screen.print(
        cell(
            f"{facts['model']} for {facts['target']} {words}: {verdict.words()}", "green" if verdict.ok else "bold red"
        )
    )
