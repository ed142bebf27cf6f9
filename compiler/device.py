"""A Program for a GPU: tables of kernels and launches beside the tables of ``render``, and the images that they need.

What comes from a kernel's worker is its text (``kernels.device.text``); ``compile_images`` makes machine code of it for
every architecture of the machine, ``targets.fatbin`` puts these into one file a kernel.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..targets import emulation, fatbin, nvrtc
from ..targets.cuda import PLAYED
from ..targets.gpu import Gpu
from ..targets.machine import Machine
from .cache import cache_dir, read_entry, write_entry
from .program import Entry, Phase, Program, Ref
from .render import HEADER_BYTES, REGION_BASE, base_index, block_bytes, most_ports, round_up, table

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
        return [Module(emulation.compile_kernels([(k.name, k.source) for k in kernels], machine.zig_target), names)]
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
        table("nervure_gpu_entry", "gpu_entries", _entry_rows(program)),
        table("int32_t", "architectures", map(str, gpu.images)),
    ]
    fields = {
        "modules": "modules" if modules else "0",
        "driver": f'"{PLAYED}"' if machine.emulator is not None else "0",
        "kernels": "kernels" if kernels else "0",
        "arguments": "arguments" if arguments else "0",
        "entries": "gpu_entries" if program.entries else "0",
        "architectures": "architectures",
        "const_bytes": len(program.const),
        "words": sum(map(_words, program.entries)),
        "module_count": len(modules),
        "kernel_count": len(kernels),
        "architecture_count": len(gpu.images),
        "most_arguments": _most_arguments(program),
        "most_steps": _most_steps(program),
        "ptx": gpu.ptx or 0,
        "cuda": 0 if machine.emulator is not None else _cuda_version(nvrtc.compiler_version()),
    }
    body = "".join(f"    .{k} = {v},\n" for k, v in fields.items())
    return "\n".join(p for p in parts if p) + f"static const struct nervure_gpu_program gpu_program = {{\n{body}}};\n"


def _cuda_version(compiler: str) -> int:
    """CUDA's own number of its version (13050 for 13.5) from the compiler's name; 0 where that says none."""
    found = re.search(r"(\d+)\.(\d+)", compiler)
    return 1000 * int(found[1]) + 10 * int(found[2]) if found else 0


def _phases(entry: Entry) -> list[Phase]:
    return [p for s in entry.steps for p in s.phases]


def _port_launches(entry: Entry) -> int:
    """Launches that know an address of the caller."""
    return sum(any(r.base in ("input", "output") for r in p.args) for p in _phases(entry))


def _words(entry: Entry) -> int:
    """Words of a context for an entry's two recordings: graph and its executable form, the ports' addresses, nodes."""
    ports = len(entry.inputs) + len(entry.outputs)
    return (2 + 2 * ports) + (2 + ports + _port_launches(entry))


def _most_arguments(program: Program) -> int:
    return max((len(p.args) for e in program.entries for p in _phases(e)), default=0)


def _most_steps(program: Program) -> int:
    return max((len(e.steps) for e in program.entries), default=0)


def context_bytes(program: Program) -> int:
    """Bytes of a context in the host's memory; as ``nervure_context_bytes`` of runtime/c/cuda has it."""
    bases = REGION_BASE + len(program.regions) + sum(most_ports(program))
    words = (bases, bases, *[_most_arguments(program)] * 2, _most_steps(program) + 1, sum(map(_words, program.entries)))
    size = HEADER_BYTES + sum(round_up(8 * n) for n in words)
    return size + round_up(block_bytes(program.params)) + round_up(block_bytes(program.states))


def device_bytes(program: Program) -> int:
    """Bytes of each context in the device's memory; constants and code come on top, once for all contexts."""
    kept = block_bytes(program.params) + block_bytes(program.states) + program.derived_bytes
    return kept + sum(r.nbytes for r in program.regions)


def pinned_bytes(program: Program) -> int:
    """Bytes of each context on the host, where the device reaches them: slots of inputs and outputs."""
    ports = [[*e.inputs, *e.outputs] for e in program.entries]
    return max((sum(round_up(p.type.nbytes) for p in held) for held in ports), default=0)


def _entry_rows(program: Program) -> Iterator[str]:
    at = 0
    for i, entry in enumerate(program.entries):
        phases = _phases(entry)
        states = any(r.base == "state" for p in phases for r in p.args)
        launches, ends = f"launches_{i}" if phases else "0", f"gpu_step_ends_{i}" if entry.steps else "0"
        yield f"{{{launches}, {ends}, {_port_launches(entry)}, {int(states)}, {at}}}"
        at += _words(entry)


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


def facts(program: Program, machine: Machine, kernels: Sequence[Kernel], modules: Sequence[Module]) -> dict[str, Any]:
    """What an artifact says about its GPU code, and the memory that it needs there (bytes)."""
    gpu = machine.gpu
    assert gpu is not None
    return {
        "architectures": list(gpu.images),
        "ptx": gpu.ptx,
        "emulated": machine.emulator is not None,
        "driver": PLAYED if machine.emulator is not None else "libcuda.so.1",
        "image_bytes": sum(len(m.image) for m in modules),
        "kernels": {k.name: [k.blocks, k.threads, k.shared] for k in kernels},
        "device_bytes": device_bytes(program),
        "shared_bytes": len(program.const),
        "pinned_bytes": pinned_bytes(program),
    }
