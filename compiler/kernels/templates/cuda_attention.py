"""Attention as one kernel on a GPU: on the tensor cores, or by FMA (``_cuda_attention``) for few queries, for doubles
and exact numbers.
"""

from __future__ import annotations

import math
from typing import Any

from ....targets.gpu import Gpu, Matrix
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from ._cuda_attention import WARP, emit_join, emit_rows
from ._cuda_attention_mma import emit_mma
from ._cuda_cost import Load, nanoseconds

_WARPS = 4  # of a block on the tensor cores
_TURN = 1500  # cycles that a turn waits for its keys and values
_OTHER = 64  # registers of a thread beside operands, scores and sums
_REGISTERS = 208  # that a thread should have at most, by that estimate
_MIXED = 32  # sums of mixed values that a thread has
_SCATTERED = 16.0  # instructions that a load of 16 bytes by lanes that lie apart takes the time of, an element
_JOIN = 128  # threads of a block that joins parts
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def plan(region: Region) -> list[Plan]:
    """Plans where nothing but the result's work is fused, and where the values' rows fit a warp's registers."""
    found = _described(region)
    return [] if found is None else [p for p in (_by_rows(region, found), _by_tiles(region, found)) if p is not None]


def _described(region: Region) -> dict[str, Any] | None:
    body, attrs = region.body, region.attrs
    args = body.args(region.anchor)  # type: ignore[arg-type]
    numbers = [region.operand(i) for i in range(len(args))]
    if any(n is None and a is not None for n, a in zip(numbers, args, strict=True)) or len(region.outputs) != 1:
        return None
    q, values = (body.type(args[i]) for i in (0, 2))  # type: ignore[arg-type]
    *lead, queries, depth = q.dims
    length, width = values.dims[-2:]
    if q.dtype not in _FLOATS or not all((*lead, queries, depth, length, width)):
        return None
    return {
        "program": serialize(region),
        "numbers": numbers,
        "lead": lead,
        "queries": queries,
        "depth": depth,
        "length": length,
        "width": width,
        "scale": float(attrs["scale"]),
        "causal": bool(attrs["causal"]),
        "softcap": float(attrs["softcap"] or 0.0),
        "exact": region.exact,
        "dtype": "float64" if q.dtype == "float64" else "float32",
        "parts": 1,
    }


def _args(region: Region) -> tuple[Arg, ...]:
    return (*(Arg("in", i) for i in range(len(region.inputs))), Arg("out"))


