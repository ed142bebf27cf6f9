"""What pruning did to each layer, and whether it pays there: the cost model's times, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine
from ..ir import Graph, Value
from ..pipeline import EntryGraph, Options, plan_program
from .budget import facts
from .patterns import Pattern
from .weights import positions, weights

WORTH = 0.97  # a pruned layer must take less than this part of the dense one's time (or bytes)


@dataclass(frozen=True)
class Cost:
    """What one layer's steps take: microseconds on one core by the cost model, bytes of packed weights."""

    us: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Row:
    """One layer before and after. ``kept``: the part of its weights that is left; ``pattern``: what they follow, empty
    where none was put on; ``refused``: why the pattern was taken back; ``left_out``: why none was tried."""

    layer: str
    op: str
    weight: str
    origin: tuple[str, ...]
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    kept: float
    macs_before: int
    macs_after: int
    bytes_before: int
    bytes_after: int
    us_before: float
    us_after: float
    pattern: str = ""
    refused: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class Plans:
    """A static graph as the compiler would run it: each layer's cost, and the whole's RAM, file and latency."""

    layers: Mapping[str, Cost]
    totals: Mapping[str, float]


def plans(graph: Graph, machine: Machine, optimize: str = "speed") -> Plans:
    """Plans a static graph, and says which layer each step works for: that of the last layer in it."""
    marked, order = graph.copy(), {}
    for i, (name, key) in enumerate(_layer_nodes(graph)):
        marked.set_node(key, origin=(f"layer {name}",))
        order[f"layer {name}"] = (i, name)
    program, pool = plan_program([EntryGraph(marked)], machine, Options(optimize=optimize))
    found: dict[str, Cost] = {}
    for step in (s for e in program.entries for s in e.steps):
        owners = [order[o] for o in step.origin if o in order]
        if owners:
            name = max(owners)[1]
            before = found.get(name, Cost())
            found[name] = Cost(before.us + step.estimate / 1000, before.bytes + step.weight_bytes)
    return Plans(found, facts(program, pool.drafts))


def _layer_nodes(graph: Graph) -> list[tuple[str, int]]:
    keys = {use.node for w in weights(graph) for use in w.uses}
    return [(graph.tensor_name(Value(k)), k) for k in graph.order() if k in keys]


def make_rows(
    before: Graph,
    after: Graph,
    plans_before: Plans,
    plans_after: Plans,
    patterns: Mapping[str, Pattern],
    refused: Mapping[str, str],
    left_out: Mapping[str, str],
) -> tuple[Row, ...]:
    """A row for each layer of ``before``, in order. What layers share (a weight) counts for each of them; layers that
    are gone have nothing left."""
    old, new = _held(before), _held(after)
    found = []
    for name, key in _layer_nodes(before):
        for weight, array, runs in old[name]:
            left = next(((a, r) for w, a, r in new.get(name, ()) if w == weight), None)
            kept = 0 if left is None else int(np.count_nonzero(left[0]))
            first = weight == old[name][0][0]  # a layer of two weights (recurrent) has one time
            costs = [p.layers.get(name, Cost()) if first else Cost() for p in (plans_before, plans_after)]
            row = Row(
                name,
                before.node(key).op,
                weight,
                before.node(key).origin,
                array.shape,
                () if left is None else left[0].shape,
                kept / max(1, array.size),
                int(np.count_nonzero(array)) * runs,
                0 if left is None else kept * left[1],
                costs[0].bytes,
                costs[1].bytes,
                costs[0].us,
                costs[1].us,
                str(patterns[weight]) if weight in patterns else "",
                refused.get(name, ""),
                left_out.get(name, ""),
            )
            found.append(row)
    return tuple(found)


def _held(graph: Graph) -> dict[str, list[tuple[str, np.ndarray, int]]]:
    """By layer its weights: name, array, how often each element is multiplied in a run of all layers that share it."""
    runs = positions(graph)
    found: dict[str, list[tuple[str, np.ndarray, int]]] = {}
    for w in weights(graph):
        for node in dict.fromkeys(use.node for use in w.uses):
            share = runs[w.name] // len(w.uses)
            found.setdefault(graph.tensor_name(Value(node)), []).append((w.name, w.array, share))
    return found


# -- whether it pays ---------------------------------------------------------------------------------------------------


def losing(
    layers: Iterable[tuple[str, str]], dense: Plans, sparse: Plans, kind: str, kept: Mapping[str, float]
) -> dict[str, str]:
    """Of layers ``(name, weight)`` with zeros those that the machine does not run faster, and the numbers that say so.
    Where the target is one of size, fewer bytes will do."""
    found = {}
    for name, weight in layers:
        a, b = dense.layers.get(name, Cost()), sparse.layers.get(name, Cost())
        smaller = kind in ("file", "params") and b.bytes < WORTH * a.bytes
        if b.us >= WORTH * a.us and not smaller:
            times = f"estimated: {a.us:.3g} us dense, {b.us:.3g} us with {kept.get(weight, 1.0):.1%} of the weights"
            sizes = f"; {a.bytes} bytes dense, {b.bytes} sparse" if kind in ("file", "params") else ""
            found[name] = times + sizes
    return found


def refusal(pattern: Pattern, machine: Machine, refused: Mapping[str, str]) -> NervureError:
    """The error where no layer gains, with the numbers of each."""
    lines = [f"{name}: {told}" for name, told in refused.items()]
    return NervureError(
        f"{pattern} does not pay in any layer on {machine.name}; nothing was pruned",
        where=lines,
        why="by the cost model of the kernels the dense layers are as fast",
        hint="more sparsity, another pattern (block, 2:4v) or channels; or force it (--force)",
    )


__all__ = ["Cost", "Plans", "Row", "losing", "make_rows", "plans", "refusal"]
