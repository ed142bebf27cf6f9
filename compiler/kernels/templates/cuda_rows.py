"""Work on rows on a GPU: elementwise work, reductions of the row, elementwise work with their results, in turns.

As ``rows`` for CPUs: a level of reductions is one pass. What passes share stays in a thread's registers where a row
fits; else rows are read anew in each pass.
"""

from __future__ import annotations

import math
from typing import Any

from ...ops.reductions import FOLDS
from ...ops.shapes import normalise_axes
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_rows import DeviceWalk, device_walk, walk_cost
from ._rows import Coords, Spot, Unit, source
from .rows import Rows, levels_of, own_place


def plan(region: Region) -> list[Plan]:
    """One plan where all reductions are of floats over the same axes, and keep them with extent 1."""
    body = region.body
    x = body.type(source(region))
    anchors = [body.node(a) for a in region.anchors]
    if any(n.op not in FOLDS for n in anchors) or not x.dtype.startswith("float") or x.size == 0:
        return []
    axes = normalise_axes(anchors[0].attrs["axes"], x.rank)
    kept = tuple(1 if a in axes else d for a, d in enumerate(x.dims))
    operands = (*region.inputs, *region.outputs)
    if any(normalise_axes(n.attrs["axes"], x.rank) != axes or n.types[0].dims != kept for n in anchors):
        return []
    if any(o.type.rank > x.rank for o in operands) or any(o.type.dims not in (x.dims, kept) for o in region.outputs):
        return []
    every = [
        [0] * (x.rank - o.type.rank) + [s if d > 1 else 0 for s, d in zip(o.strides, o.type.dims, strict=True)]
        for o in operands
    ]
    main = max(range(len(every)), key=lambda i: (operands[i].type.size, sum(s != 0 for s in every[i])))
    program = serialize(region)
    levels = levels_of(program, axes, x.rank)
    full = sum(o.type.dims == x.dims for o in region.inputs)
    held = (full + 1) * (2 if x.dtype == "float64" else 1)
    space = device_walk(region, axes, every, main=every[main], held=held, vectors=True)
    config: dict[str, Any] = {
        "program": program,
        "folds": [n.op for n in anchors],
        "levels": levels,
        "axes": list(axes),
        "count": math.prod(x.dims[a] for a in axes),
        "unrolled": space["unrolled"],
        "walk": space,
    }
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    passes = 1 + max(levels)
    draft = Draft(KernelSpec("cuda_rows", config), args, space["tasks"])
    detail = f"{'rows' if space['across'] else 'columns'} {space['x']}x{space['y']}, {passes} passes"
    cost = walk_cost(region, space, passes=passes)
    return [Plan("cuda_rows", (draft,), cost, inplace=own_place(region), detail=detail)]


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _DeviceRows(k, config)
    kernel.walk.run(kernel.unit)


class _DeviceRows(Rows):
    walk: DeviceWalk

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config)
        self.walk = DeviceWalk(k, config["walk"])

    def _turns(self, unit: Unit) -> int:
        return self.walk.turns

    def _store_rows(self, unit: Unit) -> None:
        full = [i for i, number in enumerate(self.program["results"]) if number not in self.single]
        if not full:
            return

        def store(spot: Spot, coords: Coords) -> None:
            with self.walk.guard(self.ev, spot):
                values = [self.k.bind(self.ev.result(i, coords, spot.lanes)) for i in full]
                for i, value in zip(full, values, strict=True):
                    self._write(i, coords, value)

        self._each(unit, store)

    def _store_single(self, unit: Unit) -> None:
        with self.walk.guard(self.ev):
            super()._store_single(unit)


TEMPLATE = Template("cuda_rows", ("reductions",), plan, {"cuda_rows": emit}, device=True)
