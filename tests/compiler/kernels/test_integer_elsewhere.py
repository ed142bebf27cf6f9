"""Chains of integer operators, compiled whole: on this machine, and for ARM in the emulators, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.library import run_elsewhere
from nervure.compiler.ops.integers import add_multiplier, exp_table
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.types import type_of
from nervure.errors import MissingTool
from nervure.runtime.session import load

SEEDS = (0, 1, 2, 3, 4, 6)


def chain(seed: int) -> tuple[Graph, list[np.ndarray]]:
    """float -> steps -> depthwise -> residual -> table -> pointwise products -> pool -> softmax, all drawn."""
    rng = np.random.default_rng(seed)
    dtype = ("int8", "uint8")[seed % 2]
    info = np.iinfo(dtype)
    channels, size = int(rng.choice([8, 16, 20, 24, 48, 64, 70])), [int(v) for v in rng.integers(5, 13, 2)]
    g = Graph(f"chain_{seed}")

    def zero() -> int:
        return (info.min + info.max) // 2 + int(rng.integers(-30, 31))

    def number(value: float, kind: str = "float32") -> Value:
        return g.const(np.asarray(value, kind))

    def scaled(sums: Value, reach: float) -> Value:
        each = (80 / reach * rng.uniform(0.5, 1.5, (g.type(sums).dims[1], 1, 1))).astype(np.float32)
        low, high = sorted(int(v) for v in rng.integers(info.min, info.max + 1, 2))
        if seed % 3 == 0 or high - low < 20:
            low, high = info.min, info.max
        at = {"x_zero_point": 0, "zero_point": zero(), "low": low, "high": high, "to": dtype}
        return g.add("requantize", sums, g.const(each), **at)

    first = rng.standard_normal((1, channels, *size)).astype(np.float32) * 3
    point = zero()
    q = g.add("quantize", g.input("x", type_of(first)), number(0.05), number(point, dtype), to=dtype)
    kernel, stride = [(3, 3), (5, 5), (3, 1), (2, 4)][seed % 4], (1, 1, 2)[seed % 3]
    pads = (kernel[0] // 2, kernel[1] // 2) * 2
    w = rng.integers(-127, 128, (channels, 1, *kernel)).astype(np.int8)
    bias = rng.integers(-9999, 9999, channels).astype(np.int32)
    window = {"strides": (stride, stride), "pads": pads, "dilations": (1, 1), "zero_point": point}
    y = scaled(g.add("conv_integer", q, g.const(w), g.const(bias), group=channels, **window), 9e3 * np.sqrt(w[0].size))
    other = rng.integers(info.min, info.max + 1, g.type(y).dims).astype(dtype)
    ratios = [g.const(add_multiplier(r)) for r in rng.uniform(0.1, 2, 2)]
    zeros = {"a_zero_point": zero(), "b_zero_point": zero(), "zero_point": zero(), "low": None, "high": None}
    y = g.add("add_integer", y, g.input("r", type_of(other)), *ratios, **zeros, to=dtype)
    y = g.add("lookup", y, g.const(rng.integers(info.min, info.max + 1, 256).astype(dtype)))
    dense = rng.integers(-127, 128, (12, channels, 1, 1)).astype(np.int8)
    plain = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1, "zero_point": zero()}
    y = scaled(g.add("conv_integer", y, g.const(dense), **plain), 9e3 * np.sqrt(channels))
    pool = {"kernel_shape": g.type(y).dims[2:], "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    y = scaled(g.add("sum_pool_integer", y, **pool, zero_point=zero()), 60.0 * g.type(y).dims[2] * g.type(y).dims[3])
    table = g.const(exp_table(0.05, 12))
    g.output(y)
    rest = {"zero_point": -128, "low": None, "high": None, "to": "int8"}
    g.output(g.add("softmax_integer", y, table, number(256), axis=1, **rest))
    return g, [first, other]


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", ["host", "x86-64-v3", *(pytest.param(t, marks=pytest.mark.emulator) for t in ("rpi3", "rpi5", "armv7"))]
)
def test_chains(target: str, tmp_path: Path) -> None:
    machine = targets.get(target)
    chains = [chain(seed) for seed in SEEDS]
    entries = [EntryGraph(graph, graph.name) for graph, _ in chains]
    artifact = compile_entries(entries, machine, tmp_path / "chains.so", Options(check=True))
    session = load(tmp_path / "chains.so") if machine.family == targets.host().family else None
    for graph, arrays in chains:
        feeds = dict(zip(("x", "r"), arrays, strict=True))
        expected = interpret(graph, arrays)
        assert np.ptp(expected[0].astype(int)) > 0, graph.name
        try:
            got = (
                session.run(None, feeds, entry=graph.name)
                if session is not None
                else run_elsewhere(artifact, machine, feeds, entry=graph.name)
            )
        except MissingTool as missing:
            pytest.skip(str(missing))
        for y, ref in zip(got, expected, strict=True):
            np.testing.assert_array_equal(y, ref, err_msg=graph.name)
