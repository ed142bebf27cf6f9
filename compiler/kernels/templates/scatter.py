"""scatter_elements, scatter_nd: x is copied, unless the result lies where it does, then one task writes or folds the
updates in their order.

An index out of range is clamped. Vectors run along axes on which neighbouring updates go to neighbouring places; no
element is visited twice, so that sums are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, along, anchor_args, as_coord, index32, inside, lanes_for, move_cost, put
from ._nest import Data, nest, walk


def plan(region: Region) -> list[Plan]:
    if not alone(region):
        return []
    out, shape = region.outputs[0], region.anchor_type.dims
    types = [region.body.type(a) for a in anchor_args(region) if a is not None]
    lanes = lanes_for(region.machine, out.type.itemsize)
    source = region.operand(0)
    assert source is not None  # nothing but the operator is in the body
    x = region.inputs[source]
    copied = nest(shape, [out.strides, x.strides], lanes)
    config = {"program": serialize(region), "attrs": plain(dict(region.attrs)), "consts": []}
    args = (*(Arg("in", i) for i in range(len(region.inputs))), Arg("out"))
    phases = []
    if 0 not in shape:
        tasks = copied["tasks"] if copied["tasks"] > 1 else None
        phases.append(Draft(KernelSpec("scatter.copy", {**config, "nest": copied}), args, tasks, copies=(source, 0)))
    updates = types[2].dims
    if 0 not in updates and 0 not in shape:
        loops = _loops(region, updates, lanes)
        phases.append(Draft(KernelSpec("scatter.write", {**config, "nest": loops}), args))
    cost = move_cost(region) + types[2].size * 1.5
    detail = f"{region.op}, {region.attrs['reduction']}"
    return [Plan("scatter", tuple(phases), cost, inplace=in_place(region), detail=detail)]


def in_place(region: Region) -> tuple[tuple[int, int], ...]:
    """x may lie where the result does, if only x lies there: then nothing is copied."""
    x, *others = region.operands
    same = x is not None and x not in others and region.inputs[x].strides == region.outputs[0].strides
    return ((x, 0),) if same and x is not None else ()


def _loops(region: Region, updates: tuple[int, ...], lanes: int) -> Data:
    out, rank = region.outputs[0], len(updates)
    scalar: tuple[int, ...]
    if region.op == "scatter_elements":
        axis = region.attrs["axis"] % rank
        solo, scalar, order = range(rank), (axis,), list(out.strides)
    else:  # indexed axes outermost and in order: later updates win
        lead = region.inputs[region.operand(1)].type.rank - 1  # type: ignore[index]
        depth = region.anchor_type.rank - (rank - lead)
        slices = tuple((0, ((lead + a, 1),)) for a in range(rank - lead))
        order = along(out.strides[depth:], slices, rank)
        most = max([1, *order]) * max(updates)
        order = [most * (2 + lead - a) if a < lead else s for a, s in enumerate(order)]
        solo, scalar = range(rank), tuple(range(lead))
    return nest(updates, [order], lanes, solo=solo, scalar=scalar, parallel=False, overlap=False)


def emit_copied(cursor: Access) -> Callable[[list[Any], int], None]:
    """What copies x at the indices of a walk."""
    rank = len(cursor.shape(0))

    def body(index: list[Any], lanes: int) -> None:
        cursor.ev.begin()
        put(cursor, 0, index[:rank], cursor.value(0, index[:rank], lanes))

    return body


def emit_copy(k: Any, config: Data) -> None:
    body = emit_copied(Access(k, config))
    if config["nest"]["tasks"] > 1:
        with k.parallel(config["nest"]["tasks"]) as task:
            walk(k, config["nest"], task, body)
    else:
        walk(k, config["nest"], None, body)


def emit_write(k: Any, config: Data) -> None:
    cursor = Access(k, config)
    by_element = "axis" in config["attrs"]

    def body(index: list[Any], lanes: int) -> None:
        cursor.ev.begin()
        place = place_of_element(cursor, index, lanes) if by_element else place_of_slice(cursor, index)
        value = cursor.value(2, index, lanes)
        reduction = config["attrs"]["reduction"]
        if reduction != "none":
            value = fold(reduction, cursor.taken(0, place, lanes), value)
        put(cursor, 0, place, value)

    walk(k, config["nest"], None, body)


def place_of_element(cursor: Cursor, index: list[Any], lanes: int) -> list[Any]:
    axis = cursor.attrs["axis"] % len(index)
    at = inside(cursor.k, index32(cursor.k, cursor.value(1, index, lanes)), cursor.shape(0)[axis])
    return [as_coord(at) if a == axis else c for a, c in enumerate(index)]


def place_of_slice(cursor: Cursor, index: list[Any]) -> list[Any]:
    lead, depth = len(cursor.shape(1)) - 1, cursor.shape(1)[-1]
    found = []
    for i in range(depth):
        at = cursor.value(1, [*index[:lead], (i, 0)], 1)
        found.append(as_coord(inside(cursor.k, index32(cursor.k, at), cursor.shape(0)[i])))
    return [*found, *index[lead:]]


def fold(reduction: str, old: Any, new: Any) -> Any:
    from tvm import tirx

    from ..tir import dtype_of, maximum, minimum

    if dtype_of(old) == "bool":
        return tirx.Or(old, new) if reduction in ("add", "max") else tirx.And(old, new)
    table = {"add": lambda: old + new, "mul": lambda: old * new}
    return table[reduction]() if reduction in table else (maximum if reduction == "max" else minimum)(old, new)


class Access(Cursor):
    """Reads and writes of the output by its strides."""

    def __init__(self, k: Any, config: Data) -> None:
        super().__init__(k, config, lambda cursor, index, lanes: None)

    def taken(self, number: int, coords: list[Any], lanes: int) -> Any:
        """What the output holds there."""
        from tvm import tirx

        from ..tir import like

        out = self.config["program"]["outputs"][number]
        base, step = self.ev.address(out["strides"], coords)
        buffer = self.outputs[number]
        value = tirx.BufferLoad(buffer, [base]) if step is None else self.k.load(buffer, base, lanes, step)
        value = self.k.bind(value)
        return tirx.NE(value, like(0, value)) if out["dtype"] == "bool" else value


TEMPLATE = Template(
    "scatter",
    ("scatter_elements", "scatter_nd"),
    plan,
    {"scatter.copy": emit_copy, "scatter.write": emit_write},
)
