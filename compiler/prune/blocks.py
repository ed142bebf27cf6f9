"""Residual branches that can go as a whole: ``y = x + f(x)`` becomes ``y = x``."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np

from ..interpret import evaluate
from ..ir import STORED, Graph, Node, Value
from ..ops import OPS
from ..ops.record import Kind
from .rules import is_layer

_SINK = -1
_MOVES = (Kind.VIEW, Kind.INJECTIVE)


@dataclass(frozen=True)
class Block:
    """A branch that ends in the addition ``node``, of which operand ``kept`` is what is left. ``constants`` (nodes): as
    zeros they make the branch zero. ``inside``: the nodes that only the branch needs."""

    node: int
    kept: int
    constants: tuple[int, ...]
    inside: frozenset[int]


def find_blocks(graph: Graph, order: list[int]) -> list[Block]:
    """The branches of a graph, in topological order. Of two that meet, a shortcut with a layer in it is the one with
    fewer layers; branches without layers do not count."""
    inside = _Exclusive(graph)
    found = []
    for key in order:
        if graph.node(key).op == "add":
            blocks = [b for branch in (0, 1) if (b := _block(graph, key, branch, inside)) is not None]
            if blocks:
                found.append(max(blocks, key=lambda b: (_layers(graph, b.inside), b.kept == 0)))
    return found


def _layers(graph: Graph, nodes: frozenset[int]) -> int:
    return sum(is_layer(graph, n) for n in nodes)


class _Exclusive:
    """Which nodes are needed only for one tensor: those that it post-dominates."""

    def __init__(self, graph: Graph) -> None:
        backwards: nx.DiGraph[int] = nx.DiGraph((user, made) for made, user, _ in graph.nx.edges(keys=True))
        backwards.add_nodes_from(graph.nx)
        ends = {v.node for v in (*graph.outputs, *graph.bindings.values())} | set(graph.bindings)
        backwards.add_edges_from((_SINK, end) for end in sorted(ends))
        self._children: dict[int, list[int]] = {}
        for node, parent in sorted(nx.immediate_dominators(backwards, _SINK).items()):
            if node != _SINK and parent is not None:
                self._children.setdefault(parent, []).append(node)

    def of(self, node: int) -> frozenset[int]:
        """The node and all that only it needs."""
        found, stack = {node}, [node]
        while stack:
            below = self._children.get(stack.pop(), ())
            found.update(below)
            stack.extend(below)
        return frozenset(found)


def _block(graph: Graph, key: int, branch: int, exclusive: _Exclusive) -> Block | None:
    ends = graph.args(key)
    last, kept = ends[branch], ends[1 - branch]
    if last is None or kept is None or last.node == kept.node or graph.uses(last) > 1:
        return None
    if graph.type(kept) != graph.node(key).types[0] or graph.constant(kept) is not None:
        return None
    if len(graph.values(last.node)) > 1 or graph.node(last).op in STORED:
        return None
    inside = exclusive.of(last.node)
    if not _layers(graph, inside) or not _parallel(graph, inside, kept, exclusive):
        return None
    constants = _silencers(graph, last, inside)
    return None if constants is None else Block(key, 1 - branch, tuple(sorted(set(constants))), inside)


def _parallel(graph: Graph, inside: frozenset[int], kept: Value, exclusive: _Exclusive) -> bool:
    """Whether branch and shortcut start at the same tensors: what the branch reads is what is kept, or what a shortcut
    with operations of its own reads."""
    read = _reads(graph, inside)
    if kept.node in {v.node for v in read}:
        return True
    shortcut = exclusive.of(kept.node)
    return bool(read & _reads(graph, shortcut)) and len(_reads(graph, shortcut)) == 1


def _reads(graph: Graph, nodes: frozenset[int]) -> set[Value]:
    """The tensors from outside that nodes read, constants aside."""
    args = (a for n in nodes for a in graph.args(n))
    return {a for a in args if a is not None and a.node not in nodes and graph.constant(a) is None}


def _silencers(graph: Graph, value: Value, inside: frozenset[int]) -> list[int] | None:
    """Constants (nodes) that as zeros make a tensor zero; None where there are no such, or others need them."""
    node, key = graph.node(value), value.node
    args = [a for a in graph.args(key) if a is not None]
    if node.op == "const":
        return [key] if key in inside and node.array.ndim and node.array.dtype.kind == "f" else None
    if key not in inside or node.op in STORED:
        return None
    if node.op in ("conv", "conv_transpose"):
        return _all(graph, args[1:], inside)
    if node.op == "matmul":
        return next((f for a in args if graph.constant(a) is not None and (f := _all(graph, [a], inside))), None)
    if node.op == "batch_norm":
        return _all(graph, args[1:3], inside)
    if node.op in ("add", "sub", "concat"):
        return _all(graph, args, inside)
    if node.op == "mul":
        return next((f for a in args if (f := _silencers(graph, a, inside)) is not None), None)
    if len(args) >= 1 and _keeps_zero(graph, key, node):
        return _silencers(graph, args[0], inside)
    return None


def _all(graph: Graph, values: list[Value], inside: frozenset[int]) -> list[int] | None:
    found: list[int] = []
    for value in values:
        constants = _silencers(graph, value, inside)
        if constants is None:
            return None
        found += constants
    return found


def _keeps_zero(graph: Graph, key: int, node: Node) -> bool:
    """Whether a node of one tensor makes zeros of zeros."""
    kind = OPS[node.op].kind
    if kind in _MOVES and node.op not in ("one_hot", "resize"):
        return not (node.op == "pad" and node.attrs["value"])
    if kind is not Kind.ELEMENTWISE or len(graph.args(key)) != 1:
        return node.op in ("max_pool", "avg_pool")
    probe = Node(node.op, node.attrs, (node.types[0].with_shape((1,)),), node.names, node.origin)
    argument = graph.args(key)[0]
    assert argument is not None
    return not evaluate(probe, [np.zeros(1, graph.type(argument).dtype)])[0].any()
