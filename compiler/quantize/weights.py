"""Weights only: integers of 4 or 8 bits in groups, or floats of 16 bits; activations and arithmetic stay float32.

What a group is: so many neighbours along the axis that is summed over (channels of a convolution, rows of a matrix),
or, in a table, along a row. A convolution with fewer channels than a group has one scale for each filter, or for each tap of
it from ``FEW`` channels on. Depthwise filters have 8 bits and a scale each: they are few weights, and short sums.

Scales have the least squared error, and are numbers that float16 holds (they are stored as such). Rounding is to the
nearest, or GPTQ's (``gptq``) where there are samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ..ir import Graph, Value
from ..ops.numeric import numpy_dtype
from .gptq import gptq, loss, moments_of
from .observe import Progress, silent
from .quantizer import prepare
from .samples import Samples, feeds
from .settings import matching

METHODS = ("nearest", "gptq")
BITS = (4, 8)
HALVES = ("float16", "bfloat16")
FEW = 16  # channels from which each tap of a convolution has a scale of its own
LEAST = 64  # weights of a tensor that is quantized at all
_CLIPS = np.linspace(0.4, 1.0, 25)  # parts of the range that are tried as clips
_LEAST_HALF = 2.0**-14  # the least normal number of float16


@dataclass(frozen=True)
class Weight:
    """A constant that is only used as weights. ``axis`` is summed over (of a table: lies along a row), ``taps`` are
    the spatial positions of a filter; ``groups`` are those of a convolution. ``layers`` compute sums with it."""

    name: str
    node: int
    axis: int
    taps: int
    groups: int
    depthwise: bool
    layers: tuple[int, ...]
    table: bool


@dataclass(frozen=True)
class Row:
    """What became of one weight: ``loss`` is its squared error (at the layer's output, where samples say how much)
    relative to the weights' own (to the output's)."""

    name: str
    bits: int
    scales: int
    method: str
    loss: float


def weights_of(graph: Graph) -> list[Weight]:
    """The constants of a canonical float graph that only convolutions, matrix products and lookups use."""
    found = []
    for key in graph.order():
        node = graph.node(key)
        t = node.types[0] if node.types else None
        if node.op != "const" or t is None or t.dtype != "float32" or t.rank < 2 or t.size < LEAST:
            continue
        uses = _uses(graph, Value(key), list(range(t.rank)))
        made = _weight(graph, key, uses) if uses else None
        if made is not None:
            found.append(made)
    return found


def _uses(graph: Graph, value: Value, axes: list[int]) -> list[tuple[int, list[int]]] | None:
    """The operations that a constant is the weights of, and which of its axes each one's are; None if it is anything
    else as well."""
    if value in graph.outputs or value in graph.bindings.values():
        return None
    found: list[tuple[int, list[int]]] = []
    for user, arg in graph.users(value):
        node = graph.node(user)
        if node.op == "transpose":
            inner = _uses(graph, Value(user), [axes[a] for a in node.attrs["perm"]])
            if inner is None:
                return None
            found += inner
        elif (node.op, arg) in (("conv", 1), ("matmul", 1), ("gather", 0)):
            found.append((user, axes))
        else:
            return None
    return found


def _weight(graph: Graph, key: int, uses: list[tuple[int, list[int]]]) -> Weight | None:
    axes, taps, groups, depthwise = set(), {1}, {1}, False
    rank = graph.node(key).types[0].rank
    layers = []
    for user, mapped in uses:
        node = graph.node(user)
        if node.op == "conv":
            dims = graph.node(key).types[0].dims
            depthwise = node.attrs["group"] > 1 and dims[1] == 1
            taps, groups = {math.prod(dims[2:])}, {*groups, node.attrs["group"]} - {1} or {1}
            axes.add(mapped[1])
        elif node.op == "matmul":
            if rank != 2:
                return None
            axes.add(mapped[0])
        elif node.attrs["axis"] % rank == rank - 1 or mapped != list(range(rank)):
            return None
        else:
            axes.add(rank - 1)
        if node.op != "gather":
            layers.append(user)
    if len(axes) != 1 or len(groups) != 1:
        return None
    name = graph.node(key).names[0]
    table = len(layers) < len(uses)
    return Weight(name, key, axes.pop(), taps.pop(), groups.pop(), depthwise, tuple(layers), table)


# -- a weight as matrices ----------------------------------------------------------------------------------------------


class Grouped:
    """A weight as ``[groups, rows, columns]``, rows in the order (channel, taps), and the scale that each row has."""

    def __init__(self, weight: Weight, shape: Sequence[int], size: int) -> None:
        self.weight, self.shape = weight, tuple(shape)
        channels = self.shape[weight.axis]
        self.taps = weight.taps
        whole = weight.depthwise or channels * self.taps <= size or (self.taps > 1 and channels < min(size, FEW))
        self.whole = whole  # one scale for each column
        self.size = channels if whole else min(size, channels)
        self.blocks = -(-channels // self.size)
        rows = np.arange(channels * self.taps)
        own = rows // self.taps // self.size * self.taps + rows % self.taps
        self.group_of = np.zeros_like(rows) if whole else own
        self.scales = 1 if whole else self.blocks * self.taps

    @property
    def block(self) -> tuple[int, int] | None:
        return (self.weight.axis, self.size) if self.blocks > 1 else None

    def matrices(self, array: np.ndarray) -> np.ndarray:
        if array.ndim > 2 and not self.weight.table:
            return array.reshape(self.weight.groups, -1, math.prod(array.shape[1:])).transpose(0, 2, 1)
        moved = np.moveaxis(array, self.weight.axis, 0)
        return moved.reshape(1, moved.shape[0], -1)

    def restored(self, matrices: np.ndarray) -> np.ndarray:
        if len(self.shape) > 2 and not self.weight.table:
            return np.ascontiguousarray(matrices.transpose(0, 2, 1)).reshape(self.shape)
        rest = [d for a, d in enumerate(self.shape) if a != self.weight.axis]
        return np.ascontiguousarray(np.moveaxis(matrices.reshape(-1, *rest), 0, self.weight.axis))

    def scale(self, scales: np.ndarray) -> np.ndarray:
        """Scales ``[groups, scales, columns]`` in the shape that ``dequantize`` wants."""
        if len(self.shape) > 2 and not self.weight.table:
            tail = (1,) * (len(self.shape) - 2) if self.whole else self.shape[2:]
            return np.ascontiguousarray(scales.transpose(0, 2, 1)).reshape(self.shape[0], self.blocks, *tail)
        rest = [d for a, d in enumerate(self.shape) if a != self.weight.axis]
        return np.ascontiguousarray(np.moveaxis(scales.reshape(-1, *rest), 0, self.weight.axis))


def best_scales(matrix: np.ndarray, group_of: np.ndarray, count: int, bits: int, importance: np.ndarray) -> np.ndarray:
    """``[count, columns]``: for each group of rows the scale with the least squared error, rows weighted by their
    ``importance``, as a float32 that float16 holds (where float16 has normal numbers of that size)."""
    most = (1 << (bits - 1)) - 1
    found = np.ones((count, matrix.shape[1]), np.float32)
    for g in range(count):
        rows = group_of == g
        w, h = matrix[rows].astype(np.float64), importance[rows][:, None]
        reach = np.abs(w).max(axis=0, initial=0.0)
        least = np.full(w.shape[1], np.inf)
        for clip in _CLIPS if reach.any() else ():
            scale = _held(np.where(reach > 0, reach * clip / most, 1.0))
            error = (h * np.square(np.clip(np.rint(w / scale), -most - 1, most) * scale - w)).sum(axis=0)
            better = error < least
            least, found[g] = np.where(better, error, least), np.where(better, scale, found[g])
    return found


def _held(scale: np.ndarray) -> np.ndarray:
    narrow = scale.astype(np.float32)
    with np.errstate(over="ignore"):
        half = narrow.astype(np.float16).astype(np.float32)
    fits = (narrow >= _LEAST_HALF) & np.isfinite(half)
    return np.where(fits, half, np.maximum(narrow, np.finfo(np.float32).tiny))


def _rounder(scales: np.ndarray, group_of: np.ndarray, bits: int) -> Callable[[int, np.ndarray], np.ndarray]:
    most = (1 << (bits - 1)) - 1

    def nearest(row: int, values: np.ndarray) -> np.ndarray:
        scale = scales[group_of[row]].astype(np.float64)
        return np.asarray(np.clip(np.rint(values / scale), -most - 1, most) * scale)

    return nearest


def _codes(matrix: np.ndarray, scales: np.ndarray, group_of: np.ndarray, bits: int) -> np.ndarray:
    most = (1 << (bits - 1)) - 1
    steps = np.rint(matrix.astype(np.float64) / scales[group_of])
    return np.clip(steps, -most - 1, most).astype(np.int8)


# -- the whole graph ---------------------------------------------------------------------------------------------------


def quantize_weights(
    graph: Graph,
    bits: int = 4,
    group: int = 32,
    method: str = "nearest",
    samples: Samples | None = None,
    *,
    depthwise_bits: int = 8,
    float_patterns: Iterable[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Graph:
    """A copy of a static float graph, in canonical form, whose weights are integers with scales for groups.

    ``group``: neighbours that share a scale. ``method="gptq"`` needs ``samples`` (see ``samples.feeds``).
    ``float_patterns``: weights that stay as they are (patterns of their names). ``NervureError`` for an unknown method
    or number of bits, a pattern that matches nothing, and for weights that are not finite. What became of each weight
    stands in the graph's ``meta["weights"]`` as ``Row``s.
    """
    _check(bits, depthwise_bits, group, method, samples)
    work = prepare(graph)
    every = weights_of(work)
    kept = matching(float_patterns, (w.name for w in every), "float pattern")
    chosen = [w for w in every if w.name not in kept]
    arrays = {w.node: _finite(work, w) for w in chosen}
    rows = {}
    made = {}
    learned = [w for w in chosen if method == "gptq" and w.layers and not w.table and not w.depthwise]
    of = {w.layers[0]: w for w in learned}
    if learned:
        assert samples is not None
        for key, moments in moments_of(work, sorted(of), feeds(work, samples), seed, progress or silent):
            w = of[key]
            made[w.node], rows[w.node] = _quantized(w, arrays[w.node], bits, group, moments)
    for w in chosen:
        if w.node not in made:
            many = depthwise_bits if w.depthwise else bits
            made[w.node], rows[w.node] = _quantized(w, arrays[w.node], many, group, None)
    for w in chosen:
        _insert(work, w, *made[w.node])
    work.meta["weights"] = tuple(rows[w.node] for w in chosen)
    return work


def _check(bits: int, depthwise_bits: int, group: int, method: str, samples: Samples | None) -> None:
    for number in (bits, depthwise_bits):
        if number not in BITS:
            raise NervureError(f"weights of {number} bits", hint="4 and 8 bits are supported")
    if group < 2 or group % 2:
        raise NervureError(f"groups of {group} weights", hint="an even number; 32, 64 and 128 are usual")
    if method not in METHODS:
        raise NervureError(f"rounding method {method!r} is unknown", hint=f"use one of: {', '.join(METHODS)}")
    if method == "gptq" and samples is None:
        raise NervureError("GPTQ needs calibration samples", hint="give samples, or use method='nearest'")


def _finite(graph: Graph, w: Weight) -> np.ndarray:
    array = graph.node(w.node).array
    if not np.isfinite(array).all():
        raise NervureError(
            f"the weights {w.name!r} hold NaN or infinity",
            where=graph.node(w.node).origin,
            hint="no scale follows from that: look at how the model was trained or exported",
        )
    return np.asarray(array)


Made = tuple[np.ndarray, np.ndarray, tuple[int, int] | None]


def _quantized(w: Weight, array: np.ndarray, bits: int, group: int, moments: np.ndarray | None) -> tuple[Made, Row]:
    """Codes, scales and block of one weight."""
    form = Grouped(w, array.shape, group)
    matrices = form.matrices(array)
    codes, scales = [], []
    spent = total = 0.0
    for i, matrix in enumerate(matrices):
        h = None if moments is None else moments[i].astype(np.float64)
        one = np.ones(len(matrix)) if h is None else np.diag(h)
        held = best_scales(matrix, form.group_of, form.scales, bits, one + 1e-12 * max(1.0, float(one.max())))
        steps = _codes(matrix, held, form.group_of, bits)
        if h is not None:
            steps = _better(matrix, held, form.group_of, bits, h, steps)
        error = steps * held[form.group_of].astype(np.float64) - matrix
        spent += loss(error, h) if h is not None else float(np.square(error).sum())
        total += loss(matrix, h) if h is not None else float(np.square(matrix.astype(np.float64)).sum())
        codes.append(steps)
        scales.append(held)
    scale = form.scale(np.stack(scales))
    row = Row(w.name, bits, scale.size, "nearest" if moments is None else "gptq", spent / total if total else 0.0)
    return (form.restored(np.stack(codes)), scale, form.block), row


def _better(
    matrix: np.ndarray, scales: np.ndarray, group_of: np.ndarray, bits: int, moments: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """GPTQ's rounding, unless it does worse on the samples than rounding to the nearest does."""
    reals = gptq(matrix, moments, _rounder(scales, group_of, bits))
    found = _codes(reals, scales, group_of, bits)
    wide = scales[group_of].astype(np.float64)
    if loss(found * wide - matrix, moments) < loss(steps * wide - matrix, moments):
        return found
    return steps


