"""Convolutions of 8-bit tensors with constant weights by products of int16 pairs: cores with Arm's DSP extension.

Any kernel, stride, dilation and padding of one or two axes; one group. Channels that lie side by side in fours are read
as words. A 1x1 convolution with stride 1 is one line of points.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from . import _dsp, _dsp_plain
from ._dsp_lead import overlaps
from ._dsp_plan import POINTS, Columns, Walk, plans_of, serves
from ._tile import coordinates_matter, epilogue_inputs, fits, joinable
from .conv import Geometry


def plan(region: Region) -> list[Plan]:
    """For constant weights and biases."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    g, bias = Geometry(region), region.operand(2)
    held = None if bias is None else region.inputs[bias].const
    if not serves(region.machine, g.x.type.dtype) or g.w.const is None or (bias is not None and held is None):
        return []
    if coordinates_matter(region) or g.group != 1 or g.rank > 2 or 0 in g.kernel or not g.depth:
        return []
    reads = epilogue_inputs(region)
    if g.flat(region, reads):
        g.flatten()
    matrix = g.w.const.reshape(g.columns, g.depth, *g.kernel).transpose(2, 3, 4, 1, 0).reshape(-1, g.columns)
    columns = Columns(matrix.astype(np.int64), held, int(region.attrs["zero_point"]), g.x.type.dtype)
    return plans_of(region, "dsp_conv", columns, walk_of(region, g)) if columns.fit else []


def walk_of(region: Region, g: Geometry) -> Walk:
    """Tiles of points, one line after the other."""
    source = source_of(g)
    points = min(POINTS, g.out[1] * g.out[2])
    tiles = g.batch * -(-(g.out[1] * g.out[2]) // points)
    config = {"points": points, "source": source, **places(region, g)}
    y = region.outputs[0]
    line = y.strides[-2] if g.out[1] > 1 else y.strides[-1] * g.out[2]
    strides = (y.strides[0], line, y.strides[-1], y.strides[1])
    return Walk(config, points, tiles, widening(g, source), strides, overlaps(region, g, points))


def source_of(g: Geometry) -> dict[str, Any]:
    """Which bytes one point reads: ``lines`` times ``runs`` runs of ``run`` bytes, ``unit`` apart."""
    channel, point = g.x.strides[1], g.step[2]
    side_by_side = g.depth == 1 or channel == 1
    joined = g.dilations[2] == 1 and (g.depth == 1 or (side_by_side and point == g.depth)) and g.kernel[2] > 1
    taps = g.kernel[2] if joined else 1
    border = "both" if g.border(1) else "point" if g.border(2) else ""
    unit = 1 if side_by_side and (g.depth > 1 or not joined) else point if joined else channel
    words = unit == 1 and (taps * g.depth if not border else g.depth) % 4 == 0
    return {
        "kind": "words" if words else "bytes",
        "lines": g.kernel[1],
        "runs": 1 if joined else g.kernel[2],
        "run": taps * g.depth,
        "taps": taps,
        "tap": g.depth,
        "unit": unit,
        "border": border,
        "base": -sum(g.pads[i] * g.step[i] for i in (1, 2)),
    }


def widening(g: Geometry, source: dict[str, Any]) -> float:
    """Instructions that take the inputs of one point apart."""
    nbytes = g.depth * math.prod(g.kernel)
    runs = source["lines"] * source["runs"]
    return float(nbytes * (1.8 if source["kind"] == "words" else 4.0) + runs * (20 if source["border"] else 4))


def places(region: Region, g: Geometry) -> dict[str, Any]:
    """Where points lie in the input and in the output."""
    axes = [
        {
            "extent": g.out[i],
            "a": g.step[i] * g.strides[i],
            "step": g.step[i],
            "stride": g.strides[i],
            "dilation": g.dilations[i],
            "pad": g.pads[i],
            "size": g.size[i],
            "reach": (g.kernel[i] - 1) * g.dilations[i] + 1,
        }
        for i in (1, 2)
    ]
    rank = region.anchor_type.rank
    joined = g.out[1] == 1 or joinable(region, rank - 1, rank - 2, epilogue_inputs(region))
    return {
        "a": {"dtype": g.x.type.dtype, "span": g.x.span, "zero": int(region.attrs["zero_point"])},
        "batch": {"extent": g.batch, "a": g.x.strides[0]},
        "line": axes[0],
        "point": axes[1],
        "axes": {
            "rank": rank,
            "batch": 0,
            "line": None if joined else rank - 2,
            "point": rank - 1,
            "column": 1,
        },
    }


TEMPLATE = Template(
    "dsp_conv",
    ("conv_integer",),
    plan,
    {"dsp_conv": _dsp.emit, "dsp_conv.steps": _dsp.emit_steps, "dsp_conv.plain": _dsp_plain.emit},
)
