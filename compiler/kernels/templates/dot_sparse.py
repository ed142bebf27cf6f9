"""Integer convolutions and products with constant weights many of which are zero.

How A is walked and copied is that of ``dot_conv`` and ``dot_matmul``; the steps that are left are walked by lists (see
``_dot_sparse``). Blocks of neighbours that are zero for a vector of columns are left out as they are; where each column
has its own zeros (N:M, unstructured) it picks its bytes from a window; where a vector of columns shares them, the bytes
that count are gathered first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from . import _dot_plan, _dot_sparse, dot_conv, dot_matmul
from ._dot_plan import NARROW, Kit, Tile, Walk, Weights, Work, epilogue_cost, finished, kit
from ._dot_sparse_plan import Choice, choose, described, lists
from ._sparse import DENSE, sampled_density
from ._tile import epilogue_inputs, fits
from .conv import Geometry
from .matmul import product

MOST_BYTES = 1.25  # of the dense weights: what time is worth
Configure = Callable[[Tile], dict[str, Any]]


def plan(region: Region) -> list[Plan]:
    """For constant weights with zeros in them, and sums of 32 bits; with less scratch too, where there is much."""
    operands = [region.operand(i) for i in (0, 1)]
    if not fits(region) or None in operands:
        return []
    x, w = (region.inputs[i] for i in operands if i is not None)
    found = kit(region.machine, x.type.dtype) if x.type.dtype in NARROW else None
    zero = region.attrs.get("b_zero_point", 0)
    if found is None or w.const is None or not w.const.size or region.attrs.get("group", 1) != 1:
        return []
    if sampled_density(w.const if zero == 0 else w.const != zero) > DENSE:
        return []
    return _conv(region, found) if region.op == "conv_integer" else _product(region, found)


def _conv(region: Region, kit: Kit) -> list[Plan]:
    g, reads = Geometry(region), epilogue_inputs(region)
    if 0 in g.kernel or not g.depth:
        return []
    copied = dot_conv.Copied(g) if dot_conv.must_copy(g, kit) else None
    if copied is None and g.flat(region, reads):
        g.flatten()
    walk = dot_conv.walk_of(g, kit, copied)
    work = Work(g.columns, g.batch * g.out[0], epilogue_cost(region), offset=False)
    matrix = dot_conv.matrix(g, copied)
    choice = _chosen(region, kit, walk, work, matrix)
    if choice is None:
        return []

    def configure(tile: Tile) -> dict[str, Any]:
        return dot_conv.described(region, g, kit, copied, walk, tile)

    tile, sums = choice.tile, matrix.sum(axis=(1, 2), dtype=np.int64)
    plans = [_plan(region, kit, walk, choice, sums, configure)]
    while g.out[1] > 1 and tile.block > 1 and plans[-1].worker_bytes > dot_conv.LEAST_SCRATCH:
        tile = replace(tile, block=-(-tile.block // 2), cycles=tile.cycles * 1.05)
        plans.append(_plan(region, kit, walk, replace(choice, tile=tile), sums, configure))
    return plans


def _product(region: Region, kit: Kit) -> list[Plan]:
    reads = epilogue_inputs(region)
    p = product(region, reads)
    if p.column is None or p.depth < kit.fold or p.a_step != 1 or any(o.b for o in p.outer):
        return []
    walk = Walk(1, p.rows.extent, (), p.depth, overlap=True, step=abs(p.rows.a), line_bytes=p.rows.extent * p.depth)
    work = Work(p.columns, math.prod(o.extent for o in p.outer), epilogue_cost(region), offset=False)
    matrix = dot_matmul.matrix(region, p)
    choice = _chosen(region, kit, walk, work, matrix)
    if choice is None:
        return []

    def configure(tile: Tile) -> dict[str, Any]:
        return dot_matmul.described(region, p, kit, walk, tile) | {"reads": reads}

    return [_plan(region, kit, walk, choice, matrix.sum(axis=(1, 2), dtype=np.int64), configure)]


def _chosen(region: Region, kit: Kit, walk: Walk, work: Work, matrix: np.ndarray) -> Choice | None:
    """How the weights ``[1, taps, run, columns]`` are taken, if that is cheaper than taking them all."""
    if len(matrix) != 1 or matrix.min(initial=0) < -128 or matrix.max(initial=0) > 127:
        return None
    dense = _dot_plan.choose(region.machine, kit, walk, work)
    narrow = matrix[0].astype(np.int8, copy=False)
    most = (1.0 if region.small else MOST_BYTES) * narrow.size
    return choose(region.machine, kit, walk, work, narrow, dense.cycles, most)


def _plan(region: Region, kit: Kit, walk: Walk, choice: Choice, sums: np.ndarray, configure: Configure) -> Plan:
    form, tile = choice.form, choice.tile
    config = configure(tile)
    packed = lists(form, tile.columns, config["taps"])
    described(config, region.machine, kit, form, packed)
    weights = Weights(np.zeros((1, 0, 0, kit.fold, sums.size), np.int8), sums)
    made = finished(region, kit, tile, config, weights, "dot_sparse", region.attrs["zero_point"], packed.arrays)
    name = f"picks of {form.kind.window}" if form.kind.window else f"steps of {form.fold}"
    name += f" gathered of {form.kind.gathered}" if form.kind.gathered else ""
    every = walk.tap_count * -(-walk.run // kit.fold) * tile.columns.groups
    return replace(made, detail=f"{made.detail} {name}, {choice.steps} of {every}")


TEMPLATE = Template("dot_sparse", ("conv_integer", "matmul_integer"), plan, {"dot_sparse": _dot_sparse.emit})