def _by_rows(region: Region, config: dict[str, Any]) -> Plan | None:
    """By FMA: few queries a block, keys shared out over its warps, and over blocks where there are few of these."""
    gpu = region.machine.gpu
    assert gpu is not None
    heads, columns, tiles = math.prod(config["lead"]), -(-config["width"] // WARP), -(-config["length"] // WARP)
    if columns > _MIXED:
        return None
    rows = min(8, config["queries"])
    while rows > 1 and (rows * columns > _MIXED or heads * -(-config["queries"] // rows) < gpu.multiprocessors):
        rows //= 2
    groups, warps = -(-config["queries"] // rows), min(4, tiles)
    parts = max(1, min(2 * gpu.multiprocessors // (heads * groups), tiles // warps))
    share = -(-tiles // parts)
    parts = -(-tiles // share)
    item = 8 if config["dtype"] == "float64" else 4
    held = heads * config["queries"] * parts * (config["width"] + 2)
    shared = warps * rows * (columns * WARP + 2) * item + rows * config["depth"] * item
    if shared + 64 > gpu.shared:
        return None
    blocks = heads * groups * parts
    own = {"rows": rows, "warps": warps, "groups": groups, "parts": parts, "share": share, "blocks": blocks}
    config = {**config, **own, "held": held, "join_threads": _JOIN}
    args = _args(region)
    cost = nanoseconds(gpu, _load(gpu, region, config, shared))
    spec = KernelSpec("cuda_attention.rows", config)
    if parts == 1:
        draft = Draft(spec, args, blocks)
        return Plan("cuda_attention", (draft,), cost, detail=f"attention by FMA, {rows} queries, {warps} warps")
    size = heads * config["queries"] * config["width"]
    drafts = (
        Draft(spec, (*args, Arg("shared")), blocks),
        Draft(KernelSpec("cuda_attention.join", config), (*args, Arg("shared")), -(-size // _JOIN)),
    )
    detail = f"attention by FMA, {rows} queries, {parts} parts of the keys"
    return Plan("cuda_attention", drafts, cost + 2 * gpu.launch * 1e9, shared_bytes=item * held, detail=detail)


def _by_tiles(region: Region, config: dict[str, Any]) -> Plan | None:
    """On the tensor cores, where registers hold the queries and the mix of values: the cheapest way to cut that."""
    gpu = region.machine.gpu
    assert gpu is not None
    item = config["program"]["inputs"][config["numbers"][0]]["dtype"]
    matrix = gpu.matrix({"float32": "tfloat32"}.get(item, item))
    if matrix is None or (config["exact"] and item == "float32"):
        return None
    ways = [_copies(region.inputs[n], 4 if item == "float32" else 8) for n in config["numbers"][1:3]]
    own = {"function": matrix.function, "step": matrix.k, "warps": _WARPS, "lanes": [lanes for lanes, _ in ways]}
    own["asynchronous"] = item != "float32" and all(a for _, a in ways)
    found = [
        (nanoseconds(gpu, load), keys, cut)
        for keys in (64, 32)
        for sides in (1, 2, 4)
        if (made := _cut(gpu, region, config, matrix, item, keys, sides)) is not None
        for cut, load in (made,)
    ]
    if not found:
        return None
    cost, _, cut = min(found, key=lambda f: (f[0], f[1], f[2]["sides"]))
    draft = Draft(KernelSpec("cuda_attention.mma", {**config, **own, **cut}), _args(region), cut["blocks"])
    detail = f"attention by {matrix.function}, {cut['rows']} queries, {cut['sides']} x {cut['keys']} keys"
    return Plan("cuda_attention", (draft,), cost, detail=detail)


def _cut(
    gpu: Gpu, region: Region, config: dict[str, Any], matrix: Matrix, item: str, keys: int, sides: int
) -> tuple[dict[str, Any], Load] | None:
    """Blocks of ``sides`` warps for each 16 queries that have ``keys`` keys at a time, and what they do."""
    half = item != "float32"
    deep = -(-config["depth"] // matrix.k) * matrix.k
    wide = -(-config["width"] // (16 if half else 8)) * (16 if half else 8)
    registers = 4 * deep // matrix.k + (wide + keys) // 2 + _OTHER
    lines = (deep + (8 if half else 4), wide + (8 if half else (4 - wide) % 16))
    rows, pairs = 16 * _WARPS // sides, config["queries"] * config["length"]
    groups, turns = -(-config["queries"] // rows), -(-config["length"] // (keys * sides))
    shared = keys * sides * sum(lines) * (2 if half else 4) + (sides > 1) * sides * rows * (wide + 10) * 4
    heads = math.prod(config["lead"])
    blocks = heads * groups
    if registers > _REGISTERS or shared + 64 > gpu.shared:
        return None
    own = {"deep": deep, "wide": wide, "keys": keys, "sides": sides, "rows": rows, "groups": groups, "blocks": blocks}
    own |= {"key_line": lines[0], "value_line": lines[1]}
    each = 16 * keys * (deep + wide)  # multiply-adds of a warp's turn
    load = Load(
        blocks=blocks,
        threads=_WARPS * WARP,
        registers=registers,
        shared=shared,
        macs=float(blocks * turns * _WARPS * each),
        rate=matrix.per_cycle,
        special=heads * pairs,
        plain=heads * pairs * 12.0,
        far=sum(o.type.nbytes for o in (*region.inputs, *region.outputs)),
        near=float(blocks * config["length"] * (deep + wide) * (2 if half else 4)),
        in_flight=64.0,
        chain=turns * (4 * each / matrix.per_cycle + 10.0 * keys + _TURN) + (sides - 1) * wide,
    )
    return own, load


def _copies(operand: Operand, lanes: int) -> tuple[int, bool]:
    """Elements of keys or values that are loaded at once, and whether they can be copied past the registers."""
    *outer, column = (s if d > 1 else 0 for s, d in zip(operand.strides, operand.type.dims, strict=True))
    if column != 1 or operand.type.dims[-1] % lanes:
        return 1, False
    return lanes, operand.aligned >= 16 and all(s % lanes == 0 for s in outer)


def _load(gpu: Gpu, region: Region, config: dict[str, Any], shared: int) -> Load:
    heads, pairs = math.prod(config["lead"]), config["queries"] * config["length"]
    again = config["groups"] * heads * config["length"] * (config["depth"] + config["width"]) * 4.0
    return Load(
        blocks=config["blocks"],
        threads=config["warps"] * WARP,
        registers=48 + 2 * config["rows"] * -(-config["width"] // WARP),
        shared=shared,
        macs=2.0 * heads * pairs * (config["depth"] + config["width"]) * (16 if config["dtype"] == "float64" else 1),
        special=2.0 * heads * pairs,
        plain=heads * pairs * (10.0 + (config["width"] + _SCATTERED * config["depth"]) / config["rows"]),
        far=sum(o.type.nbytes for o in (*region.inputs, *region.outputs)),
        near=again,
        in_flight=32.0,
    )


TEMPLATE = Template(
    "cuda_attention",
    ("attention",),
    plan,
    {"cuda_attention.mma": emit_mma, "cuda_attention.rows": emit_rows, "cuda_attention.join": emit_join},
    device=True,
)
