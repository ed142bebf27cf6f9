"""Less RAM for the first stages of a network: they are computed patch by patch (Lin et al. 2021, "MCUNetV2").

Convolutions, pools and elementwise work between a source (mostly the input) and a tensor that everything flows through
are repeated for tiles of that tensor: a slice of the source with its halo, the chain on it, and a concat. Slices and
concats cost no copy, as the layout places them. Only what a tile needs is alive at a time, and what neighbours share is
computed for each. Nothing else changes: at the rim of the source a tile has the padding of the whole, inside it none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import networkx as nx

from ..ir import STORED, Graph, Value
from ..ops import OPS, Call, Kind

WINDOWS = ("conv", "conv_integer", "conv_narrow", "max_pool", "avg_pool", "sum_pool_integer")
MOST_TILES = 64

Range = tuple[tuple[int, int], ...]  # for each spatial axis the first and the end of what is meant


@dataclass(frozen=True)
class Stages:
    """Nodes in topological order that can be computed in patches. ``target`` is the tensor that they lead to;
    ``sources`` are what they read that is neither constant nor their own."""

    graph: Graph
    nodes: tuple[int, ...]
    target: Value
    sources: tuple[Value, ...]

    @cached_property
    def windows(self) -> int:
        """How many convolutions and pools there are."""
        return sum(self.graph.node(n).op in WINDOWS for n in self.nodes)

    @cached_property
    def _links(self) -> list[tuple[Value, list[tuple[Value, list[tuple[int, int, int, int]]]]]]:
        """Each tensor, last one first, with the inputs of which it needs a part and how far it reaches in them."""
        rows = []
        for key in reversed(self.nodes):
            reach = _windows(self.graph, key)
            args = _parts_of(self.graph, key)
            rows.append(
                (
                    Value(key),
                    [(a, [(*w, n) for w, n in zip(reach, _spatial(self.graph, a), strict=True)]) for a in args],
                )
            )
        return rows

    @cached_property
    def _known(self) -> dict[tuple[int, tuple[int, int]], dict[Value, tuple[int, int]]]:
        return {}

    def needed(self, axis: int, part: tuple[int, int]) -> dict[Value, tuple[int, int]]:
        """For every tensor of the stages and every source, what a part of the target along one spatial axis needs:
        from the first to the last line that some reader wants."""
        if (axis, part) not in self._known:
            found = {self.target: part}
            for value, args in self._links:
                for arg, reach in args:
                    first, size, step, extent = reach[axis]
                    low, high = found[value][0] * step + first, (found[value][1] - 1) * step + first + size
                    before = found.get(arg, (low, high))
                    found[arg] = (max(0, min(before[0], low)), min(extent, max(before[1], high)))
            self._known[axis, part] = found
        return self._known[axis, part]


@dataclass(frozen=True)
class Tiling:
    """Stages cut into ``lines`` by ``columns`` tiles. ``flops`` are those that are computed more than once."""

    stages: Stages
    lines: int
    columns: int

    @property
    def name(self) -> str:
        """For reports: ``4 x 2 patches of the first 3 stages``."""
        form = f"{self.lines}" if self.columns == 1 else f"{self.lines} x {self.columns}"
        return f"{form} patches of the first {self.stages.windows} stages"

    @cached_property
    def cuts(self) -> list[list[tuple[int, int]]]:
        """For each spatial axis the parts of the target."""
        extents = self.stages.graph.type(self.stages.target).dims[2:]
        return [_cuts(n, parts) for n, parts in zip(extents, (self.lines, self.columns), strict=False)]

    @property
    def tiles(self) -> list[Range]:
        """The parts of the target, line by line."""
        return list(product(*self.cuts))

    @cached_property
    def needs(self) -> list[dict[Value, Range]]:
        """What each tile needs of every tensor."""
        axes = [[self.stages.needed(i, cut) for cut in cuts] for i, cuts in enumerate(self.cuts)]
        return [{v: tuple(part[v] for part in parts) for v in parts[0]} for parts in product(*axes)]

    @property
    def possible(self) -> bool:
        """Whether no tile lies in the padding alone."""
        parts = [self.stages.needed(i, cut) for i, cuts in enumerate(self.cuts) for cut in cuts]
        return all(a < b for part in parts for a, b in part.values())

    @cached_property
    def flops(self) -> float:
        graph, total = self.stages.graph, 0.0
        axes = [[self.stages.needed(i, cut) for cut in cuts] for i, cuts in enumerate(self.cuts)]
        for key in self.stages.nodes:
            value = Value(key)
            share = 1.0
            for parts, extent in zip(axes, graph.type(value).dims[2:], strict=True):
                share *= sum(part[value][1] - part[value][0] for part in parts) / extent
            total += (share - 1) * _flops(graph, key)
        return float(round(total))

    @cached_property
    def kinds(self) -> int:
        """How many kinds of tiles there are, each with kernels of its own: at the rims, inside, smaller ones."""
        count = 1
        for i, cuts in enumerate(self.cuts):
            ends = {v: self.stages.graph.type(v).dims[2 + i] for v in (*self.stages.sources, self.stages.target)}
            ends |= {Value(n): self.stages.graph.type(Value(n)).dims[2 + i] for n in self.stages.nodes}
            parts = [self.stages.needed(i, cut) for cut in cuts]
            count *= len({tuple((b - a, a == 0, b == ends[v]) for v, (a, b) in sorted(p.items())) for p in parts})
        return count


def tilings(graph: Graph) -> list[Tiling]:
    """Every way to cut first stages of a graph into patches that this pass knows; empty where it finds no stages."""
    found = []
    for stages in all_stages(graph):
        extents = graph.type(stages.target).dims[2:]
        for lines in _parts(extents[0]):
            for columns in _parts(extents[1], 4) if len(extents) == 2 else [1]:
                tiling = Tiling(stages, lines, columns)
                if 1 < lines * columns <= MOST_TILES and tiling.possible:
                    found.append(tiling)
    return found


def patched(tiling: Tiling) -> Graph:
    """The graph with these stages computed tile by tile."""
    stages, graph = tiling.stages, tiling.stages.graph.copy()
    name = graph.tensor_name(stages.target)
    parts = []
    for number, need in enumerate(tiling.needs):
        parts.append(_tile(graph, stages, need, f"{name}.patch{number}"))
    origin, last = graph.node(stages.target).origin, graph.type(stages.target).rank - 1
    if tiling.lines > 1 and tiling.columns > 1:
        rows = [parts[i : i + tiling.columns] for i in range(0, len(parts), tiling.columns)]
        parts, last = [graph.add("concat", *row, origin=origin, axis=last) for row in rows], last - 1
    elif tiling.columns == 1:
        last = 2
    whole = graph.add("concat", *parts, origin=origin, axis=last)
    graph.replace(stages.target, whole)
    graph.meta["patched"] = tiling.name
    graph.prune()
    return graph


# -- which stages ----------------------------------------------------------------------------------------------------


def all_stages(graph: Graph) -> list[Stages]:
    """The stages that lead to each tensor that everything behind the inputs flows through, nearest to them first."""
    local = {key for key in graph if _is_local(graph, key)}
    found = []
    for key in _waists(graph):
        if key not in local or Value(key) in graph.outputs or len(graph.node(key).types) != 1:
            continue
        if graph.users(Value(key)) and all(_follows(graph, user) for user, _ in graph.users(Value(key))):
            continue  # what only elementwise work reads is not stored
        stages = _stages(graph, key, local)
        if stages is not None and stages.windows:
            found.append(stages)
    return found


def _follows(graph: Graph, key: int) -> bool:
    return OPS[graph.node(key).op].kind is Kind.ELEMENTWISE


def _waists(graph: Graph) -> list[int]:
    """The nodes that every way from an input to an output goes through, in order."""
    flow = nx.DiGraph(graph.nx.reverse(copy=False))
    flow.add_node(-1)
    for value in graph.outputs:
        flow.add_edge(-1, value.node)
    above: dict[int, int] = dict(nx.immediate_dominators(flow, -1))
    chains = []
    for key in graph.inputs:
        chain = []
        while key in above and above[key] not in (key, -1):
            key = above[key]
            chain.append(key)
        chains.append(chain)
    common = set.intersection(*map(set, chains)) if chains else set()
    return [key for key in (chains[0] if chains else []) if key in common]


def _stages(graph: Graph, target: int, local: set[int]) -> Stages | None:
    """The nodes that lead to ``target`` and can be computed in patches, up to the inputs or to what cannot."""
    inside: set[int] = set()
    stack = [target]
    while stack:
        key = stack.pop()
        if key in inside:
            continue
        inside.add(key)
        stack += [a.node for a in graph.args(key) if a is not None and a.node in local]
    for key in inside - {target}:
        if Value(key) in graph.outputs or any(user not in inside for user, _ in graph.users(Value(key))):
            return None
    nodes = tuple(key for key in graph.order() if key in inside)
    cut = {a for key in nodes for a in _parts_of(graph, key)}
    read = {a for key in nodes for a in graph.args(key) if a is not None and graph.node(a).op != "const"}
    sources = sorted(v for v in cut if v.node not in inside)
    if read != cut or not sources or any(graph.node(v).op in STORED and graph.node(v).op != "input" for v in sources):
        return None
    return Stages(graph, nodes, Value(target), tuple(sources))


def _moving(graph: Graph, key: int) -> int:
    """How many of a node's inputs have the axes of its result (a window's weights and bias do not)."""
    return 1 if graph.node(key).op in (*WINDOWS, "lookup") else len(graph.args(key))


def _is_local(graph: Graph, key: int) -> bool:
    """Whether each point of a node's result needs only points near it."""
    node = graph.node(key)
    if node.op in STORED or len(node.types) != 1 or node.types[0].rank not in (3, 4) or not all(node.types[0].dims):
        return False
    if node.op in WINDOWS:
        fixed = all(a is None or graph.node(a).op == "const" for a in graph.args(key)[1:])
        return fixed and not node.attrs.get("ceil_mode", False)
    if node.op == "concat":
        return bool(node.attrs["axis"] % node.types[0].rank == 1)
    if OPS[node.op].kind is not Kind.ELEMENTWISE and node.op != "lookup":
        return False
    moving = graph.args(key)[: _moving(graph, key)]
    return all(a is None or _spread(graph, a, node.types[0].dims) is not None for a in moving)


