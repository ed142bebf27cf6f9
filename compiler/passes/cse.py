"""Common subexpression elimination.

1. Constants with the same type and the same bytes become one: the first.
2. Operations with the same operator, inputs (in any order where it commutes), attributes and output types become one.
   Operators that are not pure, ``identity`` (which keeps a name) and operators with a graph as body are left alone;
   so are inputs, parameters and states, which are something else even where they are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ..ir import STORED, Graph, Value
from ..ops import OPS
from .rewrite import substitute

_SAMPLE = 2048  # bytes from each end that are hashed before the whole is


def eliminate_common_subexpressions(graph: Graph) -> Graph:
    """A copy of ``graph`` that computes and stores nothing twice."""
    work = graph.copy()
    _merge_constants(work)
    seen: dict[Hashable, int] = {}
    for key in work.order():
        if key not in work.nx:
            continue
        expression = _expression(work, key)
        if expression is None:
            continue
        first = seen.setdefault(expression, key)
        if first != key:
            _merge(work, first, key)
    return work


def _merge(graph: Graph, first: int, second: int) -> None:
    origin = graph.node(second).origin
    for old, new in zip(graph.values(second), graph.values(first), strict=True):
        if second in graph.nx and graph.uses(old):
            substitute(graph, old, new, origin, fresh=False)


def _expression(graph: Graph, key: int) -> Hashable | None:
    """What the node computes, as a key; None for what must not be merged."""
    node = graph.node(key)
    if node.op in STORED or node.op == "identity" or not OPS[node.op].pure:
        return None
    if any(isinstance(v, Graph) for v in node.attrs.values()):
        return None
    args: list[Value | None] = graph.args(key)
    if OPS[node.op].commutative and len(args) == 2:
        args.sort(key=lambda a: (-1, -1) if a is None else a)
    return node.op, tuple(args), _frozen(node.attrs), node.types


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, _digest(value)
    # 1 == 1.0 == True in Python, but not in a model; and -0.0 == 0.0 even among floats
    return type(value).__name__, repr(value) if isinstance(value, float) else value


def _merge_constants(graph: Graph) -> None:
    groups: dict[Hashable, list[int]] = {}
    for key in sorted(n for n in graph.nx if graph.node(n).op == "const"):
        node = graph.node(key)
        groups.setdefault((node.types[0], _digest(node.array, _SAMPLE)), []).append(key)
    for keys in groups.values():
        if len(keys) < 2:
            continue
        firsts: dict[bytes, int] = {}
        for key in keys:
            first = firsts.setdefault(_digest(graph.node(key).array), key)
            if first != key and graph.uses(Value(key)):
                substitute(graph, Value(key), Value(first), (), fresh=False)


def _digest(array: np.ndarray, sample: int | None = None) -> bytes:
    """A digest of an array's bytes, or of the first and last ``sample`` of them."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if sample is not None and flat.size > 2 * sample:
        flat = np.concatenate([flat[:sample], flat[-sample:]])
    return hashlib.blake2b(flat.data, digest_size=16).digest()
