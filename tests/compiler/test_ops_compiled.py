"""Every case of every operator, compiled and run, against the numpy reference of the op table.

The cases of a family become the entry points of one artifact, so that a family is linked once; the same artifacts are
built for ARM and run in the emulators.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.library import run_elsewhere
from nervure.compiler.ops import OPS, Kind
from nervure.errors import MissingTool
from nervure.runtime.session import load
from op_cases import CHUNKS, NOT_COMPILED, Item, back, build, complaint, feeds_of  # type: ignore[import-not-found]

ELSEWHERE = ("rpi3", "armv7")


@pytest.mark.slow
@pytest.mark.parametrize("items", CHUNKS)
def test_compiled_on_this_machine(items: list[Item], tmp_path: Path) -> None:
    build(items, "host", tmp_path)
    session = load(tmp_path / "ops.so", threads=2)
    complaints = []
    for name, graph, feeds in items:
        got = session.run(None, feeds_of(graph, feeds), entry=name)
        expected = interpret(graph, feeds)
        complaints.append(complaint(name, [back(y, r) for y, r in zip(got, expected, strict=True)], expected))
    assert not any(complaints), "\n".join(c for c in complaints if c)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ELSEWHERE)
@pytest.mark.parametrize("items", CHUNKS)
@pytest.mark.sampled(2)
def test_compiled_for_arm(items: list[Item], target: str, tmp_path: Path) -> None:
    machine = targets.get(target)
    artifact = build(items, target, tmp_path)
    complaints = []
    for name, graph, feeds in items:
        try:
            got = run_elsewhere(artifact, machine, feeds_of(graph, feeds), entry=name)
        except MissingTool as missing:
            pytest.skip(str(missing))
        expected = interpret(graph, feeds)
        complaints.append(complaint(name, [back(y, r) for y, r in zip(got, expected, strict=True)], expected))
    assert not any(complaints), "\n".join(c for c in complaints if c)


def test_every_operator_has_cases() -> None:
    bare = [
        op.name
        for op in OPS.values()
        if op.kind is not Kind.STORED and op.name not in NOT_COMPILED and op.cases is None
    ]
    assert not bare
