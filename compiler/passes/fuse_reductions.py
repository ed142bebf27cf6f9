"""Fusion of reductions in training graphs, where many of them read the same tensors.

1. Siblings. Reductions over the same axes of tensors of one shape, none of which needs another, that read a common
   tensor become one node: memory is read once (sum dy and sum dy xhat; sum x and sum x^2).
2. Rows. Where the reduced axes are the last ones and a row fits into a near cache, what follows on the same row joins,
   further reductions included: the backward passes of softmax and of the norms are one node each.
3. Elementwise work before a reduction that something else needs too is computed again rather than stored, where it is
   cheap and all that it reads lies in memory anyway.

A group may have several ways out. So that no group waits for itself, it must be convex in the graph in which the groups
found before are single nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..ir import Graph, Value
from ..ops.elementwise import EXPONENTIAL
from ..ops.reductions import FOLDS
from ..ops.selection import POSITIONAL
from ..ops.shapes import normalise_axes
from ..types import is_float
from .groups import MOST_MEMBERS, MOST_OPERANDS, elementwise, operand_count, wrap

_APART = (*POSITIONAL, "cast")
_ROW_BYTES = 16384  # of one operand's row: several of them stay in the first two caches
_MOST_FOLDS = 6  # accumulators of each want registers
_MOST_RESULTS = 8
_CHAIN = 8  # operations that are computed again at most


@dataclass(frozen=True)
class _Key:
    """What reductions of one group have in common."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str

    @property
    def row(self) -> int:
        return math.prod(self.shape[a] for a in self.axes)

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of a result with its reduced axes as ones."""
        return tuple(1 if a in self.axes else d for a, d in enumerate(self.shape))

    @property
    def as_rows(self) -> bool:
        last = self.axes == tuple(range(len(self.shape) - len(self.axes), len(self.shape)))
        itemsize = 8 if self.dtype == "float64" else 4
        return last and len(self.axes) < len(self.shape) and self.row > 1 and self.row * itemsize <= _ROW_BYTES


def fuse_reductions(graph: Graph, taken: Iterable[int]) -> None:
    """Wraps groups of reductions of a training graph, which the caller owns; nodes in ``taken`` are left alone."""
    fusion = _Fusion(graph, set(taken))
    rows = [r for r in fusion.reductions if fusion.keys[r].as_rows]
    columns = [r for r in fusion.reductions if not fusion.keys[r].as_rows]
    for leader in (*columns, *rows):  # columns first: what they compute again, rows need not store
        if leader in fusion.free:
            fusion.form(leader)
    place = {key: i for i, key in enumerate(graph.order())}
    for members in fusion.groups:
        wrap(graph, sorted(members, key=place.__getitem__))


@dataclass
class _Group:
    key: _Key
    keeps: bool  # keepdims
    members: set[int]
    folds: list[int]
    again: dict[int, int] = field(default_factory=dict)  # node -> its twin in the group


class _Fusion:
    def __init__(self, graph: Graph, taken: set[int]) -> None:
        self.graph = graph
        order = graph.order()
        self.place = {key: i for i, key in enumerate(order)}
        self.free = {
            k
            for k in order
            if k not in taken and (_fold(graph, k) or (elementwise(graph, k) and graph.node(k).op not in _APART))
        }
        self.reductions = [k for k in order if k in self.free and _fold(graph, k)]
        self.keys = {k: _key(graph, k) for k in self.reductions}
        self.ends = {v.node for v in (*graph.outputs, *graph.bindings.values())}
        self.groups: list[set[int]] = []
        self.home = {k: k for k in order}  # node -> the node that stands for its group
        self._reach()

    # -- convexity -------------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        """Ancestors and descendants of every node as bit sets."""
        flow = self.graph.nx
        self.above: dict[int, int] = {}
        self.below: dict[int, int] = {}
        for key in self.place:
            self.above[key] = 0
            for before in flow.predecessors(key):
                self.above[key] |= self.above[before] | 1 << before
        for key in reversed(self.place):
            self.below[key] = 0
            for after in flow.successors(key):
                self.below[key] |= self.below[after] | 1 << after
        self.gone = 0  # nodes that another one stands for

    def _contract(self, members: Iterable[int]) -> None:
        """Lets one node stand for a group: what was above any of its members is now above all that is below any."""
        found = sorted(k for k in members if k in self.above)
        head, own, above, below = found[0], 0, 0, 0
        for key in found:
            own, above, below = own | 1 << key, above | self.above[key], below | self.below[key]
        above, below = above & ~own, below & ~own
        for key in self.above:
            if below >> key & 1:
                self.above[key] |= above | 1 << head
            if above >> key & 1:
                self.below[key] |= below | 1 << head
        self.above[head], self.below[head] = above, below
        self.gone |= own & ~(1 << head)
        for key in members:
            self.home[key] = head

    def _convex(self, members: Iterable[int]) -> bool:
        homes = {self.home[k] for k in members if k in self.home}  # a twin adds no way that its original has not
        above = below = own = 0
        for k in homes:
            above, below, own = above | self.above[k], below | self.below[k], own | 1 << k
        return not above & below & ~own & ~self.gone

    # -- groups ----------------------------------------------------------------------------------------------------

    def form(self, leader: int) -> None:
        """The group of a reduction that is in none yet."""
        group = _Group(self.keys[leader], bool(self.graph.node(leader).attrs["keepdims"]), {leader}, [leader])
        reads = self._reads(leader)
        for other in self.reductions:
            if other in group.members or other not in self.free or not self._sibling(group, other):
                continue
            more = self._reads(other)
            shared = len(reads & more)
            if shared and shared >= len(more - reads) and self._fits(group, other):
                group.members.add(other)
                group.folds.append(other)
                reads |= more
        self._take_before(group)
        while self._grow(group):
            pass
        self._keep(group)

    def _sibling(self, group: _Group, other: int) -> bool:
        if self.keys[other] != group.key or bool(self.graph.node(other).attrs["keepdims"]) != group.keeps:
            return False
        if len(group.folds) >= _MOST_FOLDS:
            return False
        related = self.above[self.home[other]] | self.below[self.home[other]]
        return not any(related >> self.home[f] & 1 for f in group.folds)

    def _fits(self, group: _Group, key: int) -> bool:
        joined = {*group.members, key}
        if len(joined) > MOST_MEMBERS or operand_count(self.graph, sorted(joined)) > MOST_OPERANDS:
            return False
        leave = sum(k in self.ends or not set(self.graph.nx.successors(k)) <= joined for k in joined)
        return leave <= _MOST_RESULTS and self._convex(joined)

    def _reads(self, fold: int) -> set[Value]:
        """The tensors of full shape that a reduction reads when what is before it is computed inside."""
        kind, found = self.keys[fold], set()
        size = math.prod(kind.shape)
        stack, seen = self._args(fold)[:1], set()
        while stack:
            value = stack.pop()
            if value in seen or self.graph.type(value).size != size:
                continue
            seen.add(value)
            inside = self._full(kind, value.node) and not self._stored(value.node)
            if inside and (self.graph.nx.out_degree(value.node) == 1 or self._cheap(kind, value.node)):
                stack += self._args(value.node)
            else:
                found.add(value)
        return found

    def _args(self, key: int) -> list[Value]:
        return [a for a in self.graph.args(key) if a is not None]

    def _full(self, key: _Key, node: int) -> bool:
        """Whether a node is elementwise work of full shape that is still to be had."""
        if node not in self.free or node in self.keys:
            return False
        type_ = self.graph.node(node).types[0]
        return type_.shape == key.shape and type_.dtype in (key.dtype, "bool")

    # -- what comes before -------------------------------------------------------------------------------------------

    def _take_before(self, group: _Group) -> None:
        """Takes elementwise work that members read: as it is where nothing else needs it, else as a twin, where that is
        cheap. Latest first, so that all readers of a node are known when its turn comes."""
        tried: set[int] = set()
        while True:
            near = {a.node for k in group.members for a in self._args(k)} - group.members - tried
            near = {k for k in near if self._full(group.key, k)}
            if not near:
                return
            key = max(near, key=self._rank)
            tried.add(key)
            if operand_count(self.graph, sorted({*group.members, key})) > MOST_OPERANDS:
                continue
            if len(group.members) >= MOST_MEMBERS:
                return
            if key not in self.ends and set(self.graph.nx.successors(key)) <= group.members:
                group.members.add(key)
            elif self._cheap(group.key, key):
                self._twin(group, key)

    def _rank(self, key: int) -> int:
        return self.place.get(key, len(self.place) + key)

    def _cheap(self, kind: _Key, key: int) -> bool:
        """Whether an operation may be computed again rather than stored: a few operations on what lies in memory, and
        nothing that needs its result stored anyway."""
        chain: set[int] = set()
        stack = [key]
        while stack:
            at = stack.pop()
            if at in chain or (at != key and self._stored(at)):
                continue
            if self.graph.node(at).op in EXPONENTIAL or len(chain) >= _CHAIN or self._stored(at):
                return False
            chain.add(at)
            stack += [a.node for a in self._args(at) if self._full(kind, a.node)]
        return True

    def _stored(self, key: int) -> bool:
        """Whether something needs an operation's result in memory: it leaves the graph, or goes into another kernel."""
        return key in self.ends or any(user not in self.free for user in self.graph.nx.successors(key))

    def _twin(self, group: _Group, key: int) -> None:
        """A copy of an operation for the members that read it."""
        graph = self.graph
        node = graph.node(key)
        twin = graph.insert(replace(node, names=(graph.unique(f"{node.names[0]}.again"),)), graph.args(key))
        self.place[twin] = self.place[key]
        group.again[key] = twin
        group.members.add(twin)
        self.free.add(twin)
        self._rewire(group, sorted(group.members))

    def _rewire(self, group: _Group, members: Iterable[int]) -> None:
        """Lets members read the group's own twins; what nothing reads any more goes."""
        for user in members:
            for arg, value in enumerate(self.graph.args(user) if user in group.members else ()):
                if value is not None and value.node in group.again:
                    self.graph.set_arg(user, arg, Value(group.again[value.node]))
                    self._drop(group, value.node)

    def _drop(self, group: _Group, key: int) -> None:
        if key not in self.free or key in self.ends or self.graph.nx.out_degree(key):
            return
        feeders = [a.node for a in self._args(key)]
        self.graph.remove(key)
        self.free.discard(key)
        group.members.discard(key)
        group.again = {old: twin for old, twin in group.again.items() if twin != key}
        self.home.pop(key, None)
        for feeder in feeders:
            if feeder in self.free and feeder not in self.keys:
                self._drop(group, feeder)

    # -- what comes after ----------------------------------------------------------------------------------------------

    def _grow(self, group: _Group) -> bool:
        """Takes in elementwise work on the results and, in rows, all work on the same row; whether there was some."""
        grown = False
        for key in sorted(group.members, key=self._rank):
            if key not in group.members:
                continue
            users = sorted(set(self.graph.nx.successors(key)) - group.members, key=self._rank)
            feeders = sorted({a.node for a in self._args(key)} - group.members, key=self._rank)
            for near in (*users, *feeders):
                if near in group.members or near not in self.free or not self._joins(group, near, near in users):
                    continue
                if not self._fits(group, near):
                    continue
                group.members.add(near)
                self._rewire(group, [near])
                if near in self.keys:
                    group.folds.append(near)
                if near in self.keys or self._full(group.key, near):
                    self._take_before(group)
                grown = True
        return grown

    def _joins(self, group: _Group, key: int, follows: bool) -> bool:
        graph, node = self.graph, self.graph.node(key)
        in_rows = group.key.as_rows and group.keeps
        alone = key not in self.ends and set(graph.nx.successors(key)) <= group.members
        if key in self.keys:
            return (follows or alone) and in_rows and self.keys[key] == group.key and self._further(group, key)
        if node.types[0].dtype not in (group.key.dtype, "bool"):
            return False
        if in_rows and self._full(group.key, key):
            return follows or alone
        return node.types[0].shape == graph.node(group.folds[0]).types[0].shape and (follows or alone)

    def _further(self, group: _Group, key: int) -> bool:
        return len(group.folds) < _MOST_FOLDS and bool(self.graph.node(key).attrs["keepdims"])

    def _keep(self, group: _Group) -> None:
        self.groups.append(group.members)
        self.free -= group.members
        self._contract(group.members)


def _fold(graph: Graph, key: int) -> bool:
    node = graph.node(key)
    return node.op in FOLDS and is_float(node.types[0].dtype) and len(node.attrs["axes"]) > 0


def _key(graph: Graph, key: int) -> _Key:
    source = graph.args(key)[0]
    assert source is not None
    type_ = graph.type(source)
    return _Key(type_.dims, tuple(sorted(normalise_axes(graph.node(key).attrs["axes"], type_.rank))), type_.dtype)
