"""What the templates that walk an image line by line on DSP cores plan alike (``_dsp_depthwise`` writes their kernels).

A line is a row of elements, a few lines a ring, a kernel's row some taps on it. Depthwise, a channel's points are a
line; of an image with few channels all elements of a row are, and a tap is a channel of a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Value
from ...ops.integers import NARROW
from ..expr import Program, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region
from ._dsp_taps import Taps, taps_of
from ._fixed import Fixed, fixed, reach
from ._numbers import Numbers
from ._tile import GHZ, inplace_pairs
from .conv import Geometry
from .dot_depthwise import known_geometry, used_inputs

GROUP = 4  # channels of a word
_MOST_SCRATCH = 16 << 10
_MOST_PADS = 16  # words of padding beside a line, which are written out


@dataclass(frozen=True)
class Axis:
    """Elements along an axis: of the input and output, from one to the next in memory, of the window."""

    size: int
    extent: int
    step: int
    taps: int
    stride: int
    dilation: int
    pad: int
    axis: int | None  # of the output's type
    out: int  # from an output to the next


@dataclass(frozen=True)
class Walk:
    """``channels`` planes of the input, ``apart`` from each other, each with ``columns`` channels of the output;
    ``kernel``: int8 ``[output channel, line, point]``. ``joined``: elements of a line lie side by side."""

    channels: int
    apart: int
    columns: int
    kernel: np.ndarray
    line: Axis
    point: Axis
    joined: bool = False


def accepted(region: Region) -> Geometry | None:
    """The convolution, if it is of 8 bits with known weights, and the machine multiplies pairs."""
    g = known_geometry(region) if region.machine.instruction("pair") is not None else None
    return g if g is not None and g.x.type.dtype in NARROW and len(region.outputs) == 1 else None


def axis_of(region: Region, g: Geometry, i: int) -> Axis:
    """A spatial axis (0 to 2) of a convolution."""
    number = region.anchor_type.rank - 3 + i
    place = number if number >= 2 else None
    out = 0 if place is None else region.outputs[0].strides[place]
    return Axis(g.size[i], g.out[i], g.step[i], g.kernel[i], g.strides[i], g.dilations[i], g.pads[i], place, out)


def proposal(
    region: Region, g: Geometry, walk: Walk, template: str, own: tuple[tuple[int, int], ...], unseen: float
) -> Plan | None:
    """The plan of a walk; ``own``: what it may do in place. None where it needs too much scratch. Estimates are divided
    by ``unseen``: what those of the templates it is compared with leave out."""
    point = walk.point
    taps = taps_of(point.taps, point.stride, point.dilation, point.extent)
    config = _config(region, g, walk, taps)
    if config["scratch"] > _MOST_SCRATCH or max(len(config["before"]), len(config["after"])) > _MOST_PADS:
        return None
    program, rule = rescaling(region, serialize(region), g)
    numbers = Numbers()
    config["pad"] = numbers.put(region.attrs["zero_point"])
    if rule is not None:
        config["rule"] = {"shift": rule.shift, "offset": numbers.put(rule.offset)}
    program = numbers.program(program)
    config["reads"] = used_inputs(program)
    alone = rule is not None and program["results"] == program["anchor"]
    config.update({"rescale": program["rescale"]} if alone else {"program": program})
    config["overlaps"] = bool(own)
    consts = [*_constants(region, g, walk, rule), numbers.array]
    args = (
        Arg("in", region.operand(0) or 0),
        *(Arg("const", i) for i in range(len(consts))),
        *(Arg("in", i) for i in config["reads"]),
        Arg("out"),
        Arg("worker", 0),
    )
    cost = _instructions(g.batch, walk, config, taps)
    return Plan(
        template,
        (Draft(KernelSpec(template, config), args),),
        cost=cost / unseen / GHZ + 50,
        consts=tuple(consts),
        worker_bytes=config["scratch"],
        inplace=(*own, *inplace_pairs(region)),
        detail=f"pairs {taps.outputs}x{walk.line.taps}x{point.taps}" + ("" if rule is None else ", integer rescale"),
    )


def _config(region: Region, g: Geometry, walk: Walk, taps: Taps) -> dict[str, Any]:
    """What a kernel is made for."""
    y, line, point = region.outputs[0], walk.line, walk.point
    needed = (point.extent - 1) * point.stride + (point.taps - 1) * point.dilation + 1
    words = -(-needed // 2)
    first = -(-point.pad // 2)  # the first word without padding
    last = max(first, min(words, (point.size + point.pad) // 2))
    group = GROUP if walk.apart == 1 else 1
    slots = line.taps * line.dilation
    weights = 2 * line.taps * len(taps.pairs)
    spare = min(group, walk.channels) * (slots * words + walk.columns * weights)

    def inside(word: int) -> list[bool]:
        return [bool(0 <= 2 * word + half - point.pad < point.size) for half in (0, 1)]

    return {
        "x": {"dtype": g.x.type.dtype, "batch": g.x.strides[0] * (g.batch > 1), "channel": walk.apart},
        "y": {"dtype": y.type.dtype, "batch": y.strides[0] * (g.batch > 1), "channel": y.strides[1]},
        "batch": g.batch,
        "rest": walk.channels % group,
        "columns": walk.columns,
        "group": group,
        "joined": walk.joined,
        "axes": [line.axis, point.axis],
        "line": {"taps": line.taps, "stride": line.stride, "dilation": line.dilation, "pad": line.pad},
        "point": {"taps": point.taps, "pad": point.pad},
        "before": [inside(w) for w in range(first)],
        "after": [inside(w) for w in range(last, words)],
        "slots": slots,
        "weights": weights,
        "taps": taps.config,
        "spare": spare,
        "scratch": 4 * (spare + taps.outputs),
        "shape": {
            "groups": walk.channels // group,
            "lines": (line.extent - 1) * line.stride + (line.taps - 1) * line.dilation + 1,
            "size": line.size,
            "line_step": line.step,
            "point_step": point.step,
            "line_out": line.out,
            "point_out": point.out,
            "words": words,
            "inner": last - first,
            "tiles": point.extent // taps.outputs,
        },
    }


def _multiplier(region: Region) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The known multiplier and the attributes of the ``requantize`` that alone reads the sums."""
    body = region.body
    assert region.anchor is not None
    users = [n for n in body if any(a is not None and a.node == region.anchor for a in body.args(n))]
    if len(users) != 1 or Value(region.anchor) in body.outputs or body.node(users[0]).op != "requantize":
        return None
    sums, each = body.args(users[0])
    attrs = dict(body.node(users[0]).attrs)
    if each is None or sums != Value(region.anchor) or attrs["x_zero_point"] or attrs["to"] not in NARROW:
        return None
    array = body.constant(each)
    if each.node in body.inputs:
        array = region.inputs[body.inputs.index(each.node)].const
    return None if array is None else (array, attrs)


