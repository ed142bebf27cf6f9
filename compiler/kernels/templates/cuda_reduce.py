"""Sums, means, products, extrema and positions of extrema on a GPU.

Short rows get a part of a warp each, long ones a block; where memory runs along the kept axes each thread has a column
of a block's tile. Few long rows are cut into parts, which a second kernel joins: no atomics, the same order each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...ops.reductions import FOLDS
from ...ops.shapes import normalise_axes
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_rows import DeviceWalk, device_walk, joining, walk_cost
from ._positions import Better, better_pair
from ._rows import Spot, Unit, axis_strides, source
from .reduce import POSITIONS, Fold, accumulator, one_walk, updates

_WIDEST = 8  # bytes of an accumulator


def plan(region: Region) -> list[Plan]:
    """One plan for folds of one shape over the same axes; none for empty tensors."""
    body, attrs = region.body, region.attrs
    x = body.type(source(region))
    if x.size == 0 or (region.op == "reductions" and not one_walk(region)):
        return []
    named: tuple[int, ...] = (attrs["axis"],) if region.op in POSITIONS else attrs["axes"]
    axes = normalise_axes(named, x.rank)
    kept = list(range(x.rank)) if attrs["keepdims"] else [a for a in range(x.rank) if a not in axes]
    folds = [body.node(a).op for a in region.anchors]
    split = folds[0] in FOLDS
    space = device_walk(region, axes, axis_strides(region, kept), held=len(folds), split=split, vectors=split)
    config: dict[str, Any] = {
        "program": serialize(region),
        "folds": folds,
        "dtypes": [accumulator(op, x.dtype) for op in folds],
        "count": math.prod(x.dims[a] for a in axes),
        "out_axes": kept,
        "last": bool(attrs.get("select_last", False)),
        "walk": space,
    }
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    cost = walk_cost(region, space)
    if space["parts"] > 1:
        return [_in_parts(region, config, args, cost)]
    draft = Draft(KernelSpec("cuda_reduce", config), args, space["tasks"])
    detail = f"reduce {'rows' if space['across'] else 'columns'} {space['x']}x{space['y']}"
    return [Plan("cuda_reduce", (draft,), cost, inplace=updates(region), detail=detail)]


def _in_parts(region: Region, config: dict[str, Any], args: tuple[Arg, ...], cost: float) -> Plan:
    """Two phases: folds of the parts to shared scratch ``[folds, units, parts]``, then their join."""
    gpu, space = region.machine.gpu, config["walk"]
    assert gpu is not None
    second = joining(gpu, space)
    inputs = args[: len(region.inputs)]
    held = {"parts": space["parts"], "size": space["parts"] * space["units"]}
    drafts = (
        Draft(KernelSpec("cuda_reduce.partial", {**config, "held": held}), (*inputs, Arg("shared")), space["tasks"]),
        Draft(
            KernelSpec("cuda_reduce.join", {**config, "walk": second, "held": held}),
            (*args, Arg("shared")),
            second["tasks"],
        ),
    )
    return Plan(
        "cuda_reduce",
        drafts,
        cost + 2 * gpu.launch * 1e9,
        shared_bytes=_WIDEST * held["size"] * len(config["folds"]),
        inplace=updates(region),
        detail=f"reduce in {space['parts']} parts of {space['x']}x{space['y']}",
    )


# -- emitting ------------------------------------------------------------------------------------------------------


class _DeviceFold(Fold):
    walk: DeviceWalk

    def __init__(self, k: Any, config: dict[str, Any], *, joins: bool = False) -> None:
        super().__init__(k, config, joins=joins)
        self.walk = DeviceWalk(k, config["walk"])

    def values(self, spot: Spot) -> list[Any]:
        if not self.joins:
            return super().values(spot)
        held = self.c["held"]
        at = self.k.bind(self.walk.unit * held["parts"] + spot.index, "at")
        return [self.k.load(self.scratch, at + i * held["size"]) for i in range(len(self.dtypes))]


def emit(k: Any, config: dict[str, Any]) -> None:
    fold = _DeviceFold(k, config)
    fold.outputs()
    fold.walk.run(_finish(fold) if config["folds"][0] in FOLDS else lambda unit: _positions(fold, unit))


def emit_partial(k: Any, config: dict[str, Any]) -> None:
    fold = _DeviceFold(k, config)
    fold.held()
    held = config["held"]

    def body(unit: Unit) -> None:
        values = fold.joined(fold.folded(unit), 0)
        with fold.walk.guard(fold.ev):
            for i, value in enumerate(values):
                k.store(fold.scratch, fold.walk.unit * held["parts"] + fold.walk.part + i * held["size"], value)

    fold.walk.run(body)


def emit_join(k: Any, config: dict[str, Any]) -> None:
    fold = _DeviceFold(k, config, joins=True)
    fold.outputs()
    fold.held()
    fold.walk.run(_finish(fold))


def _finish(fold: _DeviceFold) -> Callable[[Unit], None]:
    def body(unit: Unit) -> None:
        values = fold.joined(fold.folded(unit), 0)
        _store(fold, unit, values)

    return body


def _store(fold: _DeviceFold, unit: Unit, values: list[Any]) -> None:
    with fold.walk.guard(fold.ev):
        for _, coords, lanes in fold.walk.results(unit):
            fold.store(coords, lanes, values)


def _positions(fold: _DeviceFold, unit: Unit) -> None:
    """argmax, argmin: a thread's best value and its position, then the best of all."""
    from tvm import tirx

    from ...ops.numeric import highest, lowest, numpy_dtype
    from ..evaluate import lanewise
    from ..tir import constant, select

    k, dtype, better = fold.k, fold.dtypes[0], Better(fold.c)
    best, where = k.register(dtype, 1, "best"), k.register("int32", 1, "where")
    best.set(constant((lowest if better.largest else highest)(numpy_dtype(dtype)), dtype))
    where.set(constant(-1, "int32"))

    def take(spot: Spot) -> None:
        (value,) = fold.values(spot)
        value, held = k.bind(value), best.get()
        wins = k.bind(tirx.Or(where.get() < 0, better.later(value, held)))
        best.set(select(wins, value, held))
        where.set(select(wins, lanewise((spot.index, 0), 1), where.get()))

    fold.walk.over(unit, 1, take)
    pair = [best.get(), where.get()]
    _, position = fold.walk.fold_all({(0, 0): pair}, lambda a, b: list(better_pair(k, better, a, b)))
    _store(fold, unit, [position])


TEMPLATE = Template(
    "cuda_reduce",
    (*FOLDS, *POSITIONS, "reductions"),
    plan,
    {"cuda_reduce": emit, "cuda_reduce.partial": emit_partial, "cuda_reduce.join": emit_join},
    device=True,
)
