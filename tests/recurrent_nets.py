"""A small recurrent network for the tests of quantization."""

from __future__ import annotations

import numpy as np
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType


def network(op: str, output: int = 0) -> tuple[Graph, np.ndarray]:
    """A recurrent layer behind a transpose and before a matmul, and samples."""
    rng = np.random.default_rng(3)
    rows, hidden = {"lstm": 64, "gru": 48, "rnn": 16}[op], 16

    def const(name: str, *shape: int) -> Value:
        return graph.const((rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32), name)

    graph = Graph("net")
    x = graph.add("transpose", graph.input("x", TensorType("float32", (1, 9, 12))), perm=(1, 0, 2))
    made = graph.add(
        op, x, const("w", 1, rows, 12), const("r", 1, rows, hidden), const("b", 1, 2 * rows), names=["cell"]
    )
    rows_of = graph.add("reshape", Value(made.node, output), shape=(9 if output == 0 else 1, hidden))
    graph.output(graph.add("matmul", rows_of, const("head", hidden, 4)), "y")
    return graph, rng.standard_normal((20, 9, 12)).astype(np.float32)
