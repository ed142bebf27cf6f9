"""Depthwise convolution of 8-bit tensors with instructions that add four products of neighbouring bytes to an int32.

The bytes of four neighbouring points of one channel are brought together by unpacking (as 4x4 transposes within each
128 bits), so that one instruction multiplies four taps of a kernel's row. What was brought together serves every row of
a tile and, with the weights moved by one byte, two neighbouring outputs. Unpacking and packing are inverse: the sums'
order is the one in which the machine packs them to 8 bits again.

Each task copies the lines that it reads, for one group of channels, into scratch of its own, padded with the zero
point: no border is a special case, and the first operand gets the sign that the instruction wants. Few channels
(a power of two) are taken several points at a time, as one vector over points and channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....targets import instruction
from ....targets.machine import Instruction, Machine
from ...ir import Value
from ...ops.integers import NARROW
from ..expr import Program, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._dot_depthwise import Emitter
from ._dot_walks import ZEROS
from ._numbers import Numbers
from ._tile import GHZ, WORTH_SHARING, coordinates_matter, epilogue_work, fits, inplace_pairs, joinable
from .conv import Geometry

_TAPS = 4  # products of an instruction
_MOST_WRITTEN = 320  # instructions of a tile that are written out
_FEW = 16  # channels below which points and channels make one vector
_LEAST = 8  # channels that are worth copying point by point
_ROWS = 2  # rows of a tile
_TASKS = 8  # of a kernel that is worth sharing
_SLACK = 64  # bytes behind the scratch that a vector may touch


@dataclass(frozen=True)
class Group:
    """``lanes`` bytes of scratch for each step along the points: ``valid`` channels from ``first`` on. ``packed`` is
    where its columns begin, of all groups' lanes."""

    first: int
    lanes: int
    valid: int
    packed: int


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine has such an instruction, the weights are known, and channels are adjacent."""
    g = None if region.small else known_geometry(region)
    if g is None:
        return []
    wide = any(o.strides[1] != 1 for o in (g.x, *region.outputs))
    if g.group == 1 or g.depth != 1 or g.columns != 1 or wide or g.x.type.dtype not in NARROW:
        return []
    fitting = [r for r in region.machine.instructions if r.kind == "dot4" and not r.saturates and r.signed[1]]
    rows = {4 * row.lanes: row for row in reversed(fitting)}  # the first of a width, which is the best
    return [_plan(region, g, rows)] if rows else []


def _plan(region: Region, g: Geometry, dots: dict[int, Instruction]) -> Plan:
    """``dots`` are the instructions by the bytes of the vectors that they multiply."""
    widths, signed = sorted(dots, reverse=True), dots[min(dots)].signed[0]
    line, point = (2, 1) if g.kernel[2] == 1 and g.kernel[1] > 1 else (1, 2)
    config = _geometry(region, g, line, point, signed)
    flat = _flat_lanes(region, config, point, widths)
    groups = [Group(0, flat, flat, 0)] if flat else _groups(g.group, widths)
    config["flat"] = bool(flat)
    config.update(_rolling(config, region.machine) or _tiles(config))
    config["across"] = config["line" if config["sets"] is None else "point"]["taps"]
    config["dots"] = {str(g.lanes): dots[g.lanes].name for g in groups}
    _blocks(config, groups, region.machine)
    program, multiplier = absorbed(region, serialize(region), [*{g.lanes for g in groups}])
    config.update(program=program, scaled=multiplier is not None, groups=[vars(g) for g in groups])
    consts = _constants(region, g, config, groups, multiplier)
    numbers = Numbers()
    config.update(program=numbers.program(program), zero=numbers.put(config["zero"]))
    consts.append(numbers.array)
    config["spans"] = [c.size for c in consts]
    cycles = _cycles(region, config, groups)
    tasks = g.batch * len(groups) * config["blocks"]
    config.update(tasks=tasks, shared=cycles >= WORTH_SHARING and tasks > 1)
    reads = used_inputs(program)
    config["reads"] = reads
    args = (
        Arg("in", region.operand(0) or 0),
        *(Arg("const", i) for i in range(len(consts))),
        *(Arg("in", i) for i in reads),
        *(Arg("out", j) for j in range(len(region.outputs))),
        *([Arg("worker", 0)] if config["scratch"] else []),
    )
    draft = Draft(KernelSpec("dot_depthwise", config), args, tasks if config["shared"] else None)
    return Plan(
        "dot_depthwise",
        (draft,),
        cost=cycles / GHZ + 50,
        consts=tuple(consts),
        worker_bytes=config["scratch"],
        inplace=() if flat else inplace_pairs(region),
        detail=f"depthwise dot {config['rows']}x{config['pair']}x{groups[0].lanes}",
    )


def _geometry(region: Region, g: Geometry, line: int, point: int, signed: bool) -> dict[str, Any]:
    def axis(i: int) -> dict[str, Any]:
        return {
            "extent": g.out[i],
            "size": g.size[i],
            "step": g.step[i],
            "taps": g.kernel[i],
            "stride": g.strides[i],
            "dilation": g.dilations[i],
            "pad": g.pads[i],
            "axis": region.anchor_type.rank - 3 + i if region.anchor_type.rank - 3 + i >= 2 else None,
        }

    flip = (g.x.type.dtype == "int8") != signed
    zero = region.attrs["zero_point"]
    return {
        "x": {"dtype": g.x.type.dtype, "span": g.x.span, "batch": g.x.strides[0]},
        "held": "int8" if signed else "uint8",
        "flip": flip,
        "zero": zero + (0 if not flip else 128 if g.x.type.dtype == "int8" else -128),
        "batch": g.batch,
        "line": axis(line),
        "point": axis(point),
        "channels": g.group,
    }


def _pairs(axis: dict[str, Any]) -> int:
    """Outputs along an axis that share a window: the second's taps are the first's, one byte further."""
    return 2 if axis["stride"] == axis["dilation"] and axis["extent"] > 1 else 1


def _rolling(config: dict[str, Any], machine: Machine) -> dict[str, Any] | None:
    """Windows across the lines, walked along the points: each is made once. Sums that are not finished stay in
    registers (``sets`` of them from one point to the next), so this is for short kernels."""
    line, point = config["line"], config["point"]
    sets = -(-point["taps"] // point["stride"]) - 1
    for rows in range(_pairs(line), 0, -1):
        held = (sets + 1) * rows * _TAPS + _TAPS + 2
        if line["taps"] + rows - 1 <= _TAPS and held <= machine.registers and point["dilation"] == 1:
            return None if config["flat"] else {"sets": sets, "rows": rows, "pair": rows, "windows": 1}
    return None


def _tiles(config: dict[str, Any]) -> dict[str, Any]:
    """Windows along the points, in tiles of a few lines and outputs."""
    line, point = config["line"], config["point"]
    pair = 1 if config["flat"] else _pairs(point)
    windows = -(-(point["taps"] + pair - 1) // _TAPS)
    most = _MOST_WRITTEN // (line["taps"] * windows * pair * _TAPS)
    return {"sets": None, "rows": max(1, min(_ROWS, most, line["extent"])), "pair": pair, "windows": windows}


def _flat_lanes(region: Region, config: dict[str, Any], point: int, widths: list[int]) -> int:
    """The lanes of a vector over points and channels, 0 where they cannot be walked as one."""
    p, channels, number = config["point"], config["channels"], region.anchor_type.rank - 3 + point
    if channels > _FEW or p["step"] != channels or coordinates_matter(region):
        return 0
    if p["stride"] > 1 and channels < _LEAST:
        return 0
    own = {region.operand(i) for i in range(3)}
    others = [i for i in range(len(region.inputs)) if i not in own and i != _multiplier(region)[1]]
    if not joinable(region, 1, number, others, channels):
        return 0
    found = next((n for n in widths if n % channels == 0 and n <= p["extent"] * channels), 0)
    # multipliers of channels cannot be read along such a vector: they must lie beside the sums
    each = _multiplier(region)[1] is not None and found
    return 0 if each and absorbed(region, serialize(region), [found])[1] is None else found


def _groups(channels: int, widths: list[int]) -> list[Group]:
    """Vectors as wide as the channels fill them; the rest by one that may be filled in part."""
    found: list[Group] = []
    at = packed = 0
    while at < channels:
        rest = channels - at
        full = next((n for n in widths if n <= rest), 0)
        over = min((n for n in widths if n > rest), default=0)
        lanes = full if full == rest or (full and not 0 < over <= 2 * full) else over
        found.append(Group(at, lanes, min(lanes, rest), packed))
        at, packed = at + lanes, packed + lanes
    return found


def _blocks(config: dict[str, Any], groups: list[Group], machine: Machine) -> None:
    """How many lines make a block: as many as keep what it reads in the first-level cache, and give a few tasks."""
    p, line = config["point"], config["line"]
    step = config["channels"] if config["flat"] else groups[0].lanes
    others = config["batch"] * len(groups)
    large = config["batch"] * config["channels"] * p["extent"] * line["extent"] > 1 << 15
    reach = (line["taps"] - 1) * line["dilation"] + 1
    row = points = 0
    if config["sets"] is None:
        outs = -(-p["extent"] // config["pair"]) * config["pair"]
        points = (outs - 1) * p["stride"] + (_TAPS * config["windows"] - 1) * p["dilation"] + 1
        if config["flat"]:  # points that are a multiple of the stride apart lie side by side
            points = (outs - 1 + (_TAPS * config["windows"] - 1) * p["dilation"] // p["stride"] + 1) * p["stride"]
        row = -(-max(points, p["pad"] + 1) * step // 64) * 64
    best = config["rows"]
    while best < line["extent"] and row * ((2 * best - 1) * line["stride"] + reach) <= machine.l1:
        if large and others * -(-line["extent"] // (2 * best)) < _TASKS:
            break
        best *= 2
    block = min(best, -(-line["extent"] // config["rows"]) * config["rows"])
    scratch = row * ((block - 1) * line["stride"] + reach) + _SLACK if row else 0
    blocks = -(-line["extent"] // block)
    config.update(row=row, points=points, block=block, blocks=blocks, scratch=scratch, reach=reach)


def _multiplier(region: Region) -> tuple[np.ndarray | None, int | None]:
    """The known multiplier of the ``requantize`` that alone reads the sums, and the region's input that it is."""
    body = region.body
    assert region.anchor is not None
    users = [n for n in body if any(a is not None and a.node == region.anchor for a in body.args(n))]
    if len(users) != 1 or Value(region.anchor) in body.outputs or body.node(users[0]).op != "requantize":
        return None, None
    sums, each = body.args(users[0])
    node = body.node(users[0])
    if each is None or sums != Value(region.anchor) or node.attrs["x_zero_point"] or node.attrs["to"] not in NARROW:
        return None, None
    if each.node not in body.inputs:
        return body.constant(each), None
    number = body.inputs.index(each.node)
    return region.inputs[number].const, number


