"""``model.h``: the public C API of an artifact, with its sizes as macros."""

from __future__ import annotations

from collections.abc import Iterable

from . import render
from .names import comment, distinct, entry_names, prefix
from .program import Entry, Port, Program, Stored
from .types import DTYPES

TEXT = """\
/* @: a compiled network. Written by nervure; do not edit.
 *
 * The caller owns all memory. A context lies in one block that the caller gives, and nothing is allocated after
 * @_create (which starts the worker threads, if any). Contexts are independent: use one for each thread that calls.
 * A context that is used from two threads at once answers @_BUSY. Every function that returns int returns a status;
 * 0 is success and @_status_text says what any other one means.
 *
 *     static _Alignas(64) unsigned char memory[@@_CONTEXT_BYTES(1)];
 *     @_context *context;
 *     int status = @_create(memory, sizeof memory, 1, &context);
 */
#ifndef @@_H
#define @@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct @_context @_context;
typedef uint64_t (*@_clock)(void *user);

enum @_status {
    @@_OK,
    @@_NULL,         /* a pointer is NULL that must not be */
    @@_MEMORY,       /* the memory block is smaller than the context needs */
    @@_ALIGNMENT,    /* the memory block or a region is not aligned to 64 bytes */
    @@_THREADS,      /* the number of threads must lie between 0 and 256 */
    @@_THREAD_START, /* the system could not start a worker thread */
    @@_BUSY,         /* the context is in use by another thread, or was destroyed */
    @@_ENTRY,        /* there is no entry point of that number */
    @@_BUFFER,       /* an input or output buffer is not aligned to its element size */
    @@_FORKED,       /* the worker threads did not come along through fork() */
    @@_FEATURE = 100 /* and above: this CPU lacks an instruction set; the text names it */
};

/* Bytes of a context with that many threads (0 and 1: no thread is started), and of its parts. */
$sizes
size_t @_context_bytes(int threads);

/* Makes a context in `memory` (64-byte aligned). Parameters and states start from the images in the library. */
int @_create(void *memory, size_t bytes, int threads, @_context **out);

/* The same with memory regions of the caller's choice: regions[i] is 64-byte aligned, or NULL for one in `memory`. */
int @_create_in(void *memory, size_t bytes, void *const regions[], int threads, @_context **out);

/* Ends the context's threads; its memory may be used again afterwards. */
int @_destroy(@_context *context);

int @_reset(@_context *context);   /* states back to their initial values */
int @_restore(@_context *context); /* parameters back to their initial values */

/* Entry points. inputs[i] and outputs[i] point to contiguous arrays in the order below, aligned to their elements and
 * not overlapping. NULL (for one or for all) means the slot in the context: fill @_input(...) before every call, read
 * @_output(...) before the next. */
$entries
/* Any of them by number, and the slots. */
int @_run(@_context *context, int entry, const void *const inputs[], void *const outputs[]);
void *@_input(const @_context *context, int entry, int index);
void *@_output(const @_context *context, int entry, int index);

/* Parameters and states in place. Say so after writing to a parameter: copies derived from it are rebuilt. */
$stored
void *@_param(const @_context *context, int index);
void *@_state(const @_context *context, int index);
int @_params_changed(@_context *context);

/* Adds each step's duration to ticks[step] in every following run (as many as the entry that runs has steps); NULL
 * ends that. `clock` reads any clock; NULL is a monotonic one in nanoseconds. */
int @_profile(@_context *context, @_clock clock, void *user, uint64_t *ticks);

const char *@_status_text(int status);

#ifdef __cplusplus
}
#endif
#endif
"""


def header(program: Program) -> str:
    """The text of ``model.h``. Names from the model are escaped: it stays valid C and C++ whatever they hold."""
    name = prefix(program)
    text = TEXT.replace("$sizes", _sizes(program)).replace("$entries", _entries(program))
    text = text.replace("$stored", _stored(program))
    return text.replace("@@", name.upper()).replace("@", name)


def _sizes(program: Program) -> str:
    base, worker = render.context_bytes(program)
    alone, _ = render.context_bytes(program, regions=False)
    regions = zip(distinct(r.name for r in program.regions), program.regions, strict=True)
    lines = [
        f"#define @@_CONTEXT_BYTES(threads) ({_size(base)} + ((threads) < 2 ? 0u : (threads) - 1u) * {_size(worker)})",
        f"#define @@_CONTEXT_BYTES_WITHOUT_REGIONS(threads) "
        f"({_size(alone)} + ((threads) < 2 ? 0u : (threads) - 1u) * {_size(worker)})",
        f"#define @@_REGIONS {len(program.regions)}",
        *(f"#define @@_REGION_{n.upper()}_BYTES {_size(r.nbytes)}" for n, r in regions),
    ]
    return "\n".join(lines)


def _macros(names: Iterable[str]) -> list[str]:
    """Distinct upper-case names, so ended that ``NAME_BYTES`` is never the name of another one."""
    return [name.upper() + "_" * name.endswith("_bytes") for name in distinct(names)]


def _size(nbytes: int) -> str:
    return f"{nbytes}u" if nbytes < 1 << 31 else f"{nbytes}ull"


def _entries(program: Program) -> str:
    return "".join(
        _entry(entry, name, number)
        for number, (name, entry) in enumerate(zip(entry_names(program), program.entries, strict=True))
    )


def _entry(entry: Entry, name: str, number: int) -> str:
    big = f"@@_{name.upper()}"
    lines = ["", f"#define {big} {number}", f"#define {big}_STEPS {len(entry.steps)}"]
    for kind, ports in (("INPUT", entry.inputs), ("OUTPUT", entry.outputs)):
        lines.append(f"#define {big}_{kind}S {len(ports)}")
        for i, (short, port) in enumerate(zip(_macros(p.name for p in ports), ports, strict=True)):
            where = f"{big}_{kind}_{short}"
            lines.append(f"#define {where} {i} /* {_port(port)} */")
            lines.append(f"#define {where}_BYTES {_size(port.type.nbytes)}")
    lines.append(f"int @_{name}(@_context *context, const void *const inputs[], void *const outputs[]);")
    return "\n".join(lines) + "\n"


def _port(port: Port) -> str:
    shape = "".join(f"[{d}]" for d in port.type.shape)
    counted = f", valid rows: output {port.count}" if port.count is not None else ""
    return f"{comment(port.name)}: {DTYPES[port.type.dtype][1]} {shape or 'scalar'} {port.type.dtype}{counted}"


def _stored(program: Program) -> str:
    lines = []
    for kind, held in (("PARAM", program.params), ("STATE", program.states)):
        lines.append(f"#define @@_{kind}S {len(held)}")
        names = _macros(s.name for s in held)
        lines += [line for i, (n, s) in enumerate(zip(names, held, strict=True)) for line in _held(kind, n, i, s)]
    return "\n".join(lines)


def _held(kind: str, name: str, index: int, stored: Stored) -> list[str]:
    where = f"@@_{kind}_{name}"
    shape = "".join(f"[{d}]" for d in stored.type.shape) or "scalar"
    about = f"{comment(stored.name)}: {DTYPES[stored.type.dtype][1]} {shape} {stored.type.dtype}"
    return [f"#define {where} {index} /* {about} */", f"#define {where}_BYTES {_size(stored.type.nbytes)}"]
