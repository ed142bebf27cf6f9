"""Every case of every operator on the four Cortex-M cores, in QEMU, against the numpy reference of the op table.

The cases of a family are entries of one static library and run in one boot of the emulated board.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bare_jobs import Job, run_jobs  # type: ignore[import-not-found]
from nervure import targets
from nervure.compiler.abilities import check_machine
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.types import TensorType
from nervure.errors import MissingTool, NervureError
from nervure.runtime.arrays import check_array, host_dtype
from nervure.runtime.artifact import Artifact
from nervure.targets.machine import Machine
from op_cases import CHUNKS, Item, back, build, complaint, feeds_of  # type: ignore[import-not-found]

pytestmark = pytest.mark.emulator

CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
CASES: list[Item] = [item for chunk in CHUNKS for item in chunk.values[0]]


def in_float64(graph: Graph) -> bool:
    """Whether the case computes in float64, which M4 and M33 do not have: the one thing that a core refuses."""
    return any(t.dtype == "float64" for key in graph for t in graph.node(key).types)


def possible(items: Sequence[Item], machine: Machine) -> list[Item]:
    return [item for item in items if machine.float64 or not in_float64(item[1])]


def job(artifact: Artifact, item: Item) -> Job:
    name, graph, arrays = item
    entry, feeds = artifact.entry(name), feeds_of(graph, arrays)
    given = tuple(check_array(feeds[p.name], p, "input").tobytes() for p in entry.inputs)
    return Job(name, given, tuple(math.prod(p.shape) * host_dtype(p.dtype).itemsize for p in entry.outputs))


def complaints(items: Sequence[Item], target: str, folder: Path) -> list[str]:
    """What is wrong with each case that is not right."""
    machine = targets.get(target)
    artifact = build(list(items), target, folder)
    try:
        results = run_jobs(artifact, machine, [job(artifact, item) for item in items])
    except MissingTool as missing:
        pytest.skip(str(missing))
    found = []
    for (name, graph, arrays), result in zip(items, results, strict=True):
        if isinstance(result, str):
            found.append(f"{name}: {result}")
            continue
        expected, ports = interpret(graph, arrays), artifact.entry(name).outputs
        pairs = zip(result, ports, expected, strict=True)
        got = [back(np.frombuffer(d, host_dtype(p.dtype)).reshape(p.shape), r) for d, p, r in pairs]
        if wrong := complaint(name, got, expected):
            found.append(wrong)
    return found


SAMPLE = CASES[::97]


@pytest.mark.parametrize("part", range(0, len(SAMPLE), 3))
def test_a_sample_on_cortex_m4(part: int, tmp_path: Path) -> None:
    items = possible(SAMPLE[part : part + 3], targets.get("cortex-m4"))
    assert not complaints(items, "cortex-m4", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", CORES)
@pytest.mark.parametrize("items", CHUNKS)
@pytest.mark.sampled(4)
def test_all(items: list[Item], target: str, tmp_path: Path) -> None:
    chosen = possible(items, targets.get(target))
    found = complaints(chosen, target, tmp_path) if chosen else []
    assert not found, "\n".join(found)


def test_float64_alone_is_refused() -> None:
    """The exemption is as large as it needs to be: what a core refuses are the cases in float64, all of them."""
    for target in CORES:
        machine = targets.get(target)
        for name, graph, _ in CASES:
            try:
                check_machine(graph, machine)
                refused = False
            except NervureError as error:
                refused = "float64" in str(error)
            assert refused == (in_float64(graph) and not machine.float64), name


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m33"])
def test_a_compile_says_that_float64_is_refused(target: str, tmp_path: Path) -> None:
    item = next(i for i in CASES if in_float64(i[1]) and i[0].startswith("exp_"))
    with pytest.raises(NervureError, match="float64"):
        build([item], target, tmp_path)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_products_with_powers_of_two_on_helium(bits: int, tmp_path: Path) -> None:
    """LLVM's conversion from fixed point, whose number of bits it may put in a register, is not asked for."""
    g = Graph("scaled")
    x = g.input("x", TensorType("int8", (1, 16)))
    scale, zero = g.const(np.float32(2.0**-bits), "scale"), g.const(np.int8(-128), "zero")
    g.output(g.add("dequantize", x, scale, zero, to="float32"), "y")
    arrays = [np.arange(-128, 128, 16, dtype=np.int8)[None]]
    assert not complaints([("scaled", g, arrays)], "cortex-m55", tmp_path)
