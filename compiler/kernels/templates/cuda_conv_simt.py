"""Direct convolution on a GPU without tensor cores: a thread computes some points of a line for neighbouring channels.

For what a matrix product would serve badly: few channels on either side, many groups, element types that tensor cores
have no instruction for. Any kernel, stride, dilation, padding, group and memory order; weights that are known only at
run time are read as they lie. Threads of a warp have neighbouring channels of the same points (weights come as whole
lines, an input is one broadcast) or, where the output has few channels or lies in planes, neighbouring points.
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
from ._tile import accumulator, epilogue_work, fits
from .conv import Geometry

MOST_REGISTERS = 128  # estimated
SLOW = {"float64": 2.0, "int64": 8.0, "uint64": 8.0, "int32": 1.5, "uint32": 1.5}  # a product, in those of float32


@dataclass(frozen=True)
class Cut:
    """A thread's work: ``lanes`` channels of ``points`` points; ``step`` input channels are read together."""

    lanes: int
    points: int
    step: int
    threads: int


def plan(region: Region) -> list[Plan]:
    """One plan, unless each group has one input channel (``cuda_depthwise``)."""
    if region.machine.gpu is None or not fits(region) or None in (region.operand(0), region.operand(1)):
        return []
    g = Geometry(region)
    if (g.group > 1 and g.depth == 1) or not reachable(region):
        return []
    return [joined(region, "cuda_conv_simt", [direct(region, g)])]


def direct(region: Region, g: Geometry) -> Part:
    """The kernel of one geometry."""
    moved, after = bytes_moved(region, g.w.type.nbytes), epilogue_work(region)
    slow = SLOW.get(accumulator(region.anchor_type.dtype), 1.0)
    options = list(cuts(region, g))
    costs = [_cost(region, g, cut, moved, after, slow) for cut in options]
    nanos, cut = min(zip(costs, options, strict=True), key=lambda t: t[0])
    source = Arg("in", region.operand(1) or 0)
    consts: tuple[np.ndarray, ...] = ()
    if g.w.const is not None:
        source, consts = Arg("const", 0), (np.ascontiguousarray(g.reduction_major(g.w.const)).reshape(-1),)
    config = configure(region, g, cut)
    args = arguments(region, [Arg("in", region.operand(0) or 0), source])
    draft = Draft(KernelSpec("cuda_conv_simt", config), args, config["blocks"])
    return Part(
        (draft,), consts, 0, nanos, f"direct, {cut.lanes} channels of {cut.points} points, {cut.threads} threads"
    )


def cuts(region: Region, g: Geometry) -> Iterator[Cut]:
    """What a thread may take."""
    wide = max(1, g.x.type.itemsize // 4)
    for lanes in (8, 4, 2, 1):
        if g.columns % lanes or (lanes > 1 and lanes * g.w.type.itemsize > 2 * WIDEST):
            continue
        for step in (4, 2, 1):
            if step > 1 and not _step_fits(g, step):
                continue
            for points in (1, 2, 4, 8):
                used = 30 + wide * (lanes * points + step * points + lanes * min(step, 2)) + 2 * points
                if (points > 1 and points > 2 * g.out[2] - 1) or (used > MOST_REGISTERS and lanes * points > 1):
                    continue
                for threads in (256, 128, 64):
                    yield Cut(lanes, points, step, threads)


def _step_fits(g: Geometry, step: int) -> bool:
    """Whether neighbouring input channels of a group are one access."""
    whole = g.depth % step == 0 and step * g.x.type.itemsize <= WIDEST
    return whole and not g.planes and together(g.x, 1, step)


def work(g: Geometry, cut: Cut) -> int:
    """Threads that have something to do."""
    lines = g.batch * g.out[0] * g.out[1] * -(-g.out[2] // cut.points)
    count: int = lines * g.group * g.columns // cut.lanes
    return count


def _cost(region: Region, g: Geometry, cut: Cut, moved: float, after: int, slow: float) -> float:
    """Nanoseconds by the model of all device templates. ``moved`` bytes cross the memory's border, ``after`` steps of
    work follow each sum, a product takes the time of ``slow`` of float32."""
    gpu = region.machine.gpu
    assert gpu is not None
    items = work(g, cut)
    reduction = g.depth * math.prod(g.kernel)
    reads = cut.points / cut.step + max(1, cut.lanes * g.w.type.itemsize / WIDEST)
    macs = float(items * cut.points * cut.lanes * reduction) * slow
    # the first-level cache answers, a quarter of an access a cycle
    plain = items * (reduction * (reads * 4 + 4 / cut.step) + cut.points * cut.lanes * (1 + after) + 40)
    return nanoseconds(
        gpu,
        Load(
            blocks=-(-items // cut.threads),
            threads=cut.threads,
            registers=40 + cut.points * (cut.lanes + cut.step),
            macs=macs,
            plain=float(plain),
            far=moved,
            in_flight=float(cut.points * cut.step * g.x.type.itemsize + cut.lanes * g.w.type.itemsize),
            chain=reduction / cut.step * 40.0,
        ),
    )


def configure(region: Region, g: Geometry, cut: Cut) -> dict[str, Any]:
    """What the emitter reads."""
    return {
        **common(region),
        "x": {"dtype": g.x.type.dtype, "span": g.x.span, "batch": g.x.strides[0], "channel": g.x.strides[1]},
        "w": weights(g, cut.lanes),
        "axes": axes_of(g),
        "batch": g.batch,
        "group": g.group,
        "columns": g.columns,
        "depth": g.depth,
        "points": cut.points,
        "step": cut.step,
        "threads": cut.threads,
        "blocks": max(1, -(-work(g, cut) // cut.threads)),
        "order": "czyx" if g.planes else "zyxc",
        "by_channel": region.outputs[0].strides[1] == 1 and g.columns // cut.lanes >= 2,
        "accesses": accesses(region, cut.lanes),
    }


def weights(g: Geometry, lanes: int) -> dict[str, Any]:
    """Where weights lie: those packed as ``[group][reduction][column]``, or as they are."""
    order = "czyx" if g.planes else "zyxc"
    if g.w.const is None:
        base, rows = g.weight_rows()
        steps = {n: r[1] for n, r in zip(order, rows, strict=True)}
        outer, column = g.weight_columns()
        span, group = g.w.span, outer[1]
    else:
        extents = dict(zip("zyxc", [*g.kernel, g.depth], strict=True))
        after = {n: math.prod(extents[m] for m in order[order.index(n) + 1 :]) for n in order}
        steps = {n: after[n] * g.columns for n in order}
        base, column, group = 0, 1, math.prod(extents.values()) * g.columns
        span = group * g.group
    wide = min(lanes, WIDEST // g.w.type.itemsize) if g.w.const is not None else 1
    return {
        "dtype": g.w.type.dtype,
        "span": span,
        "base": base,
        "group": group,
        "column": column,
        "wide": wide,
        **steps,
    }


TEMPLATE = Template(
    "cuda_conv_simt", ("conv", "conv_integer"), plan, {"cuda_conv_simt": deferred("_cuda_conv_simt")}, device=True
)
