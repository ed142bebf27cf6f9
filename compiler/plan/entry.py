"""From a fused graph to an ``Entry``: layout, kernels, order, memory; the last thing that looks at a graph."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...targets.machine import Machine
from ..ir import STORED, Graph, Value
from ..kernels.spec import Arg, Draft
from ..ops import OPS, Call
from ..passes.fuse import VIEWS
from ..program import ALIGN, Buffer, Entry, Phase, Port, Ref, Step, Stored, aligned
from .derive import FIXED, Derived, prepared, without
from .layout import Layout, Place, lay_out
from .memory import Span, lower_bound, place
from .reuse import Task, leads, merge_in_place
from .schedule import live_bytes, schedule
from .select import Choices, Job, NoTemplate, concat_offset, copy_job, no_kernel, select
from .titles import about

_ARENA_SHARE = 1.35  # scratch may make the arena so much larger than the largest live set
_LEAST_SCRATCH = 1024
_TIGHT = 0.4  # of the largest live set: above it, RAM counts more than speed where it is short
_TRIED_APART = 12  # results that could be made in place, but are tried with memory of their own
_TRIED_BUFFERS = 600  # fewer where there are so many buffers that each try takes long


@dataclass
class Pool:
    """What the entries of one program share: the block of constants, parameters, states, kernels."""

    const: bytearray = field(default_factory=bytearray)
    _seen: dict[tuple[str, bytes], int] = field(default_factory=dict)
    params: dict[str, Stored] = field(default_factory=dict)
    states: dict[str, Stored] = field(default_factory=dict)
    drafts: dict[str, Draft] = field(default_factory=dict)
    derived: Derived | None = field(default_factory=Derived)  # None: nothing is derived
    settled: frozenset[str] = frozenset()  # states that change with params only: copies may be derived from them too
    arrays: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # type and shape of each constant
    align: int = ALIGN  # bytes: of constants and stored tensors in their blocks

    def add(self, array: np.ndarray) -> int:
        """The offset of a constant in the block; equal arrays lie there once."""
        data = np.ascontiguousarray(array)
        key = (data.dtype.name, hashlib.sha256(data.tobytes()).digest() + str(data.nbytes).encode())
        if key not in self._seen:
            step = ALIGN if self.align >= ALIGN else max(4, data.itemsize)  # small cores load words
            self.const += bytes(-len(self.const) % step)
            self._seen[key] = len(self.const)
            self.const += data.tobytes()
            self.arrays[self._seen[key]] = (data.dtype.name, data.shape)
        return self._seen[key]

    def stored(self, kind: str, name: str, graph: Graph, node: int) -> int:
        """The offset of a param or state in its block; one name means one tensor in all entries."""
        table = self.params if kind == "param" else self.states
        if name not in table:
            end = max((s.offset + s.type.nbytes for s in table.values()), default=0)
            record = graph.node(node)
            table[name] = Stored(name, record.types[0], aligned(end, self.align), record.array)
        return table[name].offset


def build_entry(
    graph: Graph,
    machine: Machine,
    choices: Choices,
    pool: Pool,
    function: str = "infer",
    bindings: Mapping[str, int] | None = None,
    fast: Sequence[int] = (),
    capacity: int | None = None,
) -> Entry:
    """Plans one entry point of a fused, static graph. ``fast``: bytes of the memories beside the arena, ``capacity``:
    those of the arena's own memory, where it matters. Raises NervureError where an operation has no kernel."""
    layout, order, jobs = _lay_out_and_select(graph, machine, choices)
    tasks = [t for key in order for t in _tasks(layout, key, jobs.get(key, [])) if _makes_something(t)]
    tasks += _binding_copies(layout, tasks, machine, choices)
    if pool.derived is not None and not _updates(graph):
        tasks = _derive(layout, tasks, pool, pool.derived)
    planner = _planned(layout, tasks, pool, machine, fast, capacity)
    return planner.entry(function, dict(bindings or {}))


def settled_states(graphs: Sequence[Graph]) -> frozenset[str]:
    """States that only entry points which change params bind (running statistics): these make derived copies stale."""
    bound = {True: set[str](), False: set[str]()}
    for graph in graphs:
        states = (graph.node(n) for n in graph.bindings)
        bound[_updates(graph)] |= {node.names[0] for node in states if node.op == "state"}
    return frozenset(bound[True] - bound[False])


def _updates(graph: Graph) -> bool:
    return any(graph.node(n).op == "param" for n in graph.bindings)


