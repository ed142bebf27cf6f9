"""Channels of quantized convolutions that hold one number, or that nothing reads, are left out.

Networks whose activations clip often end up with them: a batch norm that shuts a channel off becomes weights that are
all zero and a bias. What is computed stays the same to the bit.

1. A channel whose weights are all zero is one number: its bias, rescaled. So is one whose weights are not zero only
   where its input's channels are known numbers.
2. A convolution need not read a channel that is a known number: what it adds goes into the bias. Where the input is
   padded, with real zeros, that holds for the number that stands for zero only.
3. A channel that nothing reads is not computed; in a depthwise convolution the channel that it is made of goes too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import STORED, Graph, Node, Value
from ..ops.integers import rescale

GRANULE = 16  # bytes of channels: whole words and vectors on every machine, and layers of fewer different shapes


def drop_idle_channels(graph: Graph, granule: int = GRANULE) -> Graph:
    """A copy of a canonical graph without the idle channels of its integer convolutions; ``graph`` itself if it has
    none. Names, inputs and outputs stay. Some idle channels stay where their number then is a multiple of ``granule``,
    with which kernels are at ease."""
    layers = {key: found for key in graph.order() if (found := _layer(graph, key)) is not None}
    made_by = {layer.out: layer for layer in layers.values() if layer.out is not None}
    for layer in layers.values():
        source = made_by.get(layer.x)
        _constants(graph, layer, source.known if source is not None else None)
    for layer in reversed(layers.values()):
        if layer.out is not None:
            layer.needed = _rounded(_needed(graph, layer, layers), granule)
    lost = {layer.out: ~layer.needed for layer in made_by.values() if not layer.needed.all()}
    return _rebuilt(graph, layers, lost) if lost else graph


@dataclass
class _Layer:
    """A ``conv_integer`` with constant weights [O, I, ...] and bias [O]; ``out`` is its rescaled result where nothing
    else reads the sums (then ``rescaled`` is the node that makes it).

    ``known``: the number that each channel of ``out`` holds, NaN where it is not one. ``foldable``: the channels of
    ``x`` whose part is one number, ``x_known``. ``needed``: the channels of ``out`` that something reads."""

    key: int
    node: Node
    x: Value
    w: np.ndarray
    bias: np.ndarray
    out: Value | None = None
    rescaled: int = -1
    known: np.ndarray = field(default_factory=lambda: np.empty(0))
    x_known: np.ndarray = field(default_factory=lambda: np.empty(0))
    foldable: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    needed: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    @property
    def depthwise(self) -> bool:
        return bool(self.node.attrs["group"] > 1)

    @property
    def taps(self) -> np.ndarray:
        """Sums of the weights over each window: [O, I]."""
        return np.asarray(self.w.reshape(*self.w.shape[:2], -1).sum(axis=2, dtype=np.int64))

    @property
    def used(self) -> np.ndarray:
        """Which weights [O, I] are not all zero over their windows."""
        return np.asarray(self.w.reshape(*self.w.shape[:2], -1).any(axis=2))


def _layer(graph: Graph, key: int) -> _Layer | None:
    node = graph.node(key)
    if node.op != "conv_integer":
        return None
    args = [*graph.args(key), None]
    w, bias = graph.constant(args[1]), graph.constant(args[2])
    x, group = args[0], node.attrs["group"]
    if x is None or w is None or (args[2] is not None and bias is None):
        return None
    if group > 1 and not (group == len(w) and w.shape[1] == 1):
        return None
    layer = _Layer(key, node, x, w, np.zeros(len(w), np.int64) if bias is None else bias.astype(np.int64))
    users = graph.users(Value(key))
    if len(users) == 1 and not _shown(graph, Value(key)) and graph.node(users[0][0]).op == "requantize":
        multiplier = graph.constant(graph.args(users[0][0])[1])
        if users[0][1] == 0 and multiplier is not None and _per_channel(multiplier, node.types[0].rank, len(w)):
            layer.out, layer.rescaled = Value(users[0][0]), users[0][0]
    return layer


def _per_channel(multiplier: np.ndarray, rank: int, channels: int) -> bool:
    """Whether a multiplier broadcasts along the channels [N, C, ...] only."""
    shape = (1,) * (rank - multiplier.ndim) + multiplier.shape
    return all(n == 1 for i, n in enumerate(shape) if i != 1) and shape[1] in (1, channels)


def _shown(graph: Graph, value: Value) -> bool:
    return value in graph.outputs or value in graph.bindings.values()


def _constants(graph: Graph, layer: _Layer, known: np.ndarray | None) -> None:
    """Fills in what is known of the layer's input and, with it, of its output."""
    channels = len(layer.w) if layer.depthwise else layer.w.shape[1]
    layer.x_known = np.full(channels, np.nan) if known is None else known
    layer.foldable = ~np.isnan(layer.x_known)
    if any(layer.node.attrs["pads"]):
        layer.foldable &= layer.x_known == layer.node.attrs["zero_point"]
    layer.known = np.full(len(layer.w), np.nan)
    if layer.out is None:
        return
    read = layer.used & (~layer.foldable[:, None] if layer.depthwise else ~layer.foldable)
    one = ~read.any(axis=1)
    if one.any():
        attrs = graph.node(layer.out).attrs
        multiplier = np.broadcast_to(_multiplier(graph, layer).reshape(-1), (len(layer.w),))
        sums = layer.bias + _folded(layer, layer.foldable) - attrs["x_zero_point"]
        bounds = (attrs["zero_point"], attrs["low"], attrs["high"], attrs["to"])
        layer.known[one] = rescale(sums[one], multiplier[one], *bounds)


