"""conv_transpose in gather form: every output phase (coordinate modulo stride) is a small stride-1 convolution.

An output ``o = stride q + r`` meets the taps ``k`` with ``(r + pad - k dilation) % stride == 0``, each at the input
``q + c``. A kernel tile is some pixels along the last axis by some vectors of output channels, accumulated in registers
over taps and input channels with packed constant weights. Where that does not fit, a plain loop nest does it.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from ...ir import Value
from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Box, Cursor, anchor_args, elementwise_around, emit_boxes, move_cost, plan_boxes
from ._nest import Data, nest, pieces, walk

_MOST_PHASES, _MOST_TAPS = 16, 16


def plan(region: Region) -> list[Plan]:
    args = anchor_args(region)
    assert args[0] is not None and args[1] is not None
    if not elementwise_around(region) or 0 in region.anchor_type.dims:
        return []
    return [*_general(region, args), *_tiled(region, args)]


def _macs(region: Region, args: list[Value | None]) -> float:
    x, w = (region.body.type(a).dims for a in args[:2] if a is not None)
    return math.prod(x) * math.prod(w[1:])


# -- the tiled path --------------------------------------------------------------------------------------------------


def _phases(region: Region, spatial: tuple[int, ...]) -> list[list[Data]]:
    """For each axis, for each remainder: ``first`` output, ``count`` of outputs, ``taps`` as (kernel index, offset)."""
    attrs, found = region.attrs, []
    kernel = region.body.type(anchor_args(region)[1]).dims[2:]  # type: ignore[arg-type]
    for a, size in enumerate(spatial):
        s, p, d, out = attrs["strides"][a], attrs["pads"][a], attrs["dilations"][a], region.anchor_type.dims[2 + a]
        rows = []
        for r in range(min(s, out)):
            taps = [(k, (r + p - k * d) // s) for k in range(kernel[a]) if (r + p - k * d) % s == 0]
            count = -(-(out - r) // s)
            low = max([0, *(-c for _, c in taps)])
            high = min([count, *(size - c for _, c in taps)])
            inner = (low, high) if low < high else (0, 0)
            rows.append({"first": r, "count": count, "taps": taps, "inner": inner})
        found.append(rows)
    return found


def _channel_blocks(channels: int, lanes: int, vectors: int, small: bool) -> tuple[int, list[tuple[int, int]]]:
    """Number of full blocks of ``vectors`` vectors, and the rest as (start, width): the last one overlaps if it can."""
    full = channels // (lanes * vectors)
    start, rest = full * lanes * vectors, []
    while channels - start >= lanes:
        rest.append((start, lanes))
        start += lanes
    if start < channels:
        if channels >= lanes and not small and channels - start > 1:
            rest.append((channels - lanes, lanes))
        else:
            rest += [(start + at, width) for at, width in pieces(channels - start, lanes)]
    return full, rest


def _tiled(region: Region, args: list[Value | None]) -> list[Plan]:
    x, w = (region.body.type(a) for a in args[:2] if a is not None)
    weights_at = region.operand(1)
    if weights_at is None or region.inputs[weights_at].const is None or x.dtype != "float32":
        return []
    group, machine = region.attrs["group"], region.machine
    inner, outer = x.dims[1] // group, w.dims[1]
    phases = list(product(*_phases(region, x.dims[2:])))
    most = max(math.prod(len(a["taps"]) for a in phase) for phase in phases)
    if len(phases) > _MOST_PHASES or most > _MOST_TAPS or inner * outer < 8:
        return []
    vectors = min(4 if machine.registers >= 32 else 2, max(1, -(-outer // machine.lanes)))
    full, rest = _channel_blocks(outer, machine.lanes, vectors, region.small)
    weights = region.inputs[weights_at].const
    assert weights is not None
    packed, rows, tasks = [], [], 0
    blocks = ([(full, [(v * machine.lanes, machine.lanes) for v in range(vectors)])] if full else []) + (
        [(1, rest)] if rest else []
    )
    offset, total = 0, _macs(region, args)
    for phase in phases:
        for count, columns in blocks:
            panel = _pack(weights, phase, group, count, columns, vectors * machine.lanes)
            for pixels, first, tiles in _segments(phase[-1], machine.registers, len(columns)):
                extents = (group, count, x.dims[0], *(a["count"] for a in phase[:-1]), tiles)
                order = [math.prod(extents[i + 1 :]) for i in range(len(extents))]
                work = max(1, pixels) * len(columns) * machine.lanes * inner * max(1, most) / 8
                loops = nest(extents, [order], 1, solo=range(len(extents)), work=work, parallel=total > 50_000)
                row = {"nest": loops, "phase": plain([dict(a) for a in phase]), "pixels": pixels, "from": first}
                row |= {"columns": plain(columns), "blocks": count, "weights": offset, "first": tasks}
                rows.append(row)
                tasks += loops["tasks"]
            offset += panel.size
            packed.append(panel.ravel())
    consts = (np.concatenate(packed),)
    config = {
        "program": serialize(region),
        "attrs": plain(dict(region.attrs)),
        "consts": [["float32", consts[0].size]],
        "skip": [weights_at],
        "rows": rows,
        "tasks": tasks if total > 50_000 else 0,
        "block": vectors * machine.lanes,
    }
    inputs = tuple(Arg("in", i) for i in range(len(region.inputs)) if i != weights_at)
    outputs = tuple(Arg("out", i) for i in range(len(region.outputs)))
    draft = Draft(
        KernelSpec("conv_transpose.tiled", config), (*inputs, Arg("const"), *outputs), config["tasks"] or None
    )
    cost = move_cost(region) + total / machine.lanes / machine.fma_ports / 2.5 * 1.3
    if abs(region.outputs[0].strides[1]) != 1:
        cost += region.anchor_type.size * 0.5
    return [Plan("conv_transpose", (draft,), cost, consts, detail=f"conv_transpose {vectors} vectors")]


def _segments(axis: Data, registers: int, vectors: int) -> list[tuple[int, int, int]]:
    """How the last axis is cut into ``(pixels a tile, first, tiles)``; 0 pixels are single ones at a border."""
    low, high = axis["inner"]
    most = max(1, min(8, (registers - vectors - 2) // vectors))
    length = high - low
    found = []
    pixels = min(most, length) or 1
    divisors = [p for p in range(most, max(2, most // 2), -1) if length % p == 0]
    pixels = divisors[0] if divisors else pixels
    if length:
        found.append((pixels, low, length // pixels))
        if length % pixels:
            found.append((length % pixels, high - length % pixels, 1))
    found += [(0, start, count) for start, count in ((0, low), (high, axis["count"] - high)) if count]
    return found


def _pack(weights: np.ndarray, phase: Any, group: int, count: int, columns: Any, step: int) -> np.ndarray:
    """[group, block, tap, input channel, column]."""
    inner, outer = weights.shape[0] // group, weights.shape[1]
    taps = list(product(*([k for k, _ in a["taps"]] for a in phase)))
    picked = np.concatenate([np.arange(start, start + width) for start, width in columns])
    by_group = weights.reshape(group, inner, outer, *weights.shape[2:])
    panel = np.zeros((group, count, len(taps), inner, len(picked)), np.float32)
    for b in range(count):
        for t, tap in enumerate(taps):
            panel[:, b, t] = by_group[(slice(None), slice(None), picked + b * step, *tap)]
    return panel


def emit_tiled(k: Any, config: Data) -> None:
    from tvm import tirx

    tile = _Tile(k, config)
    if not config["tasks"]:
        for row in config["rows"]:
            tile.fill(row, None)
        return
    with k.parallel(config["tasks"]) as task:
        for row in config["rows"]:
            first, count = row["first"], row["nest"]["tasks"]
            alone = len(config["rows"]) == 1
            with k.when(True if alone else tirx.all(task >= first, task < first + count)):
                tile.fill(row, task - first)


class _Tile:
    def __init__(self, k: Any, config: Data) -> None:
        self.cursor = Cursor(k, config, lambda cursor, index, lanes: self.value)
        self.k, self.config, self.attrs = k, config, config["attrs"]
        self.value: Any = None
        self.sizes = self.cursor.shape(0)

    def fill(self, row: Data, task: Any) -> None:
        walk(self.k, row["nest"], task, lambda index, lanes: self.tile(row, [i for i, _ in index]))

    def tile(self, row: Data, index: list[Any]) -> None:
        k, columns, border = self.k, row["columns"], row["pixels"] == 0
        pixels = max(1, row["pixels"])
        group, block, batch, *places = index
        places[-1] = places[-1] * pixels + row["from"]
        held = [[k.register("float32", width, "acc") for _, width in columns] for _ in range(pixels)]
        for line in held:
            for register in line:
                register.set(self._zero(register))
        inner = self.sizes[1] // self.attrs["group"]
        width = sum(w for _, w in columns)
        taps = list(product(*(a["taps"] for a in row["phase"])))
        panel = row["weights"] + ((group * row["blocks"] + block) * len(taps)) * inner * width
        for t, tap in enumerate(taps):
            at = [q + c for q, (_, c) in zip(places, tap, strict=True)]
            with k.when(self._inside(row, at, border)), k.loop(inner) as i:
                vectors, column = [], panel + (t * inner + i) * width
                for _, lanes in columns:
                    vectors.append(k.bind(k.load(self.cursor.tables[0], column, lanes), "w"))
                    column = column + lanes
                self.cursor.ev.begin()
                for p, line in enumerate(held):
                    coords = [*((c, 0) for c in (batch, group * inner + i, *at[:-1])), (at[-1] + p, 0)]
                    x = k.bind(self.cursor.value(0, coords, 1), "x")
                    for register, vector in zip(line, vectors, strict=True):
                        register.add_product(self._splat(x, register.lanes), vector)
        self._store(row, held, group, block, batch, places)

    def _inside(self, row: Data, at: list[Any], border: bool) -> Any:
        from tvm import tirx

        checks = []
        for a, (axis, place) in enumerate(zip(row["phase"], at, strict=True)):
            last = a == len(at) - 1
            whole = axis["inner"] == [0, axis["count"]]
            if (border if last else not whole) and axis["taps"]:
                checks += [place >= 0, place < self.sizes[2 + a]]
        if any(c is False for c in checks):
            return False
        checks = [c for c in checks if c is not True]
        return tirx.all(*checks) if checks else True

    def _store(self, row: Data, held: Any, group: Any, block: Any, batch: Any, places: list[Any]) -> None:
        outer = self.config["program"]["outputs"][0]["shape"][1] // self.attrs["group"]
        for p, line in enumerate(held):
            for register, (start, width) in zip(line, row["columns"], strict=True):
                channel = group * outer + block * self.config["block"] + start
                coords: list[Any] = [(batch, 0), (channel, 1 if width > 1 else 0)]
                for a, (axis, q) in enumerate(zip(row["phase"], places, strict=True)):
                    q = q + p if a == len(places) - 1 else q
                    coords.append((q * self.attrs["strides"][a] + axis["first"], 0))
                self.cursor.ev.begin()
                self.value = self._with_bias(register.get(), channel, width)
                self.cursor.ev.store_all(self.cursor.outputs, coords, width)

    def _with_bias(self, value: Any, channel: Any, width: int) -> Any:
        if len(self.cursor.args) < 3 or self.cursor.args[2] is None:
            return value
        return value + self.cursor.value(2, [(channel, 1 if width > 1 else 0)], width)

    def _zero(self, register: Any) -> Any:
        from ..tir import constant

        return constant(0.0, "float32", register.lanes)

    def _splat(self, x: Any, lanes: int) -> Any:
        from ..tir import splat

        return splat(x, lanes)


# -- the general path ------------------------------------------------------------------------------------------------


def _general(region: Region, args: list[Value | None]) -> list[Plan]:
    """Any element type, any weights: one element (or a vector of channels) at a time."""
    x, w = (region.body.type(a) for a in args[:2] if a is not None)
    group, out = region.attrs["group"], region.anchor_type.dims
    inner, outer = x.dims[1] // group, w.dims[1]
    extents = (out[0], group, outer, *out[2:])
    place = ((0, ((0, 1),)), (0, ((1, outer), (2, 1))), *((0, ((3 + a, 1),)) for a in range(len(out) - 2)))
    spatial = tuple(range(3, len(extents)))
    box = Box(extents, place, (), range(len(extents)), scalar=spatial, data={"inner": inner})  # type: ignore[arg-type]
    macs = _macs(region, args)
    vector = region.machine.lanes if abs(region.outputs[0].strides[1]) == 1 else 1
    cost = move_cost(region) + macs * (1.0 + 8.0 / vector) / 2.5
    work = max(1.0, macs / region.anchor_type.size)
    return plan_boxes(region, "conv_transpose.general", [box], cost=cost, work=work, detail="conv_transpose general")


def _source(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import constant

    dtype = cursor.dtype(0)
    wide = accumulator(dtype)
    total = cursor.k.register(wide, lanes, "total")
    total.set(constant(0, wide, lanes))
    _taps(cursor, index, [], [], lanes, total)
    value = cast(total.get(), dtype)
    if len(cursor.args) > 2 and cursor.args[2] is not None:
        outer = cursor.shape(1)[1]
        (g, gs), (o, os) = index[1], index[2]
        bias = cursor.value(2, [(g * outer + o, gs * outer + os)], lanes)
        value = cast(total.get() + cast(bias, wide), dtype)
    return value


def _taps(cursor: Cursor, index: Any, taps: list[Any], at: list[Any], lanes: int, total: Any) -> None:
    """Loops over the kernel's axes, and over the input channels of the taps that meet an element."""
    from tvm import tirx

    from ..functions import cast

    k, attrs, axis = cursor.k, cursor.attrs, len(taps)
    weights, inner = cursor.shape(1), cursor.data["inner"]
    if axis < len(attrs["strides"]):
        s, size = attrs["strides"][axis], cursor.shape(0)[2 + axis]
        with k.loop(weights[2 + axis]) as tap:
            reach = k.bind(index[3 + axis][0] + attrs["pads"][axis] - tap * attrs["dilations"][axis], "reach")
            reach = reach if not isinstance(reach, int) else tirx.IntImm("int32", reach)
            meets = tirx.all(tirx.EQ(tirx.truncmod(reach, s), 0), reach >= 0, reach < size * s)
            with k.when(meets):
                _taps(cursor, index, [*taps, tap], [*at, tirx.truncdiv(reach, s)], lanes, total)
        return
    batch, (g, gs), (o, os) = index[:3]
    with k.loop(inner) as i:
        x = cursor.value(0, [batch, (g * inner + i, gs * inner), *((c, 0) for c in at)], lanes)
        w = cursor.value(1, [(g * inner + i, gs * inner), (o, os), *((t, 0) for t in taps)], lanes)
        total.set(total.get() + cast(x, total.dtype) * cast(w, total.dtype))


def accumulator(dtype: str) -> str:
    """The type in which products are summed: integers wrap like the element type."""
    if dtype.startswith(("float", "bfloat")):
        return "float64" if dtype == "float64" else "float32"
    return dtype if dtype.endswith("64") else "int32" if dtype.startswith("int") else "uint32"


def emit_general(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, _source)


TEMPLATE = Template(
    "conv_transpose",
    ("conv_transpose",),
    plan,
    {"conv_transpose.tiled": emit_tiled, "conv_transpose.general": emit_general},
)
