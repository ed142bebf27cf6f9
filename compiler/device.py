"""A Program for a GPU: tables of kernels and launches beside the tables of ``render``, and the images that they need.

What comes from a kernel's worker is its text (``kernels.device.text``); ``compile_images`` makes machine code of it for
every architecture of the machine, ``targets.fatbin`` puts these into one file a kernel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..targets import emulation, fatbin, nvrtc
from ..targets.gpu import Gpu
from ..targets.machine import Machine
from .cache import cache_dir, read_entry, write_entry
from .program import Entry, Phase, Program, Ref
from .render import base_index, table

WORKERS = 2


@dataclass(frozen=True)
class Kernel:
    """A kernel's text and geometry, as its worker wrote them."""

    name: str
    source: str
    blocks: int
    threads: int
    shared: int
    contract: bool


@dataclass(frozen=True)
class Module:
    """A file of machine code, and the kernels in it."""

    image: bytes
    kernels: tuple[str, ...]


def read_kernels(files: Sequence[Path]) -> list[Kernel]:
    """The kernels of ``compile_kernels``' files, in that order."""
    return [Kernel(file.stem, **json.loads(file.read_text())) for file in files]


def compile_images(kernels: Sequence[Kernel], machine: Machine) -> list[Module]:
    """Machine code of all kernels: a fat binary each, or one library of all where the GPU is played by this CPU."""
    gpu = machine.gpu
    assert gpu is not None
    if machine.emulator is not None:
        names = tuple(k.name for k in kernels)
        return [Module(emulation.compile_kernels([(k.name, k.source) for k in kernels]), names)]
    with ThreadPoolExecutor(WORKERS) as threads:
        return list(threads.map(lambda k: Module(fat_binary(k, gpu), (k.name,)), kernels))


def fat_binary(kernel: Kernel, gpu: Gpu) -> bytes:
    """A kernel for every architecture of the GPU, from the cache where it is there."""
    images = [(number, False) for number in gpu.images] + ([(gpu.ptx, True)] if gpu.ptx else [])
    return fatbin.write([(number, ptx, _image(kernel, number, ptx)) for number, ptx in images])


def _image(kernel: Kernel, number: int, ptx: bool) -> bytes:
    arch = nvrtc.architecture(number, ptx=ptx)
    texts = (kernel.source, nvrtc.PREAMBLE.read_text(), arch, str(kernel.contract), nvrtc.compiler_version())
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    entry = cache_dir() / "images" / key[:2] / key
    held = read_entry(entry)
    if held is None:
        held = nvrtc.compile_cuda(kernel.source, arch, contract=kernel.contract)
        write_entry(entry, held)
    return held


# -- tables ----------------------------------------------------------------------------------------------------------


def image_files(modules: Sequence[Module]) -> dict[str, bytes]:
    """The images by the name of their symbol's middle: ``nervure_module_0_image``."""
    return {f"module_{i}": module.image for i, module in enumerate(modules)}


def tables(program: Program, machine: Machine, kernels: Sequence[Kernel], modules: Sequence[Module]) -> str:
    """C tables that follow ``model.c``'s own: ``gpu_program`` is what its record points at."""
    gpu = machine.gpu
    assert gpu is not None
    held = {name: i for i, module in enumerate(modules) for name in module.kernels}
    number = {k.name: i for i, k in enumerate(kernels)}
    arguments: list[str] = []
    entries = "".join(_entry(program, e, i, number, arguments) for i, e in enumerate(program.entries))
    rows = [f'{{"{k.name}", {held[k.name]}, {k.blocks}, {k.threads}, {k.shared}}}' for k in kernels]
    parts = [
        "".join(f"extern const char nervure_module_{i}_image[];\n" for i in range(len(modules))),
        table(
            "nervure_module",
            "modules",
            (f"{{nervure_module_{i}_image, {len(m.image)}}}" for i, m in enumerate(modules)),
        ),
        table("nervure_kernel", "kernels", rows),
        entries,
        table("nervure_argument", "arguments", arguments),
        table("nervure_stream_entry", "stream_entries", (_entry_row(e, i) for i, e in enumerate(program.entries))),
        table("int32_t", "architectures", map(str, gpu.images)),
    ]
    fields = {
        "modules": "modules" if modules else "0",
        "kernels": "kernels" if kernels else "0",
        "arguments": "arguments" if arguments else "0",
        "entries": "stream_entries",
        "architectures": "architectures",
        "const_bytes": len(program.const),
        "module_count": len(modules),
        "kernel_count": len(kernels),
        "architecture_count": len(gpu.images),
        "ptx": gpu.ptx or 0,
    }
    body = "".join(f"    .{k} = {v},\n" for k, v in fields.items())
    return "\n".join(p for p in parts if p) + f"static const struct nervure_gpu_program gpu_program = {{\n{body}}};\n"


def _entry_row(entry: Entry, number: int) -> str:
    launches = any(s.phases for s in entry.steps)
    return f"{{{f'launches_{number}' if launches else '0'}, {f'gpu_step_ends_{number}' if entry.steps else '0'}}}"


def _entry(program: Program, entry: Entry, number: int, kernels: Mapping[str, int], arguments: list[str]) -> str:
    launches, ends = [], []
    for step in entry.steps:
        for phase in step.phases:
            launches.append(f"{{{kernels[phase.kernel]}, {len(arguments)}, {len(phase.args)}}}")
            arguments += [_argument(program, phase, ref) for ref in phase.args]
        ends.append(str(len(launches)))
    return table("nervure_launch", f"launches_{number}", launches) + table("int32_t", f"gpu_step_ends_{number}", ends)


def _argument(program: Program, phase: Phase, ref: Ref) -> str:
    """A worker's own scratch is that of the one worker: where the calling thread's lies."""
    at = Ref("region", phase.scratch.offset + ref.offset, phase.scratch.index) if ref.base == "worker" else ref
    return f"{{{base_index(program, at)}, {at.offset}}}"


def facts(machine: Machine, kernels: Sequence[Kernel], modules: Sequence[Module]) -> dict[str, Any]:
    """What an artifact says about its GPU code."""
    gpu = machine.gpu
    assert gpu is not None
    return {
        "architectures": list(gpu.images),
        "ptx": gpu.ptx,
        "emulated": machine.emulator is not None,
        "image_bytes": sum(len(m.image) for m in modules),
        "kernels": {k.name: [k.blocks, k.threads, k.shared] for k in kernels},
    }
