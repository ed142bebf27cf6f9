"""The doors that later work goes through, each proved once, end to end."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.ir import Graph, Value
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.types import TensorType
from nervure.runtime.session import load

F32 = "float32"


def _training(width: int = 8) -> list[EntryGraph]:
    """``infer`` reads ``packed``, a state made from param ``w``; ``train_step`` moves ``w``; ``refresh`` rebuilds."""
    start = np.arange(width, dtype=F32)
    infer = Graph("infer")
    x = infer.input("x", TensorType(F32, (width,)))
    infer.output(infer.add("mul", x, infer.state(start * 2, "packed")), "y")
    step = Graph("train_step")
    gradient = step.input("gradient", TensorType(F32, (width,)))
    w = step.param(start, "w")
    moved = step.add("sub", w, gradient)
    step.bind(w, moved)
    step.output(step.add("reduce_sum", gradient, axes=(0,)), "total")
    refresh = Graph("refresh")
    w = refresh.param(start, "w")
    packed = refresh.state(start * 2, "packed")
    refresh.bind(packed, refresh.add("add", w, w))
    return [EntryGraph(infer, "infer"), EntryGraph(step, "train_step"), EntryGraph(refresh, "refresh")]


def test_two_entry_points_share_a_param_and_refresh_rebuilds_its_copy(tmp_path: Path) -> None:
    compile_entries(_training(), targets.get("host"), tmp_path / "m.so")
    session = load(tmp_path / "m.so")
    x, gradient = np.ones(8, F32), np.full(8, 0.5, F32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], 2 * np.arange(8))
    session.run(None, {"gradient": gradient}, entry="train_step")
    np.testing.assert_array_equal(session.params()["w"], np.arange(8) - 0.5)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], 2 * (np.arange(8) - 0.5))


def test_a_state_lives_from_call_to_call_and_reset_sets_it_back(tmp_path: Path) -> None:
    graph = Graph("counter")
    x = graph.input("x", TensorType(F32, (3,)))
    count = graph.state(np.zeros(3, F32), "count")
    total = graph.add("add", count, x)
    graph.bind(count, total)
    graph.output(graph.add("mul", total, graph.const(np.float32(10), "ten")), "y")
    model = nv.compile(graph, cache=False)
    ones = np.ones(3, F32)
    assert [float(model(ones)[0]) for _ in range(3)] == [10, 20, 30]
    model.reset()
    assert float(model(ones)[0]) == 10


def test_an_int8_dot_product_through_an_instruction_row_of_the_target(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from nervure.compiler.kernels.lower import write_object
    from nervure.compiler.kernels.tir import Builder

    machine = targets.get("host")
    row = machine.instruction("dot4")
    if row is None:
        pytest.skip(f"{machine.name} has no dot product")
    kinds = dict(row.operands)
    k = Builder("dot", machine.record())
    width = 4 * row.lanes
    acc = k.arg("acc", "int32", row.lanes)
    a = k.arg("a", kinds["a"].split("x")[0], width)
    b = k.arg("b", kinds["b"].split("x")[0], width)
    args = {"acc": k.load(acc, 0, row.lanes), "a": k.load(a, 0, width), "b": k.load(b, 0, width)}
    k.store(acc, 0, k.instruction(row, **args))
    write_object([k.function()], dict(machine.llvm), tmp_path / "dot.o")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "dot.so", tmp_path / "dot.o"], check=True)
    random = np.random.default_rng(0)
    left = random.integers(0, row.limit or 100, width).astype(kinds["a"].split("x")[0])
    right = random.integers(-128, 128, width).astype(kinds["b"].split("x")[0])
    start = random.integers(-1000, 1000, row.lanes).astype(np.int32)
    result = start.copy()
    call = ctypes.CDLL(str(tmp_path / "dot.so")).dot
    call(*(v.ctypes.data_as(ctypes.c_void_p) for v in (result, left, right)))
    exact = start + (left.astype(np.int32) * right.astype(np.int32)).reshape(-1, 4).sum(1)
    np.testing.assert_array_equal(result, exact)
    np.testing.assert_array_equal(row.reference(start, left, right), exact)


def test_a_graph_through_the_c_target_is_freestanding_and_free_of_warnings(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from nervure.compiler.kernels import c99
    from nervure.compiler.kernels.worker import build

    machine = dataclasses.replace(targets.get("host"), lanes=1, registers=16)
    graph = Graph("scaled")
    x = graph.input("x", TensorType(F32, (5, 7)))
    shifted = graph.add("add", x, graph.const(np.linspace(-1, 1, 7, dtype=F32), "bias"))
    graph.output(graph.add("mul", graph.add("relu", shifted), graph.const(np.float32(1 / 3), "third")), "y")
    program, pool = plan_program([EntryGraph(graph)], machine, Options())
    drafts = [pool.drafts[name] for name in program.kernels()]
    functions = [build(d.spec.template, dict(d.spec.config), d.spec.name, machine.record())[0] for d in drafts]
    (tmp_path / "model.c").write_text(c99.unit(functions))
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffreestanding", "-shared", "-fPIC"]
    library = tmp_path / "model.so"
    subprocess.run(["gcc", *flags, "-o", library, tmp_path / "model.c"], check=True)
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(F32)
    out = np.zeros_like(values)
    const = ctypes.create_string_buffer(program.const, max(1, len(program.const)))
    bases = {"input": values.ctypes.data, "output": out.ctypes.data, "const": ctypes.addressof(const)}
    loaded = ctypes.CDLL(str(library))
    for step in program.entries[0].steps:
        for phase in step.phases:
            pointers = [ctypes.c_void_p(bases[r.base] + r.offset) for r in phase.args]
            getattr(loaded, phase.kernel)(*pointers)
    expected = np.maximum(values + np.linspace(-1, 1, 7, dtype=F32), 0) * np.float32(1 / 3)
    np.testing.assert_array_equal(out, expected)


def test_two_batch_sizes_in_one_artifact_share_their_constants(tmp_path: Path) -> None:
    def network(weights: np.ndarray) -> Graph:
        graph = Graph("affine")
        x = graph.input("x", TensorType(F32, ("batch", 4096)))
        graph.output(graph.add("mul", x, graph.const(weights, "w")), "y")
        return graph

    weights = np.random.default_rng(0).standard_normal(4096).astype(F32)
    model = nv.compile(network(weights), dims={"batch": (1, 8)}, cache=False)
    for batch in (1, 8):
        x = np.random.default_rng(batch).standard_normal((batch, 4096)).astype(F32)
        np.testing.assert_array_equal(model(x), x * weights)
    assert model.report.weights_bytes == weights.nbytes
    with pytest.raises(nv.NervureError, match="shape"):
        model(np.zeros((3, 4096), F32))


def test_two_named_memory_regions(tmp_path: Path) -> None:
    graph = Graph("chain")
    value: Value = graph.input("x", TensorType(F32, (64, 64)))
    for _ in range(3):  # a transposed copy between, so that nothing is fused into one kernel
        value = graph.add("transpose", graph.add("tanh", value), perm=(1, 0))
        value = graph.add("reshape", value, shape=(64, 64))
        value = graph.add("reduce_sum", graph.add("reshape", value, shape=(64, 64, 1)), axes=(2,))
    graph.output(value, "y")
    options = Options(fast=(("tcm", 20 << 10),))
    program, _ = plan_program([EntryGraph(graph)], targets.get("host"), options)
    assert [r.name for r in program.regions] == ["arena", "tcm"]
    assert 0 < program.regions[1].nbytes <= 20 << 10
    assert {b.region for b in program.entries[0].buffers} == {0, 1}
    compile_entries([EntryGraph(graph)], targets.get("host"), tmp_path / "m.so", options)
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(F32)
    expected = x
    for _ in range(3):
        expected = np.tanh(expected).T
    np.testing.assert_allclose(load(tmp_path / "m.so").run(None, {"x": x})[0], expected, atol=1e-6)
