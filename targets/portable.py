"""The machine that portable C is planned for: what its target is, seen through a C compiler."""

from __future__ import annotations

from dataclasses import replace

from .machine import Machine

NAME = "c99 for {}"
REGISTERS = 8  # small tiles: kernels stay short


def portable(machine: Machine) -> Machine:
    """``machine`` without what C99 cannot say: scalars instead of vectors, no instructions of its own. Its memory
    (regions, alignment, caches) stays, and its program is laid out as without an operating system."""
    return replace(
        machine,
        name=NAME.format(machine.name),
        llvm={"kind": "c", "mcpu": machine.name},
        lanes=1,
        registers=min(REGISTERS, machine.registers),
        fma_ports=min(1.0, machine.fma_ports),
        load_ports=min(1.0, machine.load_ports),
        multiplies=min(1.0, machine.multiplies),
        features=(),
        instructions=(),
        tiles=None,
        system="bare",
        float64=True,
        readable=True,
    )
