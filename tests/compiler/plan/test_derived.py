"""What ``refresh`` derives from params (and from states that change with them) is always that of the params now."""

from __future__ import annotations

import ctypes
import re

import nervure as nv
import numpy as np
import pytest
from nervure import layers, targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.types import TensorType
from nervure.frontends.training.step import training_entries
from nervure.runtime.session import Session

F32 = "float32"


def network() -> nv.Network:
    return nv.Sequential(
        [
            layers.Conv2d(8, 3, padding="same", input_shape=(1, 8, 8)),
            layers.BatchNorm(),
            layers.ReLU(),
            layers.Conv2d(16, 3, padding="same", use_bias=False),
            layers.BatchNorm(),
            layers.ReLU(),
            layers.GlobalAvgPool2d(),
            layers.Dense(4),
        ],
        name="small",
    )


def training(batch: int = 8) -> nv.Training:
    return nv.Training("sparse_categorical_crossentropy", "adam", ["accuracy"], batch=batch)


def planned(entries):
    return plan_program(entries, targets.get("host"), Options())[0]


def ops_of(program, function: str) -> list[str]:
    entry = next(e for e in program.entries if e.function == function)
    return [op for s in entry.steps for op in s.op.split("+")]


def test_running_statistics_are_folded_once():
    program = planned(training_entries(network(), training())[0])
    by_name = {e.function: e for e in program.entries}
    assert "rsqrt" not in ops_of(program, "infer") and "rsqrt" not in ops_of(program, "evaluate")
    assert by_name["infer"].reads_derived and by_name["evaluate"].reads_derived
    assert not by_name["train_step"].reads_derived  # else every step would be followed by a refresh
    bases = {r.base for s in by_name["refresh"].steps for p in s.phases for r in p.args}
    assert {"param", "state", "derived"} <= bases


def counting(bound: bool, moves_param: bool) -> EntryGraph:
    """An entry whose output needs work on a state alone, and that may change the state and a param."""
    graph = Graph("count")
    x = graph.input("x", TensorType(F32, (64, 64)))
    count = graph.state(np.ones((64, 64), F32), "count")
    graph.output(graph.add("matmul", x, graph.add("softmax", count, axis=1)), "y")
    if bound:
        graph.bind(count, graph.add("add", count, x))
    if moves_param:
        w = graph.param(np.ones((64, 64), F32), "w")
        graph.bind(w, graph.add("add", w, x))
    return EntryGraph(graph, f"entry_{int(bound)}{int(moves_param)}")


@pytest.mark.parametrize(
    ("entries", "derived"),
    [
        ([counting(True, True), counting(False, False)], True),  # changes with a param, is read elsewhere
        ([counting(True, False)], False),  # changes with every call
        ([counting(True, True), counting(True, False)], False),
        ([counting(False, False)], False),  # nobody binds it: the host sets it, between any two calls
    ],
)
def test_which_states_count_as_params(entries, derived):
    program = planned(entries)
    assert any(e.function == "refresh" for e in program.entries) == derived
    assert (program.derived_bytes > 0) == derived


@pytest.fixture(scope="module")
def compiled():
    net = network()
    model = nv.compile(net, training=training())
    graphs = {e.function: e.graph for e in training_entries(net, training())[0]}
    return model, graphs


def feeds(count: int):
    rng = np.random.default_rng(4)
    for _ in range(count):
        x = rng.standard_normal((8, 1, 8, 8), np.float32)
        yield {"input": x, "y": rng.integers(0, 4, 8).astype(np.int32), "learning_rate": np.float32(0.02)}


X = np.random.default_rng(2).standard_normal((1, 1, 8, 8), np.float32)


