"""The gradient of max_pool: each window's gradient goes to its first largest element.

Windows that do not overlap are one pass: a window's elements are read, compared, and all written. Otherwise a first
phase finds the largest element of every window, and a second one sums for each element the windows that chose it: no
element is written twice, so no task depends on another. Both phases cut their space into boxes in which the same kernel
elements count, and write these out; where that would be too much code, kernel elements are loops with conditions.
The vector axis is the one that is contiguous in x: channels, images or columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _max_pool_grad
from ._boxes import (
    along,
    anchor_args,
    elementwise_around,
    leaf_strides,
    move_cost,
    straight,
    vector_lanes,
)
from ._nest import Data, nest

_MOST_WRITTEN = 600  # kernel elements written out in one kernel
_PARALLEL_FROM = 16384


# -- planning --------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    """One plan, for any memory orders."""
    if not elementwise_around(region):
        return []
    attrs = region.attrs
    touching = zip(attrs["kernel_shape"], attrs["strides"], attrs["dilations"], strict=True)
    if all(k == s and d == 1 for k, s, d in touching) and math.prod(attrs["kernel_shape"]) <= 64:
        return [_disjoint(region)]
    return [_overlapping(region)]


def _sizes(region: Region) -> tuple[tuple[int, ...], tuple[int, ...]]:
    x, g = anchor_args(region)
    assert x is not None and g is not None
    return region.body.type(x).dims, region.body.type(g).dims


def _windows(region: Region, axis: int) -> list[Data]:
    """Runs of windows along an axis whose elements on x are the same ones: ``first``, ``count``, ``taps``."""
    attrs = region.attrs
    size, out = (s[2 + axis] for s in _sizes(region))
    k, stride, pad, d = (attrs[n][axis] for n in ("kernel_shape", "strides", "pads", "dilations"))
    taps = [[t for t in range(k) if 0 <= o * stride - pad + t * d < size] for o in range(out)]
    return list(_runs(taps))


def _reached(region: Region, axis: int) -> list[Data]:
    """Runs of elements of x along an axis, ``first + step * i``, that lie in windows ``window + i`` alike: ``taps`` as
    (kernel element, first window)."""
    attrs = region.attrs
    size, out = (s[2 + axis] for s in _sizes(region))
    k, stride, pad, d = (attrs[n][axis] for n in ("kernel_shape", "strides", "pads", "dilations"))
    found = []
    for r in range(min(stride, size)):
        reach = [(t, (r + pad - t * d) // stride) for t in range(k) if (r + pad - t * d) % stride == 0]
        taps = [[(t, c) for t, c in reach if 0 <= q + c < out] for q in range(-(-(size - r) // stride))]
        for run in _runs(taps):
            q = run["first"]
            run["taps"] = [(t, c + q) for t, c in run["taps"]]
            found.append({**run, "first": r + q * stride, "step": stride})
    return found


def _runs(taps: Sequence[Any]) -> Iterator[Data]:
    for _, run in groupby(range(len(taps)), key=lambda i: taps[i]):
        numbers = list(run)
        yield {"first": numbers[0], "count": len(numbers), "taps": taps[numbers[0]], "step": 1}


def _disjoint(region: Region) -> Plan:
    """One phase: boxes of windows, then what no window covers."""
    attrs, (size, out) = region.attrs, _sizes(region)
    rank, kernel = len(size) - 2, attrs["kernel_shape"]
    boxes: list[Data] = []
    for runs in product(*(_windows(region, a) for a in range(rank))):
        extents = (*size[:2], *(r["count"] for r in runs))
        firsts = [r["first"] * s - p for r, s, p in zip(runs, attrs["strides"], attrs["pads"], strict=False)]
        place = (*straight([0, 0]), *((f, ((2 + a, kernel[a]),)) for a, f in enumerate(firsts)))
        window = straight([0, 0, *(r["first"] for r in runs)])
        data = {"taps": list(product(*(r["taps"] for r in runs))), "place": place, "window": window}
        boxes.append(_box(region, extents, place, {0: place, 1: window}, data, len(data["taps"]), apart=True))
    edges = [min(size[2 + a], out[2 + a] * kernel[a] - attrs["pads"][a]) for a in range(rank)]
    for a in range(rank):
        if edges[a] < size[2 + a]:  # a rim that no window reaches
            extents = (*size[:2], *edges[:a], size[2 + a] - edges[a], *size[3 + a :])
            place = straight([0, 0, *([0] * a), edges[a], *([0] * (rank - a - 1))])
            data = {"taps": [], "place": place}
            boxes.append(_box(region, extents, place, {}, data, 1.0, apart=True))
    config = _config(region, boxes)
    args = (*_inputs(region), *(Arg("out", i) for i in range(len(region.outputs))))
    draft = Draft(KernelSpec("max_pool_grad", config), args, config["tasks"] or None)
    cost = move_cost(region) + region.anchor_type.size / region.machine.lanes
    return Plan("max_pool_grad", (draft,), cost, inplace=_over_x(region), detail="max_pool_grad, one pass")


def _over_x(region: Region) -> tuple[tuple[int, int], ...]:
    """The gradient may lie where x does: every element is read before it, and nothing else, is written."""
    i = region.operand(0)
    if i is None:
        return ()
    x = region.inputs[i]
    return tuple((i, j) for j, o in enumerate(region.outputs) if (o.type, o.strides) == (x.type, x.strides))


def _overlapping(region: Region) -> Plan:
    """Two phases: the largest element of each window to scratch, then its gradient to that element."""
    size, out = _sizes(region)
    rank = len(size) - 2
    strides = _scratch_strides(region, out)
    windows = list(product(*(_windows(region, a) for a in range(rank))))
    reached = list(product(*(_reached(region, a) for a in range(rank))))
    written = sum(math.prod(len(r["taps"]) for r in runs) for runs in (*windows, *reached))
    if written > _MOST_WRITTEN:
        find = [_box(region, out, None, {}, {"taps": None}, 8.0, scratch=strides, scalar=True)]
        place = straight([0] * len(size))
        sums = [_box(region, size, place, {}, {"taps": None, "place": place}, 8.0, scalar=True)]
    else:
        find, sums = [], []
        for runs in windows:
            find.append(_find_box(region, runs, strides))
        for runs in reached:
            sums.append(_sum_box(region, runs, strides))
    first = {**_config(region, find), "where": {"strides": strides, "size": math.prod(out)}}
    first["program"] = {**first["program"], "outputs": []}
    second = {**_config(region, sums), "where": first["where"]}
    outputs = tuple(Arg("out", i) for i in range(len(region.outputs)))
    drafts = (
        Draft(KernelSpec("max_pool_grad.find", first), (*_inputs(region), Arg("shared")), first["tasks"] or None),
        Draft(
            KernelSpec("max_pool_grad.sum", second),
            (*_inputs(region), *outputs, Arg("shared")),
            second["tasks"] or None,
        ),
    )
    taps = math.prod(region.attrs["kernel_shape"])
    cost = 2 * move_cost(region) + math.prod(out) * taps * 2.0 / region.machine.lanes
    return Plan("max_pool_grad", drafts, cost, shared_bytes=4 * math.prod(out), detail="max_pool_grad, two passes")


def _find_box(region: Region, runs: Sequence[Data], strides: Sequence[int]) -> Data:
    size, _ = _sizes(region)
    attrs = region.attrs
    extents = (*size[:2], *(r["count"] for r in runs))
    firsts = [r["first"] * s - p for r, s, p in zip(runs, attrs["strides"], attrs["pads"], strict=False)]
    place = (*straight([0, 0]), *((f, ((2 + a, attrs["strides"][a]),)) for a, f in enumerate(firsts)))
    window = straight([0, 0, *(r["first"] for r in runs)])
    data = {"taps": list(product(*(r["taps"] for r in runs))), "place": place, "window": window}
    return _box(region, extents, None, {0: place}, data, len(data["taps"]), scratch=strides, window=window)


def _sum_box(region: Region, runs: Sequence[Data], strides: Sequence[int]) -> Data:
    size, _ = _sizes(region)
    extents = (*size[:2], *(r["count"] for r in runs))
    place = (*straight([0, 0]), *((r["first"], ((2 + a, r["step"]),)) for a, r in enumerate(runs)))
    taps = list(product(*(r["taps"] for r in runs)))
    window = straight([0] * len(size))
    data = {"taps": taps, "place": place}
    return _box(region, extents, place, {1: window}, data, max(1, len(taps)), scratch=strides, window=window)


def _scratch_strides(region: Region, out: Sequence[int]) -> list[int]:
    """Windows in the memory order of the output."""
    outer = sorted(range(len(out)), key=lambda a: (abs(region.outputs[0].strides[a]), -a))
    strides, step = [0] * len(out), 1
    for axis in outer:
        strides[axis] = step
        step *= out[axis]
    return strides


def _box(
    region: Region,
    extents: Sequence[int],
    place: Any,
    reads: dict[int, Any],
    data: Data,
    work: float,
    *,
    scratch: Sequence[int] = (),
    window: Any = None,
    scalar: bool = False,
    apart: bool = False,
) -> Data:
    """A box as data. ``place`` are its outputs' coordinates (None: it writes scratch), ``reads`` where the arguments
    of the anchor are read, ``window`` where scratch is; ``scalar``: lanes only along images or channels; ``apart``:
    vectors never overlap."""
    rank = len(extents)
    straight_on = straight([0] * rank)
    written = [along(scratch, window or straight_on, rank)] if scratch else []
    rows = []
    if place is not None:
        rows = [along(o.strides, place, rank) for o in region.outputs]
        shape = region.anchor_type.dims
        rows += [along(s, place, rank) for v in region.body.outputs for s in leaf_strides(region, v, shape)]
    args = anchor_args(region)
    for number, where in reads.items():
        value = args[number]
        assert value is not None
        rows += [along(s, where, rank) for s in leaf_strides(region, value, region.body.type(value).dims)]
    axes = range(2, rank) if scalar else ()
    loops = nest(
        extents,
        [*rows, *written] if place is not None else [*written, *rows],
        vector_lanes(region),
        solo=axes,
        scalar=axes,
        work=max(1.0, work),
        parallel=region.anchor_type.size > _PARALLEL_FROM,
        overlap=not apart,
    )
    return {"nest": loops, "data": plain(data)}


def _config(region: Region, boxes: list[Data]) -> Data:
    tasks = 0
    for box in boxes:
        box["first"] = tasks
        tasks += box["nest"]["tasks"]
    big = region.anchor_type.size > _PARALLEL_FROM and tasks > 1
    size, out = _sizes(region)
    return {
        "program": serialize(region),
        "attrs": plain(dict(region.attrs)),
        "sizes": [list(size), list(out)],
        "boxes": boxes,
        "tasks": tasks if big else 0,
        "consts": [],
    }


def _inputs(region: Region) -> tuple[Arg, ...]:
    return tuple(Arg("in", i) for i in range(len(region.inputs)))


TEMPLATE = Template(
    "max_pool_grad",
    ("max_pool_grad",),
    plan,
    {
        "max_pool_grad": _max_pool_grad.emit_disjoint,
        "max_pool_grad.find": _max_pool_grad.emit_find,
        "max_pool_grad.sum": _max_pool_grad.emit_sum,
    },
)
