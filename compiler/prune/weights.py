"""The constants that pruning scores and counts: weights of contractions and of recurrent layers, scales of norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..ir import Graph, Value

# operator -> the inputs that are weights, with the axis along which each meets the operator's inputs
_WEIGHTS = {
    "conv": {1: 1},
    "conv_transpose": {1: 0},
    "matmul": {0: -1, 1: -2},
    "lstm": {1: -1, 2: -1},
    "gru": {1: -1, 2: -1},
    "rnn": {1: -1, 2: -1},
}


@dataclass(frozen=True)
class Use:
    """One operation that reads a weight: as its input ``arg``, whose axis ``axis`` meets the inputs."""

    node: int
    op: str
    arg: int
    axis: int


@dataclass(frozen=True)
class Weight:
    """A constant that operations multiply with; ``uses`` in the graph's order."""

    name: str
    array: np.ndarray
    uses: tuple[Use, ...]


def weights(graph: Graph) -> tuple[Weight, ...]:
    """The float weights of a graph, in order of first use."""
    found: dict[Value, list[Use]] = {}
    for key in graph.order():
        op = graph.node(key).op
        args = graph.args(key)
        for arg, axis in _WEIGHTS.get(op, {}).items():
            value = args[arg] if arg < len(args) else None
            array = graph.constant(value)
            if value is None or array is None or array.dtype.kind != "f" or array.ndim < 2:
                continue
            if op == "matmul" and all(graph.constant(a) is not None for a in args):
                continue
            found.setdefault(value, []).append(Use(key, op, arg, axis))
    return tuple(Weight(graph.tensor_name(v), graph.node(v).array, tuple(uses)) for v, uses in found.items())


def positions(graph: Graph) -> dict[str, int]:
    """How often each weight's elements are multiplied in a run, over all of its uses."""
    return {w.name: sum(_positions(graph, w.array.shape, use) for use in w.uses) for w in weights(graph)}


def _positions(graph: Graph, shape: tuple[int, ...], use: Use) -> int:
    made = _sizes(graph, Value(use.node))
    if use.op == "conv":
        return math.prod(made) // max(1, made[1])
    if use.op == "conv_transpose":  # every input position meets every weight
        x = graph.args(use.node)[0]
        assert x is not None
        sizes = _sizes(graph, x)
        return math.prod(sizes) // max(1, sizes[1])
    if use.op == "matmul":
        other = made[-2] if use.arg == 1 else made[-1]
        lead = math.prod(made[:-2]) // max(1, math.prod(shape[:-2]))
        return other * max(1, lead)
    return made[0] * made[2]  # y [T,D,B,H]: each step of each sequence


def _sizes(graph: Graph, value: Value) -> list[int]:
    """Open sizes count as one."""
    return [d if isinstance(d, int) else 1 for d in graph.type(value).shape]


def scales(graph: Graph) -> dict[str, str]:
    """Weight name -> the name of the scale of the batch norm that alone follows its layer."""
    found: dict[str, str] = {}
    for weight in weights(graph):
        if len(weight.uses) != 1 or weight.uses[0].op not in ("conv", "conv_transpose", "matmul"):
            continue
        norm = _norm_behind(graph, Value(weight.uses[0].node))
        if norm is not None:
            found[weight.name] = norm
    return found


def _norm_behind(graph: Graph, value: Value) -> str | None:
    for _ in range(2):  # a bias may stand between
        users = graph.users(value)
        if len(users) != 1 or graph.uses(value) != 1:
            return None
        key = users[0][0]
        node = graph.node(key)
        if node.op == "batch_norm" and users[0][1] == 0:
            scale = graph.args(key)[1]
            return graph.tensor_name(scale) if scale is not None and graph.constant(scale) is not None else None
        if node.op != "add" or not any(graph.constant(a) is not None for a in graph.args(key)):
            return None
        value = Value(key)
    return None


__all__ = ["Use", "Weight", "positions", "scales", "weights"]
