"""Sums, means, products and extrema over any axes, and the position of the largest or smallest along one.

Each unit of the walk folds into several accumulators, which are joined in a fixed tree. A fold of much into little is
cut into a fixed number of parts: one phase folds the parts, a second one joins them. Several folds over the same axes
are made in one walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...ops.numeric import highest, lowest, numpy_dtype
from ...ops.reductions import FOLDS
from ...ops.shapes import normalise_axes
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._positions import positions
from ._rows import Spot, Unit, Walk, ancestors, axis_strides, bound, main_strides, operations, source, walk

POSITIONS = ("argmax", "argmin")
_TURNS = 4  # accumulators of a column, which hide the latency of an addition
_PARTS = 16
_SPLIT_FROM = 1 << 16  # elements that are worth folding in parts


# -- planning ------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    body, attrs = region.body, region.attrs
    x = body.type(source(region))
    if region.op == "reductions" and not one_walk(region):
        return []
    named: tuple[int, ...] = (attrs["axis"],) if region.op in POSITIONS else attrs["axes"]
    axes = normalise_axes(named, x.rank)
    kept = list(range(x.rank)) if attrs["keepdims"] else [a for a in range(x.rank) if a not in axes]
    every = axis_strides(region, kept)
    folds = [body.node(a).op for a in region.anchors]
    config: dict[str, Any] = {
        "program": serialize(region),
        "folds": folds,
        "dtypes": [accumulator(op, x.dtype) for op in folds],
        "count": math.prod(x.dims[a] for a in axes),
        "out_axes": kept,
        "last": bool(attrs.get("select_last", False)),
    }
    inputs = tuple(Arg("in", i) for i in range(len(region.inputs)))
    outputs = tuple(Arg("out", i) for i in range(len(region.outputs)))
    traffic = sum(o.type.nbytes for o in region.inputs)
    work = len(folds) + operations(region)
    cost = 100 + max(x.size * work / region.machine.lanes, traffic / 8) / 2.5
    if folds[0] in FOLDS and (part := _parts(region, x.dims, axes)) is not None:
        return [_in_parts(region, config, part, axes, every, (*inputs, *outputs), cost)]
    config["walk"] = walk(region, axes, every, work=work, wide=_wide(folds))
    tasks = config["walk"]["tasks"]
    draft = Draft(KernelSpec("reduce", config), (*inputs, *outputs), tasks if tasks > 1 else None)
    detail = "reduce across" if config["walk"]["across"] else "reduce columns"
    return [Plan("reduce", (draft,), cost, inplace=updates(region), detail=detail)]


def one_walk(region: Region) -> bool:
    """Whether several anchors are folds of one shape over the same axes, of which none needs another, and everything
    that comes out is of their results' shape."""
    body, before = region.body, ancestors(region)
    anchors = [(body.node(a), body.type(body.args(a)[0])) for a in region.anchors]  # type: ignore[arg-type]
    first, x = anchors[0]
    alike = all(
        n.op in FOLDS and t == x and n.types == first.types and set(n.attrs["axes"]) == set(first.attrs["axes"])
        for n, t in anchors
    )
    whole = all(o.type.dims == first.types[0].dims for o in region.outputs)
    return alike and whole and not before & set(region.anchors)


def _wide(folds: Sequence[str]) -> int:
    """Vectors of a row that are taken at once: each has an accumulator for every fold."""
    return 4 if len(folds) <= 3 else 2


def updates(region: Region) -> tuple[tuple[int, int], ...]:
    """Inputs that an output may take over: those that only the work on the result reads, at its own place."""
    before = ancestors(region)
    return tuple(
        (i, j)
        for i, (node, given) in enumerate(zip(region.body.inputs, region.inputs, strict=True))
        for j, result in enumerate(region.outputs)
        if node not in before and given.type == result.type and given.strides == result.strides
    )


def accumulator(op: str, dtype: str) -> str:
    """The type that a fold is carried in."""
    if dtype in ("float16", "bfloat16"):
        return "float32"
    if dtype == "bool":
        return "uint8"
    if op == "reduce_mean" and not dtype.startswith("float"):
        return "uint64" if dtype.startswith("u") else "int64"
    return dtype


