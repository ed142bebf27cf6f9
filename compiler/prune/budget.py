"""How much of a network may stay: targets, and what a graph costs by the same measures.

Multiply-adds and parameters are counted with zeros left out. RAM, file and latency come from the plan that the compiler
would make for the machine, so that they hold what the kernels make of the zeros; nothing is compiled for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine
from ..ir import Graph
from ..kernels.spec import Draft
from ..passes.bind import bind_dimensions, named_dimensions
from ..pipeline import EntryGraph, Options, plan_program
from ..program import Program
from .weights import positions, weights

KINDS = ("sparsity", "macs", "params", "ram", "file", "latency")
PLANNED = ("ram", "file", "latency")  # what only a plan tells
Measure = Callable[[Graph], float]  # a graph's latency in microseconds, measured

_UNITS = {
    "latency": {"ns": 1e-3, "us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6},
    "bytes": {"": 1.0, "b": 1.0, "k": 1024.0, "m": 1024.0**2, "g": 1024.0**3},
    "count": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
}
_HINTS = {"latency": "0.6x, 200us or 1.5ms", "bytes": "0.5x, 44K or 1.5M (K is 1,024)", "count": "0.5x, 60% or 1.2M"}

# A library holds more than its weights. Fitted to seven networks of the tests (file less packed weights, x86-64).
_FILE, _FILE_STEP, _FILE_KERNEL, _PLAIN_SPEC = 12_000, 300, 3_000, 2_048


@dataclass(frozen=True)
class Target:
    """What is to be reached. ``value``: for ``sparsity`` the part that goes; else what is left, as a part of the dense
    model (``relative``) or in multiply-adds, parameters, bytes or microseconds."""

    kind: str
    value: float
    relative: bool = True

    def __post_init__(self) -> None:
        most = 1.0 if self.relative else math.inf
        least_ok = self.value >= 0 if self.kind == "sparsity" else self.value > 0
        fits = least_ok and (self.value < most if self.kind == "sparsity" else self.value <= most)
        if self.kind not in KINDS:
            raise NervureError(f"there is no target {self.kind!r}", hint=f"one of: {', '.join(KINDS)}")
        if not math.isfinite(self.value) or not fits or (self.kind == "sparsity" and not self.relative):
            hint = "from 0 to below 1" if self.kind == "sparsity" else f"for example {_HINTS[_units(self.kind)]}"
            unit = "x" if self.relative and self.kind != "sparsity" else ""
            raise NervureError(f"a {self.kind} of {self.value:g}{unit} is no target", hint=hint)

    def absolute(self, dense: float) -> float:
        """What is to be left, in the measure's own unit (for ``sparsity``: the part that stays)."""
        if self.kind == "sparsity":
            return 1 - self.value
        return self.value * dense if self.relative else self.value

    def __str__(self) -> str:
        if self.kind == "sparsity":
            return f"sparsity {self.value:.4g}"
        return f"{self.kind} {self.value:.4g}x" if self.relative else f"{self.kind} {told(self.kind, self.value)}"


def _units(kind: str) -> str:
    return "latency" if kind == "latency" else "bytes" if kind in ("ram", "file") else "count"


def parse(text: str, kind: str) -> Target:
    """``0.6x`` or ``60%`` of the dense model; ``200us``, ``44K`` (bytes: K is 1,024), ``1.2M`` (counts: a million);
    a bare number below 1 is a part. A sparsity is the part that goes: ``0.75`` or ``75%``."""
    if kind not in KINDS:
        raise NervureError(f"there is no target {kind!r}", hint=f"one of: {', '.join(KINDS)}")
    units = _units(kind)
    hint = "0.75 or 75%" if kind == "sparsity" else _HINTS[units]
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Zµ%]*)\s*", text)
    if not found:
        raise NervureError(f"{text!r} is no {kind}", hint=hint)
    number, unit = float(found[1]), found[2].lower()
    if unit == "%":
        return Target(kind, number / 100)
    if (unit == "x" and kind != "sparsity") or (not unit and (kind == "sparsity" or number < 1)):
        return Target(kind, number)
    if units == "bytes" and unit != "b":
        unit = re.sub("i?b$", "", unit)
    if kind == "sparsity" or unit not in _UNITS[units]:
        raise NervureError(f"{text!r} is no {kind}", hint=hint)
    return Target(kind, number * _UNITS[units][unit], relative=False)


