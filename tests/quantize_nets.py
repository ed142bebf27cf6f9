"""Small networks for tests of quantization, and one that is wounded on purpose."""

from __future__ import annotations

import numpy as np
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType

SAMPLES, CLASSES = 96, 10
WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def convnet(wounded: bool = False, zero_channel: bool = False) -> Graph:
    """x [1, 3, 12, 12] -> three convolutions -> y [1, 10] scores; the weights are random.

    ``wounded``: a channel of ``conv2`` has weights that are 1,000 times the others'; what it computes is clipped to
    0..6 like all channels, so that the network is as good a float network as before. With one scale for all channels
    the others' weights round to nothing.
    """
    random = np.random.default_rng(5)
    g = Graph("net")
    x = g.input("x", TensorType("float32", (1, 3, 12, 12)))
    for i, (inside, outside) in enumerate(((3, 8), (8, 16), (16, 16)), start=1):
        w = random.standard_normal((outside, inside, 3, 3)) * np.sqrt(2 / (9 * inside))
        if i == 2:
            w[5] *= 1000 if wounded else 1
            w[7] *= 0 if zero_channel else 1
        b = 0.1 * random.standard_normal(outside)
        x = conv(g, x, w, b, f"conv{i}")
        x = g.add("clip", x, low=0.0, high=6.0, names=[f"act{i}"])
    x = g.add("reduce_mean", x, axes=(2, 3), keepdims=False, names=["pool"])
    w = g.const((random.standard_normal((16, CLASSES)) * 0.6).astype(np.float32), "fc.w")
    scores = g.add("matmul", x, w, names=["fc"])
    g.output(scores, "y")
    found = np.concatenate([interpret(g, {"x": row[None]})[0] for row in pictures(48, seed=9)])
    g.outputs, g.output_names = [], []
    bias = g.const(-found.mean(axis=0), "fc.b")  # so that all classes occur
    g.output(g.add("add", scores, bias, names=["fc.out"]), "y")
    return g


def conv(g: Graph, x: Value, w: np.ndarray, b: np.ndarray, name: str) -> Value:
    weights = g.const(w.astype(np.float32), f"{name}.w")
    bias = g.const(b.astype(np.float32), f"{name}.b")
    return g.add("conv", x, weights, bias, names=[name], **WINDOW)


def pictures(count: int = SAMPLES, seed: int = 1) -> np.ndarray:
    """Smooth random pictures [count, 3, 12, 12], each with a colour of its own."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 3, 4, 4)).repeat(3, axis=2).repeat(3, axis=3)
    tint = 2 * random.standard_normal((count, 3, 1, 1))
    return (coarse + tint + 0.2 * random.standard_normal((count, 3, 12, 12))).astype(np.float32)


def labelled_pictures(graph: Graph, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pictures and the classes that the float network finds in them; of three times as many those whose best
    class stands out most, as a trained network's would."""
    x = pictures(3 * count, seed)
    scores = np.concatenate([interpret(graph, {"x": row[None]})[0] for row in x])
    first, second = np.sort(scores, axis=1)[:, :-3:-1].T
    sure = np.sort(np.argsort(second - first, kind="stable")[:count])
    return x[sure], scores[sure].argmax(axis=1)
