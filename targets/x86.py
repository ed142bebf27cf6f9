"""x86-64: the two portable levels and the CPU at hand."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .machine import (
    Call,
    Feature,
    Instruction,
    Machine,
    Tiles,
    dot4,
    dot4_pairs_saturated,
    one_call_dot4,
    pack_row,
    permute_row,
    pick_row,
    round_row,
    table_row,
)

# Names as in /proc/cpuinfo; places from the Intel SDM, volume 2A, CPUID.
CPUID: dict[str, tuple[str, int]] = {
    "ssse3": ("1.0.ecx", 9),
    "fma": ("1.0.ecx", 12),
    "sse4_1": ("1.0.ecx", 19),
    "sse4_2": ("1.0.ecx", 20),
    "movbe": ("1.0.ecx", 22),
    "popcnt": ("1.0.ecx", 23),
    "avx": ("1.0.ecx", 28),
    "f16c": ("1.0.ecx", 29),
    "bmi1": ("7.0.ebx", 3),
    "avx2": ("7.0.ebx", 5),
    "bmi2": ("7.0.ebx", 8),
    "avx512f": ("7.0.ebx", 16),
    "avx512dq": ("7.0.ebx", 17),
    "avx512ifma": ("7.0.ebx", 21),
    "avx512cd": ("7.0.ebx", 28),
    "avx512bw": ("7.0.ebx", 30),
    "avx512vl": ("7.0.ebx", 31),
    "avx512vbmi": ("7.0.ecx", 1),
    "avx512_vbmi2": ("7.0.ecx", 6),
    "gfni": ("7.0.ecx", 8),
    "vaes": ("7.0.ecx", 9),
    "vpclmulqdq": ("7.0.ecx", 10),
    "avx512_vnni": ("7.0.ecx", 11),
    "avx512_bitalg": ("7.0.ecx", 12),
    "avx512_vpopcntdq": ("7.0.ecx", 14),
    "avx512_vp2intersect": ("7.0.edx", 8),
    "avx512_fp16": ("7.0.edx", 23),
    "amx_tile": ("7.0.edx", 24),
    "amx_int8": ("7.0.edx", 25),
    "avx_vnni": ("7.1.eax", 4),
    "avx512_bf16": ("7.1.eax", 5),
    "abm": ("2147483649.0.ecx", 5),
}
V2 = ("ssse3", "sse4_1", "sse4_2", "popcnt")
V3 = (*V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
ICELAKE = (
    *V4,
    *("avx512ifma", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq"),
    *("gfni", "vaes", "vpclmulqdq"),
)

VNNI512 = one_call_dot4("vpdpbusd.512", "llvm.x86.avx512.vpdpbusd.512", 16, (False, True))
VNNI256 = one_call_dot4("vpdpbusd.256", "llvm.x86.avx512.vpdpbusd.256", 8, (False, True))
VNNI128 = one_call_dot4("vpdpbusd.128", "llvm.x86.avx512.vpdpbusd.128", 4, (False, True))
TABLE512 = table_row("vpermi2b.512", "llvm.x86.avx512.vpermi2var.qi.512", 2, 64, ("t0", "i", "t1"), wraps=True)
PERMUTE512 = pick_row("vpermb.512", "llvm.x86.avx512.permvar.qi.512", 64, 64)
VNNI = (VNNI512, VNNI256, VNNI128, TABLE512, PERMUTE512)  # what came with Ice Lake and Zen 4
MADD256 = Instruction(
    name="pmaddubsw.256",
    kind="dot4",
    lanes=8,
    operands=(("acc", "int32x8"), ("a", "uint8x32"), ("b", "int8x32")),
    result="int32x8",
    body=(
        Call("pairs", "llvm.x86.avx2.pmadd.ub.sw", "int16x16", ("a", "b"), ("int8x32", "int8x32")),
        Call("fours", "llvm.x86.avx2.pmadd.wd", "int32x8", ("pairs", 1), ("int16x16", "int16x16")),
        Call("r", "add", "int32x8", ("acc", "fours"), ("int32x8", "int32x8")),
    ),
    signed=(False, True),
    reference=dot4_pairs_saturated,
    saturates=True,
    limit=127,
    per_cycle=0.5,
)


def _pack(to: str, lanes: int, words: str, steps: str) -> Instruction:
    """vpackssdw twice, the zero point added, vpacksswb or vpackuswb."""
    wide, half, out = f"int32x{lanes}", f"int16x{2 * lanes}", f"{to}x{4 * lanes}"
    add = f"llvm.sadd.sat.v{2 * lanes}i16"
    body = (
        Call("ab", words, half, ("a", "b"), (wide, wide)),
        Call("cd", words, half, ("c", "d"), (wide, wide)),
        Call("low", add, half, ("ab", "zero"), (half, half)),
        Call("high", add, half, ("cd", "zero"), (half, half)),
        Call("r", steps, out, ("low", "high"), (half, half)),
    )
    return pack_row(f"{steps.removeprefix('llvm.x86.')}.{lanes}", to, lanes, body)


PACK128 = tuple(
    _pack(to, 4, "llvm.x86.sse2.packssdw.128", f"llvm.x86.sse2.{name}.128")
    for to, name in (("int8", "packsswb"), ("uint8", "packuswb"))
)
PACK256 = tuple(
    _pack(to, 8, "llvm.x86.avx2.packssdw", f"llvm.x86.avx2.{name}")
    for to, name in (("int8", "packsswb"), ("uint8", "packuswb"))
)
PACK512 = tuple(
    _pack(to, 16, "llvm.x86.avx512.packssdw.512", f"llvm.x86.avx512.{name}.512")
    for to, name in (("int8", "packsswb"), ("uint8", "packuswb"))
)
NARROW128 = (*PACK128, round_row(4), pick_row("pshufb.128", "llvm.x86.ssse3.pshuf.b.128", 16, 16, apart=True))
NARROW256 = (*PACK256, round_row(8), pick_row("pshufb.256", "llvm.x86.avx2.pshuf.b", 32, 32, apart=True), *NARROW128)
PICK512 = pick_row("pshufb.512", "llvm.x86.avx512.pshuf.b.512", 64, 64, apart=True)
NARROW512 = (*PACK512, round_row(16), PICK512, *NARROW256)
NARROW256 = (permute_row("vpermps.256", "llvm.x86.avx2.permps", 8), *NARROW256)
PERMUTE2_256 = permute_row("vpermi2ps.256", "llvm.x86.avx512.vpermi2var.ps.256", 8, 2)
NARROW512 = (permute_row("vpermps.512", "llvm.x86.avx512.permvar.sf.512", 16), PERMUTE2_256, *NARROW512)


def _words(lanes: int, prefix: str, multiply: str, shift: str) -> Instruction:
    """Exact without VNNI: even and odd bytes as int16, each pair of which ``pmaddwd`` multiplies and adds.

    A's bytes are moved within their words as unsigned numbers, B's as signed ones.
    """
    words, acc = f"int16x{2 * lanes}", f"int32x{lanes}"

    def moved(out: str, kind: str, source: str) -> Call:
        return Call(out, f"{prefix}.{kind}.{shift}", words, (source, 8), (words, "int32"))

    def pairs(out: str, a: str, b: str) -> Call:
        return Call(out, f"{prefix}.{multiply}", acc, (a, b), (words, words))

    body = (
        moved("a_up", "pslli", "a"),
        moved("a_even", "psrli", "a_up"),
        moved("a_odd", "psrli", "a"),
        moved("b_up", "pslli", "b"),
        moved("b_even", "psrai", "b_up"),
        moved("b_odd", "psrai", "b"),
        pairs("even", "a_even", "b_even"),
        pairs("odd", "a_odd", "b_odd"),
        Call("both", "add", acc, ("even", "odd"), (acc, acc)),
        Call("r", "add", acc, ("acc", "both"), (acc, acc)),
    )
    operands = (("acc", acc), ("a", f"uint8x{4 * lanes}"), ("b", f"int8x{4 * lanes}"))
    return Instruction(f"pmaddwd.{32 * lanes}", "dot4", lanes, operands, acc, body, (False, True), dot4, per_cycle=0.4)


MADDWD512 = _words(16, "llvm.x86.avx512", "pmaddw.d.512", "w.512")
MADDWD256 = _words(8, "llvm.x86.avx2", "pmadd.wd", "w")
MADDWD128 = _words(4, "llvm.x86.sse2", "pmadd.wd", "w")
MADDWD = (MADDWD512, MADDWD256, MADDWD128, MADD256)  # best first


AMX = Tiles(
    tuple(
        (use, f"llvm.x86.{name}")
        for use, name in (
            ("configure", "ldtilecfg"),
            ("release", "tilerelease"),
            ("zero", "tilezero"),
            ("load", "tileloadd64"),
            ("store", "tilestored64"),
            ("dot_signed", "tdpbssd"),
            ("dot_unsigned", "tdpbusd"),
        )
    )
)


def features(names: tuple[str, ...]) -> tuple[Feature, ...]:
    return tuple(Feature(n, *CPUID[n], saved=_saved(n)) for n in names)


def _saved(name: str) -> int:
    """XCR0 bits: SSE and AVX state, for AVX-512 the mask and upper registers, for AMX the tiles too."""
    if name.startswith("amx"):
        return 0x600E6
    if name.startswith("avx512"):
        return 0xE6
    return 0x06 if name.startswith("avx") or name in ("fma", "f16c", "vaes", "vpclmulqdq") else 0


def _llvm(mcpu: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": mcpu}


BASE = Machine(
    name="x86-64-v2",
    family="x86",
    llvm=_llvm("x86-64-v2"),
    zig_target="x86_64-linux-gnu.2.17",
    zig_cpu="x86_64_v2",
    zig_baseline="x86_64",
    elf=(64, 62),
    lanes=4,
    registers=16,
    fma_ports=1,
    load_ports=2,
    multiplies=0.5,
    l1=32 << 10,
    l2=256 << 10,
    l3=8 << 20,
    l1_ways=8,
    cores=4,
    features=features(V2),
    instructions=(MADDWD128, *NARROW128),
)
V3_MACHINE = replace(
    BASE,
    name="x86-64-v3",
    llvm=_llvm("x86-64-v3"),
    zig_cpu="x86_64_v3",
    lanes=8,
    fma_ports=2,
    features=features(V3),
    instructions=(*MADDWD[1:], *NARROW256),
)
V4_MACHINE = replace(
    V3_MACHINE,
    name="x86-64-v4",
    llvm=_llvm("x86-64-v4"),
    zig_cpu="x86_64_v4",
    lanes=16,
    registers=32,
    fma_ports=1,
    l2=1 << 20,
    l3=16 << 20,
    features=features(V4),
    instructions=(*MADDWD, *NARROW512),
)
MACHINES = (V3_MACHINE, V4_MACHINE)


def _known(base: Machine, mcpu: str, needs: tuple[str, ...], rows: tuple[Instruction, ...], **facts: Any) -> Machine:
    changes: dict[str, Any] = {"llvm": _llvm(mcpu), "zig_cpu": mcpu.replace("-", "_"), **facts}
    rows = (*rows, *(row for row in base.instructions if not row.kind.startswith("dot")))
    return replace(base, features=features(needs), instructions=rows, **changes)


# (what /proc/cpuinfo's fields must look like, the machine), the first that fits. A CPU must have every feature that
# the row requires, so a virtual machine that hides some falls through to a plainer row.
MICROARCHITECTURES: tuple[tuple[dict[str, str], Machine], ...] = (
    (
        {"vendor_id": "AuthenticAMD", "cpu family": "26"},  # Zen 5: full-width 512-bit units
        _known(V4_MACHINE, "znver5", (*ICELAKE, "avx512_bf16", "avx_vnni"), VNNI, fma_ports=2),
    ),
    (
        {"vendor_id": "AuthenticAMD"},  # Zen 4: 512-bit operations on 256-bit units, one FMA of 512 bits a cycle
        _known(
            V4_MACHINE,
            "znver4",
            (*ICELAKE, "avx512_bf16"),
            VNNI,
            fma_ports=1,
            load_ports=1,
            l2_bandwidth=28,
            l3_bandwidth=22,
            memory_bandwidth=7.5,
            memory_bandwidth_all=15,
        ),
    ),
    (
        {"vendor_id": "GenuineIntel", "model name": "Xeon"},
        _known(
            V4_MACHINE,
            "sapphirerapids",
            (*ICELAKE, "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8"),
            VNNI,
            tiles=AMX,
            fma_ports=2,
            l2_bandwidth=40,
            l3_bandwidth=10,
        ),
    ),
    (
        {"vendor_id": "GenuineIntel", "model name": "Xeon"},
        _known(
            V4_MACHINE,
            "sapphirerapids",
            (*ICELAKE, "avx512_bf16", "avx512_fp16", "avx_vnni"),
            VNNI,
            fma_ports=2,
            l2_bandwidth=40,
            l3_bandwidth=10,
        ),
    ),
    (
        {"vendor_id": "GenuineIntel", "model name": "Xeon"},
        _known(V4_MACHINE, "icelake-server", ICELAKE, VNNI, fma_ports=2, l2_bandwidth=40),
    ),
    ({"vendor_id": "GenuineIntel"}, _known(V4_MACHINE, "icelake-client", ICELAKE, VNNI)),
    ({"model name": "Xeon"}, _known(V4_MACHINE, "skylake-avx512", V4, MADDWD, fma_ports=2)),
    ({}, V4_MACHINE),
    (
        {"vendor_id": "GenuineIntel"},
        _known(V3_MACHINE, "alderlake", (*V3, "avx_vnni", "gfni", "vaes", "vpclmulqdq"), (VNNI256, VNNI128, MADD256)),
    ),
    ({"vendor_id": "AuthenticAMD"}, _known(V3_MACHINE, "znver2", V3, MADDWD[1:])),
    ({}, V3_MACHINE),
    ({}, BASE),
)


def detect(
    cpuinfo: Mapping[str, str],
    sizes: Mapping[str, Any],
    cores: int,
    granted: Callable[[], bool] | None = None,
) -> Machine:
    """The row for a CPU, its cache sizes filled in from ``sizes`` (keys ``l1``, ``l1_ways``, ``l2``, ``l3``).

    ``cpuinfo`` holds the fields of one processor of /proc/cpuinfo. ``granted`` tells whether the system hands out tile
    registers: not every one does where the CPU has them.
    """
    flags = set(cpuinfo.get("flags", "").split())
    if "amx_tile" in flags and not (granted or tiles_granted)():
        flags = {f for f in flags if not f.startswith("amx")}
    for pattern, machine in MICROARCHITECTURES:
        fits = all(re.search(rf"(^|\b){re.escape(v)}", cpuinfo.get(k, "")) for k, v in pattern.items())
        if fits and flags >= {f.name for f in machine.features}:
            break
    return replace(machine, name="host", cores=cores, **sizes)


def tiles_granted() -> bool:
    """Whether Linux lets this process use AMX's tile registers (``arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)``)."""
    try:
        return int(ctypes.CDLL(None).syscall(158, 0x1023, 18)) == 0
    except (OSError, AttributeError):
        return False


def cache_sizes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Data cache sizes of the first core in bytes, and the ways of its first level; empty where /sys tells nothing."""
    found: dict[str, int] = {}
    for index in sorted(root.glob("index*")):
        try:
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", size).groups()  # type: ignore[union-attr]
            if kind == "Instruction" or level not in "123":
                continue
            found[f"l{level}"] = int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
            if level == "1":
                found["l1_ways"] = int((index / "ways_of_associativity").read_text())
        except (OSError, ValueError, AttributeError):
            continue
    return {k: v for k, v in found.items() if v > 0}
