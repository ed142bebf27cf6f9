"""A model for a GPU, run without one: an artifact whose kernels this CPU plays (``targets.emulation``).

``nv.compile(net, "cuda-sm80-emulated")`` makes such an artifact. ``twin`` makes it for one of machine code, from
the same network and options, and sees to it that it holds the very same kernels: a kernel's name is a digest of
everything that it is made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import NervureError
from ..runtime.artifact import Artifact
from ..runtime.session import Session, load


def open_session(artifact: Artifact, threads: int = 1) -> Session:
    """A session of a model for this machine, or for a GPU that this CPU plays."""
    if artifact.block.get("gpu", {}).get("emulated"):
        from ..targets import emulation

        emulation.install()
    elif needs_twin(artifact):
        _refuse(artifact)
    return load(artifact.path, threads)


def _refuse(artifact: Artifact) -> None:
    """The error of a GPU that is not here, with what can be done beside getting one."""
    from ..targets.cuda import EMULATED

    try:
        artifact.check_host()
    except NervureError as error:
        played = f"{artifact.block['machine']['name']}{EMULATED}"
        hint = f"run it on a machine with such a GPU; compiled for {played} it runs here, slowly, for checks"
        raise NervureError(error.what, where=str(artifact.path), why=error.why, hint=hint) from None


def needs_twin(artifact: Artifact) -> bool:
    """Whether the model is for a GPU that is not here."""
    return "gpu" in artifact.block and not artifact.block["gpu"]["emulated"] and not runs_here(artifact)


def runs_here(artifact: Artifact) -> bool:
    """Whether this machine has what the model's code needs."""
    try:
        artifact.check_host()
    except NervureError:
        return False
    return True


def twin(artifact: Artifact, source: Any, dims: Mapping[str, Any], shapes: Mapping[str, Any]) -> Session:
    """A session of the artifact's twin, made of the network that the artifact was compiled from.

    ``NervureError`` where the two do not hold the same kernels: the network or nervure is another one.
    """
    from ..targets.cuda import EMULATED
    from .build import compile

    block, meta = artifact.block, artifact.block["meta"]
    made = compile(
        source,
        block["machine"]["name"] + EMULATED,
        dims=dims,
        shapes=shapes,
        precision=meta["precision"],
        optimize=meta["optimize"],
        name=artifact.name,
    )
    if made.artifact.block["gpu"]["kernels"] != block["gpu"]["kernels"]:
        raise NervureError(
            "the library does not hold the kernels of this model",
            where=str(artifact.path),
            why="without a GPU it is checked by a twin that the CPU plays, and the twin's kernels are others",
            hint="compile it again with this nervure, from this model and with these options",
        )
    return open_session(made.artifact)
