"""The gradient of max_pool: each window's gradient goes to its first largest element.

Windows that do not overlap are one pass: a window's elements are read, compared, and all written. Otherwise a first
phase finds the largest element of every window, and a second one sums for each element the windows that chose it: no
element is written twice, so no task depends on another. Both phases cut their space into boxes in which the same kernel
elements count, and write these out; where that would be too much code, kernel elements are loops with conditions.
The vector axis is the one that is contiguous in x: channels, images or columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import (
    Cursor,
    affine,
    along,
    anchor_args,
    elementwise_around,
    leaf_strides,
    move_cost,
    over_boxes,
    straight,
    vector_lanes,
)
from ._nest import Data, nest, walk

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


# -- emitting --------------------------------------------------------------------------------------------------------


def _number(attrs: Data, tap: Sequence[Any]) -> Any:
    """A kernel element's number."""
    flat: Any = 0
    for t, k in zip(tap, attrs["kernel_shape"], strict=True):
        flat = flat * k + t
    return flat


def _element(cursor: Cursor, origin: list[Any], tap: Sequence[Any], lanes: int) -> Any:
    """The element of x at a kernel element of the window whose first one is at ``origin``."""
    moved = [(b + t * d, s) for (b, s), t, d in zip(origin[2:], tap, cursor.attrs["dilations"], strict=True)]
    return cursor.k.bind(cursor.value(0, [*origin[:2], *moved], lanes))


def emit_disjoint(k: Any, config: Data) -> None:
    """Arguments: the inputs, the outputs."""
    from ..tir import constant, select

    part: list[Any] = [None]
    cursor = Cursor(k, config, lambda cursor, index, lanes: part[0])
    dtype = cursor.dtype(0)

    def fill(row: Data, task: Any) -> None:
        data = row["data"]

        def put(coords: list[Any], lanes: int) -> None:
            cursor.ev.begin()
            cursor.ev.store_all(cursor.outputs, coords, lanes)

        def body(index: list[Any], lanes: int) -> None:
            zero = constant(0, dtype, lanes)
            origin = [affine(p, index) for p in data["place"]]
            if not data["taps"]:
                part[0] = zero
                put(origin, lanes)
                return
            cursor.ev.begin()
            values = [_element(cursor, origin, tap, lanes) for tap in data["taps"]]
            rest = k.bind(cursor.value(1, [affine(p, index) for p in data["window"]], lanes))
            best, above = values[0], []
            for value in values[1:]:
                above.append((value, best))
                best = k.bind(select(value > best, value, best))
            found = []
            for value, before in reversed(above):
                found.append(k.bind(select(value > before, rest, zero)))
                rest = k.bind(select(value > before, zero, rest))
            for tap, share in zip(data["taps"], [rest, *reversed(found)], strict=True):
                part[0] = share
                put([*origin[:2], *((b + t, s) for (b, s), t in zip(origin[2:], tap, strict=True))], lanes)

        walk(k, row["nest"], task, body)

    over_boxes(k, config, fill)


class _Choice:
    """The largest element so far and its number; ``known``: the first element is on x for sure."""

    def __init__(self, cursor: Cursor, lanes: int, known: bool) -> None:
        from ..tir import constant

        self.k, self.lanes, self.known, self.empty = cursor.k, lanes, known, True
        self.best = cursor.k.register(cursor.dtype(0), lanes, "best")
        self.where = cursor.k.register("int32", lanes, "where")
        self.best.set(constant(0, cursor.dtype(0), lanes))
        self.where.set(constant(-1, "int32", lanes))

    def add(self, value: Any, number: Any) -> None:
        from tvm import tirx

        from ..tir import constant, select, splat

        number = constant(number, "int32", self.lanes) if isinstance(number, int) else splat(number, self.lanes)
        better = value > self.best.get()
        if not self.known:
            better = tirx.Or(better, self.where.get() < constant(0, "int32", self.lanes))
        first, self.empty = self.known and self.empty, False
        chosen = number if first else self.k.bind(select(better, number, self.where.get()))
        self.best.set(value if first else select(better, value, self.best.get()))
        self.where.set(chosen)


