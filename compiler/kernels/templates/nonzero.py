"""nonzero: one pass in row-major order that appends coordinates, then zeros behind them."""

from __future__ import annotations

from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, expr32, move_cost, put
from ._nest import Data


def plan(region: Region) -> list[Plan]:
    x = region.operand(0)
    if x is None or len(region.outputs) != 2 or not alone(region):
        return []
    config = {"program": serialize(region), "attrs": plain(dict(region.attrs)), "consts": []}
    draft = Draft(KernelSpec("nonzero", config), (Arg("in", x), Arg("out", 0), Arg("out", 1)))
    return [Plan("nonzero", (draft,), move_cost(region) + 2.0 * region.inputs[x].type.size)]


def emit(k: Any, config: Data) -> None:
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant, dtype_of, like

    cursor = Cursor(k, config, lambda cursor, index, lanes: None)
    shape = cursor.shape(0)
    size = config["program"]["outputs"][0]["shape"][1]
    count = k.register("int32", 1, "count")
    count.set(constant(0, "int32"))

    def visit(index: list[Any]) -> None:
        if len(index) < len(shape):
            with k.loop(shape[len(index)]) as i:
                visit([*index, i])
            return
        cursor.ev.begin()
        value = cursor.value(0, [(i, 0) for i in index], 1)
        with k.when(value if dtype_of(value) == "bool" else tirx.NE(value, like(0, value))):
            for axis, i in enumerate(index):
                put(cursor, 0, [(axis, 0), (count.get(), 0)], cast(expr32(i), "int64"))
            count.set(count.get() + 1)

    if 0 not in shape:
        visit([])
    with k.loop(size - count.get()) as i:
        for axis in range(len(shape)):
            put(cursor, 0, [(axis, 0), (count.get() + i, 0)], constant(0, "int64"))
    put(cursor, 1, [], cast(count.get(), "int64"))


TEMPLATE = Template("nonzero", ("nonzero",), plan, {"nonzero": emit})