def _insert(graph: Graph, w: Weight, codes: np.ndarray, scale: np.ndarray, block: tuple[int, int] | None) -> None:
    node = graph.node(w.node)
    stored = graph.const(codes, graph.unique(f"{w.name}.codes"), node.origin)
    scales = graph.const(scale, graph.unique(f"{w.name}.scale"), node.origin)
    real = graph.add(
        "dequantize", stored, scales, names=[graph.unique(f"{w.name}.real")], origin=node.origin, block=block
    )
    graph.replace(Value(w.node), real)
    graph.remove(w.node)


def halve_weights(graph: Graph, dtype: str = "float16", *, float_patterns: Iterable[str] = ()) -> Graph:
    """A copy of a static float graph, in canonical form, whose weights are stored as ``float16`` or ``bfloat16`` and
    widened where they are used. Weights that the type does not hold (float16 ends at 65504) stay as they are."""
    if dtype not in HALVES:
        raise NervureError(f"weights of type {dtype!r}", hint=f"use one of: {', '.join(HALVES)}")
    work = prepare(graph)
    every = weights_of(work)
    kept = matching(float_patterns, (w.name for w in every), "float pattern")
    for w in every:
        node, array = work.node(w.node), _finite(work, w)
        with np.errstate(over="ignore"):
            narrow = array.astype(numpy_dtype(dtype))
        if w.name in kept or not np.isfinite(narrow.astype(np.float32)).all():
            continue
        stored = work.const(narrow, work.unique(f"{w.name}.half"), node.origin)
        names = [work.unique(f"{w.name}.real")]
        real = work.add("cast", stored, names=names, origin=node.origin, to="float32")
        work.replace(Value(w.node), real)
        work.remove(w.node)
    return work


__all__ = ["Row", "Weight", "best_scales", "halve_weights", "quantize_weights", "weights_of"]
