"""SmoothQuant (Xiao et al. 2023, "Accurate and efficient post-training quantization for large language models"):
outliers of a few channels move from activations into weights.

Channel c of a matmul's input is divided by ``max|x_c|^alpha / max|w_c|^(1 - alpha)`` and the weights' row multiplied by
it. The division costs nothing where the input comes from a norm that only such layers read (its scale and bias take
it), or from another layer as in ``equalize``.
"""

from __future__ import annotations

import numpy as np

from ..ir import Graph, Value
from .equalize import Channels, apply_factors, links, scale_constant
from .forms import Layer
from .observe import Feeds, Progress, Watcher, silent
from .place import Sites

NORMS = ("layer_norm", "rms_norm")


def smooth(graph: Graph, placed: Sites, feeds: Feeds, alpha: float, progress: Progress = silent) -> Graph:
    """A copy of the float graph that computes the same, with activations smoothed. ``alpha`` in [0, 1]: 0 leaves the
    activations' outliers nearly alone, 1 moves all of them into the weights."""
    norms = _norms(graph, placed)
    chained = [k for k in links(graph, placed) if all(u.op == "matmul" for u in k.users)]
    axes = {graph.tensor_name(v): graph.type(v).rank - 1 for v, _ in norms}
    axes |= {graph.tensor_name(k.between): k.axis for k in chained}
    if not axes:
        return graph.copy()
    seen = {n: Channels(np.zeros(1), np.zeros(1)) for n in axes}
    with Watcher(graph, list(axes)) as watcher:
        watcher.run(feeds, lambda _, n, a: seen[n].add(a, axes[n]), progress, "smoothing")
    work = graph.copy()
    for value, users in norms:
        _into_norm(work, value, users, _factors(work, users, seen[graph.tensor_name(value)].reach, alpha))
    for link in chained:
        apply_factors(work, link, _factors(work, link.users, seen[graph.tensor_name(link.between)].reach, alpha))
    work.prune()
    return work


def _norms(graph: Graph, placed: Sites) -> list[tuple[Value, tuple[Layer, ...]]]:
    """Norms over the last axis with constant scale and bias that only matmul layers read."""
    layers = {layer.node: layer for layer in placed.layers if layer.op == "matmul"}
    found = []
    for key in graph.order():
        node = graph.node(key)
        if node.op not in NORMS or node.attrs["axis"] % node.types[0].rank != node.types[0].rank - 1:
            continue
        users = graph.users(Value(key))
        only = users and graph.uses(Value(key)) == len(users) and all(u in layers and arg == 0 for u, arg in users)
        own = all(a is None or graph.constant(a) is not None for a in graph.args(key)[1:])
        if only and own and all(graph.uses(graph.args(u)[1]) == 1 for u, _ in users):  # type: ignore[arg-type]
            found.append((Value(key), tuple(layers[u] for u, _ in users)))
    return found


def _factors(graph: Graph, users: tuple[Layer, ...], reach: np.ndarray, alpha: float) -> np.ndarray:
    rows = np.zeros_like(reach)
    for user in users:
        w = graph.constant(graph.args(user.node)[1])
        assert w is not None
        rows = np.maximum(rows, np.abs(w.astype(np.float64)).reshape(-1, w.shape[-1]).max(axis=1))
    some = (reach > 0) & (rows > 0)
    factor = np.where(some, np.where(some, reach, 1) ** alpha / np.where(some, rows, 1) ** (1 - alpha), 1.0)
    middle = np.exp(np.log(factor).mean())  # the whole tensor need not grow or shrink
    return np.asarray(np.clip(factor / middle, 1e-4, 1e4))


def _into_norm(graph: Graph, value: Value, users: tuple[Layer, ...], factor: np.ndarray) -> None:
    node, args = graph.node(value), graph.args(value.node)
    if len(args) < 2 or args[1] is None:
        name = f"{node.names[0]}_scale"
        graph.set_arg(value.node, 1, graph.const((1 / factor).astype(np.float32), name, node.origin))
    else:
        scale_constant(graph, value.node, 1, 1 / factor, -1)
    if len(args) > 2 and args[2] is not None:
        scale_constant(graph, value.node, 2, 1 / factor, -1)
    for user in users:
        scale_constant(graph, user.node, 1, factor, -2)


__all__ = ["smooth"]
