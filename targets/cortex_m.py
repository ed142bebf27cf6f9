"""Arm Cortex-M without an operating system: M4, M7, M33 (DSP extension) and M55 (Helium).

Rates are those of the cores' technical reference manuals, rounded; ``l1`` and ``l2`` stand for memory that is near: on
a microcontroller all of its SRAM answers in a cycle or two, and flash is what weights are streamed from.

Float products are multiplied and added by two instructions on M4 and M33, as LLVM's tuning of the cores has it: on M4
VMUL and VADD take a cycle each and VFMA or VMLA three (Cortex-M4 technical reference manual, 7.2.3), though they count
one instruction less. M7 fuses them. The 32 single registers hold a tile; where product and sum are two instructions, a
few stay free for products.

Code is compiled at LLVM's second level: its third unrolls and unswitches more loops, which made kernels of the MLPerf
Tiny models 10 to 20 % larger for 1 % fewer instructions, and here code is paid for in flash.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import dsp, helium
from .machine import Machine


def _llvm(triple: str, mcpu: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": triple, "mcpu": mcpu, "mfloat-abi": "hard", "opt-level": 2}


def _qemu(machine: str) -> tuple[str, ...]:
    return ("qemu-system-arm", "-M", machine)


CORTEX_M4 = Machine(
    name="cortex-m4",
    family="cortex-m",
    llvm=_llvm("thumbv7em-unknown-none-eabihf", "cortex-m4"),
    zig_target="thumb-freestanding-eabihf",
    zig_cpu="cortex_m4+vfp4d16sp",  # zig's own models of these cores have no FPU
    zig_baseline="cortex_m4+vfp4d16sp",
    elf=(32, 40),
    lanes=1,
    registers=28,
    fma_ports=0.5,
    load_ports=1,
    l1=64 << 10,
    l2=256 << 10,
    cores=1,
    fma_latency=3,
    multiplies=1.0,
    in_order=True,
    issues=1,
    line=16,
    l2_bandwidth=2,
    memory_bandwidth=1,
    memory_bandwidth_all=1,
    instructions=dsp.ROWS,
    emulator=_qemu("mps2-an386"),
    emulator_packages="qemu-system-arm",
    system="bare",
    align=8,
    float64=False,
    board="mps2-an386",
)
CORTEX_M7 = replace(
    CORTEX_M4,
    name="cortex-m7",
    llvm=_llvm("thumbv7em-unknown-none-eabihf", "cortex-m7"),
    zig_cpu="cortex_m7+fp_armv8d16",
    zig_baseline="cortex_m7+fp_armv8d16",
    registers=32,
    fma_ports=1,
    issues=2,
    multiplies=2.0,
    l2_bandwidth=4,
    emulator=_qemu("mps2-an500"),
    float64=True,
    board="mps2-an500",
)
CORTEX_M33 = replace(
    CORTEX_M4,
    name="cortex-m33",
    llvm=_llvm("thumbv8m.main-unknown-none-eabihf", "cortex-m33"),
    zig_cpu="cortex_m33+fp_armv8d16sp",
    zig_baseline="cortex_m33+fp_armv8d16sp",
    emulator=_qemu("mps2-an505"),
    board="mps2-an505",
)
CORTEX_M55 = replace(
    CORTEX_M4,
    name="cortex-m55",
    llvm=_llvm("thumbv8.1m.main-unknown-none-eabihf", "cortex-m55"),
    zig_cpu="cortex_m55+fp_armv8d16+mve_fp",
    zig_baseline="cortex_m55+fp_armv8d16+mve_fp",
    lanes=4,
    registers=8,
    load_ports=0.5,
    issues=2,  # beats of a load and of an arithmetic instruction overlap
    multiplies=2.0,
    l2_bandwidth=8,
    instructions=helium.ROWS,
    emulator=_qemu("mps3-an547"),
    float64=True,
    board="mps3-an547",
)
MACHINES = (CORTEX_M4, CORTEX_M7, CORTEX_M33, CORTEX_M55)
