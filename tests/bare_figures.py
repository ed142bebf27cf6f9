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
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.channels import drop_idle_channels
from nervure.frontends.onnx import load
from nervure.runtime.arrays import host_dtype
from nervure.runtime.artifact import Artifact
from nervure.targets import boards, firmware, toolchain
from nervure.targets.files import temporary_folder
from nervure.targets.firmware import Measured
from nervure.targets.machine import Machine

NAMES = ("ad", "ic", "kws", "vww")
TARGETS = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")

# Arm's kernels in their best configuration (-O2, requantization in inline assembler): instructions of one inference on
# Cortex-M4, CMSIS-NN at commit 99f736a63036613032f9b70de36b493bcd7802d4, gcc 12.2.1, QEMU 7.2.
CMSIS_NN = {"ad": 570_152, "ic": 28_500_588, "kws": 7_223_144, "vww": 22_599_376}
# The same by layer (kind, multiply-accumulates, instructions), but of its default build, -O3: of the best one only
# totals are known.
CMSIS_NN_LAYERS: Mapping[str, tuple[tuple[str, int, int], ...]] = {
    "ad": (
        ("fc", 81_920, 160_040),
        ("fc", 16_384, 37_200),
        ("fc", 16_384, 37_160),
        ("fc", 16_384, 37_160),
        ("fc", 1_024, 2_440),
        ("fc", 1_024, 8_320),
        ("fc", 16_384, 37_200),
        ("fc", 16_384, 37_160),
        ("fc", 16_384, 37_160),
        ("fc", 81_920, 185_440),
    ),
    "ic": (
        ("conv", 442_368, 2_134_120),
        ("conv", 2_359_296, 5_487_480),
        ("conv", 2_359_296, 5_487_520),
        ("add", 0, 1_333_640),
        ("conv", 1_179_648, 2_519_240),
        ("conv", 2_359_296, 4_542_360),
        ("conv", 131_072, 562_880),
        ("add", 0, 670_440),
        ("conv", 1_179_648, 2_188_600),
        ("conv", 2_359_296, 4_155_280),
        ("conv", 131_072, 420_640),
        ("add", 0, 335_200),
        ("avgpool", 0, 26_560),
        ("fc", 640, 1_840),
        ("softmax", 0, 3_840),
    ),
    "kws": (
        ("conv", 320_000, 1_111_160),
        ("dw", 72_000, 599_640),
        ("conv", 512_000, 1_068_920),
        ("dw", 72_000, 599_640),
        ("conv", 512_000, 1_068_960),
        ("dw", 72_000, 599_600),
        ("conv", 512_000, 1_068_960),
        ("dw", 72_000, 599_640),
        ("conv", 512_000, 1_068_920),
        ("avgpool", 0, 51_000),
        ("fc", 768, 2_200),
        ("softmax", 0, 3_480),
    ),
    "vww": (
        ("conv", 497_664, 3_063_040),
        ("dw", 165_888, 1_651_120),
        ("conv", 294_912, 1_954_960),
        ("dw", 82_944, 771_320),
        ("conv", 294_912, 1_168_720),
        ("dw", 165_888, 1_471_080),
        ("conv", 589_824, 1_589_560),
        ("dw", 41_472, 368_160),
        ("conv", 294_912, 801_200),
        ("dw", 82_944, 706_560),
        ("conv", 589_824, 1_226_640),
        ("dw", 20_736, 176_800),
        ("conv", 294_912, 635_240),
        ("dw", 41_472, 335_000),
        ("conv", 589_824, 1_079_200),
        ("dw", 41_472, 334_960),
        ("conv", 589_824, 1_079_200),
        ("dw", 41_472, 334_960),
        ("conv", 589_824, 1_079_200),
        ("dw", 41_472, 335_000),
        ("conv", 589_824, 1_079_160),
        ("dw", 41_472, 335_000),
        ("conv", 589_824, 1_079_160),
        ("dw", 10_368, 83_800),
        ("conv", 294_912, 634_840),
        ("dw", 20_736, 152_920),
        ("conv", 589_824, 1_164_240),
        ("avgpool", 0, 17_520),
        ("fc", 512, 1_200),
        ("softmax", 0, 1_200),
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
    """One step: its output's name, fused operators, kernels, multiply-accumulates (roughly) and instructions."""

    name: str
    op: str
    detail: str
    macs: float
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
    sections that can be written, which there must be none of. ``weights``: ``weight_bytes`` of the source model.
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
    layers = by_layer(artifact, got) if count else ()
    total = sum(got.instructions.values())
    return Run(outputs, total, layers, got.instructions, sum(got.touched), got.stack)


def by_layer(artifact: Artifact, got: Measured) -> tuple[Layer, ...]:
    """Instructions of each step, call by call."""
    steps = artifact.block["entries"][0]["steps"]
    spent = got.by_step([s["kernels"] for s in steps])
    return tuple(Layer(s["name"], s["op"], s["detail"], s["flops"] / 2, n) for s, n in zip(steps, spent, strict=True))


def beside(model: str, layers: Sequence[Layer]) -> list[int]:
    """CMSIS-NN's instructions for what each of our layers does: its layers in order where there are as many, else the
    first of nearly as many multiply-accumulates; with it the addition that we do in a convolution."""
    left = list(CMSIS_NN_LAYERS.get(model, ()))
    if len(left) == len(layers):
        return [instructions for _, _, instructions in left]

    def take(kinds: Sequence[str], macs: float) -> int:
        there = [x for x in left if x[0] in kinds]
        if not there:
            return 0
        nearest = min(abs(x[1] - macs) for x in there)
        chosen = next(x for x in there if abs(x[1] - macs) <= nearest + 0.1 * macs)
        left.remove(chosen)
        return chosen[2]

    found = []
    for layer in layers:
        ops = layer.op.split("+")
        first = next((kind for kind in _KINDS if any(kind in op for op in ops)), None)
        total = take(_KINDS[first], layer.macs) if first else 0
        found.append(total + (take(("add",), 0) if first == "conv" and "add_integer" in ops else 0))
    return found


# What a step is called, and what CMSIS-NN's layers are.
_KINDS = {"conv": ("conv", "dw"), "matmul": ("fc",), "pool": ("avgpool",), "softmax": ("softmax",), "add": ("add",)}


def weight_bytes(path: Path) -> int:
    """Bytes of the weights and biases that a program of an ONNX file cannot do without: of its convolutions and
    products, without channels that are idle (``drop_idle_channels``) or whose weights are all zero. Scales are no
    weights."""
    graph = drop_idle_channels(canonicalize(load(path, free_dims(path))))
    total = 0
    for key in graph:
        node, args = graph.node(key), graph.args(key)
        w = graph.constant(args[1]) if node.op.split("_")[0] in ("conv", "matmul") else None
        if w is None:
            continue
        rows = w.reshape(len(w), -1) if node.op.startswith("conv") else w.reshape(-1, w.shape[-1]).T
        bias = graph.constant(args[2]) if len(args) > 2 else None
        each = rows.shape[1] * w.itemsize + (0 if bias is None else bias.itemsize)
        total += int(rows.any(axis=1).sum()) * each
    return total


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
        split = "".join(f"  .{part} : {{ {where} }} > {flash}\n" for part, where in PARTS)
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


# Output sections and the input sections that they are filled from. Kernels come with one section for all.
PARTS = (
    ("kernels", "*libmodel.a:model.o(.text .text.k_* .rodata.cst*)"),
    ("entry", "*libmodel.a:model.o(.text.* .rodata .rodata.*)"),
    ("constants", "*libmodel.a:images.o(.rodata .rodata.*)"),
    ("helpers", "*compiler_rt*(.text .text.* .rodata .rodata.*)"),
)


def _sections(data: bytes) -> dict[str, int]:
    """Allocated sections of a 32-bit program and their bytes."""
    (start,) = struct.unpack_from("<I", data, 32)
    width, count, names = struct.unpack_from("<HHH", data, 46)
    rows = [struct.unpack_from("<IIIIIII", data, start + i * width) for i in range(count)]
    text = rows[names][4]
    return {data[text + r[0] : data.index(b"\0", text + r[0])].decode(): r[5] for r in rows if r[2] & 2}


def samples(name: str) -> np.ndarray:
    """64 inputs for calibrating a float model of MLPerf Tiny: of ``../shared/data``, but random for ``ad``."""
    import models

    data = Path(models.SHARED) / "data"
    random = np.random.default_rng(7)
    if name == "ad":
        return random.standard_normal((64, 640)).astype(np.float32)
    if name == "kws":
        with np.load(data / "kws_500.npz") as held:
            return ((held["x"][:64].astype(np.float32) - 83) * 0.5847029)[..., None]
    with np.load(data / "cifar10_subset.npz") as held:
        pictures = held["x_train"][:64].astype(np.float32)
    return pictures if name == "ic" else pictures.repeat(3, axis=1).repeat(3, axis=2) / 255
