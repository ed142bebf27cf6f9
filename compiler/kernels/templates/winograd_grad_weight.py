"""Gradients of 3x3 weights of stride 1 by Winograd's F(3, 4): a quarter of the products.

``dW = A^T [sum over tiles of (G g G^T) * (B^T x B)] A`` with tiles of 4x4 points of g and 6x6 of x: the sum over all
tiles and images is taken before ``A``, so its cost vanishes, and for each of the 36 points of the transform it is one
matrix product ``M[point] += V[point]^T U[point]`` over the tiles of a chunk. Chunk, V, U and M are a worker's scratch.

Tasks are parts of the images, blocks of output channels and of input channels, as in ``conv_grad_weight``, whose last
steps these are too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _winograd, _winograd_grad
from ._tile import GHZ, WORTH_SHARING, Columns, epilogue_inputs, fits, step_cycles, vectors
from .conv_grad_weight import Geometry, ending, inplace, summing
from .winograd import weight_transform

_MIN_CHANNELS = 12
_POINTS = 36
_TILE = 4
_TASKS = 8
_MOST_TILES = 256  # of a chunk
_ROWS = {1: 16, 2: 12, 3: 8, 4: 6}  # input channels of a register tile, by its vectors; 16 registers take half


@dataclass(frozen=True)
class Choice:
    """``parts`` of the images; tasks of ``channels`` input channels and one or all groups of columns; ``rows`` of
    tiles are a chunk."""

    columns: Columns
    parts: int
    blocks: int  # of columns: 1 or all groups
    channels: int
    rows: int
    tile: int  # input channels of a register tile
    cycles: float

    @property
    def width(self) -> int:
        """Columns of a task."""
        return self.columns.packed // self.blocks


def plan(region: Region) -> list[Plan]:
    """One plan, where the region allows another rounding than the plain sum's."""
    if region.exact or region.small or not fits(region) or region.anchor_type.dtype != "float32":
        return []
    if region.operand(0) is None or region.operand(1) is None or region.anchor_type.rank != 4:
        return []
    g = Geometry(region)
    plain = g.kernel[1:] == [3, 3] and g.strides == g.dilations == [1, 1, 1] and g.group == 1
    plain = plain and g.x.strides[1] == g.g.strides[1] == 1 and min(g.out[1:]) >= _TILE
    if not plain or min(g.depth, g.columns) < _MIN_CHANNELS or g.columns % region.machine.lanes:
        return []
    best = min(_choices(region, g), key=lambda c: c.cycles, default=None)
    return [_assemble(region, g, best)] if best else []


