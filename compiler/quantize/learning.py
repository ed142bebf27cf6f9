"""GPTQ over a whole network, layer after layer: see ``gptq``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir import Graph
from ..ops.weights import widened
from .forms import layer_at
from .gptq import Moments, damped, gptq, input_of, loss, moments_of, toward
from .groups import Grouped, Weight, best_scales, codes_of, rounder
from .observe import Feeds, Progress, Watcher
from .rounding import adaptive_steps
from .scheme import Scheme

PRUNED = 0.9  # of the weights: with fewer that are not zero, a weight counts as pruned

Made = tuple[np.ndarray, np.ndarray, tuple[int, int] | None]  # codes, scales, block


@dataclass(frozen=True)
class Row:
    """What became of one weight: ``loss`` is its squared error (at the layer's output, where samples say how much)
    relative to the weights' own (to the output's)."""

    name: str
    bits: int
    scales: int
    method: str
    loss: float


def nearest(w: Weight, array: np.ndarray, bits: int, group: int) -> tuple[Made, Row]:
    """A weight rounded to the nearest."""
    form = Grouped(w, array.shape, group)
    codes, scales = [], []
    spent = 0.0
    for matrix in form.matrices(array):
        held = best_scales(matrix, form.group_of, form.scales, bits, np.ones(len(matrix)))
        codes.append(codes_of(matrix, held, form.group_of, bits))
        scales.append(held)
        spent += float(np.square(codes[-1] * held[form.group_of].astype(np.float64) - matrix).sum())
    total = float(np.square(array.astype(np.float64)).sum())
    scale = form.scale(np.stack(scales))
    row = Row(w.name, bits, scale.size, "nearest", spent / total if total else 0.0)
    return (form.restored(np.stack(codes)), scale, form.block), row


class Learning:
    """GPTQ over a network: ``work`` is the float graph, whose biases it moves; results go into ``made``."""

    def __init__(self, work: Graph, made: dict[int, Made], calls: Feeds, seed: int) -> None:
        self.work, self.made, self.calls, self.seed = work, made, calls, seed
        self.plain, self.rounded = work.copy(), work.copy()
        for key, (codes, scale, block) in made.items():
            self.rounded.set_node(key, attrs=_value(widened(codes, scale, None, block)))

    def run(
        self,
        learned: Sequence[Weight],
        arrays: Mapping[int, np.ndarray],
        bits: Mapping[int, int],
        group: int,
        progress: Progress,
    ) -> dict[int, Row]:
        """Rounds layer after layer, in the network's order; those that read the same tensor together. (Not more at a
        time: what two layers in a row both make good would be made good twice.)"""
        place = {key: i for i, key in enumerate(self.work.order())}
        layers = sorted(learned, key=lambda w: place[w.layers[0]])
        parts: dict[str, list[Weight]] = {}
        for w in layers:
            parts.setdefault(input_of(self.plain, w.layers[0]), []).append(w)
        rows: dict[int, Row] = {}
        with Watcher(self.plain, list(parts)) as plain:
            for name, part in parts.items():
                with Watcher(self.rounded, [name]) as rounded:
                    seen = moments_of(plain, rounded, [w.layers[0] for w in part], self.calls, self.seed)
                for w in part:
                    rows[w.node] = self._round(w, arrays[w.node], bits[w.node], group, seen[w.layers[0]])
                progress("rounding", len(rows), len(layers))
        return rows

    def _round(self, w: Weight, array: np.ndarray, bits: int, group: int, seen: Moments) -> Row:
        form, bias = Grouped(w, array.shape, group), self._bias(w)
        seconds, crosses = (seen.second, seen.cross) if bias is None else seen.centered()
        matrices = form.matrices(array.astype(np.float64))
        codes, scales, shifts = [], [], []
        spent = total = 0.0
        for i, matrix in enumerate(matrices):
            h = seconds[i]
            wanted = np.where(matrix == 0, 0.0, toward(matrix, h, crosses[i], seen.count))
            one = np.diag(h) + 1e-9 * max(1e-9, float(np.diag(h).mean()))
            held = best_scales(wanted, form.group_of, form.scales, bits, one)
            steps = _better(wanted, held, form.group_of, bits, damped(h, seen.count))
            real = steps * held[form.group_of].astype(np.float64)
            spent, total = spent + loss(real - wanted, h), total + loss(wanted, h)
            codes.append(steps)
            scales.append(held)
            shifts.append((seen.x[i] @ matrix - seen.z[i] @ real) / seen.count)
        made = (form.restored(np.stack(codes)), form.scale(np.stack(scales)), form.block)
        self.made[w.node] = made
        self.rounded.set_node(w.node, attrs=_value(widened(*made[:2], None, made[2])))
        if bias is not None:
            self._shift(bias, np.concatenate(shifts))
        return Row(w.name, bits, made[1].size, "gptq", spent / total if total else 0.0)

    def _bias(self, w: Weight) -> tuple[int, int] | None:
        """Where the constant bias of a weight's only layer stands, one number for each output."""
        layer = layer_at(self.work, w.layers[0]) if len(w.layers) == 1 else ""
        if isinstance(layer, str) or layer.bias_at is None:
            return None
        at, arg = layer.bias_at
        held = self.work.constant(self.work.args(at)[arg])
        return layer.bias_at if held is not None and held.size == layer.channels else None

    def _shift(self, bias: tuple[int, int], by: np.ndarray) -> None:
        at, arg = bias
        for graph in (self.work, self.rounded):
            value = graph.args(at)[arg]
            assert value is not None
            node, array = graph.node(value), graph.constant(value)
            assert array is not None
            moved = (array.astype(np.float64) + by.reshape(array.shape)).astype(np.float32)
            new = graph.const(moved, graph.unique(f"{node.names[0]}.moved"), node.origin)
            graph.set_arg(at, arg, new)


def _better(matrix: np.ndarray, scales: np.ndarray, group_of: np.ndarray, bits: int, moments: np.ndarray) -> np.ndarray:
    """GPTQ's rounding, unless another does better on the samples: to the nearest, or, where much was pruned and little
    is left for errors to be spread on, step by step from there."""
    wide = scales[group_of].astype(np.float64)
    found = [codes_of(matrix, scales, group_of, bits)]
    found.append(codes_of(gptq(matrix, moments, rounder(scales, group_of, bits)), scales, group_of, bits))
    if np.count_nonzero(matrix) < PRUNED * matrix.size:
        most = 2 ** (bits - 1)
        scheme = Scheme("int8", np.ones((), np.float32), low=-most, high=most - 1)
        found.append(adaptive_steps(matrix.T, wide.T, moments, scheme).T.astype(np.int8))
    return min(found, key=lambda steps: loss(steps * wide - matrix, moments))


def _value(array: np.ndarray) -> dict[str, np.ndarray]:
    held = np.ascontiguousarray(array)
    held.setflags(write=False)
    return {"value": held}


__all__ = ["Learning", "Made", "Row", "nearest"]
