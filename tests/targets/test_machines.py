"""Targets as data: names, detection of CPUs from their /proc/cpuinfo, records for cache keys."""

from __future__ import annotations

import json

import pytest
from nervure.errors import NervureError
from nervure.targets import MACHINES, arm, get, names, x86

ZEN4 = " ".join(f.name for f in x86.features((*x86.ICELAKE, "avx512_bf16")))
SPR = f"{ZEN4} avx512_fp16 avx_vnni amx_tile amx_int8"


def test_names_and_a_near_miss():
    linux = ["host", "x86-64-v3", "x86-64-v4", "aarch64", "rpi3", "rpi4", "rpi5", "armv7"]
    gpus = ["cuda-sm80", "cuda-sm87", "cuda-sm89", "cuda-sm90", "cuda"]
    assert names() == [*linux, "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", *gpus]
    with pytest.raises(NervureError, match=r"no target 'rpi6'\n.*did you mean 'rpi"):
        get("rpi6")


@pytest.mark.parametrize("name", names())
def test_every_machine_is_whole(name):
    machine = get(name)
    assert len(machine.llvm["mtriple"].split("-")) == 4  # LLVM misreads shorter ones
    assert (machine.gpu is not None) == (machine.system == "cuda")
    assert machine.lanes * 4 == machine.vector_bytes and machine.registers >= 8
    assert machine.l1 < machine.l2 and machine.cores >= 1 and machine.flops_per_cycle > 0
    assert json.loads(json.dumps(machine.record())) == machine.record()
    bare = machine.system == "bare"  # nothing there asks the CPU what it is: it is known which one it is
    own = bare or machine.gpu is not None  # a GPU's host is the plainest of its family
    assert bool(machine.features) != own and (machine.board is not None) == bare


@pytest.mark.parametrize("name", [n for n in names() if MACHINES.get(n, get("host")).gpu])
def test_every_gpu_is_whole(name):
    gpu = get(name).gpu
    assert all(gpu.runs_on(n) for n in gpu.images) and not gpu.runs_on(min(gpu.images) - 1)
    assert gpu.runs_on(120) == (gpu.ptx is not None)  # what comes later
    assert gpu.shared_static < gpu.shared < gpu.shared_all and gpu.threads <= gpu.resident
    assert {m.inputs for m in gpu.matrices} == {"float16", "bfloat16", "tfloat32", "int8", "uint8"}
    played = get(f"{name}-emulated")
    assert played.gpu == gpu and played.emulator is not None


@pytest.mark.parametrize(
    ("cpuinfo", "mcpu", "lanes", "fma_ports"),
    [
        ({"vendor_id": "AuthenticAMD", "cpu family": "25", "flags": ZEN4}, "znver4", 16, 1),
        ({"vendor_id": "AuthenticAMD", "cpu family": "26", "flags": f"{ZEN4} avx_vnni"}, "znver5", 16, 2),
        ({"vendor_id": "GenuineIntel", "model name": "Intel(R) Xeon(R) Gold", "flags": SPR}, "sapphirerapids", 16, 2),
        (
            {"vendor_id": "GenuineIntel", "model name": "Intel(R) Xeon(R)", "flags": " ".join(x86.ICELAKE)},
            "icelake-server",
            16,
            2,
        ),
        ({"vendor_id": "GenuineIntel", "model name": "Xeon", "flags": " ".join(x86.V4)}, "skylake-avx512", 16, 2),
        ({"vendor_id": "other", "flags": " ".join(x86.V4)}, "x86-64-v4", 16, 1),
        ({"vendor_id": "AuthenticAMD", "cpu family": "23", "flags": " ".join(x86.V3)}, "znver2", 8, 2),
        ({"vendor_id": "other", "flags": " ".join(x86.V3)}, "x86-64-v3", 8, 2),
        ({"vendor_id": "AuthenticAMD", "flags": ""}, "x86-64-v2", 4, 1),
    ],
)
def test_x86_detection(cpuinfo, mcpu, lanes, fma_ports):
    machine = x86.detect(cpuinfo, {"l1": 48 << 10, "l1_ways": 12}, cores=6)
    assert (machine.mcpu, machine.lanes, machine.fma_ports) == (mcpu, lanes, fma_ports)
    assert (machine.name, machine.l1, machine.l1_ways, machine.cores) == ("host", 48 << 10, 12, 6)


def test_tile_registers_count_only_where_the_system_hands_them_out():
    amx = next(m for _, m in x86.MICROARCHITECTURES if m.tiles is not None)
    cpu = {
        "vendor_id": "GenuineIntel",
        "model name": "Intel(R) Xeon(R)",
        "flags": " ".join(f.name for f in amx.features),
    }
    assert x86.detect(cpu, {}, 2, granted=lambda: True).tiles is not None
    plain = x86.detect(cpu, {}, 2, granted=lambda: False)
    assert plain.tiles is None and plain.mcpu == "sapphirerapids"
    assert not any(f.name.startswith("amx") for f in plain.features)


def test_arm_detection():
    features = " ".join(f.name for f in MACHINES["rpi5"].features)
    assert arm.detect({"CPU part": "0xd0b", "Features": features}, {}, 4).mcpu == "cortex-a76"
    assert arm.detect({"CPU part": "0xd0b", "Features": "asimd"}, {}, 4).mcpu == "generic"
    assert arm.detect({"CPU part": "0xd08", "Features": "fp asimd"}, {}, 4).mcpu == "cortex-a72"
    assert arm.detect({"CPU part": "0xd08", "Features": "neon vfpv4"}, {}, 4, bits=32).mcpu == "cortex-a7"


def test_cache_sizes_are_read_and_may_be_absent(tmp_path):
    assert x86.cache_sizes(tmp_path / "none") == {}
    rows = (
        ("1", "Data", "48K", "12"),
        ("1", "Instruction", "32K", "8"),
        ("3", "Unified", "36M", "x"),
        ("2", "?", "?", ""),
    )
    for i, row in enumerate(rows):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size", "ways_of_associativity"), row, strict=True):
            (folder / name).write_text(text + "\n")
    assert x86.cache_sizes(tmp_path) == {"l1": 48 << 10, "l1_ways": 12, "l3": 36 << 20}
