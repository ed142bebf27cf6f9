"""A graph's nodes as the operators' rules see them."""

from __future__ import annotations

from ..ir import Graph, Value
from ..ops import OPS
from ..ops.axes import Channels
from ..ops.channels import ELEMENTWISE
from ..ops.record import Call, Kind

_DIVISORS = {"div": 1, "mod": 1, "fmod": 1, "pow": 1}  # op -> the input that must not become 0
_LAYERS = ("conv", "conv_transpose", "matmul", "lstm", "gru", "rnn")


def rule_of(op: str) -> Channels | None:
    """An operator's rule; elementwise operators have one in common."""
    record = OPS[op]
    return record.channels or (ELEMENTWISE if record.kind is Kind.ELEMENTWISE else None)


def call_of(graph: Graph, key: int) -> Call:
    """A node as rules see it."""
    args = graph.args(key)
    types = tuple(None if a is None else graph.type(a) for a in args)
    return Call(types, graph.node(key).attrs, tuple(graph.constant(a) for a in args))


def is_layer(graph: Graph, key: int) -> bool:
    """Whether a node multiplies by constant weights, quantized ones too."""
    return graph.node(key).op in _LAYERS and any(a is not None and _stored(graph, a) for a in graph.args(key)[:2])


def _stored(graph: Graph, value: Value) -> bool:
    node = graph.node(value)
    if node.op == "dequantize":
        return graph.constant(graph.args(value.node)[0]) is not None
    return node.op == "const"


def divides(graph: Graph, key: int) -> bool:
    """Whether a constant is a divisor: as 0 it would make what is taken out infinite, not absent."""
    return any(_DIVISORS.get(graph.node(user).op) == arg for user, arg in graph.users(Value(key)))
