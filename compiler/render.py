"""A Program as source text: the C tables and stubs (``model.c``), the images, the linker's list of public names.

``sources`` gives every generated file by name; ``header.py`` writes ``model.h``. The C says what the Program says, no
more: one thunk for each distinct phase, tables of phases, steps and ports, and the public functions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..targets import Feature, Machine
from .header import header
from .names import comment, entry_names, prefix
from .program import ALIGN, Entry, Phase, Port, Program, Ref, Stored

FIXED_BASES = {"const": 0, "param": 1, "state": 2, "derived": 3}
REGION_BASE = len(FIXED_BASES)
HEADER_BYTES, WORKER_BYTES = 1024, 64  # as in runtime/c/nervure.h


@dataclass(frozen=True)
class DeviceCode:
    """What a program has whose kernels run on a GPU: C tables in place of those that call kernels, and images."""

    tables: str
    images: Mapping[str, bytes]
    functions: str  # the public ones that only such a program has
    words: Mapping[str, str]  # of model.h
    context_bytes: int


def sources(program: Program, machine: Machine, device: DeviceCode | None = None) -> dict[str, bytes]:
    """The generated files by name: ``model.c``, ``model.h``, ``images.S``, ``api.map`` and one ``.bin`` an image."""
    check(program, None if device else MAX_TASKS)
    held = images(program) | dict(device.images if device else {})
    files = {
        "model.c": model_c(program, machine, device).encode(),
        "model.h": header(program, device).encode(),
        "images.S": images_s(held).encode(),
        "api.map": f"{{ global: {prefix(program)}_*; local: *; }};\n".encode(),
    }
    return files | {f"{name}.bin": data for name, data in held.items()}


MAX_TASKS = 1_000_000  # NERVURE_MAX_TASKS of the C runtime


def check(program: Program, most_tasks: int | None = MAX_TASKS) -> None:
    """``ValueError`` for a Program that cannot be rendered (a bug of the planner)."""
    shapes: dict[str, tuple[int, bool]] = {}
    regions = len(program.regions)
    for entry in program.entries:
        for phase in (p for s in entry.steps for p in s.phases):
            if not re.fullmatch(r"[A-Za-z_]\w*", phase.kernel, re.ASCII):
                raise ValueError(f"kernel name {phase.kernel!r} is not a C identifier")
            shape = (len(phase.args), phase.ranged)
            if shapes.setdefault(phase.kernel, shape) != shape:
                raise ValueError(f"kernel {phase.kernel} is called with two signatures")
            if most_tasks is not None and phase.tasks > most_tasks:
                raise ValueError(f"kernel {phase.kernel} has {phase.tasks} tasks, more than {most_tasks}")
            for ref in phase.args:
                base_index(program, ref)
            if phase.scratch.base != "region":
                raise ValueError(f"the caller's scratch of {phase.kernel} lies in no region")
        for port in (*entry.inputs, *entry.outputs):
            if port.slot.base != "region" or port.slot.index >= regions or port.slot.offset % ALIGN:
                raise ValueError(f"port {port.name!r} of {entry.name} has no aligned slot in a region")
            region = program.regions[port.slot.index]
            if port.slot.offset + port.type.nbytes > region.nbytes:
                raise ValueError(f"port {port.name!r} of {entry.name} does not fit into region {region.name}")


def most_ports(program: Program) -> tuple[int, int]:
    """The most inputs and the most outputs of any entry."""
    inputs = max((len(e.inputs) for e in program.entries), default=0)
    return inputs, max((len(e.outputs) for e in program.entries), default=0)


def base_index(program: Program, ref: Ref) -> int:
    """The index of a Ref's base pointer in a context's table; -1 for the worker's own scratch."""
    regions, (inputs, _) = len(program.regions), most_ports(program)
    if ref.base == "worker":
        return -1
    if ref.base in FIXED_BASES:
        return FIXED_BASES[ref.base]
    first = {"region": 0, "input": regions, "output": regions + inputs}.get(ref.base)
    if first is None or (ref.base == "region" and ref.index >= regions):
        raise ValueError(f"no such place: {ref}")
    return REGION_BASE + first + ref.index


