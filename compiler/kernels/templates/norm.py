"""Layer, RMS, group and instance norm: statistics of each row in two passes, then scale and bias.

The variance is taken of what is left after the mean is gone, so that a large mean costs no digits. Group norm sees its
channels as groups and members.
"""

from __future__ import annotations

import math
from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._rows import Coords, Passes, Spot, Unit, Walk, axis_strides, hold, operations, source, walk
from .softmax import same_place

_WORK = 6.0


def plan(region: Region) -> list[Plan]:
    body, attrs = region.body, region.attrs
    x = body.type(source(region))
    grouped = region.op == "group_norm"
    vectors = [number for i in (1, 2) if (number := region.operand(i)) is not None] if grouped else []
    if grouped and len(vectors) != sum(a is not None for a in body.args(region.anchor)[1:]):  # type: ignore[arg-type]
        return []
    every = axis_strides(region, range(x.rank), vectors)
    work = _WORK + operations(region)
    if grouped:
        groups = attrs["num_groups"]
        members = x.dims[1] // groups
        shape = [x.dims[0], groups, members, *x.dims[2:]]
        origin = [(0, 1), (1, members), (1, 1), *((a, 1) for a in range(2, x.rank))]
        reduced = list(range(2, x.rank + 1))
        count = members * math.prod(x.dims[2:])
        space = walk(region, reduced, every, shape=shape, origin=origin, work=work)
    else:
        axis = normalise_axis(attrs["axis"], x.rank)
        reduced = list(range(axis, x.rank))
        count = math.prod(x.dims[axis:])
        space = walk(region, reduced, every, work=work)
    config: dict[str, Any] = {
        "program": serialize(region),
        "op": region.op,
        "epsilon": attrs["epsilon"],
        "count": count,
        "walk": space,
        "dtype": "float64" if x.dtype == "float64" else "float32",
    }
    config["hold"], scratch = hold(region, space, keeps=False)
    config["scratch"] = scratch // (8 if x.dtype == "float64" else 4)
    args = [*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs)))]
    args += [Arg("worker")] if scratch else []
    draft = Draft(KernelSpec("norm", config), tuple(args), space["tasks"] if space["tasks"] > 1 else None)
    cost = 100 + x.size * work / region.machine.lanes / 2
    detail = f"{region.op} {'rows' if space['across'] else 'columns'}, {config['hold']}"
    return [Plan("norm", (draft,), cost, worker_bytes=scratch, inplace=same_place(region), detail=detail)]


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = Norm(k, config)
    kernel.walk.run(kernel.unit)


class Norm:
    """One kernel of this template; ``unit`` emits the work of one of the walk's units."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c, self.dtype = k, config, config["dtype"]
        program = config["program"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.scratch = k.arg("scratch", self.dtype, config["scratch"]) if config["scratch"] else None
        self.anchor = program["anchor"][0]
        self.numbers = program["nodes"][self.anchor - len(inputs)]["args"]
        self.result: Any = None
        self.ev = Evaluator(k, program, inputs, anchor=lambda number, coords: self.result)
        self.walk = Walk(k, config["walk"])

    def unit(self, unit: Unit) -> None:
        from ..functions import cast

        k = self.k

        def read(spot: Spot) -> Any:
            return k.bind(cast(self.walk.read(self.ev, self.numbers[0], spot), self.dtype))

        rows = Passes(self.walk, unit, self.c["hold"], self.scratch, read)
        means = None
        if self.c["op"] != "rms_norm":
            sums = rows.fold(lambda a, b: a + b, 0.0, self.dtype, lambda s, x: (x, x), first=True)
            means = [k.bind(s * (1.0 / max(1, self.c["count"]))) for s in sums]

        def square(spot: Spot, x: Any) -> tuple[Any, Any]:
            centred = x if means is None else k.bind(x - self._column(means, spot))
            return centred, centred * centred

        squares = rows.fold(lambda a, b: b + a, 0.0, self.dtype, square, first=means is None)
        scales = [self._inverse_deviation(s) for s in squares]
        again = self.c["hold"] == "again"

        def finish(spot: Spot, x: Any) -> None:
            centred = k.bind(x - self._column(means, spot)) if again and means is not None else x
            self._store(spot, self._affine(spot, centred, self._column(scales, spot)))

        rows.each(finish)

    def _column(self, values: list[Any], spot: Spot) -> Any:
        from ..tir import splat

        return splat(values[0 if self.walk.across else spot.slot[0]], spot.lanes)

    def _inverse_deviation(self, squares: Any) -> Any:
        from ..tir import like
        from ..vecmath import rsqrt

        variance = squares * (1.0 / max(1, self.c["count"]))
        return self.k.bind(rsqrt(self.k, self.k.bind(variance + like(self.c["epsilon"], squares))))

    def _affine(self, spot: Spot, x: Any, scale: Any) -> Any:
        factor, bias = (self._parameter(i, spot) for i in (1, 2))
        result = x * scale if factor is None else x * self.k.bind(scale * factor)
        return result if bias is None else result + bias

    def _parameter(self, index: int, spot: Spot) -> Any:
        """Scale or bias in a spot: along axis 1 for group norm, else aligned to the last axes."""
        from ..functions import cast
        from ..tir import splat

        number = self.numbers[index] if index < len(self.numbers) else None
        if number is None:
            return None
        coords: Coords = self.walk.logical(spot.coords)
        shape = self.ev.shape(number)
        own = [coords[1]] if self.c["op"] == "group_norm" else coords[len(coords) - len(shape) :]
        own = [(0, 0) if d == 1 else c for d, c in zip(shape, own, strict=True)]
        self.ev.begin()
        return self.k.bind(splat(cast(self.ev.value(number, own, spot.lanes), self.dtype), spot.lanes))

    def _store(self, spot: Spot, value: Any) -> None:
        from ..functions import cast

        self.result = self.k.bind(cast(value, self.ev.dtype(self.anchor)))
        coords = self.walk.logical(spot.coords)
        self.ev.begin()
        self.ev.store_all(self.outputs, coords, spot.lanes)


TEMPLATE = Template("norm", ("layer_norm", "rms_norm", "group_norm"), plan, {"norm": emit})
