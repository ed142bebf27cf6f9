"""Depthwise convolution of 8-bit tensors where an instruction multiplies bytes to int16 (rows ``products.even`` and
``products.odd``: Helium's VMULLB and VMULLT).

Sixteen channels are taken at once, or several points of fewer channels. How many taps' products are added as int16 is
decided by the weights themselves: the largest sum that they can make must fit. The lines that a line of results reads
lie in scratch with their border; what the next line needs of them stays there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.integers import NARROW
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _helium_depthwise
from ._helium_dot import STEP
from ._numbers import Numbers
from ._tile import GHZ, coordinates_matter, fits
from .conv import Geometry
from .dot_depthwise import absorbed, used_inputs
from .helium_dot import copied_lines, lead

_ROWS = {
    "even": "products.even",
    "odd": "products.odd",
    "half.even": "narrow.even.int16",
    "half.odd": "narrow.odd.int16",
}
_MOST_TAPS = 64  # which are written out


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine has the instructions, weights, bias and multipliers are known, and channels are
    adjacent."""
    if region.op != "conv_integer" or region.machine.instruction("products.even") is None or not fits(region):
        return []
    at = [region.operand(i) for i in range(3)]
    if at[0] is None or at[1] is None or region.anchor_type.rank > 4 or region.anchor_type.dtype != "int32":
        return []
    w, bias = region.inputs[at[1]], None if at[2] is None else region.inputs[at[2]]
    if w.const is None or w.type.dtype != "int8" or (bias is not None and bias.const is None):
        return []
    g = Geometry(region)
    wide = any(o.strides[1] != 1 for o in (g.x, *region.outputs)) or any(s < 0 for s in g.x.strides)
    if g.depth != 1 or g.columns != 1 or wide or g.x.type.dtype not in NARROW or np.prod(g.kernel) > _MOST_TAPS:
        return []
    program, multiplier = absorbed(region, serialize(region), [])
    return [] if multiplier is None or g.group == 1 else [_plan(region, g, program, multiplier)]


def _plan(region: Region, g: Geometry, program: dict[str, Any], multiplier: np.ndarray) -> Plan:
    assert g.w.const is not None
    channels, rank = g.group, region.anchor_type.rank
    reads = used_inputs(program)
    copy, scratch = copied_lines(g)
    flip = 128 if copy["flip"] else 0
    numbers = Numbers()
    program = numbers.program(program)
    copy["zero"] = numbers.put(region.attrs["zero_point"] - flip)
    flat = channels if _flat(region, g, reads) else 0
    taps = [
        [y, x * g.dilations[2] * channels] for y in range(g.kernel[1]) for x in range(g.kernel[2])
    ]  # line, bytes from the first point
    weights = g.w.const.reshape(channels, -1).astype(np.int64)
    bias = region.operand(2)
    starts = -(region.attrs["zero_point"] - flip) * weights.sum(axis=1)
    if bias is not None:
        starts = starts + np.asarray(region.inputs[bias].const, np.int64)
    words = (starts & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    lanes = [_lanes(v, channels, flat) for v in (weights.astype(np.int8), words, multiplier.astype(np.float32))]
    consts = (
        np.ascontiguousarray(lanes[0].transpose(0, 2, 1)).reshape(-1),
        *(np.ascontiguousarray(v[:, _ORDER]).reshape(-1) for v in lanes[1:]),
        numbers.array,
    )
    kinds = {**_ROWS, **{f"byte.{half}": f"narrow.{half}.{program['rescale']['to']}" for half in ("even", "odd")}}
    rows = {name: region.machine.instruction(kind) for name, kind in {**kinds, "round": "round"}.items()}
    config: dict[str, Any] = {
        "program": program,
        "reads": reads,
        "rows": {name: row.name for name, row in rows.items() if row is not None},
        "a": {"dtype": g.x.type.dtype, "span": g.x.span},
        "spans": [c.size for c in consts],
        "batch": {"extent": g.batch, "a": g.x.strides[0]},
        "line": {"extent": g.out[1]},
        "point": {"extent": g.out[2], "a": g.strides[2] * channels, "flat": flat},
        "axes": {"rank": rank, "line": rank - 2 if rank == 4 else None, "point": rank - 1},
        "taps": taps,
        "sums": sums_that_fit(weights),
        "full": 1 if flat else channels // STEP,
        "rest": 0 if flat else channels % STEP,
        "copy": copy,
        "scratch": scratch,
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
        "outer": [{"extent": config["batch"]["extent"], "a": config["batch"]["a"], "axis": 0}],
        "line": config["line"],
        "point": {**config["point"], "block": config["point"]["extent"]},
        "axes": {**config["axes"], "column": 1},
        "columns": {"count": region.anchor_type.dims[1]},
        "copy": config["copy"],
    }
    found = lead(region, walk)
    taps, sums = len(config["taps"]), len(config["sums"])
    each = 0.5 * (6 * taps + 6 * sums + 35)  # in the scale of depthwise's estimates, which are low for integers
    lines = config["batch"]["extent"] * config["line"]["extent"]
    vectors = -(-config["point"]["extent"] * config["point"]["flat"] // STEP)
    vectors = vectors or config["point"]["extent"] * (config["full"] + bool(config["rest"]))
    cycles = lines * (vectors * each + config["copy"]["bytes"] * config["copy"]["line"]["taps"] / 4)
    return Plan(
        "helium_depthwise",
        (Draft(KernelSpec("helium_depthwise", config), args),),
        cost=cycles / GHZ + 50,
        consts=consts,
        worker_bytes=config["scratch"],
        overlaps=() if found is None else ((region.operand(0) or 0, 0, found),),
        detail=f"depthwise by 16, {config['sums']} taps",
    )


_ORDER = np.array([(i % 4) * 4 + (0, 2, 1, 3)[i // 4] for i in range(STEP)])  # every fourth channel in one vector


def _lanes(values: np.ndarray, channels: int, flat: int) -> np.ndarray:
    """``[channels, ...]`` as ``[group, 16, ...]``: padded, or repeated for each point of a vector."""
    if flat:
        return np.concatenate([values] * (STEP // flat))[None]
    padded = np.zeros((-(-channels // STEP) * STEP, *values.shape[1:]), values.dtype)
    padded[:channels] = values
    return padded.reshape(-1, STEP, *values.shape[1:])


def _flat(region: Region, g: Geometry, reads: list[int]) -> bool:
    """Whether neighbouring points of few channels can be one vector."""
    few = g.group < STEP and STEP % g.group == 0 and g.strides[2] == 1 and not reads
    dense = all(o.strides[-1] == g.group for o in region.outputs)
    return few and dense and not coordinates_matter(region)


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
