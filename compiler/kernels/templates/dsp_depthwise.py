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

from ...ir import Value
from ...ops.integers import NARROW
from ..expr import Program, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._dsp_depthwise import Emitter
from ._dsp_taps import Taps, taps_of
from ._fixed import Fixed, fixed, reach
from ._numbers import Numbers
from ._tile import GHZ, fits, inplace_pairs
from .conv import Geometry

_GROUP = 4  # channels of a word
_MOST_SCRATCH = 16 << 10
_UNSEEN = 2  # what other templates' estimates of scalar code leave out: loops, addresses, rescaling
_MOST_PADS = 16  # words of padding beside a line, which are written out


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine multiplies pairs, the weights are known, and every channel has its own."""
    if region.op != "conv_integer" or region.machine.instruction("pair") is None or not fits(region):
        return []
    at = [region.operand(i) for i in range(3)]
    if at[0] is None or at[1] is None or region.anchor_type.rank > 4 or region.anchor_type.dtype != "int32":
        return []
    w, bias = region.inputs[at[1]], None if at[2] is None else region.inputs[at[2]]
    if w.const is None or w.type.dtype != "int8" or (bias is not None and bias.const is None):
        return []
    g = Geometry(region)
    if g.group == 1 or g.depth != 1 or g.x.type.dtype not in NARROW or len(region.outputs) != 1:
        return []
    found = _plan(region, g)
    return [] if found is None else [found]


def _plan(region: Region, g: Geometry) -> Plan | None:
    line, point = (2, 1) if g.kernel[2] == 1 and g.kernel[1] > 1 else (1, 2)
    taps = taps_of(g.kernel[point], g.strides[point], g.dilations[point], g.out[point])
    config = _geometry(region, g, line, point, taps)
    if config["scratch"] > _MOST_SCRATCH or max(len(config["before"]), len(config["after"])) > _MOST_PADS:
        return None
    cost = _instructions(region, config, g, taps)
    program, rule = rescaling(region, serialize(region), g)
    numbers = Numbers()
    config["pad"] = numbers.put(region.attrs["zero_point"])
    if rule is not None:
        config["rule"] = {"shift": rule.shift, "offset": numbers.put(rule.offset)}
    program = numbers.program(program)
    config["reads"] = program_inputs(program)
    alone = rule is not None and program["results"] == program["anchor"]
    config.update({"rescale": program["rescale"]} if alone else {"program": program})
    consts = [*_constants(region, g, rule), numbers.array]
    args = (
        Arg("in", region.operand(0) or 0),
        *(Arg("const", i) for i in range(len(consts))),
        *(Arg("in", i) for i in config["reads"]),
        Arg("out"),
        Arg("worker", 0),
    )
    own = _in_place(region, g)
    config["overlaps"] = bool(own)
    return Plan(
        "dsp_depthwise",
        (Draft(KernelSpec("dsp_depthwise", config), args),),
        cost=cost / _UNSEEN / GHZ + 50,
        consts=tuple(consts),
        worker_bytes=config["scratch"],
        inplace=(*own, *inplace_pairs(region)),
        detail=f"depthwise pairs {taps.outputs}x{g.kernel[line]}x{g.kernel[point]}"
        + ("" if rule is None else ", integer rescale"),
    )


def _geometry(region: Region, g: Geometry, line: int, point: int, taps: Taps) -> dict[str, Any]:
    """What a kernel is made for."""
    y, rank = region.outputs[0], region.anchor_type.rank
    axes = [rank - 3 + i for i in (line, point)]
    out = [y.strides[a] if a >= 2 else 0 for a in axes]
    needed = (g.out[point] - 1) * g.strides[point] + (g.kernel[point] - 1) * g.dilations[point] + 1
    words, pad = -(-needed // 2), g.pads[point]
    first = -(-pad // 2)  # the first word without padding
    last = max(first, min(words, (g.size[point] + pad) // 2))
    group = _GROUP if g.x.strides[1] == 1 else 1
    slots = g.kernel[line] * g.dilations[line]
    weights = 2 * g.kernel[line] * len(taps.pairs)

    def inside(word: int) -> list[bool]:
        return [bool(0 <= 2 * word + half - pad < g.size[point]) for half in (0, 1)]

    return {
        "x": {"dtype": g.x.type.dtype, "batch": g.x.strides[0] * (g.batch > 1), "channel": g.x.strides[1]},
        "y": {"dtype": y.type.dtype, "batch": y.strides[0] * (g.batch > 1), "channel": y.strides[1]},
        "batch": g.batch,
        "rest": g.group % group,
        "columns": g.columns,
        "group": group,
        "axes": [a if a >= 2 else None for a in axes],
        "line": {n: v[line] for n, v in (("taps", g.kernel), ("stride", g.strides), ("dilation", g.dilations))}
        | {"pad": g.pads[line]},
        "point": {"taps": g.kernel[point], "pad": pad},
        "before": [inside(w) for w in range(first)],
        "after": [inside(w) for w in range(last, words)],
        "slots": slots,
        "weights": weights,
        "taps": taps.config,
        "spare": min(group, g.group) * (slots * words + g.columns * weights),
        "scratch": 4 * (min(group, g.group) * (slots * words + g.columns * weights) + taps.outputs),
        "shape": {
            "groups": g.group // group,
            "lines": (g.out[line] - 1) * g.strides[line] + (g.kernel[line] - 1) * g.dilations[line] + 1,
            "size": g.size[line],
            "line_step": g.step[line],
            "point_step": g.step[point],
            "line_out": out[0],
            "point_out": out[1],
            "words": words,
            "inner": last - first,
            "tiles": g.out[point] // taps.outputs,
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


def program_inputs(program: Program) -> list[int]:
    """Region inputs that the program still reads."""
    first = len(program["inputs"])
    stack, seen = list(program["results"]), set()
    while stack:
        v = stack.pop()
        if v not in seen:
            seen.add(v)
            node = program["nodes"][v - first] if v >= first else {"op": "input"}
            stack += [a for a in node.get("args", ()) if a is not None] if node["op"] != "anchor" else []
    return sorted(v for v in seen if v < first)


def _constants(region: Region, g: Geometry, rule: Fixed | None) -> list[np.ndarray]:
    """The weights as they are, and for each output channel the start of its sums and, if there is one, its word."""
    w, bias = np.asarray(g.w.const), region.operand(2)
    start = -region.attrs["zero_point"] * w.astype(np.int64).reshape(len(w), -1).sum(axis=1)
    if bias is not None:
        start = start + np.asarray(region.inputs[bias].const, np.int64)
    table = start.astype(np.int32)[:, None]
    if rule is not None:
        table = np.concatenate([table, rule.words[:, None]], axis=1)
    kernel = w.reshape(len(w), *g.kernel[1:])
    if g.kernel[2] == 1 and g.kernel[1] > 1:
        kernel = kernel.swapaxes(1, 2)
    return [np.ascontiguousarray(kernel).reshape(-1), np.ascontiguousarray(table).reshape(-1)]


def _in_place(region: Region, g: Geometry) -> tuple[tuple[int, int], ...]:
    """The input and the output that may be one: same shape and order, and no line is written that is still read. An
    output of line y is written when the lines up to ``y stride + reach`` have been."""
    x, y = g.x, region.outputs[0]
    same = x.type.dims == y.type.dims and x.type.itemsize == y.type.itemsize and x.strides == y.strides
    source = region.operand(0)
    line = (2, 1) if g.kernel[2] == 1 and g.kernel[1] > 1 else (1, 2)
    i = line[0]
    covered = (g.kernel[i] - 1) * g.dilations[i] - g.pads[i] >= 0 and g.strides[i] >= 1
    return ((source, 0),) if same and covered and source is not None and g.columns == 1 else ()


def _instructions(region: Region, config: dict[str, Any], g: Geometry, taps: Taps) -> float:
    """What one run takes, estimated."""
    line, shape = config["line"], config["shape"]
    points, lines = region.anchor_type.size // (g.batch * g.group * g.columns), shape["lines"]
    outs = (lines - 1 - (line["taps"] - 1) * line["dilation"]) // line["stride"] + 1
    each = (taps.products + taps.loads) * line["taps"] + points / outs * (5 if "rule" in config else 12) + 16
    widened = lines * (shape["words"] * (4 if config["group"] == _GROUP else 7) + 6)
    channel = (outs * each + 8.0 * line["taps"] + 6) * config["columns"] + widened
    return float(g.batch * g.group * channel)


def emit(k: Any, config: dict[str, Any]) -> None:
    k.noalias = not config["overlaps"]
    Emitter(k, config).run()


TEMPLATE = Template("dsp_depthwise", ("conv_integer",), plan, {"dsp_depthwise": emit})
