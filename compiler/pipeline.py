"""The straight line from a graph to an artifact; it reads like a table of contents.

``compile_entries`` takes the graphs of one or more entry points and writes one library. Everything before it is
frontends' work, everything after it the runtime's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError
from ..runtime.artifact import Artifact
from ..targets.files import temporary_folder
from ..targets.machine import Machine
from ..targets.portable import portable
from .abilities import check_machine
from .autodiff.recompute import choices
from .cache import pins
from .emit import emit_c
from .ir import Graph
from .kernels.pool import compile_kernels
from .library import build_artifact
from .passes import canonicalize
from .passes.fuse import fuse
from .passes.signs import match_signs
from .plan.entry import Pool, build_entry, settled_states
from .plan.select import Choices
from .program import Entry, Program, Region

_MOST_ELEMENTS = 2**31 - 2**16  # of one tensor: indices are 32 bits wide, and loops may step past the end

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How to compile. ``precision="exact"``: no Winograd, no approximations. ``optimize="size"``: weights as they are.
    ``max_ram`` (bytes) bounds the arena of ``threads`` workers. ``fast``, ``spare``, ``arena`` and ``flash`` are the
    memories of a board (``plan.regions.board_memory``): those beside the arena that take what is touched most often,
    those that help where the arena is too small, the arena's own capacity, and the bytes for code and constants."""

    precision: str = "default"
    optimize: str = "speed"
    threads: int = 1
    max_ram: int | None = None
    name: str = "model"
    fast: tuple[tuple[str, int], ...] = ()  # (name, bytes) of memories beside the arena, fastest first
    check: bool = False  # Graph.check() between passes (tests)
    spare: tuple[tuple[str, int], ...] = ()  # (name, bytes) of memories that are used where the arena is too small
    arena: int | None = None  # capacity of the arena's memory
    flash: int | None = None  # what code and constants may take

    def choices(self) -> Choices:
        return Choices(exact=self.precision == "exact", small=self.optimize == "size")


@dataclass(frozen=True)
class EntryGraph:
    """One entry point to be compiled: a static graph, its function name and the dimensions it was bound with."""

    graph: Graph
    function: str = "infer"
    bindings: Mapping[str, int] = field(default_factory=dict)


@np.errstate(all="ignore")  # what folding computes may overflow: that is the model's affair
def plan_program(
    entries: Sequence[EntryGraph], machine: Machine, options: Options, meta: Mapping[str, Any] | None = None
) -> tuple[Program, Pool]:
    """Graphs to a Program: passes, fusion, layout, kernels chosen, memory planned. Nothing is compiled yet."""
    pool = Pool(settled=settled_states([item.graph for item in entries]), align=machine.align)
    if any(item.function == "refresh" for item in entries):
        pool.derived = None
    built: list[Entry] = []
    tried: dict[str, list[dict[str, Any]]] = {}
    for item in entries:
        graph = canonicalize(item.graph, check=options.check)
        _check_sizes(graph)
        check_machine(graph, machine)
        built.append(_build(graph, item, machine, options, pool))
        if options.max_ram is not None and built[-1].updates_params:
            built[-1], tried[item.function] = _within_ram(graph, item, machine, options, pool, built[-1])
    if pool.derived is not None and pool.derived.steps:
        built.append(pool.derived.entry())
    names = ("arena", *(name for name, _ in options.fast))
    sizes = [[e.region_bytes[i] for e in built if i < len(e.region_bytes)] for i in range(len(names))]
    regions = [Region(n, max(needed, default=0)) for n, needed in zip(names, sizes, strict=True)]
    program = Program(
        options.name,
        tuple(built),
        const=bytes(pool.const),
        params=tuple(pool.params.values()),
        states=tuple(pool.states.values()),
        regions=tuple(regions),
        derived_bytes=pool.derived.nbytes if pool.derived is not None else 0,
        meta={**_facts(entries, options), **({"recompute": tried} if tried else {}), **(meta or {})},
    )
    _check_ram(program, options)
    return program, pool


def _build(graph: Graph, item: EntryGraph, machine: Machine, options: Options, pool: Pool) -> Entry:
    """One entry point of a canonical graph."""
    fused = fuse(match_signs(graph, machine))
    if options.check:
        fused.check()
    fast = [nbytes for _, nbytes in options.fast]
    return build_entry(fused, machine, options.choices(), pool, item.function, item.bindings, fast)


