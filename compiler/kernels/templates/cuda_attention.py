"""Attention as one kernel on a GPU: on the tensor cores, or by FMA (``_cuda_attention``) for few queries, for doubles
and exact numbers.
"""

from __future__ import annotations

import math
from typing import Any

from ....targets.gpu import Gpu
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_attention import WARP, emit_join, emit_rows
from ._cuda_cost import Load, nanoseconds

_MIXED = 32  # sums of mixed values that a thread has
_JOIN = 128  # threads of a block that joins parts
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def plan(region: Region) -> list[Plan]:
    """Plans where nothing but the result's work is fused, and where the values' rows fit a warp's registers."""
    found = _described(region)
    return [] if found is None else [p for p in (_by_rows(region, found),) if p is not None]


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
        plain=heads * pairs * (10.0 + config["width"] / config["rows"]),
        far=sum(o.type.nbytes for o in (*region.inputs, *region.outputs)),
        near=again,
        in_flight=32.0,
    )


TEMPLATE = Template(
    "cuda_attention",
    ("attention",),
    plan,
    {"cuda_attention.rows": emit_rows, "cuda_attention.join": emit_join},
    device=True,
)
