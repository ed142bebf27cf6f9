"""A Program as portable C99: one file that holds kernels, weights and entry points, and its header.

``emit_c`` writes what reviewers read: a comment for each layer (operator, shapes, products, bytes, origin), kernels
with the names of what they do, tensors and weights with the names of the model. The functions around it are those of
every library without an operating system (``bare``).
"""

from __future__ import annotations

import bisect
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError
from ..runtime.artifact import Artifact, described
from ..targets.files import write_atomic
from ..targets.machine import Machine
from . import bare, emit_data, render
from .kernels.c99_text import definition, wrapped
from .library import describe, describe_bare
from .names import comment, distinct, entry_names, identifier, prefix
from .plan.entry import Pool
from .program import Entry, Phase, Program, Ref, Step, Stored

Texts = Mapping[str, Mapping[str, Any]]  # kernel -> what a worker wrote of it (kernels.c99.Text)

_LABEL = 28  # letters of a tensor's name; what it is (``multiplier``) comes behind
_C_WORDS = """
ready checksum put get preamble memory inputs outputs status arena index data bytes crc table to from value auto break
case char const continue default do double else enum extern float for goto if inline int long register restrict return
short signed sizeof static struct switch typedef union unsigned void volatile while class new delete this template
private public protected operator try catch throw bool true false and or not xor namespace int8_t uint8_t int16_t
uint16_t int32_t uint32_t int64_t uint64_t size_t memcpy memset memcmp gamma
"""
_OWN = frozenset(_C_WORDS.split())
_MATH = re.compile(  # what math.h brings
    r"\b(NAN|INFINITY|isnan|(sqrt|floor|ceil|trunc|rint|fabs|exp|expm1|log|log1p|sin|cos|tan|asin|acos|atan|sinh|cosh|"
    r"tanh|asinh|acosh|atanh|erf|pow|fmod|round)f?)\b"
)
_BEFORE = "NOINLINE static "
_FLOATS = """\
/* Operators stay functions of their own: in one large function, sums of inner loops would not stay in registers. */
#if defined(__GNUC__)
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE
#endif

/* Results are those of single operations, each rounded: no fused products, no reordering. */
#if defined(__FAST_MATH__)
#error "@.c relies on IEEE 754 arithmetic: compile it without -ffast-math"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
"""


def emit_c(program: Program, pool: Pool, texts: Texts, machine: Machine, out: Path) -> Artifact:
    """Writes ``out`` (NAME.c) and its header beside it; returns what they are, in an artifact's words.

    ``texts``: the kernels as the workers wrote them. The same arguments give the same bytes."""
    out = Path(out)
    header = out.with_suffix(".h")
    _check(program, texts)
    text = _Emitted(program, pool, texts, machine, header.name).text()
    data = text.encode()
    write_atomic(out, data)
    write_atomic(header, header_text(program, machine).encode())
    block = describe(program, machine) | describe_bare(program, machine, {"code": 0, "constants": 0})
    return described(out, len(data), hashlib.sha256(data).hexdigest(), *machine.elf, block)


def _check(program: Program, texts: Texts) -> None:
    """One error for all operators that have no form in C."""
    bad = [
        (step, texts[phase.kernel]["unsupported"])
        for entry in program.entries
        for step in entry.steps
        for phase in step.phases
        if "unsupported" in texts[phase.kernel]
    ]
    if bad:
        names = list(dict.fromkeys(step.op for step, _ in bad))
        raise NervureError(
            f"{len(names)} operator(s) cannot be written as C99: {', '.join(names[:8])}",
            where=list(dict.fromkeys(o for step, _ in bad for o in step.origin[:1])),
            why=bad[0][1],
            hint="compile a library instead (without --emit c)",
        )


def header_text(program: Program, machine: Machine) -> str:
    """The header of a library, with <string.h> for what is not in <stdint.h>."""
    text = bare.header(program, machine.align)
    return text.replace("#include <stddef.h>\n#include <stdint.h>\n", "#include <stdint.h>\n#include <string.h>\n")


def labels(names: Sequence[str]) -> dict[str, str]:
    """A short identifier for each tensor: without the folders that all have in common, and of a name that a converter
    put together (``a;b;c``) the first."""
    parts = {n: [p for p in re.split(r"[/.:]+", n.split(";")[0]) if p] or ["tensor"] for n in names}
    shared = 0
    while len({tuple(p[: shared + 1]) for p in parts.values()}) == 1 < len(parts) and all(
        len(p) > shared + 1 for p in parts.values()
    ):
        shared += 1
    found = {}
    for name, own in parts.items():
        words = [identifier(p) for p in own[shared:]]
        while len(words) > 1 and len("_".join(words)) > _LABEL:
            words = words[1:]
        found[name] = identifier("_".join(words), _LABEL)
    return found


