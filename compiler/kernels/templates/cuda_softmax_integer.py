"""softmax_integer on a GPU: largest element, a table of exponentials, their sum and one rescaling, of a row that its
threads hold in registers. Integers throughout but for that product, which is rounded by itself: bit for bit the
reference's."""

from __future__ import annotations

from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_rows import DeviceWalk, device_walk, walk_cost
from ._rows import Passes, Spot, Unit


def plan(region: Region) -> list[Plan]:
    """One plan where nothing is fused with it."""
    x = region.operand(0)
    if len(region.body) != 4 or len(region.outputs) != 1 or x is None or not region.outputs[0].type.size:
        return []
    operands = (region.inputs[x], region.outputs[0])
    every = [[s if d > 1 else 0 for s, d in zip(o.strides, o.type.dims, strict=True)] for o in operands]
    axis = normalise_axis(region.attrs["axis"], region.anchor_type.rank)
    space = device_walk(region, [axis], every, main=every[0])
    config: dict[str, Any] = {
        "program": serialize(region),
        "attrs": {k: region.attrs[k] for k in ("zero_point", "low", "high", "to")},
        "walk": space,
    }
    args = (*(Arg("in", region.operand(i) or 0) for i in range(3)), Arg("out"))
    draft = Draft(KernelSpec("cuda_softmax_integer", config), args, space["tasks"])
    detail = f"softmax {'rows' if space['across'] else 'columns'} {space['x']}x{space['y']}"
    return [Plan("cuda_softmax_integer", (draft,), walk_cost(region, space, passes=3), detail=detail)]


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _Softmax(k, config)
    kernel.walk.run(kernel.unit)


class _Softmax:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c = k, config
        program = config["program"]
        k.contract = False
        source = program["nodes"][0]["args"][0]
        x, self.out = program["inputs"][source], program["outputs"][0]
        given = k.arg("x", x["dtype"], x["span"])
        self.table, self.multiplier = k.arg("table", "int32", 256), k.arg("m", "float32", 1)
        self.y = k.arg("y", self.out["dtype"], self.out["span"])
        self.ev = Evaluator(k, {**program, "inputs": [x], "nodes": [], "results": []}, [given])
        self.walk = DeviceWalk(k, config["walk"])

    def unit(self, unit: Unit) -> None:
        from ..functions import cast
        from ..integers import rescaled
        from ..tir import maximum

        k, held = self.k, self.c["walk"]["unrolled"]
        how = "registers" if held else "again"
        rows = Passes(self.walk, unit, how, None, lambda s: k.bind(cast(self.walk.read(self.ev, 0, s), "int32")))
        (most,) = rows.fold(maximum, -(1 << 31), "int32", lambda s, x: (x, x), first=True)

        def entry(spot: Spot, x: Any) -> tuple[Any, Any]:
            part = k.bind(k.load(self.table, most - x))
            return part, part

        (total,) = rows.fold(lambda a, b: a + b, 0, "int32", entry)
        each = k.bind(k.load(self.multiplier, 0) / cast(total, "float32"), "each")

        def finish(spot: Spot, part: Any) -> None:
            part = part if held else k.bind(k.load(self.table, most - part))
            at, _ = self.ev.address(self.out["strides"], self.walk.logical(spot.coords))
            with self.walk.guard(self.ev, spot):
                k.store(self.y, at, rescaled(k, part, each, self.c["attrs"]))

        rows.each(finish)


TEMPLATE = Template("cuda_softmax_integer", ("softmax_integer",), plan, {"cuda_softmax_integer": emit}, device=True)
