"""Less RAM for a training step: activations that the backward pass reads are computed again instead of kept.

The forward part of a step is what its outputs (loss and metrics) need; all else is backward. A *choice* is the set of
forward tensors that are kept; what else the backward part reads is computed again from those, as late as possible.
Two kinds of choices are tried, from cheap to dear:

* the smallest set to keep if contractions are never repeated: a minimum cut between what must be kept and what the
  backward part reads, tensors weighted by their bytes (as in Jain et al. 2020, Checkmate, for the cheap operators);
* checkpoints: only tensors at k places along the forward pass are kept, and what lies between two is repeated
  (Chen et al. 2016, sublinear memory). More of them save more until the tensors kept outweigh those of a segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx

from ..ir import STORED, Graph, Value
from ..ops import OPS, Call, Kind

CHEAP = (Kind.ELEMENTWISE, Kind.VIEW, Kind.INJECTIVE, Kind.REDUCTION)
_S, _T = "source", "sink"
_SMALL = 64  # a tensor so many times smaller than the largest one is always kept (statistics)


@dataclass(frozen=True)
class Choice:
    """A step with some activations computed again. ``flops`` is the work that is done twice, ``kept`` bytes of
    activations that stay for the backward part."""

    name: str
    graph: Graph
    flops: float
    kept: int


def choices(graph: Graph) -> list[Choice]:
    """The steps that compute the same with less memory, in the order of the work that they repeat. Empty where there
    is no backward part."""
    forward = _forward(graph)
    wanted = _wanted(graph, forward)
    if not wanted:
        return []
    sets = {"cheap operators": _minimum_cut(graph, forward, wanted)}
    sets |= {f"{parts} segments": _checkpoints(graph, forward, parts) for parts in (2, 3, 4, 6, 8, 12, 16)}
    small = {v for v in wanted if graph.type(v).nbytes * _SMALL < max(graph.type(w).nbytes for w in wanted)}
    found = {name: _repeat(graph, forward, wanted, kept | small, name) for name, kept in sets.items()}
    return sorted(found.values(), key=lambda c: (c.flops, c.name))


def _forward(graph: Graph) -> set[int]:
    found = {v.node for v in graph.outputs}
    for key in reversed(graph.order()):
        if key in found:
            found.update(graph.nx.predecessors(key))
    return found


def _wanted(graph: Graph, forward: set[int]) -> set[Value]:
    """The forward tensors that the backward part reads and that do not lie in memory anyway."""
    edges = ((Value(p, d["out"]), user) for p, user, d in graph.nx.edges(data=True))
    return {v for v, user in edges if user not in forward and v.node in forward and graph.node(v).op not in STORED}


def _minimum_cut(graph: Graph, forward: set[int], wanted: set[Value]) -> set[Value]:
    """The tensors to keep when only cheap operators may be repeated, of the fewest bytes."""
    flow: nx.DiGraph[Any] = nx.DiGraph()
    for key in sorted(forward):
        free = graph.node(key).op in STORED
        cheap = OPS[graph.node(key).op].kind in CHEAP and len(graph.node(key).types) == 1
        for value in graph.values(key):
            flow.add_edge(("in", value), ("out", value), capacity=0 if free else graph.type(value).nbytes)
            if free or not cheap:
                flow.add_edge(_S, ("in", value))
            else:
                flow.add_edges_from((("out", a), ("in", value)) for a in graph.args(key) if a is not None)
            if value in wanted:
                flow.add_edge(("out", value), _T)
    _, (reached, _) = nx.minimum_cut(flow, _S, _T)
    return {
        value
        for key in forward
        for value in graph.values(key)
        if ("in", value) in reached and ("out", value) not in reached and graph.node(key).op not in STORED
    }


def _checkpoints(graph: Graph, forward: set[int], parts: int) -> set[Value]:
    """What is alive at the thinnest places between ``parts`` parts of the forward pass that write equally much."""
    order = [k for k in graph.order() if k in forward and graph.node(k).op not in STORED]
    place = {k: i for i, k in enumerate(order)}
    last = {v: _last_use(graph, v, place) for k in order for v in graph.values(k)}
    alive = [{v for k in order[: i + 1] for v in graph.values(k) if last[v] > i} for i in range(len(order))]
    width = [sum(graph.type(v).nbytes for v in values) for values in alive]
    written = [sum(t.nbytes for t in graph.node(k).types) for k in order]
    part = sum(written) / parts
    kept: set[Value] = set()
    done, best = 0.0, 0
    for i in range(len(order)):
        boundary = int(done / part)
        done += written[i]
        if int(done / part) > boundary and boundary > 0:
            kept |= alive[best]
            best = i
        if width[i] <= width[best]:
            best = i
    return kept


def _last_use(graph: Graph, value: Value, place: dict[int, int]) -> int:
    return max((place[user] for user, _ in graph.users(value) if user in place), default=place[value.node])


def _repeat(graph: Graph, forward: set[int], wanted: set[Value], kept: set[Value], name: str) -> Choice:
    """The graph in which the backward part reads copies of all forward tensors that are not kept."""
    work = graph.copy()
    again: dict[int, int] = {}
    needed = {v.node for v in wanted if v not in kept}
    for key in reversed([k for k in graph.order() if k in forward]):
        if key in needed:
            read = (a for a in graph.args(key) if a is not None)
            needed.update(a.node for a in read if a not in kept and graph.node(a).op not in STORED)
    for key in [k for k in graph.order() if k in needed]:
        node = graph.node(key)
        args = [None if a is None else _copied(a, again, kept) for a in graph.args(key)]
        names = tuple(work.unique(f"{n}.again") for n in node.names)
        again[key] = work.insert(type(node)(node.op, node.attrs, node.types, names, node.origin), args)
    for value in sorted(wanted):
        if value in kept:
            continue
        for user, arg in graph.users(value):
            if user not in forward:
                work.set_arg(user, arg, _copied(value, again, kept))
    work.prune()
    alive = [v for v in _wanted(work, _forward(work) - set(again.values())) if v.node not in again.values()]
    return Choice(name, work, _flops(graph, needed), sum(graph.type(v).nbytes for v in alive))


def _copied(value: Value, again: dict[int, int], kept: set[Value]) -> Value:
    return value if value in kept or value.node not in again else Value(again[value.node], value.index)


def _flops(graph: Graph, nodes: Iterable[int]) -> float:
    total = 0.0
    for key in nodes:
        rule = OPS[graph.node(key).op].cost
        if rule is not None:
            types = tuple(None if a is None else graph.type(a) for a in graph.args(key))
            total += rule(Call(types, graph.node(key).attrs)).flops
    return total
