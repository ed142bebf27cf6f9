"""Artifacts for a GPU, of programs made by hand, on a driver that the CPU plays: runs, contexts, parameters, graphs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading

import numpy as np
import pytest
from gpu_programs import BIG, WEIGHTS, chain
from nervure.compiler import device, render
from nervure.errors import NervureError
from nervure.runtime import load, read_artifact
from nervure.runtime.arrays import empty


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=["at once", "late"])
def either(request, played):
    """Work is done when it is enqueued, or only when somebody waits for it."""
    played.set("deferred", int(request.param == "late"))
    return played


def test_batch_sizes_share_constants_and_inputs_choose(gpu_artifacts, either):
    session = load(gpu_artifacts("scaled").path)
    for batch in (1, 8, 1):
        x = sample(batch, 64, seed=batch)
        np.testing.assert_array_equal(session(x), x * WEIGHTS)


def test_entries_share_params_and_refresh_follows_updates(gpu_artifacts, either):
    session = load(gpu_artifacts("trained").path)
    x = sample(64)
    np.testing.assert_array_equal(session(x)[0], x * (2 * WEIGHTS))
    session.run(None, {"x": x}, entry="train_step")
    np.testing.assert_array_equal(session.params()["w"], WEIGHTS + x)
    np.testing.assert_array_equal(session(x)[0], x * (2 * (WEIGHTS + x)))
    session.set_params({"w": x})
    np.testing.assert_array_equal(session(x)[0], x * (2 * x))
    twin = session.clone()
    session.set_params({"w": WEIGHTS})
    np.testing.assert_array_equal(twin(x)[0], x * (2 * x))
    session.restore()
    np.testing.assert_array_equal(session(x)[0], x * (2 * WEIGHTS))


def test_state_stays_on_the_device_until_reset(gpu_artifacts, either):
    session = load(gpu_artifacts("trained").path)
    x = sample(64)
    assert session(x)[1].tolist() == [11, 2, 3, 4]
    assert session(x)[1].tolist() == [12, 4, 6, 8]
    session.set_params({"w": x})  # takes no older copy of the states along
    assert session(x)[1].tolist() == [13, 6, 9, 12]
    session.reset()
    assert session(x)[1].tolist() == [11, 2, 3, 4]
    session.set_states({"seen": np.full(4, 100, np.int32)})
    assert session(x)[1].tolist() == [101, 102, 103, 104]
    assert session.states()["seen"].tolist() == [101, 102, 103, 104]


def test_blobs_are_those_of_the_cpu(gpu_artifacts, artifacts, either):
    session, x = load(gpu_artifacts("trained").path), sample(64)
    session.run(None, {"x": x}, entry="train_step")
    session(x)
    blob = session.export_state()
    other = load(artifacts("trainable").path)
    other.import_state(blob)
    assert other.export_state() == blob
    np.testing.assert_array_equal(other.params()["w"], WEIGHTS + x)
    fresh = load(gpu_artifacts("trained").path)
    fresh.import_state(blob)
    np.testing.assert_array_equal(fresh(x)[0], session(x)[0])
    with pytest.raises(NervureError, match="damaged"):
        fresh.import_state(blob[:-1] + bytes([blob[-1] ^ 1]))
    np.testing.assert_array_equal(fresh.params()["w"], WEIGHTS + x)


def test_training_copies_nothing_from_step_to_step(gpu_artifacts, played):
    session, x = load(gpu_artifacts("trained").path), sample(64)
    step = session.binding({"x": x}, entry="train_step")
    step()
    before = played.get("copied bytes")
    for _ in range(10):
        step()
    assert played.get("copied bytes") - before == 10 * x.nbytes  # the batch alone


def test_a_run_is_one_launch_of_a_graph(gpu_artifacts, played):
    session, x = load(gpu_artifacts("chain").path), sample(BIG)
    np.testing.assert_array_equal(session(x), x / 8)
    names = ("graph launches", "launches", "copies", "calls", "nodes changed")
    before = [played.get(n) for n in names]
    for _ in range(20):
        session(x)
    graphs, kernels, copies, calls, changed = (played.get(n) - b for n, b in zip(names, before, strict=True))
    assert (graphs, kernels, copies, changed) == (20, 60, 40, 0)
    assert calls <= 20 * 7  # push, two questions about arrays, launch, wait, pop
    assert played.get("graphs") == played.get("execs") == 1


def test_page_locked_arrays_are_not_copied_on_the_host(gpu_artifacts, either):
    session, x = load(gpu_artifacts("chain").path), sample(BIG)
    held = session.host_arrays()
    outputs = session.bind(held)
    for seed in range(3):
        held["x"][...] = sample(BIG, seed=seed)
        session.invoke()
        np.testing.assert_array_equal(outputs[0], held["x"] / 8)
    assert either.get("nodes changed") >= 0
    first, second = session.binding({"x": x}), session.binding({"x": 2 * x})
    first(), second()
    np.testing.assert_array_equal(first.outputs[0], x / 8)
    np.testing.assert_array_equal(second.outputs[0], x / 4)


def test_page_locked_arrays_outlive_their_session(gpu_artifacts, played):
    before = played.live()
    session = load(gpu_artifacts("chain").path)
    array = session.host_arrays()["x"]
    view = array[10:20]
    session.close()
    del session, array
    view[...] = 7
    assert played.live()["pinned"] == before["pinned"] + 1
    assert view.tolist() == [7] * 10
    del view
    assert played.live() == before


def test_contexts_share_weights_and_code(gpu_artifacts, played):
    artifact = gpu_artifacts("scaled")
    before = played.live()
    sessions = [load(artifact.path) for _ in range(8)]
    facts = artifact.gpu
    now = played.live()
    assert now["modules"] - before["modules"] == 1
    assert now["contexts"] - before["contexts"] == 1
    assert now["bytes"] - before["bytes"] == facts["shared_bytes"] + 8 * facts["device_bytes"] == 256 + 8 * 4096
    sessions.pop()
    assert played.live()["modules"] - before["modules"] == 1
    sessions.clear()
    assert played.live() == before


def test_eight_contexts_on_eight_threads(gpu_artifacts, played):
    path, wrong = gpu_artifacts("trained").path, []

    def work(number: int) -> None:
        session, x = load(path), sample(64, seed=number)
        w = WEIGHTS
        for i in range(40):
            session.run(None, {"x": x}, entry="train_step")
            w = w + x
            y, seen = session(x)
            if not np.array_equal(y, x * (2 * w)) or seen[0] != 11 + i:
                wrong.append((number, i))

    before = played.live()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert played.live() == before


def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_runs_take_no_more_memory(gpu_artifacts, played):
    session = load(gpu_artifacts("trained").path)
    x = sample(64)
    call = session.binding({"x": x})
    for _ in range(200):
        call()
    objects, memory = played.live(), resident()
    for i in range(10_000):
        call()
        if i % 1000 == 0:
            session.run(None, {"x": x}, entry="train_step")
            session.profile({"x": x}, runs=1)
    now = played.live()
    assert {k: v for k, v in now.items() if k not in ("events", "graphs", "execs")} == {
        k: v for k, v in objects.items() if k not in ("events", "graphs", "execs")
    }
    assert now["execs"] - objects["execs"] <= 1 and now["events"] - objects["events"] <= 3  # what is made once
    assert resident() - memory < 2 << 20


def test_many_arguments_large_grids_and_nothing_at_all(gpu_artifacts, either):
    terms = np.arange(88 * 64, dtype=np.float32).reshape(88, 64)
    x = sample(64)
    expected = x
    for row in terms:
        expected = expected + row
    np.testing.assert_array_equal(load(gpu_artifacts("wide").path)(x), expected)
    assert chain().entries[0].steps[0].phases[0].tasks > render.MAX_TASKS
    session, x = load(gpu_artifacts("odd").path), sample(BIG)
    empty, y = session(np.zeros((0, 4), np.float32), x)
    assert empty.shape == (0, 4)
    np.testing.assert_array_equal(y, x)
    assert session.run(None, {}, entry="nothing") == []


def test_profile_measures_each_step(gpu_artifacts, either):
    session = load(gpu_artifacts("chain").path)
    x = sample(BIG)
    launches = either.get("graph launches")
    rows = session.profile({"x": x}, runs=3)
    assert [r["name"] for r in rows] == ["half"] * 3
    assert all(r["seconds"] >= 0 for r in rows) and sum(r["seconds"] for r in rows) > 0
    assert either.get("graph launches") - launches == 1  # the run before
    np.testing.assert_array_equal(session(x), x / 8)


def test_the_artifact_says_what_it_needs(gpu_artifacts, played):
    from gpu_programs import PROGRAMS_BY_NAME

    for name, make in PROGRAMS_BY_NAME.items():
        artifact, program = read_artifact(gpu_artifacts(name).path), make()
        session = load(artifact.path)
        assert artifact.context_bytes() == artifact.context_bytes(4) == device.context_bytes(program)
        assert session._library.call("context_bytes", 1) == artifact.context_bytes()
        assert artifact.gpu["device_bytes"] == device.device_bytes(program)
        assert artifact.gpu["emulated"] and artifact.gpu["architectures"] == [80]


def test_a_context_does_not_come_along_through_fork(gpu_artifacts, played):
    session, x = load(gpu_artifacts("scaled").path), sample(1, 64)
    session(x)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            session(x)
        except NervureError as error:
            code = 0 if "fork" in error.what else 2
            session.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(session(x), x * WEIGHTS)


def test_a_busy_session_and_a_closed_one_say_so(gpu_artifacts, played):
    session, x = load(gpu_artifacts("scaled").path), sample(1, 64)
    session.close()
    with pytest.raises(NervureError, match="closed"):
        session(x)


def test_slots_and_a_region_of_the_callers(gpu_artifacts, played):
    """As from C: the arena in memory of the caller's, and arrays that stay in their slots."""
    artifact, x = gpu_artifacts("scaled"), sample(1, 64)
    session = load(artifact.path)
    before = played.live()
    arena = session.device_array(np.zeros(1024, np.float32))
    code = ctypes.CDLL(str(artifact.path))
    pointer = ctypes.c_void_p
    for name in ("device_input", "device_output", "input", "output"):
        function = getattr(code, f"scaled_{name}")
        function.restype, function.argtypes = pointer, (pointer, ctypes.c_int, ctypes.c_int)
    memory, context = empty(artifact.context_bytes()), pointer()
    regions = (pointer * 1)(arena.address + 4)
    arguments = (pointer(memory.ctypes.data), ctypes.c_size_t(memory.nbytes), regions, 1, ctypes.byref(context))
    assert b"256 on the device" in session._library.call("status_text", code.scaled_create_in(*arguments))
    regions[0] = arena.address
    assert code.scaled_create_in(*arguments) == 0
    assert played.live()["blocks"] == before["blocks"] + 1  # the arena of the caller alone
    assert code.scaled_device_input(context, 0, 0) == arena.address
    assert code.scaled_device_output(context, 0, 0) == arena.address + 2048
    ctypes.memmove(code.scaled_input(context, 0, 0), x.ctypes.data, x.nbytes)
    assert code.scaled_run(context, 0, None, None) == 0
    y = np.frombuffer((ctypes.c_float * 64).from_address(code.scaled_output(context, 0, 0)), np.float32)
    np.testing.assert_array_equal(y, (x * WEIGHTS)[0])
    arena.fill(np.concatenate([2 * x[0], np.zeros(960, np.float32)]))
    assert code.scaled_run_on(context, 0, None, None, pointer(1)) == 0 and code.scaled_wait(context) == 0
    np.testing.assert_array_equal(arena.numpy()[512:576], (2 * x * WEIGHTS)[0])
    assert code.scaled_input(context, 0, 1) is None and code.scaled_device_output(context, 7, 0) is None
    assert code.scaled_device_bytes() == 4096 and code.scaled_device(context) == 0
    assert code.scaled_destroy(context) == 0
    assert code.scaled_run(context, 0, None, None) != 0  # it is over
    assert arena.numpy().shape == (1024,)


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_stands_alone(gpu_artifacts, tmp_path, language):
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    header = gpu_artifacts("trained").path.with_suffix(".h")
    flags = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-x", language)
    subprocess.run([gcc, *flags, "-"], input=f'#include "{header}"\n', text=True, check=True)
    text = header.read_text()
    assert "$" not in text and "@" not in text
    assert "#define TRAINED_DEVICE_BYTES 1104u" in text
