"""Injective operators as templates of their own: the output is cut into boxes, each filled by one nest.

A box has its own index space, on which the output's coordinates depend affinely. What an element is comes from the
template's ``source`` function; elementwise work after the operator is done in the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ...ir import Value
from ...ops import OPS, Kind
from ...ops.selection import POSITIONAL
from ...types import DTYPES
from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region
from ._nest import Data, nest, walk

# One coordinate as an affine function of a box's indices: (base, ((box axis, factor), ...)).
Affine = tuple[int, tuple[tuple[int, int], ...]]
Place = tuple[Affine, ...]


@dataclass(frozen=True)
class Box:
    """A part of the output. ``place`` gives each output coordinate, ``reads`` the values that its source reads and
    where (an axis that it computes has no terms), ``solo`` the axes whose index itself matters to the source."""

    extents: tuple[int, ...]
    place: Place
    reads: tuple[tuple[Value, Place], ...] = ()
    solo: tuple[int, ...] = ()
    scalar: tuple[int, ...] = ()  # axes that are never the vector axis
    data: dict[str, Any] = field(default_factory=dict)


def straight(bases: Sequence[int]) -> Place:
    """Coordinate i is box axis i plus a base."""
    return tuple((b, ((i, 1),)) for i, b in enumerate(bases))


def anchor_args(region: Region) -> list[Value | None]:
    assert region.anchor is not None
    return region.body.args(region.anchor)


def elementwise_around(region: Region) -> bool:
    """Whether all but the anchor is elementwise, without coordinates, and all outputs have the anchor's shape."""
    body = region.body
    for key in body:
        node = body.node(key)
        plain_work = OPS[node.op].kind in (Kind.ELEMENTWISE, Kind.STORED) or node.op == "copy"
        if key != region.anchor and (not plain_work or node.op in POSITIONAL):
            return False
    return all(o.type.dims == region.anchor_type.dims for o in region.outputs)


def alone(region: Region) -> bool:
    """Whether the body is the anchor and its inputs, nothing else."""
    return all(key == region.anchor or region.body.node(key).op == "input" for key in region.body)


def leaf_strides(region: Region, value: Value, shape: Sequence[int]) -> list[list[int]]:
    """Strides, along the axes of ``shape``, of every region input that elementwise work reads for ``value``."""
    body = region.body
    if value.node == region.anchor:
        return []
    if value.node in body.inputs:
        operand = region.inputs[body.inputs.index(value.node)]
        own = [s if d > 1 else 0 for s, d in zip(operand.strides, operand.type.dims, strict=True)]
        return [[0] * (len(shape) - len(own)) + own]
    return [s for a in body.args(value.node) if a is not None for s in leaf_strides(region, a, shape)]


def along(strides: Sequence[int], place: Place, rank: int) -> list[int]:
    """Strides along a box's axes of a tensor whose coordinates are ``place``."""
    found = [0] * rank
    for stride, (_, terms) in zip(strides, place, strict=True):
        for axis, factor in terms:
            found[axis] += stride * factor
    return found


def vector_lanes(region: Region) -> int:
    """Lanes that fill a vector register with the widest type that is computed or moved (not index operands)."""
    args = anchor_args(region) if region.anchor is not None else []
    indices = {a.node for a in args[1:] if a is not None}
    nodes = [region.body.node(n) for n in region.body if n not in indices]
    return lanes_for(region.machine, max((DTYPES[t.dtype][0] for n in nodes for t in n.types), default=4))


