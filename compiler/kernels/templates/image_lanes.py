"""Convolutions with few channels in training: the images of the batch are the lanes of a vector.

Channels that do not fill a vector waste it, and the pixels of a small picture have borders. The images of a batch have
neither: where N is the innermost axis in memory (unit stride), one vector holds the same pixel of as many images, every
weight is one scalar for all of them, and weights are read where they lie, whatever their order. Both ``conv`` and
``conv_transpose`` (its gradient for x) become sums over taps; a stride of the latter makes phases of outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby, product
from typing import Any

from ....targets.machine import Machine
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from ._tile import GHZ, WORTH_SHARING, epilogue_inputs, epilogue_work, fits, inplace_pairs, step_cycles

Data = dict[str, Any]
_MOST_WRITTEN = 4000  # products of a kernel that are written out: beyond, its code leaves the instruction cache


@dataclass(frozen=True)
class Taps:
    """Some outputs of one spatial axis: output ``first + q * step`` (``q < count``) meets with kernel element ``k``
    the input ``q * walk + base``, for each ``(k, base)`` of ``taps``; the bases rise evenly."""

    first: int
    step: int
    count: int
    walk: int
    taps: tuple[tuple[int, int], ...]

    def valid(self, size: int, start: int, count: int) -> list[tuple[int, int]]:
        """For each tap the range of the outputs ``start .. start + count`` that meet the input."""
        rows = []
        for _, base in self.taps:
            seen = [q for q in range(count) if 0 <= (start + q) * self.walk + base < size]
            rows.append((seen[0], seen[-1] + 1) if seen else (0, 0))
        return rows


def forward_taps(out: int, kernel: int, stride: int, dilation: int, pad: int) -> list[Taps]:
    """An axis of conv."""
    return [Taps(0, 1, out, stride, tuple((k, k * dilation - pad) for k in range(kernel)))]


def transposed_taps(out: int, kernel: int, stride: int, dilation: int, pad: int) -> list[Taps]:
    """An axis of conv_transpose: the outputs of each remainder modulo the stride."""
    found = []
    for r in range(min(stride, out)):
        reach = [(k, r + pad - k * dilation) for k in reversed(range(kernel))]
        taps = tuple((k, at // stride) for k, at in reach if at % stride == 0)
        found.append(Taps(r, stride, -(-(out - r) // stride), 1, taps))
    return found


def batch_last(region: Region, *operands: Operand) -> bool:
    """Whether the images of these tensors lie side by side and fill vectors of float32."""
    lanes = region.machine.lanes
    return lanes > 1 and all(
        o.type.dtype == "float32" and o.strides[0] == 1 and o.type.dims[0] % lanes == 0 and 0 not in o.type.dims
        for o in operands
    )


# -- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A register tile: output channels, points of a line, vectors of images."""

    channels: int
    points: int
    vectors: int


