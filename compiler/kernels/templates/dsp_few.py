"""Convolution of 8-bit images with few channels (first layers) with products of int16 pairs (``pair``).

All elements of a line of the image are widened once into scratch; a kernel's row is then a run of neighbouring
elements, ``taps channels`` of them, and the window moves by ``stride channels``. The line stays there for as many lines
of outputs as see it, in place of a copy of the window for each point. The output's channels are taken in parts, so
that their widened weights are little scratch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from ._dsp_depthwise import Emitter
from ._dsp_lines import Walk, accepted, axis_of, proposal
from .conv import Geometry

_UNSEEN = 1  # estimates are those of the templates beside it
_MOST_CHANNELS = 4
_MOST_TAPS = 32  # of a kernel's row
_ENOUGH = 3072  # bytes of scratch that are worth few passes over the image


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine multiplies pairs, the weights are known, and a line's elements lie side by side."""
    g = accepted(region)
    if g is None or g.group != 1 or g.channels > _MOST_CHANNELS or not 2 <= g.kernel[2] <= _MOST_TAPS // g.channels:
        return []
    if not _side_by_side(g):
        return []
    found = [p for parts in _parts(g.columns) if (p := _plan(region, g, parts)) is not None]
    small = [p for p in found if p.worker_bytes <= _ENOUGH]
    return (small or found[-1:])[:1]


def _side_by_side(g: Geometry) -> bool:
    points = g.size[2] == 1 or g.step[2] == g.channels
    dilated = g.dilations[2] > 1 and g.kernel[2] > 1 and g.channels > 1
    return points and (g.channels == 1 or g.x.strides[1] == 1) and not dilated


def _parts(columns: int) -> list[int]:
    return [n for n in range(1, columns + 1) if columns % n == 0]


def _plan(region: Region, g: Geometry, parts: int) -> Plan | None:
    depth, point = g.channels, axis_of(region, g, 2)
    kernel = np.asarray(g.w.const).reshape(g.columns, depth, *g.kernel[1:]).transpose(0, 2, 3, 1)
    elements = replace(
        point,
        size=point.size * depth,
        step=1,
        taps=point.taps * depth,
        stride=point.stride * depth,
        pad=point.pad * depth,
    )
    walk = Walk(
        parts, 0, g.columns // parts, kernel.reshape(g.columns, g.kernel[1], -1), axis_of(region, g, 1), elements, True
    )
    return proposal(region, g, walk, "dsp_few", (), _UNSEEN)


def emit(k: Any, config: dict[str, Any]) -> None:
    Emitter(k, config).run()


TEMPLATE = Template("dsp_few", ("conv_integer",), plan, {"dsp_few": emit})
