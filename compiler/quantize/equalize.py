"""Cross-layer equalization (after Nagel et al. 2019, "Data-free quantization through weight equalization and bias
correction"): channels between two layers are scaled so that all of them use the range of their tensor.

Where a layer's output channels reach the next layers only through operators that commute with a positive factor (relu,
pools), channel c may be divided by f_c in the first and multiplied by it in the next. The paper balances ranges of
weights. Weights have a scale for each output channel here, so that the first layer, and a depthwise second one, take
any factor for nothing, and what is balanced is noise: rounding an activation adds ``step^2 / 12`` to each element,
which reaches the outputs through the squared weights, and rounding the next layer's weights adds as much through the
squared activations. With ``a`` and ``b`` for the two, ``f^2 a + b / f^2`` is least at ``f^4 = b / a``. f never makes a
channel larger than the largest, so that a clip from above that no channel passed before does nothing afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import Graph, Value
from .forms import Layer
from .observe import Feeds, Progress, Watcher, silent
from .place import Sites

_THROUGH = ("relu", "leaky_relu", "clip", "max_pool", "avg_pool", "reduce_mean", "identity", "reshape")
_LEAST = 2.0**-8  # of a channel's factor


@dataclass(frozen=True)
class Link:
    """A layer whose output channels only ``users`` read; ``between`` is the tensor that those read, ``axis`` that
    of the channels there."""

    layer: Layer
    between: Value
    axis: int
    users: tuple[Layer, ...]


def links(graph: Graph, placed: Sites) -> list[Link]:
    """The places where channels may be scaled, in topological order."""
    layers = {layer.node: layer for layer in placed.layers}
    found = []
    for layer in placed.layers:
        value, axis = layer.result, 1 if layer.op == "conv" else graph.type(layer.result).rank - 1
        while True:
            users = graph.users(value)
            if not users or value in graph.outputs:
                break
            if all(user in layers and arg == 0 for user, arg in users):
                nexts = tuple(layers[user] for user, _ in users)
                if all(_fits(graph, axis, value, n, layer.channels) for n in nexts):
                    found.append(Link(layer, value, axis, nexts))
                break
            step = _through(graph, users[0][0], axis, layer.channels) if len(users) == 1 else None
            if step is None:
                break
            value, axis = Value(users[0][0]), step
    return [link for link in found if _own_weights(graph, link)]


def _through(graph: Graph, key: int, axis: int, channels: int) -> int | None:
    """The channels' axis behind an operator that commutes with positive factors; None for any other."""
    node = graph.node(key)
    if node.op not in _THROUGH or len(node.types) != 1:
        return None
    rank = graph.type(graph.args(key)[0]).rank  # type: ignore[arg-type]
    if node.op == "clip":
        return axis if node.attrs["low"] in (None, 0) and node.attrs["high"] is not None else None
    if node.op in ("max_pool", "avg_pool"):
        return axis if axis == 1 else None
    if node.op == "reduce_mean":
        gone = sorted(a % rank for a in node.attrs["axes"])
        if axis in gone:
            return None
        return axis if node.attrs["keepdims"] else axis - sum(a < axis for a in gone)
    if node.op == "reshape":
        wide = [i for i, d in enumerate(node.types[0].dims) if d != 1]
        whole = graph.type(graph.args(key)[0]).size == channels  # type: ignore[arg-type]
        return wide[0] if whole and len(wide) == 1 else None
    return axis


def _fits(graph: Graph, axis: int, value: Value, user: Layer, channels: int) -> bool:
    """Whether a layer's inputs along ``axis`` are its input channels."""
    kind = graph.type(value)
    if user.op == "matmul":
        return axis == kind.rank - 1 and kind.dims[-1] == channels
    group = graph.node(user.node).attrs["group"]
    return axis == 1 and kind.dims[1] == channels and group in (1, channels)


def _own_weights(graph: Graph, link: Link) -> bool:
    """Whether nobody else uses the weights and biases that would change."""
    for layer in (link.layer, *link.users):
        places = [graph.args(layer.node)[1]]
        if layer.bias_at is not None:
            places.append(graph.args(layer.bias_at[0])[layer.bias_at[1]])
        if any(value is None or graph.uses(value) != 1 for value in places):
            return False
    return True


