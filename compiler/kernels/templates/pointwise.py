"""Elementwise and injective regions: one loop nest over the output, axes in the order of its memory.

Axes that are contiguous in every tensor are merged; the innermost is taken a vector at a time, its remainder by
narrower ones; outer iterations, or ranges of the only axis, are the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...ops import OPS, Kind
from ...ops.selection import POSITIONAL
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._fixed import settled
from ._leaves import all_leaves
from ._rows import effort, pieces

_TASKS = 64  # at most
_TASK_WORK = 1024.0  # vector operations that a task should have, so that handing it out costs little


def merge_axes(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of adjacent logical axes that every operand walks as one (outer to inner in memory of the first)."""
    order = sorted(range(len(shape)), key=lambda a: (-abs(strides[0][a]), a))
    groups: list[list[int]] = []
    for axis in order:
        if shape[axis] == 1:
            continue
        if groups:
            last = groups[-1][-1]
            if all(s[last] == s[axis] * shape[axis] for s in strides):
                groups[-1].append(axis)
                continue
        groups.append([axis])
    return groups


_STEPS = frozenset(  # operators of a few instructions: several vectors of them fit the registers at once
    (
        *("input", "const", "identity", "copy", "cast", "relu", "clip", "maximum", "minimum", "add", "sub", "mul"),
        *("quantize", "dequantize", "requantize", "add_integer", "mul_integer", "lookup"),
    )
)


def vector_lanes(region: Region) -> int:
    """Elements taken at once: a vector of the narrowest elements where some have 8 bits and the work is simple, so
    that loads, stores and packs are whole vectors; else as many as float32 lanes."""
    machine = region.machine
    narrow = min((o.type.itemsize for o in (*region.inputs, *region.outputs) if o.type.size > 1), default=4)
    simple = all(region.body.node(n).op in _STEPS for n in region.body)
    wide = any(t.itemsize > 4 for n in region.body for t in region.body.node(n).types)
    packs = machine.instruction("pack.int8") is not None
    if not packs or narrow > 1 or not simple or wide:
        return machine.lanes
    return machine.vector_bytes


def _shares(extents: Sequence[int], enough: float, lanes: int) -> tuple[int, int, int]:
    """How many outer loops make the tasks, the number of tasks, and the elements of one of them where a single axis is
    cut. ``enough`` are the elements that a task should have."""
    outer, tasks, chunk = 0, 1, 0
    if len(extents) == 1 and extents[0] >= 2 * enough:
        chunk = math.ceil(extents[0] / min(_TASKS, int(extents[0] / enough)) / lanes) * lanes
        tasks = math.ceil(extents[0] / chunk)
    elif len(extents) > 1 and math.prod(extents) >= 2 * enough:
        while outer < len(extents) - 1 and tasks < _TASKS and math.prod(extents[outer:]) >= 2 * enough:
            tasks *= extents[outer]
            outer += 1
    return outer, tasks, chunk


def plan(region: Region) -> list[Plan]:
    """One plan: this template takes every region without an anchor."""
    body, machine = region.body, region.machine
    out = region.outputs[0]
    if any(o.type.dims != out.type.dims for o in region.outputs):
        return []
    if any(body.node(n).attrs.get("block") is not None for n in body):
        return []  # passes/weights.py spells the scales of blocks out before
    program = serialize(region)
    if machine.instruction("pair") is not None:
        program = settled(region, program)
    moves = any(OPS[body.node(n).op].kind in (Kind.INJECTIVE, Kind.VIEW) for n in body)
    shape = list(out.type.dims)
    aligned = [
        [0] * (len(shape) - o.type.rank) + [s if d > 1 else 0 for s, d in zip(o.strides, o.type.dims, strict=True)]
        for o in region.inputs
    ]
    every = [list(o.strides) for o in region.outputs] + ([] if moves else aligned)
    random = any(n["op"] == "random_bits" for n in program["nodes"])  # reads its key elsewhere
    coordinate = any(n["op"] in POSITIONAL for n in program["nodes"])
    groups = [[a] for a in sorted(range(len(shape)), key=lambda a: (-abs(out.strides[a]), a)) if shape[a] > 1]
    if not moves and not coordinate:
        groups = merge_axes(shape, every)
    extents = [math.prod(shape[a] for a in g) for g in groups]
    ops = sum(effort(n["op"]) for n in program["nodes"])
    lanes = vector_lanes(region)
    outer, tasks, chunk = _shares(extents, _TASK_WORK * machine.lanes / max(1.0, ops), lanes)
    config = {"program": program, "shape": shape, "groups": groups, "outer": outer, "tasks": tasks, "chunk": chunk}
    config["lanes"] = lanes
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    traffic = sum(o.type.nbytes for o in (*region.inputs, *region.outputs))
    cost = max(out.type.size * max(1, ops) / machine.lanes, traffic / 8) / 2.5
    if groups:  # loads that step over memory fill a vector element by element
        cost += 0.5 * out.type.size * sum(s[groups[-1][-1]] not in (0, 1) for _, s, _ in all_leaves(region))
    same = [
        (i, j)
        for j, result in enumerate(region.outputs)
        for i, source in enumerate(region.inputs)
        if not moves and not random and source.type == result.type and source.strides == result.strides
    ]
    return [
        Plan(
            "pointwise",
            (Draft(KernelSpec("pointwise", config), args, tasks if tasks > 1 else None),),
            cost=cost + 100,
            inplace=tuple(same),
            detail="pointwise",
        )
    ]


