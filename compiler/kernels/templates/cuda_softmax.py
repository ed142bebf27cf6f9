"""Softmax and its logarithm on a GPU, along any axis, with elementwise work before and after.

A row is read once: a warp or a block holds it in registers between the largest element, the sum of exponentials and the
quotient. One that is too long for that is read anew in each pass.
"""

from __future__ import annotations

import math
from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_rows import DeviceWalk, device_walk, walk_cost
from ._rows import Passes, Spot, Unit, axis_strides, source
from .softmax import same_place


def plan(region: Region) -> list[Plan]:
    """One plan; none for empty tensors."""
    x = region.body.type(source(region))
    if x.size == 0:
        return []
    axis = normalise_axis(region.attrs["axis"], x.rank)
    held = 2 if x.dtype == "float64" else 1
    space = device_walk(region, [axis], axis_strides(region, range(x.rank)), held=held, vectors=True)
    config: dict[str, Any] = {
        "program": serialize(region),
        "log": region.op == "log_softmax",
        "walk": space,
        "dtype": "float64" if x.dtype == "float64" else "float32",
        "exact": region.exact,
    }
    args = [*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs)))]
    draft = Draft(KernelSpec("cuda_softmax", config), tuple(args), space["tasks"])
    cost = walk_cost(region, space, special=1 if space["unrolled"] else 2, passes=3)
    shape = f"{'rows' if space['across'] else 'columns'} {space['x']}x{space['y']}"
    return [Plan("cuda_softmax", (draft,), cost, inplace=same_place(region), detail=f"softmax {shape}")]


# -- emitting ------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _Softmax(k, config)
    kernel.walk.run(kernel.unit)


class _Softmax:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c, self.dtype = k, config, config["dtype"]
        program = config["program"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.anchor = program["anchor"][0]
        self.given = program["nodes"][self.anchor - len(inputs)]["args"][0]
        self.result: Any = None
        self.ev = Evaluator(k, program, inputs, anchor=lambda number, coords: self.result)
        self.walk = DeviceWalk(k, config["walk"])

    def unit(self, unit: Unit) -> None:
        from ..functions import cast
        from ..tir import splat
        from ..vecmath import combine, log

        k, held = self.k, self.c["walk"]["unrolled"]
        rows = Passes(
            self.walk,
            unit,
            "registers" if held else "again",
            None,
            lambda s: k.bind(cast(self.walk.read(self.ev, self.given, s), self.dtype)),
        )
        (most,) = rows.fold(combine("maximum"), float("-inf"), self.dtype, lambda s, x: (x, x), first=True)
        most = k.bind(most)

        def weigh(spot: Spot, x: Any) -> tuple[Any, Any]:
            shifted = k.bind(x - splat(most, spot.lanes))
            e = k.bind(exponential(k, shifted, self.c["exact"]))
            return (shifted if self.c["log"] else e), e

        (total,) = rows.fold(lambda a, b: a + b, 0.0, self.dtype, weigh)
        scale = k.bind(log(k, k.bind(total)) if self.c["log"] else 1.0 / total)

        def finish(spot: Spot, value: Any) -> None:
            if not held:
                value = k.bind(value - splat(most, spot.lanes))
                value = value if self.c["log"] else k.bind(exponential(k, value, self.c["exact"]))
            factor = splat(scale, spot.lanes)
            self._store(spot, value - factor if self.c["log"] else value * factor)

        rows.each(finish)

    def _store(self, spot: Spot, value: Any) -> None:
        from ..functions import cast

        self.result = self.k.bind(cast(value, self.ev.dtype(self.anchor)))
        coords = self.walk.logical(spot.coords)
        self.ev.begin()
        with self.walk.guard(self.ev, spot):
            self.ev.store_all(self.outputs, coords, spot.lanes)


def exponential(k: Any, x: Any, exact: bool) -> Any:
    """exp of a number that is not positive (or NaN). Of float32, unless ``exact``, by the machine's power of two: the
    relative error is 2^-22 and what the rounding of x log2(e) adds, |x| 2^-24; 0 below -87.3."""
    from .. import vecmath
    from ..tir import as_dtype, dtype_of, lanes_of, like

    if exact or dtype_of(x) != "float32":
        return vecmath.exp(k, x)
    return k.device("nv_exp2", as_dtype("float32", lanes_of(x)), x * like(math.log2(math.e), x))


TEMPLATE = Template("cuda_softmax", ("softmax", "log_softmax"), plan, {"cuda_softmax": emit}, device=True)
