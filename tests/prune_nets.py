"""Small networks for tests of pruning."""

from __future__ import annotations

import numpy as np
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType

WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
CLASSES = 4


def small(channels: int = 16, seed: int = 3) -> Graph:
    """x [1, 2, 6, 6] -> two convolutions -> y [1, 4] scores. A quarter of the channels hardly matter."""
    random = np.random.default_rng(seed)
    g = Graph("small")
    x = g.input("x", TensorType("float32", (1, 2, 6, 6)))
    for name, inside in (("first", 2), ("second", channels)):
        w = random.standard_normal((channels, inside, 3, 3)) / np.sqrt(9 * inside)
        w[: channels // 4] *= 1e-3
        x = g.add("relu", _conv(g, x, w, name), names=[f"{name}.act"])
    pooled = g.add("reduce_mean", x, axes=(2, 3), keepdims=False, names=["pool"])
    w = g.const(random.standard_normal((channels, CLASSES)).astype(np.float32), "head.w")
    scores = g.add("matmul", pooled, w, names=["head"])
    g.output(scores, "y")
    found = np.concatenate([interpret(g, {"x": row[None]})[0] for row in pictures(64, 9)])
    g.outputs, g.output_names = [], []
    bias = g.const(-found.mean(axis=0), "head.b")  # so that all classes occur
    g.output(g.add("add", scores, bias, names=["head.out"]), "y")
    return g


def _conv(g: Graph, x: Value, w: np.ndarray, name: str) -> Value:
    bias = g.const(np.full(len(w), 0.05, np.float32), f"{name}.b")
    return g.add("conv", x, g.const(w.astype(np.float32), f"{name}.w"), bias, names=[name], **WINDOW)


def dense(rows: int = 1, width: int = 64, seed: int = 3) -> Graph:
    """x [rows, width] -> two dense layers -> y [rows, 4] scores."""
    random = np.random.default_rng(seed)
    g = Graph("dense")
    x = g.input("x", TensorType("float32", (rows, width)))
    for name, outputs in (("fc1", width), ("fc2", width), ("head", CLASSES)):
        w = (random.standard_normal((width, outputs)) / np.sqrt(width)).astype(np.float32)
        x = g.add("matmul", x, g.const(w, f"{name}.w"), names=[name])
        x = g.add("relu", x, names=[f"{name}.act"]) if name != "head" else x
    g.output(x, "y")
    return g


def pictures(count: int, seed: int) -> np.ndarray:
    """Random pictures [count, 2, 6, 6], each with a tint of its own."""
    random = np.random.default_rng(seed)
    tint = 1.5 * random.standard_normal((count, 2, 1, 1))
    return (tint + 0.5 * random.standard_normal((count, 2, 6, 6))).astype(np.float32)


def labelled(graph: Graph, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and the classes that the dense network finds in them: its accuracy is 1."""
    x = pictures(count, seed)
    return x, np.concatenate([interpret(graph, {"x": row[None]})[0] for row in x]).argmax(axis=1)
