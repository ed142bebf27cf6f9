"""Artifacts for a GPU where something fails: one clear error, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_programs import BIG, WEIGHTS
from nervure.errors import NervureError
from nervure.runtime import load, read_artifact
from nervure.runtime.library import open_library
from nervure.runtime.session import Session
from nervure.targets import emulation, get, toolchain

MOST_CALLS = 400


def opened(artifact) -> Session:
    """A session without the questions that ``load`` asks the driver first."""
    return Session(open_library(artifact))


@pytest.mark.parametrize("name", ["scaled", "trained", "chain"])
def test_a_creation_that_fails_leaves_nothing_behind(gpu_artifacts, played, name):
    artifact = gpu_artifacts(name)
    before = played.live()
    for call in range(1, MOST_CALLS):
        played.set("fault", call)
        try:
            session = opened(artifact)
        except NervureError as error:
            assert "CUDA error 1)" in error.what, error.what
            assert played.live() == before, call
            continue
        break
    assert call > 15  # every call of a creation failed once
    played.set("fault", 0)
    session.close()
    assert played.live() == before


def use(session: Session, x: np.ndarray) -> None:
    """Everything that a session does, once."""
    session.run(None, {"x": x}, entry="train_step")
    session.run(None, {"x": x})
    session.set_params({"w": session.params()["w"]})
    session.set_states(session.states())
    session.run_device(None, {"x": x})
    session.reset()
    session.restore()
    session.import_state(session.export_state())
    session.profile({"x": x}, runs=1)


def test_a_call_that_fails_harms_neither_the_session_nor_memory(gpu_artifacts, played):
    artifact, x = gpu_artifacts("trained"), np.ones(64, np.float32)
    before, failed = played.live(), 0
    for call in range(1, MOST_CALLS):
        session = opened(artifact)
        played.set("fault", call)
        try:
            use(session, x)
        except NervureError as error:
            failed += 1
            assert "CUDA error 1)" in error.what, error.what
        over = played.get("fault") > 0
        played.set("fault", 0)
        session.restore(), session.reset()
        assert session.run(None, {"x": x})[1].tolist() == [11, 2, 3, 4], call
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], 2 * WEIGHTS)
        session.close()
        assert played.live() == before, call
        if over:
            break
    assert over and failed > 80


def test_an_end_gives_everything_back_whatever_fails(gpu_artifacts, played):
    artifact, x = gpu_artifacts("trained"), np.ones(64, np.float32)
    before = played.live()
    for call in range(1, MOST_CALLS):
        session = opened(artifact)
        use(session, x)
        played.set("fault", call)
        session.close()
        assert played.live() == before, call
        if played.get("fault") > 0:
            break
    assert 10 < call < MOST_CALLS - 1


def test_an_array_that_cannot_be_made_is_no_array(gpu_artifacts, played):
    session = opened(gpu_artifacts("scaled"))
    before = played.live()
    for call in range(1, 20):
        array = None
        played.set("fault", call)
        with contextlib.suppress(NervureError):
            array = session.device_array(np.ones(64, np.float32))
        assert array is not None or played.live() == before
        if played.get("fault") > 0:
            break
    played.set("fault", 0)
    assert array.numpy().tolist() == [1] * 64
    assert call > 6


def test_out_of_memory_is_said_and_undone(gpu_artifacts, played):
    artifact = gpu_artifacts("chain")
    before = played.live()
    played.set("memory", before["bytes"] + 16 * BIG - 1)
    with pytest.raises(NervureError, match=r"makes room for the model: out of memory \(CUDA error 2\)"):
        opened(artifact)
    assert played.live() == before
    played.set("memory", before["bytes"] + 16 * BIG)
    opened(artifact)


def test_a_launch_that_fails_is_said_in_the_drivers_words(gpu_artifacts, played):
    for deferred in (0, 1):
        played.set("deferred", deferred)
        session = opened(gpu_artifacts("broken"))
        with pytest.raises(NervureError, match=r"unspecified launch failure \(CUDA error 719\)"):
            session(np.ones(64, np.float32))
    played.set("deferred", 0)


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("devices", 0, r"no CUDA-capable device is detected \(CUDA error 100\)"),
        ("version", 11030, r"too old: it is for CUDA 11.3, and this model needs one for CUDA 11.4 or newer"),
        ("capability", 75, r"device 0 \(.*\) is of compute capability 7.5, the model's code is for 8.0"),
    ],
)
def test_what_is_missing_is_named(gpu_artifacts, played, what, value, message):
    before = played.live()
    played.set(what, value)
    with pytest.raises(NervureError, match=message):
        opened(gpu_artifacts("scaled"))
    assert played.live() == before


def test_a_device_that_is_not_there(gpu_artifacts, played):
    played.set("devices", 2)
    assert load(gpu_artifacts("scaled").path, device=1).device == 1
    for device in (2, -1):
        with pytest.raises(NervureError, match=f"no GPU of number {device}: the driver finds 2"):
            load(gpu_artifacts("scaled").path, device=device)


def test_what_is_written_to_an_older_copy_is_refused(gpu_artifacts, played):
    session, x = load(gpu_artifacts("trained").path), np.ones(64, np.float32)
    call, context = session._library.call, session._context
    call("param", context, 0)
    assert call("params_changed", context) == 0
    session.run(None, {"x": x}, entry="train_step")
    session.run(None, {"x": x})
    status = call("params_changed", context)
    assert b"ask for them again" in call("status_text", status)
    call("param", context, 0)
    assert call("params_changed", context) == 0
    np.testing.assert_array_equal(session.params()["w"], WEIGHTS + 1)
    before = session.run(None, {"x": x})[1][0]  # the states are now newer than their copy, the parameters are not
    assert call("params_changed", context) == 0
    assert session.run(None, {"x": x})[1][0] == before + 1


ALONE = """
import sys
from nervure.errors import NervureError
from nervure.runtime import load, read_artifact
from nervure.runtime.library import open_library
from nervure.runtime.session import Session

