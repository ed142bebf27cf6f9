"""What a model costs on a bare machine: instructions by layer, RAM, and bytes of the linked program.

Instructions are counted by a plugin of QEMU over exactly one inference; they are not cycles. RAM is what one inference
touched of painted memory: the arena, which holds the slots of inputs and outputs, and the stack.
"""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nervure.compiler.library import measure
from nervure.compiler.names import distinct
from nervure.runtime.arrays import host_dtype
from nervure.runtime.artifact import Artifact
from nervure.targets import boards, firmware, toolchain
from nervure.targets.files import temporary_folder
from nervure.targets.machine import Machine

NAMES = ("ad", "ic", "kws", "vww")
TARGETS = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")

# Arm's kernels in their best configuration (-O2, requantization in inline assembler): instructions of one inference on
# Cortex-M4, CMSIS-NN at commit 99f736a63036613032f9b70de36b493bcd7802d4, gcc 12.2.1, QEMU 7.2.
CMSIS_NN = {"ad": 570_152, "ic": 28_500_588, "kws": 7_223_144, "vww": 22_599_376}
# The same by layer, but of its default build (-O3): only totals are known of the best one.
CMSIS_NN_DEFAULT = {"ad": 579_215, "ic": 29_869_592, "kws": 7_841_974, "vww": 24_710_539}
CMSIS_NN_LAYERS: Mapping[str, tuple[int, ...]] = {
    "ad": (160_040, 37_200, 37_160, 37_160, 2_440, 8_320, 37_200, 37_160, 37_160, 185_440),
    "ic": (
        *(2_134_120, 5_487_480, 5_487_520, 1_333_640, 2_519_240, 4_542_360, 562_880, 670_440, 2_188_600, 4_155_280),
        *(420_640, 335_200, 26_560, 1_840, 3_840),
    ),
    "kws": (
        *(1_111_160, 599_640, 1_068_920, 599_640, 1_068_960, 599_600, 1_068_960, 599_640, 1_068_920, 51_000),
        *(2_200, 3_480),
    ),
    "vww": (
        *(3_063_040, 1_651_120, 1_954_960, 771_320, 1_168_720, 1_471_080, 1_589_560, 368_160, 801_200, 706_560),
        *(1_226_640, 176_800, 635_240, 335_000, 1_079_200, 334_960, 1_079_200, 334_960, 1_079_200, 334_960),
        *(1_079_160, 335_000, 1_079_160, 83_800, 634_840, 152_920, 1_164_240, 17_520, 1_200, 1_200),
    ),
}
# TensorFlow Lite Micro's arenas, in KB of 1000 bytes (the stricter reading).
TFLM_ARENA = {"ad": 4_000, "ic": 56_000, "kws": 24_300, "vww": 103_700}

PROGRAM = """\
#include "semihosting.h"
#include "model.h"
%(blocks)s
int main(void) {
    @_memory memory = {%(starts)s};
    return @_init(&memory) != 0 || %(calls)s;
}
"""


@dataclass(frozen=True)
class Layer:
    """One step: its output's name, fused operators, instructions (None: it takes none of its own)."""

    name: str
    op: str
    detail: str
    instructions: float


@dataclass(frozen=True)
class Run:
    """One counted inference."""

    outputs: tuple[np.ndarray, ...]
    instructions: int
    layers: tuple[Layer, ...]
    by_function: Mapping[str, int]
    arena: int
    stack: int

    @property
    def ram(self) -> int:
        """Bytes: arena (inputs and outputs in it) and stack."""
        return self.arena + self.stack


@dataclass(frozen=True)
class Sizes:
    """Allocated bytes of the artifact's objects in a linked program whose unused sections are dropped.

    ``kernels`` (code and its literals), ``entry`` (the entry points' code), ``constants`` (the image), ``helpers``:
    the compiler's own functions that the program needs because of the artifact (not memcpy and its kin), ``written``:
    sections that can be written, which there must be none of. ``weights``: bytes of the weights and biases in the
    source model.
    """

    kernels: int
    entry: int
    constants: int
    helpers: int
    written: int
    weights: int

    @property
    def beyond(self) -> int:
        """Code and constants beyond the weights."""
        return self.kernels + self.entry + self.constants + self.helpers - self.weights


def reference_model(name: str) -> Path | None:
    """The reference int8 file of MLPerf Tiny; None where there is no ``../shared``."""
    import models  # type: ignore[import-not-found]

    path = Path(models.SHARED) / "models" / "quantized" / f"tiny_{name}01_int8.onnx"
    return path if path.exists() else None


