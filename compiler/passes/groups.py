"""Groups of operations that become one kernel: what all kinds of fusion share."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir import Graph, Value, join_origins
from ..ops import OPS, Kind

MOST_OPERANDS = 12  # inputs that one kernel may have: each is a pointer that wants a register
MOST_MEMBERS = 48  # operations that one kernel may hold: compile time and recursion in TVM grow with the depth


def elementwise(graph: Graph, key: int) -> bool:
    node = graph.node(key)
    return OPS[node.op].kind is Kind.ELEMENTWISE and len(node.types) == 1


def outside(graph: Graph, members: Iterable[int]) -> list[Value]:
    inside = set(members)
    return list(dict.fromkeys(a for k in members for a in graph.args(k) if a is not None and a.node not in inside))


def operand_count(graph: Graph, members: list[int]) -> int:
    return sum(1 for v in outside(graph, members) if not immediate(graph, v))


def immediate(graph: Graph, value: Value) -> bool:
    """A scalar constant travels inside the kernel."""
    node = graph.node(value)
    return node.op == "const" and node.types[0].size == 1


def wrap(graph: Graph, members: list[int]) -> None:
    """Replaces a group by one ``fused`` node."""
    inside = set(members)
    last = members[-1]
    inlined = {
        a for k in members if elementwise(graph, k) for a in graph.args(k) if a is not None and immediate(graph, a)
    }
    kept = {a for k in members if not elementwise(graph, k) for a in graph.args(k) if a is not None}
    body = Graph(graph.node(last).names[0])
    inner: dict[Value, Value] = {}
    operands: list[Value] = []
    for value in outside(graph, members):
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
    """What members' results are read outside of the group (results, next values, and what others read)."""
    bound = {*graph.bindings.values(), *graph.outputs}
    values = [v for k in members for v in graph.values(k)]
    return [v for v in values if v in bound or any(user not in inside for user, _ in graph.users(v))]
