"""Prune, quantize, compile: zeros of float weights are zeros of the integer weights, and the kernels leave them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.prune.layers import layers
from nervure.compiler.prune.patterns import Pattern
from nervure.compiler.quantize.quantizer import quantize
from nervure.compiler.quantize.settings import Settings
from nervure.compiler.types import TensorType
from nervure.runtime.session import load
from quantized_nets import conv

pytestmark = pytest.mark.slow

PATTERNS = {"blocks": (Pattern(4, 16), 0.75), "2:4": (Pattern(1, 1, 2, 4), None), "unstructured": (Pattern(), 0.9)}


def network() -> Graph:
    """A pointwise and a 3x3 convolution, a sum of the two, and a dense layer, wide enough that zeros are worth it."""
    g = Graph("wide")
    x = g.input("x", TensorType("float32", (1, 64, 10, 10)))
    first = g.add("relu", conv(g, x, 128, 1, seed=1))
    second = g.add("relu", conv(g, first, 128, 3, seed=2))
    both = g.add("add", first, second)
    mean = g.add("reduce_mean", both, axes=(2, 3))
    w = g.const(np.random.default_rng(5).normal(0, 0.1, (128, 256)).astype(np.float32), "dense_w")
    g.output(g.add("matmul", mean, w), "y")
    return g


def pruned(graph: Graph, pattern: Pattern, sparsity: float | None) -> dict[str, np.ndarray]:
    """Zeros in all weights of the graph, by magnitude; the masks ``[K, N]`` by the weights' names."""
    masks = {}
    for layer in layers(graph):
        value = graph.args(layer.node)[1]
        assert value is not None
        matrix = layer.matrix(graph.node(value).array)
        mask = pattern.mask(np.abs(matrix), layer.channels, sparsity)
        graph.set_node(value.node, attrs={"value": np.ascontiguousarray(layer.array(np.where(mask, matrix, 0)))})
        masks[layer.weight] = mask
    return masks


@pytest.mark.parametrize("name", PATTERNS)
def test_zeros_stay_zeros_and_are_left_out(name: str, tmp_path: Path) -> None:
    graph, machine = network(), targets.host()
    masks = pruned(graph, *PATTERNS[name])
    x = np.random.default_rng(0).normal(0, 1, (4, 64, 10, 10)).astype(np.float32)
    settings = Settings() if name == "blocks" else Settings(method="minmax", bias_correction=False)
    made = quantize(graph, {"x": x}, settings, measure=False).graph
    lowered = canonicalize(made)
    kept = [
        lowered.constant(lowered.args(n)[1])
        for n in lowered
        if lowered.node(n).op in ("conv_integer", "matmul_integer")
    ]
    assert len(kept) == len(masks) == 3
    for weights, mask in zip(kept, masks.values(), strict=True):
        assert weights is not None and np.count_nonzero(weights) <= mask.sum()
    entries = [EntryGraph(made, "infer")]
    steps = [s for e in plan_program(entries, machine, Options())[0].entries for s in e.steps]
    assert sum(f" of {form}" in s.detail for s in steps for form in ("4,", "16,", "32,", "64,")) == 3
    artifact = compile_entries(entries, machine, tmp_path / "sparse.so", Options())
    (got,) = load(artifact.path).run(None, {"x": x[:1]})
    np.testing.assert_array_equal(got, interpret(lowered, [x[:1]])[0])
