"""Every case of every operator, compiled and run, against the numpy reference of the op table.

The cases of a family become the entry points of one artifact, so that a family is linked once; the same artifacts are
built for ARM and run in the emulators.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.library import run_elsewhere
from nervure.compiler.ops import FAMILIES, OPS, Kind
from nervure.compiler.ops.sampling import sample_inputs
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.types import type_of
from nervure.errors import MissingTool
from nervure.runtime.artifact import Artifact
from nervure.runtime.session import load

# What a kernel may differ from the float64-accumulating reference by, relative to the output's largest value.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
CHUNK = 40  # cases an artifact
ELSEWHERE = ("rpi3", "armv7")
NOT_COMPILED = ("fused", "identity")

Item = tuple[str, Graph, list[np.ndarray]]


def _items(family: object) -> Iterator[Item]:
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
    pytest.param(items[i : i + CHUNK], id=f"{family.__name__.rsplit('.', 1)[-1]}-{i // CHUNK}")
    for family in FAMILIES
    for items in [list(_items(family))]
    for i in range(0, len(items), CHUNK)
]


def _build(items: list[Item], target: str, folder: Path) -> Artifact:
    entries = [EntryGraph(graph, name) for name, graph, _ in items]
    return compile_entries(entries, targets.get(target), folder / "ops.so", Options(check=True))


def _complaint(name: str, got: list[np.ndarray], expected: list[np.ndarray]) -> str | None:
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


def _bits(array: np.ndarray) -> np.ndarray:
    """bfloat16 travels as its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _feeds(graph: Graph, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {graph.node(n).names[0]: _bits(a) for n, a in zip(graph.inputs, arrays, strict=True)}


def _back(y: np.ndarray, ref: np.ndarray) -> np.ndarray:
    return y.view(ref.dtype) if ref.dtype.name == "bfloat16" else y


@pytest.mark.slow
@pytest.mark.parametrize("items", CHUNKS)
def test_compiled_on_this_machine(items: list[Item], tmp_path: Path) -> None:
    _build(items, "host", tmp_path)
    session = load(tmp_path / "ops.so", threads=2)
    complaints = []
    for name, graph, feeds in items:
        got = session.run(None, _feeds(graph, feeds), entry=name)
        expected = interpret(graph, feeds)
        complaints.append(_complaint(name, [_back(y, r) for y, r in zip(got, expected, strict=True)], expected))
    assert not any(complaints), "\n".join(c for c in complaints if c)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ELSEWHERE)
@pytest.mark.parametrize("items", CHUNKS)
def test_compiled_for_arm(items: list[Item], target: str, tmp_path: Path) -> None:
    machine = targets.get(target)
    artifact = _build(items, target, tmp_path)
    complaints = []
    for name, graph, feeds in items:
        try:
            got = run_elsewhere(artifact, machine, _feeds(graph, feeds), entry=name)
        except MissingTool as missing:
            pytest.skip(str(missing))
        expected = interpret(graph, feeds)
        complaints.append(_complaint(name, [_back(y, r) for y, r in zip(got, expected, strict=True)], expected))
    assert not any(complaints), "\n".join(c for c in complaints if c)


def test_every_operator_has_cases() -> None:
    bare = [
        op.name
        for op in OPS.values()
        if op.kind is not Kind.STORED and op.name not in NOT_COMPILED and op.cases is None
    ]
    assert not bare