def rescaling(region: Region, program: Program, g: Geometry) -> tuple[Program, Fixed | None]:
    """The program whose anchor is the rescaled sum, and how that is computed; or as it was, and None."""
    known = _multiplier(region)
    channels, rank = region.anchor_type.dims[1], region.anchor_type.rank
    at = next((i for i, n in enumerate(program["nodes"]) if program["anchor"][0] in n["args"]), None)
    if known is None or at is None or known[0].size not in (1, channels):
        return program, None
    array, attrs = known
    if array.size > 1 and (array.ndim < rank - 1 or array.shape[-(rank - 1)] != channels):
        return program, None
    bias, w = region.operand(2), np.asarray(g.w.const)
    given = None if bias is None else region.inputs[bias].const
    least, most = reach(w, given, g.x.type.dtype, region.attrs["zero_point"])
    rule = fixed(array, attrs["zero_point"], attrs["to"], least, most, (attrs["low"], attrs["high"]))
    if rule is None:
        return program, None
    node = program["nodes"][at]
    anchor = {**node, "op": "anchor", "args": [], "attrs": {}}
    nodes = [*program["nodes"][:at], anchor, *program["nodes"][at + 1 :]]
    changed = {**program, "nodes": nodes, "anchor": [len(program["inputs"]) + at], "rescale": node["attrs"]}
    return changed, rule


def _constants(region: Region, g: Geometry, walk: Walk, rule: Fixed | None) -> list[np.ndarray]:
    """The weights as they are, and for each output channel the start of its sums and, if there is one, its word."""
    w, bias = np.asarray(g.w.const), region.operand(2)
    start = -region.attrs["zero_point"] * w.astype(np.int64).reshape(len(w), -1).sum(axis=1)
    if bias is not None:
        start = start + np.asarray(region.inputs[bias].const, np.int64)
    table = start.astype(np.int32)[:, None]
    if rule is not None:
        table = np.concatenate([table, rule.words[:, None]], axis=1)
    return [np.ascontiguousarray(walk.kernel).reshape(-1), np.ascontiguousarray(table).reshape(-1)]


def _instructions(batch: int, walk: Walk, config: dict[str, Any], taps: Taps) -> float:
    """What one run takes, estimated."""
    line, shape = walk.line, config["shape"]
    each = (taps.products + taps.loads) * line.taps + walk.point.extent * (5 if "rule" in config else 12) + 16
    word = 4 if walk.apart == 1 or walk.joined else 7
    widened = shape["lines"] * (shape["words"] * word + 6)
    column = line.extent * each + (2.0 * walk.point.taps + 4) * line.taps + 6
    return float(batch * walk.channels * (column * walk.columns + widened))
