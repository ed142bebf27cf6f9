"""Units of a structure taken out of a graph: really, or as zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import NervureError
from ..ir import STORED, Graph, Value
from ..ops.axes import Axis, Change, Kept
from .blocks import Block
from .dependencies import Class, Dependencies
from .rules import call_of, divides, rule_of
from .structure import find_groups


def shrink(graph: Graph, removed: Mapping[str, Sequence[int]]) -> Graph:
    """The graph without some units: ``removed`` has their numbers for each group by name (of ``find_structure``). It
    computes what ``zero`` does, with smaller tensors; names and origins stay.

    Raises ``NervureError`` for groups and units that are not there, and where a group would be left with none."""
    dependencies = Dependencies(graph)
    return _Rebuild(dependencies, *_lost(dependencies, removed)).graph()


def zero(graph: Graph, removed: Mapping[str, Sequence[int]]) -> Graph:
    """The graph with the same shapes in which the constants' slices of some units are 0."""
    dependencies = Dependencies(graph)
    lost, blocks = _lost(dependencies, removed)
    silent = {key for block in blocks for key in block.constants}
    made = graph.copy()
    for key in dependencies.order:
        node = graph.node(key)
        if node.op == "const" and node.types[0].dtype != "bool" and not divides(graph, key):
            array = np.zeros_like(node.array) if key in silent else np.array(node.array)
            for axis in range(array.ndim):
                places = lost.get(dependencies.tensor_axis(Value(key), axis))
                if places is not None:
                    array[(slice(None),) * axis + (places,)] = 0
            array.flags.writeable = False
            made.set_node(key, attrs={"value": array})
    return made


def _lost(
    dependencies: Dependencies, removed: Mapping[str, Sequence[int]]
) -> tuple[dict[int, np.ndarray], list[Block]]:
    """The positions that each bundle loses, and the branches that go."""
    groups = {found.name: found for found in find_groups(dependencies)}
    classes: list[Class] = []
    blocks: list[Block] = []
    for name, units in removed.items():
        if name not in groups:
            raise NervureError(f"there is no group {name!r}", hint=f"there are {', '.join(groups) or 'none'}")
        count, chosen = groups[name].count, sorted(set(map(int, units)))
        if chosen and not 0 <= chosen[0] <= chosen[-1] < count:
            raise NervureError(f"group {name!r} has units 0 to {count - 1}, not {chosen[-1]}")
        if len(chosen) == count:
            raise NervureError(f"all {count} units of {name!r} would go", hint="leave at least one")
        found = groups[name]
        classes += [found.classes[u] for u in chosen if found.classes]
        blocks += [found.blocks[u] for u in chosen if found.blocks]
    places: dict[int, list[np.ndarray]] = {}
    for lost in classes:
        for bundle, at in lost.places:
            places.setdefault(bundle, []).append(at)
    return {bundle: np.unique(np.concatenate(at)) for bundle, at in places.items()}, blocks


class _Rebuild:
    """The graph anew, node by node: constants cut, attributes by the operators' rules, types inferred."""

    def __init__(self, dependencies: Dependencies, lost: Mapping[int, np.ndarray], blocks: Sequence[Block]) -> None:
        self._dependencies, self._lost = dependencies, lost
        self._left = {block.node: block.kept for block in blocks}  # what is left of an addition
        self._old, self._new = dependencies.graph, Graph(dependencies.graph.name)
        self._map: dict[Value, Value] = {}

    def graph(self) -> Graph:
        old, new = self._old, self._new
        new.meta = dict(old.meta)
        for key in old.inputs:
            node = old.node(key)
            self._map[Value(key)] = new.input(node.names[0], node.types[0], node.origin)
        for key in self._dependencies.order:
            if old.node(key).op in STORED:
                self._stored(key)
            else:
                self._operation(key)
        for value, name in zip(old.outputs, old.output_names, strict=True):
            new.output(self._map[value], name)
        for key, value in old.bindings.items():
            new.bind(self._map[Value(key)], self._map[value])
        new.prune()
        return new

    def _stored(self, key: int) -> None:
        node = self._old.node(key)
        if node.op == "input":
            return
        array = node.array
        for axis in range(array.ndim):
            kept = self._kept(self._dependencies.tensor_axis(Value(key), axis), array.shape[axis])
            if len(kept) < array.shape[axis]:
                array = np.take(array, kept, axis)
        self._map[Value(key)] = getattr(self._new, node.op)(array, node.names[0], node.origin)

    def _operation(self, key: int) -> None:
        node = self._old.node(key)
        args = [None if a is None else self._map[a] for a in self._old.args(key)]
        left = args[self._left[key]] if key in self._left else None
        if left is not None:
            self._map[Value(key)] = left
            return
        change = self._change(key)
        for index, array in change.values.items():
            before = self._old.args(key)[index]
            assert before is not None
            args[index] = self._new.const(array, self._old.tensor_name(before), self._old.node(before).origin)
        made = self._new.add(node.op, *args, names=node.names, origin=node.origin, **{**node.attrs, **change.attrs})
        self._map.update(zip(self._old.values(key), self._new.values(made.node), strict=True))

    def _change(self, key: int) -> Change:
        rule = rule_of(self._old.node(key).op)
        if rule is None or rule.shrink is None or not self._touched(key):
            return Change()
        return rule.shrink(call_of(self._old, key), self._old.node(key).types, self._kept_of(key))

    def _touched(self, key: int) -> bool:
        values = [a for a in self._old.args(key) if a is not None] + self._old.values(key)
        return any(
            self._dependencies.tensor_axis(value, axis) in self._lost
            for value in values
            for axis in range(self._old.type(value).rank)
        )

    def _kept_of(self, key: int) -> Kept:
        args = self._old.args(key)

        def kept(axis: Axis) -> np.ndarray:
            if axis.side == "own":
                return self._kept(self._dependencies.own_axis(key, axis.tensor), axis.axis)
            value = args[axis.tensor] if axis.side == "in" else Value(key, axis.tensor)
            assert value is not None
            bundle, size = self._dependencies.tensor_axis(value, axis.axis), self._old.type(value).shape[axis.axis]
            return self._kept(bundle, size if isinstance(size, int) else 0)

        return kept

    def _kept(self, bundle: int | None, size: int) -> np.ndarray:
        lost = self._lost.get(bundle) if bundle is not None else None
        return np.arange(size) if lost is None else np.delete(np.arange(size), lost)
