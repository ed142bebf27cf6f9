"""The C side while it trains: under sanitizers, from several threads, with denormals; natively and on ARM."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from nervure.compiler import render
from nervure.compiler.program import Entry, Phase, Port, Program, Ref, Region, Step, Stored
from nervure.compiler.types import TensorType
from nervure.errors import MissingTool, NervureError
from nervure.runtime.session import load
from nervure.targets import emulator, get, toolchain
from small_training import CLASSES, FEATURES

HERE = Path(__file__).parent


def port(name: str, dtype: str, shape: tuple[int, ...], offset: int) -> Port:
    return Port(name, TensorType(dtype, shape), Ref("region", offset))


def step(kernel: str, *args: Ref, tasks: int = 1, ranged: bool = False) -> Step:
    return Step(kernel, kernel, (Phase(kernel, args, tasks, ranged),))


SCALAR = port("x", "float32", (1,), 0)
WIDE = port("x", "float32", (32,), 0)
PARAM, DERIVED, MOMENTUM = Ref("param"), Ref("derived"), Ref("state")
REFRESHES, ARRIVED = Ref("state", 256), Ref("state", 320)


def halving(name: str, flush: bool) -> Entry:
    both = step("halve_together", ARRIVED, Ref("input"), Ref("output"), tasks=2, ranged=True)
    halved = port("y", "float32", (32,), 256)
    return Entry(name, (WIDE,), (halved,), (both,), region_bytes=(384,), reads_derived=False, flush_denormals=flush)


def learner() -> Program:
    """``train_step`` moves every weight by one, ``infer`` reads a packed copy, ``refresh`` makes it and counts."""
    infer = Entry(
        "infer",
        (SCALAR,),
        (port("y", "float32", (64,), 64),),
        (step("score", Ref("input"), DERIVED, Ref("output"), tasks=4, ranged=True),),
        region_bytes=(320,),
    )
    train = Entry(
        "train_step",
        (SCALAR,),
        (),
        (step("learn", Ref("input"), MOMENTUM, PARAM, tasks=4, ranged=True),),
        region_bytes=(64,),
        updates_params=True,
        reads_derived=False,
        flush_denormals=True,
    )
    steps = (step("pack", PARAM, DERIVED), step("count_one", REFRESHES))
    refresh = Entry("refresh", (), (), steps, reads_derived=False)
    counts = [Stored(n, TensorType("int32", (1,)), at, np.zeros(1, np.int32)) for n, at in _COUNTS.items()]
    zeros = np.zeros(64, np.float32)
    return Program(
        "learner",
        (infer, train, refresh, halving("flushing", True), halving("keeping", False)),
        params=(Stored("w", TensorType("float32", (64,)), 0, zeros),),
        states=(Stored("momentum", TensorType("float32", (64,)), 0, zeros), *counts),
        regions=(Region("arena", 384),),
        derived_bytes=256,
    )


_COUNTS = {"refreshes": 256, "arrived": 320}
SOURCES = ["learner.c", "model.c", "images.S", "learner_kernels.c"]
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-frounding-math", "-I."]


def write_sources(folder: Path, target: str) -> list[str]:
    for name, data in render.sources(learner(), get(target)).items():
        (folder / name).write_bytes(data)
    for name in ("learner.c", "learner_kernels.c"):
        shutil.copy(HERE / name, folder)
    for name in (*toolchain.RUNTIME_FILES, "nervure.h"):
        shutil.copy(toolchain.RUNTIME / name, folder)
    return [*SOURCES, *toolchain.RUNTIME_FILES]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_training_is_clean_under_sanitizers(tmp_path, sanitizer):
    gcc, flag = shutil.which("gcc"), f"-fsanitize={sanitizer}"
    if gcc is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "probe.c").write_text("int main(void) { return 0; }")
    probe = subprocess.run([gcc, flag, "-o", "probe", "probe.c"], cwd=tmp_path, capture_output=True)
    if probe.returncode or subprocess.run([str(tmp_path / "probe")], capture_output=True).returncode:
        pytest.skip(f"gcc here has no working {flag}")
    files = write_sources(tmp_path, "host")
    flags = [*FLAGS, "-fno-sanitize-recover=all", flag]
    subprocess.run([gcc, *flags, *files, "-o", "learner", "-lpthread", "-lm"], cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "learner")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["host", "rpi4", "armv7"])
def test_training_on_each_machine(tmp_path, target):
    machine = get(target)
    try:
        before = emulator.command(machine)
    except MissingTool as error:
        pytest.skip(str(error))
    files = write_sources(tmp_path, target)
    program = toolchain.link_program(
        tmp_path, files, machine, out="learner", flags=(*FLAGS, "-Wno-unused", "-lpthread", "-lm")
    )
    done = subprocess.run([*before, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


def test_a_decaying_momentum_ends_at_zero_and_not_among_denormals(training_library):
    """They would make each step many times slower: x86 computes with them in microcode."""
    for threads in (1, 2):
        session = load(training_library(), threads)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((8, FEATURES), np.float32)
        feed = {"x": x, "y": np.arange(8, dtype=np.int32) % CLASSES, "learning_rate": np.float32(0.1)}
        each = np.full(8, 1 / 8, np.float32)
        session.run(None, {**feed, "sample_weight": each}, entry="train_step")
        name = "optimizer/dense.weight/momentum"
        assert np.abs(session.states()[name]).min() > 0
        smallest = np.finfo(np.float32).tiny
        for _ in range(1000):  # without samples there is no gradient: momentum falls by a tenth
            session.run(None, {**feed, "sample_weight": 0 * each}, entry="train_step")
            momentum = np.abs(session.states()[name])
            assert ((momentum == 0) | (momentum >= smallest)).all()
        assert (momentum == 0).all()


def batch_feed() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((8, FEATURES), np.float32)
    each = np.full(8, 1 / 8, np.float32)
    return {
        "x": x,
        "y": np.arange(8, dtype=np.int32) % CLASSES,
        "sample_weight": each,
        "learning_rate": np.float32(0.1),
    }


def test_a_step_and_inference_from_two_python_threads(training_library):
    """One session: each call runs whole or is refused; the steps that were not refused are all there."""
    session, feed, done, refused, wrong = load(training_library()), batch_feed(), [], [], []

    def work(entry: str) -> None:
        given = {p.name: feed[p.name] for p in session.get_inputs(entry)}
        for _ in range(300):
            try:
                outputs = session.run(None, given, entry=entry)
                done.append(entry)
                if not all(np.isfinite(o).all() for o in outputs):
                    wrong.append(entry)
            except NervureError as error:
                refused.append("is in use by another thread" in str(error))

    threads = [threading.Thread(target=work, args=(e,)) for e in ("train_step", "infer", "train_step")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and all(refused) and len(done) + len(refused) == 900
    alone = load(training_library())
    for _ in range(done.count("train_step")):
        alone.run(None, feed, entry="train_step")
    assert alone.export_state() == session.export_state()


def test_two_sessions_train_at_once_as_each_alone(training_library):
    sessions, feed = [load(training_library(), threads) for threads in (1, 2, 2)], batch_feed()

    def work(session) -> None:
        for _ in range(200):
            session.run(None, feed, entry="train_step")

    threads = [threading.Thread(target=work, args=(s,)) for s in sessions[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(sessions[2])
    assert len({s.export_state() for s in sessions}) == 1
