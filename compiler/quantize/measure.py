"""What quantization costs each layer: measured by running the float graph and the quantized one side by side.

``sqnr`` compares what the quantized network really holds behind each layer with what the float one does. ``causes``
takes a layer by itself, with its float input: how much of its output's noise comes from clipping and from rounding that
input, from rounding the weights, and from the bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ir import Graph, Value
from .correct import rounded
from .forms import ABSORBED, Layer
from .observe import Feeds, Progress, compiled, silent, with_outputs
from .place import Sites, origin_of
from .scheme import Scheme

MOST_SAMPLES = 16
PARTS = ("clip", "activations", "weights", "bias")


def layer_facts(
    plain: Graph, graph: Graph, placed: Sites, schemes: Mapping[str, Scheme], feeds: Feeds, progress: Progress = silent
) -> dict[str, dict[str, Any]]:
    """For each layer, by name: ``sqnr_db``; ``parts``, the noise over signal that each of ``PARTS`` adds to its output
    alone; ``causes``, their shares as range (clip), rounding (of activations and weights) and bias.

    ``plain`` is the float graph and ``graph`` the quantized one. The first ``MOST_SAMPLES`` samples are run.
    """
    some = feeds[:MOST_SAMPLES]
    sqnr = layer_sqnr(plain, graph, placed.layers, schemes, some, progress)
    parts = layer_parts(plain, placed.layers, schemes, some, progress)
    return {
        layer.name: {
            "sqnr_db": sqnr[layer.name],
            "parts": parts[layer.name],
            "causes": _shares(parts[layer.name]),
        }
        for layer in placed.layers
    }


def _shares(parts: Mapping[str, float]) -> dict[str, float]:
    total = sum(parts.values())
    grouped = {
        "range": parts["clip"],
        "rounding": parts["activations"] + parts["weights"],
        "bias": parts["bias"],
    }
    return {name: value / total for name, value in grouped.items()} if total > 0 else {}


def decibels(noise: float) -> float:
    """Noise over signal as SQNR in dB; infinite without noise."""
    return float("inf") if noise <= 0 else float(-10 * np.log10(noise))


def layer_sqnr(
    plain: Graph,
    graph: Graph,
    layers: Sequence[Layer],
    schemes: Mapping[str, Scheme],
    feeds: Feeds,
    progress: Progress = silent,
) -> dict[str, float]:
    """SQNR (dB) of what stands behind each layer, in the quantized network as it runs."""
    tensors = {layer.name: _behind(plain, layer, schemes) for layer in layers}
    names = sorted(set(tensors.values()))
    in_float, stored = (_places(g) for g in (plain, graph))
    pairs = [(n, in_float[n], stored.get(f"{n}_dequantized", stored.get(n))) for n in names]
    pairs = [(n, a, b) for n, a, b in pairs if b is not None]
    noise = {n: [0.0, 0.0] for n in names}
    with (
        compiled(with_outputs(plain, [a for _, a, _ in pairs])) as real,
        compiled(with_outputs(graph, [b for _, _, b in pairs])) as held,  # type: ignore[misc]
    ):
        for i, feed in enumerate(feeds):
            for (name, *_), a, b in zip(pairs, real(feed), held(feed), strict=True):
                wide = a.astype(np.float64)
                noise[name][0] += float(np.square(b - wide).sum())
                noise[name][1] += float(np.square(wide).sum())
            progress("measuring layers", i + 1, len(feeds))
    return {layer.name: decibels(_ratio(*noise[tensors[layer.name]])) for layer in layers}


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal > 0 else noise


def _places(graph: Graph) -> dict[str, Value]:
    return {graph.tensor_name(v): v for key in graph.order() for v in graph.values(key)}


def _behind(graph: Graph, layer: Layer, schemes: Mapping[str, Scheme]) -> str:
    """The tensor with a quantizer that a layer's result becomes through relu and clip, else the result itself."""
    value = layer.result
    while graph.tensor_name(value) not in schemes:
        users = graph.users(value)
        if len(users) != 1 or graph.node(users[0][0]).op not in ABSORBED:
            return graph.tensor_name(layer.result)
        value = Value(users[0][0])
    return graph.tensor_name(value)


def layer_parts(
    plain: Graph, layers: Sequence[Layer], schemes: Mapping[str, Scheme], feeds: Feeds, progress: Progress = silent
) -> dict[str, dict[str, float]]:
    """Noise over signal that each of ``PARTS`` adds to the output of a layer alone."""
    work = plain.copy()
    work.outputs, work.output_names, work.bindings = [], [], {}
    for layer in layers:
        for value in _noises(work, layer, schemes):
            rank = work.type(value).rank
            work.output(work.add("reduce_mean", work.add("mul", value, value), axes=tuple(range(rank))))
    totals = np.zeros((len(layers), 4))
    with compiled(work) as run:
        for i, feed in enumerate(feeds):
            totals += np.array([float(v) for v in run(feed)]).reshape(len(layers), 4)
            progress("causes of noise", i + 1, len(feeds))
    found = {}
    for layer, (signal, *parts) in zip(layers, totals / len(feeds), strict=True):
        bias = _bias_noise(plain, layer, schemes)
        found[layer.name] = {n: _ratio(float(p), float(signal)) for n, p in zip(PARTS, (*parts, bias), strict=True)}
    return found


def _noises(graph: Graph, layer: Layer, schemes: Mapping[str, Scheme]) -> list[Value]:
    """The layer's result, and the changes that clipping, rounding its input and rounding its weights make to it."""
    node, (x, w, *_) = graph.node(layer.node), graph.args(layer.node)
    assert x is not None and w is not None
    array, scheme = graph.constant(w), schemes.get(graph.tensor_name(origin_of(graph, x)))
    assert array is not None
    change = schemes[layer.weight].rounded(array).astype(np.float64) - array
    change_of = graph.const(change.astype(np.float32), layer.weight, node.origin)
    by_weights = graph.add(node.op, x, change_of, origin=node.origin, **node.attrs)
    if scheme is None:
        nothing = graph.const(np.zeros((1,), np.float32))
        return [layer.result, nothing, nothing, by_weights]
    low, high = (float(r) for r in scheme.reals)
    inside = graph.add("clip", x, low=low, high=high)
    cut, step = graph.add("sub", inside, x), graph.add("sub", rounded(graph, x, scheme), inside)
    by_clip, by_steps = (graph.add(node.op, v, w, origin=node.origin, **node.attrs) for v in (cut, step))
    return [layer.result, by_clip, by_steps, by_weights]


def _bias_noise(graph: Graph, layer: Layer, schemes: Mapping[str, Scheme]) -> float:
    """The mean square of what storing the bias as int32 changes."""
    if layer.bias_at is None:
        return 0.0
    bias = graph.constant(graph.args(layer.bias_at[0])[layer.bias_at[1]])
    x = graph.args(layer.node)[0]
    assert bias is not None and x is not None
    scheme = schemes.get(graph.tensor_name(origin_of(graph, x)))
    if scheme is None:
        return 0.0
    scale = np.broadcast_to((scheme.scale * schemes[layer.weight].scale).reshape(-1), layer.channels)
    held = Scheme("int32", scale.astype(np.float32))
    flat = np.broadcast_to(bias.reshape(-1), layer.channels).astype(np.float64)
    return float(np.square(held.rounded(flat.astype(np.float32)) - flat).mean())


__all__ = ["PARTS", "layer_facts", "layer_parts", "layer_sqnr"]
