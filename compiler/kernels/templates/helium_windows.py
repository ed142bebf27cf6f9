"""Depthwise convolution of 8-bit tensors with kernels of up to 3x3, four outputs of a channel at a time.

Where an instruction adds sixteen products of bytes (row ``dot16``) and words can be gathered and scattered (Helium):
one gather brings the 4x4 bytes that four outputs see. See ``_helium_windows``. On a Cortex-M55 a gather of words takes
twice the time of a load, and a scatter of bytes four cycles: together less than the loads, products and sums of nine
taps that they replace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _helium_windows
from ._helium import ROWS, SMALL
from ._helium_windows import TABLE
from ._numbers import Numbers
from ._overlap import lead_of
from ._tile import GHZ, epilogue_inputs
from .conv import Geometry
from .dot_depthwise import absorbed, known_geometry, used_inputs

_STEP = 16
_FEW = 2  # tiles of a line that are written out: there, what is read for each channel counts
_MOST_KERNEL = 3


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine has the instructions, all constants are known, lines are runs of bytes, and nothing
    but the requantization follows."""
    g = known_geometry(region) if region.machine.instruction("dot16") is not None else None
    if g is None or region.anchor_type.rank != 4:
        return []
    program, multiplier = absorbed(region, serialize(region), [])
    if multiplier is None or not _walkable(region, g) or program["results"] != program["anchor"]:
        return []
    return [] if used_inputs(program) else [_plan(region, g, program, multiplier)]


def _walkable(region: Region, g: Geometry) -> bool:
    channels = g.group
    lies = g.x.strides[1] == 1 and g.step[2] == channels and min(g.x.strides) >= 0
    lies = lies and len(region.outputs) == 1 and region.outputs[0].strides[1] == 1
    high, wide = _tile(g)
    few = max(g.kernel) <= _MOST_KERNEL and g.out[1] >= high and g.out[2] >= wide
    plain = g.depth == g.columns == 1 < channels and g.x.type.dtype == "int8"
    steps = g.strides[1] == g.strides[2] and all(d == 1 for d in g.dilations)
    near = all(p < k for p, k in zip(g.pads, g.kernel, strict=True))
    return bool(lies and few and plain and steps and near and g.size[2] * channels >= _STEP)


def _tile(g: Geometry) -> tuple[int, int]:
    """Lines and points of four outputs, or of fewer where a line is shorter."""
    return (2, 2) if g.strides[1] == 1 else (1, min(4, g.out[2]))


def _plan(region: Region, g: Geometry, program: dict[str, Any], multiplier: np.ndarray) -> Plan:
    channels, out, numbers = g.group, region.outputs[0], Numbers()
    attrs = numbers.program(program)["rescale"]
    zero = numbers.put(region.attrs["zero_point"])
    # four lines of the points that windows of four see, and what lies right of a line that is narrower than its border
    points = max((g.out[2] - 1) * g.strides[2] + 4, g.size[2] + g.pads[2])
    high, wide = _tile(g)
    scratch = -(-points * channels * 4 // _STEP) * _STEP
    shape = _shape(g, out.strides, scratch)
    each = 8 * shape["chunks"] + channels * (32 + (18 if high > 1 else 22) * -(-g.out[2] // wide))
    work = g.batch * shape["rows"] * each
    known: Iterable[str] = ("tiles", "back") if shape["back"] and shape["tiles"] <= _FEW else ()
    known = shape if known and work >= SMALL else known
    config: dict[str, Any] = {
        "rescale": attrs,
        "rows": {name: _row(region, kind) for name, kind in {"dot": "dot16", **ROWS}.items()},
        "zero": zero,
        "shape": {name: value if name in known else numbers.put(value) for name, value in shape.items()},
        "batch": {"extent": 1, "a": 0, "y": 0},
        "tile": [high, wide],
        "even": g.out[2] % wide == 0,
        "stride": g.strides[1],
        "pad": g.pads[1:],
        "numbers": len(numbers.values),
    }
    if g.batch > 1:
        config["batch"] = {"extent": g.batch, "a": g.x.strides[0], "y": out.strides[0]}
    consts = (_table(region, g, multiplier), numbers.array)
    args = (
        Arg("in", region.operand(0) or 0),
        *(Arg("const", i) for i in range(len(consts))),
        Arg("out", 0),
        Arg("worker", 0),
    )
    lead = _lead(region, g)
    return Plan(
        "helium_windows",
        (Draft(KernelSpec("helium_windows", config), args),),
        cost=0.5 * work / GHZ + 50,  # in the scale of helium_depthwise's estimates
        consts=consts,
        worker_bytes=scratch,
        overlaps=() if lead is None else ((region.operand(0) or 0, 0, lead),),
        detail="depthwise windows of 4x4",
    )


def _shape(g: Geometry, out: tuple[int, ...], scratch: int) -> dict[str, int]:
    """What tells layers of one kernel apart; ``out``: strides of the result."""
    high, wide = _tile(g)
    return {
        "clear": scratch // _STEP,
        "rows": -(-g.out[1] // high),
        "high": g.out[1] - high,
        "tiles": g.out[2] // wide,
        "back": -g.out[2] % wide,
        "size": g.size[1],
        "line": g.step[1],
        "to": out[2],
        "point": out[3],
        "chunks": -(-g.size[2] * g.group // _STEP),
        "last": g.size[2] * g.group - _STEP,
        "channels": g.group,
    }


def _row(region: Region, kind: str) -> str:
    found = region.machine.instruction(kind)
    assert found is not None
    return found.name


def _table(region: Region, g: Geometry, multiplier: np.ndarray) -> np.ndarray:
    """Each channel's weights, a word a column of the kernel, then what its sums begin with and its multiplier."""
    assert g.w.const is not None
    channels, bias = g.group, region.operand(2)
    w = g.w.const.reshape(channels, *g.kernel[1:])
    words = np.zeros((channels, _MOST_KERNEL, 4), np.int8)
    words[:, : w.shape[2], : w.shape[1]] = w.transpose(0, 2, 1)
    starts = -region.attrs["zero_point"] * w.astype(np.int64).sum(axis=(1, 2))
    if bias is not None:
        starts = starts + np.asarray(region.inputs[bias].const, np.int64)
    table = np.zeros((channels, TABLE), np.int32)
    table[:, :3] = words.reshape(channels, -1).view(np.int32)
    table[:, 3] = (starts & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    table[:, 4] = multiplier.astype(np.float32).view(np.int32)
    return np.concatenate([table.reshape(-1), np.zeros(4, np.int32)])  # the last weights are read as four words


def _lead(region: Region, g: Geometry) -> int | None:
    out = region.outputs[0]
    if min([*g.x.strides, *out.strides]) < 0 or out.type.itemsize != 1 or region.operand(0) in epilogue_inputs(region):
        return None
    (high, wide), lines = g.out[1:], _tile(g)[0]
    pieces, top = [], 0
    for n in range(g.batch):
        for row in range(-(-high // lines)):
            y = min(lines * row, high - lines)
            first = n * g.x.strides[0] + max(0, y * g.strides[1] - g.pads[1]) * g.step[1]
            last = (y + lines - 1) * out.strides[2] + (wide - 1) * out.strides[3]
            top = max(top, n * out.strides[0] + last + g.group)
            pieces.append((first, top))
    return lead_of(pieces, buffered=True)


TEMPLATE = Template("helium_windows", ("conv_integer",), plan, {"helium_windows": _helium_windows.emit})
