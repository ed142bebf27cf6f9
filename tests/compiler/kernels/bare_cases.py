"""Graphs of 8-bit layers, compiled for a Cortex-M core and run in QEMU, many in one boot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_jobs import Job, run_jobs
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.types import type_of
from nervure.errors import MissingTool
from nervure.runtime.arrays import host_dtype
from nervure.runtime.artifact import Artifact
from op_cases import Item, build, feeds_of


def bare_complaints(items: Sequence[Item], target: str, folder: Path) -> tuple[Artifact, list[str]]:
    """The artifact, and the cases whose outputs are not those of the references, bit for bit."""
    artifact = build(list(items), target, folder)
    jobs = []
    for name, graph, arrays in items:
        entry, feeds = artifact.entry(name), feeds_of(graph, arrays)
        sizes = tuple(math.prod(p.shape) * host_dtype(p.dtype).itemsize for p in entry.outputs)
        jobs.append(Job(name, tuple(feeds[p.name].tobytes() for p in entry.inputs), sizes))
    try:
        results = run_jobs(artifact, targets.get(target), jobs)
    except MissingTool as missing:
        pytest.skip(str(missing))
    found = []
    for (name, graph, arrays), result in zip(items, results, strict=True):
        if isinstance(result, str):
            found.append(f"{name}: {result}")
            continue
        for data, port, want in zip(result, artifact.entry(name).outputs, interpret(graph, arrays), strict=True):
            got = np.frombuffer(data, host_dtype(port.dtype)).reshape(port.shape)
            if not np.array_equal(got, want):
                found.append(f"{name}: differs in {int((got != want).sum())} of {want.size} places")
    return artifact, found


def check_layers(layers: Sequence[Any], graph_of: Callable[[Any, int], Item], template: str, target: str, folder: Path):
    """Every layer gives the references' bits, by a kernel of that template."""
    items = [graph_of(layer, number) for number, layer in enumerate(layers)]
    artifact, wrong = bare_complaints(items, target, folder)
    assert not wrong, "\n".join(f"{w} {layers[int(w.split(':')[0].split('_')[1])]}" for w in wrong)
    others = [layers[i] for i, (name, *_) in enumerate(items) if template not in kernels(artifact, name)]
    assert not others


def kernels(artifact: Artifact, name: str) -> set[str]:
    """The templates of an entry's kernels."""
    return {k.split("_", 1)[1].rsplit("_", 1)[0] for s in artifact.entry(name).steps for k in s["kernels"]}


def last(graph: Graph, array: np.ndarray, name: str = "x") -> object:
    """An input that lies channels last, as a value with its channels second."""
    rank = array.ndim
    moved = np.ascontiguousarray(array.transpose(0, *range(2, rank), 1))
    value = graph.input(name, type_of(moved))
    return graph.add("transpose", value, perm=(0, rank - 1, *range(1, rank - 1)))


def moved(array: np.ndarray) -> np.ndarray:
    """The array as ``last`` wants it fed."""
    return np.ascontiguousarray(array.transpose(0, *range(2, array.ndim), 1))


def put_out(graph: Graph, value: object) -> None:
    """A result that lies channels last."""
    rank = graph.type(value).rank  # type: ignore[arg-type]
    graph.output(graph.add("transpose", value, perm=(0, *range(2, rank), 1)))  # type: ignore[arg-type]