artifact = read_artifact(sys.argv[1])
library = open_library(artifact)  # loads and links: nothing of CUDA is needed for that
assert library.call("context_bytes", 1) == artifact.context_bytes()
assert library.call("status_text", 0) == b"ok"
for opens in (lambda: load(artifact.path), lambda: Session(library)):
    try:
        opens()
    except NervureError as error:
        print(error.what)
    else:
        raise SystemExit("it runs")
"""


def alone(artifact, driver: Path | None) -> list[str]:
    """What a process says that finds that driver, or none."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver) if driver else ""}
    done = subprocess.run([sys.executable, "-c", ALONE, str(artifact.path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def driver_of(folder: Path, text: str) -> Path:
    """A libcuda.so.1 with these functions only."""
    (folder / "driver.c").write_text(text)
    flags = ("-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    toolchain.link_program(folder, ["driver.c"], get("host"), out="libcuda.so.1", flags=flags)
    return folder


def test_without_a_driver_an_artifact_loads_and_says_what_is_missing(gpu_artifacts, tmp_path):
    (tmp_path / "libcuda.so.1").write_text("no library")  # hides the one of this machine, if any
    first, second = alone(gpu_artifacts("scaled"), tmp_path)
    assert first == "there is no Nvidia driver here"
    assert second.startswith("there is no Nvidia driver on this machine (") and "libcuda.so.1" in second


def test_an_old_driver_without_a_function(gpu_artifacts, tmp_path):
    text = "int cuInit(unsigned f) { return 0; }\nint cuDriverGetVersion(int *v) { *v = 10020; return 0; }\n"
    first, second = alone(gpu_artifacts("scaled"), driver_of(tmp_path, text))
    assert "driver is too old" in first
    assert "too old: it is for CUDA 10.2, lacks cuGetErrorString, and this model needs one for CUDA 11.4" in second


def test_a_driver_that_does_not_start(gpu_artifacts, tmp_path):
    """As where the kernel's module and the library are of different versions: 803."""
    source = Path(emulation.__file__).with_name("driver.cpp").read_text()
    assert "cuInit" in source
    functions = "\n".join(f"int {n}(void) {{ return 803; }}" for n in names() if n != "cuGetErrorString")
    text = (
        'int cuGetErrorString(int c, const char **t) { *t = "driver/library version mismatch"; return 0; }\n'
        + functions
    )
    second = alone(gpu_artifacts("scaled"), driver_of(tmp_path, text))[1]
    assert (
        second == "the Nvidia driver fails when it says its version: driver/library version mismatch (CUDA error 803)"
    )


def names() -> list[str]:
    """The functions that the runtime asks for."""
    text = (toolchain.RUNTIME / "cuda" / "driver.h").read_text()
    return [line.split(",")[1].strip() for line in text.splitlines() if line.startswith("    F(")]


def test_the_artifact_needs_no_cuda_library(gpu_artifacts):
    from nervure.targets import elf

    needed = elf.dynamic(gpu_artifacts("scaled").path.read_bytes()).needed
    assert not [n for n in needed if "cuda" in n or "nv" in n]
    assert read_artifact(gpu_artifacts("scaled").path).gpu is not None
