"""``model.h``: the public C API of an artifact, with its sizes as macros."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from . import render
from .names import comment, distinct, entry_names, prefix
from .program import Entry, Port, Program, Stored
from .types import DTYPES

TEXT = """\
/* @: a compiled network. Written by nervure; do not edit.
 *
 * $memory
 * A context that is used from two threads at once answers @@_BUSY. Every function that returns int returns a status;
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
    @@_SPACE,        /* the buffer is smaller than the exported parameters and states */
    @@_DAMAGED,      /* these are no exported parameters and states, or damaged ones */
    @@_FOREIGN,      /* these are the parameters and states of another model */
$statuses
};

/* $bytes
 * needs of them: $ram. */
$sizes
size_t @_context_bytes(int threads);

/* Makes a context in `memory` (64-byte aligned). Parameters and states start from the images in the library. */
int @_create(void *memory, size_t bytes, int threads, @_context **out);

/* $regions */
int @_create_in(void *memory, size_t bytes, void *const regions[], int threads, @_context **out);

/* $destroy */
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

/* $params */
$stored
void *@_param(const @_context *context, int index);
void *@_state(const @_context *context, int index);
int @_params_changed(@_context *context);

/* All parameters and states as one blob of @@_EXPORT_BYTES, to be saved or sent: the same bytes on every machine. It
 * carries a checksum and what it belongs to: an import that is refused (@@_DAMAGED, @@_FOREIGN) changes nothing.
 * `bytes` is the size of the buffer, of any alignment; an import finds the blob's own size in it. To be safe from a
 * loss of power, write to another place than that of the last good blob. */
#define @@_EXPORT_BYTES $blob
int @_export(@_context *context, void *buffer, size_t bytes);
int @_import(@_context *context, const void *buffer, size_t bytes);

/* Adds each step's duration to ticks[step] in every following run (as many as the entry that runs has steps); NULL
 * ends that. $clock */
int @_profile(@_context *context, @_clock clock, void *user, uint64_t *ticks);

$deviceconst char *@_status_text(int status);

#ifdef __cplusplus
}
#endif
#endif
"""


# What differs where kernels run on a GPU (``device_header``).
WORDS = {
    "memory": """\
The caller owns all memory. A context lies in one block that the caller gives, and nothing is allocated after
 * @_create (which starts the worker threads, if any). Contexts are independent: use one for each thread that calls.""",
    "statuses": "    @@_FEATURE = 100 /* and above: this CPU lacks an instruction set; the text names it */",
    "bytes": """\
Bytes of a context with that many threads (0 and 1: no thread is started), and of its parts. Parameters, states and
 * what is derived from them stay; the regions (the arena) are shared by the entry points, each of which says what \
