"""Matrix products on a GPU: ``matmul`` and ``matmul_integer`` by block tiles (``_cuda_mma``).

Operands may have any strides: lines along the depth or across it are copied 16 bytes at a time where they allow it.
A constant B is packed in lines along the depth. Where few blocks would run, parts of the depth are summed by blocks of
their own and added by a second kernel, in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template, deferred
from ._cuda_mma import Cut, Product, choose, sum_blocks
from ._cuda_sides import Side, packed, side_of
from ._tile import epilogue_inputs, epilogue_work, fits, inplace_pairs
from .matmul import Axis, product
from .matmul import Product as Operands

FLOATS = ("float32", "float16", "bfloat16", "float64")
BYTES = ("int8", "uint8")


def plan(region: Region) -> list[Plan]:
    """One plan for each product of types that the GPU multiplies."""
    gpu = region.machine.gpu
    if gpu is None or not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    reads = epilogue_inputs(region)
    p = product(region, reads)
    if not served(region, p):
        return []
    matrix = constant(p)
    zeros = zero_points(region, p)
    outer_a, outer_b = [o.a for o in p.outer], [o.b for o in p.outer]
    a = side_of(p.a, p.rows.extent, p.rows.a, p.depth, p.a_step, outer_a)
    consts: tuple[np.ndarray, ...] = ()
    if matrix is None:
        b = side_of(p.b, p.columns, p.b_column, p.depth, p.b_step, outer_b)
    else:
        lines, b = packed(matrix, p.a.type.dtype == "float32" and region.fast)
        consts = (lines.reshape(-1),)
    cut = choose(gpu, sizes(region, p, a, b, zeros))
    if cut is None:
        return []
    if matrix is not None and zeros["a"]:
        consts = (*consts, corrections(matrix, zeros))
        zeros |= {"a": 0, "fixed": True}
    return [assembled(region, p, cut, (a, b), zeros, consts, reads)]


def served(region: Region, p: Operands) -> bool:
    """Whether the types and strides of a product are such that a GPU's kernels take."""
    a, b = p.a.type.dtype, p.b.type.dtype
    known = (a in FLOATS and a == b) or (a in BYTES and b in BYTES)
    return known and p.depth > 0 and min(*p.a.strides, *p.b.strides) >= 0


def constant(p: Operands) -> np.ndarray | None:
    """A constant B as ``[product, depth, columns]``; uint8 as int8, 128 less."""
    if p.b.const is None:
        return None
    matrix = p.b.const.reshape(-1, p.depth, p.columns)
    if matrix.dtype == np.uint8:
        matrix = (matrix.astype(np.int16) - 128).astype(np.int8)
    return np.asarray(matrix)


def zero_points(region: Region, p: Operands) -> dict[str, Any]:
    """``a``, ``b``: zero points to take out of the sums; ``flip``: B is taken as int8, 128 less, in the kernel."""
    flipped = p.b.type.dtype == "uint8"
    b = region.attrs.get("b_zero_point", 0) - (128 if flipped else 0)
    return {"a": region.attrs.get("zero_point", 0), "b": b, "flip": flipped and p.b.const is None, "fixed": False}


def corrections(matrix: np.ndarray, zeros: dict[str, Any]) -> np.ndarray:
    """int32 ``[product, columns]``: what A's zero point adds to the sums of each column of a constant B."""
    wide = matrix.astype(np.int64) - zeros["b"]
    return np.asarray(-zeros["a"] * wide.sum(axis=-2)).astype(np.int32).reshape(-1)


def sizes(region: Region, p: Operands, a: Side, b: Side, zeros: dict[str, Any]) -> Product:
    """The product as the choice of a tile sees it."""
    dtype = p.a.type.dtype
    return Product(
        rows=p.rows.extent,
        columns=p.columns,
        depth=p.depth,
        batch=math.prod(o.extent for o in p.outer),
        dtype=dtype,
        exact=region.exact,
        fast=region.fast,
        a_bytes=p.a.type.nbytes,
        b_bytes=p.b.type.nbytes,
        out_bytes=sum(o.type.nbytes for o in region.outputs),
        a_layout=a["layout"],
        b_layout=b["layout"],
        a_copy=a["copy"],
        b_copy=b["copy"],
        epilogue=epilogue_work(region),
        lines=sum((zeros["a"] != 0 and p.b.const is None, zeros["b"] != 0)) if dtype in BYTES else 0,
    )


def outer_axes(p: Operands, b: Side) -> list[dict[str, Any]]:
    """The axes of the products: extents, element steps in A and B, the output's axis, and steps in packed columns."""
    found = []
    own = [o for o in p.outer if o.b]
    for o in p.outer:
        panel = math.prod(q.extent for q in own[own.index(o) + 1 :]) if o.b else 0
        step = o.b if p.b.const is None else panel * p.columns * b["row"]
        found.append({"extent": o.extent, "a": o.a, "b": step, "fix": panel * p.columns, "axis": o.out})
    return found