def lanes_for(machine: Machine, itemsize: int) -> int:
    """Elements of that many bytes in a vector register; 1 on a machine without vectors."""
    return max(1, machine.vector_bytes // itemsize) if machine.lanes > 1 else 1


def move_cost(region: Region, passes: float = 1.0) -> float:
    """Nanoseconds to stream the region's tensors once, at the rate of the pointwise template."""
    traffic = sum(o.type.nbytes for o in (*region.inputs, *region.outputs))
    ops = sum(OPS[region.body.node(n).op].kind is Kind.ELEMENTWISE for n in region.body)
    size = sum(o.type.size for o in region.outputs)
    return 100 + max(size * ops / region.machine.lanes, passes * traffic / 8) / 2.5


def plan_boxes(
    region: Region,
    template: str,
    boxes: Sequence[Box],
    *,
    consts: Sequence[np.ndarray] = (),
    cost: float | None = None,
    work: float = 1.0,
    detail: str = "",
) -> list[Plan]:
    """One plan of one phase that fills ``boxes``; their order is the order of tasks (of blocks on a GPU)."""
    if not elementwise_around(region):
        return []
    if region.machine.gpu is not None:
        from ._cuda_boxes import plan_boxes as on_device

        return on_device(region, template, boxes, consts=consts, work=work, detail=detail)
    lanes, tasks = vector_lanes(region), 0
    rows: list[Data] = []
    big = sum(math.prod(b.extents) for b in boxes) * work > 16384
    for box in boxes:
        if 0 in box.extents:
            continue
        strides = box_strides(region, box)
        loops = nest(box.extents, strides, lanes, solo=box.solo, scalar=box.scalar, work=work, parallel=big)
        rows.append({"nest": loops, "place": plain(box.place), "data": plain(box.data), "first": tasks})
        tasks += loops["tasks"]
    if tasks == 1 or not big:
        tasks = 0
    config = {**box_config(region, rows, consts), "tasks": tasks}
    args = box_args(region, consts)
    phases = (Draft(KernelSpec(template, config), args, tasks or None),) if rows else ()
    return [
        Plan(
            template.split(".")[0],
            phases,
            cost=move_cost(region) if cost is None else cost,
            consts=tuple(consts),
            detail=detail or template,
        )
    ]


def box_strides(region: Region, box: Box) -> list[list[int]]:
    """Strides along a box's axes of all tensors that are written and read for it, the outputs' first."""
    rank, shape = len(box.extents), region.anchor_type.dims
    strides = [along(o.strides, box.place, rank) for o in region.outputs]
    strides += [along(s, box.place, rank) for v in region.body.outputs for s in leaf_strides(region, v, shape)]
    for value, place in box.reads:
        own = region.body.type(value).dims
        strides += [along(s, place, rank) for s in leaf_strides(region, value, own)]
    return strides


def box_config(region: Region, rows: Sequence[Data], consts: Sequence[np.ndarray]) -> Data:
    """What a kernel that fills boxes is told."""
    return {
        "program": serialize(region),
        "attrs": plain(dict(region.attrs)),
        "boxes": list(rows),
        "consts": [[c.dtype.name, c.size] for c in consts],
    }


def box_args(region: Region, consts: Sequence[np.ndarray]) -> tuple[Arg, ...]:
    return (
        *(Arg("in", i) for i in range(len(region.inputs))),
        *(Arg("const", i) for i in range(len(consts))),
        *(Arg("out", i) for i in range(len(region.outputs))),
    )


Source = Callable[["Cursor", list[Any], int], Any]


class Cursor:
    """What a source function works with: the builder, the evaluator, the anchor's attributes and arguments, the box's
    data, constant tables; it is called with the box's indices and the number of lanes."""

    def __init__(self, k: Any, config: Data, source: Source) -> None:
        from ..evaluate import Evaluator

        program = config["program"]
        skipped = config.get("skip", ())  # inputs that the template has packed
        inputs = [
            None if i in skipped else k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])
        ]
        self.tables = [k.arg(f"c{i}", dtype, size) for i, (dtype, size) in enumerate(config["consts"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.k, self.config, self.attrs, self.source = k, config, config["attrs"], source
        self.ev = Evaluator(k, program, inputs, anchor=self._anchor)
        self.args: list[int | None] = next(n["args"] for n in program["nodes"] if n["op"] == "anchor")
        self.data: Data = {}
        self.number = 0  # which of the anchor's outputs is wanted
        self.memo: Data = {}  # what a source keeps between them, at one place
        self._index: list[Any] = []
        self.lanes = 1

    def _anchor(self, number: int, coords: list[Any]) -> Any:
        self.number = number
        return self.source(self, self._index, self.lanes)

    def value(self, arg: int, coords: Sequence[Any], lanes: int) -> Any:
        """Argument ``arg`` of the anchor there; all lanes agree where it does not depend on them."""
        from ..tir import splat

        number = self.args[arg]
        assert number is not None
        return splat(self.ev.value(number, list(coords), lanes), lanes)

    def shape(self, arg: int) -> list[int]:
        number = self.args[arg]
        assert number is not None
        return self.ev.shape(number)

    def dtype(self, arg: int) -> str:
        number = self.args[arg]
        assert number is not None
        return self.ev.dtype(number)

    def fill(self, row: Data, task: Any) -> None:
        walk(self.k, row["nest"], task, self.element(row))

    def element(self, row: Data) -> Callable[[list[Any], int], None]:
        """What computes and stores the results at a box's indices."""
        self.data = row["data"]

        def body(index: list[Any], lanes: int) -> None:
            self.ev.begin()
            self.memo = {}
            self._index, self.lanes = index, lanes
            coords = [affine(place, index) for place in row["place"]]
            self.ev.store_all(self.outputs, coords, lanes)

        return body


def put(cursor: Cursor, number: int, coords: list[Any], value: Any) -> None:
    """Stores to an output by its strides, as its element type where it is a number."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import dtype_of

    base, step = cursor.ev.address(cursor.config["program"]["outputs"][number]["strides"], coords)
    kind = "uint8" if dtype_of(value) == "bool" else cursor.config["program"]["outputs"][number]["dtype"]
    value = cast(value, kind) if cursor.k.widens or kind == "uint8" else value
    if step is None:
        cursor.k.emit(tirx.BufferStore(cursor.outputs[number], value, [base]))
    else:
        cursor.k.store(cursor.outputs[number], base, value, step)


def affine(place: Any, index: Sequence[Any]) -> Any:
    """The coordinate (base, step) that ``place`` gives for a box's indices."""
    base, terms = place
    step = 0
    for axis, factor in terms:
        b, s = index[axis]
        base, step = base + b * factor, step + s * factor
    return base, step


def emit_boxes(k: Any, config: Data, source: Source) -> None:
    over_boxes(k, config, Cursor(k, config, source).fill)


def over_boxes(k: Any, config: Data, fill: Callable[[Data, Any], None]) -> None:
    """Calls ``fill(box, task of the box)`` for every box."""
    from tvm import tirx

    rows = config["boxes"]
    if not config["tasks"]:
        for row in rows:
            with k.loop(row["nest"]["tasks"]) as task:
                fill(row, task)
        return
    with k.parallel(config["tasks"]) as task:
        for row in rows:
            first, count = row["first"], row["nest"]["tasks"]
            if len(rows) == 1:
                fill(row, task)
                continue
            with k.when(tirx.all(task >= first, task < first + count) if count > 1 else tirx.EQ(task, first)):
                fill(row, task - first)


def index32(k: Any, value: Any) -> Any:
    """An index of any integer type as int32. Wide ones are clamped first, so that nothing wraps into range."""
    from ..functions import cast
    from ..tir import dtype_of, like, maximum, minimum

    dtype = dtype_of(value)
    if dtype in ("int64",):
        value = maximum(minimum(value, like(2**31 - 1, value)), like(-(2**31), value))
    elif dtype in ("uint64", "uint32"):
        value = minimum(value, like(2**31 - 1, value))
    return cast(value, "int32")


def inside(k: Any, value: Any, size: int) -> Any:
    """An int32 index that may be negative (counted from the end), made one within ``[0, size)``."""
    from ..tir import like, maximum, minimum, select

    value = k.bind(value, "index")
    value = select(value < like(0, value), value + like(size, value), value)
    return k.bind(maximum(minimum(value, like(size - 1, value)), like(0, value)), "index")


def expr32(index: Any) -> Any:
    """A loop index as an expression (that of a loop of extent 1 is a number)."""
    from ..tir import constant

    return constant(index, "int32") if isinstance(index, int) else index


def as_coord(index: Any) -> Any:
    """An int32 expression as a coordinate: scalar, or a vector of indices."""
    from ..tir import lanes_of

    if isinstance(index, int) or lanes_of(index) == 1:
        return index, 0
    return index, None
