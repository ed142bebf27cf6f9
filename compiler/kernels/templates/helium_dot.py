"""Products of 8-bit matrices, and convolutions of 8-bit tensors, where an instruction adds sixteen products to one
number (row ``dot16``: Helium's VMLADAVA).

Constant weights are packed ``[group of columns][step][column][16 bytes]``; bytes that a run leaves over have weights
of zero. A line of results reads A where it lies (``direct``) or, where it has a border or runs shorter than a step,
a copy of the lines that it needs (``lines``); runs so short that they would waste most of a step are laid side by side
for each point (``columns``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ops.integers import NARROW
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from . import _helium_dot, _helium_live, _helium_plain
from ._dot_plan import folded
from ._helium import SMALL
from ._helium_dot import FEW, GROUP, REACH, STEP
from ._helium_plain import MOST
from ._numbers import Numbers
from ._overlap import lead_of
from ._tile import GHZ, epilogue_inputs, epilogue_work, fits, inplace_pairs
from .conv import Geometry
from .helium_live import Live, live_columns
from .matmul import product

_BLOCK = 64  # points that are taken for all columns before the next ones
_SLACK = STEP  # bytes behind the scratch that are read or written


@dataclass
class Walk:
    """Outer axes, lines and points of the result, each with its step in A (``point`` in scratch, where that is read),
    and the bytes that a point reads: ``run`` for each of the ``taps`` (extent, step)."""

    outer: list[dict[str, Any]]
    line: dict[str, Any]
    point: dict[str, Any]
    taps: list[list[int]]
    run: int
    axes: dict[str, Any]
    copy: dict[str, Any] | None = None
    scratch: int = 0
    order: tuple[int, ...] = field(default=())  # axes of weights [column, depth, taps] as they are walked

    @property
    def overlap(self) -> bool:
        return self.copy is None

    @property
    def form(self) -> str:
        return "direct" if self.copy is None else "columns" if self.copy["gather"] else "lines"

    @property
    def steps(self) -> int:
        return math.prod(t for t, _ in self.taps) * -(-self.run // STEP)


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine has the instruction, weights and bias are known, and channels are adjacent."""
    row = region.machine.instruction("dot16")
    if row is None or not fits(region) or region.anchor_type.dtype != "int32":
        return []
    at = [region.operand(i) for i in range(3)]
    if at[0] is None or at[1] is None or region.inputs[at[1]].const is None:
        return []
    if at[2] is not None and region.inputs[at[2]].const is None:
        return []
    found = _conv(region) if region.op == "conv_integer" else _matmul(region)
    if found is None or any(o.strides[found[0].axes["column"]] != 1 for o in region.outputs):
        return []
    walk, weights = found
    packed = folded(weights, STEP, walk.overlap)
    if packed is None or packed.offset is not None:
        return []
    live = live_columns(region, weights)
    kinds = [None] if live is None or live.whole else [None, live]
    made = [_plan(region, row.name, walk, packed, only) for only in kinds]
    if live is not None and _plain(walk, live) and min(p.cost for p in made) * GHZ / 2 < SMALL:
        return [_plain_plan(region, row.name, walk, packed, live)]
    return made


# -- walks ---------------------------------------------------------------------------------------------------------


def _matmul(region: Region) -> tuple[Walk, np.ndarray] | None:
    p = product(region, epilogue_inputs(region))
    if p.column is None or p.a_step != 1 or p.depth < STEP or any(o.b for o in p.outer) or p.a.type.dtype != "int8":
        return None
    assert p.b.const is not None
    walk = Walk(
        [{"extent": o.extent, "a": o.a, "axis": o.out} for o in p.outer],
        {"extent": 1, "a": 0},
        {"extent": p.rows.extent, "a": p.rows.a},
        [],
        p.depth,
        {"rank": region.anchor_type.rank, "line": None, "point": p.rows.out, "column": p.column},
    )
    wide = p.b.const.astype(np.int64) - region.attrs["b_zero_point"]
    return walk, wide.reshape(1, 1, p.depth, p.columns)


