"""Work on rows: elementwise work, reductions of the row, elementwise work with their results, in turns (the backward
passes of softmax and the norms).

Every reduction has a level: one more than those of the reductions that it needs. A level is one pass over the row, the
last pass stores. A short row is unrolled, so that what passes share stays in registers; a longer one is read anew, from
the nearest cache. What has one value a row (results of reductions and work on them) is computed once a row.
"""

from __future__ import annotations

import math
from typing import Any

from ...ops.reductions import FOLDS
from ...ops.shapes import normalise_axes
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._rows import Coords, Spot, Unit, Walk, bound, effort, pieces, source, walk
from .reduce import combiner

_UNROLLED = 16  # vectors of a row
_TURNS = 4  # accumulators of a reduction, which hide the latency of an addition


def plan(region: Region) -> list[Plan]:
    body = region.body
    x = body.type(source(region))
    anchors = [body.node(a) for a in region.anchors]
    axes = normalise_axes(anchors[0].attrs["axes"], x.rank)
    kept = [1 if a in axes else d for a, d in enumerate(x.dims)]
    shapes = [o.type.dims for o in (*region.inputs, *region.outputs)]
    if any(n.op not in FOLDS or normalise_axes(n.attrs["axes"], x.rank) != axes for n in anchors):
        return []
    if any(n.types[0].dims != tuple(kept) for n in anchors) or not x.dtype.startswith("float"):
        return []
    if any(len(s) > x.rank for s in shapes) or any(o.type.dims not in (x.dims, tuple(kept)) for o in region.outputs):
        return []
    operands = (*region.inputs, *region.outputs)
    every = [
        [0] * (x.rank - o.type.rank) + [s if d > 1 else 0 for s, d in zip(o.strides, o.type.dims, strict=True)]
        for o in operands
    ]
    main = max(range(len(every)), key=lambda i: (operands[i].type.size, sum(s != 0 for s in every[i])))
    program = serialize(region)
    levels = levels_of(program, axes, x.rank)
    passes = 1 + max(levels)
    work = sum(effort(body.node(n).op) for n in body) * (1 + 0.5 * passes)
    space = walk(region, axes, every, work=work, wide=2, main=every[main])
    extents = [math.prod(space["shape"][a] for a in g) for g in space["reduced"]]
    count = len(pieces(extents[-1], region.machine.lanes)) if space["across"] and extents else math.prod(extents)
    config: dict[str, Any] = {
        "program": program,
        "folds": [n.op for n in anchors],
        "levels": levels,
        "axes": list(axes),
        "count": math.prod(x.dims[a] for a in axes),
        "unrolled": len(extents) <= 1 and count * (1 if space["across"] else space["wide"]) <= _UNROLLED,
        "walk": space,
    }
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    traffic = sum(o.type.nbytes for o in (*region.inputs, *region.outputs))
    cost = 100 + max(x.size * work / region.machine.lanes / 2.5, traffic / 20)
    draft = Draft(KernelSpec("rows", config), args, space["tasks"] if space["tasks"] > 1 else None)
    detail = f"rows {'across' if space['across'] else 'in columns'}, {passes} passes"
    return [Plan("rows", (draft,), cost, inplace=own_place(region), detail=detail)]


def levels_of(program: dict[str, Any], axes: tuple[int, ...], rank: int) -> list[int]:
    """The pass in which each reduction is made."""
    level = [0] * (len(program["inputs"]) + len(program["nodes"]))
    for i, node in enumerate(program["nodes"], start=len(program["inputs"])):
        level[i] = max((level[a] for a in node["args"] if a is not None), default=0) + (node["op"] == "anchor")
    return [level[a] - 1 for a in program["anchor"]]


def own_place(region: Region) -> tuple[tuple[int, int], ...]:
    """Inputs that an output may take over: elements are read and written at their own place, by one task."""
    return tuple(
        (i, j)
        for i, given in enumerate(region.inputs)
        for j, result in enumerate(region.outputs)
        if given.type == result.type and given.strides == result.strides
    )


# -- emitting ------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = Rows(k, config)
    kernel.walk.run(kernel.unit)


