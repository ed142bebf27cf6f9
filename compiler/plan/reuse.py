"""Which buffers share memory: a step may write over what it alone still reads, in place or with a lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..kernels.spec import Operand
from .layout import Layout, Place
from .select import Job
from .strides import same_walk


@dataclass(frozen=True)
class Task:
    """A job at its place in the order, with where its operands lie."""

    job: Job
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]


def _last_reads(layout: Layout, tasks: list[Task]) -> dict[int, int]:
    last: dict[int, int] = {}
    for t, task in enumerate(tasks):
        for at in (*task.inputs, *task.outputs):
            last[at.buffer] = t
    return last


def merge_in_place(layout: Layout, tasks: list[Task], apart: frozenset[int] = frozenset()) -> dict[int, int]:
    """``buffer -> buffer`` whose memory it takes over: a kernel may write over an input that nothing reads later. The
    buffers in ``apart`` get memory of their own."""
    last = _last_reads(layout, tasks)
    merged: dict[int, int] = {}

    def home(buffer: int) -> int:
        while buffer in merged:
            buffer = merged[buffer]
        return buffer

    for t, task in enumerate(tasks):
        for i, o in task.job.plan.inplace:
            source, target = task.inputs[i], task.outputs[o]
            a, b = layout.buffers[source.buffer], layout.buffers[target.buffer]
            shape = layout.graph.type(task.job.inputs[i]).dims
            if (
                a.kind == "arena"
                and b.kind in ("arena", "output")
                and last[source.buffer] == t
                and not any(task.inputs[k].buffer == source.buffer for k in range(len(task.inputs)) if k != i)
                and a.nbytes == b.nbytes
                and source.offset == target.offset
                and same_walk(shape, source.strides, target.strides)
                and home(target.buffer) == target.buffer
                and home(source.buffer) != target.buffer
                and not _written_before(tasks, t, target.buffer)
                and target.buffer not in apart
                and not (b.kind == "output" and layout.buffers[home(source.buffer)].kind == "output")
            ):
                if b.kind == "output":
                    merged[home(source.buffer)] = target.buffer
                else:
                    merged[target.buffer] = home(source.buffer)
                break
    return merged


def _written_before(tasks: list[Task], t: int, buffer: int) -> bool:
    return any(at.buffer == buffer for task in tasks[:t] for at in task.outputs)


def leads(
    layout: Layout, tasks: Sequence[Task], home: Mapping[int, int], life: Mapping[int, Sequence[int]]
) -> dict[tuple[int, int], int]:
    """``(buffer of an input, buffer of an output) -> lead`` for the pairs that may overlap: the step is the last one
    that needs the input and the first one that needs the output, and both are whole tensors without gaps.

    ``home`` is where a buffer lies after merging, ``life`` the first and last step of each home. For one thread only:
    with more, what a kernel has read is not known while it writes."""
    found: dict[tuple[int, int], int] = {}
    for t, task in enumerate(tasks):
        for i, o, lead in task.job.plan.overlaps:
            source, target = (home[at.buffer] for at in (task.inputs[i], task.outputs[o]))
            others = [home[at.buffer] for k, at in enumerate(task.inputs) if k != i]
            if source not in life or target not in life or source == target or {source, target} & set(others):
                continue
            plain = _whole(layout, task.inputs[i], task.job.region.inputs[i].type.dims)
            plain = plain and _whole(layout, task.outputs[o], task.job.region.outputs[o].type.dims)
            if plain and life[source][1] == t and life[target][0] == t:
                found[source, target] = max(lead, found.get((source, target), lead))
    return {**_leads_of_parts(layout, tasks, home, life), **found}


def _leads_of_parts(
    layout: Layout, tasks: Sequence[Task], home: Mapping[int, int], life: Mapping[int, Sequence[int]]
) -> dict[tuple[int, int], int]:
    """The pairs in which the output is written part by part while other parts of the input are still to be read: what
    is written when a step ends lies in front of all that is read from that step on."""
    reads: dict[int, list[tuple[int, int]]] = {}
    writes: dict[int, list[tuple[int, int]]] = {}
    for t, task in enumerate(tasks):
        for at, operand in zip(task.inputs, task.job.region.inputs, strict=True):
            reads.setdefault(home[at.buffer], []).append((t, _bytes(at, operand)[0]))
        for at, operand in zip(task.outputs, task.job.region.outputs, strict=True):
            writes.setdefault(home[at.buffer], []).append((t, _bytes(at, operand)[1]))
    found = {}
    for target in (b for b in sorted(life) if len(writes.get(b, ())) > 1):
        for source in sorted(life):
            began = [t for t, _ in writes.get(source, ())] or [-1]
            first = writes[target][0][0]
            meet = life[source][0] < first <= life[source][1] and max(began) < first and source in reads
            if source == target or not meet or layout.buffers[source].kind == "output":
                continue
            lead = _lead_of_parts(reads[source], writes[target])
            if lead < layout.buffers[target].nbytes:
                found[source, target] = lead
    return found


def _lead_of_parts(reads: Sequence[tuple[int, int]], writes: Sequence[tuple[int, int]]) -> int:
    """``reads``: ``(step, first byte)``, ``writes``: ``(step, end)``, both in the order of the steps."""
    lead, i, needed = -(1 << 62), len(reads) - 1, 1 << 62
    for w in reversed(range(len(writes))):
        while i >= 0 and reads[i][0] >= writes[w][0]:
            needed = min(needed, reads[i][1])
            i -= 1
        if needed < 1 << 62:
            lead = max(lead, max(end for _, end in writes[: w + 1]) - needed)
    return lead


def _bytes(at: Place, operand: Operand) -> tuple[int, int]:
    """The first byte of a tensor in its buffer, and the end of its last one."""
    steps = [(d - 1) * s for d, s in zip(operand.type.dims, at.strides, strict=True)]
    first = at.offset + sum(s for s in steps if s < 0)
    last = at.offset + sum(s for s in steps if s > 0)
    return first * operand.type.itemsize, (last + 1) * operand.type.itemsize


def _whole(layout: Layout, at: Place, shape: Sequence[int]) -> bool:
    """Whether a tensor is all of its buffer, without gaps, in some order of its axes."""
    full = prod(shape) == layout.buffers[at.buffer].type.size
    steps = sorted((s, d) for d, s in zip(shape, at.strides, strict=True) if d != 1)
    reach = 1
    for stride, extent in steps:
        if stride != reach:
            return False
        reach *= extent
    return full and at.offset == 0
