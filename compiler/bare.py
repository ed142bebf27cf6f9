"""A Program as C for a machine without an operating system: one straight function an entry point.

All memory is the caller's: one block a region. The first, the arena, starts with what stays from call to call
(parameters, states, what is derived from them), if there is any. There are no tables, no heap, no globals that change.
``bare_header.py`` writes the header that goes with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..targets import toolchain
from . import render
from .bare_header import header, kept, region_bytes, region_names
from .names import comment, entry_names, prefix
from .program import Entry, Port, Program, Ref, Step

__all__ = ["LINKED", "Style", "header", "kept", "model_c", "region_bytes", "region_names", "sources"]

STRING = "void *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\nint memcmp(const void *, "
STRING += "const void *, size_t);\n"  # a freestanding compiler has no <string.h>
# Results are specified as rounded to nearest, with denormals kept or not: FPSCR (Armv7-M manual, A2.5.3). What the
# caller had is put back.
FLOATS = """\
static uint32_t fpenter(uint32_t flush) {
#if defined(__ARM_FP)
    uint32_t was;
    __asm volatile("vmrs %0, fpscr" : "=r"(was));
    __asm volatile("vmsr fpscr, %0" : : "r"((was & ~(UINT32_C(15) << 22)) | flush << 24) : "memory");
    return was;
#else
    return flush;
#endif
}

static void fpleave(uint32_t was) {
#if defined(__ARM_FP)
    __asm volatile("vmsr fpscr, %0" : : "r"(was) : "memory");
#else
    (void)was;
#endif
}
"""


def sources(program: Program, align: int) -> dict[str, bytes]:
    """The generated files by name: ``model.c``, ``model.h``, ``images.S`` and one ``.bin`` an image."""
    files = {
        "model.c": model_c(program, align).encode(),
        "model.h": header(program, align).encode(),
        "images.S": images_s(program, align).encode(),
    }
    return files | {f"{name}.bin": data for name, data in render.images(program).items()}


def images_s(program: Program, align: int) -> str:
    """Assembler text that embeds the images, each in a section of its own."""
    name, text = prefix(program), ""
    for image in render.images(program):
        text += f'.section {toolchain.WEIGHTS}{name}_{image}, "a"\n.balign {align}\n.globl {name}_{image}_image\n'
        text += f'{name}_{image}_image:\n.incbin "{image}.bin"\n'
    return text


@dataclass(frozen=True)
class Style:
    """What differs between C that is linked with kernels and images made elsewhere (``LINKED``) and C that holds them
    itself (``source``): ``head``, all that stands before the functions; ``steps``, the lines that run an entry's steps;
    ``image``, an expression for the address of the initial bytes of ``param`` or ``state``; ``floats``, the two
    functions around an entry point (``FLOATS``), empty where it leaves the floating-point mode as it is."""

    head: Callable[[Program, int], str]
    steps: Callable[[Program, Entry, int], list[str]]
    image: Callable[[Program, str], str]
    floats: str = ""


def model_c(program: Program, align: int, style: Style | None = None) -> str:
    """The C file."""
    style = style or LINKED
    parts = [
        style.head(program, align),
        style.floats,
        _ready(program, align),
        _init(program, align, style),
        *([*_stored(program, align, style), _transfer(program, align)] if _keeps(program) else []),
        _status_text(program, align),
        *(_entry(program, e, n, align, style) for e, n in zip(program.entries, entry_names(program), strict=True)),
    ]
    return "\n".join(p for p in parts if p)


def _head(program: Program, align: int) -> str:
    name = prefix(program)
    declared = render.kernel_declarations(program, "const void *")
    images = "".join(f"extern const unsigned char {name}_{n}_image[];\n" for n in render.images(program))
    return "\n".join(p for p in ('#include "model.h"\n', STRING, declared, images) if p)


def _keeps(program: Program) -> bool:
    return bool(program.params or program.states)


def _named(text: str, program: Program) -> str:
    name = prefix(program)
    return text.replace("@@", name.upper()).replace("@", name)


# -- memory, what stays, export and import --------------------------------------------------------------------------


def _ready(program: Program, align: int) -> str:
    lines = ["static int ready(const @_memory *memory) {", "    if (memory == 0) return @@_NULL;"]
    for region, planned in zip(region_names(program), program.regions, strict=True):
        if planned.nbytes or (region == region_names(program)[0] and kept(program, align)["region"]):
            lines.append(f"    if (memory->{region} == 0) return @@_NULL;")
        lines.append(f"    if ((uintptr_t)memory->{region} % {align}u != 0) return @@_ALIGNMENT;")
    return _named("\n".join([*lines, "    return @@_OK;", "}\n"]), program)


def _loads(program: Program, align: int, kind: str, style: Style) -> list[str]:
    """The lines that set a block to its initial values."""
    stored = {"param": program.params, "state": program.states}[kind]
    image, size, at = render.block_image(stored), render.block_bytes(stored), kept(program, align)[kind]
    lines = [f"    memcpy({_plus('arena', at)}, {style.image(program, kind)}, {len(image)}u);"] if image else []
    if size > len(image):
        lines.append(f"    memset({_plus('arena', at + len(image))}, 0, {size - len(image)}u);")
    return lines


def _init(program: Program, align: int, style: Style) -> str:
    lines = ["int @_init(const @_memory *memory) {"]
    if not _keeps(program):
        return _named("\n".join([*lines, "    return ready(memory);", "}\n"]), program)
    lines += ["    int status = ready(memory);", "    if (status != @@_OK) return status;"]
    lines += ["    unsigned char *arena = (unsigned char *)memory->arena;"]
    lines += [*_loads(program, align, "param", style), *_loads(program, align, "state", style)]
    return _named("\n".join([*lines, "    *(uint32_t *)memory->arena = 1;", "    return @@_OK;", "}\n"]), program)


def _stored(program: Program, align: int, style: Style) -> list[str]:
    """Initial values again, and the places of parameters and states."""
    texts = []
    for function, kind in (("restore", "param"), ("reset", "state"), ("params_changed", "")):
        lines = [f"int @_{function}(const @_memory *memory) {{", "    int status = ready(memory);"]
        lines += ["    if (status != @@_OK) return status;"]
        if kind and (loads := _loads(program, align, kind, style)):
            lines += ["    unsigned char *arena = (unsigned char *)memory->arena;", *loads]
        lines += ["    *(uint32_t *)memory->arena = 1;", "    return @@_OK;", "}\n"]
        texts.append(_named("\n".join(lines), program))
    for kind, stored in (("param", program.params), ("state", program.states)):
        places = [_plus("(unsigned char *)memory->arena", kept(program, align)[kind] + s.offset) for s in stored]
        texts.append(_places(program, f"@_{kind}", places))
    return texts


def _places(program: Program, function: str, places: list[str]) -> str:
    """A function from an index to a pointer, NULL beyond."""
    lines = [f"void *{function}(const @_memory *memory, int index) {{", "    if (ready(memory) != @@_OK) return 0;"]
    if places:
        lines += ["    switch (index) {", *(f"    case {i}: return {p};" for i, p in enumerate(places))]
        lines += ["    default: return 0;", "    }", "}\n"]
    else:
        lines += ["    (void)index;", "    return 0;", "}\n"]
    return _named("\n".join(lines), program)


TRANSFER = """\
/* CRC-32 as in zip files. */
static uint32_t checksum(const unsigned char *data, size_t bytes) {
    static const uint32_t table[16] = {
        0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
        0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu, 0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu
    };
    uint32_t crc = 0xffffffffu;
    size_t i;
    for (i = 0; i < bytes; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15u];
        crc = crc >> 4 ^ table[crc & 15u];
    }
    return ~crc & 0xffffffffu;
}

