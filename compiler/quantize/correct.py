"""Bias correction: the mean that quantization adds to each output channel goes into the bias (Nagel et al. 2019,
"Data-free quantization through weight equalization and bias correction", in its empirical form).

Weights that are rounded and activations that are clipped change the mean of a layer's outputs, and such errors add up
from layer to layer where others average out. The mean is measured over the samples: with each layer's float inputs,
quantized and multiplied by the quantized weights, against the same inputs clipped and the weights as they were.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir import Graph, Value
from .forms import Layer
from .observe import Feeds, Progress, compiled, silent
from .place import Sites, origin_of
from .scheme import Scheme


def correct_biases(
    graph: Graph,
    placed: Sites,
    schemes: Mapping[str, Scheme],
    feeds: Feeds,
    progress: Progress = silent,
    base: Graph | None = None,
) -> Graph:
    """A copy of the float graph ``graph`` whose biases make up for the mean errors of its layers.

    ``base`` has the weights before they were rounded (adaptively), where those of ``graph`` are rounded already.
    """
    shifts = mean_errors(graph, placed, schemes, feeds, progress, base or graph)
    work = graph.copy()
    for layer in placed.layers:
        add_to_bias(work, layer, -shifts[layer.name])
    work.prune()
    return work


def mean_errors(
    graph: Graph,
    placed: Sites,
    schemes: Mapping[str, Scheme],
    feeds: Feeds,
    progress: Progress = silent,
    base: Graph | None = None,
) -> dict[str, np.ndarray]:
    """The mean error of each output channel ([channels], float64) of each layer, by the layer's name.

    What clipping changes is left out: it happens in few samples, and a bias that mends those harms all others.
    """
    work = (base or graph).copy()
    work.outputs, work.output_names, work.bindings = [], [], {}
    for layer in placed.layers:
        for value in (quantized_layer(work, layer, schemes, graph), clipped_layer(work, layer, schemes)):
            work.output(_channel_mean(work, value, layer.op))
    sums = {layer.name: np.zeros(layer.channels) for layer in placed.layers}
    with compiled(work) as run:
        for i, feed in enumerate(feeds):
            found = run(feed)
            for layer, y, x in zip(placed.layers, found[::2], found[1::2], strict=True):
                sums[layer.name] += y.astype(np.float64) - x.astype(np.float64)
            progress("bias correction", i + 1, len(feeds))
    return {name: total / len(feeds) for name, total in sums.items()}


def quantized_layer(graph: Graph, layer: Layer, schemes: Mapping[str, Scheme], weights: Graph | None = None) -> Value:
    """Adds a layer with its input and weights (of ``weights``) as quantization changes them, in float; its bias as it
    is."""
    node, (x, w, *rest) = graph.node(layer.node), graph.args(layer.node)
    assert x is not None and w is not None
    scheme = schemes.get(graph.tensor_name(origin_of(graph, x)))
    if scheme is not None:
        x = rounded(graph, x, scheme)
    held = weights or graph
    array = held.constant(held.args(layer.node)[1])
    assert array is not None
    w = graph.const(schemes[layer.weight].rounded(array).astype(np.float32), layer.weight, node.origin)
    return graph.add(node.op, x, w, *rest, origin=node.origin, **node.attrs)


def clipped_layer(graph: Graph, layer: Layer, schemes: Mapping[str, Scheme]) -> Value:
    """Adds a layer whose input is clipped to its scheme's range; the layer itself where it has none."""
    node, (x, *rest) = graph.node(layer.node), graph.args(layer.node)
    assert x is not None
    scheme = schemes.get(graph.tensor_name(origin_of(graph, x)))
    if scheme is None:
        return Value(layer.node)
    low, high = (float(r) for r in scheme.reals)
    return graph.add(node.op, graph.add("clip", x, low=low, high=high), *rest, origin=node.origin, **node.attrs)


def rounded(graph: Graph, x: Value, scheme: Scheme) -> Value:
    """``x`` quantized and dequantized."""
    scale, zero = graph.const(scheme.scale), graph.const(np.asarray(scheme.zero_point, scheme.dtype))
    q = graph.add("quantize", x, scale, zero, to=scheme.dtype, low=scheme.low, high=scheme.high)
    return graph.add("dequantize", q, scale, zero)


def _channel_mean(graph: Graph, value: Value, op: str) -> Value:
    rank = graph.type(value).rank
    axes = tuple(i for i in range(rank) if i != (1 if op == "conv" else rank - 1))
    return graph.add("reduce_mean", value, axes=axes)


def add_to_bias(graph: Graph, layer: Layer, shift: np.ndarray) -> None:
    """Adds a number for each channel to a layer's bias (made where there is none), in a graph that the caller owns."""
    name = layer.bias or f"{layer.weight}_bias"
    if layer.bias_at is not None:
        at, arg = layer.bias_at
        old = graph.args(at)[arg]
        array = graph.constant(old)
        assert old is not None and array is not None
        shape = array.shape if array.size > 1 else (layer.channels,)
        new = np.broadcast_to(array.reshape(-1), layer.channels) + shift
        graph.set_arg(at, arg, graph.const(new.reshape(shape).astype(np.float32), name, graph.node(old).origin))
        return
    origin = graph.node(layer.node).origin
    bias = graph.const(shift.astype(np.float32), name, origin)
    if layer.op == "conv":
        graph.set_arg(layer.node, 2, bias)
    else:
        graph.replace(Value(layer.node), graph.add("add", Value(layer.node), bias, origin=origin))
