"""Fusion: every operation that is not a mere view becomes a ``fused`` node, one kernel's worth of work.

1. Epilogues. From each anchor (contraction, reduction, normalisation, ...), last one first, the elementwise work that
   only its result feeds is taken in: up to the post-dominator of the result, as long as everything on the way is
   elementwise and has the result's shape.
2. Prologues. Reductions, softmax and norms take in the elementwise work that only feeds their first input.
3. What elementwise work is left is grouped the same way.

A group has one way out, so that no group can wait for itself; what becomes the next value of a param or state leaves
the graph, and may leave a group beside it (an optimizer's update in the epilogue of its gradient). Reshape, transpose, slice, expand and concat stay: the
layout decides whether they cost anything.
"""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx

from ..ir import STORED, Graph, Value, join_origins
from ..ops import OPS, Kind
from ..types import is_float

VIEWS = ("reshape", "transpose", "slice", "expand")
LEFT_ALONE = (*VIEWS, "concat", "fused")
PROLOGUE = (
    "reduce_sum",
    "reduce_mean",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "softmax",
    "log_softmax",
    "layer_norm",
    "rms_norm",
)
_OPERANDS = 12  # inputs that one kernel may have: each is a pointer that wants a register
_MEMBERS = 48  # operations that one kernel may hold: compile time and recursion in TVM grow with the depth
_SINK = -1


def fuse(graph: Graph) -> Graph:
    """The graph with every kernel as one ``fused`` node; stored tensors and views stay as they are."""
    work = graph.copy()
    groups = _groups(work)
    for members in groups:
        _wrap(work, members)
    work.prune()
    return work


def _elementwise(graph: Graph, key: int) -> bool:
    node = graph.node(key)
    return OPS[node.op].kind is Kind.ELEMENTWISE and len(node.types) == 1


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
        if len(graph.node(anchor).types) == 1:
            _grow(graph, anchor, groups[anchor], owner, ipdom, place)
    for anchor in anchors:
        if graph.node(anchor).op in PROLOGUE:
            _take_prologue(graph, anchor, groups[anchor], owner)
    for key in order:
        if key not in owner and _elementwise(graph, key):
            groups[key] = [key]
            owner[key] = key
            _grow(graph, key, groups[key], owner, ipdom, place)
    bound = {v.node for v in graph.bindings.values()}
    for leader in sorted(groups, key=place.__getitem__):
        if leader in groups and bound & set(groups[leader]):
            _take_feeders(graph, groups, leader, owner)
    return [sorted(groups[k], key=place.__getitem__) for k in sorted(groups, key=place.__getitem__)]


def _is_anchor(graph: Graph, key: int) -> bool:
    node = graph.node(key)
    return node.op not in STORED and node.op not in LEFT_ALONE and not _elementwise(graph, key)


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
        if len(joined) > _MEMBERS or _operand_count(graph, joined) > _OPERANDS:
            return
        for key in (*between, end):
            owner[key] = leader
            members.append(key)
        result = end


def _take_updates(graph: Graph, result: int, members: list[int], owner: dict[int, int], place: dict[int, int]) -> None:
    """Takes in all that the group's result leads to, where that only ends in next values of params and states."""
    shape = graph.node(result).types[0].shape
    found = sorted(nx.descendants(graph.nx, result), key=place.__getitem__)
    if not found or any(not _may_join(graph, k, shape, owner) for k in found):
        return
    joined = [*members, *found]
    if len(joined) > _MEMBERS or _operand_count(graph, joined) > _OPERANDS:
        return
    for key in found:
        owner[key] = members[0]
        members.append(key)


def _take_feeders(graph: Graph, groups: dict[int, list[int]], leader: int, owner: dict[int, int]) -> None:
    """Takes elementwise groups into an update that alone reads them (decayed moments, weight decay)."""
    members = groups[leader]
    shape = graph.node(members[-1]).types[0].shape
    queue = list(members)
    while queue:
        for arg in graph.args(queue.pop(0)):
            other = None if arg is None else owner.get(arg.node)
            if other is None or other == leader or any(not _elementwise(graph, k) for k in groups[other]):
                continue
            joined = [*groups[other], *members]
            inside = set(joined)
            last = groups[other][-1]
            alone = set(graph.nx.successors(last)) <= inside and Value(last) not in graph.outputs
            if not alone or graph.node(last).types[0].shape != shape or len(joined) > _MEMBERS:
                continue
            if _operand_count(graph, joined) > _OPERANDS:
                continue
            taken = groups.pop(other)
            owner.update(dict.fromkeys(taken, leader))
            members[:0] = taken
            queue += taken