def told(kind: str, value: float) -> str:
    """A measure in words: ``1.5 M``, ``44.0 KiB``, ``200 us``."""
    if kind == "sparsity":
        return f"{value:.1%}"
    if kind == "latency":
        return f"{value / 1000:.2f} ms" if value >= 10_000 else f"{value:.4g} us"
    step, ends = (1024.0, ("B", "KiB", "MiB", "GiB")) if kind in ("ram", "file") else (1000.0, ("", "K", "M", "G"))
    power = 0
    while value >= step and power < 3:
        value, power = value / step, power + 1
    return f"{value:.4g} {ends[power]}".strip()


def stages(target: Target, steps: int) -> tuple[Target, ...]:
    """Targets on the way to ``target``, for pruning in turns with training: each step leaves the same part of what the
    one before left. ``NervureError`` for an absolute target, whose start is not known here: make it relative first."""
    if steps < 1:
        raise NervureError(f"{steps} steps", hint="one or more")
    if not target.relative:
        raise NervureError(f"steps to {target} need the dense model's own", hint="give a part, such as 0.6x")
    left = target.absolute(1.0)
    parts = [left ** ((i + 1) / steps) for i in range(steps - 1)]
    return (*(Target(target.kind, 1 - p if target.kind == "sparsity" else p) for p in parts), target)


# -- measures ----------------------------------------------------------------------------------------------------------


def measure(
    graph: Graph,
    machine: Machine,
    kinds: Iterable[str] = KINDS,
    measured: Measure | None = None,
    optimize: str = "speed",
) -> dict[str, float]:
    """What a graph costs, by kind: multiply-adds of a run and parameters (both without zeros), bytes of RAM and of
    file, microseconds on one core; ``sparsity`` is the part of the layers' weights that is zero. Open sizes count as
    one. ``measured``: how to tell the latency instead of by the cost model; ``optimize``: what it is compiled for."""
    wanted = tuple(kinds)
    graph = static(graph)
    found: dict[str, float] = {}
    if {"macs", "params", "sparsity"} & set(wanted):
        found |= counted(graph)
    if set(PLANNED) & set(wanted) and not (set(wanted) & set(PLANNED) == {"latency"} and measured):
        found |= planned(graph, machine, optimize)
    if measured is not None and "latency" in wanted:
        found["latency"] = measured(graph)
    return {kind: found[kind] for kind in KINDS if kind in wanted}


def static(graph: Graph, sizes: Mapping[str, int] | None = None) -> Graph:
    """The graph with its open sizes bound, to one unless said."""
    names = named_dimensions(graph)
    return bind_dimensions(graph, {n: (sizes or {}).get(n, 1) for n in names}) if names else graph


def counted(graph: Graph, masks: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
    """Multiply-adds, parameters and the part of the weights that is zero, of a static graph. ``masks``: by weight name,
    what is counted as zero besides."""
    held = masks or {}
    alive = {w.name: _alive(w.array, held.get(w.name)) for w in weights(graph)}
    runs = positions(graph)
    rest = sum(a.size for n, a in _floats(graph).items() if n not in alive)
    every = sum(w.array.size for w in weights(graph))
    return {
        "macs": float(sum(alive[n] * runs[n] for n in alive)),
        "params": float(sum(alive.values()) + rest),
        "sparsity": 1 - sum(alive.values()) / max(1, every),
    }


def _alive(array: np.ndarray, mask: np.ndarray | None) -> int:
    return int(np.count_nonzero(array) if mask is None else np.count_nonzero((array != 0) & mask))


def _floats(graph: Graph) -> dict[str, np.ndarray]:
    nodes = (graph.node(k) for k in graph.find("const"))
    return {n.names[0]: n.array for n in nodes if n.array.dtype.kind == "f" and n.array.ndim}


def planned(graph: Graph, machine: Machine, optimize: str = "speed") -> dict[str, float]:
    """Bytes of RAM and file, and microseconds, of the program that the compiler would make of a static graph."""
    program, pool = plan_program([EntryGraph(graph)], machine, Options(optimize=optimize))
    return facts(program, pool.drafts)


def facts(program: Program, drafts: Mapping[str, Draft]) -> dict[str, float]:
    """The same of a program that is there."""
    specs = [len(d.spec.canonical) for d in drafts.values()]
    code = sum(_FILE_KERNEL + max(0, n - _PLAIN_SPEC) for n in specs)  # what is unrolled stands in the description
    steps = sum(len(e.steps) for e in program.entries)
    return {
        "ram": float(max((program.arena_bytes(e) for e in program.entries), default=0)),
        "file": float(len(program.const) + code + _FILE + _FILE_STEP * steps),
        "latency": sum(s.estimate for e in program.entries for s in e.steps) / 1000,
    }
