"""The matrix product, with any number of batch axes: ``Y[..., m, n] = A[..., m, k] B[..., k, n]``.

A may have any strides. A constant B is packed in panels of columns; one known only at run time is read where it lies
if its columns are adjacent, and is packed into shared scratch first if they are not. Batch axes that B does not have
become rows where the memory of A and of the outputs allows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from . import _contract, _deep
from ._tile import (
    GHZ,
    SLOW_INTEGERS,
    Shape,
    Tile,
    accumulator,
    choose,
    coordinates_matter,
    epilogue_inputs,
    epilogue_work,
    fits,
    inplace_pairs,
    joinable,
    of_sums,
    pack,
    pack_draft,
    split,
)

PART = 128  # steps of the depth that are taken at once where it is deeper than the caches
DEEP_TASKS = 4  # of such a product: a task should read long pieces of A's lines


@dataclass(frozen=True)
class Axis:
    """An axis of the output that is no column: its extent, its steps in A and B, its number in the output."""

    extent: int
    a: int
    b: int
    out: int | None


@dataclass
class Product:
    """The operands with vectors made matrices: ``outer`` axes, the rows, the columns and the depth."""

    a: Operand
    b: Operand
    outer: list[Axis]
    rows: Axis
    column: int | None  # the output's axis of the columns
    columns: int
    depth: int
    a_step: int
    b_step: int
    b_column: int


def _batch_strides(operand: Operand, rank: int) -> list[int]:
    """Element strides of the batch axes, aligned to an output with ``rank`` of them; 0 where broadcast."""
    lead = operand.type.dims[:-2]
    steps = [0 if d == 1 else s for d, s in zip(lead, operand.strides, strict=False)]
    return [0] * (rank - len(lead)) + steps


def product(region: Region, reads: list[int]) -> Product:
    """The matrix product of a region, batch axes joined to the rows where that is possible."""
    ia, ib = region.operand(0), region.operand(1)
    assert ia is not None and ib is not None
    a, b = region.inputs[ia], region.inputs[ib]
    dims = region.anchor_type.dims
    has_rows, has_columns = a.type.rank > 1, b.type.rank > 1
    batch = len(dims) - has_rows - has_columns
    steps = zip(dims, _batch_strides(a, batch), _batch_strides(b, batch), range(batch), strict=False)
    axes = [Axis(*s) for s in steps if s[0] > 1]
    if has_rows and dims[batch] > 1:
        axes.append(Axis(dims[batch], a.strides[-2], 0, batch))
    rows = axes.pop() if axes and axes[-1].b == 0 else Axis(1, 0, 0, None)
    while axes and rows.out is not None and axes[-1].b == 0 and not coordinates_matter(region):
        next_out = axes[-1].out
        last = rows.out
        assert next_out is not None
        inner = rows.extent
        if axes[-1].a != rows.a * inner or not joinable(region, last, next_out, reads, inner):
            break
        rows = Axis(inner * axes.pop().extent, rows.a, 0, last)
    return Product(
        a,
        b,
        axes,
        rows,
        len(dims) - 1 if has_columns else None,
        b.type.dims[-1] if has_columns else 1,
        a.type.dims[-1],
        a.strides[-1],
        b.strides[-2] if has_columns else b.strides[-1],
        b.strides[-1] if has_columns else 1,
    )


def plan(region: Region) -> list[Plan]:
    """One plan for each matrix product."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    reads = epilogue_inputs(region)
    p = product(region, reads)
    dtype = accumulator(region.anchor_type.dtype)
    direct = p.b.const is None and (p.b_column == 1 or p.columns == 1)
    itemsize = p.a.type.itemsize
    shape = Shape(
        rows=p.rows.extent,
        lines=math.prod(o.extent for o in p.outer),
        columns=p.columns,
        depth=p.depth,
        row_step=abs(p.rows.a) * itemsize,
        line_bytes=p.rows.extent * p.depth * itemsize,
        epilogue=epilogue_work(region),
        exact_columns=region.small or direct,
        cold=p.b.const is not None,
        alone=True,
    )
    tile = choose(of_sums(region.machine, dtype), shape, np.dtype(dtype).itemsize)
    whole = assemble(region, p, tile, dtype, reads, direct)
    if region.op == "matmul_integer":
        return [replace(whole, cost=whole.cost * SLOW_INTEGERS)]
    if direct and _is_deep(region, p, tile):
        part = replace(shape, depth=PART, line_bytes=p.rows.extent * PART * itemsize)
        tile = choose(of_sums(region.machine, dtype), part, np.dtype(dtype).itemsize)
        tiles = p.rows.extent // tile.rows
        tile = replace(tile, row_block=max(1, -(-tiles * tile.columns.groups // DEEP_TASKS)))
        found = in_parts(region, p, assemble(region, p, tile, dtype, reads, direct), tile)
        return [found, replace(whole, cost=max(whole.cost, 1.1 * found.cost))]
    return [whole]


def _is_deep(region: Region, p: Product, tile: Tile) -> bool:
    """Whether the columns of B that a tile walks down, and the lines of A beside them, leave the second-level cache:
    A is read across its rows, as in the gradient of a weight."""
    machine = region.machine
    across = p.rows.a == 1 and p.a.type.dtype == "float32" and tile.rows < p.rows.extent >= machine.lanes
    columns = tile.columns.nv * tile.columns.lanes * p.b.type.itemsize
    return across and p.depth >= 4 * PART and p.depth * (columns + machine.line) > machine.l2 // 2


def in_parts(region: Region, p: Product, plan: Plan, tile: Tile) -> Plan:
    """The plan with the depth taken in parts."""
    (main,) = plan.phases
    config = dict(main.spec.config)
    parts = (p.depth - 1) // PART
    rows = config["point"]["block"] * tile.rows + p.rows.extent % tile.rows
    config["deep"] = {"parts": parts, "size": PART, "rest": p.depth - parts * PART, "rows": rows}
    draft = Draft(KernelSpec("matmul.deep", config), (*main.args, Arg("worker", 0)), main.tasks)
    return replace(
        plan,
        phases=(draft,),
        cost=plan.cost * p.depth / PART,
        worker_bytes=rows * min(tile.columns.packed, tile.columns.nv * region.machine.lanes) * 4,
        detail=f"{plan.detail}, {PART} deep",
    )


def assemble(region: Region, p: Product, tile: Tile, dtype: str, reads: list[int], direct: bool) -> Plan:
    """The plan of a product with a chosen tile."""
    columns = tile.columns
    config = configure(region, p, tile, dtype, reads, direct)
    b_axes = [o for o in p.outer if o.b]
    ia, ib = region.operand(0), region.operand(1)
    assert ia is not None and ib is not None
    phases: list[Draft] = []
    consts: tuple[np.ndarray, ...] = ()
    shared = 0
    if p.b.const is not None:
        # axes of extent 1, and those that B is broadcast along, have one panel
        matrix = p.b.const.astype(dtype).reshape(-1, p.depth, p.columns)
        consts = (pack(matrix, columns),)
        source = Arg("const", 0)
    elif direct:
        source = Arg("in", ib)
    else:
        levels = [[o.extent, o.b] for o in b_axes]
        phases.append(pack_draft(p.b, levels, [[p.depth, p.b_step]], p.b_column, columns, dtype, Arg("in", ib)))
        shared = config["b"]["span"] * np.dtype(dtype).itemsize
        source = Arg("shared", 0)
    args = [Arg("in", ia), source, *(Arg("in", i) for i in config["reads"])]
    args += [Arg("out", j) for j in range(len(region.outputs))]
    phases.append(Draft(KernelSpec("matmul", config), tuple(args), tasks_of(config)))
    return Plan(
        "matmul",
        tuple(phases),
        cost=tile.cycles / GHZ + 50,
        consts=consts,
        shared_bytes=shared,
        inplace=inplace_pairs(region),
        detail=f"gemm {tile.describe()}",
    )


def tasks_of(config: dict[str, Any]) -> int | None:
    """The tasks of a contraction with that configuration."""
    dims = [*(o["extent"] for o in config["outer"]), *config["blocks"]]
    return math.prod(dims[: config["split"]]) if config["split"] else None


def configure(region: Region, p: Product, tile: Tile, dtype: str, reads: list[int], direct: bool) -> dict[str, Any]:
    """What the emitter of a contraction reads."""
    columns = tile.columns
    panel = p.depth * columns.packed
    b_axes = [o for o in p.outer if o.b]
    panels = {id(o): panel * math.prod(q.extent for q in b_axes[i + 1 :]) for i, o in enumerate(b_axes)}
    outer = [
        {
            "extent": o.extent,
            "a": o.a,
            "b": o.b if direct else panels.get(id(o), 0),
            "bias": 0,
            "axis": o.out,
            "column": 0,
        }
        for o in p.outer
    ]
    tiles, rest = divmod(p.rows.extent, tile.rows)
    segments = [{"start": 0, "count": tile.rows, "repeat": tiles, "valid": None, "inner": True}] if tiles else []
    if rest:
        segments.append({"start": tiles * tile.rows, "count": rest, "repeat": 1, "valid": None, "inner": False})
    block = min(tile.row_block or tiles, max(1, tiles))
    blocks = [1, -(-max(1, tiles) // block), columns.groups]
    dims = [*(o.extent for o in p.outer), *blocks]
    total = panel * math.prod(o.extent for o in b_axes)
    bias = region.operand(2)  # of matmul_integer, as its zero points
    held = sorted({*reads, *([] if bias is None else [bias])})
    zeros = [region.attrs.get(name, 0) for name in ("zero_point", "b_zero_point")]
    return {
        "program": serialize(region),
        "dtype": dtype,
        "type": region.anchor_type.dtype,
        "a": {"dtype": p.a.type.dtype, "span": p.a.span, "base": 0, "column": 0, "zero": zeros[0]},
        "b": {
            "dtype": p.b.type.dtype if direct else dtype,
            "span": p.b.span if direct else total,
            "step": p.b_step if direct else 0,
            "column": 1,
            "zero": zeros[1],
        },
        "bias": 0,
        "runtime_bias": bias,
        "reads": held,
        "outer": outer,
        "slab": None,
        "line": {"extent": 1, "a": 0, "taps": 1, "tap_a": 0, "tap_b": 0, "border": False, "block": 1},
        "point": {"a": p.rows.a, "segments": segments, "block": block},
        "inner": {"taps": p.depth, "tap_a": p.a_step, "tap_b": 1, "border": False},
        "order": ["c"],
        "depth": p.depth,
        "columns": columns.data(),
        "blocks": blocks,
        "split": split(dims, tile.cycles),
        "axes": {"rank": region.anchor_type.rank, "line": None, "point": p.rows.out, "column": p.column},
    }


TEMPLATE = Template("matmul", ("matmul", "matmul_integer"), plan, {"matmul": _contract.emit, "matmul.deep": _deep.emit})
