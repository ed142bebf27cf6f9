"""Depthwise convolution of 8-bit tensors with instructions that multiply two pairs of int16 (``pair``).

Four channels at a time: each line of the input is widened once to int16, a plane a channel, into a ring of as many
lines as the kernel is high, with the padding filled in. There two neighbouring points are one word, and a word times
two weights is two taps of one instruction. The weights of the four channels are widened into scratch, too (twice one
after the other, so that the ring's first line may be anywhere), and stay 8 bits where they are stored.

A line of outputs is written after the lines that it needs have been read: where input and output have one shape, the
output may take the input's place. Sums become 8 bits in integers where that is exact (``_fixed``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from ._dsp_depthwise import Emitter
from ._dsp_lines import Walk, accepted, axis_of, proposal
from .conv import Geometry

_UNSEEN = 2  # what other templates' estimates of scalar code leave out: loops, addresses, rescaling


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine multiplies pairs, the weights are known, and every channel has its own."""
    g = accepted(region)
    if g is None or g.group == 1 or g.depth != 1:
        return []
    line, point = (2, 1) if g.kernel[2] == 1 and g.kernel[1] > 1 else (1, 2)
    kernel = np.asarray(g.w.const).reshape(-1, *g.kernel[1:])
    walk = Walk(
        g.group,
        g.x.strides[1],
        g.columns,
        kernel if line == 1 else kernel.swapaxes(1, 2),
        axis_of(region, g, line),
        axis_of(region, g, point),
    )
    found = proposal(region, g, walk, "dsp_depthwise", _in_place(region, g, walk), _UNSEEN)
    return [] if found is None else [found]


def _in_place(region: Region, g: Geometry, walk: Walk) -> tuple[tuple[int, int], ...]:
    """The input and the output that may be one: same shape and order, and no line is written that is still read. An
    output of line y is written when the lines up to ``y stride + reach`` have been."""
    x, y, line = g.x, region.outputs[0], walk.line
    same = x.type.dims == y.type.dims and x.type.itemsize == y.type.itemsize and x.strides == y.strides
    source = region.operand(0)
    covered = (line.taps - 1) * line.dilation - line.pad >= 0
    return ((source, 0),) if same and covered and source is not None and g.columns == 1 else ()


def emit(k: Any, config: dict[str, Any]) -> None:
    k.noalias, k.pointers = not config["overlaps"], False
    Emitter(k, config).run()


TEMPLATE = Template("dsp_depthwise", ("conv_integer",), plan, {"dsp_depthwise": emit})
