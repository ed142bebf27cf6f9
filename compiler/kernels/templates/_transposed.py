"""conv_transpose by the kernels of conv: for each remainder of the output's coordinates modulo the stride, a small
convolution of stride 1 with flipped weights.

An output ``stride q + r`` meets the taps ``k`` with ``(r + pad - k dilation) % stride == 0``, each at some ``q + c``.
Phases (one remainder for each axis) are done image by image, so that what they share stays near; their weights are
packed one behind the other.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from ..spec import Plan, Region
from . import _contract, depthwise
from ._tile import TASKS, WORTH_SHARING, Tile, accumulator, choose, epilogue_inputs, fits
from .conv import Geometry, configure, finished, shape_of

_MOST_PHASES = 16


class Phase(Geometry):
    """One remainder for each axis, as a convolution. ``taps`` are, for each axis, kernel elements in the order of the
    inputs that they meet, evenly spaced on both sides."""

    def __init__(self, region: Region, remainders: tuple[int, ...]) -> None:
        super().__init__(region)
        attrs, rank = region.attrs, self.rank
        lead = 3 - rank
        self.out = [1] * lead
        self.taps: list[list[int]] = [[0]] * lead
        strides, dilations = list(self.strides), list(self.dilations)
        self.kernel, self.dilations = [1] * 3, [1] * 3
        for axis in range(lead, 3):
            at = axis - lead
            r, s, d, pad = remainders[at], strides[axis], dilations[axis], attrs["pads"][at]
            met = [(k, (r + pad - k * d) // s) for k in range(self.w.type.dims[2 + at]) if (r + pad - k * d) % s == 0]
            met.reverse()  # rising inputs
            self.taps.append([k for k, _ in met])
            self.kernel[axis] = len(met)
            self.dilations[axis] = met[1][1] - met[0][1] if len(met) > 1 else 1
            self.pads[axis] = -met[0][1] if met else 0
            self.out.append(-(-(region.anchor_type.dims[2 + at] - r) // s))
            self.place[axis] = (r, s)
        self.strides = [1, 1, 1]
        self.columns = self.w.type.dims[1]
        self.depth = self.w.type.dims[0] // self.group
        if self.group > 1 and self.columns == self.depth == 1 and self.x.strides[1] == 1 and rank < 3:
            self.columns, self.group, self.depthwise = self.group, 1, True

    def reduction_major(self, w: np.ndarray) -> np.ndarray:
        wide = w.reshape(-1, *([1] * (3 - self.rank)), *w.shape[2:])
        kernel = wide[np.ix_(range(len(wide)), *self.taps)]
        if self.depthwise:
            return kernel.reshape(1, self.columns, -1).transpose(0, 2, 1)
        kernel = kernel.reshape(self.group, self.depth, self.columns, *self.kernel)
        order = (0, 1, 3, 4, 5, 2) if self.planes else (0, 3, 4, 5, 1, 2)
        return kernel.transpose(order).reshape(self.group, -1, self.columns)

    def weight_columns(self) -> tuple[list[int], int]:
        strides = self.w.strides
        if self.depthwise:
            return [1, 0], strides[0]
        return [self.group, self.depth * strides[0]], strides[1]

    def weight_rows(self) -> tuple[int, list[list[int]]]:
        steps = [0] * (3 - self.rank) + list(self.w.strides[2:])
        base = sum(t[0] * s for t, s in zip(self.taps, steps, strict=True) if t)
        taps = [[len(t), (t[1] - t[0]) * s if len(t) > 1 else 0] for t, s in zip(self.taps, steps, strict=True)]
        channel = [self.depth, self.w.strides[0]]
        return base, [channel, *taps] if self.planes else [*taps, channel]


def tiled(region: Region) -> list[Plan]:
    """One plan, where there are few phases."""
    x, w = region.operand(0), region.operand(1)
    if x is None or w is None or not fits(region):
        return []
    attrs = region.attrs
    counts = [min(s, n) for s, n in zip(attrs["strides"], region.anchor_type.dims[2:], strict=True)]
    if math.prod(counts) > _MOST_PHASES:
        return []
    phases = [Phase(region, r) for r in product(*map(range, counts))]
    dtype, reads = accumulator(region.anchor_type.dtype), epilogue_inputs(region)
    if len(phases) == 1 and phases[0].flat(region, reads):
        phases[0].flatten()
    tile = _tile(region, phases, np.dtype(dtype).itemsize)
    depths = [p.depth * math.prod(p.kernel) for p in phases]
    firsts = [sum(depths[:i]) for i in range(len(phases))]
    configs = [
        configure(region, p, tile, dtype, reads, sum(depths), first) for p, first in zip(phases, firsts, strict=True)
    ]
    config, tasks = _shared(configs, tile, phases[0].depthwise)
    detail = (
        f"{'depthwise' if phases[0].depthwise else 'direct'} conv_transpose {tile.describe()}, {len(phases)} phases"
    )
    return [finished(region, phases, tile.columns, config, "conv_transpose.tiled", (tasks, tile.cycles), detail)]


def _tile(region: Region, phases: list[Phase], itemsize: int) -> Tile:
    """The tile of the phase with the most taps, and the cycles of all."""
    if phases[0].depthwise:
        tiles = [depthwise.best_tile(region, p) for p in phases]
    else:
        tiles = [choose(region.machine, shape_of(region, p), itemsize) for p in phases]
    best = max(range(len(phases)), key=lambda i: (math.prod(phases[i].kernel), tiles[i].cycles, -i))
    found = tiles[best]
    cycles = sum(t.cycles for t in tiles)
    if phases[0].depthwise:  # each counted all of the traffic
        cycles /= math.sqrt(len(phases))
    return Tile(found.rows, found.columns, found.line_block, found.row_block, cycles)


def _shared(configs: list[dict[str, Any]], tile: Tile, depthwise: bool) -> tuple[dict[str, Any], int | None]:
    """Tasks are images and groups, where there are enough of them; otherwise each phase is cut into its own."""
    images = [o["extent"] for o in configs[0]["outer"][:2]]
    whole = math.prod(images)
    config: dict[str, Any] = {"phases": configs, "depthwise": depthwise, "tasks": None, "split": 0}
    if tile.cycles < WORTH_SHARING:
        return config, None
    if len(configs) > 1 and whole >= TASKS // 2:
        return {**config, "split": 2, "tasks": [whole]}, whole
    counts = []
    for c in configs:
        dims = [*(o["extent"] for o in c["outer"]), *c["blocks"]]
        counts.append(math.prod(dims[: c["split"]]))
    total = sum(counts)
    return ({**config, "tasks": counts}, total) if total > 1 else (config, None)


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments as those of one contraction."""
    from tvm import tirx

    reduction = depthwise.Depthwise if config["depthwise"] else _contract.Reduction
    first = _contract.Contraction(k, config["phases"][0], reduction)
    parts = [first, *(_contract.Contraction(k, c, reduction, first.args) for c in config["phases"][1:])]
    counts, split = config["tasks"], config["split"]
    if counts is None:
        for part in parts:
            part.share(0, 0)
        return
    with k.parallel(sum(counts)) as task:
        start = 0
        for n, part in enumerate(parts):
            if split:
                part.share(task, split)
                continue
            mine = tirx.all(task >= start, task < start + counts[n]) if len(parts) > 1 else True
            with k.when(mine):
                part.share(task - start if start else task, part.config["split"])
            start += counts[n]
