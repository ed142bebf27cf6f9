"""Sums, means, products and extrema over any axes, and the position of the largest or smallest along one.

Each unit of the walk folds into several accumulators, which are joined in a fixed tree. A fold of much into little is
cut into a fixed number of parts: one phase folds the parts, a second one joins them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...ops.shapes import normalise_axes
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._rows import Spot, Unit, Walk, axis_strides, bound, main_strides, operations, source, walk

FOLDS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
POSITIONS = ("argmax", "argmin")
_TURNS = 4  # accumulators of a column, which hide the latency of an addition
_PARTS = 16
_SPLIT_FROM = 1 << 16  # elements that are worth folding in parts


# -- planning ------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    body, attrs = region.body, region.attrs
    x = body.type(source(region))
    named: tuple[int, ...] = (attrs["axis"],) if region.op in POSITIONS else attrs["axes"]
    axes = normalise_axes(named, x.rank)
    kept = list(range(x.rank)) if attrs["keepdims"] else [a for a in range(x.rank) if a not in axes]
    every = axis_strides(region, kept)
    config: dict[str, Any] = {
        "program": serialize(region),
        "op": region.op,
        "dtype": accumulator(region.op, x.dtype),
        "count": math.prod(x.dims[a] for a in axes),
        "out_axes": kept,
        "last": bool(attrs.get("select_last", False)),
    }
    inputs = tuple(Arg("in", i) for i in range(len(region.inputs)))
    outputs = tuple(Arg("out", i) for i in range(len(region.outputs)))
    traffic = sum(o.type.nbytes for o in region.inputs)
    work = 1 + operations(region)
    cost = 100 + max(x.size * work / region.machine.lanes, traffic / 8) / 2.5
    if region.op in FOLDS and (part := _parts(region, x.dims, axes)) is not None:
        return [_in_parts(region, config, part, axes, every, (*inputs, *outputs), cost)]
    config["walk"] = walk(region, axes, every, work=work)
    tasks = config["walk"]["tasks"]
    draft = Draft(KernelSpec("reduce", config), (*inputs, *outputs), tasks if tasks > 1 else None)
    return [Plan("reduce", (draft,), cost, detail="reduce across" if config["walk"]["across"] else "reduce columns")]


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
    first = walk(region, list(axes), every, shape=shape, origin=origin, work=1 + operations(region))
    kept = [a for a in range(rank) if a not in axes]
    strides, step = [0] * (rank + 1), 1
    for a in reversed(kept):
        strides[a] = step
        step *= dims[a]
    strides[rank] = step
    second_shape = [parts if a == axis else 1 if a in axes else dims[a] for a in range(rank)]
    held = {"strides": strides, "size": step * parts, "parts": parts, "axis": axis}
    second = walk(
        region, [axis], [*every, [strides[rank] if a == axis else strides[a] for a in range(rank)]], shape=second_shape
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
    return Plan("reduce", drafts, cost + 1000, shared_bytes=8 * step * parts, detail=f"reduce in {parts} parts")


# -- emitting ------------------------------------------------------------------------------------------------------


def _combiner(op: str, dtype: str) -> tuple[Callable[[Any, Any], Any], Any]:
    """How two values fold, and what nothing folds to. NaN wins in extrema."""
    from ..tir import maximum, minimum
    from ..vecmath import combine

    is_float = dtype.startswith("float")
    if op in ("reduce_sum", "reduce_mean"):
        return (lambda a, b: a + b), 0
    if op == "reduce_prod":
        return (lambda a, b: a * b), 1
    largest = op == "reduce_max"
    if is_float:
        return combine("maximum" if largest else "minimum"), float("-inf" if largest else "inf")
    bits, signed = int(dtype.lstrip("uint")), not dtype.startswith("u")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return (maximum, low) if largest else (minimum, high)


class _Fold:
    """One kernel of this template."""

    def __init__(self, k: Any, config: dict[str, Any], *, joins: bool = False) -> None:
        from ..evaluate import Evaluator

        self.k, self.c = k, config
        self.program = config["program"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(self.program["inputs"])]
        self.ev = Evaluator(k, self.program, inputs, anchor=lambda number, coords: self.result)
        self.walk = Walk(k, config["walk"])
        self.joins, self.result, self.scratch = joins, None, None
        self.combine: Any
        self.unit: Any
        self.combine, self.unit = _combiner(config["op"], config["dtype"]) if config["op"] in FOLDS else (None, None)

    def outputs(self) -> None:
        self.out = [self.k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(self.program["outputs"])]

    def held(self) -> None:
        self.scratch = self.k.arg("held", self.c["dtype"], self.c["held"]["size"])

    def value(self, spot: Spot) -> Any:
        from ..functions import cast

        if self.joins:
            strides = self.c["held"]["strides"]
            strides = [strides[-1] if a == self.c["held"]["axis"] else s for a, s in enumerate(strides[:-1])]
            base, step = self.ev.address(strides, spot.coords)
            return self.k.load(self.scratch, base, spot.lanes, step)
        anchor = self.program["nodes"][self.program["anchor"][0] - len(self.program["inputs"])]
        return cast(self.walk.read(self.ev, anchor["args"][0], spot), self.c["dtype"])

    def folded(self, unit: Unit) -> dict[tuple[int, int], Any]:
        """The accumulators of a unit after the walk over its reduced axes."""
        from ..tir import constant

        turns = max(1, _TURNS // len(unit.columns))
        slots = {s: self.k.register(self.c["dtype"], w) for s, w in self.walk.slots(unit, turns).items()}
        for register in slots.values():
            register.set(constant(self.unit, self.c["dtype"], register.lanes))
        join = bound(self.k, self.combine)
        self.walk.over(unit, turns, lambda s: slots[s.slot].set(join(slots[s.slot].get(), self.value(s))))
        return {s: r.get() for s, r in slots.items()}

    def store(self, coords: Any, lanes: int, value: Any) -> None:
        """The result of one column: mean and type, then the epilogue."""
        from ..functions import cast

        self.result = self.k.bind(cast(self._mean(value), self._anchor_dtype()))
        logical = self.walk.logical(coords)
        kept = [logical[a] for a in self.c["out_axes"]]
        self.ev.begin()
        self.ev.store_all(self.out, kept, lanes)

    def _anchor_dtype(self) -> str:
        dtype: str = self.ev.dtype(self.program["anchor"][0])
        return dtype

    def _mean(self, value: Any) -> Any:
        from tvm import tirx

        from ..tir import like

        count = self.c["count"]
        if self.c["op"] != "reduce_mean":
            return value
        if self.c["dtype"].startswith("float"):
            return value * like(1 / count, value) if count else value / like(0, value)
        return tirx.truncdiv(value, like(max(1, count), value))


def emit(k: Any, config: dict[str, Any]) -> None:
    fold = _Fold(k, config)
    fold.outputs()
    fold.walk.run(_finish(fold) if config["op"] in FOLDS else lambda unit: _positions(fold, unit))


def emit_partial(k: Any, config: dict[str, Any]) -> None:
    fold = _Fold(k, config)
    fold.held()

    def body(unit: Unit) -> None:
        slots = fold.folded(unit)
        for column, coords, _ in fold.walk.results(unit):
            base, step = fold.ev.address(config["held"]["strides"], coords)
            k.store(fold.scratch, base, fold.walk.fold(slots, column, fold.combine), step or 1)

    fold.walk.run(body)


def emit_join(k: Any, config: dict[str, Any]) -> None:
    fold = _Fold(k, config, joins=True)
    fold.outputs()
    fold.held()
    fold.walk.run(_finish(fold))


def _finish(fold: _Fold) -> Callable[[Unit], None]:
    def body(unit: Unit) -> None:
        slots = fold.folded(unit)
        for column, coords, lanes in fold.walk.results(unit):
            fold.store(coords, lanes, fold.walk.fold(slots, column, fold.combine))

    return body


# -- positions -----------------------------------------------------------------------------------------------------


class _Better:
    """Compares (value, position) pairs: the larger or smaller value, of equal ones the first or last; NaN wins."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.largest, self.last = config["op"] == "argmax", config["last"]
        self.is_float = config["dtype"].startswith("float")

    def above(self, new: Any, old: Any) -> Any:
        from tvm import tirx

        from ..vecmath import isnan

        better = new > old if self.largest else new < old
        return tirx.Or(better, tirx.And(isnan(new), tirx.Not(isnan(old)))) if self.is_float else better

    def tied(self, a: Any, b: Any) -> Any:
        from tvm import tirx

        from ..vecmath import isnan

        return tirx.Or(tirx.EQ(a, b), tirx.And(isnan(a), isnan(b))) if self.is_float else tirx.EQ(a, b)

    def later(self, new: Any, old: Any) -> Any:
        """Whether a value further on replaces the one held."""
        from tvm import tirx

        return tirx.Or(self.above(new, old), self.tied(new, old)) if self.last else self.above(new, old)

    def other(self, a: Any, i: Any, b: Any, j: Any) -> Any:
        """Whether (b, j) replaces (a, i), in whatever order they lie."""
        from tvm import tirx

        return tirx.Or(self.above(b, a), tirx.And(self.tied(a, b), j > i if self.last else j < i))


