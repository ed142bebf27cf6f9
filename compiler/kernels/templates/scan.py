"""Running sums and products along one axis: lanes are neighbouring rows where those are contiguous in memory."""

from __future__ import annotations

import math
from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._rows import Unit, Walk, axis_strides, main_strides, operations, source, walk
from .reduce import accumulator


def plan(region: Region) -> list[Plan]:
    x = region.body.type(source(region))
    axis = normalise_axis(region.attrs["axis"], x.rank)
    main = main_strides(region)
    nearest = min((abs(main[a]) for a in range(x.rank) if a != axis and x.dims[a] > 1), default=0)
    lanes = region.machine.lanes if nearest == 1 else 1
    every = axis_strides(region, range(x.rank))
    space = walk(region, [axis], every, work=1 + operations(region), across=False, lanes=lanes, wide=2)
    config = {
        "program": serialize(region),
        "op": region.op,
        "axis": axis,
        "extent": x.dims[axis],
        "dtype": accumulator(region.op, x.dtype),
        "exclusive": bool(region.attrs["exclusive"]),
        "reverse": bool(region.attrs["reverse"]),
        "walk": space,
    }
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    draft = Draft(KernelSpec("scan", config), args, space["tasks"] if space["tasks"] > 1 else None)
    cost = 100 + math.prod(x.dims) * (3 + operations(region)) / lanes
    return [Plan("scan", (draft,), cost, detail=f"{region.op}, {lanes} rows at once")]


def emit(k: Any, config: dict[str, Any]) -> None:
    from ..evaluate import Evaluator
    from ..functions import cast
    from ..tir import constant, splat

    program, dtype, axis = config["program"], config["dtype"], config["axis"]
    inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
    outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
    result: list[Any] = [None]
    ev = Evaluator(k, program, inputs, anchor=lambda number, coords: result[0])
    space = Walk(k, config["walk"])
    number = program["anchor"][0]
    given = program["nodes"][number - len(inputs)]["args"][0]
    starts = 0 if config["op"] == "cumsum" else 1

    def body(unit: Unit) -> None:
        running = [k.register(dtype, width) for _, width in unit.columns]
        for register in running:
            register.set(constant(starts, dtype, register.lanes))
        with k.loop(config["extent"]) as i:
            at = config["extent"] - 1 - i if config["reverse"] else i
            for column, coords, lanes in space.results(unit):
                place = space.logical(coords)
                place[axis] = (at, 0)
                ev.begin()
                x = k.bind(cast(splat(ev.value(given, place, lanes), lanes), dtype))
                before = k.bind(running[column].get())
                running[column].set(before + x if config["op"] == "cumsum" else before * x)
                value = before if config["exclusive"] else running[column].get()
                result[0] = k.bind(cast(value, ev.dtype(number)))
                ev.begin()
                ev.store_all(outputs, place, lanes)

    space.run(body)


TEMPLATE = Template("scan", ("cumsum", "cumprod"), plan, {"scan": emit})