def _choices(region: Region, g: Geometry) -> Iterator[Choice]:
    machine = region.machine
    down, across = (-(-n // _TILE) for n in g.out[1:])
    widths, valid = vectors(g.columns, machine.lanes)
    shared = g.batch * down * across * _POINTS * g.depth * g.columns / machine.lanes > 2 * WORTH_SHARING
    for nv in range(1, min(4, len(widths)) + 1):
        columns = Columns(g.columns, machine.lanes, nv, widths, valid)
        if columns.rests:
            continue
        rows = max(1, _ROWS[nv] * machine.registers // 32)
        for blocks in sorted({1, columns.groups}):
            for channels in (c for c in range(min(g.depth, 8), g.depth + 1) if g.depth % c == 0):
                tasks = blocks * (g.depth // channels)
                for parts in (p for p in range(1, min(_TASKS, g.batch) + 1) if g.batch % p == 0):
                    if parts > 1 and (not shared or parts * tasks > 2 * _TASKS):
                        continue
                    for chunk in _chunks(g.batch // parts * down, down, across):
                        cycles = _cycles(region, g, columns, blocks, channels, chunk, rows)
                        cycles += parts * g.depth * g.columns
                        cycles *= _idle(parts * tasks) if shared else 1.0
                        yield Choice(columns, parts, blocks, channels, chunk, rows, cycles)


def _idle(tasks: int) -> float:
    """What too few tasks cost where there are several cores."""
    return 1.5 if tasks < _TASKS // 2 else 1.0 + 0.01 * max(0, _TASKS - tasks)


def _chunks(total: int, down: int, across: int) -> list[int]:
    """Numbers of rows of tiles that a chunk may have: parts of an image or whole images."""
    found = [c for c in range(1, total + 1) if total % c == 0 and (down % c == 0 or c % down == 0)]
    return [c for c in found if c == 1 or c * across <= _MOST_TILES]


def _scratch(c: Columns, blocks: int, channels: int, tiles: int) -> tuple[int, int, int]:
    """Elements between the points of V, of U and of M: not a multiple of a page."""
    width = c.packed // blocks
    return tiles * channels + 16, tiles * width + 16, channels * width + 16


def _cycles(region: Region, g: Geometry, columns: Columns, blocks: int, channels: int, chunk: int, rows: int) -> float:
    machine = region.machine
    down, across = (-(-n // _TILE) for n in g.out[1:])
    tiles, chunks = chunk * across, g.batch * down // chunk
    width = columns.packed // blocks
    scratch = 4 * _POINTS * sum(_scratch(columns, blocks, channels, tiles))
    transforms = -(-channels // machine.lanes) * 146 + width // machine.lanes * 110
    group = columns.widths[: columns.nv]
    whole, rest = divmod(channels, rows)
    step = whole * step_cycles(machine, rows, group) + (step_cycles(machine, rest, group) if rest else 0.0)
    product = _POINTS * step * (width // sum(group))
    put = _POINTS * channels * (width // machine.lanes) * 2.0
    once = chunks * (tiles * (product + transforms) + put)
    if scratch > 0.7 * machine.l2:
        far = machine.l3_bandwidth if machine.l3 else machine.memory_bandwidth
        once += chunks * 0.7 * scratch / far
    return once * blocks * (g.depth // channels)


def _assemble(region: Region, g: Geometry, c: Choice) -> Plan:
    down, across = (-(-n // _TILE) for n in g.out[1:])
    rows = g.depth * g.taps
    v, u, m = (4 * _POINTS * n for n in _scratch(c.columns, c.blocks, c.channels, c.rows * across))
    apart = c.parts > 1
    finish = ending(region, g, c.columns, c.parts, "float32")
    sums = c.channels * g.taps * c.width
    side = {"down": down, "across": across, "m": [_TILE, _TILE], "patch": [6, 6], "depth": 0}
    x = {"batch": g.x.strides[0], "step": g.x_step[1:], "channels": c.channels, "span": g.x.span}
    y = {"batch": g.g.strides[0], "step": g.g_step[1:], "channels": c.width, "span": g.g.span}
    dims = [c.parts, c.blocks, g.depth // c.channels]
    config = {
        "x": {**side, "x": x, "size": g.size[1:], "pads": g.pads[1:], "v": v // 4 // _POINTS},
        "g": {**side, "x": y, "size": g.out[1:], "pads": [0, 0], "v": u // 4 // _POINTS},
        "m": m // 4 // _POINTS,
        "back": _way_back(),
        "channels": c.channels,
        "tile": c.tile,
        "depth": g.depth,
        "nv": c.columns.nv,
        "lanes": c.columns.lanes,
        "groups": c.columns.groups // c.blocks,
        "width": c.width,
        "packed": c.columns.packed,
        "dims": dims,
        "rows": c.rows,
        "chunks": g.batch // c.parts * down // c.rows,
        "images": g.batch // c.parts,
        "sums": c.parts * rows * c.columns.packed if apart else sums,
        "finish": None if apart else finish,
    }
    at, grad = region.operand(0), region.operand(1)
    assert at is not None and grad is not None
    ends = (
        *(Arg("in", i) for i in epilogue_inputs(region)),
        *(Arg("out", j) for j in range(len(region.outputs))),
    )
    near = [Arg("worker", 0), Arg("worker", 0, v), Arg("worker", 0, v + u)]
    total = Arg("shared") if apart else Arg("worker", 0, v + u + m)
    tasks = math.prod(dims)
    args = (Arg("in", at), Arg("in", grad), *near, total, *(() if apart else ends))
    main = Draft(KernelSpec("winograd_grad_weight", config), args, tasks if tasks > 1 else None)
    return Plan(
        "winograd_grad_weight",
        (main, summing(finish, c.columns, ends)) if apart else (main,),
        cost=c.cycles / GHZ + 100,
        shared_bytes=4 * c.parts * rows * c.columns.packed if apart else 0,
        worker_bytes=v + u + m + (0 if apart else 4 * sums),
        inplace=inplace(region),
        detail=f"winograd F(3,4) of weights, {c.tile}x{c.columns.nv}, {c.parts} parts {c.blocks} x "
        f"{g.depth // c.channels} blocks, chunks of {c.rows * across} tiles",
    )


def _way_back() -> list[list[float]]:
    """``A^T`` [3, 6], with the scale of ``G`` that ``_winograd_grad`` leaves out."""
    p, q = _winograd.POINTS[4]
    points = [0.0, p, -p, q, -q]
    first = weight_transform(4)[:, 0]
    rows = [[point**i * f for point, f in zip(points, first, strict=False)] for i in range(3)]
    return [[*row, float(i == 2)] for i, row in enumerate(rows)]


TEMPLATE = Template("winograd_grad_weight", ("conv_grad_weight",), plan, {"winograd_grad_weight": _winograd_grad.emit})
