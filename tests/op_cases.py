"""The op table's sample cases as graphs, compiled many at a time, and compared with the numpy references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.ir import Graph
from nervure.compiler.ops import FAMILIES, Kind
from nervure.compiler.ops.sampling import sample_inputs
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.types import type_of
from nervure.runtime.artifact import Artifact

# What a kernel may differ from the float64-accumulating reference by, relative to the output's largest value.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
CHUNK = 40  # cases an artifact
NOT_COMPILED = ("fused", "identity")

Item = tuple[str, Graph, list[np.ndarray]]


def items(family: object) -> Iterator[Item]:
    """One graph a case: arrays that the case fixes are constants, the others inputs."""
    for op in family.OPS:  # type: ignore[attr-defined]
        if op.kind is Kind.STORED or op.name in NOT_COMPILED or op.cases is None:
            continue
        for number, case in enumerate(op.cases()):
            graph = Graph(f"{op.name}_{number}")
            values, feeds = [], []
            for i, (given, array) in enumerate(zip(case.inputs, sample_inputs(case, number), strict=True)):
                if array is None:
                    values.append(None)
                elif isinstance(given, np.ndarray) and op.name not in ("gather", "gather_nd", "gather_elements"):
                    values.append(graph.const(array, f"c{i}"))
                else:
                    values.append(graph.input(f"x{i}", type_of(array)))
                    feeds.append(array)
            first = graph.add(op.name, *values, origin=(f"{op.name} case {number}",), **case.attrs)
            for value in graph.values(first.node):
                graph.output(value)
            if not all(graph.type(v).size for v in graph.outputs):
                continue
            yield graph.name, graph, feeds


CHUNKS = [
    pytest.param(held[i : i + CHUNK], id=f"{family.__name__.rsplit('.', 1)[-1]}-{i // CHUNK}")
    for family in FAMILIES
    for held in [list(items(family))]
    for i in range(0, len(held), CHUNK)
]


def build(chosen: list[Item], target: str, folder: Path) -> Artifact:
    entries = [EntryGraph(graph, name) for name, graph, _ in chosen]
    return compile_entries(entries, targets.get(target), folder / "ops.so", Options(check=True))


def complaint(name: str, got: list[np.ndarray], expected: list[np.ndarray]) -> str | None:
    for y, ref in zip(got, expected, strict=True):
        if y.shape != ref.shape:
            return f"{name}: shape {y.shape}, expected {ref.shape}"
        tolerance = TOLERANCE.get(ref.dtype.name)
        if tolerance is None:
            if not np.array_equal(y.astype(ref.dtype), ref):
                return f"{name}: {ref.dtype} differs in {int((y.astype(ref.dtype) != ref).sum())} places"
            continue
        a, b = y.astype(np.float64), ref.astype(np.float64)
        wild = ~np.isfinite(b)
        if not np.array_equal(a[wild], b[wild], equal_nan=True):
            return f"{name}: NaN or infinity at other places"
        scale = max(1e-6, float(np.abs(b[~wild]).max(initial=0)))
        worst = float(np.abs(a[~wild] - b[~wild]).max(initial=0))
        if not worst <= tolerance * scale:
            return f"{name}: off by {worst:.3g} of {scale:.3g}"
    return None


def bits(array: np.ndarray) -> np.ndarray:
    """bfloat16 travels as its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def feeds_of(graph: Graph, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {graph.node(n).names[0]: bits(a) for n, a in zip(graph.inputs, arrays, strict=True)}


def back(y: np.ndarray, ref: np.ndarray) -> np.ndarray:
    return y.view(ref.dtype) if ref.dtype.name == "bfloat16" else y
