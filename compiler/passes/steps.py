"""Quantized tensors in a graph: what one is dequantized from, and what the rules build with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..interpret import evaluate
from ..ir import Graph, Value
from ..ops.integers import STEPS
from .pattern import Match


@dataclass(frozen=True)
class Steps:
    """A dequantized tensor: its integers, their scale (one number unless said otherwise) and zero point."""

    q: Value
    scale: Value
    zero: int
    dtype: str


def steps_of(graph: Graph, value: Value | None, *, accept: tuple[str, ...] = STEPS) -> Steps | None:
    """What ``value`` is dequantized from, where one scale and zero point serve all of it."""
    found = dequantized(graph, value)
    if found is None or found.dtype not in accept or graph.type(found.scale).size != 1:
        return None
    return found


def dequantized(graph: Graph, value: Value | None) -> Steps | None:
    if value is None or graph.node(value).op != "dequantize" or graph.type(value).dtype != "float32":
        return None
    if graph.node(value).attrs["block"] is not None:
        return None
    q, scale, *zero = graph.args(value.node)
    assert q is not None and scale is not None
    if graph.type(scale).dtype != "float32":
        return None
    point = zero_of(graph, zero[0] if zero else None)
    return None if point is None else Steps(q, scale, point, graph.type(q).dtype)


def zero_of(graph: Graph, value: Value | None) -> int | None:
    """A zero point that is one known number; None where it is not."""
    if value is None:
        return 0
    array = graph.constant(value)
    if array is None or (array != array.reshape(-1)[0]).any():
        return None
    return int(array.reshape(-1)[0])


def scalar(m: Match, value: Value) -> Value:
    """A tensor of one element as one of rank 0."""
    return value if not m.shape(value) else m.add("reshape", value, shape=())


def number(m: Match, value: float, like: Value) -> Value:
    return m.const(np.asarray(value, np.float32), like)


def known_value(graph: Graph, value: Value) -> np.ndarray | None:
    """The value of a constant, or of a few operations on constants."""
    node = graph.node(value)
    if node.op == "const":
        return node.array
    if node.op not in ("mul", "div", "reshape", "expand", "cast"):
        return None
    args = [None if a is None else known_value(graph, a) for a in graph.args(value.node)]
    return None if any(a is None for a in args) else np.asarray(evaluate(node, args)[value.index])


def equal(graph: Graph, a: Value, b: Value) -> bool:
    x, y = graph.constant(a), graph.constant(b)
    return x is not None and y is not None and x.size == y.size == 1 and x.item() == y.item()


def kept(graph: Graph, q: Value) -> bool:
    """Whether a tensor only depends on what is stored, not on the inputs."""
    stack: list[int] = [q.node]
    seen: set[int] = set()
    while stack:
        key = stack.pop()
        if graph.node(key).op == "input" or len(seen) > 64:
            return False
        if key not in seen:
            seen.add(key)
            stack += list(graph.nx.predecessors(key))
    return True
