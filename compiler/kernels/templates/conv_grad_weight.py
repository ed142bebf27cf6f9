"""The gradient of a convolution's weights: one to three spatial axes, any kernel, stride, dilation, padding, group.

``dW[o, i, tap] = sum over images and points of g[n, o, point] x[n, i, point stride - pad + tap dilation]``. A register
tile is some taps along a line times some input channels (rows) times a group of vectors of output channels (columns);
it takes in all points of a block of images, and is then put back into scratch, so that a block's x and g are read from
a near cache for every tile. Where each channel has its own filter (depthwise), vectors run along the channels of both
x and g. Borders are peeled: no tap outside of x is read or computed.

Scratch holds ``[group][vector of columns][input channel, tap][lanes]``. It is transposed into the weights' own order
at the end, where the elementwise work behind the anchor (an optimizer's step) is done too. Tasks share the columns and
input channels; where these are few, the images are cut into a fixed number of parts, and a second phase sums them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _grad_weight
from ._tile import GHZ, WORTH_SHARING, Columns, accumulator, coordinates_matter, epilogue_inputs, fits, vectors

_TASKS = 8
_STATIC_TAPS = 16  # longest kernel line that is written out
_PARTS_BYTES = 256 << 10  # of sums of parts of the images
_BLOCK_POINTS = 512  # that a tile takes in before it is put back, at least


class Geometry:
    """The convolution as three spatial axes (slab, line, point): extents and strides in elements."""

    def __init__(self, region: Region) -> None:
        x, g = (region.operand(i) for i in (0, 1))
        assert x is not None and g is not None
        self.x, self.g = region.inputs[x], region.inputs[g]
        attrs, rank = region.attrs, self.x.type.rank - 2
        lead = [1] * (3 - rank)
        self.rank = rank
        self.batch: int = self.x.type.dims[0]
        self.size: list[int] = [*lead, *self.x.type.dims[2:]]
        self.out: list[int] = [*lead, *self.g.type.dims[2:]]
        self.kernel: list[int] = [*lead, *attrs["kernel_shape"]]
        self.strides: list[int] = [*lead, *attrs["strides"]]
        self.dilations: list[int] = [*lead, *attrs["dilations"]]
        self.pads: list[int] = [0] * (3 - rank) + list(attrs["pads"][:rank])
        self.x_step: list[int] = [0] * (3 - rank) + list(self.x.strides[2:])
        self.g_step: list[int] = [0] * (3 - rank) + list(self.g.strides[2:])
        self.group: int = attrs["group"]
        self.columns: int = self.g.type.dims[1] // self.group
        self.depth: int = self.x.type.dims[1] // self.group
        self.depthwise = self.group > 1 and self.columns == self.depth == 1
        if self.depthwise:
            self.columns, self.group = self.group, 1

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def points(self) -> int:
        return math.prod(self.out)

    def inside(self, axis: int, tap: int) -> range:
        """The output points of an axis for which a tap meets the input."""
        offset, stride = self.pads[axis] - tap * self.dilations[axis], self.strides[axis]
        first = max(0, -(-offset // stride))
        end = min(self.out[axis], (self.size[axis] - 1 + offset) // stride + 1)
        return range(first, max(first, end))

    def runs(self, axis: int, taps: range) -> list[list[Any]]:
        """An axis of output points as ``[first, count, taps that meet the input]``; points that meet none left out."""
        met = {t: self.inside(axis, t) for t in taps}
        found: list[list[Any]] = []
        for p in range(self.out[axis]):
            here = [t for t in taps if p in met[t]]
            if found and found[-1][2] == here:
                found[-1][1] += 1
            else:
                found.append([p, 1, here])
        return [run for run in found if run[2]]


@dataclass(frozen=True)
class Tile:
    """``lines`` x ``taps`` kernel taps by ``channels`` input channels by ``columns.nv`` vectors; ``points`` output
    points are taken in at a time. ``taps`` 0: the taps along a line are a loop too."""

    lines: int
    taps: int
    channels: int
    points: int
    columns: Columns
    cycles: float


def plan(region: Region) -> list[Plan]:
    """One plan, wherever x and g are the region's own."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    g = Geometry(region)
    dtype = accumulator(region.anchor_type.dtype)
    itemsize = np.dtype(dtype).itemsize
    lanes = max(1, region.machine.lanes * 4 // itemsize)
    tile = min(_tiles(region, g, lanes), key=lambda t: t.cycles)
    return [_assemble(region, g, tile, dtype, itemsize)]


# -- the register tile -------------------------------------------------------------------------------------------------


def _tiles(region: Region, g: Geometry, lanes: int) -> Iterator[Tile]:
    machine = region.machine
    widths, valid = vectors(g.columns, lanes, exact=True)
    most = machine.registers * 3 // 4
    line = g.kernel[2]
    static = line <= _STATIC_TAPS
    options = sorted({-(-line // n) for n in range(1, line + 1)}) if static else [0]
    for nv in range(1, min(len(widths), 4) + 1):
        columns = Columns(g.columns, lanes, nv, widths, valid)
        for taps in options:
            for lines in {1, g.kernel[1]} if g.depthwise and g.kernel[0] == 1 and static else {1}:
                rows = lines * max(1, taps)
                for channels in range(1, min(g.depth, max(1, most // (rows * nv))) + 1):
                    if rows * channels * nv <= min(most, machine.registers - 2 - nv) or rows * channels * nv == 1:
                        points = _points(g, machine.registers - 4 - rows * channels * nv, nv, taps)
                        cut = (lines, taps, channels, points)
                        yield Tile(*cut, columns, _cycles(region, g, columns, *cut))


def _points(g: Geometry, free: int, nv: int, taps: int) -> int:
    """Points of a line that are taken in at once: they share the elements of x that several taps meet."""
    if taps == 0:
        return 1
    inner = max((count for _, count, _ in g.runs(2, range(g.kernel[2]))), default=1)
    alive = -(-taps // g.strides[2])  # points whose vectors of g are in use at a time
    most = max(p for p in range(1, min(4, inner) + 1) if p == 1 or min(p, alive) * nv <= max(free, nv))
    return next((p for p in range(most, 1, -1) if inner % p == 0), most)


def _cycles(region: Region, g: Geometry, columns: Columns, lines: int, taps: int, channels: int, points: int) -> float:
    """Estimated cycles of the whole sum."""
    machine = region.machine
    half = 0.5 if machine.fma_ports == 1 and machine.lanes == 16 else 1.0
    scalar_loads = min(2.0, 2 * machine.load_ports) if machine.lanes == 16 else machine.load_ports
    width, total = max(1, taps), 0.0
    gathered = 1 if g.g.strides[1] == 1 or g.columns == 1 else 3 * columns.lanes  # loads and inserts of g
    groups = [(columns.widths[: columns.nv], columns.full)] if columns.full else []
    groups += [(columns.widths[i:j], 1) for i, j in columns.rests]
    for widths, times in groups:
        for t, many in ((width, g.kernel[2] // width), (g.kernel[2] % width, 1)):
            for c, repeat in ((channels, g.depth // channels), (g.depth % channels, 1)):
                if not t or not c or not many or not repeat:
                    continue
                shown = points * t
                if taps:
                    reach = (points - 1) * g.strides[2]
                    shown = len({u * g.strides[2] + k * g.dilations[2] for u in range(points) for k in range(t)})
                    shown = min(shown, reach + t * g.dilations[2])
                fma = lines * t * c * sum(max(half, w / columns.lanes) for w in widths) / machine.fma_ports
                x_loads = lines * c * shown / points * (len(widths) if g.depthwise else 1)
                x_loads /= machine.load_ports if g.depthwise else scalar_loads
                loads = x_loads + len(widths) * gathered / machine.load_ports
                # a tile touches a part of each pixel only: whole lines of cache move for it
                lines_read = -(-c * 4 // machine.line) + sum(widths) * 4 / machine.line
                near = lines_read * machine.line / machine.l2_bandwidth if lines * t * c < g.depth * g.taps else 0.0
                step = (
                    max(fma, loads, near, float(machine.fma_latency))
                    + (0.15 if machine.fma_ports >= 2 else 0.03) * loads
                )
                put = 2.0 * lines * t * c * len(widths) * g.points / max(g.points, _BLOCK_POINTS) / g.points
                total += times * many * repeat * (step + put + 1.0 / points)
    return total * g.batch * g.points * g.kernel[0] * (g.kernel[1] // lines) * g.group


# -- the plan ----------------------------------------------------------------------------------------------------------


def _share(g: Geometry, tile: Tile, nbytes: int) -> tuple[int, int, int]:
    """Parts of the images, of the column groups (1 or all of them) and of the input channels that are tasks: enough of
    them, with the least memory traffic. ``nbytes`` are those of the sums of one part."""
    if tile.cycles < WORTH_SHARING:
        return 1, 1, 1
    x, y = g.x.type.nbytes, g.g.type.nbytes
    found = []
    for parts in (p for p in range(1, min(_TASKS, g.batch) + 1) if g.batch % p == 0):
        if parts > 1 and parts * nbytes > max(_PARTS_BYTES, x + y):
            break
        for columns in {1, tile.columns.groups}:
            for channels in (c for c in range(1, g.depth // tile.channels + 1) if g.depth % c == 0):
                tasks = parts * columns * channels * g.group
                moved = (columns - 1) * x + (channels - 1) * y + (2 * parts * nbytes if parts > 1 else 0)
                found.append((-min(tasks, _TASKS), moved, tasks, (parts, columns, channels)))
    return min(found)[-1]


def _assemble(region: Region, g: Geometry, tile: Tile, dtype: str, itemsize: int) -> Plan:
    columns = tile.columns
    rows = g.depth * g.taps
    nbytes = g.group * rows * columns.packed * itemsize
    parts, column_blocks, channel_blocks = _share(g, tile, nbytes)
    image = (g.x.type.nbytes + g.g.type.nbytes) // g.batch
    images = -(-g.batch // parts)
    bands = 1
    if tile.lines == 1 and image > region.machine.l2 // 2:
        bands = max(1, min(g.out[1], image // (region.machine.l2 // 3), g.points // _BLOCK_POINTS))
    block = max(1, min(images, -(-_BLOCK_POINTS // g.points), region.machine.l2 // 2 // image))
    width = max(sum(columns.widths[: columns.nv]), max((sum(r[2]) for r in columns.data()["rests"]), default=0))
    apart = parts > 1
    size = (columns.packed if column_blocks == 1 else width) * rows // channel_blocks
    dims = [parts, g.group, column_blocks, channel_blocks]
    tasks = math.prod(dims)
    reads = epilogue_inputs(region)
    finish = ending(region, g, columns, parts, dtype)
    config = {
        "x": [g.x.type.dtype, g.x.span, list(g.x.strides[:2]), g.x_step],
        "g": [g.g.type.dtype, g.g.span, list(g.g.strides[:2]), g.g_step],
        "dtype": dtype,
        "depthwise": g.depthwise,
        "batch": g.batch,
        "depth": g.depth,
        "size": g.size,
        "out": g.out,
        "kernel": g.kernel,
        "strides": g.strides,
        "dilations": g.dilations,
        "pads": g.pads,
        "columns": columns.data(),
        "count": g.columns,
        "packed": columns.packed,
        "tile": [tile.lines, tile.taps, tile.channels, tile.points],
        "lines": g.runs(1, range(g.kernel[1])) if tile.lines > 1 else None,
        "segments": _segments(g, tile.taps),
        "dims": dims,
        "images": images,
        "block": block,
        "bands": bands,
        "scratch": g.group * parts * rows * columns.packed if apart else size,
        "finish": None if apart else finish,
    }
    x, grad = region.operand(0), region.operand(1)
    assert x is not None and grad is not None
    ends = (*(Arg("in", i) for i in reads), *(Arg("out", j) for j in range(len(region.outputs))))
    scratch = Arg("shared" if apart else "worker")
    args = (Arg("in", x), Arg("in", grad), scratch, *(() if apart else ends))
    phases = [Draft(KernelSpec("conv_grad_weight", config), args, tasks if tasks > 1 else None)]
    if apart:
        phases.append(summing(finish, columns, ends))
    moved = parts * nbytes / region.machine.l2_bandwidth + g.group * rows * columns.packed * 2
    return Plan(
        "conv_grad_weight",
        tuple(phases),
        cost=(tile.cycles + moved) / GHZ + 100,
        shared_bytes=parts * nbytes if apart else 0,
        worker_bytes=0 if apart else size * itemsize,
        inplace=inplace(region),
        detail=f"{'depthwise ' if g.depthwise else ''}conv_grad_weight {tile.lines}x{tile.taps} taps "
        f"{tile.channels} channels {columns.nv}v{columns.lanes} {tile.points} points, {parts} parts",
    )


def ending(region: Region, g: Geometry, columns: Columns, parts: int, dtype: str) -> dict[str, Any]:
    """What the end of the work reads: sums of parts, in scratch, become weights in their own order."""
    reads = epilogue_inputs(region)
    return {
        "program": serialize(region),
        "reads": reads,
        "type": region.anchor_type.dtype,
        "dtype": dtype,
        "rows": g.depth * g.taps,
        "merged": _merged(region, reads),
        "columns": columns.data(),
        "count": g.columns,
        "packed": columns.packed,
        "group": g.group,
        "parts": parts,
    }


def summing(finish: dict[str, Any], columns: Columns, ends: Sequence[Arg]) -> Draft:
    """The phase that sums parts in shared scratch; ``ends`` are what it reads besides and the outputs."""
    pieces = finish["group"] * len(columns.widths)
    spec = KernelSpec("conv_grad_weight.sum", finish)
    return Draft(spec, (Arg("shared"), *ends), pieces if pieces > 1 else None)


def _segments(g: Geometry, taps: int) -> list[Any]:
    """For each tile of taps along a line: its taps and the runs of points."""
    if taps == 0:
        return []
    line = g.kernel[2]
    tiles = [range(t, min(t + taps, line)) for t in range(0, line, taps)]
    return [[list(t), g.runs(2, t)] for t in tiles]


def _merged(region: Region, reads: list[int]) -> bool:
    """Whether all but the first axis of the weights are walked as one by all that the end of the kernel touches."""
    if coordinates_matter(region):
        return False
    dims = region.anchor_type.dims
    axes = [a for a in range(1, len(dims)) if dims[a] > 1]
    for operand in (*region.outputs, *(region.inputs[i] for i in reads)):
        shift = len(dims) - operand.type.rank
        own = [(1, 0) if a < shift else (operand.type.dims[a - shift], operand.strides[a - shift]) for a in axes]
        if all(d == 1 for d, _ in own):
            continue
        if any(d != dims[a] for (d, _), a in zip(own, axes, strict=True)):
            return False
        if any(s != t * d for (_, s), (d, t) in pairwise(own)):
            return False
    return True


def inplace(region: Region) -> tuple[tuple[int, int], ...]:
    """(input, output) pairs that may share a buffer: each element is read where it is written, once."""
    own = {region.operand(i) for i in range(2)}
    return tuple(
        (i, j)
        for j, out in enumerate(region.outputs)
        for i in epilogue_inputs(region)
        if i not in own and region.inputs[i].type == out.type and region.inputs[i].strides == out.strides
    )


TEMPLATE = Template(
    "conv_grad_weight",
    ("conv_grad_weight",),
    plan,
    {"conv_grad_weight": _grad_weight.emit, "conv_grad_weight.sum": _grad_weight.emit_sum},
)
