"""What the layers of a compiled model weigh and take: each step of a program counts for the layer that it computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from ..compiler.pipeline import EntryGraph, Options, plan_program
from ..compiler.prune.layers import prepare
from ..compiler.prune.weights import Use, Weight, weights
from ..compiler.prune.weights import _positions as runs
from ..targets import Machine
from .model import Model

ROUNDS, RUNS = 7, 5  # profiles of each form, in turns; runs of a profile
_MARK = "\0layer "


@dataclass(frozen=True)
class Measured:
    """One layer as it was compiled: ``shape`` of its largest weight, ``size`` and ``nonzeros`` of all, ``macs`` of a
    run, packed ``bytes``, ``us`` (measured, or of the cost model) and the ``kernel``. ``weights``: names, sizes and
    non-zeros; layers may share some."""

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    size: int
    nonzeros: int
    macs: int
    weights: tuple[tuple[str, int, int], ...] = ()
    bytes: int = 0
    us: float = 0.0
    kernel: str = ""


@dataclass(frozen=True)
class Form:
    """A graph as it is compiled: its layers by name, and which layer each step of the program belongs to (None: one
    between layers, as a pooling or a softmax)."""

    layers: dict[str, Measured]
    owners: tuple[str | None, ...]
    estimates: tuple[float, ...] = field(repr=False)  # microseconds of each step, by the cost model

    @property
    def macs(self) -> int:
        return sum(m.macs for m in self.layers.values())

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero; each tensor counts once, whoever shares it."""
        return sum(nonzeros for _, _, nonzeros in self._weights())

    @property
    def size(self) -> int:
        """All weights, zeros too."""
        return sum(size for _, size, _ in self._weights())

    def _weights(self) -> set[tuple[str, int, int]]:
        return {row for m in self.layers.values() for row in m.weights}

    @property
    def rest_us(self) -> float:
        return sum(us for us, owner in zip(self.estimates, self.owners, strict=True) if owner is None)


def form(graph: Graph, machine: Machine, optimize: str = "speed") -> Form:
    """The layers of a static graph and the steps that compute them, by the cost model."""
    marked = prepare(graph).copy()
    held = _layers(marked)
    for name, (node, _) in held.items():
        marked.set_node(node, origin=(f"{_MARK}{name}",))
    program, _ = plan_program([EntryGraph(marked)], machine, Options(optimize=optimize))
    steps = program.entries[0].steps
    owners = tuple(_owner(step.origin) for step in steps)
    estimates = tuple(step.estimate / 1000 for step in steps)
    found = {name: measured for name, (_, measured) in held.items()}
    for step, owner, us in zip(steps, owners, estimates, strict=True):
        if owner is not None:
            found[owner] = _with_step(found[owner], step.weight_bytes, us, step.detail)
    return Form(found, owners, estimates)


def _owner(origin: Iterable[str]) -> str | None:
    return next((o.removeprefix(_MARK) for o in origin if o.startswith(_MARK)), None)


def _layers(graph: Graph) -> dict[str, tuple[int, Measured]]:
    """The operations with weights, in order: node and facts by the name of the result."""
    uses: dict[int, list[tuple[Weight, Use]]] = {}
    for weight in weights(graph):
        for use in weight.uses:
            uses.setdefault(use.node, []).append((weight, use))
    found: dict[str, tuple[int, Measured]] = {}
    for key in graph.order():
        if key not in uses:
            continue
        node, held = graph.node(key), uses[key]
        counts = {w.name: int(np.count_nonzero(w.array)) for w, _ in held}
        main = max((w for w, _ in held), key=lambda w: w.array.size)
        found[node.names[0]] = (
            key,
            Measured(
                name=node.names[0],
                op=node.op,
                weight=main.name,
                shape=main.array.shape,
                size=sum(w.array.size for w, _ in held),
                nonzeros=sum(counts[w.name] for w, _ in held),
                macs=sum(counts[w.name] * runs(graph, w.array.shape, use) for w, use in held),
                weights=tuple((w.name, w.array.size, counts[w.name]) for w, _ in held),
            ),
        )
    return found


def _with_step(found: Measured, nbytes: int, us: float, detail: str) -> Measured:
    kernel = ", ".join(dict.fromkeys(k for k in (found.kernel, detail) if k))
    return replace(found, bytes=found.bytes + nbytes, us=found.us + us, kernel=kernel)


def timed(forms: Sequence[Form], models: Sequence[Model], feed: Mapping[str, np.ndarray]) -> list[Form]:
    """The same with measured times: each model is profiled in turns with the others, the fastest of all profiles
    counts for each step. Needs the machine at hand."""
    best: list[np.ndarray] = [np.full(len(f.owners), np.inf) for f in forms]
    sessions = [m.session for m in models]
    for _ in range(ROUNDS):
        for i, session in enumerate(sessions):
            rows = session.profile(feed, runs=RUNS)
            best[i] = np.minimum(best[i], [r["seconds"] * 1e6 for r in rows])
    return [_with_times(f, b.tolist()) for f, b in zip(forms, best, strict=True)]


def _with_times(found: Form, times: Sequence[float]) -> Form:
    sums = dict.fromkeys(found.layers, 0.0)
    for owner, us in zip(found.owners, times, strict=True):
        if owner is not None:
            sums[owner] += us
    return Form({n: replace(m, us=sums[n]) for n, m in found.layers.items()}, found.owners, tuple(times))


def rows(dense: Form, pruned: Form, why: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row of plain data for each layer of the dense model, in order; ``pruned`` is None in those that are gone."""
    return [_row(was, pruned.layers.get(name), why.get(name, "")) for name, was in dense.layers.items()]


def _row(was: Measured, now: Measured | None, why: str) -> dict[str, Any]:
    def pair(key: str) -> dict[str, Any]:
        return {"dense": getattr(was, key), "pruned": None if now is None else getattr(now, key)}

    kept = 0 if now is None else now.nonzeros
    return {
        "name": was.name,
        "op": was.op,
        "weight": was.weight,
        "shape": {"dense": list(was.shape), "pruned": None if now is None else list(now.shape)},
        "kept": kept / max(1, was.nonzeros),
        "left": 0.0 if now is None else now.size / max(1, was.size),
        "density": None if now is None else now.nonzeros / max(1, now.size),
        "macs": pair("macs"),
        "bytes": pair("bytes"),
        "us": {k: None if v is None else round(v, 3) for k, v in pair("us").items()},
        "kernel": pair("kernel"),
        "why": why,
    }
