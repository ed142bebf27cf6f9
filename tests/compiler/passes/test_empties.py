"""Tensors without elements, from the graph to the compiled library."""

from __future__ import annotations

import nervure as nv
import numpy as np
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.types import TensorType


def f32(*shape: int) -> TensorType:
    return TensorType("float32", shape)


def graph_with_empties() -> Graph:
    graph = Graph("empties")
    x, e = graph.input("x", f32(2, 3)), graph.input("e", f32(2, 0))
    graph.output(graph.add("concat", graph.add("relu", e), x, axis=1), "joined")
    graph.output(graph.add("reduce_sum", e, axes=(1,)), "sum")
    graph.output(graph.add("reshape", e, shape=(0, 5)), "nothing")
    graph.output(graph.add("matmul", e, graph.add("transpose", e, perm=(1, 0))), "product")
    return graph


def test_empty_tensors_become_constants_and_what_follows_is_folded() -> None:
    plain = canonicalize(graph_with_empties(), check=True)
    assert not [plain.node(n).op for n in plain if plain.node(n).op not in ("input", "const", "identity")]


def test_a_compiled_model_takes_and_gives_empty_tensors() -> None:
    model = nv.compile(graph_with_empties())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    joined, total, nothing, product = model(x, np.zeros((2, 0), np.float32))
    np.testing.assert_array_equal(joined, x)
    np.testing.assert_array_equal(total, [0, 0])
    assert nothing.shape == (0, 5)
    np.testing.assert_array_equal(product, np.zeros((2, 2)))
