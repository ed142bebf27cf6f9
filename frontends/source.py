"""A model that was written as portable C: files to be compiled elsewhere, and callable here by compiling them now."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError
from ..runtime.arrays import host_dtype
from ..runtime.artifact import Artifact, Entry, Port
from ..runtime.variant import Variant, by_name, choose
from ..targets import host, toolchain
from ..targets.files import temporary_folder, write_atomic
from .model import Model

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")


class Source(Model):
    """A network as C99: ``path`` (NAME.c) and ``header`` (NAME.h), which need no nervure and no library of it.

    It is a ``Model`` otherwise: ``report`` has sizes (of code 0: other compilers make it) and layers,
    ``artifact.block`` the facts, ``save("kws.c")`` copies both files. Calling it builds the C with zig for this
    machine, whatever target it was planned for, and keeps parameters and states from call to call.
    """

    @property
    def header(self) -> Path:
        """The C header on disk."""
        return self.path.with_suffix(".h")

    @cached_property
    def session(self) -> Built:
        """The C as a program of this machine."""
        return Built(self.artifact)

    def save(self, path: str | Path) -> Path:
        """Copies the two files to ``path`` (NAME.c) and beside it; NervureError where that cannot be written."""
        target = Path(path)
        if target.suffix != ".c" or target.stem != self.path.stem:
            hint = f"save it as {target.with_name(self.path.name)}: the C file includes its header by name"
            raise NervureError(f"{target} should be called {self.path.name}", hint=hint)
        write_atomic(target, self.path.read_bytes())
        write_atomic(target.with_suffix(".h"), self.header.read_bytes())
        return target


class Built:
    """Portable C, compiled for this machine and loaded: what a ``runtime.Session`` is for a library.

    ``library``: a shared library of the C file that another compiler made."""

    def __init__(self, artifact: Artifact, library: Path | None = None) -> None:
        self.artifact = artifact
        with temporary_folder() as folder:
            self._library = ctypes.CDLL(str(library or _build(artifact, folder)))
        align, regions = artifact.block["bare"]["align"], artifact.block["bare"]["regions"]
        self._blocks = [np.zeros(r["bytes"] + align, np.uint8) for r in regions]
        starts = [b.ctypes.data + -b.ctypes.data % align for b in self._blocks]
        self._memory = (ctypes.c_void_p * len(starts))(*starts)
        self._call("init")

    def run(
        self, output_names: Sequence[str] | None, inputs: Mapping[str, Any], *, entry: str | None = None
    ) -> list[np.ndarray]:
        """As ``Session.run``."""
        variant = choose(self._family(entry), inputs, self.artifact)
        results = variant.trim(self._run(variant.entry, variant.inputs(inputs)))
        return results if output_names is None else [results[i] for i in variant.wanted(output_names, self.artifact)]

    def __call__(self, *arrays: Any, **named: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """As ``Session.__call__``."""
        ports: Sequence[Port] = self._family(None)[0].entry.inputs
        results = self.run(None, {**by_name(arrays, ports[: len(arrays)]), **named})
        return results[0] if len(results) == 1 else tuple(results)

    def reset(self) -> None:
        """Sets states back to their initial values."""
        if self.artifact.params or self.artifact.states:
            self._call("reset")

    def _run(self, entry: Entry, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = [np.ascontiguousarray(a) for a in arrays]
        made = [np.zeros(p.shape, host_dtype(p.dtype)) for p in entry.outputs]
        self._call(entry.name, *(_pointers(held) for held in (given, made)))
        return made

    def _call(self, function: str, *args: Any) -> None:
        status = getattr(self._library, f"{self.artifact.prefix}_{function}")(self._memory, *args)
        if status:
            raise NervureError(f"{function} of the generated C gave status {status}", where=str(self.artifact.path))

    def _family(self, function: str | None) -> list[Variant]:
        chosen = self.artifact.entry(function) if function else self.artifact.entries[0]
        same = [e for e in self.artifact.entries if e is chosen or (e.function == chosen.function != chosen.name)]
        return [Variant(e, self.artifact.entries.index(e)) for e in same]


def _build(artifact: Artifact, folder: Path) -> Path:
    """A shared library of the C file for this machine."""
    for file in (artifact.path, artifact.path.with_suffix(".h")):
        (folder / file.name).write_bytes(file.read_bytes())
    machine = host()
    place = ("-target", machine.zig_target, f"-mcpu={machine.zig_cpu}", "-shared", "-fPIC", "-g0")
    toolchain.run_zig(["cc", *place, *FLAGS, artifact.path.name, "-lm", "-o", "model.so"], folder)
    return folder / "model.so"


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))