def _derive(layout: Layout, tasks: list[Task], pool: Pool, derived: Derived) -> list[Task]:
    """The tasks without what ``refresh`` can do: whole ones, and the packing of weights."""
    kept = []
    writers = Counter(at.buffer for task in tasks for at in task.outputs)
    for task in tasks:
        plan, graph = task.job.plan, layout.graph
        kinds = [_kind(layout, at, pool) for at in task.inputs]
        fixed = [kind in FIXED for kind in kinds]
        out = [layout.buffers[at.buffer] for at in task.outputs]
        own = all(b.kind == "arena" and b.root == v for b, v in zip(out, task.job.outputs, strict=True))
        own = own and all(writers[at.buffer] == 1 for at in task.outputs)  # not a part of a concat
        whole = own and all(fixed) and any(kind != "const" for kind in kinds)
        drafts = list(plan.phases) if whole else prepared(plan, fixed)
        if not drafts:
            kept.append(task)
            continue
        refs = [stored_ref(layout, pool, at) if f else Ref("region") for at, f in zip(task.inputs, fixed, strict=True)]
        sizes = [b.nbytes for b in out] if whole else [d.prepares for d in drafts]
        name, origin = graph.tensor_name(task.job.outputs[0]), graph.node(task.job.outputs[0]).origin
        places = derived.make(name, origin, plan, drafts, refs, sizes, pool.add)
        pool.drafts.update((d.spec.name, d) for d in drafts)
        if whole:
            for storage, place in zip(out, places, strict=True):
                storage.kind, storage.index = "derived", place
        else:
            kept.append(replace(task, job=replace(task.job, plan=without(plan, drafts, places))))
    return kept


def _kind(layout: Layout, at: Place, pool: Pool) -> str:
    """How a tensor is kept; a settled state is kept like a param."""
    storage = layout.buffers[at.buffer]
    settled = storage.kind == "state" and layout.graph.node(storage.root).names[0] in pool.settled
    return "param" if settled else storage.kind


def stored_ref(layout: Layout, pool: Pool, at: Place) -> Ref:
    """The address of what lies in a block: a constant, param, state or derived copy."""
    storage = layout.buffers[at.buffer]
    skip = at.offset * storage.type.itemsize
    if storage.kind == "derived":
        return Ref("derived", storage.index + skip)
    node = layout.graph.node(storage.root)
    if storage.kind == "const":
        return Ref("const", pool.add(node.array) + skip)
    return Ref(storage.kind, pool.stored(storage.kind, node.names[0], layout.graph, storage.root.node) + skip)


def _makes_something(task: Task) -> bool:
    return any(o.type.size for o in task.job.region.outputs)


def _lay_out_and_select(
    graph: Graph, machine: Machine, choices: Choices
) -> tuple[Layout, list[int], dict[int, list[Job]]]:
    """The layout, the order of the steps, and for each step its jobs."""
    plain: list[int] = []
    apart: list[int] = []
    while True:
        layout = lay_out(graph, plain, apart, machine.lanes)
        order, room, tight = _order(layout, machine, choices.lean)
        try:
            jobs = select(layout, machine, choices, room, tight)
            overlapping = _overlapping(layout, jobs)
            if not overlapping:
                return layout, order, jobs
            apart += overlapping
        except NoTemplate as found:
            fresh = [n for n in found.nodes if n in graph.nx and n not in plain]
            if not fresh:
                raise no_kernel(layout.graph, found.nodes, machine) from None
            plain += fresh


def _overlapping(layout: Layout, jobs: Mapping[int, list[Job]]) -> list[int]:
    """The params and states whose next value a kernel would write where it still reads the old one."""
    found = []
    for value, stored in sorted(layout.updates.items()):
        buffer = layout.places[value].buffer
        for job in jobs[value.node]:
            out = job.outputs.index(value)
            reads = [i for i, v in enumerate(job.inputs) if layout.places[v].buffer == buffer]
            if any((i, out) not in job.plan.inplace for i in reads):
                found.append(stored)
    return found


def _order(layout: Layout, machine: Machine, lean: bool) -> tuple[list[int], dict[int, int], list[int]]:
    """The order of the steps, the scratch that each may take so that it does not decide the arena's size, and where
    results can lie over their inputs (one thread), the steps at which much is alive."""

    def buffer_of(value: Value) -> int | None:
        at = layout.places.get(value)
        return at.buffer if at is not None and layout.buffers[at.buffer].kind in ("arena", "output", "input") else None

    def nbytes(buffer: int) -> int:
        return layout.buffers[buffer].nbytes

    order = schedule(layout.graph, buffer_of, nbytes, layout.waits)
    live = live_bytes(layout.graph, order, buffer_of, nbytes)
    most = max(live.values(), default=0)
    allowed = most if lean else _ARENA_SHARE * most
    tight = [key for key, held in live.items() if (lean or machine.system == "bare") and held > _TIGHT * most]
    return order, {key: max(_LEAST_SCRATCH, int(allowed - held)) for key, held in live.items()}, tight