def round_up(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def block_bytes(stored: Sequence[Stored]) -> int:
    """Size of the block that holds these tensors."""
    return max((s.offset + s.type.nbytes for s in stored), default=0)


def block_image(stored: Sequence[Stored]) -> bytes:
    """The block's initial bytes, cut after the last that is not zero."""
    image = bytearray(block_bytes(stored))
    for s in stored:
        data = np.ascontiguousarray(s.value).tobytes()
        if len(data) != s.type.nbytes:
            raise ValueError(f"{s.name!r}: {len(data)} bytes for {s.type}")
        image[s.offset : s.offset + len(data)] = data
    return bytes(image).rstrip(b"\0")


def images(program: Program) -> dict[str, bytes]:
    """The blocks that the artifact carries, those without bytes left out."""
    all_images = {
        "const": program.const,
        "param": block_image(program.params),
        "state": block_image(program.states),
    }
    return {name: data for name, data in all_images.items() if data}


def worker_bytes(program: Program) -> int:
    return max((e.worker_bytes for e in program.entries), default=0)


def context_bytes(program: Program, *, regions: bool = True) -> tuple[int, int]:
    """Bytes of a context of one thread, and for each further one; as ``nervure_context_bytes`` has it."""
    inputs, outputs = most_ports(program)
    size = HEADER_BYTES + round_up(8 * (REGION_BASE + len(program.regions) + inputs + outputs))
    size += round_up(block_bytes(program.params)) + round_up(block_bytes(program.states))
    size += round_up(program.derived_bytes)
    if regions:
        size += sum(round_up(r.nbytes) for r in program.regions)
    return size, WORKER_BYTES + round_up(worker_bytes(program))


BLOB_HEADER_BYTES = 64  # NERVURE_BLOB_HEADER_BYTES of the C runtime


def transferred(program: Program) -> list[tuple[str, Stored]]:
    """``(kind, tensor)`` in the order in which a blob holds them, which is the same for every target."""
    params = sorted(program.params, key=lambda s: s.name)
    return [("param", s) for s in params] + [("state", s) for s in sorted(program.states, key=lambda s: s.name)]


def blob_bytes(program: Program) -> int:
    """Size of the blob that holds all params and states."""
    return BLOB_HEADER_BYTES + sum(s.type.nbytes for _, s in transferred(program))


def signature(program: Program) -> bytes:
    """SHA-256 of what a blob holds: kinds, names, types and shapes in its order."""
    rows = [[kind, s.name, s.type.dtype, list(s.type.dims)] for kind, s in transferred(program)]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).digest()


# -- model.c -------------------------------------------------------------------------------------------------------


def model_c(program: Program, machine: Machine, device: DeviceCode | None = None) -> str:
    thunks = _Thunks(program)
    entries = [_ports(e, i) + ("" if device else _calls(e, i, thunks)) for i, e in enumerate(program.entries)]
    parts = [
        '#include "model.h"\n#include "nervure.h"\n' + ('#include "gpu.h"\n' if device else ""),
        device.tables if device else kernel_declarations(program),
        "".join(f"extern const char nervure_{n}_image[];\n" for n in images(program)),
        "".join(f"{text}\n" for text in thunks.texts),
        *entries,
        _entry_table(program, calls=device is None),
        _features(machine.features),
        _program_record(program, machine, gpu=device is not None),
        _functions(program, device),
    ]
    return "\n".join(part for part in parts if part)


def kernel_declarations(program: Program, pointer: str = "void *") -> str:
    """The prototypes of all kernels, whose pointers are of that type."""
    declared = {
        p.kernel: [pointer] * len(p.args) + ["int32_t"] * 2 * p.ranged
        for e in program.entries
        for s in e.steps
        for p in s.phases
    }
    return "".join(f"void {k}({', '.join(declared[k]) or 'void'});\n" for k in sorted(declared))