def _multiplier(graph: Graph, layer: _Layer) -> np.ndarray:
    found = graph.constant(graph.args(layer.rescaled)[1])
    assert found is not None
    return found


def _folded(layer: _Layer, channels: np.ndarray) -> np.ndarray:
    """What some channels of the input, which are known numbers, add to each sum."""
    number = np.where(channels, np.nan_to_num(layer.x_known) - layer.node.attrs["zero_point"], 0).astype(np.int64)
    taps = layer.taps
    return np.asarray(taps[:, 0] * number if layer.depthwise else taps @ number)


def _needed(graph: Graph, layer: _Layer, layers: dict[int, _Layer]) -> np.ndarray:
    """The channels of the layer's output that something reads; one at least."""
    assert layer.out is not None
    every = np.ones(len(layer.w), bool)
    found = ~every
    if _shown(graph, layer.out):
        return every
    for user, arg in graph.users(layer.out):
        reader = layers.get(user)
        if reader is None or arg != 0:
            return every
        if reader.depthwise:
            found |= reader.needed if reader.out is not None else every
        else:
            rows = reader.needed if reader.out is not None else np.ones(len(reader.w), bool)
            found |= reader.used[rows].any(axis=0) & ~reader.foldable
    found[0] |= not found.any()
    return np.asarray(found)


def _rounded(needed: np.ndarray, granule: int) -> np.ndarray:
    """With as many of the first others as make the number a multiple of ``granule``."""
    idle = np.flatnonzero(~needed)
    found = needed.copy()
    found[idle[: -int(needed.sum()) % granule]] = True
    return found


def _rebuilt(graph: Graph, layers: dict[int, _Layer], lost: dict[Value | None, np.ndarray]) -> Graph:
    new, at = Graph(graph.name), {}
    new.meta = dict(graph.meta)
    rescaled = {layer.rescaled: layer for layer in layers.values() if layer.out in lost}
    for key in [*graph.inputs, *(k for k in graph.order() if graph.node(k).op != "input")]:
        node = graph.node(key)
        if node.op == "input":
            at[Value(key)] = new.input(node.names[0], node.types[0], node.origin)
            continue
        if node.op in STORED:
            at[Value(key)] = getattr(new, node.op)(node.array, node.names[0], node.origin)
            continue
        args = [None if a is None else at[a] for a in graph.args(key)]
        attrs: dict[str, Any] = dict(node.attrs)
        if key in layers and (layers[key].out in lost or layers[key].x in lost):
            args, attrs = _cut(graph, new, layers[key], args, lost)
        elif key in rescaled:
            multiplier = _multiplier(graph, rescaled[key])
            if multiplier.size > 1:
                axis = multiplier.ndim - graph.node(key).types[0].rank + 1
                kept = np.take(multiplier, np.flatnonzero(rescaled[key].needed), axis)
                args[1] = _again(graph, new, graph.args(key)[1], kept)
        made = new.add(node.op, *args, names=node.names, origin=node.origin, **attrs)
        at.update(zip(graph.values(key), new.values(made.node), strict=True))
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        new.output(at[value], name)
    for stored, value in graph.bindings.items():
        new.bind(at[Value(stored)], at[value])
    new.prune()
    return new


def _cut(
    graph: Graph, new: Graph, layer: _Layer, args: list[Value | None], lost: dict[Value | None, np.ndarray]
) -> tuple[list[Value | None], dict[str, Any]]:
    """Arguments and attributes of a convolution without the channels that are lost on either side."""
    gone = lost.get(layer.x, np.zeros(len(layer.x_known), bool))
    rows = layer.needed if layer.out in lost else np.ones(len(layer.w), bool)
    bias = (layer.bias + _folded(layer, gone & layer.foldable))[rows]
    w = layer.w[rows] if layer.depthwise else layer.w[rows][:, ~gone]
    attrs = dict(layer.node.attrs)
    if layer.depthwise:
        attrs["group"] = len(w)
    given = graph.args(layer.key)
    made = [args[0], _again(graph, new, given[1], w)]
    if len(given) > 2 and given[2] is not None:
        made.append(_again(graph, new, given[2], bias.astype(graph.type(given[2]).dtype)))
    elif bias.any():
        dtype = layer.node.types[0].dtype
        made.append(new.const(bias.astype(dtype), f"{graph.tensor_name(Value(layer.key))}.bias", layer.node.origin))
    return made, attrs


def _again(graph: Graph, new: Graph, before: Value | None, array: np.ndarray) -> Value:
    """A constant anew, smaller, under its name."""
    assert before is not None
    return new.const(np.ascontiguousarray(array), graph.tensor_name(before), graph.node(before).origin)


__all__ = ["drop_idle_channels"]
