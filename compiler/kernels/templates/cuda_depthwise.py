"""Depthwise convolution on a GPU: a thread computes neighbouring channels of a small rectangle of output points.

What a rectangle reads of the input is read once into registers and multiplied into all the outputs that it belongs to.
Neighbouring threads have neighbouring channels (or, where x holds one plane a channel, neighbouring points), so that a
warp's accesses are whole lines; what rectangles share, the first-level cache holds: a 3x3 window with 4x2 points reads
three inputs for each output, which is a third of what the cache gives while memory moves one. Shared memory would save
nothing that is short, and would bound the shapes. Any kernel, stride, dilation, padding, multiplier and memory order;
weights that are known only at run time are read as they lie.

One factor of a product of integers has its zero point taken off before; taps outside read the zero point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template, deferred
from ._cuda_conv_parts import (
    WIDEST,
    Part,
    accesses,
    arguments,
    axes_of,
    bytes_moved,
    common,
    joined,
    reachable,
    together,
)
from ._cuda_cost import Load, nanoseconds
from ._tile import epilogue_work, fits
from .conv import Geometry

MOST_WRITTEN = 1600  # products of a thread that are written out
MOST_REGISTERS = 120  # estimated; the estimate is rough


@dataclass(frozen=True)
class Cut:
    """A thread's work: ``lanes`` channels of ``lines`` times ``points`` output points. ``written``: how many of the
    kernel's axes (line, point) are written out; the others are loops."""

    lanes: int
    lines: int
    points: int
    written: int
    threads: int


def plan(region: Region) -> list[Plan]:
    """One plan, where each group has one input channel and there are several groups."""
    if region.machine.gpu is None or not fits(region) or None in (region.operand(0), region.operand(1)):
        return []
    g = Geometry(region)
    if g.group == 1 or g.depth != 1 or not reachable(region) or 0 in g.kernel:
        return []
    return [joined(region, "cuda_depthwise", [depthwise(region, g)])]


def depthwise(region: Region, g: Geometry) -> Part:
    """The kernel of one geometry."""
    moved, after = bytes_moved(region, g.w.type.nbytes), epilogue_work(region)
    options = list(cuts(region, g))
    nanos, cut = min(((_cost(region, g, c, moved, after), c) for c in options), key=lambda t: t[0])
    weights = packed(g)
    config = configure(region, g, cut)
    source = Arg("in", region.operand(1) or 0) if weights is None else Arg("const", 0)
    args = arguments(region, [Arg("in", region.operand(0) or 0), source])
    draft = Draft(KernelSpec("cuda_depthwise", config), args, config["blocks"])
    detail = f"depthwise, {cut.lanes} channels of {cut.lines}x{cut.points} points, {cut.threads} threads"
    return Part((draft,), () if weights is None else (weights,), 0, nanos, detail)


def channels(g: Geometry) -> int:
    count: int = g.group * g.columns
    return count


def multiplier(g: Geometry) -> int:
    """Output channels of an input channel."""
    return 1 if g.depthwise else g.columns


def packed(g: Geometry) -> np.ndarray | None:
    """Constant weights as ``[tap][channel]``."""
    if g.w.const is None:
        return None
    return np.ascontiguousarray(g.reduction_major(g.w.const).transpose(1, 0, 2)).reshape(-1)


def cuts(region: Region, g: Geometry) -> Iterator[Cut]:
    """What a thread may take."""
    taps = math.prod(g.kernel[1:])
    for lanes in (8, 4, 2, 1):
        if not _lanes_fit(region, g, lanes):
            continue
        for lines, points in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4)):
            if lines > g.out[1] or points > max(1, 2 * g.out[2] - 1):
                continue
            written = 2 if taps * lines * points * lanes <= MOST_WRITTEN else 1
            if written == 1 and (lines > 1 or g.kernel[2] * points * lanes > MOST_WRITTEN):
                if lines > 1 or points > 1:
                    continue
                written = 0
            for threads in (256, 128, 64):
                cut = Cut(lanes, lines, points, written, threads)
                if registers(g, cut) <= MOST_REGISTERS or lanes * lines * points == 1:
                    yield cut


