"""Verification as the commands use it: inputs for every plan, the run, and the verdict as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.artifact import Artifact
from ..twin import needs_twin, runs_here, twin
from ..verify import Check, random_inputs, verify
from .network import Network, reference_file

Sets = dict[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Verdict:
    """What verification found. ``ok`` is None where it could not be done; ``why`` and ``hint`` say what it lacked."""

    ok: bool | None
    tolerance: float
    checks: tuple[Check, ...] = ()
    why: str = ""
    hint: str = ""

    @property
    def max_rel_error(self) -> float | None:
        return max((c.worst for c in self.checks), default=None)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "max_rel_error": self.max_rel_error,
            "tolerance": self.tolerance,
            "peer": _peer() if self.ok is not None else None,
            "checks": [
                {"inputs": c.label, "errors": c.errors, "against": c.against, "apart": c.apart} for c in self.checks
            ],
            "why": self.why or None,
            "hint": self.hint or None,
        }

    def words(self) -> str:
        """One line for a reader."""
        if self.ok is None:
            return f"not verified: {self.why}"
        error = self.max_rel_error or 0.0
        limit = next((c.limit for c in self.checks if c.limit is not None), self.tolerance)
        said = f"error {error:.1e} {'<=' if self.ok else '>'} {limit:g} against {self.against}"
        if error == 0.0 and all(c.apart is not None and c.limit is None for c in self.checks):
            said = f"equals {self.against} bit for bit"
        apart = max((c.apart for c in self.checks if c.apart is not None), default=None)
        return said if apart is None else f"{said}; {apart:.1e} from ONNX Runtime (root mean square)"

    @property
    def against(self) -> str:
        """What the outputs were compared with."""
        return self.checks[0].against if self.checks else "ONNX Runtime"


def input_sets(artifact: Artifact, seeds: int, given: Mapping[str, np.ndarray] | None = None) -> Sets:
    """The given inputs, and seeded ones for every plan (an emulator runs the first plan only)."""
    sets: Sets = {"given": given} if given else {}
    entries = [e for e in artifact.entries if e.function == "infer"] or list(artifact.entries)
    for entry in entries if runs_here(artifact) else entries[:1]:
        suffix = "".join(f" {k}={v}" for k, v in sorted(entry.bindings.items()))
        for seed in range(1, seeds + 1):
            sets[f"seed {seed}{suffix}"] = random_inputs(entry.inputs, seed)
    return sets


def check(model: Network, artifact: Artifact, sets: Sets, tolerance: float, session: Any = None) -> Verdict:
    """Compares with ONNX Runtime; raises ``MissingTool`` where that or the emulator is not installed. ``session``: what
    runs the artifact, where that is neither this machine nor the emulator."""
    if session is None and needs_twin(artifact):
        session = twin(artifact, model.source, model.dims, model.shapes)
    if session is None and not runs_here(artifact):
        from ...targets import emulator, get

        emulator.command(get(artifact.block["machine"]["name"]))
    with ExitStack() as stack:
        checks = tuple(_checks(model, artifact, sets, stack, session))
    return Verdict(all(c.holds(tolerance) for c in checks), tolerance, checks)


def _checks(model: Network, artifact: Artifact, sets: Sets, stack: ExitStack, session: Any) -> Sequence[Check]:
    if model.onnx:
        return verify(artifact, model.path, sets, session)
    found: list[Check] = []  # a network in Python is exported once for each of its plans
    for entry in artifact.entries:
        shapes = {p.name: p.shape for p in entry.inputs}
        own = {k: v for k, v in sets.items() if all(np.shape(v[n]) == s for n, s in shapes.items())}
        if own:
            found += verify(artifact, reference_file(model, stack, entry.bindings), own, session)
    return found


def _peer() -> str:
    from importlib import metadata

    try:
        return f"onnxruntime {metadata.version('onnxruntime')}"
    except metadata.PackageNotFoundError:
        return "onnxruntime"
