"""Fusion: every operation that is not a mere view becomes a ``fused`` node, one kernel's worth of work.

1. Epilogues. From each anchor (contraction, reduction, normalisation, ...), last one first, the elementwise work that
   only its result feeds is taken in: up to the post-dominator of the result, as long as everything on the way is
   elementwise and has the result's shape.
2. Prologues. Reductions, softmax and norms take in the elementwise work that only feeds their first input.
3. What elementwise work is left is grouped the same way.

A group has one way out, so that no group can wait for itself; what becomes the next value of a param or state leaves
the graph, and may leave a group beside it (an optimizer's update in the epilogue of its gradient). Reductions of
training graphs are grouped before all this (``fuse_reductions``). Reshape, transpose, slice, expand and concat stay:
the layout decides whether they cost anything.
"""

from __future__ import annotations

import networkx as nx

from ..ir import STORED, Graph, Value
from ..ops.reductions import FOLDS
from ..ops.weights import HALVES
from ..types import is_float
from .fuse_reductions import fuse_reductions
from .groups import MOST_MEMBERS, MOST_OPERANDS, elementwise, operand_count, wrap

VIEWS = ("reshape", "transpose", "slice", "expand")
LEFT_ALONE = (*VIEWS, "concat", "fused")
PROLOGUE = (*FOLDS, "softmax", "log_softmax", "layer_norm", "rms_norm")
# What writes its result in no order, or has a kernel that nothing can follow in.
SOLITARY = ("scatter_elements", "scatter_nd", "softmax_integer")
_SINK = -1


def fuse(graph: Graph) -> Graph:
    """The graph with every kernel as one ``fused`` node; stored tensors and views stay as they are."""
    work = graph.copy()
    if work.bindings:
        fuse_reductions(work, {k for g in _groups(work) for k in g if _leads(work, g)})
        work.prune()
    for members in _groups(work):
        wrap(work, members)
    work.prune()
    return work


def _leads(graph: Graph, members: list[int]) -> bool:
    """Whether a group has an anchor that is no plain reduction."""
    return any(_is_anchor(graph, k) and graph.node(k).op not in FOLDS for k in members)


def _groups(graph: Graph) -> list[list[int]]:
    order = graph.order()
    place = {key: i for i, key in enumerate(order)}
    ipdom = _post_dominators(graph)
    owner: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    anchors = [k for k in order if _is_anchor(graph, k)]
    for anchor in reversed(anchors):
        groups[anchor] = [anchor]
        owner[anchor] = anchor
        if len(graph.node(anchor).types) == 1 and graph.node(anchor).op not in SOLITARY:
            _grow(graph, anchor, groups[anchor], owner, ipdom, place)
    for anchor in anchors:
        if graph.node(anchor).op in PROLOGUE:
            _take_prologue(graph, anchor, groups[anchor], owner)
    for key in order:
        if key not in owner and elementwise(graph, key):
            groups[key] = [key]
            owner[key] = key
            _grow(graph, key, groups[key], owner, ipdom, place)
    if graph.bindings:
        for leader in sorted(groups, key=place.__getitem__, reverse=True):
            if leader in groups:
                _take_feeders(graph, groups, leader, owner)
    return [sorted(groups[k], key=place.__getitem__) for k in sorted(groups, key=place.__getitem__)]


def _is_anchor(graph: Graph, key: int) -> bool:
    node = graph.node(key)
    return node.op not in STORED and node.op not in LEFT_ALONE and not elementwise(graph, key)


def _post_dominators(graph: Graph) -> dict[int, int]:
    """The immediate post-dominator of every node: where all that it feeds comes together again."""
    flow = nx.DiGraph(graph.nx.reverse(copy=False))
    flow.add_node(_SINK)
    for value in graph.outputs:
        flow.add_edge(_SINK, value.node)
    for key in graph.nx:
        if graph.nx.out_degree(key) == 0:
            flow.add_edge(_SINK, key)
    return dict(nx.immediate_dominators(flow, _SINK))


def _grow(
    graph: Graph, start: int, members: list[int], owner: dict[int, int], ipdom: dict[int, int], place: dict[int, int]
) -> None:
    """Takes in what lies between the group's result and its post-dominator, again and again."""
    leader, result = members[0], start
    shape = graph.node(start).types[0].shape
    while True:
        end = ipdom.get(result, _SINK)
        if end == _SINK:
            _take_updates(graph, result, members, owner, place)
            return
        if end == result or not _may_join(graph, end, shape, owner):
            return
        between = _between(graph, result, end, place)
        if any(not _may_join(graph, k, shape, owner) for k in between):
            return
        joined = [*members, *between, end]
        if len(joined) > MOST_MEMBERS or operand_count(graph, joined) > MOST_OPERANDS:
            return
        for key in (*between, end):
            owner[key] = leader
            members.append(key)
        result = end