def absorbed(region: Region, program: Program, widths: list[int]) -> tuple[Program, np.ndarray | None]:
    """The program whose anchor is the rescaled sum, and the multipliers of its channels; or as it was, and None."""
    array, _ = _multiplier(region)
    channels = region.anchor_type.dims[1]
    at = next((i for i, n in enumerate(program["nodes"]) if program["anchor"][0] in n["args"]), None)
    if array is None or at is None or array.size not in (1, channels):
        return program, None
    node = program["nodes"][at]
    if not node["attrs"]["fits"] or (array.size > 1 and array.shape[-(region.anchor_type.rank - 1)] != channels):
        return program, None
    rows = {(r.kind, r.lanes) for r in region.machine.instructions}
    if any((f"pack.{node['attrs']['to']}", n) not in rows for n in widths):
        return program, None
    anchor = {**node, "op": "anchor", "args": [], "attrs": {}}
    nodes = [*program["nodes"][:at], anchor, *program["nodes"][at + 1 :]]
    changed = {**program, "nodes": nodes, "anchor": [len(program["inputs"]) + at], "rescale": node["attrs"]}
    return changed, np.broadcast_to(array.reshape(-1), (channels,))


def known_geometry(region: Region) -> Geometry | None:
    """The convolution of 8-bit integers with int32 sums, where weights and bias are known; None for other regions."""
    if region.op != "conv_integer" or not fits(region):
        return None
    at = [region.operand(i) for i in range(3)]
    if at[0] is None or at[1] is None or region.anchor_type.rank > 4 or region.anchor_type.dtype != "int32":
        return None
    w, bias = region.inputs[at[1]], None if at[2] is None else region.inputs[at[2]]
    if w.const is None or w.type.dtype != "int8" or (bias is not None and bias.const is None):
        return None
    return Geometry(region)