def _conv(region: Region) -> tuple[Walk, np.ndarray] | None:
    g = Geometry(region)
    x, rank = g.x, region.anchor_type.rank
    adjacent = x.strides[1] == 1 or g.channels == 1
    if g.group != 1 or rank > 4 or x.type.dtype not in NARROW or not adjacent or any(s < 0 for s in x.strides):
        return None
    assert g.w.const is not None
    reads = epilogue_inputs(region)
    plain = x.type.dtype == "int8" and not (g.border(1) or g.border(2))
    whole = g.step[2] == g.channels and g.dilations[2] == 1  # a line of taps is one run
    flat = plain and g.channels >= STEP and g.flat(region, reads)
    if flat:
        g.flatten()
    axes = {"rank": rank, "line": rank - 2 if rank == 4 and not flat else None, "point": rank - 1, "column": 1}
    outer = [{"extent": g.batch, "a": x.strides[0], "axis": 0}]
    run = g.channels * (g.kernel[2] if whole else 1)
    if plain and run >= STEP:
        taps = [[g.kernel[1], g.dilations[1] * g.step[1]]]
        taps += [] if whole else [[g.kernel[2], g.dilations[2] * g.step[2]]]
        line = {"extent": g.out[1], "a": g.strides[1] * g.step[1]}
        point = {"extent": g.out[2], "a": g.strides[2] * g.step[2]}
        walk = Walk(outer, line, point, [t for t in taps if t[0] > 1], run, axes)
    else:
        walk = _copied(g, outer, axes)
    w = g.w.const.astype(np.int64).reshape(g.columns, g.depth, -1).transpose(2, 1, 0)  # [taps, depth, columns]
    return walk, w.reshape(1, math.prod(t for t, _ in walk.taps), walk.run, g.columns)


def copied_lines(g: Geometry) -> tuple[dict[str, Any], int]:
    """The lines that a line of results reads, with their border, and the bytes of scratch that they take."""
    width = g.channels
    count = (g.out[2] - 1) * g.strides[2] + (g.kernel[2] - 1) * g.dilations[2] + 1
    lines = {"taps": g.kernel[1], "stride": g.strides[1], "dilation": g.dilations[1], "pad": g.pads[1]}
    copy: dict[str, Any] = {
        "line": {**lines, "size": g.size[1], "a": g.step[1], "border": g.border(1)},
        "point": {"count": count, "pad": min(count, g.pads[2]), "a": g.step[2], "stride": g.strides[2]},
        "channels": width,
        "bytes": count * width,
        "inside": max(0, min(g.size[2], count - g.pads[2])),
        "flip": g.x.type.dtype == "uint8",
        "gather": None,
    }
    return copy, g.kernel[1] * count * width + _SLACK


