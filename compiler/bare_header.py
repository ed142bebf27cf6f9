"""``model.h`` of a static library for a machine without an operating system: sizes as macros, the caller's memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import header as linux
from . import render
from .header import _macros, _port, _size
from .names import API, distinct, entry_names, prefix
from .program import Entry, Port, Program

HEADER_BYTES = 16  # of the part that stays: its first word says that derived copies are stale
_KEYWORDS = """
alignas alignof and asm auto bool break case catch char class const continue default delete do double else enum explicit
export extern false float for friend goto if inline int long mutable namespace new not nullptr operator or private
protected public register restrict return short signed sizeof static struct switch template this throw true try typedef
typename union unsigned using virtual void volatile while xor
memory index inputs outputs status floats align aligned flash code weights constants export limit check
"""
_RESERVED = API | frozenset(_KEYWORDS.split())  # what a region cannot be called

TEXT = """\
/* @: a compiled network for a machine without an operating system. Written by nervure; do not edit.
 *
 * All memory is the caller's: nothing is allocated, nothing is kept elsewhere, weights stay in read-only memory. Each
 * set of blocks is a context of its own; one call at a time may use it. Functions that return int return a status: 0 is
 * success, @_status_text says what any other one means.
 *
$example */
#ifndef @@_H
#define @@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum @_status {
    @@_OK,
    @@_NULL,      /* a pointer is NULL that must not be */
    @@_ALIGNMENT, /* a memory block is not aligned to @@_ALIGN bytes */
    @@_BUFFER,    /* an input or output buffer is not aligned to its element size */
    @@_SPACE,     /* the buffer is smaller than the exported parameters and states */
    @@_DAMAGED,   /* these are no exported parameters and states, or damaged ones */
    @@_FOREIGN    /* these are the parameters and states of another model */
};

/* Bytes. What stays in the arena from call to call (parameters, states, what is derived from them) is part of it. */
#define @@_ALIGN $alignu
$sizes

/* A block for a region, aligned: static @@_ARENA(name);
 * and whether one that was made otherwise is large enough, when this is compiled: @@_CHECK(array); */
#ifndef @@_BLOCK
#if defined(__GNUC__) || defined(__clang__) || defined(__TI_ARM__)
#define @@_BLOCK(name, bytes) __attribute__((aligned($align))) unsigned char name[bytes]
#elif defined(__ICCARM__)
#define @@_BLOCK(name, bytes) _Pragma("data_alignment=$align") unsigned char name[bytes]
#elif defined(__CC_ARM)
#define @@_BLOCK(name, bytes) __align($align) unsigned char name[bytes]
#elif defined(__cplusplus) && __cplusplus >= 201103L
#define @@_BLOCK(name, bytes) unsigned char name alignas($align)[bytes]
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define @@_BLOCK(name, bytes) _Alignas($align) unsigned char name[bytes]
#else
#error "define @@_BLOCK(name, bytes) as an array of unsigned char that is aligned to $align bytes"
#endif
#endif
#if defined(__cplusplus) && __cplusplus >= 201103L
#define @@_ASSERT(condition, name) static_assert(condition, "a memory block of @ is too small")
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define @@_ASSERT(condition, name) _Static_assert(condition, "a memory block of @ is too small")
#else
#define @@_ASSERT(condition, name) extern const char @_too_small_##name[(condition) ? 1 : -1]
#endif
$blocks
$limits
/* The caller's memory, a block for each region. */
typedef struct {
$fields} @_memory;

/* Before all else, and to begin anew. */
int @_init(const @_memory *memory);
$stored
/* Entry points. inputs[i] and outputs[i] point to contiguous arrays in the order below, aligned to their elements and
 * not overlapping. NULL (for one or for all) means the slot in the arena: fill it before every call, read it before the
 * next. An index that does not exist gives NULL. */
$entries
const char *@_status_text(int status);

#ifdef __cplusplus
}
#endif
#endif
"""
STORED = """
int @_reset(const @_memory *memory);   /* states back to their initial values */
int @_restore(const @_memory *memory); /* parameters back to their initial values */

/* Parameters and states in place. Say so after writing to one: copies derived from it are rebuilt. */
$held
void *@_param(const @_memory *memory, int index);
void *@_state(const @_memory *memory, int index);
int @_params_changed(const @_memory *memory);

/* All parameters and states as one blob of @@_EXPORT_BYTES, to be kept or sent: the same bytes on every machine. It
 * carries a checksum and what it belongs to: an import that is refused (@@_DAMAGED, @@_FOREIGN) changes nothing.
 * `bytes` is the size of the buffer, of any alignment. */
