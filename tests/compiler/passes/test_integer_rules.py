"""Each rule of passes/integers.py: what becomes of a small QDQ graph, and that it computes what the graph says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.integers import lower_integers
from nervure.compiler.types import TensorType


class Q:
    """A graph under construction, with quantizers in few words."""

    def __init__(self, seed: int = 0) -> None:
        self.graph, self.rng = Graph("q"), np.random.default_rng(seed)
        self.feeds: list[np.ndarray] = []

    def input(self, *shape: int, scale: float = 0.05, zero: int = 3, dtype: str = "int8") -> Value:
        """A quantized input, dequantized."""
        q = self.graph.input(f"x{len(self.feeds)}", TensorType(dtype, shape))
        info = np.iinfo(dtype)
        self.feeds.append(self.rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True))
        return self.dequantized(q, scale, zero)

    def dequantized(self, q: Value, scale: float | np.ndarray, zero: int = 0) -> Value:
        point = self.graph.const(np.asarray(zero, self.graph.type(q).dtype))
        return self.add("dequantize", q, self.const(scale), point)

    def weights(self, *shape: int, axis: int = 0) -> Value:
        """Integer weights with a scale for each channel."""
        wide = [1] * len(shape)
        wide[axis] = shape[axis]
        scales = self.rng.uniform(0.001, 0.01, wide).astype(np.float32)
        q = self.graph.const(self.rng.integers(-127, 128, shape).astype(np.int8), "w")
        return self.add("dequantize", q, self.const(scales))

    def quantized(self, value: Value, scale: float = 0.1, zero: int = -7, to: str = "int8", **attrs: int) -> Value:
        return self.add("quantize", value, self.const(scale), self.graph.const(np.asarray(zero, to)), to=to, **attrs)

    def const(self, values: float | np.ndarray) -> Value:
        return self.graph.const(np.asarray(values, np.float32))

    def add(self, op: str, *args: Value, **attrs: object) -> Value:
        return self.graph.add(op, *args, origin=("test",), **attrs)

    def conv(self, x: Value, w: Value, *bias: Value, pads: int = 1, group: int = 1) -> Value:
        window = {"strides": (1, 1), "pads": (pads,) * 4, "dilations": (1, 1), "group": group}
        return self.add("conv", x, w, *bias, **window)

    def finish(self, value: Value) -> tuple[Counter[str], np.ndarray, np.ndarray]:
        """Operators left after lowering, the lowered result, and what the graph says in floating point."""
        self.graph.output(value)
        lowered = canonicalize(self.graph, check=True)
        counts = Counter(lowered.node(k).op for k in lowered)
        return counts, interpret(lowered, self.feeds)[0], interpret(self.graph, self.feeds)[0]


def _conv_net(q: Q, *behind: str, bias: bool = True, scale: float = 0.1) -> Value:
    extra = [q.const(q.rng.normal(size=6))] if bias else []
    value = q.conv(q.input(1, 4, 7, 7), q.weights(6, 4, 3, 3), *extra)
    for op in behind:
        value = q.add(op, value, **({"low": 0.0, "high": 6.0} if op == "clip" else {}))
    return q.quantized(value, scale)


def _pooled(q: Q) -> Value:
    window = {"kernel_shape": (2, 2), "strides": (2, 2), "pads": (0,) * 4, "dilations": (1, 1)}
    return q.quantized(q.add("avg_pool", q.input(1, 5, 6, 6), **window), 0.0413)


CASES: dict[str, tuple[Callable[[Q], Value], str]] = {
    "conv": (lambda q: _conv_net(q), "conv_integer requantize"),
    "conv without bias": (lambda q: _conv_net(q, bias=False), "conv_integer requantize"),
    "conv, relu": (lambda q: _conv_net(q, "relu"), "conv_integer requantize"),
    "conv, relu6": (lambda q: _conv_net(q, "clip", scale=0.03), "conv_integer requantize"),
    "conv, uint8, depthwise": (
        lambda q: q.quantized(
            q.conv(q.input(1, 4, 6, 6, dtype="uint8", zero=77), q.weights(4, 1, 3, 3), group=4), zero=9, to="uint8"
        ),
        "conv_integer requantize",
    ),
    "conv, addend and factor behind it": (
        lambda q: q.quantized(
            q.add(
                "add",
                q.add(
                    "mul", q.conv(q.input(1, 4, 6, 6), q.weights(5, 4, 1, 1), pads=0), q.const(np.full((5, 1, 1), 1.5))
                ),
                q.const(q.rng.normal(size=(5, 1, 1))),
            )
        ),
        "conv_integer requantize",
    ),
    "matmul with a bias": (
        lambda q: q.quantized(
            q.add("add", q.add("matmul", q.input(3, 20), q.weights(20, 9, axis=1)), q.const(q.rng.normal(size=9)))
        ),
        "matmul_integer requantize",
    ),
    "int16 activations": (
        lambda q: q.quantized(
            q.add("matmul", q.input(3, 20, dtype="int16", scale=1e-4, zero=0), q.weights(20, 9, axis=1)),
            1e-4,
            0,
            "int16",
        ),
        "matmul_integer requantize",
    ),
    "other scale": (lambda q: q.quantized(q.input(4, 9), 0.031), "requantize"),
    "same scale": (lambda q: q.quantized(q.input(4, 9), 0.05, 3), ""),
    "same scale, relu": (lambda q: q.quantized(q.add("relu", q.input(4, 9)), 0.05, 3), "clip"),
    "4 bits": (lambda q: q.quantized(q.input(4, 9), 0.5, 0, low=-8, high=7), "requantize"),
    "add": (lambda q: q.quantized(q.add("add", q.input(2, 8), q.input(2, 8, scale=0.08, zero=-5))), "add_integer"),
    "sub, relu": (
        lambda q: q.quantized(q.add("relu", q.add("sub", q.input(2, 8), q.input(2, 8, scale=0.08, zero=-5)))),
        "add_integer",
    ),
    "mul": (lambda q: q.quantized(q.add("mul", q.input(2, 8), q.input(8, scale=0.02))), "mul_integer requantize"),
    "average pool": (_pooled, "sum_pool_integer requantize"),
    "mean": (
        lambda q: q.quantized(q.add("reduce_mean", q.input(1, 5, 6, 7), axes=(2, 3), keepdims=False), 0.02),
        "sum_pool_integer requantize reshape",
    ),
    "softmax": (lambda q: q.quantized(q.add("softmax", q.input(5, 10), axis=-1), 1 / 256, -128), "softmax_integer"),
    "sigmoid": (lambda q: q.quantized(q.add("sigmoid", q.input(5, 10)), 1 / 256, -128), "lookup"),
    "hard swish": (
        lambda q: (lambda x: q.quantized(q.add("mul", x, q.add("hard_sigmoid", x, alpha=1 / 6, beta=0.5))))(
            q.input(5, 10)
        ),
        "lookup",
    ),
    "concat": (
        lambda q: q.quantized(q.add("concat", q.input(2, 3), q.input(2, 4, scale=0.1, zero=-7), axis=1)),
        "requantize concat",
    ),
    "views": (
        lambda q: q.quantized(q.add("transpose", q.add("reshape", q.input(2, 6), shape=(3, 4)), perm=(1, 0)), 0.05, 3),
        "reshape transpose",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_quantized_region_becomes_integers(name: str) -> None:
    build, expected = CASES[name]
    q = Q(3)
    counts, got, said = q.finish(build(q))
    assert {k for k in counts if k not in ("const", "input", "identity")} == set(expected.split())
    # the float graph rounds at other places: its products are not exact, its steps are the same but for ties
    assert got.dtype == said.dtype and got.shape == said.shape
    apart = np.abs(got.astype(np.int64) - said.astype(np.int64))
    assert apart.max(initial=0) <= 1 and (apart > 0).mean() <= 0.03


def test_learned_scales_give_the_integers_of_constant_ones() -> None:
    """What training computes with params is what the finished model computes with constants."""

    def build(q: Q, stored: str) -> Value:
        def held(array: object, name: str) -> Value:
            return getattr(q.graph, stored)(np.asarray(array, np.float32), name)

        rng = np.random.default_rng(5)
        weight, scale = held(rng.normal(0, 0.1, (6, 4, 3, 3)), "w"), held(rng.uniform(0.01, 0.02, (6, 1, 1, 1)), "ws")
        steps = q.add("quantize", weight, scale, to="int8", low=-8, high=7)
        value = q.conv(q.input(1, 4, 7, 7), q.add("dequantize", steps, scale), held(rng.normal(size=6), "b"))
        clipped = q.add("clip", value, low=0.0, high=6.0)
        out = q.add("quantize", clipped, held(0.037, "s"), q.graph.const(np.asarray(-128, np.int8)), to="int8")
        other = q.add("dequantize", out, held(0.037, "s2"), q.graph.const(np.asarray(-128, np.int8)))
        total = q.add("add", other, q.input(1, 6, 7, 7, scale=0.02, zero=9))
        return q.add("quantize", total, held(0.06, "t"), q.graph.const(np.asarray(5, np.int8)), to="int8")

    trained, finished = Q(1), Q(1)
    counts, learned, _ = trained.finish(build(trained, "param"))
    _, constant, _ = finished.finish(build(finished, "const"))
    assert counts["conv_integer"] == counts["requantize"] == counts["add_integer"] == 1
    np.testing.assert_array_equal(learned, constant)


@pytest.mark.parametrize("zero", [0, 128, 255])
def test_unsigned_weights_with_a_zero_point(zero: int) -> None:
    q = Q(7)
    w = q.graph.const(q.rng.integers(0, 256, (5, 4, 3, 3)).astype(np.uint8), "w")
    _, got, said = q.finish(q.quantized(q.conv(q.input(1, 4, 6, 6), q.dequantized(w, 0.01, zero)), 0.5))
    assert np.abs(got.astype(int) - said.astype(int)).max() <= 1


def test_bias_in_steps_is_taken_as_it_is() -> None:
    q = Q(2)
    w = q.weights(6, 4, 1, 1)
    scales = q.graph.constant(q.graph.args(w.node)[1])
    assert scales is not None
    steps = q.graph.const(np.arange(-3, 3, dtype=np.int32) * 10000, "b")
    bias = q.add("dequantize", steps, q.const(scales.reshape(-1) * np.float32(0.05)))
    q.graph.output(q.quantized(q.conv(q.input(1, 4, 5, 5), w, bias, pads=0)))
    lowered = canonicalize(q.graph)
    (conv,) = lowered.find("conv_integer")
    np.testing.assert_array_equal(lowered.constant(lowered.args(conv)[2]), np.arange(-3, 3) * 10000)


def test_a_ratio_beyond_the_multipliers_range_stays_float() -> None:
    q = Q()
    counts, got, said = q.finish(q.quantized(q.add("add", q.input(4, 4, scale=500.0), q.input(4, 4)), 0.1))
    assert not counts["add_integer"]
    np.testing.assert_array_equal(got, said)


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
@pytest.mark.parametrize(
    ("first", "second", "to"), [("int8", "int8", "int16"), ("uint8", "int16", "int16"), ("int16", "int8", "int8")]
)
def test_two_widths_meet_in_integers(op: str, first: str, second: str, to: str) -> None:
    q = Q()
    steps = {"int16": 0.0003, "int8": 0.05, "uint8": 0.05}
    a, b = (q.input(5, 7, dtype=d, scale=steps[d]) for d in (first, second))
    scale = 0.001 if to == "int16" else 0.2 if op != "mul" else 0.5
    counts, got, said = q.finish(q.quantized(q.add(op, a, b), scale, 5, to))
    assert counts["add_integer"] + counts["mul_integer"] == 1
    assert not counts["dequantize"]
    assert np.abs(got.astype(int) - said.astype(int)).max() <= 1
    assert len(np.unique(got)) > 10


@pytest.mark.parametrize("scale", [0.004, 0.03, 0.0625, 0.5, 9.0])
def test_a_sum_with_learned_scales_is_the_one_with_constant_scales(scale: float) -> None:
    """The shift of the weights is computed where the scales are."""
    results = []
    for learned in (False, True):
        q = Q()
        a, b = q.input(6, 50, scale=0.03), q.input(6, 50, scale=0.07, zero=-5)
        step = q.const(scale)
        if learned:
            step = q.graph.input("scale", TensorType("float32", ()))
            q.feeds.append(np.asarray(scale, np.float32))
        zero = q.graph.const(np.asarray(3, np.int8))
        counts, got, _ = q.finish(q.add("quantize", q.add("add", a, b), step, zero, to="int8"))
        assert counts["add_integer"] == 1
        results.append(got)
    np.testing.assert_array_equal(*results)


def test_halves_of_an_average_in_its_own_steps_go_away_from_zero() -> None:
    window = {"kernel_shape": (1, 2), "strides": (1, 2), "pads": (0,) * 4, "dilations": (1, 1)}
    q = Q()
    x = q.input(1, 1, 1, 8, scale=0.05, zero=3)
    q.feeds[0] = np.int8([[[[1, 2, -1, -2, 5, 7, -128, -127]]]])
    _, got, _ = q.finish(q.quantized(q.add("avg_pool", x, **window), 0.05, 3))
    assert got.reshape(-1).tolist() == [2, -2, 6, -128]


def test_a_graph_without_quantizers_is_left_alone() -> None:
    graph = Graph("plain")
    x = graph.input("x", TensorType("float32", (2, 3)))
    graph.output(graph.add("relu", x))
    assert lower_integers(graph).text() == graph.text()


def test_a_float_user_between_keeps_its_numbers() -> None:
    """A sum that something else needs as a float is dequantized for it, and quantized from the same integers."""
    q = Q(4)
    value = q.conv(q.input(1, 4, 5, 5), q.weights(6, 4, 1, 1), pads=0)
    q.graph.output(q.add("exp", q.add("mul", value, q.const(0.01))))
    counts, got, said = q.finish(q.quantized(value, 0.2))
    assert counts["conv_integer"] == 1 and counts["conv"] == 0
    np.testing.assert_allclose(got, said, rtol=1e-5)