def _spread(graph: Graph, value: Value, dims: Sequence[int]) -> bool | None:
    """Whether an elementwise input has the result's spatial axes (else it is the same everywhere); None where only
    some of them."""
    own, axes = graph.type(value).dims, len(dims) - 2
    lead = len(dims) - len(own)
    spatial = [own[a - lead] if a >= lead else 1 for a in range(2, 2 + axes)]
    if all(n == 1 for n in spatial) and (lead or any(n != 1 for n in dims[2:]) or graph.node(value).op == "const"):
        return False
    return True if lead == 0 and spatial == list(dims[2:]) else None


# -- which parts -----------------------------------------------------------------------------------------------------


def _parts_of(graph: Graph, key: int) -> list[Value]:
    """The inputs of which a tile needs a part."""
    dims = graph.node(key).types[0].dims
    args = [a for a in graph.args(key)[: _moving(graph, key)] if a is not None and graph.node(a).op != "const"]
    return [a for a in args if graph.node(key).op in (*WINDOWS, "concat") or _spread(graph, a, dims)]


def _spatial(graph: Graph, value: Value) -> tuple[int, ...]:
    return tuple(graph.type(value).dims[2:])


def _windows(graph: Graph, key: int) -> list[tuple[int, int, int]]:
    """For each spatial axis: where the window of point 0 begins, how long it is, and the step from point to point."""
    node = graph.node(key)
    rank = node.types[0].rank - 2
    if node.op not in WINDOWS:
        return [(0, 1, 1)] * rank
    attrs = node.attrs
    kernel = attrs.get("kernel_shape") or _spatial(graph, graph.args(key)[1])  # type: ignore[arg-type]
    rows = zip(kernel, attrs["strides"], attrs["dilations"], attrs["pads"][:rank], strict=True)
    return [(-p, (k - 1) * d + 1, s) for k, s, d, p in rows]


