"""Which template makes each kernel: the cheapest plan of every region, within the byte budget for packed weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, inf

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine
from ..ir import Graph, Value
from ..kernels.spec import Operand, Plan, Region
from ..kernels.templates import plans
from ..passes.fuse import op_label
from .layout import Layout, copy_body


@dataclass(frozen=True)
class Choices:
    """What decides between plans besides the machine."""

    exact: bool = False
    fast: bool = False
    small: bool = False
    lean: bool = False  # where much is alive, kernels that write over their input and take little scratch
    weight_budget: float = 1.5  # packed bytes over original bytes

    @property
    def budget(self) -> float:
        return 1.02 if self.small else self.weight_budget


@dataclass(frozen=True)
class Job:
    """One region to be run: its graph node, operands' values and the plan chosen for it."""

    node: int
    label: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    region: Region
    plan: Plan


class NoTemplate(Exception):
    """No template serves these nodes with the strides they have."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = tuple(nodes)
        super().__init__(f"no template for nodes {self.nodes}")


def select(
    layout: Layout,
    machine: Machine,
    choices: Choices,
    room: Mapping[int, int] | None = None,
    tight: Collection[int] = (),
) -> dict[int, list[Job]]:
    """The jobs of every working node (a concat has one for each input that must be copied to its place).

    ``room`` bounds the bytes of scratch of each node, where a plan with so little can be had. Nodes in ``tight`` get a
    plan whose result may lie over its input, where there is one.
    """
    graph = layout.graph
    proposals: dict[int, list[tuple[Job, list[Plan]]]] = {}
    failed: list[int] = []
    for key in graph.order():
        node = graph.node(key)
        if node.op == "fused":
            jobs = [_job(layout, key, machine, choices)]
        elif node.op == "concat":
            args = graph.args(key)
            parts = [a for a in (args[arg] for arg in layout.writes[key]) if a is not None]
            jobs = [copy_job(layout, a, Value(key), machine, choices) for a in parts]
        else:
            continue
        found = [(job, _roomy(usable_plans(job.region), (room or {}).get(key))) for job in jobs]
        if key in tight:
            found = [(job, _over_input(options, inf if choices.lean else _WORTH)) for job, options in found]
        if any(not options for _, options in found):
            failed.append(key)
        proposals[key] = found
    if failed:
        raise NoTemplate(failed)
    chosen = _within_budget(graph, proposals, choices)
    return {
        key: [_with_plan(job, chosen[key, i]) for i, (job, _) in enumerate(found)] for key, found in proposals.items()
    }


def _with_plan(job: Job, plan: Plan) -> Job:
    return Job(job.node, job.label, job.inputs, job.outputs, job.region, plan)


def _operand(layout: Layout, value: Value) -> Operand:
    place = layout.places[value]
    array = layout.graph.constant(value)
    type = layout.graph.type(value)
    return Operand(type, place.strides, array, gcd(place.offset * type.itemsize, ALIGNED))


ALIGNED = 16  # bytes: what ``Operand.aligned`` counts to; buffers themselves begin at multiples of more
_NO_PLAN = Plan("", (), 0.0)
_WORTH = 1.25  # times the cost of the cheapest plan, for one that needs less RAM where much is alive


def _roomy(options: list[Plan], room: int | None) -> list[Plan]:
    """The plans whose scratch fits; where none does, those that need least."""
    if room is None or not options:
        return options
    needs = [p.shared_bytes + p.worker_bytes for p in options]
    limit = max(room, min(needs))
    return [p for p, need in zip(options, needs, strict=True) if need <= limit]


def _over_input(options: list[Plan], most: float) -> list[Plan]:
    """The plans, those first whose result may lie over an input and that cost at most ``most`` times the cheapest."""
    limit = most * min((p.cost for p in options), default=0.0)
    return sorted(options, key=lambda p: not ((p.overlaps or p.inplace) and p.cost <= limit))


def usable_plans(region: Region) -> list[Plan]:
    """The templates' proposals; nothing is to be done where nothing is made.

    Kernels are compiled for tensors that do not overlap. Of several outputs one may still be written over an input
    that it is computed from, element by element: then no store can come before a load that it must not.
    """
    if not any(o.type.size for o in region.outputs):
        return [_NO_PLAN]
    found = plans(region)
    if len(region.outputs) > 1:
        found = [replace(p, inplace=tuple((i, j) for i, j in p.inplace if region.follows(j, i))) for p in found]
    return found


def _job(layout: Layout, key: int, machine: Machine, choices: Choices) -> Job:
    graph = layout.graph
    body: Graph = graph.node(key).attrs["body"]
    inputs = tuple(a for a in graph.args(key) if a is not None)
    outputs = tuple(graph.values(key))
    region = Region(
        body,
        tuple(_operand(layout, v) for v in inputs),
        tuple(_operand(layout, v) for v in outputs),
        machine,
        choices.exact,
        choices.fast,
        choices.small,
    )
    return Job(key, op_label(body), inputs, outputs, region, _NO_PLAN)


def copy_job(layout: Layout, value: Value, target: Value, machine: Machine, choices: Choices) -> Job:
    """A copy of ``value`` to where ``target`` lies or, for a concat, to a part of it; with the cheapest plan."""
    graph = layout.graph
    body = copy_body(graph, value, target.node)
    type, place = graph.type(value), layout.places[target]
    part = graph.node(target.node).op == "concat"  # which may begin at any element
    out = Operand(type, place.strides, aligned=type.itemsize if part else gcd(place.offset * type.itemsize, ALIGNED))
    region = Region(body, (_operand(layout, value),), (out,), machine, choices.exact, choices.fast, choices.small)
    return Job(target.node, "copy", (value,), (target,), region, usable_plans(region)[0])


def concat_offset(graph: Graph, key: int, arg: int, strides: Sequence[int]) -> int:
    """Elements from the start of a concat to its input ``arg``."""
    axis = int(graph.node(key).attrs["axis"]) % len(strides)
    before = [graph.type(a).dims[axis] for a in graph.args(key)[:arg] if a is not None]
    return sum(before) * strides[axis]


def _packed(plan: Plan) -> int:
    return sum(c.nbytes for c in plan.consts)


def _within_budget(
    graph: Graph, proposals: Mapping[int, list[tuple[Job, list[Plan]]]], choices: Choices
) -> dict[tuple[int, int], Plan]:
    """The cheapest plans; while they hold too many bytes of weights, the swap that loses least time for each byte."""
    held = [graph.node(n).array for n in graph.find("const")]
    original = sum(map(_least_bytes, held)) if choices.small else sum(array.nbytes for array in held)
    chosen = {(key, i): options[0] for key, found in proposals.items() for i, (_, options) in enumerate(found)}
    unpacked = _left_unpacked(graph, proposals)
    sharers = _sharers(graph, proposals)
    total = unpacked + sum(_packed(p) // sharers[at] for at, p in chosen.items())
    limit = max(choices.budget * original, original + 4096)
    swaps = {at: _best_swap(proposals[at[0]][at[1]][1], plan) for at, plan in chosen.items()}
    while total > limit:
        found_swaps = [(swap[0], at, swap[1]) for at, swap in swaps.items() if swap is not None]
        if not found_swaps:
            break
        _, at, rank = min(found_swaps)
        other = proposals[at[0]][at[1]][1][rank]
        total -= (_packed(chosen[at]) - _packed(other)) // sharers[at]
        chosen[at] = other
        swaps[at] = _best_swap(proposals[at[0]][at[1]][1], other)
    return chosen


def _sharers(graph: Graph, proposals: Mapping[int, list[tuple[Job, list[Plan]]]]) -> dict[tuple[int, int], int]:
    """How many jobs have the same weights: the patches of a layer, whose packed weights lie in the program once."""
    weights = {
        (key, i): tuple(v for v in job.inputs if graph.node(v).op == "const")
        for key, found in proposals.items()
        for i, (job, _) in enumerate(found)
    }
    if "patched" not in graph.meta:
        return dict.fromkeys(weights, 1)
    count = Counter(weights.values())
    return {at: count[held] for at, held in weights.items()}


def _least_bytes(array: np.ndarray) -> int:
    """What a constant needs: each weight, or only those that are not zero and two bytes for where they lie."""
    return min(array.nbytes, int(np.count_nonzero(array)) * (array.itemsize + 2))


def _best_swap(options: Sequence[Plan], now: Plan) -> tuple[float, int] | None:
    """Time lost for each byte that the best smaller plan saves, and that plan's number."""
    saved = [(rank, other.cost, _packed(now) - _packed(other)) for rank, other in enumerate(options)]
    return min((((cost - now.cost) / less, rank) for rank, cost, less in saved if less > 0), default=None)


def _left_unpacked(graph: Graph, proposals: Mapping[int, list[tuple[Job, list[Plan]]]]) -> int:
    """Bytes of constants that kernels read as they are."""
    read: set[Value] = set()
    for found in proposals.values():
        for job, options in found:
            used = {a.index for p in options[0].phases for a in p.args if a.kind == "in"}
            read |= {v for i, v in enumerate(job.inputs) if i in used and graph.node(v).op == "const"}
    return sum(graph.type(v).nbytes for v in read)


def no_kernel(graph: Graph, nodes: Sequence[int], machine: Machine) -> NervureError:
    """The error for regions that no template serves, all of them at once."""
    lines = [
        f"{op_label(graph.node(n).attrs['body'])} -> {graph.node(n).types[0]}"
        for n in nodes
        if graph.node(n).op == "fused"
    ]
    where = [o for n in nodes for o in graph.node(n).origin[:1]]
    return NervureError(
        f"no kernel for {len(nodes)} operation(s) on {machine.name}: {'; '.join(lines[:5])}",
        where=where,
        why="no template accepts these element types or shapes",
        hint="report the model; nervure inspect shows the operation, and another form of it may have a kernel",
    )
