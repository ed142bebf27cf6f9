"""What the integers of an input or output stand for, where a model has them at its ends: for its users, not for us."""

from __future__ import annotations

from dataclasses import replace

from ..ir import Graph, Value
from ..program import Entry, Port

_MOVES = ("reshape", "transpose", "squeeze", "unsqueeze", "flatten", "identity")


def with_scales(entry: Entry, graph: Graph) -> Entry:
    """The entry with ``(scale, zero point)`` at its ports: those of the quantizers next to the ends of ``graph``."""
    inputs = [_read(graph, Value(n, 0)) for n in graph.inputs]
    outputs = [_written(graph, value) for value in graph.outputs]
    return replace(entry, inputs=_scaled(entry.inputs, inputs), outputs=_scaled(entry.outputs, outputs))


def _scaled(ports: tuple[Port, ...], scales: list[tuple[float, int] | None]) -> tuple[Port, ...]:
    return tuple(replace(p, scale=s) for p, s in zip(ports, scales, strict=True))


def _read(graph: Graph, value: Value) -> tuple[float, int] | None:
    for node, index in graph.users(value):
        op = graph.node(node).op
        found = _constants(graph, node) if op == "dequantize" and index == 0 else None
        if op in _MOVES and index == 0:
            found = _read(graph, Value(node, 0))
        if found is not None:
            return found
    return None


def _written(graph: Graph, value: Value) -> tuple[float, int] | None:
    op = graph.node(value).op
    if op == "quantize":
        return _constants(graph, value.node)
    first = graph.args(value.node)[0] if op in _MOVES else None
    return _written(graph, first) if first is not None else None


def _constants(graph: Graph, node: int) -> tuple[float, int] | None:
    """Scale and zero point of a quantizer that has one of each."""
    args = graph.args(node)
    scale, zero = graph.constant(args[1]), graph.constant(args[2]) if len(args) > 2 else None
    if scale is None or scale.size != 1 or (len(args) > 2 and args[2] is not None and (zero is None or zero.size != 1)):
        return None
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) if zero is not None else 0