def _lanes_fit(region: Region, g: Geometry, lanes: int) -> bool:
    """Whether neighbouring channels of the input (or the one that they all read) are one access."""
    if lanes == 1:
        return True
    if channels(g) % lanes or lanes * g.x.type.itemsize > WIDEST:
        return False
    many = multiplier(g)
    return bool(many % lanes == 0 or (many == 1 and together(g.x, 1, lanes)))


def registers(g: Geometry, cut: Cut) -> int:
    """An estimate of a thread's registers."""
    wide = -(-g.x.type.itemsize // 4) if g.x.type.itemsize > 4 else 1
    kept = g.kernel[2] if cut.written else 1
    row = (cut.points - 1) * g.strides[2] + (g.kernel[2] - 1) * g.dilations[2] + 1 if cut.written else cut.points
    return 30 + wide * cut.lanes * (cut.lines * cut.points + kept + min(row, kept * cut.points))


def work(g: Geometry, cut: Cut) -> int:
    """Threads that have something to do."""
    rectangles = -(-g.out[1] // cut.lines) * -(-g.out[2] // cut.points)
    return g.batch * g.out[0] * rectangles * channels(g) // cut.lanes


def _cost(region: Region, g: Geometry, cut: Cut, moved: float, after: int) -> float:
    """Nanoseconds by the model of all device templates. ``moved`` bytes cross the memory's border, ``after`` steps of
    work follow each sum."""
    gpu = region.machine.gpu
    assert gpu is not None
    items = work(g, cut)
    points = cut.lines * cut.points
    taps = math.prod(g.kernel)
    used = min(taps, math.prod(k if cut.written + i > 1 else 1 for i, k in enumerate(g.kernel[1:])) * g.kernel[0])
    rows = (cut.lines - 1) * g.strides[1] + g.kernel[1] if cut.written == 2 else g.kernel[1]
    row = min((cut.points - 1) * g.strides[2] + g.kernel[2], cut.points * g.kernel[2])
    reads = g.kernel[0] * rows * (row if cut.written else cut.points * g.kernel[2])
    accesses_ = reads + taps + points * (1 + after)
    size = g.x.type.itemsize
    return nanoseconds(
        gpu,
        Load(
            blocks=-(-items // cut.threads),
            threads=cut.threads,
            registers=registers(g, cut),
            macs=float(items * points * cut.lanes * taps),
            plain=float(items * (accesses_ * 4 + points * cut.lanes * after + 30)),
            far=moved,
            near=0.25 * items * reads * cut.lanes * size,
            in_flight=float(min(used, row) * cut.lanes * size),
        ),
    )


def configure(region: Region, g: Geometry, cut: Cut) -> dict[str, Any]:
    """What the emitter reads."""
    count = channels(g)
    constant = g.w.const is not None
    steps = [0] * (3 - g.rank) + list(g.w.strides[2:])
    own = [count * math.prod(g.kernel[i + 1 :]) for i in range(3)]
    base, rows = g.weight_rows()
    if not constant:
        steps = [r[1] for r in (rows[1:] if g.planes else rows[:3])]
    return {
        **common(region),
        "x": {"dtype": g.x.type.dtype, "span": g.x.span, "batch": g.x.strides[0], "channel": g.x.strides[1]},
        "w": {
            "dtype": g.w.type.dtype,
            "span": math.prod(g.kernel) * count if constant else g.w.span,
            "taps": own if constant else steps,
            "channel": 1 if constant else g.weight_columns()[1],
            "base": 0 if constant else base,
        },
        "axes": axes_of(g),
        "batch": g.batch,
        "channels": count,
        "multiplier": multiplier(g),
        "lines": cut.lines,
        "points": cut.points,
        "written": cut.written,
        "threads": cut.threads,
        "blocks": max(1, -(-work(g, cut) // cut.threads)),
        "by_channel": abs(g.x.strides[1]) <= abs(g.x.strides[-1]) or g.out[2] == 1,
        "accesses": accesses(region, cut.lanes),
    }


TEMPLATE = Template(
    "cuda_depthwise", ("conv", "conv_integer"), plan, {"cuda_depthwise": deferred("_cuda_depthwise")}, device=True
)
