"""A plan that fits a bound on RAM: what is tried beside the plain plan, and what is chosen.

Training steps compute activations again (``autodiff.recompute``). Everything else takes kernels that write over their
input and need little scratch, then computes its first stages in patches (``passes.patches``). Patches are ranked by an
estimate, and the best are planned: of those that fit, the one that repeats least work and has few kinds of tiles is
taken, else the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..autodiff.recompute import choices
from ..ir import Graph, Value
from ..ops import OPS, Kind
from ..passes.patches import Range, Tiling, patched, tilings
from ..program import Entry
from .liveness import liveness

_PLANNED = 8  # patchings that are planned, at most
_SMALLEST = 2  # of those that are planned although they will hardly fit, to know the least that can be had
_KIND = 0.01  # of the network's work: what a kind of tiles costs, as each has kernels of its own in flash
_LARGE = 400  # nodes of a graph that count as one more: fewer are planned where each takes long


@dataclass(frozen=True)
class Bound:
    """What there is: bytes of all regions together, and of the arena alone; None where it does not matter."""

    ram: int | None = None
    arena: int | None = None
    threads: int = 1

    def needed(self, entry: Entry) -> int:
        """Bytes of all regions, and of the scratch of further threads."""
        return sum(entry.region_bytes) + (self.threads - 1) * entry.worker_bytes

    def over(self, entry: Entry) -> int:
        """By how many bytes an entry is too large; 0 or less where it fits."""
        found = [0 if self.ram is None else self.needed(entry) - self.ram]
        if self.arena is not None and entry.region_bytes:
            found.append(entry.region_bytes[0] - self.arena)
        return max(found)


@dataclass(frozen=True)
class Fit:
    """The graph to be built (None: as it was), the entry that it gave, and what was tried, the plain plan first:
    ``name``, ``arena_bytes`` and ``flops`` that are done more than once. ``lean``: with kernels that need less RAM."""

    graph: Graph | None
    entry: Entry
    tried: list[dict[str, Any]]
    lean: bool = False


Build = Callable[[Graph, bool], Entry]


def fit(graph: Graph, plain: Entry, build: Build, bound: Bound) -> Fit:
    """The choice for a canonical graph. ``build`` plans a graph, leanly or not, ``plain`` is its own plan."""
    rows = [_row("everything kept" if plain.updates_params else "whole layers", bound, plain, 0.0)]
    best = Fit(None, plain, rows)
    for name, flops, lean, make in _candidates(graph, plain, bound, rows):
        other = make()
        entry = build(graph if other is None else other, lean)
        rows.append(_row(name, bound, entry, flops))
        if bound.over(entry) < bound.over(best.entry):
            best = Fit(other, entry, rows, lean)
        if bound.over(entry) <= 0:
            break
    return best


def _row(name: str, bound: Bound, entry: Entry, flops: float) -> dict[str, Any]:
    return {"name": name, "arena_bytes": bound.needed(entry), "flops": flops}


def _candidates(
    graph: Graph, plain: Entry, bound: Bound, rows: list[dict[str, Any]]
) -> Iterator[tuple[str, float, bool, Callable[[], Graph | None]]]:
    if bound.over(plain) <= 0:
        return
    if plain.updates_params:
        for choice in choices(graph):
            yield choice.name, choice.flops, False, lambda choice=choice: choice.graph  # type: ignore[misc]
    elif not graph.bindings:
        yield "kernels that need less RAM", 0.0, True, lambda: None
        lean = rows[-1]["arena_bytes"] < rows[0]["arena_bytes"]
        for tiling in _ranked(graph, plain, bound, rows):
            yield tiling.name, tiling.flops, lean, lambda tiling=tiling: patched(tiling)  # type: ignore[misc]


def _ranked(graph: Graph, plain: Entry, bound: Bound, rows: list[dict[str, Any]]) -> Iterator[Tiling]:
    """Patchings, the most promising first. After each, what the plan needed more than the estimate said is learnt."""
    limit = bound.needed(plain) - bound.over(plain)
    sizes = _after(plain)
    left = [(estimate(graph, t, sizes), t) for t in tilings(graph)]
    kind = _KIND * sum(s.flops for s in plain.steps)
    more, planned = 0, 0
    for _ in range(max(3, _PLANNED - len(graph) // _LARGE)):
        near = [(guess, t) for guess, t in left if guess + more <= limit]
        if near:
            guess, tiling = min(near, key=lambda row: (row[1].flops + kind * row[1].kinds, row[0], row[1].name))
        elif left and planned < _SMALLEST:
            guess, tiling = min(left, key=lambda row: (row[0], row[1].flops, row[1].name))
            planned += 1
        else:
            return
        left = [row for row in left if row[1] is not tiling]
        yield tiling
        more = max(more, rows[-1]["arena_bytes"] - guess)


def _after(plain: Entry) -> dict[str, int]:
    """For each step's tensor the most live bytes of any later step."""
    rows, found, most = liveness(plain), {}, 0
    for row in reversed(rows):
        found[row.name] = most
        most = max(most, row.bytes)
    return found


