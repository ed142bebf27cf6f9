"""The IR's rules, as an executable list: what ``Graph.check()`` holds a graph against."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from .ir import STORED, Graph, Value
from .ops import OPS, OpError, infer
from .types import type_of


def problems(graph: Graph) -> list[str]:
    """Every breach, one line each, naming the node and its origin."""
    if not nx.is_directed_acyclic_graph(graph.nx):
        cycle = [edge[0] for edge in nx.find_cycle(graph.nx)]
        return [f"cycle through {', '.join(_label(graph, n) for n in cycle)}"]
    found = [line for node in graph.order() for line in _node(graph, node)]
    return found + list(_signature(graph))


def _label(graph: Graph, key: int) -> str:
    node = graph.node(key)
    return f"{node.op} %{node.names[0] if node.names else key}"


def _node(graph: Graph, key: int) -> Iterator[str]:
    node, label = graph.node(key), _label(graph, key)
    if not node.origin:
        yield f"{label}: no origin"
    if len(node.names) != len(node.types):
        yield f"{label}: {len(node.names)} names for {len(node.types)} outputs"
    args = graph.args(key)
    slots = [data["arg"] for _, _, data in graph.nx.in_edges(key, data=True)]
    if len(slots) != len(set(slots)):
        yield f"{label}: two edges into one input"
    for arg in args:
        if arg is not None and arg.index >= len(graph.node(arg).types):
            yield f"{label}: uses output {arg.index} of {_label(graph, arg.node)}, which has none"
            return
    if node.op in STORED:
        if args:
            yield f"{label}: a stored tensor has inputs"
        if node.op != "input":
            if "value" not in node.attrs:
                yield f"{label}: no initial value"
            elif type_of(node.array) != node.types[0]:
                yield f"{label}: declared {node.types[0]}, holds {type_of(node.array)}"
            elif node.array.flags.writeable:
                yield f"{label}: its array can be written to"
        return
    if node.op not in OPS:
        yield f"{label}: no such operator"
        return
    try:
        types, _ = infer(
            node.op, [None if a is None else graph.type(a) for a in args], node.attrs, [graph.constant(a) for a in args]
        )
    except OpError as error:
        yield f"{label}: {error}"
        return
    if tuple(types) != node.types:
        yield f"{label}: declared {', '.join(map(str, node.types))}, inferred {', '.join(map(str, types))}"


def _signature(graph: Graph) -> Iterator[str]:
    names: dict[str, int] = {}
    for key in graph.order():
        for name in graph.node(key).names:
            if names.setdefault(name, key) != key:
                yield f"two tensors are named {name!r}"
    if sorted(graph.inputs) != sorted(n for n in graph.nx if graph.node(n).op == "input"):
        yield "the inputs of the signature are not the graph's input nodes"
    if len(graph.outputs) != len(graph.output_names):
        yield f"{len(graph.outputs)} outputs, {len(graph.output_names)} names for them"
    for value in [*graph.outputs, *graph.bindings.values()]:
        if not _exists(graph, value):
            yield f"an output or binding refers to {value}, which is not in the graph"
    for stored, value in graph.bindings.items():
        if stored not in graph.nx or graph.node(stored).op not in ("param", "state"):
            yield f"a binding of node {stored}, which is no param or state"
        elif _exists(graph, value) and graph.type(value) != graph.node(stored).types[0]:
            yield f"{_label(graph, stored)} is bound to a tensor of {graph.type(value)}"


def _exists(graph: Graph, value: Value) -> bool:
    return value.node in graph.nx and value.index < len(graph.node(value).types)
