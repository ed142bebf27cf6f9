"""8-bit steps change their sign together, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.ops.integers import add_multiplier
from nervure.compiler.passes.signs import match_signs
from nervure.compiler.types import TensorType

SIGNED, UNSIGNED = targets.get("rpi5"), targets.get("x86-64-v3")
WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def conv(g: Graph, x: Value, channels: int, zero: int, seed: int, to: str = "uint8", **bounds) -> Value:
    rng = np.random.default_rng(seed)
    w = rng.integers(-127, 128, (channels, int(g.type(x).shape[1]), 3, 3)).astype(np.int8)
    sums = g.add("conv_integer", x, g.const(w), **WINDOW, group=1, zero_point=zero)
    each = rng.uniform(1e-3, 3e-3, (channels, 1, 1)).astype(np.float32)
    return g.add("requantize", sums, g.const(each), to=to, **{"zero_point": 100 if to == "uint8" else -20, **bounds})


def network(to: str) -> Graph:
    """Every kind of maker, movement and reader between the convolutions."""
    g = Graph()
    x = g.input("x", TensorType("float32", (1, 4, 10, 11)))
    zero = g.const(np.array(7, to))
    q = g.add("quantize", x, g.const(np.float32(0.02)), zero, to=to)
    a = conv(g, q, 8, 7, 1, to, low=10 if to == "uint8" else -90)
    b = conv(g, q, 8, 7, 2, to)
    weights = [g.const(np.asarray(add_multiplier(r))) for r in (0.7, 0.9)]
    zeros = {"a_zero_point": 100 if to == "uint8" else -20, "b_zero_point": 100 if to == "uint8" else -20}
    added = g.add("add_integer", a, b, *weights, **zeros, zero_point=30, to=to, high=120)
    pooled = g.add("max_pool", added, kernel_shape=(3, 3), **WINDOW, ceil_mode=False, indices=False)
    both = g.add("concat", pooled, added, axis=1)
    table = np.random.default_rng(5).integers(np.iinfo(to).min, np.iinfo(to).max, 256, endpoint=True).astype(to)
    looked = g.add("lookup", both, g.const(table))
    padded = g.add("pad", looked, mode="constant", pads=(0, 0, 1, 0, 0, 0, 0, 1), value=30.0)
    last = conv(g, padded, 6, 30, 3, to)
    sums = g.add("sum_pool_integer", last, kernel_shape=(11, 12), **{**WINDOW, "pads": (0,) * 4}, zero_point=50)
    g.output(g.add("dequantize", last, g.const(np.float32(0.1))))
    g.output(sums)
    g.output(g.add("softmax_integer", last, g.const(np.arange(256, 0, -1).astype(np.int32)),
                   g.const(np.float32(200.0)), axis=1, to=to))  # fmt: skip
    return g


@pytest.mark.parametrize("machine", [SIGNED, UNSIGNED], ids=lambda m: m.name)
@pytest.mark.parametrize("to", ["int8", "uint8"])
def test_results_are_the_same(machine, to):
    graph = network(to)
    changed = match_signs(graph, machine)
    changed.check()
    assert (changed is graph) == (machine.steps_dtype == to)
    read = {changed.type(changed.args(n)[0]).dtype for n in changed.find("conv_integer")}  # type: ignore[arg-type]
    assert read == {machine.steps_dtype}
    x = np.random.default_rng(0).standard_normal((1, 4, 10, 11)).astype(np.float32)
    for have, want in zip(interpret(changed, [x]), interpret(graph, [x]), strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


def test_arguments_and_results_keep_their_type():
    g = Graph()
    x = g.input("x", TensorType("int8", (1, 4, 6, 6)))
    g.output(conv(g, x, 5, 3, 1, "int8"))
    assert match_signs(g, UNSIGNED) is g


def test_an_unknown_reader_keeps_the_sign():
    g = Graph()
    x = g.input("x", TensorType("uint8", (1, 4, 6, 6)))
    first = conv(g, x, 4, 3, 1, "int8")
    g.output(conv(g, first, 4, -20, 2, "int8"))
    g.output(g.add("cast", first, to="int32"))
    assert match_signs(g, UNSIGNED) is g


def test_the_machines():
    assert (SIGNED.steps_dtype, UNSIGNED.steps_dtype) == ("int8", "uint8")
