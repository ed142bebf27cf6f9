"""Convolutions of 8-bit tensors with constant weights, by instructions that fold neighbouring bytes.

The reduction runs over bytes that lie side by side: the channels of a pixel, and of the taps along a line where pixels
lie side by side. Where a tap may fall outside, channels are apart, or a run is shorter than the instruction folds, each
block of lines is copied to the worker's scratch first, padded. A 1x1 convolution with stride 1 is one line of points.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from . import _dot
from ._dot_plan import (
    COPY,
    NARROW,
    SLACK,
    Kit,
    Tile,
    Walk,
    Weights,
    Work,
    choose,
    configuration,
    epilogue_cost,
    finished,
    folded,
    kit,
    zero_as_read,
)
from ._tile import epilogue_inputs, fits
from .conv import Geometry

Axes = list[dict[str, Any]]
LEAST_SCRATCH = 1024  # bytes that are nothing to save


def plan(region: Region) -> list[Plan]:
    """For constant weights and sums of 32 bits; with less scratch too, where there is much."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    g = Geometry(region)
    found = kit(region.machine, g.x.type.dtype) if g.x.type.dtype in NARROW else None
    if found is None or g.w.const is None or (g.group > 1 and g.depth == 1) or 0 in g.kernel or not g.depth:
        return []
    reads = epilogue_inputs(region)
    copied = Copied(g) if must_copy(g, found) else None
    if copied is None and g.flat(region, reads):
        g.flatten()
    walk = walk_of(g, found, copied)
    weights = folded(matrix(g, copied), found.fold, walk.overlap)
    if weights is None:
        return []
    work = Work(g.columns, g.batch * g.group * g.out[0], epilogue_cost(region), weights.offset is not None)
    tile = choose(region.machine, found, walk, work)
    plans = [_assemble(region, g, found, copied, walk, weights, tile)]
    while g.out[1] > 1 and tile.block > 1 and plans[-1].worker_bytes > LEAST_SCRATCH:
        tile = replace(tile, block=-(-tile.block // 2), cycles=tile.cycles * 1.05)
        plans.append(_assemble(region, g, found, copied, walk, weights, tile))
    return plans


def _assemble(
    region: Region, g: Geometry, kit: Kit, copied: Copied | None, walk: Walk, weights: Weights, tile: Tile
) -> Plan:
    config = described(region, g, kit, copied, walk, tile)
    return finished(region, kit, tile, config, weights, "dot_conv", region.attrs["zero_point"])


def described(region: Region, g: Geometry, kit: Kit, copied: Copied | None, walk: Walk, tile: Tile) -> dict[str, Any]:
    """A kernel's configuration, but for what its weights add."""
    config = configuration(region, kit, walk, tile, outer_axes(g, walk, tile, kit, copied))
    config["reads"] = epilogue_inputs(region)
    config.update(places(region, g, kit, copied, tile))
    if copied and g.kernel[0] > 1:
        config["taps"][0][1] = config["border"]["line"]["count"] * copied.counts[2] * copied.pixel
    return config


def must_copy(g: Geometry, kit: Kit) -> bool:
    apart = g.depth > 1 and g.x.strides[1] != 1
    return apart or any(g.border(i) for i in range(3)) or _run(g, _joined(g, g.depth)) < kit.fold


def _joined(g: Geometry, pixel: int) -> bool:
    """Whether the taps along a line are one run of bytes, pixels lying ``pixel`` bytes apart."""
    return g.group == 1 and g.dilations[2] == 1 and g.kernel[2] > 1 and (g.step[2] == pixel)


def _run(g: Geometry, joined: bool) -> int:
    return g.depth * (g.kernel[2] if joined else 1)


class Copied:
    """What of A is copied, and how it lies then."""

    def __init__(self, g: Geometry) -> None:
        self.channels = g.depth * g.group
        channel, point = g.x.strides[1], g.step[2]
        planes = self.channels in (2, 3, 4) and channel != 1 and g.group == 1
        self.pixel = {3: 4}.get(self.channels, self.channels) if planes else self.channels
        side_by_side = self.channels == 1 or channel == 1
        self.kind = (
            "planes" if planes else "scattered" if not side_by_side else "run" if point == self.pixel else "points"
        )
        self.counts = [
            (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(g.out, g.strides, g.kernel, g.dilations, strict=True)
        ]
        self.counts[0] = g.kernel[0]
        self.left = min(g.pads[2], self.counts[2])
        self.skipped = max(0, -g.pads[2])
        self.inside = max(0, min(self.counts[2] - self.left, g.size[2] - self.skipped))

    def lines(self, g: Geometry, count: int) -> int:
        """Lines that ``count`` lines of the output read."""
        return (count - 1) * g.strides[1] + (g.kernel[1] - 1) * g.dilations[1] + 1

    def data(self, region: Region, g: Geometry, kit: Kit, lines: int) -> dict[str, Any]:
        """For the emitter; ``lines`` of the output make a block."""
        count = self.lines(g, lines)
        axes = [
            {"pad": g.pads[i], "size": g.size[i], "step": g.step[i], "stride": g.strides[i], "border": True}
            for i in range(2)
        ]
        # a last block that is not whole reads lines that are not there: they count as border
        axes[0]["border"] = g.border(0)
        axes[0] |= {"count": g.kernel[0], "dilation": g.dilations[0]}
        axes[1] |= {"count": count, "border": g.border(1) or bool(g.out[1] % lines)}
        point = {"count": self.counts[2], "left": self.left, "inside": self.inside, "step": g.step[2]}
        return {
            "kind": self.kind,
            "channels": self.channels,
            "pixel": self.pixel,
            "step": g.x.strides[1],
            "zero": zero_as_read(region.attrs["zero_point"], kit),
            "slab": axes[0],
            "line": axes[1],
            "point": point | {"from": self.skipped},
            "bytes": g.kernel[0] * count * self.counts[2] * self.pixel + SLACK,
        }


def walk_of(g: Geometry, kit: Kit, copied: Copied | None) -> Walk:
    if copied is None:
        joined = _joined(g, g.depth)
        steps = [s * d for s, d in zip(g.step, g.dilations, strict=True)]
        again, cost, point, line = (0, 0), 0.0, g.step[2], g.size[2] * g.depth
    else:
        joined = g.group == 1 and g.dilations[2] == 1
        line = copied.counts[2] * copied.pixel
        again = (g.kernel[0] * line * copied.lines(g, 0), g.kernel[0] * line * g.strides[1])
        steps, cost, point = [0, line * g.dilations[1], copied.pixel * g.dilations[2]], COPY[copied.kind], copied.pixel
    taps = [(n, s) for n, s in zip(g.kernel[:2], steps[:2], strict=True) if n > 1]
    run = copied.pixel if copied and g.group == 1 else g.depth
    if joined and g.kernel[2] > 1:
        run *= g.kernel[2]
    elif g.kernel[2] > 1:
        taps.append((g.kernel[2], steps[2]))
    return Walk(
        lines=g.out[1],
        points=g.out[2],
        taps=tuple(taps),
        run=run,
        overlap=copied is None,
        step=abs(point) * g.strides[2],
        line_bytes=line * g.strides[1],
        again=again,
        copy=cost,
    )


def matrix(g: Geometry, copied: Copied | None) -> np.ndarray:
    """The weights as ``[group, taps, run, columns]``."""
    assert g.w.const is not None
    w = g.w.const.reshape(g.group, g.columns, g.depth, *g.kernel).transpose(0, 3, 4, 5, 2, 1)
    pixel = copied.pixel if copied and g.group == 1 else g.depth
    if pixel > g.depth:
        w = np.pad(w, [(0, 0)] * 4 + [(0, pixel - g.depth), (0, 0)])
    joined = g.group == 1 and g.dilations[2] == 1 if copied else _joined(g, g.depth)
    run = pixel * (g.kernel[2] if joined else 1)
    return w.reshape(g.group, -1, run, g.columns)


def outer_axes(g: Geometry, walk: Walk, tile: Tile, kit: Kit, copied: Copied | None) -> Axes:
    packed = tile.columns.packed
    depth = walk.tap_count * -(-walk.run // kit.fold) * kit.fold
    none = {"b": 0, "start": 0, "column": 0, "axis": None, "scratch": 0}
    outer = [
        {**none, "extent": g.batch, "a": g.x.strides[0], "axis": 0},
        {
            **none,
            "extent": g.group,
            "a": 0 if copied else g.depth * g.x.strides[1],
            "b": depth * packed,
            "start": packed,
            "column": g.columns,
            "scratch": g.depth,
        },
    ]
    if g.rank == 3:
        outer.append({**none, "extent": g.out[0], "a": g.step[0] * g.strides[0], "axis": 2})
    return outer


def places(region: Region, g: Geometry, kit: Kit, copied: Copied | None, tile: Tile) -> dict[str, Any]:
    """Where lines and points lie in A, in its copy and in the output."""
    rank = region.anchor_type.rank
    border = copied.data(region, g, kit, _block_lines(g, tile)) if copied else None
    line = copied.counts[2] * copied.pixel if copied else 0
    point = copied.pixel if copied else 0
    return {
        "a": {
            "dtype": g.x.type.dtype,
            "as": kit.dtype,
            "flip": kit.flip,
            "span": g.x.span,
            "base": -sum(g.pads[i] * g.step[i] for i in range(3)),
        },
        "line": {"extent": g.out[1], "a": g.step[1] * g.strides[1], "scratch": line * g.strides[1]},
        "point": {"extent": g.out[2], "a": g.step[2] * g.strides[2], "scratch": point * g.strides[2]},
        "border": border,
        "slab": g.rank == 3,
        "axes": {
            "rank": rank,
            "line": rank - 2 if g.out[1] > 1 else None,
            "point": rank - 1,
            "column": 1,
        },
    }


def _block_lines(g: Geometry, tile: Tile) -> int:
    """Lines of the output that a block holds at most: the last one takes what no tile of lines covers."""
    if g.out[1] == 1:
        return 1
    whole, size = g.out[1] // tile.high, tile.block
    last = whole - (-(-max(1, whole) // size) - 1) * size
    return max(min(size, whole) * tile.high, last * tile.high + g.out[1] % tile.high)


TEMPLATE = Template("dot_conv", ("conv_integer",), plan, {"dot_conv": _dot.emit})
