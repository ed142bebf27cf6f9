"""Products of 8-bit matrices with constant weights, by instructions that fold neighbouring bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from . import _dot
from ._dot_plan import NARROW, Kit, Tile, Walk, Work, choose, configuration, epilogue_cost, finished, folded, kit
from ._tile import epilogue_inputs, fits
from .matmul import Product, product


def plan(region: Region) -> list[Plan]:
    """One plan, where a row of A is one run of bytes and B is constant."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    reads = epilogue_inputs(region)
    p = product(region, reads)
    found = kit(region.machine, p.a.type.dtype) if p.a.type.dtype in NARROW else None
    if found is None or p.b.const is None or p.column is None or p.depth < found.fold or p.a_step != 1:
        return []
    weights = folded(matrix(region, p), found.fold, overlap=True)
    if weights is None:
        return []
    times = math.prod(o.extent for o in p.outer)
    walk = Walk(1, p.rows.extent, (), p.depth, overlap=True, step=abs(p.rows.a), line_bytes=p.rows.extent * p.depth)
    work = Work(p.columns, times, epilogue_cost(region), weights.offset is not None)
    tile = choose(region.machine, found, walk, work)
    config = described(region, p, found, walk, tile) | {"reads": reads}
    return [finished(region, found, tile, config, weights, "dot_matmul", region.attrs["zero_point"])]


def described(region: Region, p: Product, found: Kit, walk: Walk, tile: Tile) -> dict[str, Any]:
    """A kernel's configuration, but for what its weights add."""
    steps, packed = -(-p.depth // found.fold) * found.fold, tile.columns.packed
    b_axes = [o for o in p.outer if o.b]
    panels = {id(o): math.prod(q.extent for q in b_axes[i + 1 :]) for i, o in enumerate(b_axes)}
    outer = [
        {
            "extent": o.extent,
            "a": o.a,
            "b": panels.get(id(o), 0) * steps * packed,
            "start": panels.get(id(o), 0) * packed,
            "column": 0,
            "axis": o.out,
            "scratch": 0,
        }
        for o in p.outer
    ]
    return configuration(region, found, walk, tile, outer) | {
        "a": {"dtype": p.a.type.dtype, "as": found.dtype, "flip": found.flip, "span": p.a.span, "base": 0},
        "line": {"extent": 1, "a": 0, "scratch": 0},
        "point": {"extent": p.rows.extent, "a": p.rows.a, "scratch": 0},
        "axes": {"rank": region.anchor_type.rank, "line": None, "point": p.rows.out, "column": p.column},
    }


def matrix(region: Region, p: Product) -> np.ndarray:
    """B as ``[panel, 1, depth, columns]`` without its zero point."""
    assert p.b.const is not None
    wide = p.b.const.astype(np.int32) - np.int32(region.attrs["b_zero_point"])
    return np.asarray(wide.reshape(-1, 1, p.depth, p.columns))


TEMPLATE = Template("dot_matmul", ("matmul_integer",), plan, {"dot_matmul": _dot.emit})