def free_dims(path: Path) -> dict[str, int]:
    """Every free dimension of an ONNX file bound to 1."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return {d.dim_param: 1 for i in graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}


def compile_for(path: Path, target: str, out: Path, **options: Any) -> Artifact:
    """The static library ``out`` of an ONNX file."""
    import nervure as nv

    artifact = nv.compile(path, dims=free_dims(path), target=target, out=out, **options).artifact
    assert isinstance(artifact, Artifact)
    return artifact


def random_inputs(artifact: Artifact, seed: int = 0) -> list[np.ndarray]:
    """All values that an integer input can have, or normal numbers."""
    random = np.random.default_rng(seed)
    made = []
    for port in artifact.entries[0].inputs:
        dtype = np.dtype(host_dtype(port.dtype))
        if dtype.kind == "f":
            made.append(random.standard_normal(port.shape).astype(dtype))
        else:
            info = np.iinfo(dtype)
            made.append(random.integers(info.min, info.max + 1, port.shape).astype(dtype))
    return made


def run(artifact: Artifact, machine: Machine, inputs: Sequence[np.ndarray], *, count: bool = True) -> Run:
    """One inference in the emulator."""
    entry = artifact.entries[0]
    wanted = [math.prod(p.shape) * host_dtype(p.dtype).itemsize for p in entry.outputs]
    got = measure(artifact, machine, [x.tobytes() for x in inputs], wanted, entry.name, count=count)
    outputs = tuple(
        np.frombuffer(data, host_dtype(p.dtype)).reshape(p.shape)
        for data, p in zip(got.outputs, entry.outputs, strict=True)
    )
    layers = by_layer(artifact, got.instructions) if count else ()
    total = sum(got.instructions.values())
    return Run(outputs, total, layers, got.instructions, sum(got.touched), got.stack)


def by_layer(artifact: Artifact, counted: Mapping[str, int]) -> tuple[Layer, ...]:
    """Instructions of each step. Steps that share a kernel do the same work on other weights: each gets its part."""
    steps = artifact.block["entries"][0]["steps"]
    uses: dict[str, int] = {}
    for step in steps:
        for kernel in step["kernels"]:
            uses[kernel] = uses.get(kernel, 0) + 1
    return tuple(
        Layer(s["name"], s["op"], s["detail"], sum(counted.get(k, 0) / uses[k] for k in s["kernels"])) for s in steps
    )


def weight_bytes(path: Path) -> int:
    """Bytes of the weights and biases in an ONNX file: in a quantized one the numbers that are dequantized (scales and
    zero points are not weights), in a float one all float tensors of at least one axis."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            held[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    scales = {n for node in graph.node if "Linear" in node.op_type for n in node.input[1:]}
    data = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    floats = {n for n, a in held.items() if a.dtype == np.float32 and a.ndim > 0 and n not in scales}
    return sum(held[n].nbytes for n in sorted((data | floats) & set(held)))


def sizes(artifact: Artifact, machine: Machine, weights: int) -> Sizes:
    """Links the artifact to a program that calls every entry, each of its objects in a section of its own."""
    assert machine.board is not None
    regions = distinct(r["name"] for r in artifact.block["regions"])
    own, board = artifact.prefix, boards.get(machine.board)
    blocks = [f"static _Alignas(64) unsigned char block_{r}[{own.upper()}_{r.upper()}_BYTES + 1];" for r in regions]
    parts = {
        "blocks": "\n".join(blocks),
        "starts": ", ".join(f".{r} = block_{r}" for r in regions),
        "calls": " || ".join(f"@_{e.name}(&memory, 0, 0) != 0" for e in artifact.entries),
    }
    with temporary_folder() as folder:
        shutil.copyfile(artifact.path, folder / "libmodel.a")
        shutil.copyfile(artifact.path.with_suffix(".h"), folder / "model.h")
        (folder / "main.c").write_text((PROGRAM % parts).replace("@", own))
        (folder / "empty.c").write_text("int main(void) { return 0; }\n")
        for name in (*firmware.SUPPORT, "semihosting.h"):
            shutil.copyfile(firmware.BARE / name, folder / name)
        script = firmware.linker_script(board)
        flash = board.first("flash").name
        split = "".join(
            f"  .{part} : {{ {where}(.text .text.* .rodata .rodata.*) }} > {flash}\n" for part, where in PARTS
        )
        (folder / "link.ld").write_text(
            script.replace("SECTIONS {\n", "SECTIONS {\n  .vectors : { KEEP(*(.vectors)) } > " + flash + "\n" + split)
        )
        place = ("-target", machine.zig_target, f"-mcpu={machine.zig_cpu}", *toolchain.BARE_FLAGS, "-std=c11", "-I.")
        linking = ("-nostdlib", "-lcompiler_rt", "-Wl,-T,link.ld", "-Wl,--gc-sections")
        found = []
        for sources in (("empty.c",), ("main.c", "libmodel.a")):
            toolchain.run_zig(["cc", *place, *firmware.SUPPORT, *sources, *linking, "-o", "program.elf"], folder)
            found.append(_sections((folder / "program.elf").read_bytes()))
    before, after = found
    return Sizes(
        after.get(".kernels", 0),
        after.get(".entry", 0),
        after.get(".constants", 0),
        after.get(".helpers", 0) - before.get(".helpers", 0),
        after.get(".data", 0) - before.get(".data", 0),
        weights,
    )


# Output sections and what they are filled from.
PARTS = (
    ("kernels", "*libmodel.a:kernels.o"),
    ("entry", "*libmodel.a:model.o"),
    ("constants", "*libmodel.a:images.o"),
    ("helpers", "*compiler_rt*"),
)


def _sections(data: bytes) -> dict[str, int]:
    """Allocated sections of a 32-bit program and their bytes."""
    (start,) = struct.unpack_from("<I", data, 32)
    width, count, names = struct.unpack_from("<HHH", data, 46)
    rows = [struct.unpack_from("<IIIIIII", data, start + i * width) for i in range(count)]
    text = rows[names][4]
    return {data[text + r[0] : data.index(b"\0", text + r[0])].decode(): r[5] for r in rows if r[2] & 2}
