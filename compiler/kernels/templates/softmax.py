"""Softmax and its logarithm along any axis, with elementwise work before and after.

A row that fits into half of the vector registers stays there; a longer one lies in the worker's scratch between the
three passes: largest element, exponentials and their sum, quotient.
"""

from __future__ import annotations

from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._rows import Passes, Spot, Unit, Walk, axis_strides, hold, operations, source, walk

_WORK = 20.0  # operations of one element, its exponential included


def plan(region: Region) -> list[Plan]:
    x = region.body.type(source(region))
    axis = normalise_axis(region.attrs["axis"], x.rank)
    every = axis_strides(region, range(x.rank))
    work = _WORK + operations(region)
    length = x.dims[axis]
    wide = max(1, min(4, region.machine.registers // 2 // max(1, length)))
    config: dict[str, Any] = {
        "program": serialize(region),
        "log": region.op == "log_softmax",
        "walk": walk(region, [axis], every, work=work, wide=wide),
    }
    config["dtype"] = "float64" if x.dtype == "float64" else "float32"
    config["hold"], scratch = hold(region, config["walk"], keeps=True)
    config["scratch"] = scratch // (8 if x.dtype == "float64" else 4)
    args = [*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs)))]
    args += [Arg("worker")] if scratch else []
    tasks = config["walk"]["tasks"]
    draft = Draft(KernelSpec("softmax", config), tuple(args), tasks if tasks > 1 else None)
    cost = 100 + x.size * work / region.machine.lanes / 2
    detail = f"softmax {'rows' if config['walk']['across'] else 'columns'} in {config['hold']}"
    return [Plan("softmax", (draft,), cost, worker_bytes=scratch, inplace=same_place(region), detail=detail)]


def same_place(region: Region) -> tuple[tuple[int, int], ...]:
    """Inputs that the one output may take over: those of its type and strides, of which every element is read at its
    own place, or a whole row before, before it is written."""
    return tuple(
        (i, j)
        for j, result in enumerate(region.outputs)
        for i, given in enumerate(region.inputs)
        if given.type == result.type and given.strides == result.strides and len(region.outputs) == 1
    )


def emit(k: Any, config: dict[str, Any]) -> None:
    from ..evaluate import Evaluator
    from ..functions import cast

    program, dtype = config["program"], config["dtype"]
    inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
    outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
    scratch = k.arg("scratch", dtype, config["scratch"]) if config["scratch"] else None
    result: list[Any] = [None]
    ev = Evaluator(k, program, inputs, anchor=lambda number, coords: result[0])
    space = Walk(k, config["walk"])
    number = program["nodes"][program["anchor"][0] - len(inputs)]["args"][0]

    def store(spot: Spot, value: Any) -> None:
        result[0] = k.bind(cast(value, ev.dtype(program["anchor"][0])))
        coords = space.logical(spot.coords)
        ev.begin()
        ev.store_all(outputs, coords, spot.lanes)

    def body(unit: Unit) -> None:
        rows = Passes(space, unit, config["hold"], scratch, lambda s: k.bind(cast(space.read(ev, number, s), dtype)))
        _rows(k, config, rows, store)

    space.run(body)


def _rows(k: Any, config: dict[str, Any], rows: Passes, store: Any) -> None:
    """The three passes over the rows of one unit."""
    from .. import vecmath
    from ..tir import maximum, splat

    dtype, wide = config["dtype"], config["dtype"] == "float64"

    def add(a: Any, b: Any) -> Any:
        return a + b

    def column(values: list[Any], spot: Spot) -> Any:
        return splat(values[spot.slot[0] if not rows.walk.across else 0], spot.lanes)

    def exponential(x: Any) -> Any:
        return vecmath.exp(k, x) if wide else vecmath.exp_fast(k, x, negative=True)

    most = rows.fold(maximum, float("-inf"), dtype, lambda s, x: (x, x), first=True)

    def weigh(spot: Spot, x: Any) -> tuple[Any, Any]:
        shifted = k.bind(x - column(most, spot))
        e = exponential(shifted)
        return (shifted if config["log"] else e), e

    sums = rows.fold(add, 0.0, dtype, weigh)
    if config["log"]:
        scales = [vecmath.log(k, s) for s in sums]
        rows.each(lambda spot, v: store(spot, v - column(scales, spot)))
    else:
        scales = [k.bind(1.0 / s) for s in sums]
        rows.each(lambda spot, v: store(spot, v * column(scales, spot)))


TEMPLATE = Template("softmax", ("softmax", "log_softmax"), plan, {"softmax": emit})