def _take_updates(graph: Graph, result: int, members: list[int], owner: dict[int, int], place: dict[int, int]) -> None:
    """Takes in all that the group's result leads to, where that only ends in next values of params and states."""
    shape = graph.node(result).types[0].shape
    reached: set[int] = set()
    stack = [result]
    while stack:
        for user in graph.nx.successors(stack.pop()):
            if user in reached:
                continue
            if not _may_join(graph, user, shape, owner) or len(reached) >= MOST_MEMBERS:
                return
            reached.add(user)
            stack.append(user)
    found = sorted(reached, key=place.__getitem__)
    joined = [*members, *found]
    if len(joined) > MOST_MEMBERS or operand_count(graph, joined) > MOST_OPERANDS:
        return
    for key in found:
        owner[key] = members[0]
        members.append(key)


def _take_feeders(graph: Graph, groups: dict[int, list[int]], leader: int, owner: dict[int, int]) -> None:
    """Takes elementwise groups into the elementwise work of a group that alone reads them (the branches of a gradient,
    decayed moments, weight decay)."""
    members = groups[leader]
    shape = graph.node(members[-1]).types[0].shape
    queue = list(members)
    while queue:
        key = queue.pop(0)
        for arg in graph.args(key) if elementwise(graph, key) else ():
            other = None if arg is None else owner.get(arg.node)
            if other is None or other == leader or any(not elementwise(graph, k) for k in groups[other]):
                continue
            joined = [*groups[other], *members]
            inside = set(joined)
            last = groups[other][-1]
            users = set(graph.nx.successors(last))
            alone = users <= inside and Value(last) not in graph.outputs
            alone = alone and all(elementwise(graph, k) or graph.node(k).op in PROLOGUE for k in users)
            if not alone or graph.node(last).types[0].shape != shape or len(joined) > MOST_MEMBERS:
                continue
            if operand_count(graph, joined) > MOST_OPERANDS:
                continue
            taken = groups.pop(other)
            owner.update(dict.fromkeys(taken, leader))
            members[:0] = taken
            queue += taken


def _may_join(graph: Graph, key: int, shape: tuple[int | str, ...], owner: dict[int, int]) -> bool:
    return key not in owner and elementwise(graph, key) and graph.node(key).types[0].shape == shape


def _between(graph: Graph, start: int, end: int, place: dict[int, int]) -> list[int]:
    """The nodes on the ways from ``start`` to ``end``, both left out."""
    found: set[int] = set()
    stack = [start]
    while stack:
        for user in graph.nx.successors(stack.pop()):
            if user != end and user not in found and place[user] < place[end]:
                found.add(user)
                stack.append(user)
    return sorted(found, key=place.__getitem__)


def _take_prologue(graph: Graph, anchor: int, members: list[int], owner: dict[int, int]) -> None:
    source = graph.args(anchor)[0]
    assert source is not None
    shape = graph.type(source).shape
    queue = [source.node]
    while queue:
        key = queue.pop(0)
        if key in owner or not elementwise(graph, key) or graph.node(key).types[0].shape != shape:
            continue
        inside = set(members)
        users = {u for u in graph.nx.successors(key)}
        leaves = Value(key) in graph.outputs or Value(key) in graph.bindings.values()
        if leaves or not users <= inside or len(members) >= MOST_MEMBERS:
            continue
        if operand_count(graph, [key, *members]) > MOST_OPERANDS:
            continue
        if not is_float(graph.node(key).types[0].dtype) or not _widens(graph, key):
            continue
        owner[key] = anchor
        members.append(key)
        queue += [a.node for a in graph.args(key) if a is not None]


def _widens(graph: Graph, key: int) -> bool:
    """Whether an operation is no cast, or one from half precision, which kernels read as float32 anyway."""
    source = graph.args(key)[0] if graph.node(key).op == "cast" else None
    return source is None or graph.type(source).dtype in HALVES


def op_label(body: Graph) -> str:
    """What a fused node does, for reports: ``conv+add+relu``."""
    return "+".join(body.node(k).op for k in body.order() if body.node(k).op not in STORED)
