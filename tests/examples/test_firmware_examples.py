"""Example firmware in the emulator: what it recognizes, what it counts, what it learns and what survives."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import nervure as nv
import numpy as np
import pytest
from nervure import layers
from nervure.errors import MissingTool
from nervure.targets import emulator, firmware, get

FOLDER = Path(__file__).parents[2] / "examples" / "firmware"
M4 = get("cortex-m4")
try:
    emulator.command(M4)
    pytestmark = pytest.mark.emulator
except MissingTool as error:
    pytestmark = pytest.mark.skip(reason=str(error))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"firmware_{name}", FOLDER / name / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand_in(monkeypatch):
    """Without the models and data of ../shared."""
    monkeypatch.setenv("NERVURE_MODELS", "/nowhere")
    monkeypatch.setenv("NERVURE_DATA", "/nowhere")


def counted(said: str) -> list[int]:
    return [int(n) for n in re.findall(r"(\d+) instructions", said)]


def check_keywords(folder: Path, target: str, ticks: int) -> None:
    """The classes are those of the artifact on this machine; the instructions are those that the plugin counts."""
    example = load("kws")
    words = sys.modules["spoken_words"]
    _, program = example.build(folder, target)
    done = firmware.simulate(program, get(target), count=True, icount=True)
    assert done.status == 0, done.said
    printed, total = counted(done.said), sum(done.instructions.values())
    assert len(printed) == 12
    assert abs(sum(printed) - total) <= len(printed) * (ticks + 40)  # a tick, and the calls of the two markers
    path = words.spotter(folder)
    here = nv.compile(path, dims=words.dims(path))
    x, y = words.words()
    chosen = np.random.default_rng(0).permutation(len(y))[:12]
    given = x[chosen] if here.get_inputs()[0].dtype == "int8" else words.cepstra(x[chosen])
    wanted = [words.NAMES[int(here(one[None]).argmax())] for one in given]
    assert re.findall(r"^(\w+)[, ].*instructions$", done.said, re.MULTILINE) == wanted
    right = sum(words.NAMES[label] == word for label, word in zip(y[chosen], wanted, strict=True))
    assert f"{right} of 12 right" in done.said and right >= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "ticks"), [("cortex-m4", 40), ("cortex-m7", 40), ("cortex-m33", 50), ("cortex-m55", 32)]
)
def test_keywords(tmp_path, target, ticks):
    check_keywords(tmp_path, target, ticks)


@pytest.mark.slow
def test_keywords_without_the_models(tmp_path, stand_in):
    check_keywords(tmp_path, "cortex-m4", 40)


def facts(said: str) -> dict[str, int]:
    return {name: int(n) for name, n in re.findall(r"(resets|written|epochs|RAM|stack) (\d+)", said)}


def losses(said: str, what: str) -> list[int]:
    return [int(n) for n in re.findall(rf"{what}: loss (\d+)/1000", said)]


def run(example: ModuleType, folder: Path, **given: int) -> tuple[str, bytes]:
    """What the program said, and the parameters that it ended with."""
    _, program = example.build(folder, **given)
    done = firmware.simulate(program, M4, icount=True, timeout=300)
    assert done.status == 0, done.said
    return done.said, (folder / "parameters").read_bytes()


def check_resets(example: ModuleType, folder: Path, resets: int, seed: int, **given: int) -> dict[str, int]:
    """Parameters were valid after each reset (the program checks it), and the end is that of a run without any."""
    said, after = run(example, folder, epochs=1, resets=resets, seed=seed, **given)
    found = facts(said)
    assert found["resets"] == resets and found["epochs"] > 1
    straight, without = run(example, folder, epochs=found["epochs"], **given)
    assert after == without
    assert losses(said, "now, words to train with") == losses(straight, "now, words to train with")
    return found


@pytest.mark.slow
def test_the_head_learns_and_survives_100_resets(tmp_path):
    example = load("personalise")
    said, blob = run(example, tmp_path)
    for what in ("words to train with", "other words"):
        before, after = losses(said, f"(?:before|now), {what}")
        assert after < 0.9 * before
    found = facts(said)
    assert found["RAM"] + found["stack"] <= 64 << 10  # of 256 KB
    check_device_blob(example, tmp_path, blob)
    found = check_resets(example, tmp_path, 100, 1)
    assert found["written"] >= 10  # resets that fell into an erase or a program


def check_device_blob(example: ModuleType, folder: Path, blob: bytes) -> None:
    """What was learned on the board goes on here: the same bytes, the same network."""
    _, weight, _ = example.cut(sys.modules["spoken_words"].spotter(folder), folder)
    net = nv.Sequential([layers.Dense(12, activation="softmax", input_dim=len(weight))], name="head")
    optimizer = nv.optimizers.SGD(0.01, momentum=0.9)
    training = nv.Training("sparse_categorical_crossentropy", optimizer, ["accuracy"], batch=10, weighted=True)
    session = nv.compile(net, training=training).session
    session.import_state(blob)
    assert session.export_state() == blob
    assert not np.array_equal(session.params()["dense.weight"], weight)


@pytest.mark.slow
def test_other_moments_without_the_models(tmp_path, stand_in):
    check_resets(load("personalise"), tmp_path, 30, 7)


def test_five_resets(tmp_path, monkeypatch):
    """The same with a body that is made in a moment."""
    example = load("personalise")
    words = sys.modules["spoken_words"]
    net = nv.Sequential(
        [
            layers.Permute((3, 1, 2), input_shape=(49, 10, 1)),
            layers.GlobalAvgPool2d(),
            layers.Dense(16, activation="relu"),
            layers.Dense(12, activation="softmax"),
        ],
        name="tiny",
    )
    nv.save_onnx(net, tmp_path / "tiny.onnx")
    monkeypatch.setattr(words, "spotter", lambda folder: tmp_path / "tiny.onnx")
    x = np.random.default_rng(0).integers(-128, 127, (40, 49, 10, 1), np.int8)
    monkeypatch.setattr(words, "words", lambda: (x, np.arange(40) % 12))
    found = check_resets(example, tmp_path, 5, 3, count=40)
    assert found["RAM"] < 32 << 10
