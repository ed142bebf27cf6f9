"""How far an output may lie over the input of a convolution that is walked tile by tile."""

from __future__ import annotations

import numpy as np

from ..spec import Region
from .conv import Geometry


def overlaps(region: Region, g: Geometry, points: int) -> tuple[tuple[int, int, int], ...]:
    """``Plan.overlaps`` of the input: each tile reads all that it needs before it writes."""
    x = region.operand(0)
    assert x is not None
    if len(region.outputs) != 1 or any(s < 0 for s in (*g.x.strides, *region.outputs[0].strides)):
        return ()
    lead = lead_of(g, region, points)
    return () if lead is None else ((x, 0, lead),)


def lead_of(g: Geometry, region: Region, points: int) -> int | None:
    """The least lead in bytes: over all tiles, the end of what is written less the first byte still to be read."""
    first, end = reads(g, points), writes(g, region, points)
    later = np.minimum.accumulate(first[::-1])[::-1]
    done = np.maximum.accumulate(end)
    return int(max(0, (done[:-1] - later[1:]).max(initial=0)))


def _points(g: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch, line and point of each point, in order: [batch, points]."""
    n, y, x = np.indices((g.batch, g.out[1], g.out[2])).reshape(3, g.batch, -1)
    return n, y, x


def _tiled(values: np.ndarray, points: int, combine: np.ufunc) -> np.ndarray:
    """``values`` [batch, points] combined by tiles, in order."""
    starts = np.arange(0, values.shape[1], points)
    return np.asarray(combine.reduceat(values, starts, axis=1)).reshape(-1)


def reads(g: Geometry, points: int) -> np.ndarray:
    """The first byte of the input that each tile reads."""
    n, y, x = _points(g)
    first = n * g.x.strides[0]
    for i, at in ((1, y), (2, x)):
        taps = [at * g.strides[i] - g.pads[i] + t * g.dilations[i] for t in range(g.kernel[i])]
        inside = [np.where((t >= 0) & (t < g.size[i]), t, g.size[i]) for t in taps]
        first = first + np.minimum.reduce(inside) * g.step[i]
    return _tiled(first * g.x.type.itemsize, points, np.minimum)


def writes(g: Geometry, region: Region, points: int) -> np.ndarray:
    """Behind the last byte of the output that each tile writes."""
    n, y, x = _points(g)
    out = region.outputs[0]
    lines = out.strides[-2] if region.anchor_type.rank == 4 and g.out[1] > 1 else 0
    end = n * out.strides[0] + y * lines + x * out.strides[-1] + (g.columns - 1) * out.strides[1] + 1
    return _tiled(end * out.type.itemsize, points, np.maximum)
