"""An artifact for a GPU used from C: eight threads, every call of the driver failing once; under valgrind, on Arm."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from gpu_programs import build, trained
from nervure.errors import MissingTool
from nervure.targets import emulation, emulator, get, toolchain

HERE = Path(__file__).parent
# Threads of a block are coroutines: valgrind takes their stacks for memory that nobody has, and loses track of what was
# written. Accesses and leaks of all else are held against it.
SUPPRESSED = "".join(
    f"{{\n {kind}\n Memcheck:{kind}\n obj:{place}\n}}\n"
    for place in ("*libnervure-gpu.so", "*memfd:kernels*")
    for kind in ("Addr1", "Addr2", "Addr4", "Addr8", "Addr16", "Addr32")
)


def program(folder: Path, target: str) -> tuple[list[str], dict[str, str]]:
    """The command that uses the artifact, and its environment."""
    machine = get(target)
    artifact = build(trained(), folder, target)
    shutil.copy(HERE / "gpu.c", folder)
    toolchain.link_program(folder, ["gpu.c"], machine, out="gpu", flags=("-ldl", "-lpthread"))
    folder_of_driver = str(emulation.driver(machine.zig_target.split(".")[0]).parent)
    return [str(folder / "gpu"), str(artifact.path), artifact.prefix], {"LD_LIBRARY_PATH": folder_of_driver}


def check(command: list[str], more: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


def test_threads_and_faults_from_c(tmp_path):
    command, environment = program(tmp_path, "cuda-sm80")
    check([*command, "1250"], environment)  # 10,000 runs by eight contexts


@pytest.mark.slow
def test_valgrind_finds_neither_errors_nor_leaks(tmp_path):
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not installed")
    command, environment = program(tmp_path, "cuda-sm80")
    (tmp_path / "suppressed").write_text(SUPPRESSED)
    options = ["-q", "--leak-check=full", "--undef-value-errors=no", "--error-exitcode=9"]
    options.append(f"--suppressions={tmp_path / 'suppressed'}")
    check([valgrind, *options, *command, "20"], environment)


@pytest.mark.slow
def test_an_arm_host(tmp_path):
    """cuda-sm87 is a Jetson: its host is an aarch64."""
    try:
        before = emulator.command(get("aarch64"))
    except MissingTool as error:
        pytest.skip(error.what)
    command, environment = program(tmp_path, "cuda-sm87")
    own = [f"{k}={v}" for k, v in environment.items()]
    check([*before, *(["-E", *own] if before else []), *command, "20"], {} if before else environment)


def test_sources_compile_without_a_warning(tmp_path):
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    strict = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
    for source in toolchain.GPU_FILES:
        include = (f"-I{toolchain.RUNTIME}", f"-I{toolchain.RUNTIME / 'cuda'}")
        file = str(toolchain.RUNTIME / source)
        subprocess.run([gcc, "-std=c11", *strict, "-O2", *include, "-c", file, "-o", "x.o"], cwd=tmp_path, check=True)
