"""A Program as C for a machine without an operating system: one straight function an entry point, and its header.

All memory is the caller's: one block a region. The first, the arena, starts with what stays from call to call
(parameters, states, what is derived from them), if there is any. There are no tables, no heap, no globals that change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import render
from .header import _macros, _port, _size
from .names import comment, distinct, entry_names, prefix
from .program import Entry, Port, Program, Ref, Step


@dataclass(frozen=True)
class Style:
    """What differs between C that is linked with kernels and images made elsewhere (``LINKED``) and C that holds them
    itself (``source``): ``head``, all that stands before the functions; ``steps``, the lines that run an entry's steps;
    ``image``, an expression for the address of the initial bytes of ``param`` or ``state``."""

    head: Callable[[Program, int], str]
    steps: Callable[[Program, Entry, int], list[str]]
    image: Callable[[Program, str], str]


HEADER_BYTES = 16  # of the part that stays: one word says that derived copies are stale


def sources(program: Program, align: int) -> dict[str, bytes]:
    """The generated files by name: ``model.c``, ``model.h``, ``images.S`` and one ``.bin`` an image."""
    files = {
        "model.c": model_c(program, align).encode(),
        "model.h": header(program, align).encode(),
        "images.S": images_s(program, align).encode(),
    }
    return files | {f"{name}.bin": data for name, data in render.images(program).items()}


def kept(program: Program, align: int) -> dict[str, int]:
    """Offsets in the arena of what stays: ``param``, ``state``, ``derived``, and ``region``, where the arena's own
    plan begins. All 0 where nothing stays."""

    def up(n: int) -> int:
        return -(-n // align) * align

    params, states = render.block_bytes(program.params), render.block_bytes(program.states)
    first = up(HEADER_BYTES) if params or states or program.derived_bytes else 0
    state = first + up(params)
    derived = state + up(states)
    return {"param": first, "state": state, "derived": derived, "region": derived + up(program.derived_bytes)}


def region_bytes(program: Program, align: int) -> list[int]:
    """Bytes of the block for each region, what stays included."""
    return [r.nbytes + (kept(program, align)["region"] if i == 0 else 0) for i, r in enumerate(program.regions)]


def region_names(program: Program) -> list[str]:
    return distinct(r.name for r in program.regions)


# -- model.c -------------------------------------------------------------------------------------------------------


def model_c(program: Program, align: int, style: Style | None = None) -> str:
    style = style or LINKED
    parts = [
        style.head(program, align),
        _init(program, align, style),
        *(_entry(program, e, n, align, style) for e, n in zip(program.entries, entry_names(program), strict=True)),
    ]
    return "\n".join(p for p in parts if p)


def _head(program: Program, align: int) -> str:
    name = prefix(program)
    parts = [
        '#include "model.h"\n',
        "void *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\n",
        _kernel_declarations(program),
        "".join(f"extern const unsigned char {name}_{n}_image[];\n" for n in render.images(program)),
    ]
    return "\n".join(p for p in parts if p)


def _kernel_declarations(program: Program) -> str:
    declared = {
        p.kernel: ["const void *"] * len(p.args) + ["int32_t"] * 2 * p.ranged
        for e in program.entries
        for s in e.steps
        for p in s.phases
    }
    return "".join(f"void {k}({', '.join(declared[k]) or 'void'});\n" for k in sorted(declared))


def _init(program: Program, align: int, style: Style) -> str:
    name, at = prefix(program), kept(program, align)
    lines = [f"int {name}_init(const {name}_memory *memory) {{", f"    if (memory == 0) return {name.upper()}_NULL;"]
    for region in region_names(program):
        lines.append(f"    if (memory->{region} == 0) return {name.upper()}_NULL;")
        lines.append(f"    if ((uintptr_t)memory->{region} % {align}u != 0) return {name.upper()}_ALIGNMENT;")
    if at["region"]:
        lines.append("    unsigned char *arena = memory->arena;")
        lines.append(f"    memset(arena, 0, {at['region']}u);")
        for kind, stored in (("param", program.params), ("state", program.states)):
            if image := render.block_image(stored):
                lines.append(f"    memcpy(arena + {at[kind]}, {style.image(program, kind)}, {len(image)}u);")
    return "\n".join([*lines, f"    return {name.upper()}_OK;", "}\n"])


def _entry(program: Program, entry: Entry, name: str, align: int, style: Style) -> str:
    own, names = prefix(program), region_names(program)
    lines = []
    for kind, ports in (("input", entry.inputs), ("output", entry.outputs)):
        lines += [f"void *{own}_{name}_{kind}(const {own}_memory *memory, int index) {{", "    switch (index) {"]
        lines += [f"    case {i}: return {_slot(program, p, align)};" for i, p in enumerate(ports)]
        lines += ["    default: return 0;", "    }", "}"]
    lines += [
        f"int {own}_{name}(const {own}_memory *memory, const void *const inputs[], void *const outputs[]) {{",
        f"    if (memory == 0) return {own.upper()}_NULL;",
    ]
    lines += [f"    unsigned char *const {n} = memory->{n};" for n in names]
    for kind, ports in (("input", entry.inputs), ("output", entry.outputs)):
        constant = "const " if kind == "input" else ""
        for i, port in enumerate(ports):
            given = f"{kind}s != 0 && {kind}s[{i}] != 0 ? {kind}s[{i}] : {_slot(program, port, align)}"
            lines.append(f"    {constant}unsigned char *const {kind}_{i} = {given};")
    lines += style.steps(program, entry, align)
    lines += [f"    (void){n};" for n in (*names, "inputs", "outputs")]
    lines += [
        f"    (void){k}_{i};" for k, p in (("input", entry.inputs), ("output", entry.outputs)) for i in range(len(p))
    ]
    return "\n".join([*lines, f"    return {own.upper()}_OK;", "}\n"])


def _slot(program: Program, port: Port, align: int) -> str:
    return f"((unsigned char *)memory->{region_names(program)[port.slot.index]} + {_offset(program, port.slot, align)})"


def _offset(program: Program, ref: Ref, align: int) -> int:
    return ref.offset + (kept(program, align)["region"] if ref.base == "region" and ref.index == 0 else 0)


def _steps(program: Program, entry: Entry, align: int) -> list[str]:
    return [line for step in entry.steps for line in _step(program, step, align)]


def _step(program: Program, step: Step, align: int) -> list[str]:
    lines = [f"    /* {comment(step.name)}: {comment(step.op)} */"]
    for phase in step.phases:
        args = [pointer(program, phase.scratch if r.base == "worker" else r, align, r) for r in phase.args]
        args += ["0", str(phase.tasks)] if phase.ranged else []
        lines.append(f"    {phase.kernel}({', '.join(args)});")
    return lines


def pointer(program: Program, ref: Ref, align: int, original: Ref | None = None) -> str:
    """A Ref as a C expression."""
    extra = original.offset if original is not None and original.base == "worker" else 0
    offset = _offset(program, ref, align) + extra
    if ref.base == "region":
        base = region_names(program)[ref.index]
    elif ref.base in ("input", "output"):
        base = f"{ref.base}_{ref.index}"
    elif ref.base == "const":
        base = f"{prefix(program)}_const_image"
    else:
        base, offset = "arena", offset + kept(program, align)[ref.base]
    return f"{base} + {offset}" if offset else base


LINKED = Style(_head, _steps, lambda program, kind: f"{prefix(program)}_{kind}_image")


# -- model.h, images ------------------------------------------------------------------------------------------------


def images_s(program: Program, align: int) -> str:
    name, text = prefix(program), ""
    for image in render.images(program):
        text += f'.section .rodata.{name}_{image}, "a"\n.balign {align}\n.globl {name}_{image}_image\n'
        text += f'{name}_{image}_image:\n.incbin "{image}.bin"\n'
    return text


def header(program: Program, align: int) -> str:
    name = prefix(program)
    sizes = zip(region_names(program), region_bytes(program, align), strict=True)
    fields = "".join(f"    void *{n};\n" for n in region_names(program))
    text = f"""\
