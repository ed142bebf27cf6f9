"""Nvidia GPUs: one row an architecture, and ``cuda``, which is all of them and PTX for what comes later.

The host's side of a row is the baseline of the CPU that such a GPU sits beside. Sources: CUDA C++ Programming Guide
(compute capabilities), white papers and data sheets of A100, Jetson AGX Orin, RTX 4090 and H100 SXM.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import arm, x86
from .gpu import Gpu, Matrix
from .machine import Machine


def _matrices(half: int) -> tuple[Matrix, ...]:
    """The warp-wide instructions of compute capability 8.0 and later; ``half``: float16 multiply-adds a cycle."""
    return (
        Matrix("nv_mma_f16", "float16", "float32", 16, 8, 16, 4, 2, 4, half),
        Matrix("nv_mma_bf16", "bfloat16", "float32", 16, 8, 16, 4, 2, 4, half),
        Matrix("nv_mma_tf32", "tfloat32", "float32", 16, 8, 8, 4, 2, 4, half / 2),
        Matrix("nv_mma_s8", "int8", "int32", 16, 8, 32, 4, 2, 4, half * 2),
        Matrix("nv_mma_u8s8", "uint8", "int32", 16, 8, 32, 4, 2, 4, half * 2),  # a of uint8, b of int8
    )


SM80 = Gpu(
    images=(80,),
    ptx=None,
    board="A100 SXM",
    multiprocessors=108,
    clock=1.41e9,
    fma=64,
    special=16,
    matrices=_matrices(1024),
    shared=163 << 10,
    shared_all=164 << 10,
    bandwidth=1.555e12,
    l2=40 << 20,
)
SM87 = replace(
    SM80,
    images=(87,),
    board="Jetson AGX Orin",
    multiprocessors=16,
    clock=1.3e9,
    fma=128,
    matrices=_matrices(512),
    resident=1536,
    blocks=16,
    bandwidth=2.048e11,
    l2=4 << 20,
    launch=3e-6,
)
SM89 = replace(
    SM80,
    images=(89,),
    board="RTX 4090",
    multiprocessors=128,
    clock=2.52e9,
    fma=128,
    matrices=_matrices(256),
    shared=99 << 10,
    shared_all=100 << 10,
    resident=1536,
    blocks=24,
    bandwidth=1.008e12,
    l2=72 << 20,
)
SM90 = replace(
    SM80,
    images=(90,),
    board="H100 SXM",
    multiprocessors=132,
    clock=1.755e9,
    fma=128,
    matrices=_matrices(1300),  # what mma.sync reaches; 2048 only by warp groups
    shared=227 << 10,
    shared_all=228 << 10,
    bandwidth=3.35e12,
    l2=50 << 20,
)
EVERY = replace(SM89, images=(80, 87, 89, 90), ptx=90, board="RTX 4090", launch=1.5e-6)


def beside(machine: Machine, host: Machine) -> Machine:
    """A GPU's target with another host."""
    assert machine.gpu is not None
    return _machine(machine.name, host, machine.gpu)


def _machine(name: str, host: Machine, gpu: Gpu) -> Machine:
    llvm: dict[str, Any] = {"mtriple": host.llvm["mtriple"], "mcpu": _BASELINE[host.family]}
    return replace(
        host,
        name=name,
        llvm={"kind": "cuda", "arch": f"sm_{gpu.images[0]}", **llvm},
        zig_cpu=host.zig_baseline,
        lanes=1,
        registers=32,
        instructions=(),
        features=(),
        tiles=None,
        system="cuda",
        align=256,
        emulator=None,
        gpu=gpu,
    )


PLAYED = "libnervure-gpu.so"  # the driver of such a GPU
EMULATED = "-emulated"  # after a target's name: its GPU is played by this CPU (``targets.emulation``)
_BASELINE = {"x86": "x86-64", "arm": "generic"}
HOST, ORIN = x86.BASE, next(m for m in arm.MACHINES if m.name == "aarch64")
HOSTS = {"x86_64": HOST, "AMD64": HOST, "aarch64": ORIN, "arm64": ORIN}  # by the system's name of the CPU
MACHINES = (
    _machine("cuda-sm80", HOST, SM80),
    _machine("cuda-sm87", ORIN, SM87),
    _machine("cuda-sm89", HOST, SM89),
    _machine("cuda-sm90", HOST, SM90),
    _machine("cuda", HOST, EVERY),
)
