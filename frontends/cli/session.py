"""A session for the commands that run a model: a library is opened, anything else is compiled first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ...errors import NervureError
from ...runtime.session import Session, load
from .network import Network, is_library, network


def open_model(
    text: str,
    stack: ExitStack,
    *,
    threads: int = 1,
    dims: Sequence[str] = (),
    shapes: Sequence[str] = (),
    precision: str = "default",
    target: str = "host",
) -> tuple[Path, Network | None]:
    """The path of a compiled library (in a folder that ``stack`` removes) and the network it came from, if any."""
    if is_library(text):
        if dims or shapes:
            raise NervureError("a compiled model has fixed shapes", where=text, hint="leave out --dim and --shape")
        return Path(text), None
    from ..build import compile
    from .console import progress

    given = network(text, dims, shapes)
    out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nervure-"))) / "model.so"
    with progress(given.title) as tell:
        compile(
            given.source,
            target,
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
    return load(path, threads)
