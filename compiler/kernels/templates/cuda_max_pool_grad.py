"""The gradient of max_pool on a GPU: each window's gradient goes to its first largest element.

A thread has a run of neighbouring channels (or one element) of the result and gathers: no element is written twice.
Where windows share no element, one kernel finds the largest element of the one window that an element lies in.
Otherwise a first kernel finds every window's, and a second one sums for each element the windows that chose it.
"""

from __future__ import annotations

import math
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _cuda_max_pool_grad
from ._boxes import anchor_args, elementwise_around, leaf_strides
from ._cuda_cost import Load, nanoseconds
from ._cuda_walk import MOST, device_nest
from .max_pool_grad import _scratch_strides as scratch_strides

DTYPES = ("float32", "float16", "bfloat16", "float64")


def plan(region: Region) -> list[Plan]:
    """One plan, for any memory orders."""
    gpu = region.machine.gpu
    if gpu is None or not elementwise_around(region) or region.anchor_type.dtype not in DTYPES:
        return []
    if any(o.span > MOST for o in (*region.inputs, *region.outputs)) or not region.anchor_type.size:
        return []
    attrs = region.attrs
    apart = all(
        k <= s and d == 1 for k, s, d in zip(attrs["kernel_shape"], attrs["strides"], attrs["dilations"], strict=True)
    )
    return [_one(region) if apart else _two(region)]


def _one(region: Region) -> Plan:
    config = _config(region, _sizes(region)[0], 0)
    taps = math.prod(region.attrs["kernel_shape"])
    draft = Draft(KernelSpec("cuda_max_pool_grad", config), _arguments(region), config["nest"]["blocks"])
    nanos = _nanoseconds(region, config["nest"], 6.0 * taps + 30, taps)
    return Plan("cuda_max_pool_grad", (draft,), nanos, inplace=(), detail=f"max_pool_grad, {_lanes(config)} elements")


def _two(region: Region) -> Plan:
    size, out = _sizes(region)
    strides = scratch_strides(region, out)
    where = {"where": [strides, math.prod(out)]}
    first = {**_config(region, out, 1, strides), **where}
    second = {**_config(region, size, 2, strides), **where}
    first["program"] = {**first["program"], "outputs": []}
    inputs, taps = _arguments(region), math.prod(region.attrs["kernel_shape"])
    count = len(region.inputs)
    phases = (
        Draft(KernelSpec("cuda_max_pool_grad.find", first), (*inputs[:count], Arg("shared")), first["nest"]["blocks"]),
        Draft(KernelSpec("cuda_max_pool_grad.sum", second), (*inputs, Arg("shared")), second["nest"]["blocks"]),
    )
    nanos = _nanoseconds(region, first["nest"], 6.0 * taps + 20, taps)
    nanos += _nanoseconds(region, second["nest"], 8.0 * taps + 20, 1)
    detail = f"max_pool_grad in two kernels, {_lanes(second)} elements"
    return Plan("cuda_max_pool_grad", phases, nanos, shared_bytes=4 * math.prod(out), detail=detail)


def _sizes(region: Region) -> tuple[tuple[int, ...], tuple[int, ...]]:
    x, g = anchor_args(region)
    assert x is not None and g is not None
    return region.body.type(x).dims, region.body.type(g).dims


def _config(region: Region, extents: tuple[int, ...], part: int, where: list[int] | None = None) -> dict[str, Any]:
    """Part 0 and 2 walk the elements of x, part 1 the windows."""
    gpu = region.machine.gpu
    assert gpu is not None
    size, out = _sizes(region)
    strides = [] if part == 1 else [list(o.strides) for o in region.outputs]
    strides += [where] if where else []
    for value in anchor_args(region):
        assert value is not None
        strides += [list(s) for s in leaf_strides(region, value, region.body.type(value).dims)]
    wide = max(o.type.itemsize for o in (*region.inputs, *region.outputs))
    axes = range(2, len(size))
    nest = device_nest(gpu, extents, strides, max(4, wide), solo=range(len(size)), scalar=axes, most=4)
    return {
        "program": serialize(region),
        "attrs": plain(dict(region.attrs)),
        "sizes": [list(size), list(out)],
        "nest": nest,
    }


def _lanes(config: dict[str, Any]) -> int:
    found: int = config["nest"]["lanes"]
    return found


def _arguments(region: Region) -> tuple[Arg, ...]:
    inputs = tuple(Arg("in", i) for i in range(len(region.inputs)))
    return (*inputs, *(Arg("out", i) for i in range(len(region.outputs))))


def _nanoseconds(region: Region, nest: dict[str, Any], work: float, again: float) -> float:
    gpu = region.machine.gpu
    assert gpu is not None
    read = sum(o.type.nbytes for o in region.inputs)
    moved = read + sum(o.type.nbytes for o in region.outputs)
    elements = nest["runs"] * nest["lanes"]
    load = Load(nest["blocks"], nest["threads"], plain=elements * work, far=moved, near=read * (again - 1))
    return nanoseconds(gpu, load)


TEMPLATE = Template(
    "cuda_max_pool_grad",
    ("max_pool_grad",),
    plan,
    {
        "cuda_max_pool_grad": _cuda_max_pool_grad.emit,
        "cuda_max_pool_grad.find": _cuda_max_pool_grad.emit_find,
        "cuda_max_pool_grad.sum": _cuda_max_pool_grad.emit_sum,
    },
    device=True,
)
