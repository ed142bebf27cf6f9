"""Sessions over hand-made Programs: entries, states, variants, regions, counts, workers, threads, errors."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from nervure.compiler.library import build_library, run_elsewhere
from nervure.errors import NervureError
from nervure.runtime import load, read_artifact
from nervure.targets import get, toolchain

WEIGHTS = np.linspace(-1, 2, 64, dtype=np.float32)


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_batch_sizes_share_constants_and_inputs_choose(artifacts, reference):
    artifact = artifacts("batches")
    session = load(artifact.path)
    assert artifact.weights_bytes == 256
    assert [e.name for e in artifact.entries] == ["infer_batch1", "infer_batch8"]
    for batch in (1, 8, 1):
        x = sample(batch, 64, seed=batch)
        np.testing.assert_allclose(session(x), reference(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(NervureError, match=r"no compiled variant .*\n.*\n.*got x \[3, 64\]; compiled for .*\[1, 64\]"):
        session(sample(3, 64))


def test_any_number_of_workers_gives_the_same_bits(artifacts):
    x = sample(8, 64)
    results = [load(artifacts("batches").path, threads)(x).tobytes() for threads in (0, 1, 2, 5)]
    assert len(set(results)) == 1


def test_entries_share_params_and_refresh_follows_updates(artifacts):
    session = load(artifacts("trainable").path, threads=2)
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


def test_state_lives_from_call_to_call_until_reset(artifacts):
    session = load(artifacts("trainable").path)
    x = sample(64)
    assert session(x)[1].tolist() == [11, 2, 3, 4]
    assert session(x)[1].tolist() == [12, 4, 6, 8]
    assert load(artifacts("trainable").path)(x)[1].tolist() == [11, 2, 3, 4]
    assert session.clone()(x)[1].tolist() == [11, 2, 3, 4]
    session.reset()
    assert session(x)[1].tolist() == [11, 2, 3, 4]
    session.set_states({"seen": np.full(4, 100, np.int32)})
    assert session(x)[1].tolist() == [101, 102, 103, 104]
    assert session.states()["seen"].tolist() == [101, 102, 103, 104]


def test_two_regions(artifacts, reference):
    artifact = artifacts("two_regions")
    x = sample(64)
    for threads in (1, 2):
        np.testing.assert_allclose(load(artifact.path, threads)(x), reference(x), rtol=1e-6, atol=1e-6)
    assert artifact.entries[0].arena_bytes(threads=2) == 320 + 448 + 64
    assert artifact.prefix == "two_regions"


def test_output_with_a_count_is_trimmed(artifacts):
    session = load(artifacts("counted").path)
    x = sample(64)
    places, n = session(x)
    np.testing.assert_array_equal(places, np.flatnonzero(x > 0))
    assert n.shape == () and n == places.size
    assert session.bind([x])[0].shape == (64,)


def test_bind_and_invoke_work_in_place(artifacts, reference):
    session = load(artifacts("batches").path)
    x, y = sample(8, 64), np.zeros(8, np.float32)
    assert session.bind({"x": x}, {"y": y})[0] is y
    for seed in range(3):
        x[...] = sample(8, 64, seed=seed)
        session.invoke()
        np.testing.assert_allclose(y, reference(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(NervureError, match="cannot be bound"):
        session.bind({"x": sample(64, 8).T})
    with pytest.raises(NervureError, match="bind"):
        load(artifacts("batches").path).invoke()


def test_contiguous_inputs_are_not_copied_others_are(artifacts, reference):
    session = load(artifacts("batches").path)
    x = np.asfortranarray(sample(8, 64))
    np.testing.assert_allclose(session(x), reference(x), rtol=1e-6, atol=1e-6)
    x = sample(8, 64)
    x.flags.writeable = False
    np.testing.assert_allclose(session(x), reference(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'x' is not given"),
        ({"z": 0}, "no input 'z'"),
        ({"x": np.zeros(64)}, r"expected float32\[64\], got float64\[64\]"),
        ({"x": np.zeros((2, 32), np.float32)}, r"expected float32\[64\], got float32\[2, 32\]"),
        ({"x": np.zeros(64, ">f4")}, "expected float32"),
        ({"x": "text"}, "got <U4"),
        ({"x": [1.0, [2.0]]}, "'x'"),
    ],
)
def test_wrong_inputs_are_explained(artifacts, feeds, message):
    with pytest.raises(NervureError, match=message):
        load(artifacts("counted").path).run(None, feeds)


def test_wrong_names_are_explained(artifacts):
    session = load(artifacts("trainable").path)
    x = sample(64)
    with pytest.raises(NervureError, match="no output 'q'"):
        session.run(["q"], {"x": x})
    with pytest.raises(NervureError, match="no entry point 'fit'"):
        session.run(None, {"x": x}, entry="fit")
    with pytest.raises(NervureError, match="no param 'q'"):
        session.set_params({"q": x})
    with pytest.raises(NervureError, match="2 inputs given"):
        session(x, x)
    assert [a.shape for a in session.run(["seen", "y"], {"x": x})] == [(4,), (64,)]
    assert session.get_inputs()[0].type == "tensor(float)"


def test_eight_sessions_from_eight_threads(artifacts, reference):
    first = load(artifacts("batches").path, threads=2)
    wrong: list[int] = []

    def work(session, seed: int) -> None:
        x = sample(8, 64, seed=seed)
        for _ in range(200):
            if not np.allclose(session(x), reference(x), rtol=1e-6, atol=1e-6):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(first.clone(), i)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_one_session_from_many_threads_is_refused_not_raced(artifacts, reference):
    session = load(artifacts("batches").path, threads=5)
    answers: list[str] = []

    def work(seed: int) -> None:
        x = sample(8, 64, seed=seed)
        for _ in range(300):
            try:
                answers.append("right" if np.allclose(session(x), reference(x), rtol=1e-6, atol=1e-6) else "wrong")
            except NervureError as error:
                answers.append("refused" if "clone()" in str(error) else str(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert set(answers) == {"right", "refused"}


def test_profile_times_every_step(artifacts):
    session = load(artifacts("batches").path, threads=2)
    rows = session.profile({"x": sample(8, 64)}, runs=3)
    assert [r["name"] for r in rows] == ["multiply", "row_sums", "y"]
    assert all(0 < r["seconds"] < 1 for r in rows)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets the x86 control register")
def test_flush_to_zero_of_the_caller_does_not_reach_the_model(tmp_path, artifacts):
    """Denormals are kept whatever mode the calling thread is in, and the mode comes back."""
    (tmp_path / "mode.c").write_text(
        "#include <xmmintrin.h>\nunsigned mode(unsigned m) { unsigned was = _mm_getcsr(); _mm_setcsr(m); return was; }"
    )
    flags = ("-shared", "-fPIC")
    mode = ctypes.CDLL(str(toolchain.link_program(tmp_path, ["mode.c"], get("host"), out="mode.so", flags=flags))).mode
    session = load(artifacts("trainable").path)
    x = np.full(64, 1e-40, np.float32)
    y = session.bind([x])[0]
    expected = x * (2 * WEIGHTS)
    before = mode(0x9FC0)  # flush to zero, denormals are zero
    try:
        session.invoke()
    finally:
        during = mode(before)
    assert during & 0x8040 == 0x8040
    assert np.array_equal(y, expected) and np.count_nonzero(expected) > 60


def test_a_fork_is_refused_not_hung(artifacts):
    session = load(artifacts("batches").path, threads=2)
    x = sample(8, 64)
    session(x)
    pid = os.fork()
    if pid == 0:
        try:
            session(x)
            os._exit(1)
        except NervureError as error:
            os._exit(0 if "fork" in str(error) else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    session(x)


def settled_threads(expected: int) -> int:
    """The process's threads; one that has been joined is listed for a moment longer."""
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) == expected:
            break
        time.sleep(0.01)
    return len(os.listdir("/proc/self/task"))