@dataclass
class Channels:
    """Statistics of each channel of a tensor over the samples."""

    reach: np.ndarray
    power: np.ndarray  # sum over the samples of the mean square
    samples: int = 0

    def add(self, array: np.ndarray, axis: int) -> None:
        """One more sample."""
        others = tuple(i for i in range(array.ndim) if i != axis)
        self.reach = np.maximum(self.reach, np.maximum(array.max(axis=others), -array.min(axis=others)))
        self.power = self.power + np.square(array, dtype=np.float32).mean(axis=others, dtype=np.float64)
        self.samples += 1


def equalize(graph: Graph, placed: Sites, feeds: Feeds, progress: Progress = silent, bits: int = 8) -> Graph:
    """A copy of the float graph that computes the same, with the channels of its links evened out."""
    found = links(graph, placed)
    if not found:
        return graph.copy()
    axes = {graph.tensor_name(link.between): link for link in found}
    seen = {n: Channels(np.zeros(k.layer.channels), np.zeros(k.layer.channels)) for n, k in axes.items()}
    with Watcher(graph, list(axes)) as watcher:
        watcher.run(feeds, lambda _, n, a: seen[n].add(a, axes[n].axis), progress, "equalizing")
    work = graph.copy()
    for name, link in axes.items():
        apply_factors(work, link, factors(work, link, seen[name], bits))
    work.prune()
    return work


def factors(graph: Graph, link: Link, seen: Channels, bits: int) -> np.ndarray:
    """f_c [channels] in (0, 1]: channel c is divided by it."""
    most = float(seen.reach.max(initial=0.0))
    if most <= 0:
        return np.ones_like(seen.reach)
    least = np.clip(seen.reach / most, _LEAST, 1.0)
    step = (most / 255) ** 2
    a, b = np.zeros_like(least), np.zeros_like(least)
    for user in link.users:
        w = graph.constant(graph.args(user.node)[1])
        assert w is not None
        if user.op == "conv" and graph.node(user.node).attrs["group"] > 1:
            continue  # its scales take the factors
        rows = w.astype(np.float64) if user.op == "matmul" else np.moveaxis(w.astype(np.float64), 1, 0)
        rows = rows.reshape(len(least), -1)
        taps = rows.shape[1] // user.channels
        reach = np.abs(w.astype(np.float64)).max(axis=tuple(i for i in range(w.ndim) if i != user.axis))
        a += step * (rows**2).sum(axis=1)
        b += seen.power / seen.samples * taps * ((reach / (2 ** (bits - 1) - 1)) ** 2).sum()
    best = (b / np.maximum(a, 1e-300)) ** 0.25 if b.any() else np.zeros_like(least)
    return np.where(seen.reach > 0, np.clip(best, least, 1.0), 1.0)


def apply_factors(graph: Graph, link: Link, factor: np.ndarray) -> None:
    """Divides the channels of a link's layer and multiplies those of its users' inputs."""
    layer = link.layer
    scale_constant(graph, layer.node, 1, 1 / factor, layer.axis)
    if layer.bias_at is not None:
        at, arg = layer.bias_at
        bias = graph.constant(graph.args(at)[arg])
        assert bias is not None
        if bias.size == 1 and layer.channels > 1:
            wide = np.broadcast_to(bias.reshape(-1), layer.channels)
            graph.set_arg(at, arg, graph.const(wide, layer.bias, graph.node(at).origin))
        rank = 1 if bias.size == 1 else bias.ndim
        scale_constant(graph, at, arg, 1 / factor, rank - 1)
    for user in link.users:
        grouped = user.op == "conv" and graph.node(user.node).attrs["group"] > 1
        if not grouped:
            scale_constant(graph, user.node, 1, factor, 1 if user.op == "conv" else user.axis - 1)
        else:
            scale_constant(graph, user.node, 1, np.repeat(factor, user.channels // len(factor)), 0)


def scale_constant(graph: Graph, key: int, arg: int, factor: np.ndarray, axis: int) -> None:
    """Multiplies a constant input of an operator by a number for each index along one of its axes."""
    value = graph.args(key)[arg]
    array = graph.constant(value)
    assert value is not None and array is not None
    shape = [1] * array.ndim
    shape[axis] = len(factor)
    scaled = (array * factor.reshape(shape)).astype(array.dtype)
    graph.set_arg(key, arg, graph.const(scaled, graph.tensor_name(value), graph.node(value).origin))


__all__ = ["Channels", "Link", "apply_factors", "equalize", "factors", "links", "scale_constant"]