/* @: a compiled network for a machine without an operating system. Written by nervure; do not edit. */
#ifndef @@_H
#define @@_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif

enum @_status {{ @@_OK, @@_NULL, @@_ALIGNMENT }};

#define @@_ALIGN {align}u
{"".join(f"#define @@_{n.upper()}_BYTES {_size(b)}{chr(10)}" for n, b in sizes)}
/* The caller's memory, a block for each region. */
typedef struct {{
{fields}}} @_memory;

int @_init(const @_memory *memory);
{"".join(_declared(e, n) for e, n in zip(program.entries, entry_names(program), strict=True))}
#ifdef __cplusplus
}}
#endif
#endif
"""
    return text.replace("@@", name.upper()).replace("@", name)


def _declared(entry: Entry, name: str) -> str:
    lines = [""]
    for kind, ports in (("INPUT", entry.inputs), ("OUTPUT", entry.outputs)):
        lines += _ports(kind, name, ports)
    for kind in ("input", "output"):
        lines.append(f"void *@_{name}_{kind}(const @_memory *memory, int index);")
    lines.append(f"int @_{name}(const @_memory *memory, const void *const inputs[], void *const outputs[]);")
    return "\n".join(lines) + "\n"


def _ports(kind: str, name: str, ports: Sequence[Port]) -> list[str]:
    lines = [f"#define @@_{name.upper()}_{kind}S {len(ports)}"]
    for i, (short, port) in enumerate(zip(_macros(p.name for p in ports), ports, strict=True)):
        where = f"@@_{name.upper()}_{kind}_{short}"
        lines += [f"#define {where} {i} /* {_port(port)} */", f"#define {where}_BYTES {_size(port.type.nbytes)}"]
    return lines
