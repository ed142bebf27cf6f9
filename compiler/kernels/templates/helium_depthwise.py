"""Depthwise convolution of 8-bit tensors where bytes are loaded as int16 and narrowed in halves (rows ``narrow``:
Helium).

How many taps' products are added as int16 is decided by the weights themselves: the largest sum that they can make must
fit. See ``_helium_depthwise``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...ops.integers import NARROW
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _helium_depthwise, helium_windows
from ._helium_depthwise import HEAD, LANES
from ._numbers import Numbers
from ._tile import GHZ
from .conv import Geometry
from .dot_depthwise import absorbed, known_geometry, used_inputs
from .helium_dot import copied_lines, lead

_ROWS = {"even": "narrow.even.int16", "odd": "narrow.odd.int16"}
_MOST_TAPS = 64  # which are written out
_OWN = 6000  # instructions that these 1.5 KB for one shape must save where there is a kernel that layers share


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine has the instructions, weights, bias and multipliers are known, and channels are
    adjacent."""
    g = known_geometry(region) if region.machine.instruction(_ROWS["even"]) is not None else None
    if g is None:
        return []
    wide = any(o.strides[1] != 1 for o in (g.x, *region.outputs)) or any(s < 0 for s in g.x.strides)
    if g.depth != 1 or g.columns != 1 or wide or g.x.type.dtype not in NARROW or math.prod(g.kernel) > _MOST_TAPS:
        return []
    program, multiplier = absorbed(region, serialize(region), [])
    return [] if multiplier is None or g.group == 1 else [_plan(region, g, program, multiplier)]


def _plan(region: Region, g: Geometry, program: dict[str, Any], multiplier: np.ndarray) -> Plan:
    assert g.w.const is not None
    channels, rank, groups = g.group, region.anchor_type.rank, -(-g.group // LANES)
    reads = used_inputs(program)
    copy = copied_lines(g)[0]
    copy["bytes"] = copy["point"]["count"] * LANES
    flip = 128 if copy["flip"] else 0
    numbers = Numbers()
    program = numbers.program(program)
    copy["zero"] = numbers.put(region.attrs["zero_point"] - flip)
    weights = g.w.const.reshape(channels, -1).astype(np.int64)
    consts = (_table(region, weights, region.attrs["zero_point"] - flip, multiplier), numbers.array)
    kinds = {**_ROWS, "byte": f"narrow.even.{program['rescale']['to']}", "round": "round"}
    rows = {name: region.machine.instruction(kind) for name, kind in kinds.items()}
    plane = g.kernel[1] * copy["bytes"]
    config: dict[str, Any] = {
        "program": program,
        "reads": reads,
        "rows": {name: row.name for name, row in rows.items() if row is not None},
        "a": {"dtype": g.x.type.dtype, "span": g.x.span},
        "spans": [c.size for c in consts],
        "batch": {"extent": g.batch, "a": g.x.strides[0]},
        "line": {"extent": g.out[1]},
        "point": {"extent": g.out[2], "stride": g.strides[2]},
        "axes": {"rank": rank, "line": rank - 2 if rank == 4 else None, "point": rank - 1},
        "taps": [[y, x * g.dilations[2]] for y in range(g.kernel[1]) for x in range(g.kernel[2])],
        "sums": sums_that_fit(weights),
        "channels": channels,
        "groups": groups,
        "table": consts[0].size // groups,
        "plane": plane,
        "copy": copy,
        "scratch": groups * plane,
    }
    return _finished(region, config, consts)


def _finished(region: Region, config: dict[str, Any], consts: tuple[np.ndarray, ...]) -> Plan:
    args = (
        Arg("in", region.operand(0) or 0),
        *(Arg("const", i) for i in range(len(consts))),
        *(Arg("in", i) for i in config["reads"]),
        *(Arg("out", j) for j in range(len(region.outputs))),
        Arg("worker", 0),
    )
    walk = {
        "outer": [{**config["batch"], "axis": 0}],
        "line": config["line"],
        "point": {**config["point"], "block": config["point"]["extent"]},
        "axes": {**config["axes"], "column": 1},
        "columns": {"count": config["channels"]},
        "copy": config["copy"],
    }
    found = lead(region, walk)
    return Plan(
        "helium_depthwise",
        (Draft(KernelSpec("helium_depthwise", config), args),),
        cost=(_cycles(config) + (0.5 * _OWN if helium_windows.plan(region) else 0)) / GHZ + 50,
        consts=consts,
        worker_bytes=config["scratch"],
        overlaps=() if found is None else ((region.operand(0) or 0, 0, found),),
        detail=f"depthwise 2x{LANES}, {config['sums']} taps",
    )


def _cycles(config: dict[str, Any]) -> float:
    """Instructions, halved: in the scale of the estimates of ``depthwise``, which are low for integers."""
    taps, sums = len(config["taps"]), len(config["sums"])
    vectors = config["groups"] * config["point"]["extent"]
    each = 4.5 * taps + 3 * sums + 16
    copied = 3 * config["groups"] * config["copy"]["inside"] * min(config["copy"]["line"]["stride"], taps)
    return float(
        0.5 * config["batch"]["extent"] * config["line"]["extent"] * (vectors * each + copied + 40 * config["groups"])
    )


def _table(region: Region, weights: np.ndarray, zero: int, multiplier: np.ndarray) -> np.ndarray:
    """What each group of channels needs: ``[group][starts, multipliers, taps]``, the first two with even channels
    before odd ones; as bytes."""
    channels, taps = weights.shape
    bias = region.operand(2)
    starts = -zero * weights.sum(axis=1)
    if bias is not None:
        starts = starts + np.asarray(region.inputs[bias].const, np.int64)
    words = (starts & 0xFFFFFFFF).astype(np.uint32)
    parts = []
    for values in (words, multiplier.astype(np.float32), weights.astype(np.int8)):
        padded = np.zeros((-(-channels // LANES) * LANES, *values.shape[1:]), values.dtype)
        padded[:channels] = values
        own = padded.reshape(-1, LANES, *values.shape[1:])
        own = own.transpose(0, 2, 1) if own.ndim == 3 else np.concatenate([own[:, 0::2], own[:, 1::2]], axis=1)
        parts.append(np.ascontiguousarray(own).reshape(len(own), -1).view(np.int8))
    table = np.concatenate(parts, axis=1)
    assert table.shape[1] == HEAD + taps * LANES
    return table.reshape(-1)


def sums_that_fit(weights: np.ndarray) -> list[int]:
    """How many taps of ``[channels, taps]`` are added as int16 one after another: as few sums as possible, of which
    none can leave the type for any bytes."""
    taps = weights.shape[1]
    for parts in range(1, taps + 1):
        found = np.array_split(np.arange(taps), parts)
        if all(_fits(weights[:, part]) for part in found):
            return [len(part) for part in found]
    raise AssertionError("a product of bytes fits an int16")


def _fits(weights: np.ndarray) -> bool:
    up, down = np.clip(weights, 0, None).sum(axis=1), -np.clip(weights, None, 0).sum(axis=1)
    return bool((127 * up + 128 * down < 1 << 15).all() and (128 * up + 127 * down <= 1 << 15).all())


TEMPLATE = Template("helium_depthwise", ("conv_integer",), plan, {"helium_depthwise": _helium_depthwise.emit})
