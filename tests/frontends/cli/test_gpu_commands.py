"""The command line for GPUs, without one: twins that the CPU plays, what is said of drivers and devices, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nervure.errors import NervureError

Nervure = Callable[..., Any]
MakeModel = Callable[..., Path]
pytest.importorskip("tvm")


def _compiler() -> bool:
    from nervure.targets.nvrtc import compiler_version

    try:
        return bool(compiler_version())
    except NervureError:
        return False


def _gpu() -> bool:
    from nervure.runtime.driver import find_driver

    try:
        return bool(find_driver().devices)
    except NervureError:
        return False


needs_compiler = pytest.mark.skipif(not _compiler(), reason="needs a compiler for CUDA kernels")
without_gpu = pytest.mark.skipif(_gpu(), reason="there is a GPU")


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path) -> Path:
    return make_model(tmp_path / "model.onnx")


def test_targets_say_which_code_they_hold_and_what_runs_it(nervure: Nervure) -> None:
    rows = nervure("targets", "--json").json["targets"]
    gpus = {r["name"]: r for r in rows if r["system"] == "cuda"}
    assert gpus["cuda-sm87"]["features"] == ["sm_87"] and gpus["cuda-sm87"]["family"] == "arm"
    assert gpus["cuda"]["features"] == ["sm_80", "sm_87", "sm_89", "sm_90", "PTX 90"]
    assert "H100" in nervure("targets", "cuda-sm90").out


@needs_compiler
@without_gpu
def test_without_a_gpu_a_twin_of_the_same_kernels_is_verified(nervure: Nervure, model: Path, tmp_path: Path) -> None:
    made = nervure("compile", model, "-t", "cuda-sm89", "-o", tmp_path / "out", "--json")
    assert made.code == 0, made.err
    assert made.json["verification"]["ok"] and made.json["verification"]["checks"]
    library = made.json["files"]["library"]
    assert nervure("verify", model, library).code == 0
    found = nervure("run", library, "-i", _input(tmp_path))
    assert found.code == 1 and "there is no Nvidia driver here" in found.err


@needs_compiler
@without_gpu
def test_the_twin_of_a_jetsons_library_runs_on_this_cpu(nervure: Nervure, model: Path, tmp_path: Path) -> None:
    made = nervure("compile", model, "-t", "cuda-sm87", "-o", tmp_path / "out", "--json")
    assert made.code == 0 and made.json["verification"]["ok"], made.err


@needs_compiler
@without_gpu
def test_a_library_of_another_model_is_not_this_ones_twin(
    nervure: Nervure, model: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other.onnx", classes=5)
    library = nervure("compile", other, "-t", "cuda-sm80", "-o", tmp_path / "other.so", "--json").json
    found = nervure("verify", model, library["files"]["library"])
    assert found.code == 1 and "does not hold the kernels of this model" in found.err


def test_a_played_gpu_is_a_target_like_any_other(nervure: Nervure, model: Path, tmp_path: Path) -> None:
    made = nervure("compile", model, "-t", "cuda-sm80-emulated", "-o", tmp_path / "model.so", "--json")
    assert made.code == 0 and made.json["verification"]["ok"], made.err
    found = nervure("run", tmp_path / "model.so", "-i", _input(tmp_path), "--json")
    assert found.code == 0, found.err
    assert nervure("inspect", tmp_path / "model.so").code == 0


def _input(folder: Path) -> str:
    np.save(folder / "x.npy", np.ones((2, 4), np.float32))
    return f"x={folder / 'x.npy'}"


def test_half_precision_is_for_gpus(nervure: Nervure, model: Path, tmp_path: Path) -> None:
    found = nervure("compile", model, "--precision", "fp16", "-o", tmp_path / "out")
    assert found.code == 1 and "--target cuda-sm80" in found.err
    assert not (tmp_path / "out").exists()


def test_doctor_names_driver_and_devices() -> None:
    from nervure.targets import emulation

    played = {**os.environ, "LD_LIBRARY_PATH": str(emulation.driver().parent)}
    code = "from nervure.frontends.cli.commands.doctor import gpu; import json; print(json.dumps(gpu()))"
    done = subprocess.run([sys.executable, "-c", code], env=played, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["driver"] and facts["cuda"] and facts["why"] is None
    device = facts["devices"][0]
    assert "cuda" in device["targets"] and device["multiprocessors"] > 0 and device["memory"] > 0


@without_gpu
def test_doctor_says_why_there_is_none(nervure: Nervure) -> None:
    assert nervure("doctor", "--json").json["gpu"]["why"] == "there is no Nvidia driver here"
    assert "GPU: none" in nervure("doctor").out
