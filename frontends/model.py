"""A compiled model: callable at once on this machine, and full of facts about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NervureError
from ..runtime.artifact import Artifact, Port
from ..runtime.session import Session
from ..targets.files import header_of, write_atomic

if TYPE_CHECKING:
    from .dsl.tensor import Weight


@dataclass(frozen=True)
class Report:
    """What a compile is known to cost, exactly. All sizes in bytes.

    ``arena_bytes`` is everything that a run needs with the model's number of threads (inputs, outputs and scratch
    counted); ``arena_lower_bound_bytes`` the largest live set in logical bytes; ``code_bytes`` the file less weights.
    ``ram`` has what stays in a context (``parameters``, ``states``, ``derived``: packed weights of parameters) and the
    arena of each entry point (``arena of train_step``); ``context_bytes`` is all of it, the largest arena once.
    ``layers`` has one row a step: ``name``, ``op``, ``flops``, ``bytes``, ``weight_bytes``, ``detail``, ``origin``.
    """

    arena_bytes: int
    arena_lower_bound_bytes: int
    weights_bytes: int
    source_weight_bytes: int
    code_bytes: int
    artifact_bytes: int
    compile_seconds: float
    sha256: str
    context_bytes: int
    ram: dict[str, int]
    layers: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, JSON-able."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Model:
    """A compiled network. ``model(x)`` and ``model.run(None, {"x": x})`` run it, as a ``runtime.Session`` does.

    A model for a microcontroller runs in the emulator. One for another machine with an operating system cannot be run
    here; it can be saved, and ``nervure verify`` runs it in an emulator.
    """

    def __init__(
        self,
        artifact: Artifact,
        threads: int = 1,
        compile_seconds: float = 0.0,
        stored: Sequence[tuple[Weight, str]] = (),
    ) -> None:
        self.artifact, self.threads, self._seconds = artifact, threads, compile_seconds
        self._stored = stored

    @property
    def path(self) -> Path:
        """The library on disk."""
        return self.artifact.path

    @cached_property
    def session(self) -> Session | Any:
        """The session that runs it; one without an operating system runs in its emulator, from its initial values at
        every call. NervureError where it was compiled for another machine that has one."""
        if self.artifact.bare is not None:
            from .emulated import Emulated

            return Emulated(self.artifact)
        from .twin import open_session

        return open_session(self.artifact, self.threads)

    @cached_property
    def report(self) -> Report:
        """Sizes and the per-layer table, of the entry that needs most."""
        entry = max(self.artifact.entries, key=lambda e: e.arena_bytes(self.threads))
        return Report(
            arena_bytes=entry.arena_bytes(self.threads),
            arena_lower_bound_bytes=entry.lower_bound,
            weights_bytes=self.artifact.weights_bytes,
            source_weight_bytes=int(self.artifact.block["meta"].get("source_weight_bytes", 0)),
            code_bytes=self.artifact.code_bytes,
            artifact_bytes=self.artifact.size,
            compile_seconds=self._seconds,
            sha256=self.artifact.sha256,
            context_bytes=self.artifact.context_bytes(self.threads),
            ram=self.artifact.ram(self.threads),
            layers=tuple(entry.steps),
        )

    def __call__(self, *arrays: Any, **named: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """The output, or a tuple where there are several. Arguments by position or by input name."""
        return self.session(*arrays, **named)

    def run(self, names: list[str] | None, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """Outputs in order, as ``onnxruntime.InferenceSession.run``."""
        return self.session.run(names, inputs)

    def get_inputs(self) -> list[Port]:
        """Inputs in order: ``name``, ``shape``, ``dtype`` (numpy's word), ``type`` (ONNX Runtime's word)."""
        return list(self.artifact.entries[0].inputs)

    def get_outputs(self) -> list[Port]:
        """Outputs in order, as ``get_inputs``; ``count`` is the output that counts the valid rows of a bounded one."""
        return list(self.artifact.entries[0].outputs)

    def bind(self, *args: Any, **named: Any) -> Any:
        """Fixes the buffers that ``invoke`` works on; see ``runtime.Session.bind``."""
        return self.session.bind(*args, **named)

    def invoke(self) -> None:
        """Runs on the bound buffers without any check."""
        self.session.invoke()

    def reset(self) -> None:
        """Sets states back to their initial values."""
        self.session.reset()

    def pull(self) -> None:
        """What the steps of this model have learned so far, into the networks and variables that it was compiled from
        (``steps=``, ``entries=``)."""
        from .training.fitting import assign_part

        held = {**self.session.params(), **self.session.states()}
        for weight, name in self._stored:
            if name in held and weight.persistent:
                assign_part(weight, held[name])

    def save(self, path: str | Path) -> Path:
        """Copies the library (and its header) to ``path``; NervureError where that cannot be written."""
        target = Path(path)
        suffix = ".a" if self.path.suffix == ".a" else ".so"
        if target.suffix != suffix:
            raise NervureError(f"{target} should end in {suffix}", hint=f"save it as {target.with_suffix(suffix)}")
        write_atomic(target, self.path.read_bytes(), mode=0o644 if suffix == ".a" else 0o755)
        header = header_of(self.path)
        if header.exists():
            write_atomic(header_of(target), header.read_bytes())
        return target

    def __repr__(self) -> str:
        made = self.artifact.block["machine"]["name"]
        ram = ", ".join(f"{name} {nbytes}" for name, nbytes in self.artifact.ram(self.threads).items() if nbytes)
        return f"<nervure.Model {self.artifact.name} for {made}, {self.artifact.size} bytes; RAM: {ram}>"
