"""The gradient of a convolution's weights where the images of the batch are the lanes of a vector.

Every weight's gradient is a sum over images and output points: one vector of partial sums, whose lanes are added at the
very end. A register tile holds the sums of some output channels, input channels and kernel elements of one kernel line;
it walks all the output points that meet the input. Work that follows (an optimizer) is done in a second phase, on whole
vectors of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ....targets.machine import Machine
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from ._boxes import alone
from ._tile import GHZ, WORTH_SHARING, epilogue_inputs, fits, inplace_pairs
from .image_lanes import batch_last
from .pointwise import _Nest, merge_axes

Data = dict[str, Any]
_MOST_WRITTEN = 4000
_TURNS = 2  # vectors of images whose products are written out


@dataclass(frozen=True)
class Tile:
    outputs: int
    inputs: int
    taps: int


def plan(region: Region) -> list[Plan]:
    """One plan, where x and g have the batch innermost."""
    if not fits(region) or any(region.operand(i) is None for i in (0, 1)):
        return []
    x, g = (region.inputs[i] for i in (region.operand(0), region.operand(1)) if i is not None)
    if not batch_last(region, x, g):
        return []
    attrs, dims = region.attrs, region.anchor_type.dims
    rank = len(dims) - 2
    points = [
        [_valid(region, x, g, axis, tap, attrs["pads"][axis]) for tap in range(dims[2 + axis])] for axis in range(rank)
    ]
    lines = math.prod(sum(high - low for low, high in axis) for axis in points[:-1])
    options = []
    for tile in _tiles(region.machine, dims[0] // attrs["group"], dims[1], dims[-1]):
        code, cycles = _cycles(region, tile, points[-1], lines, g)
        options.append((code > _MOST_WRITTEN, cycles, tile.outputs, tile.inputs, tile))
    far, cycles, *_, tile = min(options, key=lambda o: o[:-1])
    return [] if far else [_assemble(region, x, g, points, tile, cycles)]


def _valid(region: Region, x: Operand, g: Operand, axis: int, tap: int, pad: int) -> tuple[int, int]:
    """The outputs along an axis that meet the input with a kernel element."""
    stride, dilation = region.attrs["strides"][axis], region.attrs["dilations"][axis]
    base = tap * dilation - pad
    low = max(0, -(base // stride))
    high = min(g.type.dims[2 + axis], (x.type.dims[2 + axis] - 1 - base) // stride + 1)
    return low, max(low, high)


def _tiles(machine: Machine, outputs: int, inputs: int, kernel: int) -> Iterator[Tile]:
    """Tiles that leave the registers for the gradients of a point and one input."""
    for taps in sorted({-(-kernel // n) for n in range(1, kernel + 1)}):
        for i in range(1, min(inputs, 4) + 1):
            most = (machine.registers - 2) // (i * taps + 1)
            for o in range(1, min(outputs, most, 8) + 1):
                yield Tile(o, i, taps)


def _blocks(extent: int, size: int) -> list[tuple[int, int]]:
    return [(i, min(size, extent - i)) for i in range(0, extent, size)]


def _segments(valid: list[tuple[int, int]], first: int, count: int) -> list[Data]:
    """The points of a line: those that meet the input with all of these taps as one loop, the others one by one."""
    mine = valid[first : first + count]
    low, high = max(v[0] for v in mine), min(v[1] for v in mine)
    edges = [p for p in range(min(v[0] for v in mine), max(v[1] for v in mine)) if not low <= p < high]
    found = [{"start": low, "repeat": high - low, "taps": list(range(count))}] if low < high else []
    return found + [
        {"start": p, "repeat": 1, "taps": [t for t, v in enumerate(mine) if v[0] <= p < v[1]]} for p in edges
    ]


def _cycles(region: Region, tile: Tile, valid: list[tuple[int, int]], lines: int, g: Operand) -> tuple[int, float]:
    """Products in the code of one kernel, and estimated cycles."""
    machine, dims = region.machine, region.anchor_type.dims
    vectors = g.type.dims[0] // machine.lanes
    code, total = 0, 0.0
    for first, count in _blocks(dims[-1], tile.taps):
        segments = _segments(valid, first, count)
        for outputs, times in _sizes(dims[0] // region.attrs["group"], tile.outputs):
            for inputs, again in _sizes(dims[1], tile.inputs):
                once = 0.0
                for s in segments:
                    taps = len(s["taps"])
                    code += outputs * inputs * taps * min(vectors, _TURNS)
                    loads = outputs + inputs * taps
                    products = outputs * inputs * taps / machine.fma_ports
                    step = max(products, loads / machine.load_ports, machine.fma_latency)
                    once += s["repeat"] * vectors * (step + 0.1 * loads + 1)
                sums = math.prod(dims[2:-1]) * outputs * inputs * count * 12
                total += times * again * (lines * once + sums)
    return code, total * region.attrs["group"]


def _sizes(extent: int, size: int) -> list[tuple[int, int]]:
    """Sizes of the blocks and how many there are of each."""
    return [(s, n) for s, n in ((size, extent // size), (extent % size, 1)) if s and n]


def _assemble(region: Region, x: Operand, g: Operand, points: Any, tile: Tile, cycles: float) -> Plan:
    attrs, dims, rank = region.attrs, region.anchor_type.dims, len(region.anchor_type.dims) - 2
    group, outputs, inputs = attrs["group"], dims[0] // attrs["group"], dims[1]
    blocks = [-(-outputs // tile.outputs), -(-inputs // tile.inputs)]
    rows: list[Data] = []
    units = group * math.prod(dims[2:-1]) * math.prod(blocks)
    for first, count in _blocks(dims[-1], tile.taps):
        segments = _segments(points[-1], first, count)
        rows.append({"tap": first, "taps": count, "segments": segments, "first": len(rows) * units})
    simple = alone(region)
    scratch = _row_major(dims)
    config = {
        "program": serialize(region),
        "x": {"span": x.span, "strides": x.strides},
        "g": {"span": g.span, "strides": g.strides},
        "vectors": x.type.dims[0] // region.machine.lanes,
        "dims": dims,
        "group": [group, outputs, inputs],
        "tile": [tile.outputs, tile.inputs],
        "blocks": blocks,
        "axes": [
            [attrs["strides"][a], attrs["dilations"][a], attrs["pads"][a], x.type.dims[2 + a], g.type.dims[2 + a]]
            for a in range(rank)
        ],
        "rows": rows,
        "units": units,
        "tasks": units * len(rows) if cycles > WORTH_SHARING else 0,
        "scratch": None if simple else scratch,
    }
    operands = (Arg("in", region.operand(0)), Arg("in", region.operand(1)))  # type: ignore[arg-type]
    results = tuple(Arg("out", j) for j in range(len(region.outputs)))
    spec = KernelSpec("image_lanes_grad", config)
    phases = [Draft(spec, (*operands, *(results if simple else (Arg("shared"),))), config["tasks"] or None)]
    size = region.anchor_type.size
    if not simple:
        reads = epilogue_inputs(region)
        finish = {"program": config["program"], "reads": reads, "shape": list(dims), "scratch": scratch, "outer": 0}
        finish |= {"groups": _groups(region, scratch), "tasks": 1, "chunk": 0, "lanes": region.machine.lanes}
        args = (*(Arg("in", i) for i in reads), *results, Arg("shared"))
        phases.append(Draft(KernelSpec("image_lanes_grad.finish", finish), args))
    return Plan(
        "image_lanes_grad",
        tuple(phases),
        cycles / GHZ + 50 + (0 if simple else size / region.machine.lanes),
        shared_bytes=0 if simple else 4 * size,
        inplace=inplace_pairs(region),
        detail=f"image lanes, weights {tile.outputs}x{tile.inputs}x{tile.taps}",
    )


def _row_major(dims: tuple[int, ...]) -> list[int]:
    return [math.prod(dims[a + 1 :]) for a in range(len(dims))]


def _groups(region: Region, scratch: list[int]) -> list[list[int]]:
    """The axes of the weights, merged where everything that the second phase touches walks them as one."""
    dims = region.anchor_type.dims
    every = [list(o.strides) for o in region.outputs] + [scratch]
    for i in epilogue_inputs(region):
        o = region.inputs[i]
        own = [s if d > 1 else 0 for s, d in zip(o.strides, o.type.dims, strict=True)]
        every.append([0] * (len(dims) - len(own)) + own)
    return merge_axes(dims, every)


# -- emitting --------------------------------------------------------------------------------------------------------


def emit(k: Any, config: Data) -> None:
    """Arguments: x, g, then the outputs, or the scratch that the second phase reads."""
    kernel = _Kernel(k, config)
    if config["tasks"]:
        with k.parallel(config["tasks"]) as task:
            kernel.run(task)
        return
    for row in config["rows"]:
        with k.loop(config["units"]) as unit:
            kernel.unit(row, unit)


class _Kernel:
    def __init__(self, k: Any, config: Data) -> None:
        from ..evaluate import Evaluator

        program = config["program"]
        self.k, self.c, self.lanes = k, config, k.lanes
        self.x = k.arg("x", "float32", config["x"]["span"])
        self.g = k.arg("g", "float32", config["g"]["span"])
        self.part: Any = None
        self.ev = Evaluator(k, program, [None] * len(program["inputs"]), anchor=lambda number, coords: self.part)
        if config["scratch"] is None:
            self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        else:
            self.scratch = k.arg("sums", "float32", math.prod(config["dims"]))

    def run(self, task: Any) -> None:
        from tvm import tirx

        rows, units = self.c["rows"], self.c["units"]
        for row in rows:
            first = row["first"]
            with self.k.when(True if len(rows) == 1 else tirx.all(task >= first, task < first + units)):
                self.unit(row, task - first if first else task)

    def unit(self, row: Data, unit: Any) -> None:
        """One block of output channels by input channels by taps of one kernel line."""
        group, outputs, inputs = self.c["group"]
        sizes = [self.c["blocks"][0], self.c["blocks"][1], *reversed(self.c["dims"][2:-1]), group]
        rest, at = unit, []
        for size in sizes:
            at.append(self.k.bind(rest % size, "at") if size > 1 else 0)
            rest = rest // size if size > 1 else rest
        o, i, *lines, number = at
        by_o, by_i = self.c["tile"]
        for n_o, inside_o in self._variants(o, outputs, by_o):
            for n_i, inside_i in self._variants(i, inputs, by_i):
                with self.k.when(inside_o), self.k.when(inside_i):
                    self._tile(row, number, o * by_o, i * by_i, lines[::-1], n_o, n_i)

    def _variants(self, block: Any, extent: int, size: int) -> Iterator[tuple[int, Any]]:
        """Sizes of blocks with the condition under which a block has that size."""
        from ._contract import equal

        full, rest = divmod(extent, size)
        if full:
            yield size, block < full if rest else True
        if rest:
            yield rest, equal(block, full) if full else True

    def _tile(self, row: Data, group: Any, o: Any, i: Any, taps: list[Any], n_o: int, n_i: int) -> None:
        from ..tir import constant

        k, c = self.k, self.c
        _, outputs, inputs = c["group"]
        acc = [
            [[k.register("float32", self.lanes, "acc") for _ in range(row["taps"])] for _ in range(n_i)]
            for _ in range(n_o)
        ]
        for register in (r for plane in acc for line in plane for r in line):
            register.set(constant(0.0, "float32", self.lanes))
        channel = group * outputs + o
        g = channel * c["g"]["strides"][1]
        x = (group * inputs + i) * c["x"]["strides"][1]
        self._lines(row, list(enumerate(taps)), x, g, acc)
        self.ev.begin()
        for a, plane in enumerate(acc):
            for b, line in enumerate(plane):
                for t, register in enumerate(line):
                    total = k.across(register.get(), lambda p, q: p + q)
                    self._store([channel + a, i + b, *taps, row["tap"] + t], total)

    def _store(self, index: list[Any], value: Any) -> None:
        if self.c["scratch"] is None:
            self.part = value
            self.ev.store_all(self.outputs, [(i, 0) for i in index])
        else:
            self.k.store(self.scratch, sum(i * s for i, s in zip(index, self.c["scratch"], strict=True)), value)

    def _lines(self, row: Data, taps: list[tuple[int, Any]], x: Any, g: Any, acc: Any) -> None:
        """Loops over the outputs of the line axes that meet the input with this tap."""
        from ._contract import least, most

        c = self.c
        if taps:
            (axis, tap), *rest = taps
            stride, dilation, pad, size, out = c["axes"][axis]
            base = tap * dilation - pad
            low = self.k.bind(most(0, stride - 1 - base) // stride, "low")
            high = least(out, most(0, size - 1 - base + stride) // stride)
            with self.k.loop(self.k.bind(most(0, high - low), "count")) as n:
                at = low + n
                x = x + (at * stride + base) * c["x"]["strides"][2 + axis]
                self._lines(row, rest, x, g + at * c["g"]["strides"][2 + axis], acc)
            return
        stride, dilation, pad, *_ = c["axes"][-1]
        for s in row["segments"]:
            with self.k.loop(s["repeat"]) as n:
                at = s["start"] + n
                column = x + (at * stride - pad + row["tap"] * dilation) * c["x"]["strides"][-1]
                self._point(column, g + at * c["g"]["strides"][-1], s["taps"], dilation * c["x"]["strides"][-1], acc)

    def _point(self, x: Any, g: Any, taps: list[int], step: int, acc: Any) -> None:
        """One output point, all images."""
        turns = next(n for n in range(min(_TURNS, self.c["vectors"]), 0, -1) if self.c["vectors"] % n == 0)
        with self.k.loop(self.c["vectors"] // turns) as block:
            for turn in range(turns):
                image = (block * turns + turn) * self.lanes
                self._products(x + image, g + image, taps, step, acc)

    def _products(self, x: Any, g: Any, taps: list[int], step: int, acc: Any) -> None:
        k, c = self.k, self.c
        grads = [k.bind(k.load(self.g, g + o * c["g"]["strides"][1], self.lanes), "g") for o in range(len(acc))]
        for i in range(len(acc[0])):
            for tap in taps:
                at = x + (i * c["x"]["strides"][1] + tap * step)
                value = k.bind(k.load(self.x, at, self.lanes), "x")
                for plane, grad in zip(acc, grads, strict=True):
                    plane[i][tap].add_product(value, grad)


class _Finish(_Nest):
    """The elementwise work after the sums, which lie in scratch."""

    width = 1  # elements of the store at work

    def _store(self, chosen: list[Any], lanes: int) -> None:
        self.width = lanes
        super()._store(chosen, lanes)


def emit_finish(k: Any, config: Data) -> None:
    """Arguments: what the work reads, the outputs, the scratch."""
    from ..evaluate import Evaluator

    program = config["program"]
    buffers: list[Any] = [None] * len(program["inputs"])
    for i in config["reads"]:
        buffers[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
    outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
    scratch = k.arg("sums", "float32", math.prod(config["shape"]))

    def summed(number: int, coords: list[Any]) -> Any:
        base, step = ev.address(config["scratch"], coords)
        return k.load(scratch, base, nest.width, step)

    ev = Evaluator(k, program, buffers, anchor=summed)
    nest = _Finish(k, config, ev, outputs)
    nest.run(None)


TEMPLATE = Template(
    "image_lanes_grad",
    ("conv_grad_weight",),
    plan,
    {"image_lanes_grad": emit, "image_lanes_grad.finish": emit_finish},
)
