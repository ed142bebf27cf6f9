"""Where a tensor is zero once the constants' slices are: an axis is *quiet* if what goes along it leaves zeros behind.

A sum over a quiet axis is the same without them. A layer makes its outputs quiet (no weights, no bias), ``relu`` keeps
them so and ``sigmoid`` does not: the references of the op table are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..interpret import evaluate
from ..ir import STORED, Graph, Node, Value
from ..ops import OPS
from ..ops.axes import Axis, Tie
from ..ops.record import Kind
from .rules import call_of, divides, rule_of

Place = tuple[Value, int]
_FOLDS = ("max_pool", "avg_pool", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
_SAMPLES = 16


def quiet_axes(graph: Graph, order: Sequence[int]) -> set[Place]:
    """The quiet axes of all tensors. Where it is not certain an axis is not among them."""
    found: set[Place] = set()
    for key in order:
        node = graph.node(key)
        if node.op in STORED:
            if node.op == "const" and not divides(graph, key):
                found |= {(Value(key), axis) for axis in range(node.types[0].rank)}
            continue
        sources = _sources(graph, key)
        for output, value in enumerate(graph.values(key)):
            for axis in range(node.types[output].rank):
                tied = sources.get((output, axis), {})
                if tied and _silent(graph, key, {i: (graph.args(key)[i], a) in found for i, a in tied.items()}):
                    found.add((value, axis))
    return found


def _sources(graph: Graph, key: int) -> dict[tuple[int, int], dict[int, int]]:
    """For each axis of an output, which axis of which inputs it is tied to."""
    rule, sources = rule_of(graph.node(key).op), dict[tuple[int, int], dict[int, int]]()
    if rule is None:
        return sources
    for relation in rule.relations(call_of(graph, key), graph.node(key).types):
        if isinstance(relation, Tie):
            for source, made in _through(relation):
                sources.setdefault((made.tensor, made.axis), {})[source.tensor] = source.axis
    return sources


def _through(tie: Tie) -> Iterable[tuple[Axis, Axis]]:
    """Input and output of a tie between two such."""
    return [(a, b) for a, b in ((tie.a, tie.b), (tie.b, tie.a)) if a.side == "in" and b.side == "out"]


def _silent(graph: Graph, key: int, quiet: dict[int, bool]) -> bool:
    """Whether an axis of a result is quiet, from that of the inputs it is tied to."""
    node = graph.node(key)
    kind = OPS[node.op].kind
    if node.op == "batch_norm":
        return quiet.get(1, False) and quiet.get(2, False)
    if node.op in ("conv", "conv_transpose", "matmul"):
        return (quiet.get(0, False) or quiet.get(1, False)) and quiet.get(2, True)
    if kind is Kind.ELEMENTWISE:
        return _stays_zero(graph, key, node, quiet)
    if node.op == "pad" and node.attrs["value"]:
        return False
    return all(quiet.values()) and (kind in (Kind.VIEW, Kind.INJECTIVE) or node.op in _FOLDS)


def _stays_zero(graph: Graph, key: int, node: Node, quiet: dict[int, bool]) -> bool:
    """An elementwise reference with zeros where an operand is quiet and samples where it is not."""
    rng = np.random.default_rng(0)
    args: list[np.ndarray | None] = []
    for i, value in enumerate(graph.args(key)):
        if value is None:
            args.append(None)
            continue
        constant, dtype = graph.constant(value), graph.type(value).dtype
        if quiet.get(i, False):
            sample = np.zeros(_SAMPLES)
        elif constant is not None and constant.size:
            sample = rng.choice(constant.reshape(-1), _SAMPLES)
        else:
            sample = rng.normal(size=_SAMPLES) * 4
        args.append(sample.astype(dtype))
    made = node.types[0]
    probe = Node(node.op, node.attrs, (made.with_shape((_SAMPLES,)),), node.names, node.origin)
    try:
        (result,) = evaluate(probe, args)
    except (TypeError, ValueError):
        return False
    return not result.any()
