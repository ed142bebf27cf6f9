"""Which positions of which axes of a graph's tensors can only go together.

Every axis of every tensor is a node; the rules of the operators (``Op.channels``) tie them. Axes that are tied position
by position are one *bundle* (union-find). Ties that renumber (a concat, a flatten, groups of channels) go between
bundles, so the *classes* of positions are the connected components of a graph of positions, found in numpy. A class in
which a position is pinned stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from ..ir import STORED, Graph, Value
from ..ops.axes import Axis, Dot, Mark, Merge, Pin, Relation, Tie, extent
from ..ops.record import Call
from ..types import TensorType
from .quiet import quiet_axes
from .rules import call_of, rule_of

KINDS = ("heads", "units", "groups")  # what an axis is marked as, the strongest first


@dataclass(frozen=True)
class Pinned:
    """A reason, with the tensor at which it was found."""

    axis: int
    why: str
    at: np.ndarray | None
    tensor: str


@dataclass(frozen=True)
class Class:
    """Positions that go together: in each bundle that they touch."""

    places: tuple[tuple[int, np.ndarray], ...]  # bundle, positions

    @property
    def bundles(self) -> tuple[int, ...]:
        return tuple(b for b, _ in self.places)


@dataclass
class _Facts:
    """What the rules said of a graph; axes are numbered."""

    extents: list[int] = field(default_factory=list)  # 0: not known
    ties: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    merges: list[tuple[int, tuple[int, ...], str]] = field(default_factory=list)
    dots: list[tuple[int, int, str]] = field(default_factory=list)
    pins: list[Pinned] = field(default_factory=list)
    whole: list[Pinned] = field(default_factory=list)  # axes of which no rule speaks
    marks: list[tuple[int, str]] = field(default_factory=list)


class Dependencies:
    """The classes of a graph's positions. ``members`` are the axes ``(tensor, axis)`` of each bundle."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = graph.order()
        self._first: dict[Value, int] = {}
        self._own: dict[tuple[int, int], int] = {}
        self._keys: list[tuple[Value, int] | None] = []
        self._facts = _Facts()
        self._bundles: nx.utils.UnionFind[int] = nx.utils.UnionFind()
        for key in self.order:
            self._register(key)
        for key in self.order:
            self._node(key)
        self._ends()
        self._resolve()
        self._number()

    # -- what the rules say --------------------------------------------------------------------------------------------

    def _register(self, key: int) -> None:
        for value in self.graph.values(key):
            type_ = self.graph.type(value)
            self._first[value] = len(self._keys)
            self._keys += [(value, i) for i in range(type_.rank)]
            self._facts.extents += [d if isinstance(d, int) else 0 for d in type_.shape]

    def _node(self, key: int) -> None:
        node = self.graph.node(key)
        if node.op == "const":
            return
        if node.op in STORED:
            why = "it is an input of the model" if node.op == "input" else "it is kept from run to run"
            self._pin_value(Value(key), why)
            return
        call, outs, args = call_of(self.graph, key), node.types, self.graph.args(key)
        rule, spoken = rule_of(node.op), set[int]()
        for relation in rule.relations(call, outs) if rule is not None else ():
            spoken |= self._relate(key, args, call, outs, relation)
        values = [a for a in args if a is not None] + self.graph.values(key)
        why = f"{node.op} works along it" if rule is not None else f"{node.op} has no rule"
        for value in values:
            for axis in range(self.graph.type(value).rank):
                if (number := self._first[value] + axis) not in spoken:
                    self._facts.whole.append(Pinned(number, why, None, node.names[0]))

    def _relate(
        self, key: int, args: Sequence[Value | None], call: Call, outs: Sequence[TensorType], relation: Relation
    ) -> set[int]:
        def number(axis: Axis) -> int:
            if axis.side == "own":
                if (key, axis.tensor) not in self._own:
                    self._own[key, axis.tensor] = len(self._keys)
                    self._keys.append(None)
                    self._facts.extents.append(extent(call, outs, axis) or 0)
                return self._own[key, axis.tensor]
            value = args[axis.tensor] if axis.side == "in" else Value(key, axis.tensor)
            assert value is not None
            return self._first[value] + axis.axis

        facts, name = self._facts, self.graph.node(key).names[0]
        match relation:
            case Tie(a, b, at):
                self._tie(number(a), number(b), at)
                return {number(a), number(b)}
            case Pin(axis, why, at):
                facts.pins.append(Pinned(number(axis), why, at, name))
                return {number(axis)}
            case Merge(whole, parts):
                facts.merges.append((number(whole), tuple(number(p) for p in parts), name))
                return {number(whole), *(number(p) for p in parts)}
            case Dot(a, b):
                facts.dots.append((number(a), number(b), name))
                return {number(a), number(b)}
            case Mark(axis, kind):
                facts.marks.append((number(axis), kind))
        return set()

    def _tie(self, a: int, b: int, at: np.ndarray | None) -> None:
        same = self._facts.extents[a] == self._facts.extents[b]
        if at is None or (same and np.array_equal(at, np.arange(len(at)))):
            self._bundles.union(a, b)
        else:
            self._facts.ties.append((a, b, at))

    def _pin_value(self, value: Value, why: str) -> None:
        name = self.graph.tensor_name(value)
        for axis in range(self.graph.type(value).rank):
            self._facts.pins.append(Pinned(self._first[value] + axis, why, None, name))

    def _ends(self) -> None:
        for value in self.graph.outputs:
            self._pin_value(value, "it is an output of the model")
        for value in self.graph.bindings.values():
            self._pin_value(value, "it is kept from run to run")
        if self._facts.dots:
            quiet = {self._first[value] + axis for value, axis in quiet_axes(self.graph, self.order)}
            for a, b, name in self._facts.dots:
                if a not in quiet and b not in quiet:
                    self._facts.pins.append(Pinned(a, "it is summed over, and what goes is not zero there", None, name))

    # -- what follows --------------------------------------------------------------------------------------------------

    def _resolve(self) -> None:
        """Chooses the part that goes along with each axis that counts through several: heads, else the most."""
        facts, root = self._facts, self._bundles
        stays: dict[int, Pinned] = {}
        for pin in (*facts.pins, *facts.whole):
            if pin.at is None:
                stays.setdefault(root[pin.axis], pin)
        heads = self._heads()
        for whole, parts, name in facts.merges:
            sizes = [facts.extents[p] for p in parts]
            known = facts.extents[whole] > 0 and all(sizes)
            free = [i for i, p in enumerate(parts) if known and sizes[i] > 1 and root[p] not in stays]
            first = next((i for i in free if root[parts[i]] in heads), None)
            chosen = first if first is not None else max(free, key=lambda i: (sizes[i], -i), default=None)
            if chosen is not None:
                at = np.arange(facts.extents[whole]) // math.prod(sizes[chosen + 1 :]) % sizes[chosen]
                facts.ties.append((whole, parts[chosen], at))
                which = "heads" if chosen == first else "others"
                why, tensor = f"it shares an axis with {which}, which go instead", name
            else:
                cause = next(
                    (stays[root[p]] for p, n in zip(parts, sizes, strict=True) if n > 1 and root[p] in stays), None
                )
                why, tensor = (cause.why, cause.tensor) if cause else ("it shares an axis with one of open size", name)
            rest = [p for i, p in enumerate(parts) if i != chosen] + ([whole] if chosen is None else [])
            for axis in rest:
                pin = Pinned(axis, why, None, tensor)
                facts.pins.append(pin)
                stays.setdefault(root[axis], pin)
        self._stays = set(stays)

    def _heads(self) -> set[int]:
        """The bundles that are heads, as far as there are weights for each: also those that heads count through
        (queries that share keys)."""
        marked = self._counted({self._bundles[axis] for axis, kind in self._facts.marks if kind == "heads"})
        constants = [v for v in self._first if self.graph.node(v).op == "const"]
        axes = (self._first[v] + axis for v in constants for axis in range(self.graph.type(v).rank))
        return marked & self._counted({self._bundles[axis] for axis in axes})

    def _counted(self, bundles: set[int]) -> set[int]:
        """Bundles, and those that they count through."""
        root, found = self._bundles, set(bundles)
        while more := {
            root[p] for whole, parts, _ in self._facts.merges if root[whole] in found for p in parts
        }.difference(found):
            found |= more
        return found

    def _number(self) -> None:
        """Numbers the positions of every bundle, and finds their classes. A bundle that stays has one number."""
        facts = self._facts
        self._root = np.array([self._bundles[i] for i in range(len(self._keys))], np.int64)
        sizes = np.zeros(len(self._keys) + 1, np.int64)
        for root in np.unique(self._root).tolist():
            sizes[root + 1] = 1 if root in self._stays else facts.extents[root]
        self._offset = np.cumsum(sizes)
        pairs = [self._pairs(a, b, at) for a, b, at in facts.ties]
        u = np.concatenate([p[0] for p in pairs]) if pairs else np.zeros(0, np.int64)
        v = np.concatenate([p[1] for p in pairs]) if pairs else np.zeros(0, np.int64)
        self._labels = components(int(self._offset[-1]), u, v)
        self._reasons: dict[int, Pinned] = {}
        for pin in (*facts.pins, *facts.whole):
            for label in np.unique(self._labels[self._slots(pin.axis, pin.at)]).tolist():
                self._reasons.setdefault(label, pin)

    def _slots(self, axis: int, at: np.ndarray | None = None) -> np.ndarray:
        root = int(self._root[axis])
        positions = np.arange(self._facts.extents[axis]) if at is None else at
        return self._offset[root] + (positions * 0 if root in self._stays else positions)  # type: ignore[no-any-return]

    def _pairs(self, a: int, b: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tied = at >= 0
        return self._slots(a)[tied], self._slots(b, at[tied])

    # -- answers -------------------------------------------------------------------------------------------------------

    def classes(self) -> Iterator[Class]:
        """The classes that can go, in the order of their first position."""
        slots = np.argsort(self._labels, kind="stable")
        labels = self._labels[slots]
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        roots = np.searchsorted(self._offset, slots, side="right") - 1
        stops = np.append(starts, len(slots))[1:]
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            if int(labels[start]) not in self._reasons:
                of = roots[start:stop]
                places = slots[start:stop] - self._offset[of]
                yield Class(tuple((int(r), places[of == r]) for r in dict.fromkeys(of.tolist())))

    def members(self) -> dict[int, list[tuple[Value, int]]]:
        """The axes of tensors in each bundle, in topological order."""
        found: dict[int, list[tuple[Value, int]]] = {}
        for number, key in enumerate(self._keys):
            if key is not None:
                found.setdefault(int(self._root[number]), []).append(key)
        return found

    def kind(self, found: Class) -> str:
        """``heads``, ``units``, ``groups`` where an axis of the class is one, else ``channels``."""
        marks = {kind for axis, kind in self._facts.marks if int(self._root[axis]) in found.bundles}
        return next((k for k in KINDS if k in marks), "channels")

    def stays(self, value: Value, axis: int) -> Pinned | None:
        """Why (a part of) an axis of a tensor stays; None where all of it can go."""
        number = self._first[value] + axis
        labels = self._labels[self._slots(number)].tolist()
        return next((self._reasons[label] for label in labels if label in self._reasons), None)

    def tensor_axis(self, value: Value, axis: int) -> int:
        """The bundle of an axis."""
        return int(self._root[self._first[value] + axis])

    def own_axis(self, key: int, number: int) -> int | None:
        """The bundle of an operator's own axis."""
        found = self._own.get((key, number))
        return None if found is None else int(self._root[found])


def components(count: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The connected components of ``count`` nodes with edges ``u[i] - v[i]``: the smallest node of each, by hooking and
    pointer jumping (Shiloach and Vishkin 1982)."""
    label = np.arange(count)
    while True:
        low = np.minimum(label[u], label[v])
        before = label.copy()
        np.minimum.at(label, label[u], low)
        np.minimum.at(label, label[v], low)
        while not np.array_equal(jumped := label[label], label):
            label = jumped
        if np.array_equal(label, before):
            return label