def _may_join(graph: Graph, key: int, shape: tuple[int | str, ...], owner: dict[int, int]) -> bool:
    return key not in owner and _elementwise(graph, key) and graph.node(key).types[0].shape == shape


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


def _outside(graph: Graph, members: Iterable[int]) -> list[Value]:
    inside = set(members)
    return list(dict.fromkeys(a for k in members for a in graph.args(k) if a is not None and a.node not in inside))


def _operand_count(graph: Graph, members: list[int]) -> int:
    return sum(1 for v in _outside(graph, members) if not _immediate(graph, v))


def _immediate(graph: Graph, value: Value) -> bool:
    """A scalar constant travels inside the kernel."""
    node = graph.node(value)
    return node.op == "const" and node.types[0].size == 1


def _take_prologue(graph: Graph, anchor: int, members: list[int], owner: dict[int, int]) -> None:
    source = graph.args(anchor)[0]
    assert source is not None
    shape = graph.type(source).shape
    queue = [source.node]
    while queue:
        key = queue.pop(0)
        if key in owner or not _elementwise(graph, key) or graph.node(key).types[0].shape != shape:
            continue
        inside = set(members)
        users = {u for u in graph.nx.successors(key)}
        leaves = Value(key) in graph.outputs or Value(key) in graph.bindings.values()
        if leaves or not users <= inside or len(members) >= _MEMBERS:
            continue
        if _operand_count(graph, [key, *members]) > _OPERANDS:
            continue
        if not is_float(graph.node(key).types[0].dtype) or graph.node(key).op == "cast":
            continue
        owner[key] = anchor
        members.append(key)
        queue += [a.node for a in graph.args(key) if a is not None]


def _wrap(graph: Graph, members: list[int]) -> None:
    """Replaces a group by one ``fused`` node."""
    inside = set(members)
    last = members[-1]
    inlined = {
        a for k in members if _elementwise(graph, k) for a in graph.args(k) if a is not None and _immediate(graph, a)
    }
    kept = {a for k in members if not _elementwise(graph, k) for a in graph.args(k) if a is not None}
    body = Graph(graph.node(last).names[0])
    inner: dict[Value, Value] = {}
    operands: list[Value] = []
    for value in _outside(graph, members):
        node = graph.node(value)
        if value in inlined and value not in kept:
            inner[value] = body.const(node.array, node.names[0], node.origin)
        else:
            inner[value] = body.input(graph.tensor_name(value), graph.type(value), node.origin)
            operands.append(value)
    for key in members:
        node = graph.node(key)
        new = body.insert(node, [None if a is None else inner[a] for a in graph.args(key)])
        for i in range(len(node.types)):
            inner[Value(key, i)] = Value(new, i)
    results = graph.values(last) if len(members) == 1 else [*_exits(graph, members[:-1], inside), Value(last)]
    for value in results:
        body.output(inner[value])
    origin = join_origins(graph.node(k).origin for k in members)
    names = [graph.tensor_name(v) for v in results]
    fused = graph.add("fused", *operands, names=names, origin=origin, body=body)
    for i, value in enumerate(results):
        graph.replace(value, Value(fused.node, i))
    for key in reversed(members):
        if key in inside:
            graph.remove(key)


def _exits(graph: Graph, members: Iterable[int], inside: set[int]) -> list[Value]:
    """What members' results are read outside of the group (next values, and what reads those)."""
    bound = set(graph.bindings.values())
    values = [v for k in members for v in graph.values(k)]
    return [v for v in values if v in bound or any(user not in inside for user, _ in graph.users(v))]


def op_label(body: Graph) -> str:
    """What a fused node does, for reports: ``conv+add+relu``."""
    return "+".join(body.node(k).op for k in body.order() if body.node(k).op not in STORED)