def test_sessions_end_with_their_threads(artifacts):
    gc.collect()  # sessions of earlier tests
    time.sleep(0.1)
    before = len(os.listdir("/proc/self/task"))
    sessions = [load(artifacts("batches").path, threads=5) for _ in range(4)]
    assert settled_threads(before + 16) == before + 16
    del sessions
    assert settled_threads(before) == before
    session = load(artifacts("batches").path, threads=2)
    session.close()
    with pytest.raises(NervureError, match="closed"):
        session(sample(8, 64))


def test_another_model_at_the_same_path(tmp_path, programs, kernel_object, artifacts):
    """The dynamic loader must not hand out the library that lay there before."""
    machine = get("host")
    out = tmp_path / "model.so"
    build_library(programs["counted"], [kernel_object(machine)], machine, out)
    old = load(out)
    build_library(programs["two_regions"], [kernel_object(machine)], machine, out)
    assert load(out)(sample(64)).shape == (1,)
    assert old(sample(64))[1].shape == ()


def test_only_numpy_is_needed(artifacts):
    code = (
        "import sys, numpy; sys.path[:0] = []; import nervure.runtime as r; before = set(sys.modules);"
        f"s = r.load({str(artifacts('counted').path)!r}); s(numpy.ones(64, 'f4'));"
        "bad = {m.split('.')[0] for m in sys.modules} & {'tvm', 'onnx', 'networkx', 'jinja2', 'rich', 'ziglang'};"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_elsewhere_gives_the_same(artifacts, reference):
    artifact = artifacts("batches")
    x = sample(8, 64)
    (y,) = run_elsewhere(artifact, get("host"), {"x": x}, entry="infer_batch8", threads=2)
    np.testing.assert_array_equal(y, load(artifact.path)(x))


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["aarch64", "rpi3", "rpi5", "armv7"])
def test_arm_libraries_under_the_emulator(artifacts, reference, target):
    from nervure.errors import MissingTool
    from nervure.targets import emulator

    try:
        emulator.command(get(target))
    except MissingTool as error:
        pytest.skip(str(error))
    artifact = artifacts("batches", target)
    x = sample(8, 64)
    for threads in (1, 3):
        (y,) = run_elsewhere(artifact, get(target), {"x": x}, entry="infer_batch8", threads=threads)
        np.testing.assert_allclose(y, reference(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(NervureError, match=r"was compiled for (aarch64|arm) \("):
        load(artifact.path)
    assert read_artifact(artifact.path).block["machine"]["name"] == target