def _reach(graph: Graph, key: int, part: Range) -> list[tuple[int, int]]:
    """What a part of a result is computed from, with the padding around the input."""
    windows = _windows(graph, key)
    return [(a * s + f, (b - 1) * s + f + n) for (a, b), (f, n, s) in zip(part, windows, strict=True)]


def _wanted(graph: Graph, key: int, arg: Value, part: Range) -> Range:
    """As ``_reach``, without the padding."""
    return tuple(
        (max(0, a), min(n, b)) for (a, b), n in zip(_reach(graph, key, part), _spatial(graph, arg), strict=True)
    )


# -- the new graph ---------------------------------------------------------------------------------------------------


def _tile(graph: Graph, stages: Stages, need: Mapping[Value, Range], name: str) -> Value:
    """The stages on what one tile needs; gives the tile."""
    made: dict[Value, Value] = {}
    for source in stages.sources:
        whole = tuple((0, n) for n in graph.type(source).dims[2:])
        made[source] = _slice(graph, source, whole, need[source])
    for key in stages.nodes:
        node, own = graph.node(key), need[Value(key)]
        cut = set(_parts_of(graph, key))
        args = []
        for arg in graph.args(key):
            if arg is not None and arg in cut:
                arg = _slice(graph, made[arg], need[arg], _wanted(graph, key, arg, own))
            elif arg is not None and graph.node(arg).op == "const" and node.op not in (*WINDOWS, "lookup"):
                arg = _cut_const(graph, arg, node.types[0].dims, own)
            args.append(arg)
        attrs = dict(node.attrs)
        if node.op in WINDOWS:
            sizes = graph.type(graph.args(key)[0]).dims[2:]  # type: ignore[arg-type]
            reach = _reach(graph, key, own)
            ends = [max(0, b - n) for (_, b), n in zip(reach, sizes, strict=True)]
            attrs["pads"] = (*(max(0, -a) for a, _ in reach), *ends)
        wished = name if key == stages.target.node else f"{node.names[0]}.{name.rsplit('.', 1)[-1]}"
        made[Value(key)] = graph.add(node.op, *args, names=[wished], origin=node.origin, **attrs)
    return made[stages.target]