def _parts(region: Region, dims: Sequence[int], axes: Sequence[int]) -> tuple[int, int] | None:
    """The axis to cut and the number of parts, where there is more to fold than rows to keep every worker busy."""
    folded = math.prod(dims[a] for a in axes)
    if math.prod(dims) < _SPLIT_FROM or folded < 1024 or math.prod(dims) // folded > 4 * region.machine.lanes:
        return None
    outermost = main_strides(region)  # the parts are neighbours in memory
    for axis in sorted(axes, key=lambda a: (-abs(outermost[a]), a)):
        for parts in range(_PARTS, 3, -1):
            if dims[axis] % parts == 0:
                return axis, parts
    return None


def _in_parts(
    region: Region,
    config: dict[str, Any],
    part: tuple[int, int],
    axes: Sequence[int],
    every: Sequence[Sequence[int]],
    args: Sequence[Arg],
    cost: float,
) -> Plan:
    """Two phases: partial folds to shared scratch ``[parts, rows]``, then their join."""
    axis, parts = part
    dims = region.body.type(source(region)).dims
    rank = len(dims)
    shape = [*dims, parts]
    shape[axis] = dims[axis] // parts
    origin = [*((a, 1) for a in range(rank)), (axis, dims[axis] // parts)]
    folds = config["folds"]
    work, wide = len(folds) + operations(region), _wide(folds)
    first = walk(region, list(axes), every, shape=shape, origin=origin, work=work, wide=wide)
    kept = [a for a in range(rank) if a not in axes]
    strides, step = [0] * (rank + 1), 1
    for a in reversed(kept):
        strides[a] = step
        step *= dims[a]
    strides[rank] = step
    second_shape = [parts if a == axis else 1 if a in axes else dims[a] for a in range(rank)]
    held = {"strides": strides, "size": step * parts, "axis": axis}
    second = walk(
        region,
        [axis],
        [*every, [strides[rank] if a == axis else strides[a] for a in range(rank)]],
        shape=second_shape,
        wide=wide,
    )
    second["tasks"], second["chunk"] = 1, second["units"]
    drafts = (
        Draft(
            KernelSpec("reduce.partial", {**config, "walk": first, "held": held}),
            (*args[: len(region.inputs)], Arg("shared")),
            first["tasks"] if first["tasks"] > 1 else None,
        ),
        Draft(KernelSpec("reduce.join", {**config, "walk": second, "held": held}), (*args, Arg("shared"))),
    )
    return Plan(
        "reduce",
        drafts,
        cost + 1000,
        shared_bytes=8 * step * parts * len(folds),
        inplace=updates(region),
        detail=f"reduce in {parts} parts",
    )


# -- emitting ------------------------------------------------------------------------------------------------------


def combiner(op: str, dtype: str) -> tuple[Callable[[Any, Any], Any], Any]:
    """How two values fold, and what nothing folds to. NaN wins in extrema."""
    from ..tir import maximum, minimum
    from ..vecmath import combine

    if op in ("reduce_sum", "reduce_mean"):
        return (lambda a, b: a + b), 0
    if op == "reduce_prod":
        return (lambda a, b: a * b), 1
    largest = op == "reduce_max"
    start = (lowest if largest else highest)(numpy_dtype(dtype))
    if dtype.startswith("float"):
        return combine("maximum" if largest else "minimum"), start
    return (maximum if largest else minimum), start


class Fold:
    """One kernel of this template: all folds of the region in one walk."""

    def __init__(self, k: Any, config: dict[str, Any], *, joins: bool = False) -> None:
        from ..evaluate import Evaluator

        self.k, self.c = k, config
        self.program, self.dtypes = config["program"], config["dtypes"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(self.program["inputs"])]
        self.results: list[Any] = []
        self.ev = Evaluator(k, self.program, inputs, anchor=lambda number, coords: self.results[number])
        nodes = [self.program["nodes"][a - len(inputs)] for a in self.program["anchor"]]
        self.sources = [node["args"][0] for node in nodes]
        self.walk = Walk(k, config["walk"])
        self.joins, self.scratch = joins, None
        folds = list(zip(config["folds"], self.dtypes, strict=True))
        self.combine = [bound(k, combiner(op, t)[0]) for op, t in folds if op in FOLDS]
        self.starts = [combiner(op, t)[1] for op, t in folds if op in FOLDS]

    def outputs(self) -> None:
        self.out = [self.k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(self.program["outputs"])]

    def held(self) -> None:
        self.scratch = self.k.arg("held", self.dtypes[0], self.c["held"]["size"] * len(self.dtypes))

    def values(self, spot: Spot) -> list[Any]:
        """What each fold takes in there."""
        from ..functions import cast
        from ..tir import splat

        if self.joins:
            strides = self.c["held"]["strides"]
            strides = [strides[-1] if a == self.c["held"]["axis"] else s for a, s in enumerate(strides[:-1])]
            base, step = self.ev.address(strides, spot.coords)
            size = self.c["held"]["size"]
            return [self.k.load(self.scratch, base + i * size, spot.lanes, step) for i in range(len(self.dtypes))]
        self.ev.begin()
        coords = self.walk.logical(spot.coords)
        found = [self.k.bind(splat(self.ev.value(s, coords, spot.lanes), spot.lanes)) for s in self.sources]
        return [cast(value, dtype) for value, dtype in zip(found, self.dtypes, strict=True)]

    def folded(self, unit: Unit) -> list[dict[tuple[int, int], Any]]:
        """The accumulators of a unit, for each fold, after the walk over its reduced axes."""
        from ..tir import constant

        turns = max(1, _TURNS // len(unit.columns))
        widths = self.walk.slots(unit, turns)
        slots = [{s: self.k.register(t, w) for s, w in widths.items()} for t in self.dtypes]
        for registers, dtype, start in zip(slots, self.dtypes, self.starts, strict=True):
            for register in registers.values():
                register.set(constant(start, dtype, register.lanes))

        def take(spot: Spot) -> None:
            for registers, join, value in zip(slots, self.combine, self.values(spot), strict=True):
                registers[spot.slot].set(join(registers[spot.slot].get(), value))

        self.walk.over(unit, turns, take)
        return [{s: r.get() for s, r in registers.items()} for registers in slots]

    def joined(self, slots: list[dict[tuple[int, int], Any]], column: int) -> list[Any]:
        """What a column's accumulators come to, for each fold."""
        return [self.walk.fold(s, column, join) for s, join in zip(slots, self.combine, strict=True)]

    def store(self, coords: Any, lanes: int, values: Sequence[Any]) -> None:
        """The results of one column: mean and type, then the epilogue."""
        from ..functions import cast

        self.results = [
            self.k.bind(cast(self._mean(i, value), self.ev.dtype(self.program["anchor"][i])))
            for i, value in enumerate(values)
        ]
        logical = self.walk.logical(coords)
        kept = [logical[a] for a in self.c["out_axes"]]
        self.ev.begin()
        self.ev.store_all(self.out, kept, lanes)

    def _mean(self, number: int, value: Any) -> Any:
        from tvm import tirx

        from ..tir import like

        count = self.c["count"]
        if self.c["folds"][number] != "reduce_mean":
            return value
        if self.dtypes[number].startswith("float"):
            return value * like(1 / count, value) if count else value / like(0, value)
        return tirx.truncdiv(value, like(max(1, count), value))


def emit(k: Any, config: dict[str, Any]) -> None:
    fold = Fold(k, config)
    fold.outputs()
    fold.walk.run(_finish(fold) if config["folds"][0] in FOLDS else lambda unit: positions(fold, unit))


def emit_partial(k: Any, config: dict[str, Any]) -> None:
    fold = Fold(k, config)
    fold.held()

    def body(unit: Unit) -> None:
        slots = fold.folded(unit)
        for column, coords, _ in fold.walk.results(unit):
            base, step = fold.ev.address(config["held"]["strides"], coords)
            for i, value in enumerate(fold.joined(slots, column)):
                k.store(fold.scratch, base + i * config["held"]["size"], value, step or 1)

    fold.walk.run(body)


def emit_join(k: Any, config: dict[str, Any]) -> None:
    fold = Fold(k, config, joins=True)
    fold.outputs()
    fold.held()
    fold.walk.run(_finish(fold))


def _finish(fold: Fold) -> Callable[[Unit], None]:
    def body(unit: Unit) -> None:
        slots = fold.folded(unit)
        for column, coords, lanes in fold.walk.results(unit):
            fold.store(coords, lanes, fold.joined(slots, column))

    return body


TEMPLATE = Template(
    "reduce",
    (*FOLDS, *POSITIONS, "reductions"),
    plan,
    {"reduce": emit, "reduce.partial": emit_partial, "reduce.join": emit_join},
)