it""",
    "regions": "The same with memory regions of the caller's choice: regions[i] is 64-byte aligned, or NULL for one in "
    "`memory`.",
    "destroy": "Ends the context's threads; its memory may be used again afterwards.",
    "params": "Parameters and states in place. Say so after writing to one: copies derived from it are rebuilt.",
    "clock": "`clock` reads any clock; NULL is a monotonic one in nanoseconds.",
    "device": "",
}


def header(program: Program, device: render.DeviceCode | None = None) -> str:
    """The text of ``model.h``. Names from the model are escaped: it stays valid C and C++ whatever they hold."""
    name = prefix(program)
    text = TEXT
    for key, words in {**WORDS, **(device.words if device else {})}.items():
        text = text.replace(f"${key}", words)
    text = text.replace("$sizes", _sizes(program, device)).replace("$entries", _entries(program))
    text = text.replace("$stored", _stored(program)).replace("$blob", _size(render.blob_bytes(program)))
    text = text.replace("$ram", _ram(program))
    return text.replace("@@", name.upper()).replace("@", name)


def _ram(program: Program) -> str:
    """The arena of each entry point, in words."""
    needs = [f"{n} {program.arena_bytes(e):,}" for n, e in zip(entry_names(program), program.entries, strict=True)]
    lines = textwrap.wrap(", ".join(needs) or "none", 100)
    return "\n * ".join(lines)


def _sizes(program: Program, device: render.DeviceCode | None) -> str:
    base, worker = (device.context_bytes, 0) if device else render.context_bytes(program)
    alone = base if device else render.context_bytes(program, regions=False)[0]
    regions = zip(distinct(r.name for r in program.regions), program.regions, strict=True)
    lines = [
        f"#define @@_CONTEXT_BYTES(threads) ({_size(base)} + ((threads) < 2 ? 0u : (threads) - 1u) * {_size(worker)})",
        f"#define @@_CONTEXT_BYTES_WITHOUT_REGIONS(threads) "
        f"({_size(alone)} + ((threads) < 2 ? 0u : (threads) - 1u) * {_size(worker)})",
        f"#define @@_PARAMS_BYTES {_size(render.block_bytes(program.params))}",
        f"#define @@_STATES_BYTES {_size(render.block_bytes(program.states))}",
        f"#define @@_DERIVED_BYTES {_size(program.derived_bytes)}",
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
        _entry(program, entry, name, number)
        for number, (name, entry) in enumerate(zip(entry_names(program), program.entries, strict=True))
    )


# What the entry points of a training artifact are for; inputs and outputs that a C programmer must know of.
PURPOSE = {
    "train_step": "One step of training on a batch: the parameters and the optimizer's states change in place. Outputs "
    "are those of this batch before the change.",
    "evaluate": "Loss and metrics of a batch as inference computes it; nothing changes.",
    "gradients": "The gradients of a batch, to be summed over several devices.",
    "apply": "Changes the parameters by given gradients.",
    "refresh": "Rebuilds what is derived from parameters and states (packed weights, folded scales). The library does "
    "so by itself before an entry point that reads it; call it to have that time at a moment of your choice.",
}
NOTES = {
    "learning_rate": "the size of the step",
    "sample_weight": "1 / number of samples; 0 for a sample that only fills the batch",
    "loss": "a mean over the batch (with sample_weight the weighted sum)",
}


def _entry(program: Program, entry: Entry, name: str, number: int) -> str:
    big = f"@@_{name.upper()}"
    lines = ["", *_purpose(program, entry), f"#define {big} {number}", f"#define {big}_STEPS {len(entry.steps)}"]
    lines.append(f"#define {big}_ARENA_BYTES {_size(program.arena_bytes(entry))} /* with one thread */")
    for kind, ports in (("INPUT", entry.inputs), ("OUTPUT", entry.outputs)):
        lines.append(f"#define {big}_{kind}S {len(ports)}")
        for i, (short, port) in enumerate(zip(_macros(p.name for p in ports), ports, strict=True)):
            where = f"{big}_{kind}_{short}"
            lines.append(f"#define {where} {i} /* {_port(port)}{_note(program, port)} */")
            lines.append(f"#define {where}_BYTES {_size(port.type.nbytes)}")
    lines.append(f"int @_{name}(@_context *context, const void *const inputs[], void *const outputs[]);")
    return "\n".join(lines) + "\n"


def _purpose(program: Program, entry: Entry) -> list[str]:
    """A comment for an entry point that training made, or that the compiler did."""
    if entry.function not in PURPOSE or not ("training" in program.meta or entry.function == "refresh"):
        return []
    return ["/* " + "\n * ".join(textwrap.wrap(PURPOSE[entry.function], 112)) + " */"]


def _note(program: Program, port: Port) -> str:
    if "training" not in program.meta or port.name not in NOTES:
        return ""
    rate = program.meta["training"].get("learning_rate")
    first = f", {rate:g} by default" if port.name == "learning_rate" and isinstance(rate, float | int) else ""
    return f": {NOTES[port.name]}{first}"


def _port(port: Port) -> str:
    shape = "".join(f"[{d}]" for d in port.type.shape)
    counted = f", valid rows: output {port.count}" if port.count is not None else ""
    scaled = f", {port.scale[0]:.9g} * (integer {-port.scale[1]:+d})" if port.scale is not None else ""
    return f"{comment(port.name)}: {DTYPES[port.type.dtype][1]} {shape or 'scalar'} {port.type.dtype}{counted}{scaled}"


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