def emit_find(k: Any, config: Data) -> None:
    """Arguments: the inputs, the scratch."""
    cursor = Cursor(k, config, lambda cursor, index, lanes: None)
    where = k.arg("where", "int32", config["where"]["size"])
    attrs = config["attrs"]

    def fill(row: Data, task: Any) -> None:
        data = row["data"]

        def body(index: list[Any], lanes: int) -> None:
            cursor.ev.begin()
            choice = _Choice(cursor, lanes, data["taps"] is not None)
            if data["taps"] is None:
                window = index
                starts = zip(index[2:], attrs["strides"], attrs["pads"], strict=False)
                origin = [*index[:2], *((b * s - p, 0) for (b, _), s, p in starts)]
                _loops(
                    k,
                    attrs,
                    lambda axis, t: _on_x(config, axis, origin, t, attrs),
                    [],
                    lambda taps: choice.add(_element(cursor, origin, taps, lanes), _number(attrs, taps)),
                )
            else:
                window = [affine(p, index) for p in data["window"]]
                origin = [affine(p, index) for p in data["place"]]
                for tap in data["taps"]:
                    choice.add(_element(cursor, origin, tap, lanes), _number(attrs, tap))
            base, step = cursor.ev.address(config["where"]["strides"], window)
            k.store(where, base, choice.where.get(), step or 1)

        walk(k, row["nest"], task, body)

    over_boxes(k, config, fill)


def _on_x(config: Data, axis: int, origin: list[Any], tap: Any, attrs: Data) -> Any:
    """Whether a kernel element of a window lies on x."""
    from tvm import tirx

    at = origin[2 + axis][0] + tap * attrs["dilations"][axis]
    if isinstance(at, int):
        return 0 <= at < config["sizes"][0][2 + axis]
    return tirx.all(at >= 0, at < config["sizes"][0][2 + axis])


def _window(config: Data, axis: int, index: list[Any], tap: Any) -> tuple[Any, Any]:
    """The window in which an element of x is the kernel's element ``tap``: times the stride, and its number."""
    from tvm import tirx

    attrs = config["attrs"]
    at = index[2 + axis][0] + attrs["pads"][axis] - tap * attrs["dilations"][axis]
    at = tirx.IntImm("int32", at) if isinstance(at, int) else at
    return at, tirx.floordiv(at, attrs["strides"][axis])


def _met(config: Data, axis: int, index: list[Any], tap: Any) -> Any:
    """Whether there is such a window."""
    from tvm import tirx

    at, stride = _window(config, axis, index, tap)[0], config["attrs"]["strides"][axis]
    return tirx.all(tirx.EQ(tirx.floormod(at, stride), 0), at >= 0, at < config["sizes"][1][2 + axis] * stride)


def _loops(
    k: Any, attrs: Data, counts: Callable[[int, Any], Any], taps: list[Any], body: Callable[[list[Any]], None]
) -> None:
    """Loops over all kernel elements; ``counts(axis, element)`` is the condition."""
    axis = len(taps)
    if axis == len(attrs["kernel_shape"]):
        body(taps)
        return
    with k.loop(attrs["kernel_shape"][axis]) as t, k.when(counts(axis, t)):
        _loops(k, attrs, counts, [*taps, t], body)


def emit_sum(k: Any, config: Data) -> None:
    """Arguments: the inputs, the outputs, the scratch."""
    from tvm import tirx

    from ..tir import constant, select, splat

    part: list[Any] = [None]
    cursor = Cursor(k, config, lambda cursor, index, lanes: part[0])
    where = k.arg("where", "int32", config["where"]["size"])
    attrs, dtype = config["attrs"], cursor.dtype(0)

    def fill(row: Data, task: Any) -> None:
        data = row["data"]

        def body(index: list[Any], lanes: int) -> None:
            cursor.ev.begin()
            total = k.register(dtype, lanes, "total")
            total.set(constant(0, dtype, lanes))

            def take(tap: Sequence[Any], window: list[Any]) -> None:
                base, step = cursor.ev.address(config["where"]["strides"], window)
                number = _number(attrs, tap)
                number = constant(number, "int32", lanes) if isinstance(number, int) else splat(number, lanes)
                mine = tirx.EQ(k.load(where, base, lanes, step or 1), number)
                share = select(mine, cursor.value(1, window, lanes), constant(0, dtype, lanes))
                total.set(total.get() + share)

            if data["taps"] is None:
                _loops(
                    k,
                    attrs,
                    lambda axis, t: _met(config, axis, index, t),
                    [],
                    lambda taps: take(
                        taps, [*index[:2], *((_window(config, a, index, t)[1], 0) for a, t in enumerate(taps))]
                    ),
                )
            else:
                for taps in data["taps"]:
                    at = [(b + window, s) for (b, s), (_, window) in zip(index[2:], taps, strict=True)]
                    take([t for t, _ in taps], [*index[:2], *at])
            part[0] = total.get()
            coords = [affine(p, index) for p in data["place"]]
            cursor.ev.begin()
            cursor.ev.store_all(cursor.outputs, coords, lanes)

        walk(k, row["nest"], task, body)

    over_boxes(k, config, fill)


TEMPLATE = Template(
    "max_pool_grad",
    ("max_pool_grad",),
    plan,
    {"max_pool_grad": emit_disjoint, "max_pool_grad.find": emit_find, "max_pool_grad.sum": emit_sum},
)
