"""Where quantizers stand, and what the passes make of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from nervure.compiler.interpret import interpret, interpret_all
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.quantize.place import insert, sites
from nervure.compiler.quantize.ranges import weight_scheme
from nervure.compiler.quantize.scheme import Scheme, affine
from nervure.compiler.quantize.settings import Settings
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from quantized_nets import conv, pictures, separable


def schemes(graph: Graph, settings: Settings, x: np.ndarray) -> dict[str, Scheme]:
    placed, seen = sites(graph, settings), interpret_all(graph, {"x": x})
    found = {s.name: s.fixed or affine(seen[s.name].min(), seen[s.name].max(), s.dtype) for s in placed.activations}
    return found | {k.weight: weight_scheme(seen[k.weight], k.axis, settings) for k in placed.layers}


def quantized(graph: Graph, settings: Settings, x: np.ndarray) -> Graph:
    return insert(graph, schemes(graph, settings, x), sites(graph, settings).floats)


def ops(graph: Graph) -> Counter[str]:
    return Counter(graph.node(key).op for key in graph.order() if graph.node(key).op != "const")


def noise(graph: Graph, made: Graph, x: np.ndarray) -> float:
    (exact,), (found,) = interpret(graph, {"x": x}), interpret(made, {"x": x})
    return float(np.square(found - exact).sum() / np.square(exact).sum())


def test_sites_stand_behind_activations_and_where_layers_read() -> None:
    placed = sites(canonicalize(separable()), Settings())
    assert [s.name for s in placed.activations] == ["x", "stem", "deep", "conv3", "both", "end", "mean"]
    assert [(k.name, k.bias) for k in placed.layers][-1] == ("logits", "dense_b")
    assert not [n for n in placed.floats if n != "probabilities"]


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_everything_but_the_last_softmax_becomes_integers(activations: str) -> None:
    graph, x = canonicalize(separable()), pictures(1)
    made = canonicalize(quantized(graph, Settings(activations=activations), x), check=True)
    found = ops(made)
    assert found["conv_integer"] == 4 and found["matmul_integer"] == 1 and found["add_integer"] == 1
    assert found["sum_pool_integer"] == 1 and found["softmax"] == 1 and found["quantize"] == 1
    assert not {"conv", "matmul", "add", "relu", "clip", "reduce_mean"} & set(found)
    assert noise(graph, made, x) < 1e-3


def test_outputs_setting_quantizes_the_softmax_too() -> None:
    graph, x = canonicalize(separable()), pictures(1)
    settings = Settings(outputs=True)
    found = schemes(graph, settings, x)["probabilities"]
    assert (float(found.scale), found.zero_point) == (1 / 256, -128)
    assert ops(canonicalize(quantized(graph, settings, x)))["softmax_integer"] == 1


def test_int16_activations_are_symmetric_and_finer() -> None:
    graph, x = canonicalize(separable()), pictures(1)
    settings = Settings(activations="int16")
    assert all(s.zero_point == 0 for s in schemes(graph, settings, x).values())
    exact = interpret_all(graph, {"x": x})["end"]
    coarse, fine = (interpret_all(quantized(graph, t, x), {"x": x})["end"] for t in (Settings(), settings))
    assert np.square(fine - exact).sum() < 0.5 * np.square(coarse - exact).sum()


def test_patterns() -> None:
    graph, x = canonicalize(separable()), pictures(1)
    placed = sites(graph, Settings(float_patterns=("conv2",), int16_patterns=("bo*",)))
    assert "conv2" not in [k.name for k in placed.layers] and "pattern" in placed.floats["conv2"]
    assert {s.name: s.dtype for s in placed.activations}["both"] == "int16"
    made = canonicalize(quantized(graph, Settings(float_patterns=("conv[2]", "both")), x))
    assert ops(made)["conv"] == 2  # "both" is what the last convolution reads
    assert ops(made)["conv_integer"] == 2 and ops(made)["add_integer"] == 0
    with pytest.raises(NervureError, match=r"matches nothing(.|\n)*conv2"):
        sites(graph, Settings(float_patterns=("convv2",)))


def test_parts_of_a_concat_share_its_scheme_unless_something_else_reads_them() -> None:
    g = Graph("concat")
    x = g.input("x", TensorType("float32", (1, 3, 8, 8)))
    a, b = (g.add("relu", conv(g, x, 4, seed=s), names=[f"part{s}"]) for s in (1, 2))
    whole = g.add("concat", a, b, axis=1, names=["whole"])
    g.output(g.add("add", conv(g, whole, 4, seed=3), conv(g, b, 4, seed=4)), "y")
    graph, samples = canonicalize(g), pictures(1)
    assert [s.name for s in sites(graph, Settings()).activations] == ["x", "part2", "whole"]
    made = canonicalize(quantized(graph, Settings(), samples), check=True)
    assert ops(made)["concat"] == 1 and ops(made)["conv_integer"] == 4 and not ops(made)["conv"]
    (whole_of,) = made.find("concat")
    assert made.node(whole_of).types[0].dtype == "int8"
    assert noise(graph, made, samples) < 1e-3


def test_movement_carries_the_scheme_and_functions_are_tables() -> None:
    g = Graph("moves")
    x = g.input("x", TensorType("float32", (1, 3, 8, 8)))
    pooled = g.add(
        "max_pool", g.add("silu", conv(g, x, 4, seed=1)), kernel_shape=(2, 2), strides=(2, 2), pads=(0,) * 4,
        dilations=(1, 1),
    )  # fmt: skip
    flat = g.add("reshape", pooled, shape=(1, 64))
    w = g.const(np.random.default_rng(2).normal(0, 0.1, (64, 5)).astype(np.float32), "w")
    g.output(g.add("matmul", flat, w), "y")
    graph, samples = canonicalize(g), pictures(1)
    made = canonicalize(quantized(graph, Settings(), samples), check=True)
    assert ops(made)["lookup"] == 1 and not ops(made)["silu"]
    (pool,) = made.find("max_pool")
    assert made.node(pool).types[0].dtype == "int8"
    assert noise(graph, made, samples) < 1e-3


def test_what_has_no_integer_form_stays_and_says_why() -> None:
    g = Graph("norm")
    x = g.input("x", TensorType("float32", (6, 16)))
    w = [g.const(np.random.default_rng(i).normal(0, 0.2, (16, 16)).astype(np.float32), f"w{i}") for i in (1, 2)]
    first = g.add("matmul", x, w[0], names=["first"])
    normed = g.add("layer_norm", g.add("add", first, x), axis=1, epsilon=1e-5, names=["normed"])
    g.output(g.add("add", g.add("matmul", normed, w[1]), normed), "y")
    graph = canonicalize(g)
    placed = sites(graph, Settings())
    assert [s.name for s in placed.activations] == ["x", "normed"] and placed.floats["normed"]
    samples = np.random.default_rng(0).normal(0, 1, (6, 16)).astype(np.float32)
    made = quantized(graph, Settings(), samples)
    made.check()
    assert noise(graph, made, samples) < 1e-3
    assert ops(canonicalize(made))["matmul_integer"] == 2


def test_biases_are_int32_in_steps_of_the_sums() -> None:
    graph, x = canonicalize(separable()), pictures(1)
    made = quantized(graph, Settings(), x)
    for key in made.find("conv"):
        data, weight, bias = (made.args(v.node) for v in made.args(key) if v is not None)
        assert made.type(bias[0]).dtype == "int32" and made.type(weight[0]).dtype == "int8"  # type: ignore[arg-type]
        product = made.constant(data[1]) * made.constant(weight[1]).reshape(-1)  # type: ignore[operator,union-attr]
        assert np.allclose(made.constant(bias[1]), product, rtol=1e-6)  # type: ignore[arg-type]


def test_a_residual_behind_dense_layers_is_in_integers() -> None:
    g = Graph("dense")
    x = g.input("x", TensorType("float32", (4, 16)))
    rng = np.random.default_rng(0)

    def dense(v: Value, i: int) -> Value:
        w = g.const(rng.normal(0, 0.25, (16, 16)).astype(np.float32), f"w{i}")
        return g.add("add", g.add("matmul", v, w), g.const(rng.normal(0, 0.1, 16).astype(np.float32), f"b{i}"))

    first = g.add("relu", dense(x, 1))
    g.output(dense(g.add("add", first, dense(first, 2)), 3), "y")
    graph, samples = canonicalize(g), rng.normal(0, 1, (4, 16)).astype(np.float32)
    made = canonicalize(quantized(graph, Settings(), samples), check=True)
    assert ops(made)["matmul_integer"] == 3 and ops(made)["add_integer"] == 1 and not ops(made)["add"]
    assert noise(graph, made, samples) < 1e-3