def _tasks(layout: Layout, key: int, jobs: list[Job]) -> list[Task]:
    graph = layout.graph
    node = graph.node(key)
    if node.op != "concat":
        return [Task(j, _at(layout, j.inputs), _at(layout, j.outputs)) for j in jobs]
    found = []
    whole = layout.places[Value(key)]
    for arg, job in zip(layout.writes[key], jobs, strict=True):
        offset = whole.offset + concat_offset(graph, key, arg, whole.strides)
        found.append(Task(job, _at(layout, job.inputs), (replace(whole, offset=offset),)))
    return found


def _at(layout: Layout, values: tuple[Value, ...]) -> tuple[Place, ...]:
    return tuple(layout.places[v] for v in values)


def _binding_copies(layout: Layout, tasks: list[Task], machine: Machine, choices: Choices) -> list[Task]:
    """The next values of params and states are copied to them when everything has read the old ones."""
    graph = layout.graph
    found = []
    for stored, value in sorted(graph.bindings.items()):
        if value == Value(stored) or value in layout.updates:
            continue
        job = copy_job(layout, value, Value(stored), machine, choices)
        found.append(Task(job, _at(layout, job.inputs), _at(layout, job.outputs)))
    return found


# -- addresses -------------------------------------------------------------------------------------------------------