@dataclass
class _Emitted:
    program: Program
    pool: Pool
    texts: Texts
    machine: Machine
    header: str
    kernels: dict[str, str] = field(default_factory=dict)  # symbol -> name in C
    arrays: dict[tuple[int, str], str] = field(default_factory=dict)  # (offset, C type) -> name
    inplace: set[str] = field(default_factory=set)  # kernels that are called with an output that is an input
    first: dict[str, Step] = field(default_factory=dict)  # symbol -> the step that uses it first

    def __post_init__(self) -> None:
        self.offsets = sorted(self.pool.arrays)
        self.labels = labels([s.name for e in self.program.entries for s in e.steps])
        helpers = frozenset(h for t in self.texts.values() for h in t["texts"])
        self.taken = _OWN | helpers | frozenset(f"{n}_image" for n in ("params", "states"))
        phases = [(s, p) for e in self.program.entries for s in e.steps for p in s.phases]
        wanted: dict[str, str] = {}
        for step, phase in phases:
            if phase.kernel not in wanted:
                part = self.pool.drafts[phase.kernel].spec.template.split(".")[-1] if len(step.phases) > 1 else ""
                wanted[phase.kernel] = str(step.about.get("kernel", step.op)) + (f"_{part}" if part else "")
                self.first[phase.kernel] = step
            if self._shares(phase):
                self.inplace.add(phase.kernel)
        names = distinct(wanted.values(), self.taken)
        self.kernels = dict(zip(wanted, names, strict=True))
        self._name_arrays(phases, self.taken | frozenset(names))

    def _shares(self, phase: Phase) -> bool:
        """Whether the kernel writes to memory that it is given twice."""
        written = [not only for _, _, only in self.texts[phase.kernel]["params"]]
        return any(w and phase.args.count(r) > 1 for r, w in zip(phase.args, written, strict=True))

    def _name_arrays(self, phases: Sequence[tuple[Step, Phase]], taken: frozenset[str]) -> None:
        wanted: dict[tuple[int, str], str] = {}
        for step, phase in phases:
            params = self.texts[phase.kernel]["params"]
            for ref, (kind, name, _) in zip(phase.args, params, strict=True):
                if ref.base == "const":
                    role = {"w": "weights", "b": "weights"}.get(name, re.sub(r"\d+$", "", name) or name)
                    wanted.setdefault((self._start(ref.offset), kind), f"{self.labels[step.name]}_{role}")
        self.arrays = dict(zip(wanted, distinct(wanted.values(), taken), strict=True))

    def _start(self, offset: int) -> int:
        """Where the constant begins that an address lies in."""
        return self.offsets[bisect.bisect_right(self.offsets, offset) - 1]

    # -- the file ----------------------------------------------------------------------------------------------------

    def text(self) -> str:
        style = bare.Style(self.head, self.steps, self.image)
        return bare.model_c(self.program, self.machine.align, style)

    def head(self, program: Program, align: int) -> str:
        helpers = {n: text for k in sorted(self.texts) for n, text in self.texts[k]["texts"].items()}
        kernels = "\n".join(self._kernel(k) for k in self.kernels)
        arrays = "\n".join(self._array(offset, kind, name) for (offset, kind), name in sorted(self.arrays.items()))
        images = "\n".join(emit_data.image(f"{kind}s_image", stored) for kind, stored in self._images())
        math_h = (
            _MATH.search(kernels + "".join(helpers.values())) or "NAN" in arrays + images or "INFI" in arrays + images
        )
        parts = [
            self._about(),
            f'#include "{self.header}"\n' + ("#include <math.h>\n" if math_h else ""),
            _FLOATS.replace("@", prefix(program)),
            _title("weights") if self.arrays else "",
            arrays,
            images,
            _title("operators") if self.kernels else "",
            *helpers.values(),
            kernels,
            _title("the network"),
        ]
        return "\n".join(p for p in parts if p)

    def _images(self) -> list[tuple[str, Sequence[Stored]]]:
        both = (("param", self.program.params), ("state", self.program.states))
        return [(kind, stored) for kind, stored in both if render.block_image(stored)]

    def image(self, program: Program, kind: str) -> str:
        return f"&{kind}s_image"

    def _about(self) -> str:
        entry = self.program.entries[0]
        macs = sum(int(s.about.get("macs", 0)) for s in entry.steps)
        sizes = zip(bare.region_names(self.program), bare.region_bytes(self.program, self.machine.align), strict=True)
        return (
            f"/* {comment(self.program.name)}: {len(entry.steps)} layers, {macs:,} multiplications, "
            f"{len(self.program.const):,} bytes of constants;\n"
            f" * memory: {', '.join(f'{n} {b:,} bytes' for n, b in sizes)}.\n"
            f" * C99 without heap, input, output or variables of its own; planned for {self.machine.mcpu}.\n"
            f" * Assumes what every compiler for such machines does: two's complement, arithmetic right shifts.\n"
            " * Written by nervure; do not edit. */\n"
        )

    def _array(self, offset: int, kind: str, name: str) -> str:
        dtype, shape = self.pool.arrays[offset]
        size = math.prod(shape) * np.dtype(_storage(dtype)).itemsize
        data = np.frombuffer(self.program.const, np.uint8, size, offset)
        return emit_data.array(name, kind, data.view(emit_data.NUMPY[kind]), shape if _storage(dtype) == dtype else ())

    def _kernel(self, symbol: str) -> str:
        step = self.first[symbol]
        made = definition(self.kernels[symbol], self.texts[symbol], restrict=symbol not in self.inplace, before=_BEFORE)
        return f"/* {_clean(step.op)}: {_clean(step.about.get('shapes', ''))} */\n{made}"

    # -- an entry's steps --------------------------------------------------------------------------------------------

    def steps(self, program: Program, entry: Entry, align: int) -> list[str]:
        return _Walk(self, entry).lines()