def check(session: Session, graphs: dict[str, Graph]) -> None:
    """Inference is that of the interpreter with the params and states as they are now."""
    held = session.params() | session.states()
    expected = interpret(graphs["infer"], {"input": X}, held)[0]
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, {"input": X})[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_inference_follows_every_way_of_changing_params_and_states(compiled, threads):
    model, graphs = compiled
    session = nv.load(model.path, threads)
    first = session.run(None, {"input": X})[0].copy()
    check(session, graphs)
    for feed in feeds(3):
        session.run(None, feed, entry="train_step")
        check(session, graphs)
    trained, blob = session.params(), session.export_state()
    states = session.states()
    session.restore()
    check(session, graphs)
    session.reset()
    check(session, graphs)
    np.testing.assert_array_equal(session.run(None, {"input": X})[0], first)
    session.set_params({"dense.weight": trained["dense.weight"]})
    check(session, graphs)
    session.set_params(trained)
    check(session, graphs)
    session.set_states({n: v for n, v in states.items() if "running" in n})
    check(session, graphs)
    session.restore()
    session.reset()
    session.import_state(blob)
    check(session, graphs)
    after = session.run(None, {"input": X})[0]
    for feed in feeds(2):
        session.run(None, feed, entry="train_step")
    other = nv.load(model.path, threads)
    other.import_state(blob)
    np.testing.assert_array_equal(other.run(None, {"input": X})[0], after)
    for feed in feeds(2):
        other.run(None, feed, entry="train_step")
    assert other.export_state() == session.export_state()
    check(other, graphs)


@pytest.mark.slow
def test_ram_is_told_alike_by_report_header_and_session(compiled):
    model, _ = compiled
    text = model.path.with_suffix(".h").read_text()
    told = {n: int(v) for n, v in re.findall(r"#define (SMALL_\w+_BYTES) (\d+)u\b", text)}
    ram, params = model.report.ram, model.session.params()
    assert list(ram) == [
        *("parameters", "states", "derived"),
        *(f"arena of {e}" for e in ("infer", "train_step", "evaluate", "refresh")),
    ]
    assert ram["parameters"] == told["SMALL_PARAMS_BYTES"] >= sum(a.nbytes for a in params.values())
    assert ram["states"] == told["SMALL_STATES_BYTES"] >= 2 * ram["parameters"]  # Adam's moments
    assert ram["derived"] == told["SMALL_DERIVED_BYTES"] > 0
    for entry in ("infer", "train_step", "evaluate", "refresh"):
        assert ram[f"arena of {entry}"] == told[f"SMALL_{entry.upper()}_ARENA_BYTES"]
    stays = sum(ram[k] for k in ("parameters", "states", "derived"))
    assert stays + ram["arena of train_step"] <= model.report.context_bytes <= stays + ram["arena of train_step"] + 2048
    assert nv.load(model.path)._memory.nbytes == model.report.context_bytes
    for words in ("One step of training", "the size of the step, 0.001 by default", "a mean over the batch"):
        assert words in text
    assert "arena of train_step" in repr(model)


def summing() -> list[EntryGraph]:
    """y = x + sum(w): the sum is derived, in parts that lie in the arena meanwhile; a training step changes w."""
    found = []
    for function in ("train_step", "infer"):
        graph = Graph("summing")
        x, w = graph.input("x", TensorType(F32, (64, 64))), graph.param(np.ones((1024, 1024), F32), "w")
        if function == "train_step":
            graph.bind(w, graph.add("mul", w, w))
        graph.output(graph.add("add", x, graph.add("reduce_sum", w, axes=(0, 1), keepdims=False)), "y")
        found.append(EntryGraph(graph, function))
    return found


def test_what_refresh_works_in_lies_behind_the_inputs():
    program = planned(summing())
    (end,) = (p.slot.offset + p.type.nbytes for e in program.entries if e.reads_derived for p in e.inputs)
    refresh = next(e for e in program.entries if e.function == "refresh")
    refs = [r for s in refresh.steps for p in s.phases for r in p.args if r.base == "region"]
    assert refs and all(end <= r.offset < refresh.region_bytes[0] for r in refs)
    nothing = planned(training_entries(network(), training())[0])
    assert next(e for e in nothing.entries if e.function == "refresh").region_bytes == (0,)


def test_a_slot_that_was_filled_before_the_refresh(tmp_path):
    artifact = compile_entries(summing(), targets.get("host"), tmp_path / "summing.so")
    session = nv.load(artifact.path)
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    entry = [e.name for e in artifact.entries].index("infer")
    code = ctypes.CDLL(str(artifact.path))
    places = {}
    for kind in ("input", "output"):
        slot = getattr(code, f"{artifact.prefix}_{kind}")
        slot.restype, slot.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        places[kind] = slot(session._context, entry, 0)
    run = getattr(code, f"{artifact.prefix}_run")
    session.restore()  # copies are stale
    ctypes.memmove(places["input"], x.ctypes.data, x.nbytes)
    assert run(session._context, entry, None, None) == 0
    found = np.empty_like(x)
    ctypes.memmove(found.ctypes.data, places["output"], found.nbytes)
    np.testing.assert_array_equal(found, x + np.float32(1 << 20))


def test_a_product_of_params_alone_is_packed_in_scratch():
    """Both its packing and itself are work of ``refresh``: the packed operand is not where the result is."""
    values = np.random.default_rng(0).random((150, 64), np.float32)
    w = nv.Variable(values, name="w")

    @nv.network
    def net(x: nv.Input(batch_shape=(64,))):
        return nv.sum(w @ w.T, axis=1), nv.sum(x)

    @nv.network
    def double(x: nv.Input(batch_shape=(64,))):
        return nv.assign(w, 2 * w)

    model = nv.compile(net, steps=[double])
    refresh = model.artifact.entry("refresh")
    assert [step["op"] for step in refresh.steps] == ["derive"] and len(refresh.steps[0]["kernels"]) == 2
    for factor in (1, 4):
        np.testing.assert_allclose(model(values[0])[0], factor * (values @ values.T).sum(axis=1), rtol=1e-5)
        model.session.run(None, {"x": values[0]}, entry="double")
