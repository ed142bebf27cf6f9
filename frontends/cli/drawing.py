"""Layered drawing of a directed acyclic graph: who stands where, and how the edges run.

The method of Sugiyama, Tagawa and Toda (1981): longest-path layers, orders by barycentres, coordinates by least squares
with minimal distances (isotonic regression, pool adjacent violators). Pure Python; 1,000 nodes take about a second.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

Size = tuple[float, float]
COLUMN_GAP, LAYER_GAP, LANE = 26.0, 30.0, 14.0
SWEEPS, ROUNDS = 6, 8


@dataclass
class Drawing:
    """``boxes[i]`` is the (left, top) corner of node ``i``; ``paths[e]`` the points of edge ``e`` in pairs, between
    which it runs: straight down inside a layer, curved between layers."""

    width: float = 0.0
    height: float = 0.0
    boxes: list[tuple[float, float]] = field(default_factory=list)
    paths: list[list[tuple[float, float]]] = field(default_factory=list)


@dataclass
class _Layers:
    """Nodes and the dummies that carry long edges, by layer. All edges of one source share its dummies."""

    rows: list[list[int]]
    width: list[float]
    up: list[list[int]]
    down: list[list[int]]
    chain: dict[tuple[int, int], int]  # (source, layer) -> dummy
    level: list[int]


def draw(sizes: Sequence[Size], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Places ``len(sizes)`` boxes so that all edges run downwards. Nodes come in topological order."""
    if not sizes:
        return Drawing()
    layers = _layers(sizes, edges)
    _order(layers)
    x = _columns(layers)
    tops, heights = _heights(layers, sizes)
    left = min(x[n] - layers.width[n] / 2 for n in range(len(sizes)))
    lanes = min((x[n] for n in range(len(x))), default=left)
    shift = COLUMN_GAP - min(left, lanes)
    x = [v + shift for v in x]
    made = Drawing(
        max(v + w / 2 for v, w in zip(x, layers.width, strict=True)) + COLUMN_GAP, tops[-1] + heights[-1] + LAYER_GAP
    )
    made.boxes = [(x[n] - layers.width[n] / 2, tops[layers.level[n]]) for n in range(len(sizes))]
    for source, target in edges:
        points = [(x[source], tops[layers.level[source]] + sizes[source][1])]
        for level in range(layers.level[source] + 1, layers.level[target]):
            lane = x[layers.chain[source, level]]
            points += [(lane, tops[level]), (lane, tops[level] + heights[level])]
        points.append((x[target], tops[layers.level[target]]))
        made.paths.append(points)
    return made


def _levels(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from above; what has no input then sinks to just above its first user."""
    level = [0] * count
    for source, target in sorted(edges, key=lambda e: e[1]):
        level[target] = max(level[target], level[source] + 1)
    fed = {t for _, t in edges}
    first: dict[int, int] = {}
    for source, target in edges:
        first[source] = min(first.get(source, level[target]), level[target])
    return [first[n] - 1 if n not in fed and n in first else level[n] for n in range(count)]


def _layers(sizes: Sequence[Size], edges: Sequence[tuple[int, int]]) -> _Layers:
    count = len(sizes)
    level = _levels(count, edges)
    rows: list[list[int]] = [[] for _ in range(max(level) + 1)]
    for node in range(count):
        rows[level[node]].append(node)
    made = _Layers(rows, [s[0] for s in sizes], [[] for _ in sizes], [[] for _ in sizes], {}, level)
    for source, target in edges:
        before = source
        for at in range(level[source] + 1, level[target]):
            dummy = made.chain.get((source, at))
            if dummy is None:
                dummy = made.chain[source, at] = len(made.width)
                made.width.append(LANE)
                made.level.append(at)
                made.up.append([])
                made.down.append([])
                rows[at].append(dummy)
                _join(made, before, dummy)
            before = dummy
        _join(made, before, target)
    return made


def _join(layers: _Layers, above: int, below: int) -> None:
    layers.down[above].append(below)
    layers.up[below].append(above)


def _order(layers: _Layers) -> None:
    """Sorts each layer by the mean place of its neighbours, down and up, and keeps the order with fewest crossings."""
    place = [0.0] * len(layers.width)

    def number(row: list[int]) -> None:
        for i, node in enumerate(row):
            place[node] = i

    for row in layers.rows:
        number(row)
    best, fewest = [list(r) for r in layers.rows], _crossings(layers, place)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        down = sweep % 2 == 0
        near = layers.up if down else layers.down
        for row in layers.rows if down else reversed(layers.rows):
            wish = {n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else place[n] for n in row}
            row[:] = [n for _, _, n in sorted((wish[n], place[n], n) for n in row)]
            number(row)
        found = _crossings(layers, place)
        if found < fewest:
            best, fewest = [list(r) for r in layers.rows], found
    layers.rows[:] = best


def _crossings(layers: _Layers, place: Sequence[float]) -> int:
    """Inversions between the ends of the edges of neighbouring layers."""
    total = 0
    for row in layers.rows:
        ends: list[float] = []
        for node in row:
            own = sorted(place[m] for m in layers.down[node])
            total += sum(len(ends) - bisect_right(ends, p) for p in own)
            for p in own:
                insort(ends, p)
    return total


def _columns(layers: _Layers) -> list[float]:
    """Centres: each layer is drawn to its neighbours' means, above and below in turn."""
    x = [0.0] * len(layers.width)
    for row in layers.rows:
        _settle(row, [0.0] * len(row), [1.0] * len(row), layers, x)
    for turn in range(ROUNDS):
        down = turn % 2 == 0
        for row in layers.rows if down else reversed(layers.rows):
            wishes, weights = [], []
            for node in row:
                near = (layers.up if down else layers.down)[node] or (layers.down if down else layers.up)[node]
                wishes.append(sum(x[m] for m in near) / len(near) if near else x[node])
                weights.append(4.0 if layers.width[node] == LANE else 1.0 + len(near))
            _settle(row, wishes, weights, layers, x)
    return x


def _settle(
    row: Sequence[int], wishes: Sequence[float], weights: Sequence[float], layers: _Layers, x: list[float]
) -> None:
    """The places nearest to the wishes (weighted squares) that keep order and distance."""
    offset, offsets = 0.0, []
    for i, node in enumerate(row):
        if i:
            offset += (layers.width[row[i - 1]] + layers.width[node]) / 2 + COLUMN_GAP
        offsets.append(offset)
    blocks: list[list[float]] = []  # mean, weight, number of members
    for wish, weight, at in zip(wishes, weights, offsets, strict=True):
        blocks.append([wish - at, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, mass, members = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * mass) / (last[1] + mass)
            last[1] += mass
            last[2] += members
    i = 0
    for mean, _, members in blocks:
        for _ in range(int(members)):
            x[row[i]] = mean + offsets[i]
            i += 1


def _heights(layers: _Layers, sizes: Sequence[Size]) -> tuple[list[float], list[float]]:
    tops, heights, y = [], [], LAYER_GAP
    for row in layers.rows:
        height = max((sizes[n][1] for n in row if n < len(sizes)), default=0.0)
        tops.append(y)
        heights.append(height)
        y += height + LAYER_GAP
    return tops, heights
