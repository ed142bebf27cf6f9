"""Sparse patterns over a network: which layers take part, how their cells compare, and the zeros written down.

In one ranking over all layers, magnitudes are compared as LAMP does (Lee et al., ICLR 2021): a cell's score over the
sum of those in its layer that are not lower. It is the relative error that taking the cell adds to what is left of the
layer, so that layers of different scale and size compare, and no layer is emptied. Taylor's scores are changes of the
loss, alike in all layers, and are taken as they are.

With N:M every group of cells loses the same, so that only whole layers are chosen between: first those that lose the
least part of their scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir import Graph, Value
from .budget import counted
from .criteria import Scores
from .layers import Layer, layers
from .patterns import UNSTRUCTURED, Pattern
from .select import Pool
from .settings import Settings
from .weights import positions

_FEW = 4  # a first convolution with so few inputs stays: it is small, and everything is computed from it
_NATURAL = ("taylor", "movement", "random")  # scores that mean the same in all layers


@dataclass(frozen=True)
class Part:
    """A weight that takes part, as its first layer sees it. ``share``: what the user says is to go of it."""

    layer: Layer
    array: np.ndarray
    share: float | None = None


def candidates(
    graph: Graph, pattern: Pattern, shares: Mapping[str, float], kept: Mapping[str, str]
) -> tuple[tuple[Part, ...], dict[str, str]]:
    """The weights that a pattern may be put on, and why others may not (by layer). ``shares`` (what is to go) and
    ``kept`` (the reason) by layer name. A weight that one of its layers keeps stays for all."""
    found: dict[str, Part] = {}
    left: dict[str, str] = {}
    every = layers(graph)
    for layer in every:
        why = kept.get(layer.name) or _misfit(graph, layer, pattern)
        if why:
            left[layer.name] = why
    stay = {layer.weight: layer.name for layer in every if layer.name in left}
    for layer in every:
        if layer.weight in stay:
            left.setdefault(layer.name, f"it shares its weight with {stay[layer.weight]}, which stays")
        elif layer.weight not in found:
            array = graph.constant(graph.args(layer.node)[1])
            assert array is not None
            found[layer.weight] = Part(layer, array, shares.get(layer.name))
    return tuple(found.values()), left


def _misfit(graph: Graph, layer: Layer, pattern: Pattern) -> str:
    """Why a pattern is not put on a layer; empty where it may be."""
    if layer.depthwise:
        return "depthwise: each output has one input, there is nothing to leave out of its sum"
    if layer.op == "conv" and layer.channels * layer.group <= _FEW:
        return f"it reads {layer.channels * layer.group} channels: a small layer that all others build on"
    span = max(pattern.rows * max(1, pattern.group), 1)
    if pattern.group and layer.channels < span:
        return f"its {layer.channels} inputs do not fill a group of {span}"
    if pattern.columns > layer.outputs:
        return f"its {layer.outputs} outputs do not fill a block of {pattern.columns}"
    return ""


class Cells:
    """What a sparse pattern may take: a pool for each weight, or with N:M one pool of the weights."""

    def __init__(self, graph: Graph, parts: Sequence[Part], pattern: Pattern, scores: Scores, settings: Settings):
        self.graph, self.parts, self.pattern = graph, tuple(parts), pattern
        lowest = min((float(scores[p.layer.weight].min()) for p in self.parts), default=0.0)
        held = [np.where(p.array == 0, lowest, scores[p.layer.weight]) for p in self.parts]  # what is zero goes first
        self._matrices = [p.layer.matrix(a) for a, p in zip(held, self.parts, strict=True)]
        self._cells = [self._pooled(m, p.layer) for m, p in zip(self._matrices, self.parts, strict=True)]
        self._alive = [self._counted(p) for p in self.parts]
        self._dense, self._runs = counted(graph), positions(graph)
        self._settings = settings

    def _pooled(self, matrix: np.ndarray, layer: Layer) -> np.ndarray:
        if self.pattern == UNSTRUCTURED:
            return matrix.reshape(-1, layer.channels, matrix.shape[1])
        return self.pattern.pool(matrix, layer.channels)

    def _counted(self, part: Part) -> np.ndarray:
        """How many weights of each cell are not zero."""
        matrix: np.ndarray = part.layer.matrix(part.array) != 0
        if self.pattern == UNSTRUCTURED:
            return matrix.ravel()
        shape, channels = (matrix.shape[0], matrix.shape[1]), part.layer.channels
        sums = self.pattern.pool(matrix, channels) * self.pattern.sizes(shape, channels)
        return np.asarray(np.rint(sums).ravel(), np.int64)

    def pools(self, costs: Mapping[str, float] | None = None) -> list[Pool]:
        """The pools; with ``costs`` (of whole layers, by name) keys are scores per cost that goes."""
        if self.pattern.group:
            return self._whole(costs)
        found = []
        for part, cells in zip(self.parts, self._cells, strict=True):
            keys = cells.ravel()
            if self._settings.scope == "global" and self._settings.criterion not in _NATURAL:
                keys = _lamp(keys, self._settings.criterion)
            if costs is not None:
                keys = keys / max(costs.get(part.layer.name, 0.0) / part.array.size, 1e-30)
            floor = max(1, math.ceil(self._settings.least * keys.size))
            found.append(Pool(part.layer.name, keys, floor, part.share))
        return found

    def _whole(self, costs: Mapping[str, float] | None) -> list[Pool]:
        keys = []
        for part, matrix in zip(self.parts, self._matrices, strict=True):
            mask = self.pattern.mask(matrix, part.layer.channels)
            lost = float(np.abs(matrix[~mask]).sum() / max(float(np.abs(matrix).sum()), 1e-300))
            keys.append(lost / max(costs.get(part.layer.name, 0.0), 1e-30) if costs is not None else lost)
        return [Pool("layers", np.array(keys), 0)]

    def masks(self, removed: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """By weight, which stay (bool, the weight's shape); weights that stay whole are left out."""
        found = {}
        for i, (part, matrix) in enumerate(zip(self.parts, self._matrices, strict=True)):
            if self.pattern.group:
                if not removed[0][i]:
                    continue
                kept = self.pattern.mask(matrix, part.layer.channels)
            else:
                if not removed[i].any():
                    continue
                kept = ~removed[i].reshape(self._cells[i].shape)
                if self.pattern != UNSTRUCTURED:
                    kept = self.pattern.spread(kept, (matrix.shape[0], matrix.shape[1]), part.layer.channels)
                kept = kept.reshape(matrix.shape)
            found[part.layer.weight] = np.ascontiguousarray(part.layer.array(kept))
        return found

    def counts(self, removed: Sequence[np.ndarray]) -> dict[str, float]:
        """Multiply-adds and parameters of the graph; ``sparsity``: the part of the weights that take part that is not
        zero."""
        lost = [self._lost(i, removed) for i in range(len(self.parts))]
        every = sum(p.array.size for p in self.parts)
        alive = sum(int(a.sum()) for a in self._alive) - sum(lost)
        return {
            "macs": self._dense["macs"]
            - sum(n * self._runs[p.layer.weight] for n, p in zip(lost, self.parts, strict=True)),
            "params": self._dense["params"] - sum(lost),
            "sparsity": alive / max(1, every),
        }

    def _lost(self, index: int, removed: Sequence[np.ndarray]) -> int:
        """How many weights of a part become zero."""
        if not self.pattern.group:
            return int(self._alive[index][removed[index]].sum())
        if not removed[0][index]:
            return 0
        part = self.parts[index]
        kept = part.layer.array(self.pattern.mask(self._matrices[index], part.layer.channels))
        return int(np.count_nonzero(part.array) - np.count_nonzero(part.array * kept))

    def made(self, removed: Sequence[np.ndarray]) -> Graph:
        """The graph with the zeros."""
        return masked(self.graph, self.masks(removed))


def _lamp(cells: np.ndarray, criterion: str) -> np.ndarray:
    """Squared magnitudes over the sum of those that are not lower."""
    squares = cells if criterion == "l2" else np.square(cells)  # l2's scores are squares already
    order = np.argsort(-squares, kind="stable")
    sums = np.cumsum(squares[order])
    found = np.empty(len(squares))
    found[order] = squares[order] / np.maximum(sums, 1e-300)
    return found


def masked(graph: Graph, masks: Mapping[str, np.ndarray]) -> Graph:
    """The graph with zeros where masks (by weight) are False."""
    work = graph.copy()
    for key in graph.find("const"):
        mask = masks.get(graph.tensor_name(Value(key)))
        if mask is not None:
            array = np.where(mask, graph.node(key).array, 0).astype(graph.node(key).array.dtype)
            array.flags.writeable = False
            work.set_node(key, attrs={"value": array})
    return work


__all__ = ["Cells", "Part", "candidates", "masked"]
