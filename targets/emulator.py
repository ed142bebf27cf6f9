"""Runs a model library of another machine under its emulator (or natively where this is such a machine)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import MissingTool, NervureError
from . import host, toolchain
from .files import cache_dir, temporary_folder, writable, write_atomic
from .machine import Machine


def command(machine: Machine) -> tuple[str, ...]:
    """What to put before a program of ``machine`` to run it here; empty where it runs natively.

    ``MissingTool`` names the packages when the emulator or its C library is not installed.
    """
    try:
        here = host()
        if here.elf == machine.elf and {f.name for f in here.features} >= {f.name for f in machine.features}:
            return ()
    except NervureError:
        pass
    if machine.emulator is None:
        raise NervureError(
            f"programs for {machine.name} cannot run here",
            why="this CPU lacks its instructions and there is no emulator for it",
            hint="run them on the machine itself",
        )
    hint = f"sudo apt-get install {machine.emulator_packages}"
    if shutil.which(machine.emulator[0]) is None:
        raise MissingTool(f"{machine.emulator[0]} is not installed", hint=hint)
    for option, value in zip(machine.emulator, machine.emulator[1:], strict=False):
        if option == "-L" and not Path(value).is_dir():
            raise MissingTool(f"the C library of {machine.name} is not installed ({value})", hint=hint)
    return machine.emulator


def run(
    library: Path,
    machine: Machine,
    *,
    prefix: str,
    entry: int,
    inputs: Sequence[bytes],
    output_bytes: Sequence[int],
    threads: int = 1,
    timeout: float = 600,
) -> list[bytes]:
    """Runs one entry of a model library in a process of its own; bytes in, bytes out.

    ``NervureError`` with the program's message when it fails, dies of a signal or takes over ``timeout`` seconds.
    """
    before = command(machine)
    with temporary_folder() as folder:
        program = _runner(machine, folder)
        given = []
        for i, data in enumerate(inputs):
            (folder / f"in{i}").write_bytes(data)
            given.append(f"in{i}")
        wanted = [f"out{i}:{size}" for i, size in enumerate(output_bytes)]
        arguments = [str(library.resolve()), prefix, str(entry), str(threads), *given, "--", *wanted]
        try:
            done = subprocess.run(
                [*before, str(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise NervureError(f"the model took longer than {timeout:.0f} s", where=str(library)) from None
        if done.returncode != 0:
            why = done.stderr.strip() or f"it ended with {done.returncode}"
            raise NervureError(f"the model failed on {machine.name}", where=str(library), why=why[-400:])
        return [(folder / f"out{i}").read_bytes() for i in range(len(output_bytes))]


def _runner(machine: Machine, folder: Path) -> Path:
    """The program that loads a library and runs it; built in ``folder`` once for each kind of machine, then cached."""
    source = (toolchain.RUNTIME / "runner.c").read_bytes()
    key = hashlib.sha256(b"\0".join((source, machine.zig_target.encode(), machine.zig_baseline.encode()))).hexdigest()
    program = cache_dir() / "runner" / key[:32]
    if program.exists():
        return program
    (folder / "runner.c").write_bytes(source)
    made = toolchain.link_program(folder, ["runner.c"], machine, out="runner", flags=("-ldl",))
    with suppress(NervureError), writable(program):
        program.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(program, made.read_bytes(), mode=0o755)
    return made
