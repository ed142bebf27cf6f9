"""Narrow weights in graphs: what becomes a narrow operator, what stays a float one, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.ops.numeric import numpy_dtype
from nervure.compiler.ops.weights import sample_weights
from nervure.compiler.passes import canonicalize
from nervure.compiler.types import TensorType

WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def _weights(
    g: Graph, shape: tuple[int, ...], block: tuple[int, int] | None, *, bits: int = 4, zero: bool = False
) -> Value:
    w, scale, points = sample_weights(shape, bits, block, zero=zero)
    held = None if points is None else g.const(points, "zero")
    return g.add("dequantize", g.const(w, "w"), g.const(scale, "scale"), held, block=block)


def _ops(g: Graph) -> list[str]:
    return [g.node(k).op for k in g.order() if g.node(k).op not in ("input", "const")]


def _lowered(g: Graph, *feeds: np.ndarray) -> list[str]:
    """The operators of the canonical form, which computes the same."""
    made = canonicalize(g, check=True)
    for a, b in zip(interpret(g, list(feeds)), interpret(made, list(feeds)), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-5 * float(np.abs(a).max()))
    return _ops(made)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_product(turned: bool, zero: bool) -> None:
    g = Graph("g")
    x = g.input("x", TensorType("float32", (3, 40)))
    w = _weights(g, (20, 40) if turned else (40, 20), (1, 16) if turned else (0, 16), zero=zero)
    g.output(g.add("matmul", x, g.add("transpose", w, perm=(1, 0)) if turned else w))
    assert _lowered(g, _random(3, 40)) == ["matmul_narrow"]


def test_convolution_keeps_its_bias() -> None:
    g = Graph("g")
    x = g.input("x", TensorType("float32", (1, 24, 6, 6)))
    w = _weights(g, (8, 24, 3, 3), (1, 16))
    g.output(g.add("relu", g.add("conv", x, w, g.const(_random(8), "b"), group=1, **WINDOW)))
    assert _lowered(g, _random(1, 24, 6, 6)) == ["conv_narrow", "relu"]


def test_weights_of_a_matrix_with_axes_of_one() -> None:
    g = Graph("g")
    x = g.input("x", TensorType("float32", (3, 40)))
    w = g.add("reshape", _weights(g, (20, 40, 1, 1), (1, 16)), shape=(20, 40))
    g.output(g.add("matmul", x, g.add("transpose", w, perm=(1, 0))))
    assert _lowered(g, _random(3, 40)) == ["matmul_narrow"]


def test_a_depthwise_convolution_has_float_weights() -> None:
    g = Graph("g")
    x = g.input("x", TensorType("float32", (1, 8, 6, 6)))
    g.output(g.add("conv", x, _weights(g, (8, 1, 3, 3), None, bits=8), group=8, **WINDOW))
    assert _lowered(g, _random(1, 8, 6, 6)) == ["conv"]


def test_one_table_read_by_index_and_multiplied_by() -> None:
    g = Graph("g")
    rows = g.input("rows", TensorType("int64", (5,)))
    w = _weights(g, (30, 32), (1, 16))
    g.output(g.add("matmul", g.add("gather", w, rows, axis=0), g.add("transpose", w, perm=(1, 0))))
    assert _lowered(g, np.array([1, 0, 29, -1, 3])) == ["gather_narrow", "matmul_narrow"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(dtype: str) -> None:
    g = Graph("g")
    rows = g.input("rows", TensorType("int64", (5,)))
    table = g.add("cast", g.const(_random(9, 8).astype(numpy_dtype(dtype)), "t"), to="float32")
    w = g.add("cast", g.const(_random(6, 8).astype(numpy_dtype(dtype)), "w"), to="float32")
    bias = g.add("cast", g.const(_random(6).astype(numpy_dtype(dtype)), "b"), to="float32")
    y = g.add("matmul", g.add("gather", table, rows, axis=0), g.add("transpose", w, perm=(1, 0)))
    g.output(g.add("add", y, bias))
    assert _lowered(g, np.array([1, 0, 8, -1, 3])) == ["gather_narrow", "matmul_narrow", "add"]


def test_halves_that_something_else_reads_too_are_floats() -> None:
    g = Graph("g")
    x = g.input("x", TensorType("float32", (3, 6)))
    w = g.add("cast", g.const(_random(6, 6).astype(np.float16), "w"), to="float32")
    g.output(g.add("add", g.add("matmul", x, w), g.add("reduce_sum", w, axes=(0,))))
    assert _lowered(g, _random(3, 6)) == ["matmul", "add"]


def test_integers_come_first() -> None:
    """Where the activations are quantized as well, products are products of integers."""
    g = Graph("g")
    x = g.input("x", TensorType("float32", (3, 40)))
    scale = g.const(np.float32(0.02), "s")
    steps = g.add("dequantize", g.add("quantize", x, scale, to="int8"), scale)
    w, scales, _ = sample_weights((40, 20), 8, None, axis=1)
    g.output(g.add("matmul", steps, g.add("dequantize", g.const(w, "w"), g.const(scales.reshape(20), "ws"))))
    assert "matmul_integer" in _lowered(g, _random(3, 40))


def test_blocks_of_what_is_computed_are_spelled_out() -> None:
    g = Graph("g")
    q = g.input("q", TensorType("int8", (3, 10)))
    g.output(g.add("dequantize", q, g.const(np.array([[0.5, 2.0, 3.0]], np.float32), "s"), block=(1, 4)))
    found = canonicalize(g, check=True)
    assert all(found.node(k).attrs["block"] is None for k in found.find("dequantize"))
    feed = np.arange(30, dtype=np.int8).reshape(3, 10)
    np.testing.assert_array_equal(interpret(found, [feed])[0], interpret(g, [feed])[0])