def emit(k: Any, config: dict[str, Any]) -> None:
    from ..evaluate import Evaluator

    program = config["program"]
    inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
    outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
    ev = Evaluator(k, program, inputs)
    nest = _Nest(k, config, ev, outputs)
    if config["tasks"] > 1:
        with k.parallel(config["tasks"]) as task:
            nest.run(task)
    else:
        nest.run(None)


class _Nest:
    """Loops over the groups of merged axes, tasks first."""

    def __init__(self, k: Any, config: dict[str, Any], ev: Any, outputs: list[Any]) -> None:
        self.k, self.ev, self.outputs = k, ev, outputs
        self.shape, self.groups, self.outer = config["shape"], config["groups"], config["outer"]
        self.tasks, self.chunk, self.lanes = config["tasks"], config["chunk"], config["lanes"]
        self.extents = [math.prod(self.shape[a] for a in g) for g in self.groups]

    def run(self, task: Any) -> None:
        chosen: list[Any] = []
        if task is not None and self.outer:
            rest = task
            for i in range(self.outer):
                inner = math.prod(self.extents[i + 1 : self.outer])
                chosen.append(rest // inner if inner > 1 else rest)
                rest = rest % inner if inner > 1 else 0
        self._descend(chosen, task)

    def _descend(self, chosen: list[Any], task: Any) -> None:
        if len(chosen) < len(self.groups) - 1:
            with self.k.loop(self.extents[len(chosen)]) as i:
                self._descend([*chosen, i], task)
        elif not self.groups:
            self._store([], 1)
        else:
            self._innermost(chosen, task)

    def _innermost(self, chosen: list[Any], task: Any) -> None:
        """Whole vectors, then narrower ones. They never overlap, for an output may lie where an input does."""
        k, lanes, extent = self.k, self.lanes, self.extents[-1]
        full = extent // lanes
        # a group of several logical axes has no single coordinate: only its flat index is known, which is enough
        # when no operator of the body looks at coordinates (see plan)
        if self.chunk:
            from ..tir import minimum

            count = minimum(self.chunk // lanes, full - task * (self.chunk // lanes))
            with k.loop(count) as i:
                self._store([*chosen, (task * self.chunk + i * lanes, 1)], lanes)
            with k.when(_last(task, self.tasks)):
                self._rest(chosen, full * lanes, extent)
            return
        with k.loop(full) as i:
            self._store([*chosen, (i * lanes, 1)], lanes)
        self._rest(chosen, full * lanes, extent)

    def _rest(self, chosen: list[Any], start: int, extent: int) -> None:
        for at, width in pieces(extent - start, self.lanes):
            self._store([*chosen, (start + at, 1 if width > 1 else 0)], width)

    def _store(self, chosen: list[Any], lanes: int) -> None:
        coords: list[Any] = [(0, 0)] * len(self.shape)
        for group, index in zip(self.groups, chosen, strict=True):
            # the innermost axis of a merged group carries the flat index; the others stay 0
            coords[group[-1]] = index if isinstance(index, tuple) else (index, 0)
        self.ev.begin()
        self.ev.store_all(self.outputs, coords, lanes)


def _last(task: Any, tasks: int) -> Any:
    from tvm import tirx

    return tirx.EQ(task, tasks - 1)


TEMPLATE = Template("pointwise", ("pointwise",), plan, {"pointwise": emit})
