"""A graph without some units is the graph in which they are zero."""

from __future__ import annotations

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.prune.shrink import shrink, zero
from nervure.compiler.prune.structure import find_structure
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

RNG = np.random.default_rng(7)


def weights(graph: Graph, name: str, *shape: int) -> Value:
    return graph.const(RNG.normal(size=shape).astype(np.float32) / 3, name)


def conv(graph: Graph, x: Value, name: str, outputs: int, kernel: int = 3, group: int = 1) -> Value:
    channels = graph.type(x).dims[1]
    w, b = weights(graph, f"{name}.w", outputs, channels // group, kernel, kernel), weights(graph, f"{name}.b", outputs)
    pads, one = (kernel // 2,) * 4, (1, 1)
    return graph.add("conv", x, w, b, names=[name], strides=one, dilations=one, pads=pads, group=group)


def small() -> Graph:
    """A residual block, a depthwise layer and a dense one behind a flatten."""
    graph = Graph("small")
    x = graph.input("x", TensorType("float32", (2, 3, 5, 5)))
    stem = graph.add("relu", conv(graph, x, "stem", 8))
    inner = graph.add("sigmoid", conv(graph, stem, "inner", 12))
    y = graph.add("relu", graph.add("add", stem, conv(graph, inner, "outer", 8)))
    y = conv(graph, y, "deep", 8, group=8)
    flat = graph.add("reshape", y, shape=(2, 200))
    graph.output(graph.add("matmul", flat, weights(graph, "dense.w", 200, 6), names=["dense"]), "y")
    return graph


def agree(graph: Graph, removed: dict[str, list[int]], inputs: dict[str, np.ndarray]) -> Graph:
    less = shrink(graph, removed)
    less.check()
    for got, wanted in zip(interpret(less, inputs), interpret(zero(graph, removed), inputs), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)
    return less


def test_a_residual_network_loses_what_hangs_together() -> None:
    graph = small()
    groups = find_structure(graph).groups
    assert [(g.name, g.kind, len(g.units), g.layers) for g in groups] == [
        ("stem", "channels", 8, ("stem", "inner", "outer", "deep", "dense")),
        ("inner", "channels", 12, ("inner", "outer")),
    ]
    x = {"x": RNG.normal(size=(2, 3, 5, 5)).astype(np.float32)}
    less = agree(graph, {"stem": [1, 6], "inner": [0, 2, 3]}, x)
    sizes = {less.node(k).names[0]: less.node(k).types[0].shape for k in less if less.node(k).op == "const"}
    assert sizes["deep.w"] == (6, 1, 3, 3) and sizes["inner.w"] == (9, 6, 3, 3) and sizes["dense.w"] == (150, 6)
    assert less.node(less.find("conv")[-1]).attrs["group"] == 6
    assert not np.array_equal(interpret(less, x)[0], interpret(graph, x)[0])


def test_what_cannot_be_taken_out_is_said() -> None:
    graph = small()
    with pytest.raises(NervureError, match="no group 'steam'"):
        shrink(graph, {"steam": [1]})
    with pytest.raises(NervureError, match="units 0 to 7, not 8"):
        shrink(graph, {"stem": [8]})
    with pytest.raises(NervureError, match="all 8 units"):
        shrink(graph, {"stem": range(8)})
