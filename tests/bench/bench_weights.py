"""Narrow weights against our own float kernels: one thread, interleaved, the fastest of many rounds.

    python tests/bench/bench_weights.py [filter ...]    # e.g. gemv, conv, 4096

A ratio above 1 means that narrow weights are faster. A vector times a matrix is bound by how fast weights come from
memory; where rows are many, unpacking is work on top of the same products.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nervure import targets
from nervure.compiler.ir import Graph
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.compiler.quantize.weights import halve_weights, quantize_weights
from nervure.compiler.types import TensorType
from nervure.runtime.session import load

SECONDS = 0.6  # for each shape
Layer = tuple[str, tuple[int, ...], tuple[int, ...]]


def gemm(rows: int, depth: int, columns: int) -> Layer:
    return f"gem{'v' if rows == 1 else 'm'} {rows}x{depth}x{columns}", (rows, depth), (depth, columns)


def conv(channels: int, size: int, filters: int, kernel: int) -> Layer:
    name = f"conv {kernel}x{kernel} {channels}@{size}->{filters}"
    return name, (1, channels, size, size), (filters, channels, kernel, kernel)


LAYERS = [
    gemm(1, 256, 256),
    gemm(1, 512, 2048),
    gemm(1, 1024, 1024),
    gemm(1, 2048, 2048),
    gemm(1, 4096, 4096),
    gemm(2, 2048, 2048),
    gemm(8, 1024, 1024),
    gemm(64, 1024, 1024),
    conv(96, 14, 576, 1),
    conv(960, 7, 320, 1),
    conv(256, 14, 256, 3),
]
FORMS: dict[str, Callable[[Graph], Graph]] = {
    "float": lambda g: g,
    "int4/32": lambda g: quantize_weights(g, 4, 32),
    "int8/32": lambda g: quantize_weights(g, 8, 32),
    "float16": lambda g: halve_weights(g, "float16"),
    "bfloat16": lambda g: halve_weights(g, "bfloat16"),
}


def graph_of(x: tuple[int, ...], w: tuple[int, ...]) -> Graph:
    rng = np.random.default_rng(0)
    graph = Graph("layer")
    value, weights = graph.input("x", TensorType("float32", x)), graph.const(rng.normal(size=w).astype(np.float32), "w")
    if len(w) == 2:
        graph.output(graph.add("matmul", value, weights), "y")
    else:
        pad = w[2] // 2
        window = {"strides": (1, 1), "pads": (pad,) * 4, "dilations": (1, 1), "group": 1}
        graph.output(graph.add("conv", value, weights, **window), "y")
    return graph


def measure(layer: Layer, folder: Path, seconds: float = SECONDS) -> dict[str, tuple[float, int]]:
    """For each form of the weights: microseconds of a run, bytes of the library."""
    _, x, w = layer
    graph = graph_of(x, w)
    calls: dict[str, Any] = {}
    sizes = {}
    array = np.random.default_rng(1).normal(size=x).astype(np.float32)
    for form, narrow in FORMS.items():
        path = folder / f"{form.replace('/', '_')}.so"
        compile_entries([EntryGraph(narrow(graph))], targets.host(), path)
        session = load(path)
        session.bind({"x": array})
        calls[form], sizes[form] = session.invoke, path.stat().st_size
    times: dict[str, list[float]] = {form: [] for form in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["float"]) < 5:
        for form, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            call()
            times[form].append((time.perf_counter() - start) / 2)
    return {form: (1e6 * min(found), sizes[form]) for form, found in times.items()}


def main(filters: list[str]) -> None:
    print(f"{'layer':<26}{'float us':>10}" + "".join(f"{form:>12}" for form in list(FORMS)[1:]) + f"{'int4 bytes':>12}")
    ratios = []
    for layer in LAYERS:
        if filters and not any(f in layer[0] for f in filters):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(layer, Path(folder))
        base, size = found["float"]
        cells = [base / found[form][0] for form in list(FORMS)[1:]]
        ratios.append(cells[0])
        print(f"{layer[0]:<26}{base:>10.1f}" + "".join(f"{c:>11.2f}x" for c in cells), end="")
        print(f"{found['int4/32'][1] / size:>11.2f}x", flush=True)
    if ratios:
        print(f"int4, geometric mean: {statistics.geometric_mean(ratios):.2f}x")


if __name__ == "__main__":
    main(sys.argv[1:])
