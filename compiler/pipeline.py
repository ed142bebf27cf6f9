"""The straight line from a graph to an artifact; it reads like a table of contents.

``compile_entries`` takes the graphs of one or more entry points and writes one library. Everything before it is
frontends' work, everything after it the runtime's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError
from ..runtime.artifact import Artifact
from ..targets.files import temporary_folder
from ..targets.machine import Machine
from ..targets.portable import portable
from .abilities import check_machine
from .cache import pins
from .emit import emit_c
from .ir import Graph
from .kernels.pool import compile_kernels
from .library import build_artifact
from .passes import canonicalize
from .passes.channels import drop_idle_channels
from .passes.fuse import fuse
from .passes.half import half, half_type
from .passes.signs import match_signs
from .plan.advice import too_large, too_much_flash
from .plan.derive import Derived
from .plan.entry import Pool, build_entry, settled_states
from .plan.fit import Bound, fit
from .plan.scales import with_scales
from .plan.select import Choices
from .program import Entry, Program, Region

_MOST_ELEMENTS = 2**31 - 2**16  # of one tensor: indices are 32 bits wide, and loops may step past the end

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How to compile. ``precision="exact"``: no Winograd, no approximations, on GPUs FMA alone; ``"tf32"``: one product
    of rounded factors on a GPU's tensor cores, where ``"default"`` takes three of their parts; ``"fp16"``, ``"bf16"``:
    half types in a GPU's memory (``passes.half``). ``optimize="size"``: weights as they are.
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
        return Choices(exact=self.precision == "exact", fast=self.precision == "tf32", small=self.optimize == "size")


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
        graph = drop_idle_channels(canonicalize(item.graph, check=options.check))
        _check_sizes(graph)
        check_machine(graph, machine)
        dtype = half_type(options.precision, machine, graph)
        graph = graph if dtype is None else half(graph, dtype)
        if options.max_ram is None and options.arena is None:
            built.append(_build(graph, item, machine, options, pool))
        else:
            entry, rows = _within(graph, item, machine, options, pool)
            built.append(entry)
            tried |= {item.function: rows} if entry.updates_params or len(rows) > 1 else {}
    if pool.derived is not None and pool.derived.steps:
        built.append(pool.derived.entry())
    built[: len(entries)] = [with_scales(e, item.graph) for e, item in zip(built, entries, strict=False)]
    names = ("arena", *(name for name, _ in (*options.fast, *options.spare)))
    names = names[: max([1 + len(options.fast), *(len(e.region_bytes) for e in built)])]
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
        meta={**_facts(entries, options), **_tried(built, tried), **(meta or {})},
    )
    _check_memory(program, entries, machine, options)
    return program, pool


def _build(
    graph: Graph,
    item: EntryGraph,
    machine: Machine,
    options: Options,
    pool: Pool,
    spare: bool = False,
    lean: bool = False,
) -> Entry:
    """One entry point of a canonical graph; with ``spare`` in all memories that there are, ``lean`` with kernels that
    need less RAM."""
    fused = fuse(match_signs(graph, machine))
    if options.check:
        fused.check()
    fast = [nbytes for _, nbytes in (*options.fast, *(options.spare if spare else ()))]
    choices = replace(options.choices(), lean=lean)
    return build_entry(fused, machine, choices, pool, item.function, item.bindings, fast, options.arena)


def _within(
    graph: Graph, item: EntryGraph, machine: Machine, options: Options, pool: Pool
) -> tuple[Entry, list[dict[str, Any]]]:
    """An entry point that fits the memory there is, where one can be found, and what was tried (``plan.fit``). It is
    planned apart from the program first, which then holds the kernels and constants of the choice alone.
    Raises NervureError with advice where nothing fits."""
    bound = Bound(options.max_ram, options.arena, options.threads)

    def trial(graph: Graph, lean: bool = False) -> Entry:
        apart = Pool(settled=pool.settled, align=pool.align, derived=None if pool.derived is None else Derived())
        entry = _build(graph, item, machine, options, apart, lean=lean)
        more = bool(options.spare) and bound.over(entry) > 0
        return _build(graph, item, machine, options, apart, spare=True, lean=lean) if more else entry

    plain = trial(graph)
    found = fit(graph, plain, trial, bound)
    if bound.over(found.entry) > 0:
        raise too_large(graph, plain, found, trial, bound)
    more = len(found.entry.region_bytes) > 1 + len(options.fast)
    chosen = graph if found.graph is None else found.graph
    return _build(chosen, item, machine, options, pool, spare=more, lean=found.lean), found.tried


def _tried(built: Sequence[Entry], tried: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What was tried so that entries fit, as facts: ``recompute`` of training steps, ``patches`` of all others."""
    training = {e.function for e in built if e.updates_params}
    kinds = {
        "recompute": {k: rows for k, rows in tried.items() if k in training},
        "patches": {k: rows for k, rows in tried.items() if k not in training},
    }
    return {kind: rows for kind, rows in kinds.items() if rows}


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
    return _made(
        entries, machine, options, progress, meta, "linking", lambda p, _, o: build_artifact(p, o, machine, out)
    )


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
    seen = portable(machine)

    def write(program: Program, pool: Pool, files: Sequence[Path]) -> Artifact:
        texts = {file.stem: json.loads(file.read_text()) for file in files}
        return emit_c(program, pool, texts, seen, out)

    return _made(entries, seen, options, progress, meta, "writing", write)


def _made(
    entries: Sequence[EntryGraph],
    machine: Machine,
    options: Options | None,
    progress: Progress | None,
    meta: Mapping[str, Any] | None,
    stage: str,
    finish: Callable[[Program, Pool, list[Path]], Artifact],
) -> Artifact:
    """Plans the entries and makes their kernels; ``finish``, the stage of that name, makes the artifact of them."""
    tell = progress or (lambda stage, done, total: None)
    tell("planning", 0, 1)
    program, pool = plan_program(entries, machine, options or Options(), meta)
    with temporary_folder() as folder:
        files = compile_kernels(
            list(pool.drafts.values()), machine, folder, lambda done, total: tell("kernels", done, total)
        )
        tell(stage, 0, 1)
        artifact = finish(program, pool, files)
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


def _check_memory(program: Program, entries: Sequence[EntryGraph], machine: Machine, options: Options) -> None:
    """Entries that belong to all (``refresh``), and constants: the others have been checked one by one."""
    for entry in program.entries:
        needed = program.arena_bytes(entry, options.threads)
        if options.max_ram is not None and needed > options.max_ram:
            raise NervureError(
                f"{entry.name} needs {needed} bytes of RAM, --max-ram allows {options.max_ram}",
                why="weights that train are packed for the kernels before each run",
                hint="fewer trained layers (net.freeze), or fewer threads",
            )
    if options.flash is not None and len(program.const) > options.flash:
        graphs = [item.graph for item in entries]

        def smaller() -> int:
            least = replace(options, optimize="size", max_ram=None, arena=None, flash=None)
            return len(plan_program(entries, machine, least)[0].const)

        raise too_much_flash(len(program.const), options.flash, graphs, None if options.optimize == "size" else smaller)
