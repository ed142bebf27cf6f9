"""What of a graph can be taken out together: channels, heads, recurrent units, groups of channels, whole branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from ..ir import STORED, Graph, Value
from ..types import is_float
from .blocks import Block, find_blocks
from .dependencies import Class, Dependencies
from .rules import is_layer

ALL_KINDS = ("channels", "heads", "units", "groups", "blocks")
_ALONE = "no two of its channels go the same ways, and one must stay of each"


@dataclass(frozen=True)
class Slice:
    """Positions ``index`` along ``axis`` of a constant tensor."""

    tensor: str
    axis: int
    index: np.ndarray


@dataclass(frozen=True)
class Unit:
    """What goes together: one channel and all that hangs on it."""

    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Group:
    """Units of one kind of which any but the last can go. ``name`` is that of the first tensor they are channels of;
    ``layers`` are the results of the layers concerned, in order."""

    name: str
    kind: str
    units: tuple[Unit, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Fixed:
    """A layer whose outputs (some of them) cannot go, and why."""

    where: str
    why: str
    origin: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    groups: tuple[Group, ...]
    fixed: tuple[Fixed, ...]

    def group(self, name: str) -> Group:
        """A group by name; ``KeyError`` where there is none."""
        return next(g for g in self.groups if g.name == name)


@dataclass(frozen=True)
class Found:
    """A group before its units are spelt out: classes of positions, or branches."""

    name: str
    kind: str
    layers: tuple[str, ...]
    classes: tuple[Class, ...] = ()
    blocks: tuple[Block, ...] = ()

    @property
    def count(self) -> int:
        return len(self.classes or self.blocks)


def find_structure(graph: Graph, kinds: Sequence[str] = ALL_KINDS) -> Structure:
    """The groups of a prepared graph (``layers.prepare``), and the layers that stay. Names do not depend on
    ``kinds``."""
    dependencies = Dependencies(graph)
    reader = _Reader(dependencies)
    found = find_groups(dependencies)
    groups = tuple(Group(f.name, f.kind, reader.units(f), f.layers) for f in found if f.kind in kinds)
    return Structure(groups, _fixed(dependencies, found))


def find_groups(dependencies: Dependencies) -> list[Found]:
    """Classes that touch the same axes are the units of one group; of fewer than two nothing can go."""
    alike: dict[tuple[int, ...], list[Class]] = {}
    for found in dependencies.classes():
        alike.setdefault(found.bundles, []).append(found)
    reader = _Reader(dependencies)
    taken = {"blocks"}
    groups = []
    for classes in sorted(alike.values(), key=lambda c: reader.begin(c[0])):
        made = reader.group(classes)
        if made is not None:
            numbered = (f"{made.name}#{i}" for i in count(2))
            name = made.name if made.name not in taken else next(n for n in numbered if n not in taken)
            taken.add(name)
            groups.append(replace(made, name=name))
    blocks = find_blocks(dependencies.graph, dependencies.order)
    return [*groups, _branches(dependencies, blocks)] if len(blocks) > 1 else groups


def _branches(dependencies: Dependencies, blocks: Sequence[Block]) -> Found:
    graph = dependencies.graph
    inside = frozenset().union(*(b.inside for b in blocks))
    layers = tuple(graph.node(k).names[0] for k in dependencies.order if k in inside and is_layer(graph, k))
    return Found("blocks", "blocks", layers, blocks=tuple(blocks))


class _Reader:
    """Reads classes as slices of constants."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies, self._graph = dependencies, dependencies.graph
        self._members = dependencies.members()
        self._rank = {key: i for i, key in enumerate(dependencies.order)}
        self._stored: dict[int, list[tuple[Value, int, str]]] = {}

    def begin(self, found: Class) -> tuple[int, int]:
        """Where a class comes from: the first layer that makes it, else the first tensor."""
        places = [(self._rank[v.node], v) for b in found.bundles for v, _ in self._members.get(b, ())]
        made = [(rank, v) for rank, v in places if self._graph.node(v).op not in STORED]
        layers = [rank for rank, v in made if is_layer(self._graph, v.node)]
        first = min(layers or [rank for rank, _ in made] or [len(self._rank)])
        return first, int(found.places[0][1][0])

    def group(self, classes: Sequence[Class]) -> Found | None:
        """The group, named after the tensor that it begins with; None where there is nothing to take out."""
        first, _ = self.begin(classes[0])
        if first == len(self._rank) or len(classes) < 2 or not any(map(self._constants, classes[0].bundles)):
            return None
        name = self._graph.node(self._dependencies.order[first]).names[0]
        return Found(name, self._dependencies.kind(classes[0]), self._layers(classes[0]), tuple(classes))

    def units(self, found: Found) -> tuple[Unit, ...]:
        """What the units of a group are in the constants."""
        if found.blocks:
            return tuple(Unit(tuple(map(self._whole, block.constants))) for block in found.blocks)
        return tuple(Unit(tuple(self._slices(c))) for c in found.classes)

    def _whole(self, key: int) -> Slice:
        node = self._graph.node(key)
        return Slice(node.names[0], 0, np.arange(node.array.shape[0]))

    def _constants(self, bundle: int) -> list[tuple[Value, int, str]]:
        """The constants of which an axis is in a bundle, by name."""
        if bundle not in self._stored:
            self._stored[bundle] = [
                (value, axis, self._graph.tensor_name(value))
                for value, axis in self._members.get(bundle, ())
                if self._graph.node(value).op == "const" and is_float(self._graph.type(value).dtype)
            ]
        return self._stored[bundle]

    def _slices(self, found: Class) -> list[Slice]:
        return [
            Slice(name, axis, places) for bundle, places in found.places for _, axis, name in self._constants(bundle)
        ]

    def _layers(self, found: Class) -> tuple[str, ...]:
        values = {value for bundle in found.bundles for value, _ in self._members.get(bundle, ())}
        weights = {v for v in values if self._graph.node(v).op in ("const", "dequantize")}
        users = {user for value in weights for user, _ in self._graph.users(value)}
        layers = sorted((self._rank[u], u) for u in users if is_layer(self._graph, u))
        return tuple(self._graph.node(u).names[0] for _, u in layers)


def _fixed(dependencies: Dependencies, groups: Sequence[Found]) -> tuple[Fixed, ...]:
    graph, found = dependencies.graph, []
    grouped = {bundle for group in groups for part in group.classes for bundle in part.bundles}
    for key in dependencies.order:
        node = graph.node(key)
        axis = 1 if node.op.startswith("conv") else node.types[0].rank - 1
        if is_layer(graph, key) and axis >= 0 and node.types[0].shape[axis] != 1:
            pin = dependencies.stays(Value(key), axis)
            if pin is not None:
                at = f" ({pin.tensor})" if pin.tensor and pin.tensor != node.names[0] else ""
                found.append(Fixed(node.names[0], pin.why + at, node.origin))
            elif dependencies.tensor_axis(Value(key), axis) not in grouped:
                found.append(Fixed(node.names[0], _ALONE, node.origin))
    return tuple(found)
