"""The folding instructions of ARM (sdot, smull, vmull) in whole artifacts, under the emulator, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.library import run_elsewhere
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.types import TensorType
from nervure.errors import MissingTool
from test_dot import ACTIVATIONS, PRODUCTS, SHAPES

CHOSEN = [SHAPES[i] for i in (0, 1, 2, 3, 4, 7, 9, 10, 11, 14, 15)]


def conv(shape, dtype: str, number: int) -> tuple[Graph, np.ndarray]:
    """A convolution with requantization as an entry point of its own, and its input."""
    x, w, strides, pads, dilations, group = shape
    rng = np.random.default_rng(number)
    low, high = ACTIVATIONS[dtype]
    graph = Graph(f"conv_{dtype}_{number}")
    value = graph.input("x", TensorType(dtype, x))
    spread = 255 if number % 3 == 0 else 127  # beyond 8 bits, as asymmetric uint8 weights are
    weights = rng.integers(spread - 255 if spread > 127 else -127, spread, w, endpoint=True)
    args = (
        graph.const(weights.astype(np.int16 if spread > 127 else np.int8), "w"),
        graph.const(rng.integers(-9999, 9999, w[0]).astype(np.int32), "b"),
    )
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "zero_point": low + 9}
    sums = graph.add("conv_integer", value, *args, **attrs)
    each = rng.uniform(1e-4, 3e-3, (w[0], *[1] * (len(x) - 2))).astype(np.float32)
    graph.output(graph.add("requantize", sums, graph.const(each, "m"), zero_point=4, to=dtype))
    return graph, rng.integers(low, high, x, endpoint=True).astype(dtype)


def product(shapes, dtype: str, number: int) -> tuple[Graph, np.ndarray]:
    rng = np.random.default_rng(number)
    low, high = ACTIVATIONS[dtype]
    graph = Graph(f"product_{dtype}_{number}")
    value = graph.input("x", TensorType(dtype, shapes[0]))
    weights = graph.const(rng.integers(-128, 127, shapes[1], endpoint=True).astype(np.int8), "w")
    graph.output(graph.add("matmul_integer", value, weights, zero_point=low + 3))
    return graph, rng.integers(low, high, shapes[0], endpoint=True).astype(dtype)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ["rpi3", "rpi5", "armv7"])
def test_on_arm(target: str, tmp_path: Path) -> None:
    items = [conv(shape, d, i) for i, shape in enumerate(CHOSEN) for d in ACTIVATIONS]
    items += [product(shapes, d, i) for i, shapes in enumerate(PRODUCTS) for d in ACTIVATIONS]
    machine = targets.get(target)
    entries = [EntryGraph(graph, graph.name) for graph, _ in items]
    program, _ = plan_program(entries, machine, Options())
    names = {"rpi3": "smull", "rpi5": "sdot", "armv7": "vmull"}
    steps = [(e.name, s.detail) for e in program.entries for s in e.steps if "integer" in s.op]
    assert [s for s in steps if names[target] not in s[1]] == []
    artifact = compile_entries(entries, machine, tmp_path / "dots.so", Options(check=True))
    for graph, x in items:
        try:
            (got,) = run_elsewhere(artifact, machine, {"x": x}, entry=graph.name)
        except MissingTool as missing:
            pytest.skip(str(missing))
        (expected,) = interpret(graph, [x])
        np.testing.assert_array_equal(got.astype(expected.dtype), expected, err_msg=graph.name)
