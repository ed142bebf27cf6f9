"""The C side by itself: a driver under ThreadSanitizer and AddressSanitizer, strict warnings, the example program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nervure.compiler import render
from nervure.compiler.library import build_library, run_elsewhere
from nervure.errors import MissingTool, NervureError
from nervure.targets import Feature, emulator, get, toolchain

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "c" / "infer.c"


def write_sources(folder: Path, program) -> list[str]:
    """The rendered library as C sources, with the kernels and the runtime beside it; returns what to compile."""
    for name, data in render.sources(program, get("host")).items():
        (folder / name).write_bytes(data)
    for source in (HERE / "kernels.c", HERE / "driver.c"):
        shutil.copy(source, folder)
    runtime = [str(toolchain.RUNTIME / f) for f in toolchain.RUNTIME_FILES]
    return ["driver.c", "model.c", "images.S", "kernels.c", *runtime]


def compiler_with(flag: str, folder: Path) -> str:
    """gcc, if it can build and run a program with ``flag``; the test is skipped otherwise."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    (folder / "probe.c").write_text("int main(void) { return 0; }")
    built = subprocess.run([gcc, flag, "-o", "probe", "probe.c"], cwd=folder, capture_output=True, text=True)
    if built.returncode or subprocess.run([str(folder / "probe")], capture_output=True).returncode:
        pytest.skip(f"gcc here has no working {flag}: {built.stderr[-200:]}")
    return gcc


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_driver_is_clean_under_sanitizers(tmp_path, programs, sanitizer):
    flag = f"-fsanitize={sanitizer}"
    gcc = compiler_with(flag, tmp_path)
    files = write_sources(tmp_path, programs["batches"])
    include = ["-I.", f"-I{toolchain.RUNTIME}"]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fno-sanitize-recover=all", flag]
    subprocess.run([gcc, *flags, *include, *files, "-o", "driver", "-lpthread", "-lm"], cwd=tmp_path, check=True)
    done = subprocess.run([str(tmp_path / "driver")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


def test_sources_compile_without_a_warning(tmp_path, programs):
    gcc = compiler_with("-Wall", tmp_path)
    write_sources(tmp_path, programs["trainable"])
    strict = [
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wshadow",
        "-Wconversion",
        "-Wno-sign-conversion",
        "-Werror",
    ]
    sources = ["model.c", *(str(toolchain.RUNTIME / f) for f in toolchain.RUNTIME_FILES)]
    for source in sources:
        command = [gcc, *strict, "-Werror", "-O2", "-I.", f"-I{toolchain.RUNTIME}", "-c", source, "-o", "x.o"]
        subprocess.run(command, cwd=tmp_path, check=True)


def test_a_missing_feature_is_a_status_not_a_fault(tmp_path, programs, kernel_object):
    """Entry stubs are baseline code: create() answers before any kernel could run."""
    machine = get("host")
    place = ("13.1.edx", 31) if machine.family == "x86" else ("hwcap2", 62)  # reserved bits
    absent = Feature("unheardof", *place)
    artifact = build_library(
        programs["counted"], [kernel_object(machine)], replace(machine, features=(absent,)), tmp_path / "m.so"
    )
    with pytest.raises(NervureError, match="this CPU lacks unheardof"):
        run_elsewhere(artifact, machine, {"x": np.zeros(64, np.float32)})


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["host", "rpi4", "armv7"])
def test_example_program(tmp_path, artifacts, reference, target):
    machine = get(target)
    try:
        before = emulator.command(machine)
    except MissingTool as error:
        pytest.skip(str(error))
    artifact = artifacts("model", target)
    shutil.copy(artifact.path, tmp_path / "model.so")
    shutil.copy(artifact.path.with_suffix(".h"), tmp_path / "model.h")
    shutil.copy(EXAMPLE, tmp_path)
    flags = ("-Wall", "-Wextra", "-Werror", "-I.", "-Wl,-rpath,.", "-lpthread")
    program = toolchain.link_program(tmp_path, ["infer.c", "model.so"], machine, out="infer", flags=flags)
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    done = subprocess.run([*before, str(program), "x.bin", "y.bin"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    y = np.frombuffer((tmp_path / "y.bin").read_bytes(), np.float32)
    np.testing.assert_allclose(y, reference(x), rtol=1e-5, atol=1e-5)
