"""A session for the commands that run a model: a library is opened, anything else is compiled first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...errors import NervureError
from ...runtime.artifact import Artifact, read_artifact
from ...runtime.session import Session
from .network import Network, is_library, network


def open_model(
    text: str,
    stack: ExitStack,
    *,
    threads: int = 1,
    dims: Sequence[str] = (),
    shapes: Sequence[str] = (),
    precision: str = "default",
    target: str | None = None,
    board: str | None = None,
) -> tuple[Path, Network | None]:
    """The path of a compiled library (in a folder that ``stack`` removes) and the network it came from, if any."""
    if is_library(text):
        if dims or shapes:
            raise NervureError("a compiled model has fixed shapes", where=text, hint="leave out --dim and --shape")
        if target or board:
            _same_target(Path(text), target, board)
        return Path(text), None
    from ..build import compile, get_target, library_name
    from .console import progress
    from .microcontroller import tell_batch

    given, machine = network(text, dims, shapes), get_target(target, board)
    if machine.system == "bare":
        given = tell_batch(given)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nervure-")))
    out = folder / library_name("model", machine)
    with progress(given.title) as tell:
        compile(
            given.source,
            target,
            board=board,
            dims=given.dims,
            shapes=given.shapes,
            threads=threads,
            precision=precision,
            name=given.title,
            out=out,
            progress=tell,
        )
    return out, given


def open_session(text: str, stack: ExitStack, threads: int, dims: Sequence[str], shapes: Sequence[str]) -> Session:
    path, _ = open_model(text, stack, threads=threads, dims=dims, shapes=shapes)
    refuse_bare(read_artifact(path))
    return _opened(path, threads)


def _opened(path: Path, threads: int) -> Session:
    from ..twin import open_session

    return open_session(read_artifact(path), threads)


def _same_target(path: Path, target: str | None, board: str | None) -> None:
    from ..build import get_target

    made, wanted = read_artifact(path).block["machine"]["name"], get_target(target, board).name
    if made != wanted:
        raise NervureError(f"this model was compiled for {made}, not for {wanted}", where=str(path))


def refuse_bare(artifact: Artifact) -> None:
    """``NervureError`` where a model is to be timed that runs in an emulator only."""
    if artifact.bare is not None:
        raise NervureError(
            f"this model is for {artifact.block['machine']['name']}: its time cannot be measured here",
            where=str(artifact.path),
            hint=f"nervure profile {artifact.path} counts its instructions in the emulator",
        )


def open_runnable(
    text: str,
    stack: ExitStack,
    threads: int,
    dims: Sequence[str],
    shapes: Sequence[str],
    target: str | None,
    board: str | None,
    counted: bool,
) -> Any:
    """A session where the model runs on this machine, else one that runs it in the emulator."""
    path, _ = open_model(text, stack, threads=threads, dims=dims, shapes=shapes, target=target, board=board)
    artifact = read_artifact(path)
    if counted and artifact.bare is None:
        raise NervureError(
            "instructions are counted for microcontrollers",
            where=text,
            hint="--target cortex-m4; for this machine, nervure bench and nervure profile measure time",
        )
    if "gpu" in artifact.block or (artifact.bare is None and target in (None, "host")):
        return _opened(path, threads)
    from .microcontroller import Elsewhere

    return Elsewhere(artifact, counted)