def used_inputs(program: Program) -> list[int]:
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


def _constants(
    region: Region, g: Geometry, config: dict[str, Any], groups: Sequence[Group], multiplier: np.ndarray | None
) -> list[np.ndarray]:
    """Weights ``[group][tap across][window][output of the pair][quarter][channel][tap]``, start values and multipliers
    ``[group][quarter][channel]``."""
    assert g.w.const is not None
    w = g.w.const.reshape(g.group, config["line"]["taps"], config["point"]["taps"]).astype(np.int8)
    w = w if config["sets"] is None else w.swapaxes(1, 2)  # the axis of the windows comes last
    across, along = w.shape[1:]
    at = region.operand(2)
    bias = np.zeros(g.group, np.int64) if at is None else np.asarray(region.inputs[at].const, np.int64)
    start = (bias - config["zero"] * w.astype(np.int64).sum(axis=(1, 2))).astype(np.int32)
    shifted = np.zeros((g.group, across, config["windows"], config["pair"], _TAPS), np.int8)
    for t in range(along):
        for v in range(config["pair"]):
            shifted[:, :, (t + v) // _TAPS, v, (t + v) % _TAPS] = w[:, :, t]
    weights, starts, scales = [], [], []
    for group in groups:
        lanes = _order(group, config)
        keep = (lanes >= 0)[:, None, None, None, None]
        chosen = np.where(keep, shifted[lanes], 0)
        split = chosen.reshape(_TAPS, -1, *chosen.shape[1:])  # quarter, channel, line tap, window, output, tap
        weights.append(split.transpose(2, 3, 4, 0, 1, 5).reshape(-1))
        starts.append(np.where(lanes >= 0, start[lanes], 0))
        if multiplier is not None:
            scales.append(np.where(lanes >= 0, multiplier[lanes], 0))
    found: list[np.ndarray] = [np.concatenate(weights).astype(np.int8)]
    found.append(np.concatenate([*starts, np.zeros(ZEROS)]).astype(np.int32))
    return [*found, np.concatenate(scales).astype(np.float32)] if scales else found


def _order(group: Group, config: dict[str, Any]) -> np.ndarray:
    """The channels of a group's lanes in the order of its sums, -1 for those that are padding."""
    lane = np.arange(group.lanes).reshape(-1, _TAPS, 4).transpose(1, 0, 2).reshape(-1)
    if config["flat"]:
        return np.asarray(lane % config["channels"])
    return np.where(lane < group.valid, group.first + lane, -1)


def _cycles(region: Region, config: dict[str, Any], groups: Sequence[Group]) -> float:
    machine, rows, pair = region.machine, config["rows"], config["pair"]
    line, point, windows = config["line"], config["point"], config["windows"]
    finish = 22 + 4 * epilogue_work(region)
    each = _TAPS / min(instruction(name).per_cycle for name in config["dots"].values())
    if config["sets"] is None:
        reads = (rows - 1) * line["stride"] + line["taps"]
        tile = reads * windows * (2 * pair + 6) / pair + rows * (line["taps"] * windows * each + finish)
    else:
        turns = point["stride"] * (1 + config["sets"] / point["extent"])
        tile = turns * 12 + rows * (point["taps"] * each + finish)
    outs = config["batch"] * line["extent"] * config["point"]["extent"]
    total = 0.0
    for group in groups:
        steps = outs * config["channels"] / group.lanes if config["flat"] else outs
        # a core with one full-width unit splits wide vectors over two
        half = machine.fma_ports == 1 and machine.vector_bytes == 64 and group.lanes < 64
        total += steps * tile / rows / (1.0 + machine.fma_ports * (2 if half else 1))
    copied = config["blocks"] * config["scratch"] * len(groups) * config["batch"] / 24
    return float(total + copied)


def emit(k: Any, config: dict[str, Any]) -> None:
    Emitter(k, config).run()


TEMPLATE = Template("dot_depthwise", ("conv_integer",), plan, {"dot_depthwise": emit})