class _Thunks:
    """One C function for each distinct kernel call, numbered in the order of first use."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.numbers: dict[tuple[str, tuple[Ref, ...]], int] = {}
        self.texts: list[str] = []

    def name(self, phase: Phase) -> str:
        key = (phase.kernel, phase.args)
        if key not in self.numbers:
            self.numbers[key] = len(self.texts)
            self.texts.append(self._text(phase, len(self.texts)))
        return f"phase_{self.numbers[key]}"

    def _text(self, phase: Phase, number: int) -> str:
        args = [self._pointer(r) for r in phase.args] + ["begin", "end"] * phase.ranged
        used = ", ".join(args)
        unused = [n for n in ("b", "w", "begin", "end") if not re.search(rf"\b{n}\b", used)]
        silence = "".join(f" (void){n};" for n in unused)
        head = f"static void phase_{number}(char *const *b, char *w, int32_t begin, int32_t end) {{"
        return f"{head}{silence} {phase.kernel}({used}); }}"

    def _pointer(self, ref: Ref) -> str:
        index = base_index(self.program, ref)
        base = "w" if index < 0 else f"b[{index}]"
        return f"{base} + {ref.offset}" if ref.offset else base


def table(ctype: str, name: str, rows: Iterable[str]) -> str:
    body = "".join(f"    {row},\n" for row in rows)
    return f"static const {ctype} {name}[] = {{\n{body}}};\n" if body else ""


def _ports(entry: Entry, number: int) -> str:
    return table("nervure_port", f"inputs_{number}", map(_port, entry.inputs)) + table(
        "nervure_port", f"outputs_{number}", map(_port, entry.outputs)
    )


def _calls(entry: Entry, number: int, thunks: _Thunks) -> str:
    rows: list[str] = []
    ends: list[str] = []
    for step in entry.steps:
        for phase in step.phases:
            ranged = phase.ranged and phase.tasks > 1  # a single task is the caller's: helpers need not look
            own = f"{phase.scratch.index}, {phase.scratch.offset}"
            rows.append(f"{{{thunks.name(phase)}, {phase.tasks}, {int(ranged)}, {own}}}")
        ends.append(str(len(rows)))
    return table("nervure_phase", f"phases_{number}", rows) + table("int32_t", f"step_ends_{number}", ends)


def _port(port: Port) -> str:
    return f"{{{port.slot.offset}, {port.type.nbytes}, {port.slot.index}, {port.type.itemsize}}}"


def _entry_table(program: Program, *, calls: bool = True) -> str:
    rows = []
    for i, e in enumerate(program.entries):
        phases = calls and any(s.phases for s in e.steps)
        fields = [
            f"phases_{i}" if phases else "0",
            f"step_ends_{i}" if calls and e.steps else "0",
            f"inputs_{i}" if e.inputs else "0",
            f"outputs_{i}" if e.outputs else "0",
            *map(str, (len(e.steps), len(e.inputs), len(e.outputs))),
            *(str(int(flag)) for flag in (e.updates_params, e.reads_derived, e.flush_denormals)),
        ]
        rows.append(f"{{{', '.join(fields)}}}")
    return table("nervure_entry", "entries", rows)


def _features(features: tuple[Feature, ...]) -> str:
    rows = []
    for f in features:
        text = f'"this CPU lacks {comment(f.name)}, which the model was compiled for"'
        if f.word.startswith("hwcap"):
            rows.append(f"{{{text}, {int(f.word == 'hwcap2')}, 0, 0, {f.bit}, 0}}")
        else:
            leaf, subleaf, register = f.word.split(".")
            rows.append(
                f"{{{text}, {leaf}u, {subleaf}, {('eax', 'ebx', 'ecx', 'edx').index(register)}, {f.bit}, {f.saved}}}"
            )
    return table("nervure_feature", "features", rows)


def _tensor(row: tuple[str, Stored]) -> str:
    kind, stored = row
    return f"{{{stored.offset}, {stored.type.nbytes}, {FIXED_BASES[kind]}}}"


def _program_record(program: Program, machine: Machine, *, gpu: bool = False) -> str:
    held = images(program)

    def block(name: str, stored: Sequence[Stored]) -> str:
        image = f"nervure_{name}_image" if name in held else "0"
        return f"{{{image}, {len(held.get(name, b''))}, {block_bytes(stored)}}}"

    inputs, outputs = most_ports(program)
    refresh = next((i for i, e in enumerate(program.entries) if e.function == "refresh"), -1)
    fields = {
        "entries": "entries" if program.entries else "0",
        "constants": "nervure_const_image" if "const" in held else "0",
        "params": block("param", program.params),
        "states": block("state", program.states),
        "derived_bytes": program.derived_bytes,
        "region_bytes": "region_bytes" if program.regions else "0",
        "param_offsets": "param_offsets" if program.params else "0",
        "state_offsets": "state_offsets" if program.states else "0",
        "tensors": "tensors" if program.params or program.states else "0",
        "features": "features" if machine.features else "0",
        "worker_bytes": worker_bytes(program),
        "blob_bytes": blob_bytes(program),
        "entry_count": len(program.entries),
        "region_count": len(program.regions),
        "param_count": len(program.params),
        "state_count": len(program.states),
        "tensor_count": len(program.params) + len(program.states),
        "feature_count": len(machine.features),
        "most_inputs": inputs,
        "most_outputs": outputs,
        "refresh": refresh,
        "signature": f"{{{', '.join(map(str, signature(program)))}}}",
        **({"gpu": "&gpu_program"} if gpu else {}),
    }
    tables = (
        table("size_t", "region_bytes", (str(r.nbytes) for r in program.regions))
        + table("size_t", "param_offsets", (str(s.offset) for s in program.params))
        + table("size_t", "state_offsets", (str(s.offset) for s in program.states))
        + table("nervure_tensor", "tensors", map(_tensor, transferred(program)))
    )
    body = "".join(f"    .{k} = {v},\n" for k, v in fields.items())
    return f"{tables}static const nervure_program program = {{\n{body}}};\n"


FUNCTIONS = """\
size_t @_context_bytes(int threads) { return nervure_context_bytes(&program, threads, true); }

