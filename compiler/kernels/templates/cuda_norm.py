"""Layer, RMS and group norm on a GPU: a row stays in the registers of its warp or block, so it is read once.

The variance is taken of what is left after the mean is gone, as on CPUs. Rows too long for that are read three times.
"""

from __future__ import annotations

import math
from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_rows import DeviceWalk, device_walk, walk_cost
from ._rows import Spot, axis_strides, source
from .norm import Norm
from .softmax import same_place


def plan(region: Region) -> list[Plan]:
    """One plan; none for empty tensors, or where a group norm's vectors are computed in the region."""
    body, attrs = region.body, region.attrs
    x = body.type(source(region))
    grouped = region.op == "group_norm"
    vectors = [number for i in (1, 2) if (number := region.operand(i)) is not None] if grouped else []
    if grouped and len(vectors) != sum(a is not None for a in body.args(region.anchor)[1:]):  # type: ignore[arg-type]
        return []
    if x.size == 0:
        return []
    every = axis_strides(region, range(x.rank), vectors)
    held = 2 if x.dtype == "float64" else 1
    if grouped:
        members = x.dims[1] // attrs["num_groups"]
        shape = [x.dims[0], attrs["num_groups"], members, *x.dims[2:]]
        origin = [(0, 1), (1, members), (1, 1), *((a, 1) for a in range(2, x.rank))]
        count = members * math.prod(x.dims[2:])
        space = device_walk(region, range(2, x.rank + 1), every, shape=shape, origin=origin, held=held, vectors=True)
    else:
        axis = normalise_axis(attrs["axis"], x.rank)
        count = math.prod(x.dims[axis:])
        space = device_walk(region, range(axis, x.rank), every, held=held, vectors=True)
    config: dict[str, Any] = {
        "program": serialize(region),
        "op": region.op,
        "epsilon": attrs["epsilon"],
        "count": count,
        "walk": space,
        "dtype": "float64" if x.dtype == "float64" else "float32",
        "hold": "registers" if space["unrolled"] else "again",
        "scratch": 0,
    }
    args = [*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs)))]
    draft = Draft(KernelSpec("cuda_norm", config), tuple(args), space["tasks"])
    cost = walk_cost(region, space, passes=3)
    detail = f"{region.op} {'rows' if space['across'] else 'columns'} {space['x']}x{space['y']}"
    return [Plan("cuda_norm", (draft,), cost, inplace=same_place(region), detail=detail)]


class _DeviceNorm(Norm):
    walk: DeviceWalk

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config)
        self.walk = DeviceWalk(k, config["walk"])

    def _store(self, spot: Spot, value: Any) -> None:
        from ..functions import cast

        self.result = self.k.bind(cast(value, self.ev.dtype(self.anchor)))
        coords = self.walk.logical(spot.coords)
        self.ev.begin()
        with self.walk.guard(self.ev, spot):
            self.ev.store_all(self.outputs, coords, spot.lanes)


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _DeviceNorm(k, config)
    kernel.walk.run(kernel.unit)


TEMPLATE = Template("cuda_norm", ("layer_norm", "rms_norm", "group_norm"), plan, {"cuda_norm": emit}, device=True)
