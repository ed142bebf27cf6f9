"""The machines that networks are compiled for: ``get("rpi4")``, ``names()``."""

from __future__ import annotations

import os
import platform
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from ..errors import NervureError
from . import arm, cortex_m, cuda, x86
from .machine import Call, Feature, Instruction, Machine

__all__ = ["Call", "Feature", "Instruction", "Machine", "get", "host", "instruction", "names"]

MACHINES: dict[str, Machine] = {m.name: m for m in (*x86.MACHINES, *arm.MACHINES, *cortex_m.MACHINES, *cuda.MACHINES)}


def names() -> list[str]:
    """All names that ``get`` knows."""
    return ["host", *MACHINES]


def get(name: str) -> Machine:
    """The machine of that name; ``NervureError`` naming the closest one if there is none."""
    if name == "host":
        return host()
    if name.endswith(cuda.EMULATED) and name.removesuffix(cuda.EMULATED) in MACHINES:  # a GPU played by this CPU
        from .emulation import emulated

        made = MACHINES[name.removesuffix(cuda.EMULATED)]
        return emulated(cuda.beside(made, cuda.HOSTS.get(platform.machine(), cuda.HOST)))
    if name not in MACHINES:
        close = get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise NervureError(f"there is no target {name!r}", hint=f"{hint}targets: {', '.join(names())}")
    return MACHINES[name]


@cache
def instruction(name: str) -> Instruction:
    """The instruction row of that name, of whichever machine has it."""
    machines = (*MACHINES.values(), *(m for _, m in x86.MICROARCHITECTURES))
    return next(row for machine in machines for row in machine.instructions if row.name == name)


@cache
def host() -> Machine:
    """The machine at hand, from /proc/cpuinfo and /sys; ``NervureError`` where no target covers it."""
    kind = platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info, sizes = cpuinfo(), x86.cache_sizes()
    if kind in ("x86_64", "AMD64"):
        return x86.detect(info, sizes, cores)
    if kind in ("aarch64", "arm64"):
        return arm.detect(info, sizes, cores)
    if kind.startswith("armv7"):
        return arm.detect(info, sizes, cores, bits=32)
    raise NervureError(f"no target covers this machine ({kind})", hint=f"name one with --target: {', '.join(MACHINES)}")


def cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The fields of the first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not line.strip() and fields:
            break
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