def _copied(g: Geometry, outer: list[dict[str, Any]], axes: dict[str, Any]) -> Walk:
    """A copy of the lines, and each point's bytes side by side where that takes less."""
    copy, scratch = copied_lines(g)
    width, whole = g.channels, g.dilations[2] == 1
    run = width * (g.kernel[2] if whole else 1)
    taps = [[g.kernel[1], copy["bytes"]]] + ([] if whole else [[g.kernel[2], g.dilations[2] * width]])
    taps = [t for t in taps if t[0] > 1]
    apart = math.prod(t for t, _ in taps)
    depth = apart * run
    line, point = {"extent": g.out[1], "a": 0}, {"extent": g.out[2], "a": g.strides[2] * width}
    if taps and depth / STEP < 0.7 * apart * -(-run // STEP):
        padded, base = -(-depth // STEP) * STEP, -(-scratch // STEP) * STEP
        copy["gather"] = {"base": base, "taps": taps, "run": run}
        point["a"], taps, run = padded, [], depth
        scratch = base + g.out[2] * padded + _SLACK
    return Walk(outer, line, point, taps, run, axes, copy, scratch)


# -- plans ---------------------------------------------------------------------------------------------------------


def _plan(region: Region, row: str, walk: Walk, weights: Any, live: Live | None = None) -> Plan:
    columns = weights.sums.shape[1]
    tile, numbers = min(2, walk.point["extent"]), Numbers()
    program = numbers.program(serialize(region) if live is None else live.program)
    if walk.copy is not None:
        flip = 128 if walk.copy["flip"] else 0
        walk.copy["zero"] = numbers.put(region.attrs["zero_point"] - flip)
    else:
        flip = 0
    run = _run(walk)
    looped = walk.taps or run["steps"] - run["late"] > run["each"]
    # numbers that LLVM is not to know: see ``_helium_dot``
    one = numbers.put(1) if looped and tile > 1 else None
    jump = numbers.put(REACH * STEP) if run["each"] > FEW else None
    starts = _starts(region, weights, flip)
    if live is None:
        consts, reads = (_packed(weights.steps), _grouped(starts), numbers.array), epilogue_inputs(region)
        kinds, spans = {}, [c.size for c in consts]
    else:
        kinds = live.config(region, walk, numbers)
        consts, reads = (_packed(weights.steps[..., live.columns]), live.table(starts), numbers.array), []
        spans = [1, 1, numbers.array.size]
    block = min(walk.point["extent"], _BLOCK)
    config: dict[str, Any] = {
        "program": program,
        "reads": reads,
        "row": row,
        "a": {"dtype": _a(region).type.dtype, "span": _a(region).span},
        "spans": spans,
        "outer": walk.outer,
        "line": walk.line,
        "point": walk.point | {"block": block},
        "taps": walk.taps,
        "run": run,
        "depth": walk.steps * STEP,
        "tile": tile,
        "columns": {"count": columns},
        "one": one,
        "jump": jump,
        "axes": walk.axes,
        "copy": walk.copy,
        "scratch": walk.scratch,
        **kinds,
    }
    found = lead(region, config)
    kind, worked = ("helium_dot", columns) if live is None else ("helium_dot.live", live.columns.size)
    args = _args(region, len(consts), reads, walk.scratch)
    return Plan(
        "helium_dot",
        (Draft(KernelSpec(kind, config), args),),
        cost=_cycles(region, config, worked) / GHZ + 50,
        consts=consts,
        worker_bytes=walk.scratch,
        inplace=inplace_pairs(region),
        overlaps=() if found is None else ((region.operand(0) or 0, 0, found),),
        detail=f"dot16 {tile}x{GROUP} {walk.form}" + (f", {worked} of {columns}" if live else ""),
    )


def _args(region: Region, consts: int, reads: list[int], scratch: int) -> tuple[Arg, ...]:
    return (
        Arg("in", region.operand(0) or 0),
        *(Arg("const", i) for i in range(consts)),
        *(Arg("in", i) for i in reads),
        *(Arg("out", j) for j in range(len(region.outputs))),
        *([Arg("worker", 0)] if scratch else []),
    )


def _plain(walk: Walk, live: Live) -> bool:
    """Whether points are one run of bytes each, side by side."""
    outer = math.prod(o["extent"] for o in walk.outer) * walk.line["extent"]
    runs = walk.copy is None and not walk.taps and walk.run == walk.point["a"]
    return runs and outer == 1 < walk.point["extent"] and len(live.multiplier) <= MOST


def _plain_plan(region: Region, row: str, walk: Walk, weights: Any, live: Live) -> Plan:
    """The plan of the kernel that layers of one depth share."""
    points, columns, numbers, run = walk.point["extent"], len(live.multiplier), Numbers(), _run(walk)
    block = min(points, _BLOCK)
    shape = {
        "points": points,
        "block": block,
        "blocks": -(-points // block),
        "groups": live.columns.size // GROUP,
        "to": region.outputs[0].strides[walk.axes["point"]],
        "chunks": 0 if live.whole else -(-columns // STEP),
        "last": (columns - STEP) // 4,
        "head": 0 if live.whole else columns // 4,
    }
    config: dict[str, Any] = {
        "rescale": numbers.program(live.program)["rescale"],
        "rows": live.rows(region),
        "row": row,
        "shape": {name: numbers.put(value) for name, value in shape.items()},
        "point": {"a": walk.point["a"]},
        "taps": [],
        "run": run,
        "depth": walk.steps * STEP,
        "tile": 2,
        "odd": points % 2 > 0,
        "one": numbers.put(1) if run["steps"] - run["late"] > run["each"] else None,
        "jump": numbers.put(REACH * STEP) if run["each"] > FEW else None,
    }
    config["numbers"] = len(numbers.values)
    table = live.table(_starts(region, weights, 0), short=True)
    consts = (_packed(weights.steps[..., live.columns]), table, numbers.array)
    a = region.operand(0) or 0
    whole = {**vars(walk), **config, "columns": {"count": columns}, "point": {**walk.point, "block": block}}
    found = lead(region, whole)
    return Plan(
        "helium_dot",
        (
            Draft(
                KernelSpec("helium_dot.plain", config),
                (Arg("in", a), *(Arg("const", i) for i in range(3)), Arg("out", 0)),
            ),
        ),
        cost=_cycles(region, whole, live.columns.size) / GHZ + 50,
        consts=consts,
        overlaps=() if found is None else ((a, 0, found),),
        detail=f"dot16 2x{GROUP} plain" + ("" if live.whole else f", {live.columns.size} of {columns}"),
    )


def _run(walk: Walk) -> dict[str, Any]:
    """A run's bytes and steps; ``late``: the last step begins before the bytes that are left; ``each``: steps that are
    written out, all of them where that are eight or less and nothing is around them."""
    steps = -(-walk.run // STEP)
    late = walk.overlap and walk.run % STEP > 0
    whole = steps - late
    each = whole if whole == 8 and walk.point["extent"] > 1 else max(n for n in range(1, FEW + 1) if whole % n == 0)
    return {"bytes": walk.run, "steps": steps, "late": late, "each": each}


def _a(region: Region) -> Operand:
    return region.inputs[region.operand(0) or 0]


def _packed(steps: np.ndarray) -> np.ndarray:
    """``[1, taps, steps, 16, columns]`` as ``[group][taps, steps][column][16]``, read as words."""
    _, taps, each, _, columns = steps.shape
    padded = np.zeros((taps * each, STEP, -(-columns // GROUP) * GROUP), np.int8)
    padded[..., :columns] = steps.reshape(taps * each, STEP, columns)
    grouped = padded.reshape(taps * each, STEP, -1, GROUP).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(grouped).reshape(-1).view(np.int32)


def _starts(region: Region, weights: Any, flip: int) -> np.ndarray:
    """What each column's sum begins with: its bias, and what A's zero point adds to all products."""
    bias = region.operand(2)
    starts = -(region.attrs["zero_point"] - flip) * weights.sums.reshape(-1)
    if bias is not None:
        starts = starts + np.asarray(region.inputs[bias].const, np.int64).reshape(-1)
    return np.asarray((starts & 0xFFFFFFFF).astype(np.uint32).view(np.int32))


def _grouped(starts: np.ndarray) -> np.ndarray:
    """Zeros behind them, to whole groups."""
    return np.append(starts, np.zeros(-len(starts) % GROUP, np.int32))


def _cycles(region: Region, config: dict[str, Any], columns: int) -> float:
    """Two for each vector instruction: loads of both factors, products, the epilogue."""
    points = math.prod(o["extent"] for o in config["outer"]) * config["line"]["extent"] * config["point"]["extent"]
    groups, tile, steps = -(-columns // GROUP), config["tile"], config["depth"] // STEP
    each = steps * (tile + GROUP + tile * GROUP) + tile * (4 + 2 * epilogue_work(region)) + 4
    copied = float(config["scratch"] * config["line"]["extent"] / 4)
    if columns < config["columns"]["count"]:
        copied += 4.0 * points * -(-config["columns"]["count"] // STEP)
    return copied + float(2.0 * points / tile * groups * each)


# -- overlap -------------------------------------------------------------------------------------------------------


def blocks(config: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """``(outer indices, line, first point, points)`` of the blocks, as the kernel walks them."""
    extent, block = config["point"]["extent"], config["point"]["block"]
    for outer in np.ndindex(*(o["extent"] for o in config["outer"])):
        for y in range(config["line"]["extent"]):
            for first in range(0, extent, block):
                yield outer, y, first, min(block, extent - first)


def lead(region: Region, config: dict[str, Any]) -> int | None:
    """How far before A the output must start at least, so that each block is written over bytes that are not read
    any more; None where the memory's order is not that of the walk."""
    if len(region.outputs) != 1 or region.outputs[0].type.itemsize != 1 or region.operand(0) in epilogue_inputs(region):
        return None
    axes, out = config["axes"], region.outputs[0].strides
    steps = [out[o["axis"]] if o["axis"] is not None else 0 for o in config["outer"]]
    line, point = (0 if axes[n] is None else out[axes[n]] for n in ("line", "point"))
    if min([*steps, line, point, *(o["a"] for o in config["outer"])]) < 0:
        return None
    pieces, top = [], 0
    for outer, y, first, count in blocks(config):
        at = sum(i * o["a"] for i, o in zip(outer, config["outer"], strict=True))
        to = sum(i * s for i, s in zip(outer, steps, strict=True)) + y * line
        top = max(top, to + (first + count - 1) * point + config["columns"]["count"])
        pieces.append((at + _first_read(config, y, first), top))
    return lead_of(pieces, buffered=config["copy"] is not None)


def _first_read(config: dict[str, Any], y: int, first: int) -> int:
    copy = config["copy"]
    if copy is None:
        return int(y * config["line"]["a"] + first * config["point"]["a"])
    return int(max(0, y * copy["line"]["stride"] - copy["line"]["pad"]) * copy["line"]["a"])


TEMPLATE = Template(
    "helium_dot",
    ("conv_integer", "matmul_integer"),
    plan,
    {"helium_dot": _helium_dot.emit, "helium_dot.live": _helium_live.emit, "helium_dot.plain": _helium_plain.emit},
)
