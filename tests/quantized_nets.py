"""Small float networks for the tests of the quantizer."""

from __future__ import annotations

import numpy as np
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType

WINDOW = {"strides": (1, 1), "dilations": (1, 1)}


def conv(g: Graph, x: Value, channels: int, size: int = 3, group: int = 1, seed: int = 0, spread: float = 1.0) -> Value:
    """A convolution with padding and a bias; ``spread`` > 1: channels of very different size."""
    rng = np.random.default_rng(seed)
    inputs = g.type(x).dims[1] // group
    w = rng.normal(0, (inputs * size * size) ** -0.5, (channels, inputs, size, size))
    w *= spread ** -rng.uniform(0, 1, (channels, 1, 1, 1))
    weight = g.const(w.astype(np.float32), f"w{seed}")
    bias = g.const(rng.normal(0, 0.1, channels).astype(np.float32), f"b{seed}")
    pads = (size // 2,) * 4
    return g.add(
        "conv", x, weight, bias, **WINDOW, pads=pads, group=group, names=[f"conv{seed}"], origin=[f"net/c{seed}"]
    )


def separable(spread: float = 1.0) -> Graph:
    """conv, relu, depthwise, relu6, pointwise, residual add, mean, dense, softmax."""
    g = Graph("separable")
    x = g.input("x", TensorType("float32", (1, 3, 8, 8)))
    stem = g.add("relu", conv(g, x, 8, seed=1, spread=spread), names=["stem"])
    deep = g.add("clip", conv(g, stem, 8, group=8, seed=2, spread=spread), low=0.0, high=6.0, names=["deep"])
    flat = conv(g, deep, 8, 1, seed=3)
    both = g.add("add", flat, stem, names=["both"])
    end = g.add("relu", conv(g, both, 12, 1, seed=4), names=["end"])
    mean = g.add("reduce_mean", end, axes=(2, 3), names=["mean"])
    w = g.const(np.random.default_rng(5).normal(0, 0.5, (12, 5)).astype(np.float32), "dense_w")
    b = g.const(np.linspace(-0.2, 0.2, 5, dtype=np.float32), "dense_b")
    logits = g.add("add", g.add("matmul", mean, w), b, names=["logits"])
    g.output(g.add("softmax", logits, axis=1, names=["probabilities"]), "y")
    return g


def pictures(n: int = 8, seed: int = 0) -> np.ndarray:
    """[n, 3, 8, 8] samples."""
    return np.random.default_rng(seed).normal(0, 1, (n, 3, 8, 8)).astype(np.float32)


def values(graph: Graph) -> dict[str, Value]:
    """Tensors by name."""
    return {graph.tensor_name(v): v for key in graph.order() for v in graph.values(key)}
