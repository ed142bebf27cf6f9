"""From a Program and its kernel objects to an artifact: ``build_library``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.arrays import check_array, host_dtype
from ..runtime.artifact import DIGEST_BYTES, FORMAT, Artifact, digest_of, find_note, read_artifact
from ..targets import Machine, elf, emulator, firmware, toolchain
from ..targets.files import header_of, temporary_folder, write_atomic
from . import bare, device, device_header, render
from .names import entry_names, prefix
from .plan.liveness import stored_rows
from .program import Entry, Port, Program, Step, Stored


def build_artifact(program: Program, objects: Sequence[Path], machine: Machine, out: Path) -> Artifact:
    """Writes what runs on ``machine``: a shared library where there is a system to load it, else a static one."""
    return {"linux": build_library, "bare": build_archive, "cuda": build_library}[machine.system](
        program, objects, machine, out
    )


def build_archive(program: Program, objects: Sequence[Path], machine: Machine, out: Path) -> Artifact:
    """As ``build_library``, but a static library for a program without an operating system."""
    out = Path(out)
    with temporary_folder() as folder:
        for name, data in bare.sources(program, machine.align).items():
            (folder / name).write_bytes(data)
        parts = toolchain.build_objects(folder, objects, machine)
        flash = elf.section_bytes((folder / parts[0]).read_bytes())
        if flash.pop("writable"):
            raise toolchain.ToolError("the code of a static library keeps something in memory of its own")
        block = describe(program, machine) | describe_bare(program, machine, flash)
        text = bytes(DIGEST_BYTES) + json.dumps(block, **CANONICAL).encode()
        library = seal(toolchain.build_archive(folder, parts, machine, block=text).read_bytes())
    write_atomic(out, library)
    write_atomic(header_of(out), bare.header(program, machine.align, flash).encode())
    return read_artifact(out)


def describe_bare(program: Program, machine: Machine, flash: Mapping[str, int]) -> dict[str, Any]:
    """What differs in the description of a static library: no context but the regions, bytes of flash."""
    names, sizes = bare.region_names(program), bare.region_bytes(program, machine.align)
    return {
        "context_bytes": sum(sizes),
        "context_worker_bytes": 0,
        "bare": {
            "align": machine.align,
            "regions": [{"name": n, "bytes": b} for n, b in zip(names, sizes, strict=True)],
            "kept_bytes": bare.kept(program, machine.align)["region"],
            "flash": {**flash, "weights": sum(map(len, render.images(program).values()))},
        },
    }


def build_library(program: Program, objects: Sequence[Path], machine: Machine, out: Path) -> Artifact:
    """Writes the shared library ``out`` and ``out`` with suffix ``.h`` beside it; returns the artifact, read back.

    ``objects`` are the kernels, plain C functions compiled for ``machine``. The same arguments give the same bytes.
    ``NervureError`` where ``out`` cannot be written, ``ToolError`` where the kernels do not link.
    """
    out = Path(out)
    with temporary_folder() as folder:
        code, more = _device_code(program, objects, machine) if machine.gpu else (None, {})
        files = render.sources(program, machine, code)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        block = bytes(DIGEST_BYTES) + json.dumps(describe(program, machine) | more, **CANONICAL).encode()
        library = toolchain.build(folder, [] if machine.gpu else objects, machine, name=prefix(program), block=block)
        data = seal(library.read_bytes())
    write_atomic(out, data, mode=0o755)
    write_atomic(out.with_suffix(".h"), files["model.h"])
    return read_artifact(out)


def _device_code(program: Program, files: Sequence[Path], machine: Machine) -> tuple[render.DeviceCode, dict[str, Any]]:
    """What a GPU runs, and what the artifact says of it."""
    kernels = device.read_kernels(files)
    modules = device.compile_images(kernels, machine)
    size = device.context_bytes(program)
    code = render.DeviceCode(
        device.tables(program, machine, kernels, modules),
        device.image_files(modules),
        device_header.FUNCTIONS,
        device_header.words(program),
        size,
    )
    facts = {"gpu": device.facts(program, machine, kernels, modules)}
    return code, facts | {"context_bytes": size, "context_worker_bytes": 0}


def run_elsewhere(
    artifact: Artifact,
    machine: Machine,
    inputs: Mapping[str, np.ndarray],
    *,
    entry: str | None = None,
    threads: int = 1,
) -> list[np.ndarray]:
    """Runs an artifact in a process of its own, under ``machine``'s emulator where it is foreign.

    ``inputs`` by name as for ``Session.run``, already of the right dtypes and shapes; all outputs at full bound.
    """
    chosen = artifact.entry(entry) if entry else artifact.entries[0]
    given = [check_array(inputs[p.name], p, "input").tobytes() for p in chosen.inputs]
    wanted = [math.prod(p.shape) * host_dtype(p.dtype).itemsize for p in chosen.outputs]
    if machine.system == "bare":
        results: Sequence[bytes] = measure(artifact, machine, given, wanted, chosen.name).outputs
    else:
        number = artifact.entries.index(chosen)
        results = emulator.run(
            artifact.path,
            machine,
            prefix=artifact.prefix,
            entry=number,
            inputs=given,
            output_bytes=wanted,
            threads=threads,
        )
    pairs = zip(results, chosen.outputs, strict=True)
    return [np.frombuffer(data, host_dtype(p.dtype)).reshape(p.shape) for data, p in pairs]


def measure(
    artifact: Artifact,
    machine: Machine,
    inputs: Sequence[bytes],
    output_bytes: Sequence[int],
    entry: str = "infer",
    count: bool = False,
) -> firmware.Measured:
    """One run of an entry of a static library in its machine's emulator: outputs, stack, arena, instructions."""
    return firmware.measure(
        artifact.path,
        machine,
        prefix=artifact.prefix,
        entry=entry,
        inputs=inputs,
        output_bytes=output_bytes,
        regions=[r["name"] for r in artifact.block["bare"]["regions"]],
        count=count,
    )


