"""``nervure train``: a model is trained on arrays and written as ONNX."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....errors import NervureError
from .. import options as o

if TYPE_CHECKING:
    from ..learning import Job


EXAMPLE = "nervure train model.onnx --data train.npz --epochs 5 --train 'classifier*' -o trained.onnx"


def train_command(
    model: o.Model,
    data: Annotated[Path, typer.Option("--data", "-d", help="An .npz with x and y (and x_val, y_val).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trained model, an ONNX file.")] = Path(
        "trained.onnx"
    ),
    loss: Annotated[
        str | None, typer.Option("--loss", help="A loss of nv.losses; guessed from y and the output if not given.")
    ] = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="An optimizer of nv.optimizers.")] = "adam",
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", min=0.0, help="The optimizer's own if not given.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="How often the samples are gone through.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples of one step.")] = 32,
    train: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="PATTERN", help="Train these weights alone (names, * fits anything)."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Metrics of nv.metrics, joined by commas; `none` for none.")
    ] = None,
    validation_split: Annotated[
        float, typer.Option("--validation-split", min=0.0, max=0.9, help="The last part of the samples, held out.")
    ] = 0.0,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="Write the training there after each epoch.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, where there is one.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides order of samples and dropout.")] = 0,
    curves: Annotated[
        Path | None, typer.Option("--curves", metavar="FILE.svg", help="A picture of loss and metrics.")
    ] = None,
    max_ram: Annotated[
        str | None, typer.Option("--max-ram", metavar="SIZE", help="Bound of the step's arena, e.g. 64M.")
    ] = None,
    threads: o.Threads = 1,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Train a model on the arrays x and y of an .npz file and write it as ONNX again.

    The loss is guessed if it is not given: cross-entropy where y holds class numbers, else the mean squared error.
    Normalisations with running statistics and dropout do while training what they are there for.
    """
    from ..console import print_json
    from ..learning import Job, read_data, trainable_network
    from ..values import parse_size

    if output.suffix != ".onnx":
        raise NervureError("the trained model is an ONNX file", where=str(output), hint=f"-o {output.stem}.onnx")
    if curves is not None and curves.suffix != ".svg":
        raise NervureError("curves are drawn as SVG", where=str(curves), hint=f"--curves {curves.with_suffix('.svg')}")
    if resume and checkpoint is None:
        raise NervureError("--resume needs the folder of the checkpoint", hint="--checkpoint DIR --resume")
    net = trainable_network(model, dim or (), shape or ())
    job = Job(net, read_data(data, list(net.inputs)), output, train or ())
    job.prepare(loss, optimizer, learning_rate, metrics, seed=seed, threads=threads, max_ram=parse_size(max_ram))
    with redirect_stdout(sys.stderr):  # progress is none of the product
        _announce(job)
        job.run(
            epochs=epochs,
            batch_size=batch_size,
            validation_split=validation_split,
            checkpoint=checkpoint,
            resume=resume,
            curves=curves,
        )
    if as_json:
        return print_json(job.record())
    _show(job.record())


def _announce(job: Job) -> None:
    from ..console import note

    for text in job.notes:
        note(text)


def _show(facts: dict[str, Any]) -> None:
    from ..console import cell, out, row, size, table

    history: dict[str, list[float]] = facts["history"]
    made = table("", "epoch", *history, right=("epoch", *history))
    for i, epoch in enumerate(facts["epochs"]):
        row(made, epoch, *(f"{values[i]:.4g}" for values in history.values()))
    out().print(made)
    final = ", ".join(f"{name} {value:.4g}" for name, value in facts["final"].items())
    out().print(cell(f"final: {final}"))
    trained, whole = facts["trained_elements"], facts["elements"]
    out().print(
        cell(
            f"trained {trained:,} of {whole:,} weights in {facts['seconds']:.1f} s; "
            f"a step needs {size(facts['train_arena_bytes'])}, inference {size(facts['infer_arena_bytes'])}"
        )
    )
    out().print(cell(f"written: {facts['file']}"))