int @_create(void *memory, size_t bytes, int threads, @_context **out) {
    return nervure_create(&program, memory, bytes, NULL, threads, (nervure_context **)out);
}

int @_create_in(void *memory, size_t bytes, void *const regions[], int threads, @_context **out) {
    return nervure_create(&program, memory, bytes, regions, threads, (nervure_context **)out);
}

int @_destroy(@_context *c) { return nervure_destroy((nervure_context *)c); }
int @_reset(@_context *c) { return nervure_reset((nervure_context *)c); }
int @_restore(@_context *c) { return nervure_restore((nervure_context *)c); }

int @_run(@_context *c, int entry, const void *const inputs[], void *const outputs[]) {
    return nervure_run((nervure_context *)c, entry, inputs, outputs);
}

void *@_input(const @_context *c, int entry, int index) {
    return nervure_slot((const nervure_context *)c, entry, index, false);
}

void *@_output(const @_context *c, int entry, int index) {
    return nervure_slot((const nervure_context *)c, entry, index, true);
}

void *@_param(const @_context *c, int index) { return nervure_param((const nervure_context *)c, index); }
void *@_state(const @_context *c, int index) { return nervure_state((const nervure_context *)c, index); }
int @_params_changed(@_context *c) { return nervure_params_changed((nervure_context *)c); }

int @_export(@_context *c, void *buffer, size_t bytes) {
    return nervure_export((nervure_context *)c, buffer, bytes);
}

int @_import(@_context *c, const void *buffer, size_t bytes) {
    return nervure_import((nervure_context *)c, buffer, bytes);
}

int @_profile(@_context *c, @_clock clock, void *user, uint64_t *ticks) {
    return nervure_profile((nervure_context *)c, clock, user, ticks);
}

const char *@_status_text(int status) { return nervure_status_text(&program, status); }
"""
ENTRY_FUNCTION = """
int @_{name}(@_context *c, const void *const inputs[], void *const outputs[]) {{
    return nervure_run((nervure_context *)c, {number}, inputs, outputs);
}}
"""


def _functions(program: Program, device: DeviceCode | None) -> str:
    entries = (ENTRY_FUNCTION.format(name=n, number=i) for i, n in enumerate(entry_names(program)))
    own = device.functions if device else ""
    return (FUNCTIONS + own + "".join(entries)).replace("@", prefix(program))


# -- images --------------------------------------------------------------------------------------------------------


def images_s(held: Iterable[str]) -> str:
    """Assembler text that embeds the images (an order of magnitude faster than a C array) and the artifact's block.

    ``NERVURE_BLOCK`` is the file with the block; it becomes an ELF note, which is found without section headers.
    """
    text = '.section .note.GNU-stack,"",%progbits\n'
    for name in held:
        symbol = f"nervure_{name}_image"
        text += f'.section .rodata.{name},"a",%progbits\n.balign {ALIGN}\n.globl {symbol}\n.hidden {symbol}\n'
        text += f'{symbol}:\n.incbin "{name}.bin"\n'
    return text + (
        "#ifdef NERVURE_BLOCK\n"
        '.section .note.nervure,"a",%note\n.balign 4\n.long 8\n.long 2f - 1f\n.long 1\n.asciz "nervure"\n'
        "1:\n.incbin NERVURE_BLOCK\n2:\n.balign 4\n#endif\n"
    )