CANONICAL: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": True, "allow_nan": False}


def seal(data: bytes) -> bytes:
    """The library with the digest of all its other bytes filled in."""
    at = find_note(Path("library.so"), data)[2][0]
    return data[:at] + digest_of(data, at) + data[at + DIGEST_BYTES :]


def describe(program: Program, machine: Machine) -> dict[str, Any]:
    """The artifact's block as plain data: everything that can be known without loading it. No time, no path."""
    images = render.images(program)
    base, worker = render.context_bytes(program)
    return {
        "format": FORMAT,
        "name": program.name,
        "prefix": prefix(program),
        "entries": [_entry(e, n, machine) for e, n in zip(program.entries, entry_names(program), strict=True)],
        "params": [_stored(s) for s in program.params],
        "states": [_stored(s) for s in program.states],
        "regions": [{"name": r.name, "bytes": r.nbytes} for r in program.regions],
        "params_bytes": render.block_bytes(program.params),
        "states_bytes": render.block_bytes(program.states),
        "derived_bytes": program.derived_bytes,
        "export_bytes": render.blob_bytes(program),
        "context_bytes": base,
        "context_worker_bytes": worker,
        "weights_bytes": len(program.const) + sum(s.type.nbytes for s in program.params),
        "image_bytes": sum(map(len, images.values())),
        "machine": {
            "name": machine.name,
            "mcpu": machine.mcpu,
            "family": machine.family,
            "features": [f.name for f in machine.features],
        },
        "meta": program.meta,
    }


def _entry(entry: Entry, name: str, machine: Machine) -> dict[str, Any]:
    return {
        "name": name,
        "function": entry.function,
        "bindings": entry.bindings,
        "inputs": [_port(p) for p in entry.inputs],
        "outputs": [_port(p) for p in entry.outputs],
        "steps": [_step(s) for s in entry.steps],
        "region_bytes": list(entry.region_bytes),
        "worker_bytes": entry.worker_bytes,
        "lower_bound": entry.lower_bound,
        **({"buffers": stored_rows(entry)} if machine.system == "bare" else {}),
    }


def _port(port: Port) -> dict[str, Any]:
    row: dict[str, Any] = {"name": port.name, "dtype": port.type.dtype, "shape": list(port.type.dims)}
    if port.count is not None:
        row |= {"count": port.count, "count_axis": port.count_axis}
    if port.scale is not None:
        row |= {"scale": port.scale[0], "zero_point": port.scale[1]}
    return row


def _stored(stored: Stored) -> dict[str, Any]:
    return {
        "name": stored.name,
        "dtype": stored.type.dtype,
        "shape": list(stored.type.dims),
        "offset": stored.offset,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "op": step.op,
        "origin": list(step.origin),
        "flops": step.flops,
        "bytes": step.bytes_moved,
        "weight_bytes": step.weight_bytes,
        "detail": step.detail,
        "kernels": [p.kernel for p in step.phases],
    }
