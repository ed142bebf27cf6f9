"""The break-even density: how few of a layer's weights may be left before zeros pay on a machine.

By the cost model for any machine, from the plans that the compiler chooses between; measured for the one at hand.
Which weights are zero is drawn with a fixed seed, so that the model's answer is the same every time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ...errors import NervureError
from ...runtime.session import Binding, load
from ...targets import host
from ...targets.files import temporary_folder
from ...targets.machine import Machine
from ..ir import Graph, Value
from ..kernels.spec import Operand, Region
from ..kernels.templates import plans
from ..pipeline import EntryGraph, Options, compile_entries
from ..types import TensorType
from .layers import Layer
from .patterns import UNSTRUCTURED, Pattern, from_matrix, to_matrix

WORTH = 0.97  # a layer with zeros must take less than this part of the dense one's time
DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)  # that are measured
_STEPS = 6  # of the bisection: to 1/64
_ROUNDS, _ROUND = 15, 2e-3  # of measuring: their number, seconds of each


def break_even(
    layer: Layer | Region, machine: Machine, pattern: Pattern = UNSTRUCTURED, graph: Graph | None = None
) -> float:
    """The density (the part of the weights that is left) up to which the layer is faster with ``pattern`` than dense,
    by the cost model; 0 where none pays. For N:M the largest N of the pattern's M that pays, over M.

    ``layer`` is one of a prepared ``graph``, or a region whose weights are constant (its machine does not matter).
    """
    region = replace(layer, machine=machine) if isinstance(layer, Region) else region_of(layer, _needed(graph), machine)
    dense = _cost(region, pattern, 1.0)

    def pays(density: float) -> bool:
        return _cost(region, pattern, density) < WORTH * dense

    if pattern.group:
        return max((n for n in range(1, pattern.group) if pays(n / pattern.group)), default=0) / pattern.group
    low, high, whole = 0, 1 << _STEPS, 1 << _STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle / whole) else (low, middle)
    return low / whole


def weights_with(pattern: Pattern, density: float, shape: Sequence[int], op: str) -> np.ndarray:
    """Random weights of a layer, of which ``density`` is left in ``pattern`` (for N:M the nearest N of its M)."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 1, shape).astype(np.float32)
    if density >= 1:
        return weights
    channels = shape[-2] if op == "matmul" else shape[1]
    scores = rng.random(to_matrix(weights, op).shape)
    if pattern.group:
        chosen = replace(pattern, keep=max(1, round(density * pattern.group)))
        mask = chosen.mask(scores, channels)
    else:
        mask = pattern.mask(scores, channels, 1 - density)
    return np.asarray(weights * from_matrix(mask, tuple(shape), op))


def _cost(region: Region, pattern: Pattern, density: float) -> float:
    """Nanoseconds of the best plan of the region with such weights."""
    at = region.operand(1)
    const = None if at is None else region.inputs[at].const
    if at is None or const is None or const.ndim < 2:
        raise NervureError("a break-even density is one of a layer with constant weights", where=[region.op])
    op = "matmul" if region.op.startswith("matmul") else "conv"
    weights = weights_with(pattern, density, const.shape, op)
    if const.dtype.kind in "iu":
        weights = np.ceil(weights * 100)
    inputs = [replace(o, const=weights.astype(const.dtype)) if i == at else o for i, o in enumerate(region.inputs)]
    found = plans(replace(region, inputs=tuple(inputs)))
    return found[0].cost if found else math.inf


def region_of(layer: Layer, graph: Graph, machine: Machine) -> Region:
    """The layer alone as planners see it, channels last for a convolution. An open size counts as one."""
    x, w = _arguments(layer, graph)
    body = Graph("layer")
    given = [body.input("x", x), body.input("w", w)]
    body.output(body.add(layer.op, *given, **graph.node(layer.node).attrs))
    array = graph.constant(graph.args(layer.node)[1])
    made = body.type(body.outputs[0])
    return Region(
        body,
        (Operand(x, _strides(x, layer.op)), Operand(w, _strides(w, "matmul"), array)),
        (Operand(made, _strides(made, layer.op)),),
        machine,
    )


def _needed(graph: Graph | None) -> Graph:
    if graph is None:
        raise NervureError("a layer is one of a graph: which?", hint="break_even(layer, machine, pattern, graph)")
    return graph


