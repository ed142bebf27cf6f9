"""Programs for a GPU built by hand, over kernels given as CUDA C++: what the host runtime must do."""

from __future__ import annotations

import ctypes
import gc
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hand_programs import PROGRAMS, WEIGHTS, port
from nervure.compiler.library import build_library
from nervure.compiler.program import Entry, Phase, Program, Ref, Region, Step
from nervure.compiler.types import TensorType
from nervure.runtime.artifact import Artifact
from nervure.targets import cuda, emulation, get

# name: parameters, body of one thread, blocks, threads of a block
KERNELS = {
    "multiply": ("const float* x, const float* w, float* y", "int i = blockIdx.x; y[i] = x[i] * w[i % 64];", 64, 1),
    "multiply8": ("const float* x, const float* w, float* y", "int i = blockIdx.x; y[i] = x[i] * w[i % 64];", 512, 1),
    "count4": (
        "int* seen, int* out",
        "int i = threadIdx.x; seen[i] = i == 0 ? seen[0] + 1 : seen[i] + i + 1; out[i] = seen[i];",
        1,
        4,
    ),
    "add64": ("const float* x, float* w", "int i = threadIdx.x; w[i] = w[i] + x[i];", 1, 64),
    "twice64": ("const float* w, float* d", "int i = threadIdx.x; d[i] = 2.0f * w[i];", 1, 64),
    "copy": ("const float* x, float* y", "int i = blockIdx.x * 256 + threadIdx.x; y[i] = x[i];", 128, 256),
    "half": ("const float* x, float* y", "int i = blockIdx.x * 256 + threadIdx.x; y[i] = 0.5f * x[i];", 128, 256),
    "never": ("const float* x, float* y", "y[0] = x[0];", 0, 1),
    "fails": (
        "const float* x, float* y",
        "if (threadIdx.x == 0) y[0] = nv_shuffle(x[0], 1); else __syncthreads();",
        1,
        2,
    ),
    "sum90": (", ".join(["const float* x", *(f"const float* a{i}" for i in range(88)), "float* y"]), "", 1, 64),
}
TERMS = " + ".join(f"a{i}[i]" for i in range(88))
BODIES = {"sum90": f"int i = threadIdx.x; y[i] = x[i] + {TERMS};"}


def write_kernels(folder: Path, names: list[str]) -> list[Path]:
    """The kernels as their workers write them."""
    files = []
    for name in names:
        parameters, body, blocks, threads = KERNELS[name]
        source = f'extern "C" __global__ void {name}({parameters}) {{ {BODIES.get(name, body)} }}\n'
        row = {"source": source, "blocks": blocks, "threads": threads, "shared": 0, "contract": False}
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(row))
    return files


def build(program: Program, folder: Path, target: str = "cuda-sm80") -> Artifact:
    """The artifact of a program for an emulated GPU."""
    files = write_kernels(folder, program.kernels())
    return build_library(program, files, emulation.emulated(get(target)), folder / f"{program.name}.so")


def step(kernel: str, *args: Ref, **more: int) -> Step:
    return Step(kernel, kernel, (Phase(kernel, args, **more),), origin=(f"line of {kernel}",))


INPUT, OUTPUT = Ref("input"), Ref("output")
BIG = 128 * 256


def scaled() -> Program:
    """Two batch sizes over the same constants: y = x * w."""
    entries = [
        Entry(
            "infer",
            (port("x", "float32", (batch, 64), 0),),
            (port("y", "float32", (batch, 64), 2048),),
            (step(kernel, INPUT, Ref("const"), OUTPUT),),
            bindings={"batch": batch},
            region_bytes=(4096,),
        )
        for batch, kernel in ((1, "multiply"), (8, "multiply8"))
    ]
    return Program("scaled", tuple(entries), const=WEIGHTS.tobytes(), regions=(Region("arena", 4096),))


def trained() -> Program:
    """``hand_programs.trainable``: parameters, a state, what is derived, a training step."""
    program = PROGRAMS["trainable"]()
    return replace(program, name="trained")


def chain(length: int = 3, name: str = "chain") -> Program:
    """An array of 128 KiB halved again and again, through the arena."""
    size = 4 * BIG
    places = [INPUT, *(Ref("region", size * (1 + i % 2)) for i in range(length - 1)), OUTPUT]
    entry = Entry(
        "infer",
        (port("x", "float32", (BIG,), 0),),
        (port("y", "float32", (BIG,), 3 * size),),
        tuple(step("half", a, b, tasks=2_000_000) for a, b in pairwise(places)),
        region_bytes=(4 * size,),
    )
    return Program(name, (entry,), regions=(Region("arena", 4 * size),))


def wide() -> Program:
    """A kernel of 90 arguments."""
    terms = [Ref("const", 256 * i) for i in range(88)]
    entry = Entry(
        "infer",
        (port("x", "float32", (64,), 0),),
        (port("y", "float32", (64,), 256),),
        (step("sum90", INPUT, *terms, OUTPUT),),
        region_bytes=(512,),
    )
    const = np.arange(88 * 64, dtype=np.float32).tobytes()
    return Program("wide", (entry,), const=const, regions=(Region("arena", 512),))


def odd() -> Program:
    """An entry without steps, ports of no bytes, a kernel of no blocks, an output that no kernel writes."""
    nothing = Entry("nothing", (), (), ())
    none = port("none", "float32", (0, 4), 0)
    entry = Entry(
        "infer",
        (none, port("x", "float32", (BIG,), 0)),
        (replace(none, name="empty"), port("y", "float32", (BIG,), 4 * BIG)),
        (step("never", Ref("input", index=1), OUTPUT), step("copy", Ref("input", index=1), Ref("output", index=1))),
        region_bytes=(8 * BIG,),
    )
    return Program("odd", (entry, nothing), regions=(Region("arena", 8 * BIG),))


def broken() -> Program:
    """A launch that fails: threads wait for each other at different places."""
    entry = Entry(
        "infer",
        (port("x", "float32", (64,), 0),),
        (port("y", "float32", (64,), 256),),
        (step("fails", INPUT, OUTPUT),),
        region_bytes=(512,),
    )
    return Program("broken", (entry,), regions=(Region("arena", 512),))


PROGRAMS_BY_NAME = {
    "scaled": scaled, "trained": trained, "chain": chain, "wide": wide, "odd": odd, "broken": broken,
}  # fmt: skip
assert TensorType("float32", (0, 4)).nbytes == 0


class Played:
    """The emulated driver of this process: its numbers (``targets/emulation/driver.cpp``)."""

    KINDS = ("contexts", "blocks", "bytes", "pinned", "modules", "streams", "events", "graphs", "execs", "overruns")
    SET = ("devices", "version", "capability", "memory", "deferred", "fault", "fault code")

    def __init__(self) -> None:
        emulation.install()
        self.code = ctypes.CDLL(cuda.PLAYED)
        self.code.emulated_get.restype = ctypes.c_longlong
        self.code.emulated_set.argtypes = (ctypes.c_char_p, ctypes.c_longlong)
        gc.collect()
        self._first = {name: self.get(name) for name in self.SET}

    def get(self, name: str) -> int:
        return int(self.code.emulated_get(name.encode()))

    def set(self, name: str, value: int) -> None:
        assert self.code.emulated_set(name.encode(), value) == 0, name

    def restore(self) -> None:
        for name, value in self._first.items():
            self.set(name, value)

    def live(self) -> dict[str, int]:
        """Objects that were made and not given back, and contexts left current."""
        return {name: self.get(name) for name in self.KINDS} | {"current": int(self.code.emulated_depth())}
