"""Portable C in the hands of other compilers: built, loaded, run in the emulator."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from nervure.frontends.source import Built
from nervure.runtime.arrays import host_dtype
from nervure.runtime.artifact import Artifact
from nervure.targets import boards, firmware
from nervure.targets.machine import Machine

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
COMPILERS = {
    "gcc": ("gcc",),
    "clang": (sys.executable, "-m", "ziglang", "cc"),
    "arm": ("arm-none-eabi-gcc", *CORTEX_M4),
}


def compiler(name: str) -> tuple[str, ...]:
    """The command; skips where it is missing."""
    command = COMPILERS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    return command


def compile_c(artifact: Artifact, name: str, out: Path, *flags: str) -> Path:
    """The C file as every reviewer would compile it: any warning is an error."""
    command = [*compiler(name), *STRICT, *(flags or ("-O2",)), "-c", artifact.path.name, "-o", str(out)]
    done = subprocess.run(command, cwd=artifact.path.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stderr[:2000]}"
    return out


def check_header(artifact: Artifact) -> None:
    """The header as C++."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    flags = ("-std=c++11", *STRICT[1:], "-fsyntax-only", "-x", "c++")
    command = ["g++", *flags, artifact.path.with_suffix(".h").name]
    done = subprocess.run(command, cwd=artifact.path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]


def loaded(artifact: Artifact, name: str, folder: Path, *flags: str) -> Built:
    """The C file as a program of this machine, by that compiler."""
    library = folder / f"{artifact.path.stem}_{name}.so"
    wanted = flags or ("-O2",)
    command = [*compiler(name), *STRICT[1:], *wanted, "-shared", "-fPIC", artifact.path.name, "-lm", "-o", str(library)]
    command += [] if any(f.startswith("-std") for f in wanted) else ["-std=c99"]
    done = subprocess.run(command, cwd=artifact.path.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stderr[:2000]}"
    return Built(artifact, library)


def inputs(artifact: Artifact, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for the first entry point; whole numbers are small where they may be indices."""
    rng, found = np.random.default_rng(seed), {}
    for port in artifact.entries[0].inputs:
        dtype = host_dtype(port.dtype)
        if dtype.itemsize == 1:
            info = np.iinfo(dtype)
            found[port.name] = rng.integers(info.min, info.max + 1, port.shape).astype(dtype)
        elif dtype.kind in "iu":
            found[port.name] = rng.integers(0, 3, port.shape).astype(dtype)
        else:
            found[port.name] = rng.standard_normal(port.shape).astype(dtype)
    return found


def agree(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Integers bit for bit, floats within 1e-5 of the largest value."""
    assert len(got) == len(expected)
    for y, want in zip(got, expected, strict=True):
        assert y.dtype == want.dtype and y.shape == want.shape
        if want.dtype.kind == "f":
            np.testing.assert_allclose(y, want, rtol=0, atol=1e-5 * max(1e-6, float(np.abs(want).max(initial=0))))
        else:
            np.testing.assert_array_equal(y, want)


def in_emulator(
    artifact: Artifact, machine: Machine, given: dict[str, np.ndarray], folder: Path, *flags: str
) -> tuple[list[np.ndarray], dict[str, int], int]:
    """Outputs, instructions by function and bytes of code, of a program that arm-none-eabi-gcc made with newlib."""
    command, entry = compiler("arm"), artifact.entries[0]
    assert machine.board is not None
    board, header = boards.get(machine.board), artifact.path.with_suffix(".h")
    folder = folder / "program"
    folder.mkdir()
    for i, port in enumerate(entry.inputs):
        (folder / f"in{i:02d}").write_bytes(given[port.name].tobytes())
    for path in (artifact.path, header):
        shutil.copyfile(path, folder / path.name)
    (folder / "model.h").write_text(f'#include "{header.name}"\n')
    support = ("startup.c", "semihosting.c", "runner.c")
    for name in (*support, "semihosting.h"):
        shutil.copyfile(firmware.BARE / name, folder / name)
    regions = [r["name"] for r in artifact.block["bare"]["regions"]]
    sizes = [math.prod(p.shape) * host_dtype(p.dtype).itemsize for p in entry.outputs]
    feeds = [given[p.name].tobytes() for p in entry.inputs]
    sections = firmware._sections(board, regions)
    (folder / "job.h").write_text(firmware._job(artifact.prefix, entry.name, sections, feeds, sizes))
    (folder / "link.ld").write_text(firmware.linker_script(board))
    split = ("-ffunction-sections", "-fdata-sections")
    model = compile_c(artifact, "arm", folder / "model.o", *(flags or ("-O2",)), *split)
    linking = ("-nostartfiles", "-T", "link.ld", "-Wl,--gc-sections", "-lm", "-o", "program.elf")
    done = subprocess.run(
        [*command, "-std=gnu11", "-O2", "-I.", *support, model.name, *linking],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:2000]
    ran = firmware.simulate(folder / "program.elf", machine, count=True)
    assert ran.status == 0, ran.said[-500:]
    got = [
        np.frombuffer((folder / f"out{i:02d}").read_bytes(), host_dtype(p.dtype)).reshape(p.shape)
        for i, p in enumerate(entry.outputs)
    ]
    listed = subprocess.run(["arm-none-eabi-size", "-A", model.name], cwd=folder, capture_output=True, text=True)
    code = sum(int(line.split()[1]) for line in listed.stdout.splitlines() if line.startswith(".text"))
    return got, dict(ran.instructions), code
