"""``nervure run``: a model once, on files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .. import options as o

EXAMPLE = "nervure run model.onnx -i x=cat.png --preprocess imagenet --top 5 --labels labels.txt"


def run_command(
    model: o.ModelOrLibrary,
    input: o.Inputs = None,
    preprocess: o.Preprocess = None,
    top: Annotated[
        int | None, typer.Option("--top", min=0, help="Show the N largest entries of the first output.")
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Class names, one a line.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all outputs to this .npz.")] = None,
    target: o.TargetOrNone = None,
    board: o.Board = None,
    counted: Annotated[
        bool, typer.Option("--count", help="Count the instructions of the run (microcontrollers, in the emulator).")
    ] = False,
    threads: o.Threads = 1,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Run a model once on arrays or pictures. An ONNX file is compiled first; for another machine, see --target.

    A picture is resized to the input and scaled to 0..1 unless --preprocess says otherwise.
    """
    from ..console import cell, note, out, print_json
    from ..inputs import read_inputs
    from ..pictures import SUFFIXES
    from ..running import collect, lines
    from ..session import open_runnable

    with ExitStack() as stack:
        session = open_runnable(model, stack, threads, dim or (), shape or (), target, board, counted)
        arrays = read_inputs(input or (), session.artifact, preprocess)
        if not preprocess and any(text.lower().endswith(SUFFIXES) for text in input or ()):
            note("the picture was scaled to 0..1 (bytes as they are for integer inputs); --preprocess sets another way")
        result = collect(session, arrays, top, labels, output)
    if as_json:
        return print_json(result)
    for line in lines(result):
        out().print(cell(line))