def _slice(graph: Graph, value: Value, has: Range, want: Range) -> Value:
    if has == want:
        return value
    dims = graph.type(value).dims
    starts = (0, 0, *(w[0] - h[0] for h, w in zip(has, want, strict=True)))
    stops = (*dims[:2], *(w[1] - h[0] for h, w in zip(has, want, strict=True)))
    return graph.add(
        "slice", value, origin=graph.node(value).origin, starts=starts, stops=stops, steps=(1,) * len(dims)
    )


def _cut_const(graph: Graph, value: Value, dims: Sequence[int], part: Range) -> Value:
    """A constant that has the spatial axes, cut like the rest."""
    if not _spread(graph, value, dims):
        return value
    at: tuple[Any, ...] = (..., *(slice(a, b) for a, b in part))
    array = graph.node(value).array[at]
    return graph.const(array, graph.tensor_name(value), graph.node(value).origin)


# -- numbers ---------------------------------------------------------------------------------------------------------


def _parts(extent: int, most: int = MOST_TILES) -> list[int]:
    """Into how many parts an axis is cut: each number of parts with the smallest part size that gives it."""
    sizes = {-(-extent // n) for n in range(1, min(extent, most) + 1)}
    return sorted({-(-extent // size) for size in sizes})


def _cuts(extent: int, parts: int) -> list[tuple[int, int]]:
    """Equal parts (the last one may be smaller), so that most tiles share their kernels."""
    size = -(-extent // parts)
    return [(a, min(a + size, extent)) for a in range(0, extent, size)]


def _flops(graph: Graph, key: int) -> float:
    rule = OPS[graph.node(key).op].cost
    if rule is None:
        return 0.0
    args = tuple(None if a is None else graph.type(a) for a in graph.args(key))
    return float(rule(Call(args, graph.node(key).attrs)).flops)
