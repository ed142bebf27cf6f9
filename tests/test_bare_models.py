"""Whole models on Cortex-M in QEMU: int8 bit-equal to this machine's artifact, float against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import bare_figures
import models
import nervure as nv
import numpy as np
import pytest
from bare_figures import NAMES, TARGETS, compile_for, free_dims, random_inputs, reference_model
from nervure import targets
from nervure.errors import MissingTool
from nervure.frontends import verify
from nervure.runtime.artifact import Artifact
from nervure.runtime.session import load
from nervure.targets import boards, emulator

pytestmark = pytest.mark.emulator

INT8 = ("coral_mobilenet_v1_0.25_128_quant", "tvqat_mobilenet_v2_nchw_quant")
PROGRAM_BYTES = 128 << 10  # of code, startup and vectors, beside the constants


@pytest.fixture(autouse=True)
def _needs_the_emulator() -> None:
    try:
        emulator.command(targets.get("cortex-m4"))
    except MissingTool as missing:
        pytest.skip(str(missing))


def fits(artifact: Artifact, target: str) -> str | None:
    """None, or why the board that the emulator plays cannot hold the model."""
    machine = targets.get(target)
    assert machine.board is not None
    board = boards.get(machine.board)
    image, arena = artifact.block["image_bytes"], max(r["bytes"] for r in artifact.block["regions"])
    if image + PROGRAM_BYTES > board.first("flash").size:
        return f"{image} bytes of constants for {board.first('flash').size} of flash"
    if arena + 65536 > max(m.size for m in board.memory if m.kind == "ram"):
        return f"an arena of {arena} bytes"
    return None


def bit_equal(path: Path, target: str, folder: Path) -> None:
    """The same bytes from the emulated core and from this machine, for random inputs."""
    artifact = compile_for(path, target, folder / "bare.a")
    if why := fits(artifact, target):
        pytest.skip(why)
    here = nv.compile(path, dims=free_dims(path), out=folder / "host.so")
    names = [p.name for p in artifact.entries[0].inputs]
    inputs = random_inputs(artifact, seed=3)
    expected = load(here.artifact.path).run(None, dict(zip(names, inputs, strict=True)))
    got = bare_figures.run(artifact, targets.get(target), inputs, count=False).outputs
    for y, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(y, wanted)


def reference(name: str) -> Path:
    path = reference_model(name)
    if path is None:
        pytest.skip("no ../shared")
    return path


@pytest.mark.parametrize("name", ["ad", "kws"])
def test_reference_models_are_bit_equal_on_m4(name: str, tmp_path: Path) -> None:
    bit_equal(reference(name), "cortex-m4", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_reference_models_are_bit_equal(name: str, target: str, tmp_path: Path) -> None:
    bit_equal(reference(name), target, tmp_path)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float models of MLPerf Tiny, quantized by nervure to the last softmax."""
    reference("kws")
    folder, made = tmp_path_factory.mktemp("quantized"), {}
    for name in NAMES:
        made[name] = folder / f"{name}.onnx"
        path, _ = models.model(f"tiny_{name}01")
        samples = bare_figures.samples(name)
        nv.quantize(path, samples, made[name], samples=64, optimize="size", latency=False, outputs=True)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_models_quantized_here_are_bit_equal(
    name: str, target: str, quantized: dict[str, Path], tmp_path: Path
) -> None:
    bit_equal(quantized[name], target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", INT8)
def test_larger_int8_models_are_bit_equal(name: str, target: str, tmp_path: Path) -> None:
    path = models.SHARED / "models" / "quantized" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("no ../shared")
    bit_equal(path, target, tmp_path)


# Float models: all on M4, those that are cheap to run on the other cores.
FLOATS = [(n, "cortex-m4") for n in models.names()] + [
    (f"tiny_{n}01", t) for n in ("ad", "kws", "ic") for t in TARGETS[1:]
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "name", "target"), [("default", *f) for f in FLOATS] + [("exact", *f) for f in FLOATS]
)
@pytest.mark.sampled(3)
def test_float_models_agree_with_onnxruntime(precision: str, name: str, target: str, tmp_path: Path) -> None:
    path, real = models.model(name)
    artifact = compile_for(path, target, tmp_path / "model.a", precision=precision)
    if why := fits(artifact, target):
        pytest.skip(why)
    (check,) = verify.verify(artifact, path, {"real": real})
    assert check.worst <= verify.TOLERANCE[precision]