def estimate(graph: Graph, tiling: Tiling, after: Mapping[str, int]) -> int:
    """About how many bytes the graph needs with these patches: what the sources and the target cover together, and
    the most that is alive between them; or what the rest of the network needs."""
    stages = tiling.stages
    stored = {v for v in map(Value, stages.nodes) if v == stages.target or _stored(graph, v)}
    front = sum(graph.type(v).nbytes for v in stages.sources) + _beside(graph, tiling)
    most = max(_between(graph, tiling, stored, number) for number in _few(len(tiling.needs)))
    return max(after.get(graph.tensor_name(stages.target), 0), front + most)


def _few(count: int) -> list[int]:
    """The first, a middle and the last one: the others are like the middle one."""
    return sorted({0, count // 2, count - 1})


def _stored(graph: Graph, value: Value) -> bool:
    """Whether a tensor is written to memory: elementwise work takes its input from registers."""
    users = [user for user, _ in graph.users(value)]
    return len(users) != 1 or OPS[graph.node(users[0]).op].kind is not Kind.ELEMENTWISE


def _beside(graph: Graph, tiling: Tiling) -> int:
    """What the target needs beside the sources: it may lie over lines of a source that are no longer needed."""
    target = tiling.stages.target
    whole = graph.type(target).nbytes
    if len(tiling.stages.sources) > 1:
        return whole
    (source,) = tiling.stages.sources
    lead = 0
    for tile, later in zip(tiling.tiles, tiling.needs[1:], strict=False):
        written = whole * tile[0][1] // graph.type(target).dims[2]
        needed = graph.type(source).nbytes * later[source][0][0] // graph.type(source).dims[2]
        lead = max(lead, written - needed)
    return min(lead, whole)


def _between(graph: Graph, tiling: Tiling, stored: set[Value], number: int) -> int:
    """The most bytes of one tile that are alive between the sources and the target."""
    stages, need = tiling.stages, tiling.needs[number]
    order = [v for v in map(Value, stages.nodes) if v in stored]
    reads = {v: _reads(graph, v, stored) for v in order}
    last = {a: i for i, v in enumerate(order) for a in reads[v]}
    alive: dict[Value, int] = {}
    most = 0
    for i, value in enumerate(order):
        held = sum(alive.values())
        ends = {v: n for v, n in alive.items() if last[v] == i}
        if value != stages.target:
            alive[value] = _bytes(graph, value, need[value])
            held += alive[value] - min(alive[value], max(ends.values(), default=0)) * 3 // 4  # they may overlap
        most = max(most, held)
        alive = {v: n for v, n in alive.items() if v not in ends}
    return most


def _reads(graph: Graph, value: Value, stored: set[Value]) -> set[Value]:
    """The stored tensors that one is computed from, through elementwise work."""
    found, stack = set(), [value.node]
    while stack:
        for arg in graph.args(stack.pop()):
            if arg in stored:
                found.add(arg)
            elif arg is not None and graph.node(arg).op not in ("const", "input"):
                stack.append(arg.node)
    return found


def _bytes(graph: Graph, value: Value, part: Range) -> int:
    type_ = graph.type(value)
    return prod((*(b - a for a, b in part), *type_.dims[:2])) * type_.itemsize
