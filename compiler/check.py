"""The IR's rules, as an executable list: what ``Graph.check()`` holds a graph against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import networkx as nx
import numpy as np

from ..errors import printable
from .ir import STORED, Graph, Node, Value
from .ops import OPS, OpError, infer


def problems(graph: Graph) -> list[str]:
    """Every breach, one line each, naming the node and its origin; bodies of nodes are looked into."""
    if not nx.is_directed_acyclic_graph(graph.nx):
        cycle = [edge[0] for edge in nx.find_cycle(graph.nx)]
        return [f"cycle through {', '.join(_label(graph, n) for n in cycle)}"]
    found = [line for node in graph.order() for line in _node(graph, node)]
    return found + list(_names(graph)) + list(_signature(graph))


def _label(graph: Graph, key: int) -> str:
    node = graph.node(key)
    place = f" ({node.origin[0]})" if node.origin else ""
    return printable(f"{node.op} %{node.names[0] if node.names else key}{place}")


def _node(graph: Graph, key: int) -> Iterator[str]:
    node, label = graph.node(key), _label(graph, key)
    if not node.origin:
        yield f"{label}: no origin"
    if len(node.names) != len(node.types):
        yield f"{label}: {len(node.names)} names for {len(node.types)} outputs"
    slots = [data["arg"] for _, _, data in graph.nx.in_edges(key, data=True)]
    if len(slots) != len(set(slots)):
        yield f"{label}: two edges into one input"
    broken = [arg for arg in graph.args(key) if arg is not None and not _exists(graph, arg)]
    if broken:
        yield from (
            f"{label}: uses output {b.index} of {_label(graph, b.node)}, which it does not have" for b in broken
        )
    elif node.op in STORED:
        yield from (f"{label}: {line}" for line in _stored(node, bool(slots)))
    else:
        yield from (f"{label}: {line}" for line in _operation(graph, key, node))
    for body in node.attrs.values():
        if isinstance(body, Graph):
            yield from (f"{label}: {line}" for line in problems(body))


def _stored(node: Node, has_inputs: bool) -> Iterator[str]:
    if has_inputs:
        yield "a stored tensor has inputs"
    if len(node.types) != 1:
        yield f"a stored tensor has {len(node.types)} outputs"
    elif node.op != "input":
        value = node.attrs.get("value")
        if not isinstance(value, np.ndarray):
            yield "no initial value"
        elif (value.dtype.name, value.shape) != (node.types[0].dtype, node.types[0].shape):
            yield f"declared {node.types[0]}, holds {value.dtype}{list(value.shape)}"
        elif value.flags.writeable:
            yield "its array can be written to"


def _operation(graph: Graph, key: int, node: Node) -> Iterator[str]:
    if node.op not in OPS:
        yield "no such operator"
        return
    args = graph.args(key)
    given = [None if a is None else graph.type(a) for a in args]
    try:
        types, attrs = infer(node.op, given, node.attrs, [graph.constant(a) for a in args])
    except OpError as error:
        yield str(error)
        return
    absent = [name for name in attrs if name not in node.attrs]
    if absent:
        yield f"attributes without their default: {', '.join(absent)}"
    if types != node.types:
        yield f"declared {', '.join(map(str, node.types))}, inferred {', '.join(map(str, types))}"


def _names(graph: Graph) -> Iterator[str]:
    names = Counter(name for key in graph.order() for name in graph.node(key).names)
    yield from (f"two tensors are named {printable(name)!r}" for name, count in names.items() if count > 1)
    outputs = Counter(graph.output_names)
    yield from (f"two outputs are named {printable(name)!r}" for name, count in outputs.items() if count > 1)


def _signature(graph: Graph) -> Iterator[str]:
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
    return value.node in graph.nx and 0 <= value.index < len(graph.node(value).types)