static void put(unsigned char *to, uint32_t value) {
    int i;
    for (i = 0; i < 4; i++) to[i] = (unsigned char)(value >> 8 * i & 255u);
}

static uint32_t get(const unsigned char *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

/* What an exported blob starts with; the checksum is put in after. */
static const unsigned char preamble[64] = {
$head
};

int @_export(const @_memory *memory, void *buffer, size_t bytes) {
    unsigned char *blob = (unsigned char *)buffer;
    const unsigned char *arena;
    int status = ready(memory);
    if (status != @@_OK) return status;
    if (buffer == 0) return @@_NULL;
    if (bytes < @@_EXPORT_BYTES) return @@_SPACE;
    arena = (const unsigned char *)memory->arena;
    memcpy(blob, preamble, 64);
$out
    put(blob + 12, checksum(blob + 16, @@_EXPORT_BYTES - 16u));
    return @@_OK;
}

int @_import(const @_memory *memory, const void *buffer, size_t bytes) {
    const unsigned char *blob = (const unsigned char *)buffer;
    unsigned char *arena;
    uint32_t size;
    int status = ready(memory);
    if (status != @@_OK) return status;
    if (buffer == 0) return @@_NULL;
    if (bytes < 64u || memcmp(blob, preamble, 8) != 0) return @@_DAMAGED;
    size = get(blob + 16);
    if (get(blob + 20) != 0 || size < 64u || size > bytes) return @@_DAMAGED;
    if (get(blob + 12) != checksum(blob + 16, size - 16u)) return @@_DAMAGED;
    if (memcmp(blob + 8, preamble + 8, 4) != 0 || memcmp(blob + 16, preamble + 16, 40) != 0) return @@_FOREIGN;
    arena = (unsigned char *)memory->arena;
$in
    *(uint32_t *)memory->arena = 1;
    return @@_OK;
}
"""


def _transfer(program: Program, align: int) -> str:
    """Export and import: the format of runtime/c/transfer.c, the same bytes on every machine."""
    head = b"nervure\0" + (1).to_bytes(4, "little") + bytes(4) + render.blob_bytes(program).to_bytes(8, "little")
    head = (head + render.signature(program)).ljust(render.BLOB_HEADER_BYTES, b"\0")
    rows = [", ".join(f"0x{b:02x}" for b in head[i : i + 16]) for i in range(0, len(head), 16)]
    out, back, at = [], [], render.BLOB_HEADER_BYTES
    for kind, stored in render.transferred(program):
        place, size = _plus("arena", kept(program, align)[kind] + stored.offset), stored.type.nbytes
        out.append(f"    memcpy(blob + {at}, {place}, {size}u); /* {comment(stored.name)} */")
        back.append(f"    memcpy({place}, blob + {at}, {size}u);")
        at += size
    text = TRANSFER.replace("$head", ",\n".join(f"    {row}" for row in rows))
    return _named(text.replace("$out", "\n".join(out)).replace("$in", "\n".join(back)), program)


def _status_text(program: Program, align: int) -> str:
    texts = [
        "ok",
        "a pointer is NULL that must not be",
        f"a memory block is not aligned to {align} bytes",
        "an input or output buffer is not aligned to its element size",
        "the buffer is smaller than the exported parameters and states",
        "these are no exported parameters and states, or damaged ones",
        "these are the parameters and states of another model",
    ]
    lines = ["const char *@_status_text(int status) {", "    switch (status) {"]
    lines += [f'    case {i}: return "{t}";' for i, t in enumerate(texts)]
    return _named("\n".join([*lines, '    default: return "not a status of this library";', "    }", "}\n"]), program)


# -- entry points ---------------------------------------------------------------------------------------------------


def _entry(program: Program, entry: Entry, name: str, align: int, style: Style) -> str:
    """The functions of one entry point: its slots, and the entry itself."""
    ports = [("input", i, p) for i, p in enumerate(entry.inputs)]
    ports += [("output", i, p) for i, p in enumerate(entry.outputs)]
    calls, floats = style.steps(program, entry, align), bool(style.floats)
    used = set(re.findall(r"\w+", re.sub(r"/\*.*?\*/", "", "\n".join(calls), flags=re.DOTALL)))
    regions = [n for n in region_names(program) if n in used]
    lines = [f"int @_{name}(const @_memory *memory, const void *const inputs[], void *const outputs[]) {{"]
    lines += [f"    unsigned char *{n};" for n in regions]
    lines += [f"    {'const ' * (k == 'input')}unsigned char *{k}_{i};" for k, i, _ in ports]
    lines += ["    uint32_t floats;"] * floats + ["    int status = ready(memory);"]
    lines += ["    if (status != @@_OK) return status;"]
    lines += [line for kind, i, port in ports for line in _bind(program, kind, i, port, align)]
    lines += [f"    {n} = (unsigned char *)memory->{n};" for n in regions]
    lines += [f"    (void){k}_{i};" for k, i, _ in ports if f"{k}_{i}" not in used]
    lines += [f"    (void){k}s;" for k, held in (("input", entry.inputs), ("output", entry.outputs)) if not held]
    refresh = _refresh(program) if kept(program, align)["region"] else None
    if refresh and entry.reads_derived and entry.function != "refresh":
        lines.append(f"    if (*(const uint32_t *)memory->arena != 0) @_{refresh}(memory, 0, 0);")
    lines += [f"    floats = fpenter({int(entry.flush_denormals)}u);"] * floats
    lines += calls
    lines += ["    fpleave(floats);"] * floats
    if kept(program, align)["region"] and (entry.updates_params or entry.function == "refresh"):
        lines.append(f"    *(uint32_t *)memory->arena = {int(entry.function != 'refresh')};")
    slots = (
        _places(program, f"@_{name}_{kind}", [_slot(program, p, align) for p in held])
        for kind, held in (("input", entry.inputs), ("output", entry.outputs))
    )
    return "\n".join([*slots, _named("\n".join([*lines, "    return @@_OK;", "}\n"]), program)])


def _refresh(program: Program) -> str | None:
    """The C name of the entry point that rebuilds derived copies."""
    names = dict(zip((e.function for e in program.entries), entry_names(program), strict=True))
    return names.get("refresh")


def _bind(program: Program, kind: str, index: int, port: Port, align: int) -> list[str]:
    """The lines that set ``input_0`` to the caller's buffer or to its slot."""
    given, mine = f"{kind}s[{index}]", f"{kind}_{index}"
    cast = "(const unsigned char *)" if kind == "input" else "(unsigned char *)"
    lines = [f"    {mine} = {kind}s != 0 && {given} != 0 ? {cast}{given} : {_slot(program, port, align)};"]
    if port.type.itemsize > 1:
        lines.append(f"    if ((uintptr_t){mine} % {port.type.itemsize}u != 0) return @@_BUFFER;")
    return lines


def _slot(program: Program, port: Port, align: int) -> str:
    return _plus(
        f"(unsigned char *)memory->{region_names(program)[port.slot.index]}", _offset(program, port.slot, align)
    )


def _plus(base: str, offset: int) -> str:
    return f"{base} + {offset}" if offset else base


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
        base, offset = region_names(program)[0], offset + kept(program, align)[ref.base]
    return _plus(base, offset)


LINKED = Style(_head, _steps, lambda program, kind: f"{prefix(program)}_{kind}_image", FLOATS)
