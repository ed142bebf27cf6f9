"""The gradient of a convolution's weights on a GPU: any kernel, stride, dilation, padding, group and memory order.

``dW[o, tap, i] = sum over images and points of g[n, o, point] x[n, i, point stride - pad + tap dilation]`` is a matrix
product of a group's output channels by its taps and input channels, whose depth are the points of all images. That
depth is long and the product small, so it is cut into parts that blocks sum side by side; a second kernel sums the
parts in a fixed order and does the elementwise work behind the anchor (an optimizer's step). A block brings some points
of g and of x into shared memory, fetched into registers while the products of the last ones are summed, on the tensor
cores (TF32) or, ``exact``, by FMA. Where a group has one input channel (depthwise), a thread sums a channel's taps.

Sources: NVIDIA, "CUDA C++ Programming Guide" and "Parallel Thread Execution ISA" (fragments of mma.m16n8k8); the cut of
the depth is that of "split-K" products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from . import _cuda_grad_channels, _cuda_grad_weight
from ._cuda_cost import Load, nanoseconds, streamed
from ._cuda_cost import fits as block_fits
from ._tile import epilogue_inputs, epilogue_work, fits
from .conv_grad_weight import Geometry, inplace

DTYPES = ("float32", "float16", "bfloat16")
MATRIX_TILES = (
    *((128, 64, 16, 4, 2), (64, 128, 16, 2, 4), (64, 64, 16, 2, 2), (64, 32, 32, 2, 2), (32, 64, 32, 2, 2)),
    *((32, 32, 32, 2, 2), (16, 64, 32, 1, 4), (16, 32, 32, 1, 4), (64, 16, 32, 4, 1)),
)  # rows and columns of a block, points at a time, warps along rows and columns
THREAD_TILES = (
    *((64, 64, 16, 8, 4), (64, 32, 16, 4, 4), (32, 64, 16, 4, 4), (32, 32, 32, 4, 2), (16, 64, 32, 2, 4)),
    *((16, 32, 32, 2, 2), (64, 16, 32, 4, 2)),
)  # the same, then rows and columns of a thread
MOST_SCRATCH = 8 << 20  # bytes of sums of parts
ROWS, LANES, TAPS = 8, 32, 16  # of a depthwise block: points at a time, channels; taps of a thread
FINISH = 32  # weights of a block of the second kernel


@dataclass(frozen=True)
class Tile:
    rows: int
    columns: int
    depth: int
    data: tuple[int, int]  # warps of a block, or rows and columns of a thread
    matrix: bool

    @property
    def threads(self) -> int:
        a, b = self.data
        return a * b * 32 if self.matrix else self.rows // a * (self.columns // b)

    @property
    def held(self) -> int:
        """Sums of a thread."""
        return self.rows * self.columns // self.threads

    @property
    def words(self) -> int:
        """Of shared memory: two pieces of each side, then the sums."""
        sides = 2 * self.depth * (self.rows + self.columns + 16)
        return max(sides, self.rows * (self.columns + 1))


@dataclass(frozen=True)
class Cut:
    """``parts`` of ``each`` steps (pieces of a tile's depth, or points of a thread)."""

    parts: int
    each: int
    blocks: int  # of a part


def plan(region: Region) -> list[Plan]:
    """One plan, wherever x and g are the region's own and floats of at most 32 bits."""
    gpu = region.machine.gpu
    if gpu is None or not fits(region) or None in (region.operand(0), region.operand(1)):
        return []
    if region.anchor_type.dtype not in DTYPES or 0 in region.attrs["kernel_shape"]:
        return []
    g = Geometry(region)
    if min(*g.out, g.batch, g.points) < 1:
        return []
    ending = {"program": serialize(region), "reads": epilogue_inputs(region)}
    if region.attrs["group"] > 1 and region.inputs[region.operand(0) or 0].type.dims[1] == region.attrs["group"]:
        return [_depthwise(region, g, ending)]
    return [min((_product(region, g, t, ending) for t in _tiles(region)), key=lambda p: (p.cost, p.detail))]


def _tiles(region: Region) -> Iterator[Tile]:
    gpu = region.machine.gpu
    assert gpu is not None
    matrix = not region.exact and gpu.matrix("tfloat32") is not None
    for rows, columns, depth, *data in MATRIX_TILES if matrix else THREAD_TILES:
        tile = Tile(rows, columns, depth, (data[0], data[1]), matrix)
        if block_fits(gpu, tile.threads, _registers(tile), 4 * tile.words):
            yield tile


def _registers(tile: Tile) -> int:
    fetched = (tile.rows + tile.columns) * tile.depth // tile.threads
    return tile.held + fetched + 60


# -- a matrix product --------------------------------------------------------------------------------------------------


def _product(region: Region, g: Geometry, tile: Tile, ending: dict[str, Any]) -> Plan:
    """``ending``: what is done with a sum, and the inputs that this reads."""
    gpu = region.machine.gpu
    assert gpu is not None
    columns = g.depth * g.taps
    down, across = -(-g.columns // tile.rows), -(-columns // tile.columns)
    steps = -(-g.batch * g.points // tile.depth)
    cut = _cut(region, g, steps, g.group * down * across, 4)
    config = {
        **_common(region, g),
        "tile": [tile.rows, tile.columns, tile.depth, *tile.data],
        "matrix": tile.matrix,
        "threads": tile.threads,
        "lanes": [_lanes(g.g, g.columns), _lanes(g.x, g.depth)],
        "parts": cut.parts,
        "each": cut.each,
        "dims": [cut.parts, g.group, down, across],
        "finish": None if cut.parts > 1 else ending,
    }
    instruction = gpu.matrix("tfloat32") if tile.matrix else None
    blocks = cut.parts * cut.blocks
    taken = [streamed(gpu, o.type.nbytes, n) for o, n in ((g.g, across), (g.x, max(1.0, down * across / 2)))]
    nbytes = 4 * region.anchor_type.size
    fetched = (tile.rows + tile.columns) * steps * tile.depth * g.group * down * across
    load = Load(
        blocks,
        tile.threads,
        registers=_registers(tile),
        shared=4 * tile.words,
        macs=float(tile.rows * tile.columns * steps * tile.depth * cut.blocks),
        rate=instruction.per_cycle if instruction else 0.0,
        plain=fetched * 12.0 / min(config["lanes"]),
        far=sum(t[0] for t in taken) + cut.parts * nbytes,
        near=sum(t[1] for t in taken),
        in_flight=4.0 * (tile.rows + tile.columns) * tile.depth / tile.threads,
        chain=cut.each * 250.0,
    )
    unit = "tf32" if tile.matrix else "fma"
    detail = f"cuda_conv_grad_weight {unit} {tile.rows}x{tile.columns}x{tile.depth}, {cut.parts} parts"
    return _plan(region, "cuda_conv_grad_weight", config, ending, cut, nanoseconds(gpu, load), detail)


def _cut(region: Region, g: Geometry, steps: int, blocks: int, least: int) -> Cut:
    """Parts of the depth, so that two blocks of each multiprocessor have work, of at least ``least`` steps each."""
    gpu = region.machine.gpu
    assert gpu is not None
    nbytes = 4 * region.anchor_type.size
    most = max(1, max(MOST_SCRATCH, g.x.type.nbytes) // nbytes)
    wished = min(-(-2 * gpu.multiprocessors // blocks), max(1, steps // least), most)
    each = -(-steps // max(1, wished))
    return Cut(-(-steps // each), each, blocks)


def _lanes(operand: Operand, channels: int) -> int:
    """Neighbouring channels that one load takes: four, where they lie so in memory."""
    if operand.type.dtype != "float32" or operand.strides[1] != 1 or channels % 4 or operand.aligned < 16:
        return 1
    others = [s for a, (s, d) in enumerate(zip(operand.strides, operand.type.dims, strict=True)) if a != 1 and d > 1]
    return 4 if all(s % 4 == 0 for s in others) else 1


def _common(region: Region, g: Geometry) -> dict[str, Any]:
    return {
        "x": [g.x.type.dtype, g.x.span, list(g.x.strides[:2]), g.x_step],
        "g": [g.g.type.dtype, g.g.span, list(g.g.strides[:2]), g.g_step],
        "batch": g.batch,
        "size": g.size,
        "out": g.out,
        "kernel": g.kernel,
        "strides": g.strides,
        "dilations": g.dilations,
        "pads": g.pads,
        "rank": g.rank,
        "group": g.group,
        "columns": g.columns,
        "depth": g.depth,
    }


def _plan(
    region: Region, name: str, config: dict[str, Any], ending: dict[str, Any], cut: Cut, nanos: float, detail: str
) -> Plan:
    """The kernel that sums, and the one that joins its parts unless it does all by itself."""
    x, grad = region.operand(0), region.operand(1)
    assert x is not None and grad is not None
    gpu = region.machine.gpu
    assert gpu is not None
    outs = tuple(Arg("out", j) for j in range(len(region.outputs)))
    ends = (*(Arg("in", i) for i in ending["reads"]), *outs)
    own = config.get("finish") is not None
    args = (Arg("in", x), Arg("in", grad), *(ends if own else (Arg("shared"),)))
    phases = [Draft(KernelSpec(name, config), args, math.prod(config["dims"]))]
    size = region.anchor_type.size
    if not own:
        finish: dict[str, Any] = {
            **{**ending, "parts": cut.parts, "size": size},
            **{
                "dims": [config["depth"], config["kernel"], config["rank"]],
                "lanes": min(8, cut.parts),
                "weights": FINISH,
            },
        }
        blocks = -(-size // FINISH)
        phases.append(Draft(KernelSpec("cuda_conv_grad_weight.sum", finish), (Arg("shared"), *ends), blocks))
        moved = 4.0 * cut.parts * size + sum(o.type.nbytes for o in region.outputs) * 2
        work = 1.0 * size * (cut.parts + epilogue_work(region))
        nanos += nanoseconds(gpu, Load(blocks, FINISH * finish["lanes"], plain=work, far=moved))
    scratch = 0 if own else 4 * cut.parts * size
    return Plan(
        "cuda_conv_grad_weight", tuple(phases), nanos, shared_bytes=scratch, inplace=inplace(region), detail=detail
    )


# -- depthwise ---------------------------------------------------------------------------------------------------------


def _depthwise(region: Region, g: Geometry, ending: dict[str, Any]) -> Plan:
    """A thread has a channel of g and ``TAPS`` taps at most, and takes every eighth point of its part."""
    gpu = region.machine.gpu
    assert gpu is not None
    outputs, groups = region.anchor_type.dims[0], region.attrs["group"]
    lanes = min(LANES, 1 << max(0, (outputs - 1).bit_length()))
    rows = ROWS * LANES // lanes
    taps = min(g.taps, TAPS)
    across, chunks = -(-outputs // lanes), -(-g.taps // taps)
    steps = -(-g.batch * g.points // rows)
    cut = _cut(region, g, steps, across * chunks, 8)
    config = {
        **_common(region, g),
        **{"outputs": outputs, "each_group": outputs // groups, "taps": taps, "rows": rows, "lanes": lanes},
        **{"parts": cut.parts, "each": cut.each, "dims": [cut.parts, across, chunks], "depth": 1},
    }
    macs = 1.0 * outputs * g.taps * g.batch * g.points
    load = Load(
        cut.parts * cut.blocks,
        rows * lanes,
        registers=40 + 2 * taps,
        shared=4 * taps * rows * lanes,
        macs=macs,
        plain=3 * macs + 20.0 * outputs * g.batch * g.points * chunks,
        far=1.0 * g.x.type.nbytes + g.g.type.nbytes + 4.0 * cut.parts * region.anchor_type.size,
        near=1.0 * g.x.type.nbytes * (taps - 1) / 2 + (chunks - 1) * g.g.type.nbytes,
        in_flight=4.0 * taps,
        chain=cut.each * 60.0,
    )
    detail = f"cuda_conv_grad_weight depthwise {taps} taps, {cut.parts} parts"
    return _plan(region, "cuda_conv_grad_weight.channels", config, ending, cut, nanoseconds(gpu, load), detail)


TEMPLATE = Template(
    "cuda_conv_grad_weight",
    ("conv_grad_weight",),
    plan,
    {
        "cuda_conv_grad_weight": _cuda_grad_weight.emit,
        "cuda_conv_grad_weight.channels": _cuda_grad_channels.emit,
        "cuda_conv_grad_weight.sum": _cuda_grad_channels.emit_sum,
    },
    device=True,
)