def plan(region: Region) -> list[Plan]:
    """One plan, where x and the outputs have the batch innermost."""
    if not fits(region) or any(region.operand(i) is None for i in (0, 1)):
        return []
    x, w = (region.inputs[i] for i in (region.operand(0), region.operand(1)) if i is not None)
    if not batch_last(region, x, *region.outputs) or w.type.dtype != "float32":
        return []
    attrs, dims = region.attrs, region.anchor_type.dims
    make = forward_taps if region.op == "conv" else transposed_taps
    rank, kernel = len(dims) - 2, w.type.dims[2:]
    axes = [
        make(dims[2 + a], kernel[a], attrs["strides"][a], attrs["dilations"][a], attrs["pads"][a]) for a in range(rank)
    ]
    outputs = dims[1] // attrs["group"]
    inputs = x.type.dims[1] // attrs["group"]
    work = epilogue_work(region)
    options = []
    for tile in _tiles(region.machine, outputs, max(p.count for p in axes[-1]), dims[0] // region.machine.lanes):
        code = _written(axes, x.type.dims[2:], tile)
        cycles = _cycles(region.machine, axes, x.type.dims[2:], outputs, inputs, tile, work)
        cycles *= attrs["group"] * (dims[0] // region.machine.lanes / tile.vectors)
        cycles += distance(region.machine, x.type.nbytes, tile.vectors)
        options.append((code > _MOST_WRITTEN, cycles, -tile.points, tile.channels, tile))
    far, cycles, *_, tile = min(options, key=lambda o: o[:-1])
    if far:
        return []
    return [_assemble(region, x, w, axes, tile, cycles)]


def _tiles(machine: Machine, channels: int, points: int, vectors: int) -> Iterator[Tile]:
    """Tiles that leave the registers for a row of inputs and a weight."""
    for v in (n for n in range(1, min(vectors, 4) + 1) if vectors % n == 0):
        for p in range(1, min(points, 14) + 1):
            most = (machine.registers - 2) // (p * v) - 1
            for c in range(1, min(channels, most, 16) + 1):
                yield Tile(c, p, v)


def _segments(taps: Taps, size: int, points: int) -> list[Data]:
    """The points of a line as tiles; neighbours that see the same taps are one loop."""
    cuts = [(q, min(points, taps.count - q)) for q in range(0, taps.count, points)]
    kinds = [(n, taps.valid(size, q, n)) for q, n in cuts]
    found = []
    for _, run in groupby(range(len(cuts)), key=lambda i: kinds[i]):
        numbers = list(run)
        (start, count), valid = cuts[numbers[0]], kinds[numbers[0]][1]
        found.append({"start": start, "count": count, "repeat": len(numbers), "valid": valid})
    return found


def _written(axes: list[list[Taps]], sizes: tuple[int, ...], tile: Tile) -> int:
    """Products in the code of one kernel."""
    lines = math.prod(len(a) for a in axes[:-1])
    tiles = [s for t in axes[-1] for s in _segments(t, sizes[-1], tile.points)]
    points: int = sum(high - low for s in tiles for low, high in s["valid"])
    return lines * tile.channels * tile.vectors * points


def _cycles(
    machine: Machine, axes: list[list[Taps]], sizes: tuple[int, ...], outputs: int, inputs: int, tile: Tile, work: int
) -> float:
    """Estimated cycles for one block of images and one group."""
    rows = math.prod(sum(t.count for t in axis) for axis in axes[:-1])
    visits = math.prod(
        sum(high - low for t in axis for low, high in t.valid(size, 0, t.count))
        for axis, size in zip(axes[:-1], sizes, strict=False)
    )
    blocks = [(tile.channels, outputs // tile.channels), (outputs % tile.channels, 1)]
    total = 0.0
    for taps in axes[-1]:
        for s in _segments(taps, sizes[-1], tile.points):
            for channels, count in blocks:
                if not channels:
                    continue
                steps = sum(_step(machine, channels, (h - low) * tile.vectors) for low, h in s["valid"] if h > low)
                ends = 14 + channels * s["count"] * tile.vectors * (1.5 + work)
                total += count * s["repeat"] * (inputs * visits * (steps + 2) + rows * ends)
    return total


def distance(machine: Machine, nbytes: int, vectors: int) -> float:
    """Cycles lost on reading a tensor beyond the second-level cache in pieces of a few vectors, from many places."""
    if nbytes < machine.l2:
        return 0.0
    near = machine.l3 and nbytes < machine.l3 / 4
    return (
        nbytes
        / (machine.l3_bandwidth if near else machine.memory_bandwidth)
        * (2 * machine.line / (vectors * machine.vector_bytes))
    )


@cache
def _step(machine: Machine, channels: int, vectors: int) -> float:
    return step_cycles(machine, channels, (machine.lanes,) * vectors)


def _assemble(region: Region, x: Operand, w: Operand, axes: list[list[Taps]], tile: Tile, cycles: float) -> Plan:
    attrs, dims, rank = region.attrs, region.anchor_type.dims, len(axes)
    group, conv = attrs["group"], region.op == "conv"
    outputs, inputs = dims[1] // group, x.type.dims[1] // group
    reads = epilogue_inputs(region)
    bias = region.operand(2)
    columns, rest = divmod(outputs, tile.channels)
    blocks = columns + (rest > 0)
    # the blocks of images are walked innermost, along memory; lines without neighbours leave them to the tasks
    images = dims[0] // (region.machine.lanes * tile.vectors)
    apart, within = (images, 1) if rank == 1 else (1, images)
    rows = []
    first = 0
    for lines in product(*axes[:-1]):
        count = apart * group * (lines[0].count if lines else 1) * blocks
        rows.append(
            {
                "lines": [line_axis(t, x, w, a) for a, t in enumerate(lines)],
                "first": first,
                "count": count,
            }
        )
        first += count
    last = rank - 1
    points = [
        {
            "first": t.first,
            "step": t.step,
            "walk": t.walk,
            "taps": t.taps,
            "segments": _segments(t, x.type.dims[-1], tile.points),
        }
        for t in axes[last]
    ]
    config = {
        "program": serialize(region),
        "reads": sorted({*reads, *([bias] if bias is not None else [])}),
        "bias": bias,
        "x": {"span": x.span, "channel": x.strides[1], "point": x.strides[-1]},
        "w": {
            "span": w.span,
            "group": w.strides[0] * (outputs if conv else inputs),
            "output": w.strides[0 if conv else 1],
            "input": w.strides[1 if conv else 0],
            "point": w.strides[-1],
        },
        "rank": rank,
        "rows": rows,
        "points": points,
        "dims": [apart, group, blocks],
        "within": within,
        "tile": [tile.channels, tile.points, tile.vectors],
        "full": columns,
        "rest": rest,
        "outputs": outputs,
        "inputs": inputs,
        "tasks": first if cycles > WORTH_SHARING and first > 1 else 0,
        "units": first,
    }
    args = [Arg("in", region.operand(0)), Arg("in", region.operand(1))]  # type: ignore[arg-type]
    args += [Arg("in", i) for i in config["reads"]] + [Arg("out", j) for j in range(len(region.outputs))]
    draft = Draft(KernelSpec("image_lanes", config), tuple(args), config["tasks"] or None)
    detail = f"image lanes {tile.channels}x{tile.points}x{tile.vectors}v{region.machine.lanes}"
    return Plan("image_lanes", (draft,), cycles / GHZ + 50, inplace=inplace_pairs(region), detail=detail)


def line_axis(taps: Taps, x: Operand, w: Operand, axis: int) -> Data:
    """A line axis: its taps as first ones and steps, and whether some fall outside."""
    size = x.type.dims[2 + axis]
    (k, base), (k2, base2) = (taps.taps[0], taps.taps[1 if len(taps.taps) > 1 else 0]) if taps.taps else ((0, 0),) * 2
    return {
        "first": taps.first,
        "step": taps.step,
        "count": taps.count,
        "walk": taps.walk,
        "taps": len(taps.taps),
        "k": [k, k2 - k],
        "base": [base, base2 - base],
        "size": size,
        "border": any(r != (0, taps.count) for r in taps.valid(size, 0, taps.count)),
        "x": x.strides[2 + axis],
        "w": w.strides[2 + axis],
    }


# -- emitting --------------------------------------------------------------------------------------------------------


def emit(k: Any, config: Data) -> None:
    """Arguments: x, w, what bias and epilogue read, the outputs."""
    kernel = Kernel(k, config)
    if config["tasks"]:
        with k.parallel(config["tasks"]) as task:
            kernel.run(task)
        return
    for row in config["rows"]:
        with k.loop(row["count"]) as unit:
            kernel.unit(row, unit)


class Kernel:
    """One kernel: lines, blocks of channels, tiles of points."""

    def __init__(self, k: Any, config: Data) -> None:
        from ..evaluate import Evaluator

        program = config["program"]
        self.k, self.c, self.lanes = k, config, k.lanes
        self.x = k.arg("x", "float32", config["x"]["span"])
        self.w = k.arg("w", "float32", config["w"]["span"])
        buffers: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            buffers[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.part: Any = None
        self.ev = Evaluator(k, program, buffers, anchor=lambda number, coords: self.part)

    def run(self, task: Any) -> None:
        from tvm import tirx

        rows = self.c["rows"]
        for row in rows:
            first, count = row["first"], row["count"]
            with self.k.when(True if len(rows) == 1 else tirx.all(task >= first, task < first + count)):
                self.unit(row, task - first if first else task)

    def unit(self, row: Data, unit: Any) -> None:
        """One line of the outermost spatial axis, one block of channels."""
        from ._contract import equal

        images, group, blocks = self.c["dims"]
        rest, at = unit, []
        for size in (blocks, row["lines"][0]["count"] if row["lines"] else 1, group, images):
            at.append(self.k.bind(rest % size, "at") if size > 1 else 0)
            rest = rest // size if size > 1 else rest
        block, line, group, image = at
        full, rest, channels = self.c["full"], self.c["rest"], self.c["tile"][0]
        if full:
            with self.k.when(block < full if rest else True):
                self._lines(row, [line], group, image, block * channels, channels)
        if rest:
            with self.k.when(equal(block, full) if full else True):
                self._lines(row, [line], group, image, full * channels, rest)

    def _lines(self, row: Data, at: list[Any], group: Any, image: Any, channel: Any, channels: int) -> None:
        if len(at) < len(row["lines"]):
            with self.k.loop(row["lines"][len(at)]["count"]) as i:
                self._lines(row, [*at, i], group, image, channel, channels)
            return
        for point in self.c["points"]:
            for s in point["segments"]:
                with self.k.loop(s["repeat"]) as i, self.k.loop(self.c["within"]) as j:
                    images = image if self.c["within"] == 1 else j
                    self._tile(row, at, point, s, s["start"] + i * s["count"], group, images, channel, channels)

    def _tile(
        self,
        row: Data,
        at: list[Any],
        point: Data,
        segment: Data,
        q: Any,
        group: Any,
        image: Any,
        channel: Any,
        channels: int,
    ) -> None:
        c, k, vectors = self.c, self.k, self.c["tile"][2]
        first = image * (self.lanes * vectors)
        acc = [
            [[k.register("float32", self.lanes, "acc") for _ in range(vectors)] for _ in range(segment["count"])]
            for _ in range(channels)
        ]
        for i, plane in enumerate(acc):
            start = self._start(group * c["outputs"] + channel + i)
            for register in (r for pixel in plane for r in pixel):
                register.set(start)
        x = first + group * (c["inputs"] * c["x"]["channel"]) + q * (point["walk"] * c["x"]["point"])
        w = group * c["w"]["group"] + channel * c["w"]["output"]
        if all(line["taps"] for line in row["lines"]):
            with k.loop(c["inputs"]) as i:
                x, w = x + i * c["x"]["channel"], w + i * c["w"]["input"]
                self._taps(row["lines"], at, x, w, point, segment, acc)
        self._finish(row, at, point, q, first, group * c["outputs"] + channel, acc)

    def _start(self, channel: Any) -> Any:
        from ..tir import constant, splat

        bias = self.c["bias"]
        if bias is None:
            return constant(0.0, "float32", self.lanes)
        return splat(self.ev.read(bias, [(channel, 0)]), self.lanes)

    def _taps(self, lines: list[Data], at: list[Any], x: Any, w: Any, point: Data, segment: Data, acc: Any) -> None:
        """Loops over the taps of the line axes that meet the input; those of the points are written out."""
        if lines:
            line, q = lines[0], at[0]
            low, count = self._range(line, q)
            with self.k.loop(count) as i:
                tap = low + i
                (k0, step), (base, rise) = line["k"], line["base"]
                x = x + (q * line["walk"] + base + tap * rise) * line["x"]
                self._taps(lines[1:], at[1:], x, w + (k0 + tap * step) * line["w"], point, segment, acc)
            return
        self._row(x, w, point, segment, acc)

    def _row(self, x: Any, w: Any, point: Data, segment: Data, acc: Any) -> None:
        """The taps along a line, written out."""
        for (tap, base), (low, high) in zip(point["taps"], segment["valid"], strict=True):
            if low < high:
                self._products(x + base * self.c["x"]["point"], w + tap * self.c["w"]["point"], point, low, high, acc)

    def _range(self, line: Data, q: Any) -> tuple[Any, Any]:
        """The first tap and the number of taps of an output that meet the input."""
        from ._contract import least, most

        if not line["border"]:
            return 0, line["taps"]
        base, rise = line["base"]
        origin = q * line["walk"] + base
        rise = max(1, rise)
        low = self.k.bind(most(0, rise - 1 - origin) // rise, "low")
        high = most(0, line["size"] - 1 - origin + rise) // rise
        return low, self.k.bind(most(0, least(line["taps"], high) - low), "taps")

    def _products(self, x: Any, w: Any, point: Data, low: int, high: int, acc: Any) -> None:
        k, step, vectors = self.k, point["walk"] * self.c["x"]["point"], self.c["tile"][2]
        inputs = [
            [k.bind(k.load(self.x, x + (p * step + v * self.lanes), self.lanes), "x") for v in range(vectors)]
            for p in range(low, high)
        ]
        for i, plane in enumerate(acc):
            weight = k.bind(k.load(self.w, w + i * self.c["w"]["output"], self.lanes, 0), "w")
            for pixel, values in zip(plane[low:high], inputs, strict=True):
                for register, value in zip(pixel, values, strict=True):
                    register.add_product(value, weight)

    def _finish(self, row: Data, at: list[Any], point: Data, q: Any, image: Any, channel: Any, acc: Any) -> None:
        lines = [(i * line["step"] + line["first"], 0) for i, line in zip(at, row["lines"], strict=False)]
        images = [(image + v * self.lanes, 1) for v in range(self.c["tile"][2])]
        points = [((q + p) * point["step"] + point["first"], 0) for p in range(len(acc[0]))]
        self.ev.begin()
        for i, plane in enumerate(acc):
            here = (channel + i, 0)
            for pixel, place in zip(plane, points, strict=True):
                for register, lanes in zip(pixel, images, strict=True):
                    self.part = register.get()
                    self.ev.store_all(self.outputs, [lanes, here, *lines, place], self.lanes)


TEMPLATE = Template("image_lanes", ("conv", "conv_transpose"), plan, {"image_lanes": emit})