def _arguments(layer: Layer, graph: Graph) -> tuple[TensorType, TensorType]:
    x, w = graph.args(layer.node)[:2]
    assert x is not None and w is not None
    shape = tuple(d if isinstance(d, int) else 1 for d in graph.type(x).shape)
    return TensorType(graph.type(x).dtype, shape), graph.type(w)


def _strides(type: TensorType, op: str) -> tuple[int, ...]:
    """Element strides: row by row, for a convolution channels last."""
    order = [0, *range(2, type.rank), 1] if op == "conv" else list(range(type.rank))
    found, step = [1] * type.rank, 1
    for axis in reversed(order):
        found[axis] = step
        step *= max(1, type.dims[axis])
    return tuple(found)


# -- measured ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A layer's microseconds dense and at some ``densities``, and the break-even that follows."""

    dense: float
    densities: tuple[float, ...]
    times: tuple[float, ...]

    @property
    def break_even(self) -> float:
        """The density at which the layer is as fast as the dense one: on a line between the two measured ones around
        it; the largest measured one where all pay, 0 where none does."""
        below = [(d, t / self.dense) for d, t in zip(self.densities, self.times, strict=True)]
        if not below or below[0][1] >= WORTH:
            return 0.0
        for (d, r), (e, s) in pairwise(below):
            if s >= WORTH:
                return d + (e - d) * (WORTH - r) / (s - r)
        return below[-1][0]


def measured_break_even(
    layer: Layer, graph: Graph, pattern: Pattern = UNSTRUCTURED, densities: Sequence[float] = DENSITIES
) -> Measured:
    """The layer compiled for this machine, dense and at several densities, and timed on one thread: the kernels that
    the compiler chooses, in turn, the best of many short rounds. ``densities`` rise; N:M takes those that it has.

    A layer alone is held to the usual bytes of packed weights, so that a 3x3 kernel runs beside the direct convolution
    and not beside Winograd's, whose weights need the room that a whole network has.
    """
    if pattern.group:
        densities = [n / pattern.group for n in range(1, pattern.group)]
    weights = [weights_with(pattern, d, layer.shape, layer.op) for d in (1.0, *sorted(densities))]
    names = [f"at_{i}" for i in range(len(weights))]
    entries = [EntryGraph(_alone(layer, graph, w, n), n) for w, n in zip(weights, names, strict=True)]
    with temporary_folder() as folder:
        compile_entries(entries, host(), folder / "layer.so", Options())
        session = load(folder / "layer.so", 1)
        given = np.random.default_rng(1).standard_normal(_given(layer, graph).dims).astype(np.float32)
        dense, *times = _times([session.binding({"x": given}, entry=n) for n in names])
    return Measured(dense, tuple(sorted(densities)), tuple(times))


def _alone(layer: Layer, graph: Graph, weights: np.ndarray, name: str) -> Graph:
    """A graph of the layer alone. A convolution takes and gives channels last, as it would within a network."""
    found = Graph(name)
    value: Value = found.input("x", _given(layer, graph))
    rank = found.type(value).rank
    if layer.op == "conv":
        value = found.add("transpose", value, perm=(0, rank - 1, *range(1, rank - 1)))
    value = found.add(layer.op, value, found.const(weights, "w"), **graph.node(layer.node).attrs)
    if layer.op == "conv":
        value = found.add("transpose", value, perm=(0, *range(2, rank), 1))
    found.output(value)
    return found


def _given(layer: Layer, graph: Graph) -> TensorType:
    """What the layer alone takes: its input, of a convolution with the channels last."""
    x, _ = _arguments(layer, graph)
    order = [0, *range(2, x.rank), 1] if layer.op == "conv" else range(x.rank)
    return TensorType(x.dtype, tuple(x.dims[a] for a in order))


def _times(calls: Sequence[Binding]) -> list[float]:
    """Microseconds of each call: the best of rounds in which all take turns."""
    repeats, best = [], [math.inf] * len(calls)
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, int(_ROUND / max(time.perf_counter() - start, 1e-7))))
    for _ in range(_ROUNDS):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(repeats[i]):
                call()
            best[i] = min(best[i], (time.perf_counter() - start) / repeats[i] * 1e6)
    return best