def _positions(fold: _Fold, unit: Unit) -> None:
    """argmax, argmin: values and positions side by side in registers."""
    from tvm import tirx

    from ..tir import constant, select, splat

    k, dtype, better = fold.k, fold.c["dtype"], _Better(fold.c)
    slots = fold.walk.slots(unit, 1)
    best = {s: k.register(dtype, w) for s, w in slots.items()}
    where = {s: k.register("int32", w) for s, w in slots.items()}
    worst = _combiner("reduce_max" if better.largest else "reduce_min", dtype)[1]
    for s, w in slots.items():
        best[s].set(constant(worst, dtype, w))
        where[s].set(constant(-1, "int32", w))

    def take(spot: Spot) -> None:
        value, held = fold.value(spot), best[spot.slot].get()
        first = tirx.const(spot.index, "int32") if isinstance(spot.index, int) else spot.index
        index = splat(first, spot.lanes)
        if fold.walk.across and spot.lanes > 1:
            index = tirx.Ramp(first, 1, spot.lanes)
        unset = tirx.EQ(where[spot.slot].get(), constant(-1, "int32", spot.lanes))
        wins = k.bind(tirx.Or(unset, better.later(k.bind(value), held)))
        best[spot.slot].set(select(wins, value, held))
        where[spot.slot].set(select(wins, index, where[spot.slot].get()))

    fold.walk.over(unit, 1, take)
    for column, coords, lanes in fold.walk.results(unit):
        mine = [s for s in sorted(slots) if fold.walk.across or s[0] == column]
        pairs = [(best[s].get(), where[s].get()) for s in mine]
        if fold.walk.across:
            pairs = [_across(k, better, *p) for p in pairs]
        while len(pairs) > 1:
            pairs = [_better_pair(k, better, pairs[0], pairs[1]), *pairs[2:]]
        fold.store(coords, lanes, pairs[0][1])


def _better_pair(k: Any, better: _Better, a: Any, b: Any) -> tuple[Any, Any]:
    from ..tir import select

    (x, i), (y, j) = ((k.bind(v) for v in pair) for pair in (a, b))
    wins = k.bind(better.other(x, i, y, j))
    return k.bind(select(wins, y, x)), k.bind(select(wins, j, i))


def _across(k: Any, better: _Better, value: Any, index: Any) -> tuple[Any, Any]:
    """The best pair of a vector's lanes."""
    from tvm import tirx

    from ..tir import lanes_of

    while lanes_of(value) > 1:
        half = lanes_of(value) // 2
        halves = [
            tuple(tirx.Shuffle([v], [tirx.IntImm("int32", at + i) for i in range(half)]) for v in (value, index))
            for at in (0, half)
        ]
        value, index = _better_pair(k, better, *halves)
    return value, index


TEMPLATE = Template(
    "reduce",
    (*FOLDS, *POSITIONS),
    plan,
    {"reduce": emit, "reduce.partial": emit_partial, "reduce.join": emit_join},
)