def assembled(
    region: Region,
    p: Operands,
    cut: Cut,
    sides: tuple[Side, Side],
    zeros: dict[str, Any],
    consts: tuple[np.ndarray, ...],
    reads: list[int],
) -> Plan:
    """The plan of a product with a chosen tile: one kernel, or one for the parts and one that adds them."""
    config = described(region, p, cut, sides, zeros, consts, reads)
    ia, ib = region.operand(0), region.operand(1)
    assert ia is not None and ib is not None
    operands = (Arg("in", ia), Arg("const", 0) if p.b.const is not None else Arg("in", ib))
    fixed = (Arg("const", 1),) if zeros["fixed"] else ()
    rest = (*(Arg("in", i) for i in config["reads"]), *(Arg("out", j) for j in range(len(region.outputs))))
    tasks, batch = config["blocks"], math.prod(o.extent for o in p.outer)
    tile = cut.tile
    phases: tuple[Draft, ...]
    if cut.parts == 1:
        phases = (Draft(KernelSpec("cuda_matmul", config), (*operands, *fixed, *rest), tasks),)
        scratch = 0
    else:
        partial = Arg("shared", 0)
        keep = {n: config[n] for n in _SUMMED}
        phases = (
            Draft(
                KernelSpec("cuda_matmul.parts", {n: v for n, v in config.items() if n not in _UNUSED}),
                (*operands, partial),
                tasks,
            ),
            Draft(
                KernelSpec("cuda_matmul.sum", keep | {"sums": tile.sums}),
                (partial, *fixed, *rest),
                sum_blocks(batch, p.rows.extent, p.columns),
            ),
        )
        scratch = cut.parts * batch * p.rows.extent * p.columns * tile.out_item
    detail = f"{tile.describe()}{f', {cut.parts} parts' if cut.parts > 1 else ''}"
    found = Plan("cuda_matmul", phases, cut.cost, consts, scratch, inplace=inplace_pairs(region), detail=detail)
    return replace(found, inplace=()) if _shared_operand(region, reads) else found


_SUMMED = ("program", "outer", "rows", "columns", "parts", "axes", "reads", "bias", "zeros", "fixes")
_UNUSED = ("program", "axes", "reads", "bias", "fixes", "down")


def _shared_operand(region: Region, reads: list[int]) -> bool:
    """Whether the elementwise work reads an operand of the product, which other blocks read too."""
    return bool({region.operand(0), region.operand(1)} & set(reads))


def described(
    region: Region,
    p: Operands,
    cut: Cut,
    sides: tuple[Side, Side],
    zeros: dict[str, Any],
    consts: tuple[np.ndarray, ...],
    reads: list[int],
) -> dict[str, Any]:
    """What the emitters read."""
    bias = region.operand(2)  # of matmul_integer
    held = sorted({*reads, *([] if bias is None else [bias])})
    tile = cut.tile
    outer = outer_axes(p, sides[1])
    across, down = -(-p.columns // tile.columns), -(-p.rows.extent // tile.rows)
    return {
        "program": serialize(region),
        "tile": tile.data(),
        "a": sides[0] | {"span": p.a.span},
        "b": sides[1] | {"span": consts[0].size if p.b.const is not None else p.b.span},
        "outer": outer,
        "rows": p.rows.extent,
        "columns": p.columns,
        "depth": p.depth,
        "parts": cut.parts,
        "grid": [down, across],
        "blocks": down * across * math.prod(o.extent for o in p.outer) * cut.parts,
        "axes": {"rank": region.anchor_type.rank, "row": p.rows.out, "column": p.column},
        "reads": held,
        "bias": bias,
        "zeros": zeros,
        "fixes": consts[1].size if zeros["fixed"] else 0,
        "down": _down(region, p.rows, p.column),
    }


def _down(region: Region, rows: Axis, column: int | None) -> bool:
    """Whether the output's rows, not its columns, are neighbours in memory."""
    out = region.outputs[0]
    return rows.out is not None and column is not None and out.strides[rows.out] == 1 and out.strides[column] != 1


TEMPLATE = Template(
    "cuda_matmul",
    ("matmul", "matmul_integer"),
    plan,
    {
        "cuda_matmul": deferred("_cuda_matmul_emit"),
        "cuda_matmul.parts": deferred("_cuda_matmul_emit", "emit_parts"),
        "cuda_matmul.sum": deferred("_cuda_matmul_emit", "emit_sum"),
    },
    device=True,
)
