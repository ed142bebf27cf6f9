"""Whole models for GPUs, without one: their machine code keeps every architecture's limits, their results agree."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_figures
import cuda_small
import models
import nervure as nv
import numpy as np
import pytest
from cuda_figures import agreement, census, found
from nervure.errors import MissingTool, NervureError
from nervure.targets import nvrtc

COLD, WARM = 120.0, 5.0  # seconds for MobileNetV2, one architecture, two cores
LARGE = ("resnet18", "resnet50", "vit_tiny", "bert_mini_128", "unet_16_256", "mobilenet_v2", "mnv2_imagenet_tv")
# TF32 rounds factors to 11 bits: after many layers that is more than 1e-3 of the largest score, and a softmax of large
# scores makes 1e-2 of it. Precision exact holds for both.
MISSED = {  # what was asked of every model, and what is seen
    ("ultraface_rfb320", "fp16"): "corners of boxes near zero: 7.3e-2 of their slice instead of 1e-2",
    ("ultraface_rfb320", "exact"): "1.2e-5 instead of 1e-5 (2.0e-5 on x86-64)",
}
INPUTS = {
    "pictures": {"x": np.random.default_rng(1).standard_normal((2, 3, 17, 17)).astype(np.float32)},
    "words": {
        "ids": np.arange(12)[None] * 3,
        "seen": (np.arange(12) < 8).astype(np.float32)[None, None, None],
    },
}


@pytest.fixture
def compiler() -> None:
    try:
        nvrtc.compiler_version()
    except MissingTool as missing:
        pytest.skip(str(missing))


def sound(row: cuda_figures.Census) -> None:
    """No architecture's limit is broken; no kernel of a device template has local memory, where registers spill to."""
    assert not row.broken
    assert not row.spilled


def mostly_slow(some: list[tuple[str, str]], fast: list[tuple[str, str]]) -> list[Any]:
    return [pytest.param(*s, marks=[] if s in fast else pytest.mark.slow) for s in some]


EVERY = [(n, p) for n in cuda_small.NETS for p in ("default", "exact", "fp16", "bf16")]
CODE = [s for s in EVERY if s[1] in ("default", "fp16")]


@pytest.mark.parametrize(("name", "precision"), mostly_slow(EVERY, [("pictures", "fp16"), ("words", "default")]))
def test_small_networks_agree(name: str, precision: str) -> None:
    row = agreement(cuda_small.NETS[name](), INPUTS[name], precision)
    assert row.holds, row


def test_a_quantized_network_is_met_to_the_bit() -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 9, 9)).astype(np.float32) * 2
    row = agreement(cuda_small.integers(), {"x": x})
    assert row.error == 0 == row.limit


@pytest.mark.parametrize(("name", "precision"), mostly_slow(CODE, [("words", "fp16")]))
def test_small_networks_are_machine_code_for_every_architecture(name: str, precision: str, compiler: None) -> None:
    row = census(cuda_small.NETS[name](), "cuda", precision)
    sound(row)
    assert row.registers > 0 and row.image_bytes > 0


@pytest.mark.slow
def test_half_types_take_half_the_memory(compiler: None) -> None:
    whole, half = (census(cuda_small.pictures(), "cuda-sm80", p) for p in ("default", "fp16"))
    assert half.const_bytes < 0.7 * whole.const_bytes
    assert half.arena_bytes < whole.arena_bytes


def test_training_says_that_half_types_are_not_for_it(tmp_path: Path) -> None:
    net = nv.Sequential([nv.layers.Dense(4, "tanh", input_dim=6), nv.layers.Dense(2)])
    training = nv.Training("mse", nv.optimizers.SGD(0.1))
    with pytest.raises(NervureError, match="fp16 for a network that trains"):
        nv.compile(net, "cuda-sm80", training=training, precision="fp16", out=tmp_path / "m.so")


# -- models of ../shared -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("precision", ["default", "fp16"])
@pytest.mark.parametrize("name", models.names()[::4])
def test_models_are_machine_code(name: str, precision: str, compiler: None) -> None:
    """Some of them, for every architecture; ``python tests/cuda_figures.py --target ...`` has them all, in an hour."""
    sound(census(found(name)[0], "cuda", precision))


def known(name: str, precision: str) -> Any:
    why = MISSED.get((name, precision))
    return pytest.param(name, precision, marks=[pytest.mark.xfail(reason=why, strict=True)] if why else [])


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize(("name", "precision"), [known(n, p) for n in models.names() for p in ("default", "fp16")])
def test_models_agree(name: str, precision: str) -> None:
    path, inputs = found(name)
    row = agreement(path, inputs, precision)
    assert row.holds, row


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize(("name", "precision"), [known(n, "exact") for n in models.names() if n not in LARGE])
def test_exact_models_agree(name: str, precision: str) -> None:
    path, inputs = found(name)
    row = agreement(path, inputs, precision)
    assert row.holds, row


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("path", sorted(cuda_figures.INT8.glob("*.onnx")), ids=lambda p: p.stem)
def test_int8_models_are_met_to_the_bit(path: Path) -> None:
    row = agreement(path)
    assert row.error == 0 == row.limit


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_compile_time(tmp_path: Path, compiler: None) -> None:
    """From the file to the library, in a process of its own, first without and then with what caches hold. Counted is
    the time of all its processes on the CPU, which bounds what it takes on a machine that does nothing else."""
    path = found("mobilenet_v2" if "mobilenet_v2" in models.names() else "shipped")[0]
    env = {**os.environ, "NERVURE_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "nervure", "compile", str(path), "--target", "cuda-sm80", "--no-verify", "-o"]
    seconds = []
    for i in range(2):
        begin = children_seconds()
        subprocess.run([*command, str(tmp_path / f"{i}.so")], env=env, check=True, capture_output=True)
        seconds.append(children_seconds() - begin)
    print(f"cold {seconds[0]:.1f} s, warm {seconds[1]:.1f} s")
    assert seconds[0] <= COLD and seconds[1] <= WARM
    assert (tmp_path / "0.so").read_bytes() == (tmp_path / "1.so").read_bytes()