def _within_ram(
    graph: Graph, item: EntryGraph, machine: Machine, options: Options, pool: Pool, plain: Entry
) -> tuple[Entry, list[dict[str, Any]]]:
    """A training step that fits ``max_ram``, by computing activations again: the choice that repeats least work and
    fits, else the smallest. With it, what was tried: name, arena in bytes, repeated operations."""
    limit, needed = options.max_ram or 0, sum(plain.region_bytes) + (options.threads - 1) * plain.worker_bytes
    rows = [{"name": "everything kept", "arena_bytes": needed, "flops": 0.0}]
    best: tuple[int, Graph | None] = (needed, None)
    for choice in choices(graph) if needed > limit else []:
        entry = _build(choice.graph, item, machine, options, Pool(settled=pool.settled, align=pool.align))
        nbytes = sum(entry.region_bytes) + (options.threads - 1) * entry.worker_bytes
        rows.append({"name": choice.name, "arena_bytes": nbytes, "flops": choice.flops})
        if nbytes < best[0]:
            best = (nbytes, choice.graph)
        if nbytes <= limit:
            break
    return (plain if best[1] is None else _build(best[1], item, machine, options, pool)), rows


def compile_entries(
    entries: Sequence[EntryGraph],
    machine: Machine,
    out: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Artifact:
    """Writes the library ``out`` (and its header beside it) and returns the artifact, read back and verified.

    ``meta``: further facts (plain data) for the artifact, such as ``training``.
    """
    options = options or Options()
    tell = progress or (lambda stage, done, total: None)
    tell("planning", 0, 1)
    program, pool = plan_program(entries, machine, options, meta)
    with temporary_folder() as folder:
        objects = compile_kernels(
            list(pool.drafts.values()), machine, folder, lambda done, total: tell("kernels", done, total)
        )
        tell("linking", 0, 1)
        artifact = build_artifact(program, objects, machine, out)
    tell("done", 1, 1)
    return artifact


def emit_entries(
    entries: Sequence[EntryGraph],
    machine: Machine,
    out: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Artifact:
    """As ``compile_entries``, but writes portable C99: ``out`` and its header. ``machine`` is the target, which is
    planned for as a C compiler shows it (``targets.portable``). One thread. ``NervureError`` names what has no form
    in C."""
    options, seen = options or Options(), portable(machine)
    tell = progress or (lambda stage, done, total: None)
    tell("planning", 0, 1)
    program, pool = plan_program(entries, seen, options, meta)
    with temporary_folder() as folder:
        files = compile_kernels(
            list(pool.drafts.values()), seen, folder, lambda done, total: tell("kernels", done, total)
        )
        texts = {file.stem: json.loads(file.read_text()) for file in files}
    tell("writing", 0, 1)
    artifact = emit_c(program, pool, texts, seen, out)
    tell("done", 1, 1)
    return artifact


def _facts(entries: Sequence[EntryGraph], options: Options) -> dict[str, Any]:
    weights = {
        (name, array.shape, str(array.dtype)): array.nbytes
        for item in entries
        for node in item.graph.find("const")
        for name, array in [(item.graph.node(node).names[0], item.graph.node(node).array)]
    }
    return {
        "versions": list(pins()),
        "precision": options.precision,
        "optimize": options.optimize,
        "source_weight_bytes": sum(weights.values()),
    }


def _check_sizes(graph: Graph) -> None:
    for key in graph:
        node = graph.node(key)
        large = [t for t in node.types if t.size > _MOST_ELEMENTS]
        if large:
            raise NervureError(
                f"a tensor of {large[0].size:.3g} elements",
                where=node.origin,
                why=f"{large[0]}; kernels count elements in 32 bits",
                hint="check the shapes of the model's inputs",
            )


def _check_ram(program: Program, options: Options) -> None:
    if options.max_ram is None:
        return
    for entry in program.entries:
        needed = program.arena_bytes(entry, options.threads)
        if needed > options.max_ram:
            widest = max((b for b in entry.buffers if not b.scratch), key=lambda b: b.nbytes, default=None)
            raise NervureError(
                f"{entry.name} needs {needed} bytes of RAM, --max-ram allows {options.max_ram}",
                why=f"the largest tensor is {widest.name} with {widest.nbytes} bytes; "
                f"no plan of these steps needs less than {entry.lower_bound}"
                + (", computing activations again where that helps" if entry.updates_params else "")
                if widest
                else None,
                hint="a smaller batch, fewer trained layers (net.freeze), or fewer threads"
                if entry.updates_params
                else "a smaller input or batch, fewer threads, or int8",
            )
