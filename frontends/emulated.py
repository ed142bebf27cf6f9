"""A model without an operating system, called from Python: each call boots the emulated board and runs it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ..compiler.library import run_elsewhere
from ..errors import NervureError
from ..runtime.artifact import Artifact, Port
from ..runtime.variant import Variant, by_name, choose
from ..targets import get


class Emulated:
    """What a ``runtime.Session`` is for a model of this machine, as far as an emulator can be it: ``run`` and calls.

    Every call starts from the initial parameters and states. ``NervureError`` where the emulator is missing or the
    program fails in it.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._machine = get(str(artifact.block["machine"]["name"]))

    def run(
        self, output_names: Sequence[str] | None, inputs: Mapping[str, Any], *, entry: str | None = None
    ) -> list[np.ndarray]:
        """As ``Session.run``."""
        variant = choose(self._family(entry), inputs, self.artifact)
        arrays = variant.inputs(inputs)
        feeds = {port.name: array for port, array in zip(variant.entry.inputs, arrays, strict=True)}
        found = run_elsewhere(self.artifact, self._machine, feeds, entry=variant.entry.name)
        results = variant.trim(list(found))
        return results if output_names is None else [results[i] for i in variant.wanted(output_names, self.artifact)]

    def __call__(self, *arrays: Any, **named: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """As ``Session.__call__``."""
        ports: Sequence[Port] = self._family(None)[0].entry.inputs
        results = self.run(None, {**by_name(arrays, ports[: len(arrays)]), **named})
        return results[0] if len(results) == 1 else tuple(results)

    def _family(self, function: str | None) -> list[Variant]:
        chosen = self.artifact.entry(function) if function else self.artifact.entries[0]
        same = [e for e in self.artifact.entries if e is chosen or (e.function == chosen.function != chosen.name)]
        return [Variant(e, self.artifact.entries.index(e)) for e in same]

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NervureError(
            f"a model for {self._machine.name} has no {name!r} here",
            why="it runs once in the emulator and keeps nothing",
            hint="compile the network for this machine, or use the C functions of its header",
        )
