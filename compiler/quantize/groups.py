"""Weights of a float graph as matrices whose rows fall into groups with a scale each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir import Graph, Value

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


def rounder(scales: np.ndarray, group_of: np.ndarray, bits: int) -> Callable[[int, np.ndarray], np.ndarray]:
    most = (1 << (bits - 1)) - 1

    def nearest(row: int, values: np.ndarray) -> np.ndarray:
        scale = scales[group_of[row]].astype(np.float64)
        return np.asarray(np.clip(np.rint(values / scale), -most - 1, most) * scale)

    return nearest


def codes_of(matrix: np.ndarray, scales: np.ndarray, group_of: np.ndarray, bits: int) -> np.ndarray:
    most = (1 << (bits - 1)) - 1
    steps = np.rint(matrix.astype(np.float64) / scales[group_of])
    return np.asarray(np.clip(steps, -most - 1, most).astype(np.int8))


__all__ = ["FEW", "Grouped", "Weight", "best_scales", "codes_of", "rounder", "weights_of"]
