"""Weights rounded to suit their inputs, one layer after the other by itself.

Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization": rounding each weight to the nearest
step is not what changes a layer's output least. For output channel w with inputs x the expected change is quadratic,
``(w' - w) H (w' - w)`` with ``H = E[x x^T]``, and the choice of up or down for each weight a binary problem. The paper
relaxes it and descends by gradient; here one weight after the other takes the better of its two steps, all channels at
a time, until few change. Each step lowers the error, so that it never ends above rounding to nearest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import Graph
from .forms import Layer
from .observe import Feeds, Progress, Watcher, silent
from .place import Sites, origin_of
from .scheme import Scheme

SWEEPS = 6
BLOCK = 64  # columns between two updates of the whole gradient
POSITIONS = 64  # of a sample from which inputs of a convolution are taken
MOST_SAMPLES = 64
MOST_INPUTS = 8192  # of one output: the matrix has the square of that
DAMPING = 0.01  # of the mean diagonal, added to it: few samples say little about rare directions


def round_adaptively(
    graph: Graph, placed: Sites, schemes: Mapping[str, Scheme], feeds: Feeds, progress: Progress = silent
) -> Graph:
    """A copy of the float graph whose weights lie on the steps of their schemes, chosen for the samples."""
    work = graph.copy()
    inputs = {layer.name: graph.args(layer.node)[0] for layer in placed.layers}
    names = sorted({graph.tensor_name(v) for v in inputs.values() if v is not None})
    moments: dict[str, np.ndarray] = {}
    readers: dict[str, list[Layer]] = {}
    for layer in placed.layers:
        if _depth(graph, layer) <= MOST_INPUTS:
            readers.setdefault(graph.tensor_name(inputs[layer.name]), []).append(layer)  # type: ignore[arg-type]

    def visit(sample: int, name: str, array: np.ndarray) -> None:
        for layer in readers.get(name, ()):
            scheme = schemes.get(graph.tensor_name(origin_of(graph, inputs[layer.name])))  # type: ignore[arg-type]
            seen = array if scheme is None else scheme.rounded(array)
            rows = _inputs(graph, layer, seen, np.random.default_rng(sample))
            moment = np.matmul(rows.transpose(0, 2, 1), rows)
            moments[layer.name] = moments.get(layer.name, 0) + moment

    with Watcher(graph, names) as watcher:
        watcher.run(feeds[:MOST_SAMPLES], visit, progress, "inputs of layers")
    done: set[str] = set()
    for i, layer in enumerate(placed.layers):
        if layer.name in moments and layer.weight not in done:
            _round(work, layer, schemes[layer.weight], moments.pop(layer.name))
            done.add(layer.weight)
        progress("adaptive rounding", i + 1, len(placed.layers))
    work.prune()
    return work


def _depth(graph: Graph, layer: Layer) -> int:
    """Inputs of one output."""
    w = graph.constant(graph.args(layer.node)[1])
    assert w is not None
    return math.prod(w.shape[1:]) if layer.op == "conv" else w.shape[-2]


def _inputs(graph: Graph, layer: Layer, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[groups, rows, depth]: the inputs of some of a layer's outputs."""
    if layer.op == "matmul":
        rows = x.reshape(-1, x.shape[-1])
        some = rng.permutation(len(rows))[:POSITIONS] if len(rows) > POSITIONS else slice(None)
        return rows[None, some]
    attrs = graph.node(layer.node).attrs
    w = graph.constant(graph.args(layer.node)[1])
    assert w is not None
    rank = x.ndim - 2
    pads, strides, dilations = attrs["pads"], attrs["strides"], attrs["dilations"]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = tuple(d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    windows = windows[(slice(None), slice(None), *steps)]
    outputs = windows.shape[2 : 2 + rank]
    flat = rng.permutation(math.prod(outputs))[:POSITIONS]
    picked: tuple[Any, ...] = (slice(None), slice(None), *np.unravel_index(flat, outputs))
    taken = windows[picked]  # [n, channels, positions, taps]
    n, channels, positions = taken.shape[:3]
    group = int(attrs["group"])
    parts = taken.reshape(n, group, channels // group, positions, -1).transpose(1, 0, 3, 2, 4)
    return np.ascontiguousarray(parts).reshape(group, n * positions, -1)


def _round(graph: Graph, layer: Layer, scheme: Scheme, moment: np.ndarray) -> None:
    value = graph.args(layer.node)[1]
    w = graph.constant(value)
    assert value is not None and w is not None
    wide = np.broadcast_to(scheme.scale, w.shape).astype(np.float64)
    if layer.op == "matmul":
        q = adaptive_steps(w.reshape(-1, w.shape[-1]).T, wide.reshape(-1, w.shape[-1]).T, moment[0], scheme).T
        steps = q.reshape(w.shape)
    else:
        groups, rows = len(moment), (len(w) // len(moment), -1)
        flat, scales = (a.reshape(groups, *rows) for a in (w, wide))
        steps = np.stack([adaptive_steps(flat[g], scales[g], moment[g], scheme) for g in range(groups)]).reshape(
            w.shape
        )
    stored = scheme.real(steps.astype(scheme.dtype)).astype(w.dtype)
    graph.set_arg(layer.node, 1, graph.const(stored, layer.weight, graph.node(value).origin))


def adaptive_steps(w: np.ndarray, scale: np.ndarray, moment: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Steps [channels, depth] of the weights ``w`` [channels, depth]; ``moment`` [depth, depth] is E[x x^T] (times any
    positive number). No weight moves by a whole step."""
    exact = w.astype(np.float64) / scale
    low, high = (np.clip(f(exact), *scheme.bounds) for f in (np.floor, np.ceil))
    q = np.clip(np.rint(exact), *scheme.bounds)
    h = moment.astype(np.float64)
    h = h + np.eye(len(h)) * max(DAMPING * float(np.trace(h)) / len(h), 1e-30)
    gradient = ((q - exact) * scale) @ h
    for _ in range(SWEEPS):
        changed = 0
        for start in range(0, len(h), BLOCK):
            cut = slice(start, min(start + BLOCK, len(h)))
            before, near = q[:, cut].copy(), gradient[:, cut].copy()
            for j in range(before.shape[1]):
                k = start + j
                wanted = q[:, k] - near[:, j] / (h[k, k] * scale[:, k])
                new = np.clip(np.rint(wanted), low[:, k], high[:, k])
                move = (new - q[:, k]) * scale[:, k]
                some = np.flatnonzero(move)
                if some.size:
                    near[some] += move[some, None] * h[k, cut]
                    q[some, k] = new[some]
                    changed += some.size
            gradient += ((q[:, cut] - before) * scale[:, cut]) @ h[cut]
        if changed <= q.size // 1000:
            break
    return np.asarray(q)


__all__ = ["adaptive_steps", "round_adaptively"]