class _Walk:
    """The calls of one entry point, with a variable for each tensor."""

    def __init__(self, emitted: _Emitted, entry: Entry) -> None:
        self.own, self.entry = emitted, entry
        self.taken = set(emitted.taken) | set(emitted.kernels.values()) | set(emitted.arrays.values())
        self.taken |= set(entry_names(emitted.program)) | {f"{k}_{i}" for k in ("input", "output") for i in range(99)}
        self.taken |= set(bare.region_names(emitted.program))
        self.held: dict[tuple[str, int, int], tuple[str, str]] = {}  # address -> (type, variable) of the last writer

    def lines(self) -> list[str]:
        found: list[str] = []
        for number, step in enumerate(self.entry.steps):
            found += ["", *_layer(number + 1, step)]
            for phase in step.phases:
                found += self._call(number, step, phase)
        return found

    def _call(self, number: int, step: Step, phase: Phase) -> list[str]:
        lines, args = [], []
        for ref, (kind, _, only) in zip(phase.args, self.own.texts[phase.kernel]["params"], strict=True):
            if ref.base == "const":
                args.append(self._constant(ref, kind))
                continue
            known = self.held.get((ref.base, ref.index, ref.offset))
            if ref.base == "region" and not only and not self._scratch(number, ref):
                name = self._variable(self.own.labels[step.name])
                at = bare.pointer(self.own.program, ref, self.own.machine.align)
                lines.append(f"    {kind} *const {name} = (void *){_atom(at)};")
                self.held[ref.base, ref.index, ref.offset] = (kind, name)
                args.append(name)
            elif ref.base == "region" and known is not None and known[0] == kind:
                args.append(known[1])
            else:
                actual = phase.scratch if ref.base == "worker" else ref
                at = bare.pointer(self.own.program, actual, self.own.machine.align, ref)
                args.append(f"({'const ' if only else ''}void *){_atom(at)}")
        return [*lines, wrapped(args, f"    {self.own.kernels[phase.kernel]}(", ");")]

    def _constant(self, ref: Ref, kind: str) -> str:
        start = self.own._start(ref.offset)
        skip = (ref.offset - start) // np.dtype(emit_data.NUMPY[kind]).itemsize
        return self.own.arrays[start, kind] + (f" + {skip}" if skip else "")

    def _scratch(self, number: int, ref: Ref) -> bool:
        return any(
            b.scratch
            and b.region == ref.index
            and b.first <= number <= b.last
            and b.offset <= ref.offset < b.offset + max(b.nbytes, 1)
            for b in self.entry.buffers
        )

    def _variable(self, wanted: str) -> str:
        (name,) = distinct([wanted], frozenset(self.taken))
        self.taken.add(name)
        return name


def _clean(text: str, limit: int = 100) -> str:
    """Text that is inert in a C comment: no stars, so that it cannot end there, nothing that joins lines."""
    clean = re.sub(r"[^A-Za-z0-9_ .,:;=+()\[\]|/<>-]", "_", text)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def _layer(number: int, step: Step) -> list[str]:
    """The comment before a layer's calls."""
    macs = int(step.about.get("macs", 0))
    costs = [f"{macs:,} MACs"] * bool(macs)
    costs += [f"{step.bytes_moved:,.0f} bytes of tensors"]
    costs += [f"{step.weight_bytes:,} bytes of weights"] * bool(step.weight_bytes)
    source = _clean(", ".join(step.origin) or step.name, 112)
    return [
        f"    /* {number}. {_clean(step.op)}: {_clean(step.about.get('shapes', ''))}",
        f"     * {'; '.join(costs)}",
        f"     * from {source} */",
    ]


def _storage(dtype: str) -> str:
    """How numpy holds a type in the block of constants."""
    return {"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype)


def _title(text: str) -> str:
    return f"/* {'-' * 8} {text} {'-' * (104 - len(text))} */\n"


def _atom(text: str) -> str:
    return f"({text})" if " " in text else text