class Rows:
    """One kernel of this template; ``unit`` emits the work of one of the walk's units."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.c = k, config
        self.program = config["program"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(self.program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(self.program["outputs"])]
        self.walk = Walk(k, config["walk"])
        self.ev = _evaluator(self, inputs)
        self.known: dict[int, list[Any]] = {}  # values of which a row has one, for each column
        self.column = 0
        self._coords: dict[Any, Coords] = {}
        total = len(inputs) + len(self.program["nodes"])
        self.single = [n for n in range(total) if self._one_a_row(n)]

    def _one_a_row(self, number: int) -> bool:
        if self._constant(number):
            return False
        shape = self.ev.shape(number)
        rank = len(self.c["walk"]["origin"])
        return all(shape[a - rank] == 1 for a in self.c["axes"] if rank - a <= len(shape))

    def unit(self, unit: Unit) -> None:
        self.known, self._coords = {}, {}
        self.ev.begin()
        for level in range(max(self.c["levels"]) + 1):
            self._learn(unit)
            self._fold(unit, [i for i, at in enumerate(self.c["levels"]) if at == level])
        self._learn(unit)
        self._store_rows(unit)
        self._store_single(unit)

    # -- what a row has one of

    def _learn(self, unit: Unit) -> None:
        """Computes what is now known of the row."""
        for number in self.single:
            if number in self.known or not self._ready(number):
                continue
            values = []
            for column, coords, lanes in self.walk.results(unit):
                self.column = column
                own = self._at(("result", column), coords)
                own = own[len(own) - len(self.ev.shape(number)) :]
                values.append(self.k.bind(self.ev.fresh(number, own, lanes)))
            self.known[number] = values

    def _ready(self, number: int) -> bool:
        if number < len(self.program["inputs"]):
            return True
        node = self.program["nodes"][number - len(self.program["inputs"])]
        if node["op"] == "anchor":
            return False
        args = [a for a in node["args"] if a is not None]
        return all(a in self.known or self._constant(a) for a in args)

    def _constant(self, number: int) -> bool:
        at = number - len(self.program["inputs"])
        return at >= 0 and bool(self.program["nodes"][at]["op"] == "const")

    # -- passes

    def _each(self, unit: Unit, body: Any) -> None:
        """``body(spot, coordinates)`` for all vectors of the row."""

        def visit(spot: Spot) -> None:
            self.column = 0 if self.walk.across else spot.slot[0]
            if not self.c["unrolled"]:
                self.ev.begin()
                self._coords.clear()
            body(spot, self._at(spot.slot, spot.coords))

        self.walk.over(unit, self._turns(unit), visit)

    def _turns(self, unit: Unit) -> int:
        return max(1, self.walk.count) if self.c["unrolled"] else max(1, _TURNS // len(unit.columns))

    def _at(self, key: Any, coords: Coords) -> Coords:
        """Logical coordinates: the same objects each time, because the evaluator knows values by them."""
        if key not in self._coords:
            self._coords[key] = self.walk.logical(coords)
        return self._coords[key]

    def _fold(self, unit: Unit, numbers: list[int]) -> None:
        from ..tir import constant, splat

        k, widths = self.k, self.walk.slots(unit, self._turns(unit))
        sources = {n: self._node(n)["args"][0] for n in numbers}
        dtypes = {n: self._accumulator(n) for n in numbers}
        rules = {n: combiner(self.c["folds"][n], dtypes[n]) for n in numbers}
        held = {n: {s: k.register(dtypes[n], w) for s, w in widths.items()} for n in numbers}
        for n in numbers:
            for register in held[n].values():
                register.set(constant(rules[n][1], dtypes[n], register.lanes))

        def take(spot: Spot, coords: Coords) -> None:
            values = [(n, k.bind(splat(self.ev.value(sources[n], coords, spot.lanes), spot.lanes))) for n in numbers]
            for n, value in values:
                register = held[n][spot.slot]
                register.set(bound(k, rules[n][0])(register.get(), self._cast(value, dtypes[n])))

        self._each(unit, take)
        for n in numbers:
            slots = {s: r.get() for s, r in held[n].items()}
            columns = range(len(unit.columns))
            values = [self._mean(n, self.walk.fold(slots, c, rules[n][0])) for c in columns]
            self.known[self.program["anchor"][n]] = [k.bind(self._cast(v, self._node(n)["dtype"])) for v in values]

    def _node(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.program["nodes"][self.program["anchor"][number] - len(self.program["inputs"])]
        return found

    def _accumulator(self, number: int) -> str:
        return "float64" if self._node(number)["dtype"] == "float64" else "float32"

    def _cast(self, value: Any, dtype: str) -> Any:
        from ..functions import cast

        return cast(value, dtype)

    def _mean(self, number: int, value: Any) -> Any:
        from ..tir import like

        return value * like(1 / self.c["count"], value) if self.c["folds"][number] == "reduce_mean" else value

    # -- results

    def _store_rows(self, unit: Unit) -> None:
        """All values of a spot are computed before the first is stored: an output may lie where an input does."""
        full = [i for i, number in enumerate(self.program["results"]) if number not in self.single]
        if not full:
            return

        def store(spot: Spot, coords: Coords) -> None:
            values = [self.k.bind(self.ev.result(i, coords, spot.lanes)) for i in full]
            for i, value in zip(full, values, strict=True):
                self._write(i, coords, value)

        self._each(unit, store)

    def _store_single(self, unit: Unit) -> None:
        for i, number in enumerate(self.program["results"]):
            if number in self.single:
                for column, coords, _ in self.walk.results(unit):
                    self._write(i, self.walk.logical(coords), self.known[number][column])

    def _write(self, index: int, coords: Coords, value: Any) -> None:
        from ..tir import as_dtype, lanes_of

        out = self.program["outputs"][index]
        if out["dtype"] == "bool":
            value = value.astype(as_dtype("uint8", lanes_of(value)))
        base, step = self.ev.address(out["strides"], coords)
        self.k.store(self.outputs[index], base, value, step)


def _evaluator(rows: Rows, inputs: list[Any]) -> Any:
    """An evaluator that takes what is known of a row as it is."""
    from ..evaluate import Evaluator

    class Known(Evaluator):
        def value(self, at: int, coords: Coords, lanes: int = 1) -> Any:
            if at in rows.known:
                return rows.known[at][rows.column]
            return super().value(at, coords, lanes)

        def fresh(self, at: int, coords: Coords, lanes: int) -> Any:
            return self._compute(at, coords, lanes)

    return Known(rows.k, rows.program, inputs)


TEMPLATE = Template("rows", ("reductions",), plan, {"rows": emit})