#define @@_EXPORT_BYTES $blob
int @_export(const @_memory *memory, void *buffer, size_t bytes);
int @_import(const @_memory *memory, const void *buffer, size_t bytes);
"""


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
    """C names of the regions: fields of the memory, parts of macros."""
    return distinct((r.name for r in program.regions), _RESERVED)


def header(program: Program, align: int, flash: Mapping[str, int] | None = None) -> str:
    """The text of ``model.h``. ``flash``: bytes of ``code`` and of ``constants`` beside weights, where they are known.
    Names from the model are escaped: it stays valid C and C++ whatever they hold."""
    names, sizes = region_names(program), region_bytes(program, align)
    bigs = [n.upper() for n in names]
    checks = ["@@_CHECK", *(f"@@_CHECK_{n}" for n in bigs[1:])]
    entries = zip(program.entries, entry_names(program), strict=True)
    parts = {
        "$example": _example(program),
        "$sizes": _sizes(program, align, flash),
        "$blocks": "".join(
            f"#define @@_{n}(name) @@_BLOCK(name, @@_{n}_BYTES{'' if size else ' + 1'})\n"
            f"#define {check}(array) @@_ASSERT(sizeof(array) >= @@_{n}_BYTES, array)\n"
            for n, size, check in zip(bigs, sizes, checks, strict=True)
        ),
        "$limits": _limits(bigs),
        "$fields": "".join(f"    void *{n}; /* @@_{n.upper()}_BYTES, aligned to @@_ALIGN */\n" for n in names),
        "$stored": STORED if program.params or program.states else "",
        "$entries": "".join(_entry(program, e, n) for e, n in entries),
        "$held": linux._stored(program),
        "$blob": _size(render.blob_bytes(program)),
        "$align": str(align),
    }
    text = TEXT
    for key, value in parts.items():
        text = text.replace(key, value)
    return text.replace("@@", prefix(program).upper()).replace("@", prefix(program))


def _limits(bigs: Sequence[str]) -> str:
    """What a project allows, as a macro of its own that it defines before or on the command line."""
    lines = [
        f"#if defined(@@_{n}_LIMIT) && @@_{n}_BYTES > @@_{n}_LIMIT\n"
        f'#error "@ needs more of {n} than @@_{n}_LIMIT allows"\n#endif\n'
        for n in bigs
    ]
    return "/* Define @@_" + bigs[0] + "_LIMIT as the bytes that a project can spare. */\n" + "".join(lines)


def _example(program: Program) -> str:
    """How to use it, in five lines."""
    names = region_names(program)
    lines = [f"static @@_{n.upper()}({n}_block);" for n in names]
    lines.append(f"static const @_memory memory = {{{', '.join(f'{n}_block' for n in names)}}};")
    lines.append("@_init(&memory);")
    if program.entries:
        name, entry = entry_names(program)[0], program.entries[0]
        first = [f"@_{name}_{kind}(&memory, 0)" for kind in ("input", "output")]
        lines += [f"memcpy({first[0]}, x, sizeof x);"] * bool(entry.inputs)
        lines.append(f"@_{name}(&memory, NULL, NULL);" + f" /* then read {first[1]} */" * bool(entry.outputs))
    return "".join(f" *     {line.replace('/*', '//').replace(' */', '')}\n" for line in lines)


def _sizes(program: Program, align: int, flash: Mapping[str, int] | None) -> str:
    weights = sum(map(len, render.images(program).values()))
    rows = [(f"{n.upper()}_BYTES", b) for n, b in zip(region_names(program), region_bytes(program, align), strict=True)]
    rows.append(("KEPT_BYTES", kept(program, align)["region"]))
    rows.append(("WEIGHTS_BYTES", weights))
    about = {"KEPT_BYTES": "of the arena: what stays", "WEIGHTS_BYTES": "in read-only memory"}
    if flash is not None:
        rows += [("CODE_BYTES", flash["code"] + flash["constants"]), ("FLASH_BYTES", sum(flash.values()) + weights)]
        about |= {"CODE_BYTES": "code and its constants", "FLASH_BYTES": "both"}
    return "\n".join(f"#define @@_{n} {_size(b)}{f' /* {about[n]} */' if n in about else ''}" for n, b in rows)


def _entry(program: Program, entry: Entry, name: str) -> str:
    big = f"@@_{name.upper()}"
    lines = ["", *linux._purpose(program, entry)]
    lines.append(f"#define {big}_ARENA_BYTES {_size(sum(entry.region_bytes))} /* of its own, for a time */")
    for kind, ports in (("INPUT", entry.inputs), ("OUTPUT", entry.outputs)):
        lines += _ports(program, f"{big}_{kind}", ports)
    lines += [f"void *@_{name}_{kind}(const @_memory *memory, int index);" for kind in ("input", "output")]
    lines.append(f"int @_{name}(const @_memory *memory, const void *const inputs[], void *const outputs[]);")
    return "\n".join(lines) + "\n"


def _ports(program: Program, big: str, ports: Sequence[Port]) -> list[str]:
    lines = [f"#define {big}S {len(ports)}"]
    for i, (short, port) in enumerate(zip(_macros(p.name for p in ports), ports, strict=True)):
        short += "_" * short.endswith(("_SCALE", "_ZERO"))
        lines.append(f"#define {big}_{short} {i} /* {_port(port)}{linux._note(program, port)} */")
        lines.append(f"#define {big}_{short}_BYTES {_size(port.type.nbytes)}")
        if port.scale is not None:
            number = f"{port.scale[0]:.9g}"
            lines.append(f"#define {big}_{short}_SCALE {number if re.search('[.e]', number) else number + '.0'}f")
            lines.append(f"#define {big}_{short}_ZERO ({port.scale[1]})")
    return lines
