"""64-bit and 32-bit ARM Linux: Raspberry Pi 3, 4, 5, generic aarch64 and Cortex-A7."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .machine import Call, Feature, Instruction, Machine, dot2, one_call_dot4, pack_row, pick_row, round_row, table_row

# HWCAP bits of the Linux ABI (arch/arm64/include/uapi/asm/hwcap.h, arch/arm/include/uapi/asm/hwcap.h).
ASIMD = Feature("asimd", "hwcap", 1)
ATOMICS = Feature("atomics", "hwcap", 8)
FPHP = Feature("fphp", "hwcap", 9)
ASIMDHP = Feature("asimdhp", "hwcap", 10)
ASIMDRDM = Feature("asimdrdm", "hwcap", 12)
ASIMDDP = Feature("asimddp", "hwcap", 20)
NEON32 = Feature("neon", "hwcap", 12)
VFPV4 = Feature("vfpv4", "hwcap", 16)

SDOT = one_call_dot4("sdot", "llvm.aarch64.neon.sdot.v4i32.v16i8", 4, (True, True))
UDOT = one_call_dot4("udot", "llvm.aarch64.neon.udot.v4i32.v16i8", 4, (False, False))


def _halves(name: str, multiply: str, pairwise: str, accumulates: bool) -> Instruction:
    """Without a dot-product instruction: eight products to int16, neighbours added to four int32 lanes.

    Each accumulator lane takes two products a call, so the kind is ``dot2``. The factors -128 * -128 twice still fit.
    """
    product = Call("p", multiply, "int16x8", ("a", "b"), ("int8x8", "int8x8"))
    if accumulates:
        tail: tuple[Call, ...] = (Call("r", pairwise, "int32x4", ("acc", "p"), ("int32x4", "int16x8")),)
    else:
        tail = (
            Call("s", pairwise, "int32x4", ("p",), ("int16x8",)),
            Call("r", "add", "int32x4", ("acc", "s"), ("int32x4", "int32x4")),
        )
    operands = (("acc", "int32x4"), ("a", "int8x8"), ("b", "int8x8"))
    return Instruction(name, "dot2", 4, operands, "int32x4", (product, *tail), (True, True), dot2, per_cycle=0.5)


SADDLP = _halves("smull+saddlp", "llvm.aarch64.neon.smull.v8i16", "llvm.aarch64.neon.saddlp.v4i32.v8i16", False)
VPADAL = _halves("vmull+vpadal", "llvm.arm.neon.vmulls.v8i16", "llvm.arm.neon.vpadals.v4i32.v8i16", True)


def _pack(to: str, words: str, steps: str) -> Instruction:
    """Saturating narrowing, twice, the zero point added between."""
    body: list[Call] = []
    for pair in ("ab", "cd"):
        body += [Call(f"{n}16", words, "int16x4", (n,), ("int32x4",)) for n in pair]
        body += [
            Call(pair, "concat", "int16x8", (f"{pair[0]}16", f"{pair[1]}16"), ("int16x4", "int16x4")),
            Call(f"{pair}z", "llvm.sadd.sat.v8i16", "int16x8", (pair, "zero"), ("int16x8", "int16x8")),
            Call(f"{pair}8", steps, f"{to}x8", (f"{pair}z",), ("int16x8",)),
        ]
    body.append(Call("r", "concat", f"{to}x16", ("ab8", "cd8"), (f"{to}x8", f"{to}x8")))
    return pack_row(steps.removeprefix("llvm."), to, 4, tuple(body))


_TABLE = ("t0", "t1", "t2", "t3", "i")
PACK64 = (
    _pack("int8", "llvm.aarch64.neon.sqxtn.v4i16", "llvm.aarch64.neon.sqxtn.v8i8"),
    _pack("uint8", "llvm.aarch64.neon.sqxtn.v4i16", "llvm.aarch64.neon.sqxtun.v8i8"),
    round_row(4),
    table_row("tbl4", "llvm.aarch64.neon.tbl4.v16i8", 4, 16, _TABLE, wraps=False),
    pick_row("tbl.16", "llvm.aarch64.neon.tbl1.v16i8", 16, 16),
    pick_row("tbl.8", "llvm.aarch64.neon.tbl1.v8i8", 16, 8),
)
PACK32 = (
    _pack("int8", "llvm.arm.neon.vqmovns.v4i16", "llvm.arm.neon.vqmovns.v8i8"),
    _pack("uint8", "llvm.arm.neon.vqmovns.v4i16", "llvm.arm.neon.vqmovnsu.v8i8"),
    pick_row("vtbl.8", "llvm.arm.neon.vtbl1", 8, 8),
)


def _llvm(mcpu: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": "aarch64-unknown-linux-gnu", "mcpu": mcpu}


def _qemu(cpu: str) -> tuple[str, ...]:
    return ("qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu")


AARCH64 = Machine(
    name="aarch64",
    family="arm",
    llvm={**_llvm("generic"), "mattr": ["+neon"]},
    zig_target="aarch64-linux-gnu.2.17",
    zig_cpu="generic",
    zig_baseline="generic",
    elf=(64, 183),
    lanes=4,
    registers=32,
    fma_ports=1,
    load_ports=1,
    l1=32 << 10,
    l2=512 << 10,
    l1_ways=4,
    cores=4,
    l2_bandwidth=12,
    memory_bandwidth=2.5,
    memory_bandwidth_all=4,
    features=(ASIMD,),
    instructions=(SADDLP, *PACK64),
    emulator=_qemu("cortex-a53"),
    emulator_packages="qemu-user libc6-arm64-cross",
)
RPI3 = replace(
    AARCH64,
    name="rpi3",
    llvm=_llvm("cortex-a53"),
    zig_cpu="cortex_a53",
    load_ports=0.5,  # 64 bits a cycle
    in_order=True,
    l2_bandwidth=8,
    memory_bandwidth=1.6,
    memory_bandwidth_all=2,
)
RPI4 = replace(
    AARCH64,
    name="rpi4",
    llvm=_llvm("cortex-a72"),
    zig_cpu="cortex_a72",
    l1_ways=2,
    l2=1 << 20,
    fma_latency=7,
    emulator=_qemu("cortex-a72"),
)
RPI5 = replace(
    AARCH64,
    name="rpi5",
    llvm=_llvm("cortex-a76"),
    zig_cpu="cortex_a76",
    fma_ports=2,
    load_ports=2,
    l1=64 << 10,
    l3=2 << 20,
    l2_bandwidth=32,
    l3_bandwidth=12,
    memory_bandwidth=5,
    memory_bandwidth_all=6,
    features=(ASIMD, ATOMICS, FPHP, ASIMDHP, ASIMDRDM, ASIMDDP),
    instructions=(SDOT, UDOT, SADDLP, *PACK64),
    emulator=_qemu("cortex-a76"),
)
ARMV7 = Machine(
    name="armv7",
    family="arm",
    # LLVM's tuning for this core splits fused multiply-adds unless told that they are not slow.
    llvm={
        "kind": "llvm",
        "mtriple": "armv7a-unknown-linux-gnueabihf",
        "mcpu": "cortex-a7",
        "mattr": ["+neon", "+vfp4", "-slowfpvfmx", "-slowfpvmlx"],
        "mfloat-abi": "hard",
    },
    zig_target="arm-linux-gnueabihf.2.17",
    zig_cpu="cortex_a7",
    zig_baseline="generic+v7a+vfp3d16",
    elf=(32, 40),
    lanes=4,
    registers=16,
    fma_ports=0.25,
    load_ports=0.5,
    l1=32 << 10,
    l2=512 << 10,
    l1_ways=4,
    cores=4,
    fma_latency=8,
    in_order=True,
    l2_bandwidth=4,
    memory_bandwidth=1,
    memory_bandwidth_all=1.5,
    features=(NEON32, VFPV4),
    instructions=(VPADAL, *PACK32),
    emulator=("qemu-arm", "-cpu", "cortex-a7", "-L", "/usr/arm-linux-gnueabihf"),
    emulator_packages="qemu-user libc6-armhf-cross",
)
MACHINES = (AARCH64, RPI3, RPI4, RPI5, ARMV7)

PARTS = {"0xd03": RPI3, "0xd08": RPI4, "0xd0b": RPI5}  # "CPU part" of /proc/cpuinfo: Cortex-A53, A72, A76


def detect(cpuinfo: Mapping[str, str], sizes: Mapping[str, Any], cores: int, *, bits: int = 64) -> Machine:
    """The row for an ARM CPU; cores that are not known by their part number count as generic."""
    known = ARMV7 if bits == 32 else PARTS.get(cpuinfo.get("CPU part", ""), AARCH64)
    if not set(cpuinfo.get("Features", "").split()) >= {f.name for f in known.features}:
        known = ARMV7 if bits == 32 else AARCH64
    return replace(known, name="host", cores=cores, **sizes)