def _planned(
    layout: Layout, tasks: list[Task], pool: Pool, machine: Machine, fast: Sequence[int], capacity: int | None
) -> _Planner:
    """The smallest plan that is found. A result that takes over the place of its input lives as long as both: where
    buffers may overlap otherwise, memory of its own can make a smaller arena."""
    apart: frozenset[int] = frozenset()
    merged = merge_in_place(layout, tasks, apart)
    best = _Planner(layout, tasks, merged, pool, machine, fast, capacity)
    if not best.leads or best.least():
        return best
    most = min(_TRIED_APART, _TRIED_BUFFERS // len(best.buffers))
    large = sorted(merged, key=lambda b: (-layout.buffers[b].nbytes, b))[:most]
    for buffer in large:
        other = merge_in_place(layout, tasks, apart | {buffer})
        trial = _Planner(layout, tasks, other, pool, machine, fast, capacity)
        if sum(trial.region_bytes) < sum(best.region_bytes):
            apart, best = apart | {buffer}, trial
        if best.least():
            break
    return best


class _Planner:
    """Assigns addresses and writes the entry down.

    ``fast`` are the bytes of memories beside the arena (regions 1, 2, ...), fastest first: each takes the buffers that
    are touched most often for their size and fit together. Where the arena then needs more than its ``capacity``, they
    take the largest buffers instead.
    """

    def __init__(
        self,
        layout: Layout,
        tasks: list[Task],
        merged: Mapping[int, int],
        pool: Pool,
        machine: Machine,
        fast: Sequence[int] = (),
        capacity: int | None = None,
    ) -> None:
        self.layout, self.graph, self.tasks, self.pool = layout, layout.graph, tasks, pool
        self.merged, self.fast, self.capacity, self.align = merged, fast, capacity, machine.align
        self.single = machine.system == "bare"  # where there are threads, any step may have several
        bytes_of = [aligned(t.job.plan.worker_bytes, self.align) for t in tasks if _shared_out(t)]
        self.worker_bytes = 0 if self.single else max(bytes_of, default=0)
        self._lifetimes()

    def _home(self, buffer: int) -> int:
        while buffer in self.merged:
            buffer = self.merged[buffer]
        return buffer

    def _lifetimes(self) -> None:
        """Offsets of all arena buffers, of input and output slots and of the steps' shared scratch."""
        end = len(self.tasks)
        life: dict[int, list[int]] = {}
        for t, task in enumerate(self.tasks):
            for at in (*task.inputs, *task.outputs):
                home = self._home(at.buffer)
                if self.layout.buffers[home].kind in ("arena", "input", "output"):
                    life.setdefault(home, [t, t])[1] = t
        for i, storage in enumerate(self.layout.buffers):
            if storage.kind == "input":
                life.setdefault(i, [0, 0])[0] = 0
            elif storage.kind == "output":
                life.setdefault(i, [end, end])[1] = end
        self.homes = sorted(life)
        spans = [Span(self.layout.buffers[b].nbytes, life[b][0], life[b][1]) for b in self.homes]
        number = {b: i for i, b in enumerate(self.homes)}
        homes = {b: self._home(b) for b in range(len(self.layout.buffers))}
        pairs = leads(self.layout, self.tasks, homes, life) if self.single else {}
        self.leads = {(number[i], number[o]): lead for (i, o), lead in pairs.items()}
        self.lower_bound = lower_bound(spans, self.leads)
        self.scratch = [t for t in range(len(self.tasks)) if self._room(t)]
        spans += [Span(self._room(t), t, t) for t in self.scratch]
        placed, self.region_bytes = self._addresses(spans)
        self.addresses = dict(zip(self.homes, placed, strict=False))
        self.scratch_at = dict(zip(self.scratch, placed[len(self.homes) :], strict=True))
        self.buffers = tuple(
            Buffer(self._buffer_name(i), *at, s.nbytes, s.first, s.last, i >= len(self.homes))
            for i, (at, s) in enumerate(zip(placed, spans, strict=True))
        )

    def least(self) -> bool:
        """Whether no plan of these steps can be smaller."""
        return sum(self.region_bytes) < aligned(self.lower_bound, self.align) + self.align

    def _buffer_name(self, index: int) -> str:
        if index < len(self.homes):
            return self.graph.tensor_name(self.layout.buffers[self.homes[index]].root)
        step = self.tasks[self.scratch[index - len(self.homes)]]
        return self.graph.tensor_name(step.job.outputs[0])

    def _addresses(self, spans: Sequence[Span]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        """``(region, offset)`` of each span, and the bytes of every region."""
        found, sizes = self._spread(spans, lambda i: -self._heat(i) / max(1, spans[i].nbytes))
        if self.fast and self.capacity is not None and sizes[0] > self.capacity:
            other = self._spread(spans, lambda i: -spans[i].nbytes)
            if other[1][0] < sizes[0]:
                found, sizes = other
        return [found[i] for i in range(len(spans))], tuple(sizes)

    def _spread(
        self, spans: Sequence[Span], key: Callable[[int], float]
    ) -> tuple[dict[int, tuple[int, int]], list[int]]:
        """The fast memories take what comes first by ``key``, the arena the rest."""
        left = list(range(len(spans)))
        found: dict[int, tuple[int, int]] = {}
        sizes = [0]
        for region, capacity in enumerate(self.fast, start=1):
            chosen: list[int] = []
            for i in sorted(left, key=lambda i: (key(i), i)):
                if spans[i].nbytes <= capacity and self._place(spans, [*chosen, i])[1] <= capacity:
                    chosen.append(i)
            offsets, top = self._place(spans, chosen)
            found |= {k: (region, o) for k, o in zip(chosen, offsets, strict=True)}
            sizes.append(top)
            left = [k for k in left if k not in found]
        offsets, sizes[0] = self._place(spans, left)
        return found | {k: (0, o) for k, o in zip(left, offsets, strict=True)}, sizes

    def _place(self, spans: Sequence[Span], chosen: Sequence[int]) -> tuple[list[int], int]:
        """Offsets of some of the spans in one memory, and its size."""
        if not chosen:
            return [], 0
        at = {k: i for i, k in enumerate(chosen)}
        both = {(at[i], at[o]): lead for (i, o), lead in self.leads.items() if i in at and o in at}
        return place([spans[k] for k in chosen], self.align, both)

    def _room(self, t: int) -> int:
        """What step ``t`` needs beside its operands while one thread runs it: the calling thread's own scratch is
        planned like everything else."""
        plan = self.tasks[t].job.plan
        return aligned(plan.shared_bytes, self.align) + plan.worker_bytes if plan.worker_bytes else plan.shared_bytes

    def _heat(self, index: int) -> float:
        """How many bytes the steps move to and from a buffer."""
        if index >= len(self.homes):
            return 2.0 * self._room(self.scratch[index - len(self.homes)])
        home = self.homes[index]
        touches = sum(self._home(p.buffer) == home for t in self.tasks for p in (*t.inputs, *t.outputs))
        return float(touches * self.layout.buffers[home].nbytes)

    def ref(self, at: Place, value: Value) -> Ref:
        """The address of a placed tensor."""
        home = self._home(at.buffer)
        storage = self.layout.buffers[home]
        skip = at.offset * storage.type.itemsize
        if storage.kind in (*FIXED, "state"):
            return stored_ref(self.layout, self.pool, replace(at, buffer=home))
        if storage.kind in ("input", "output"):
            return Ref(storage.kind, skip, storage.index)
        region, offset = self.addresses[home]
        return Ref("region", offset + skip, region)

    def _in_place(self, task: Task, source: int, target: int) -> bool:
        """Whether an input lies where an output does."""
        a, b = task.inputs[source], task.outputs[target]
        return self.ref(a, task.job.inputs[source]) == self.ref(b, task.job.outputs[target])

    def step(self, t: int) -> Step:
        task = self.tasks[t]
        plan, job = task.job.plan, task.job
        packed = [self.pool.add(c) for c in plan.consts]

        def resolve(arg: Arg) -> Ref:
            if arg.kind == "in":
                return self.ref(task.inputs[arg.index], job.inputs[arg.index])
            if arg.kind == "out":
                return self.ref(task.outputs[arg.index], job.outputs[arg.index])
            if arg.kind == "const":
                return Ref("const", packed[arg.index] + arg.offset)
            if arg.kind == "derived":
                return Ref("derived", arg.offset)
            if arg.kind == "shared":
                region, offset = self.scratch_at[t]
                return Ref("region", offset + arg.offset, region)
            return Ref("worker", arg.offset)

        region, offset = self.scratch_at.get(t, (0, 0))
        own = Ref("region", offset + aligned(plan.shared_bytes, self.align), region)
        phases, still = [], set[int]()  # operands that stay where they are
        for draft in plan.phases:
            if draft.copies is not None and self._in_place(task, *draft.copies):
                still |= {draft.copies[0], len(job.inputs) + draft.copies[1]}
                continue
            self.pool.drafts[draft.spec.name] = draft
            args = tuple(resolve(a) for a in draft.args)
            phases.append(Phase(draft.spec.name, args, draft.tasks or 1, draft.tasks is not None, own))
        body = job.region.body
        operands = enumerate((*job.region.inputs, *job.region.outputs))
        moved = sum(o.type.nbytes for i, o in operands if o.const is None and i not in still)
        return Step(
            name=self.graph.tensor_name(job.outputs[0]),
            op=job.label,
            phases=tuple(phases),
            origin=self.graph.node(job.outputs[0]).origin,
            flops=_flops(body),
            bytes_moved=float(moved),
            weight_bytes=sum(c.nbytes for c in plan.consts),
            detail=plan.detail,
            estimate=plan.cost,
            about=about(job.region),
        )

    def entry(self, function: str, bindings: dict[str, int]) -> Entry:
        graph = self.graph
        steps = tuple(self.step(t) for t in range(len(self.tasks)))
        inputs = [
            Port(graph.node(n).names[0], graph.node(n).types[0], self._slot("input", i))
            for i, n in enumerate(graph.inputs)
        ]
        outputs = []
        for i, (value, name) in enumerate(zip(graph.outputs, graph.output_names, strict=True)):
            count, axis = graph.meta.get("counts", {}).get(i, (None, 0))
            outputs.append(Port(name, graph.type(value), self._slot("output", i), count, axis))
        updates = _updates(graph)
        derived = self.pool.derived
        reads = derived is None or any(r.base == "derived" for s in steps for r in _read(s))
        if derived is not None and reads:
            ends = [p.slot.offset + p.type.nbytes for p in inputs if p.slot.index == 0]
            derived.behind = max(derived.behind, aligned(max(ends, default=0)))
        return Entry(
            function,
            tuple(inputs),
            tuple(outputs),
            steps,
            worker_bytes=self.worker_bytes,
            bindings=bindings,
            updates_params=updates,
            reads_derived=reads,
            flush_denormals=updates,
            region_bytes=self.region_bytes,
            lower_bound=self.lower_bound,
            buffers=self.buffers,
        )

    def _slot(self, kind: str, index: int) -> Ref:
        for b in self.homes:
            storage = self.layout.buffers[b]
            if storage.kind == kind and storage.index == index:
                region, offset = self.addresses[b]
                return Ref("region", offset, region)
        return Ref("region", 0, 0)  # an input that nothing reads


def _read(step: Step) -> Iterator[Ref]:
    """The addresses that a step's kernels are given."""
    return (ref for phase in step.phases for ref in phase.args)


def _shared_out(task: Task) -> bool:
    """Whether more than one thread may work on the step."""
    return any((draft.tasks or 1) > 1 for draft in task.job.plan.phases)


def _flops(body: Graph) -> float:
    total = 0.0
    for key in body:
        node = body.node(key)
        rule = OPS[node.op].cost if node.op not in (*STORED, *VIEWS) else None
        if rule is not None:
            args = tuple(None if a is None else body.type(a) for a in body.args(key))
            total += rule(Call(args, node.attrs)).flops
    return total
