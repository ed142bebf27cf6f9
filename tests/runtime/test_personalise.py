"""The example that trains on the device: killed at any moment it goes on from whole parameters, on every machine."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure.errors import MissingTool

EXAMPLE = Path(__file__).parents[2] / "examples" / "personalise.py"
SHARED = EXAMPLE.parents[2] / "shared"
GENERATIONS = ("params.0", "params.1")
pytestmark = pytest.mark.slow

Prepare = Callable[[str], tuple[nv.Model, list[str], Path]]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepare]:
    """``prepare(target)`` builds the stand-in's program once; the model, the command and the folder to run it in."""
    spec = importlib.util.spec_from_file_location("personalise", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    made = {}

    def build(target: str):
        if target not in made:
            folder = tmp_path_factory.mktemp(target)
            model, command = example.prepare(folder, target)
            made[target] = model, command, folder
        return made[target]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NERVURE_MODELS", "/nowhere")
        patch.setenv("NERVURE_DATA", "/nowhere")
        yield build


def run(command: list[str], where: Path, saved: Path, epochs: int) -> str:
    done = subprocess.run([*command, str(saved), str(epochs)], cwd=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def whole(model: nv.Model, saved: Path) -> dict[str, int]:
    """The generations in a folder that can be imported, and how many epochs they have seen."""
    found = {}
    for name in GENERATIONS:
        if (saved / name).exists():
            data = (saved / name).read_bytes()
            nv.load(model.path).import_state(data[8:])
            found[name] = int.from_bytes(data[:4], "little")
    return found


def contents(saved: Path) -> list[bytes]:
    return [(saved / name).read_bytes() for name in GENERATIONS]


def figures(text: str, label: str) -> tuple[float, float]:
    loss, accuracy = re.search(rf"{label}: loss ([\d.]+), accuracy ([\d.]+) %", text).groups()
    return float(loss), float(accuracy)


def test_a_second_run_goes_on_where_the_first_ended(prepare, tmp_path):
    model, command, where = prepare("host")
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir(), twice.mkdir()
    text = run(command, where, once, 6)
    first, second = run(command, where, twice, 3), run(command, where, twice, 6)
    assert figures(first, "now") == figures(second, "after 3 epochs")
    assert figures(text, "now") == figures(second, "now")
    assert figures(text, "now")[0] < figures(text, "before")[0]
    assert contents(once) == contents(twice)
    assert whole(model, once) == {"params.0": 6, "params.1": 5}


def test_killed_at_any_moment(prepare, tmp_path):
    model, command, where = prepare("host")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), killed.mkdir()
    started = time.perf_counter()
    epochs = 40
    run(command, where, straight, epochs)
    takes, rng, done, kills = time.perf_counter() - started, random.Random(1), 0, 0
    for _ in range(30):
        child = subprocess.Popen([*command, str(killed), str(epochs)], cwd=where, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, takes / 6))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        found = whole(model, killed)  # each that is there is whole: it was renamed when it was
        assert max(found.values(), default=0) >= done
        done = max(found.values(), default=0)
    assert kills > 5 and done > 0
    run(command, where, killed, epochs)
    assert contents(killed) == contents(straight)


@pytest.mark.parametrize("harm", ["cut", "flipped", "swapped", "empty", "gone"])
def test_the_older_generation_serves_where_the_newer_is_damaged(prepare, tmp_path, harm):
    _, command, where = prepare("host")
    run(command, where, tmp_path, 4)
    good = contents(tmp_path)
    newer = tmp_path / "params.0"
    middle = len(good[0]) // 2
    flipped = good[0][:middle] + bytes([good[0][middle] ^ 1]) + good[0][middle + 1 :]
    changed = {
        "cut": good[0][:middle],
        "flipped": flipped,
        "swapped": good[0][:8] + bytes(len(good[0]) - 8),
        "empty": b"",
    }
    newer.unlink() if harm == "gone" else newer.write_bytes(changed[harm])
    assert "after 3 epochs" in run(command, where, tmp_path, 4)
    assert contents(tmp_path) == good
    for name in GENERATIONS:
        (tmp_path / name).write_bytes(b"nothing of use")
    assert "before:" in run(command, where, tmp_path, 4)
    assert contents(tmp_path) == good


def test_where_nothing_can_be_saved(prepare, tmp_path):
    _, command, where = prepare("host")
    done = subprocess.run([*command, str(tmp_path / "nowhere"), "1"], cwd=where, capture_output=True, text=True)
    assert done.returncode == 1 and "nowhere/params.1: No such file" in done.stderr
    run(command, where, tmp_path, 1)
    before = (tmp_path / "params.1").read_bytes()
    limited = f"ulimit -f 1; exec {' '.join(command)} {tmp_path} 2"  # a full disk: files end after 1 KB
    done = subprocess.run(["bash", "-c", limited], cwd=where, capture_output=True, text=True)
    assert done.returncode != 0
    assert (tmp_path / "params.1").read_bytes() == before and not (tmp_path / "params.0").exists()


def test_python_goes_on_with_what_the_device_has_learned(prepare, tmp_path):
    """The accuracy that the program printed, from the blob that it saved."""
    model, command, where = prepare("host")
    printed = figures(run(command, where, tmp_path, 3), "now")
    session = nv.load(model.path)
    session.import_state((tmp_path / "params.1").read_bytes()[8:])
    rows = np.fromfile(where / "test.bin", [("x", np.float32, (490,)), ("y", np.int32)])
    found = [session.run(None, {"x": x.reshape(1, 49, 10, 1)})[0].argmax() for x in rows["x"]]
    assert abs(100 * np.mean(found == rows["y"]) - printed[1]) < 0.06
    blob = session.export_state()
    assert blob == (tmp_path / "params.1").read_bytes()[8:]


@pytest.mark.emulator
def test_the_same_parameters_on_arm(prepare, tmp_path):
    """Within 1e-5 of the x86 program after two epochs; and a device goes on from what another one saved."""
    try:
        _, command, where = prepare("rpi4")
    except MissingTool as error:
        pytest.skip(str(error))
    _, native, home = prepare("host")
    arm, here = tmp_path / "arm", tmp_path / "here"
    arm.mkdir(), here.mkdir()
    a, b = run(command, where, arm, 2), run(native, home, here, 2)
    assert abs(figures(a, "now")[0] - figures(b, "now")[0]) < 1e-3
    for x, y in itertools.zip_longest(contents(arm), contents(here)):
        assert x[32:72] == y[32:72]  # of the same model
        np.testing.assert_allclose(np.frombuffer(x[72:], np.float32), np.frombuffer(y[72:], np.float32), atol=1e-5)
    for name in GENERATIONS:
        os.replace(arm / name, here / name)
    assert figures(a, "now") == figures(run(native, home, here, 2), "after 2 epochs")


@pytest.mark.skipif(not (SHARED / "models" / "tiny_kws01.onnx").exists(), reason="the model is not here")
def test_the_real_spotter_learns_a_microphone(tmp_path):
    text = subprocess.run(
        [sys.executable, str(EXAMPLE), "--folder", str(tmp_path), "--epochs", "8"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert figures(text, "before")[1] < 70
    assert figures(text.rsplit("$", 1)[1], "now")[1] > 82
