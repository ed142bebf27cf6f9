"""Programs built by hand, compiled once: what the runtime must do, without the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hand_programs import KERNELS, PROGRAMS, WEIGHTS
from nervure.compiler.library import build_library
from nervure.compiler.program import Program
from nervure.targets import Machine, get, toolchain


@pytest.fixture(scope="session")
def programs() -> dict[str, Program]:
    return {name: make() for name, make in PROGRAMS.items()}


@pytest.fixture(scope="session")
def kernel_object(tmp_path_factory: pytest.TempPathFactory):
    """The kernels' object file for a machine."""
    made: dict[str, Path] = {}

    def compiled(machine: Machine) -> Path:
        if machine.name not in made:
            folder = tmp_path_factory.mktemp("kernels")
            source = folder / "kernels.c"
            source.write_bytes(KERNELS.read_bytes())
            made[machine.name] = toolchain.compile_c(source, folder / "kernels.o", machine)
        return made[machine.name]

    return compiled


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, programs, kernel_object):
    """``artifacts(name, target="host")`` builds one of the Programs, once."""
    made: dict[tuple[str, str], object] = {}

    def artifact(name: str, target: str = "host"):
        if (name, target) not in made:
            machine = get(target)
            out = tmp_path_factory.mktemp(target) / f"{name}.so"
            made[name, target] = build_library(programs[name], [kernel_object(machine)], machine, out)
        return made[name, target]

    return artifact


@pytest.fixture(scope="session")
def reference():
    """What ``batches`` and ``two_regions`` compute, in the kernels' order of float32 operations."""

    def compute(x: np.ndarray) -> np.ndarray:
        rows = (x * WEIGHTS).reshape(-1, 4, 16) * np.float32(0.1)
        sums = np.zeros(rows.shape[:2], np.float32)
        for i in range(16):
            sums += rows[..., i]
        return ((sums[:, 0] + sums[:, 1]) + sums[:, 2]) + sums[:, 3]

    return compute


@pytest.fixture(scope="session")
def training_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``training_library(weighted=True, batch=8)``: softmax regression compiled with its training step."""
    pytest.importorskip("networkx")
    from small_training import compile_training

    made: dict[tuple[bool, int], Path] = {}

    def library(*, weighted: bool = True, batch: int = 8) -> Path:
        key = (weighted, batch)
        if key not in made:
            made[key] = compile_training(tmp_path_factory.mktemp("training") / "model.so", batch, weighted)
        return made[key]

    return library


@pytest.fixture(scope="session")
def gpu_artifacts(tmp_path_factory: pytest.TempPathFactory):
    """``gpu_artifacts(name)`` builds one of ``gpu_programs`` for a GPU that this CPU plays, once."""
    import gpu_programs

    made: dict[str, object] = {}

    def artifact(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp("gpu")
            made[name] = gpu_programs.build(gpu_programs.PROGRAMS_BY_NAME[name](), folder)
        return made[name]

    return artifact


@pytest.fixture
def played():
    """The driver that stands in for libcuda.so.1, as it is after loading: what tests ask and set of it."""
    import gpu_programs

    driver = gpu_programs.Played()
    yield driver
    driver.restore()
