"""Products of 8-bit matrices with constant weights by products of int16 pairs: cores with Arm's DSP extension."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Plan, Region, Template
from . import _dsp
from ._dsp_plan import POINTS, Columns, Walk, plans_of, serves
from ._tile import epilogue_inputs, fits
from .matmul import Product, product


def plan(region: Region) -> list[Plan]:
    """One plan, where rows of A are runs of bytes, B and its bias are constant and B is one matrix."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    bias = region.operand(2)
    p = product(region, epilogue_inputs(region))
    known = p.b.const is not None and (bias is None or region.inputs[bias].const is not None)
    if not serves(region.machine, p.a.type.dtype) or not known or p.column is None or p.outer or not p.depth:
        return []
    if p.a_step != 1 and p.depth > 1:
        return []
    matrix = np.asarray(p.b.const).astype(np.int64).reshape(p.depth, p.columns) - int(region.attrs["b_zero_point"])
    held = None if bias is None else region.inputs[bias].const
    columns = Columns(matrix, held, int(region.attrs["zero_point"]), p.a.type.dtype)
    if not columns.fit:
        return []
    words = p.depth % 4 == 0
    points = min(POINTS, p.rows.extent)
    y = region.outputs[0]
    row = 0 if p.rows.out is None else y.strides[p.rows.out]
    walk = Walk(
        {"points": points, **places(region, p, words)},
        points,
        -(-p.rows.extent // points),
        p.depth * (1.8 if words else 4.0),
        (0, row * p.rows.extent, row, y.strides[p.column]),
        overlaps(region, p, points),
    )
    return plans_of(region, "dsp_matmul", columns, walk)


def places(region: Region, p: Product, words: bool) -> dict[str, Any]:
    """Where rows lie in A and in the output."""
    axis = {"stride": 1, "dilation": 1, "pad": 0, "reach": 1}
    return {
        "a": {"dtype": p.a.type.dtype, "span": p.a.span, "zero": int(region.attrs["zero_point"])},
        "source": {
            "kind": "words" if words else "bytes",
            **{"lines": 1, "runs": 1, "taps": 1, "unit": 1, "border": "", "base": 0},
            **{"run": p.depth, "tap": p.depth},
        },
        "batch": {"extent": 1, "a": 0},
        "line": {"extent": 1, "a": 0, "step": 0, "size": 1, **axis},
        "point": {"extent": p.rows.extent, "a": p.rows.a, "step": p.rows.a, "size": p.rows.extent, **axis},
        "axes": {
            "rank": region.anchor_type.rank,
            "batch": None,
            "line": None,
            "point": p.rows.out,
            "column": p.column,
        },
    }


def overlaps(region: Region, p: Product, points: int) -> tuple[tuple[int, int, int], ...]:
    """``Plan.overlaps`` of A: each tile of rows is read before it is written."""
    x, out = region.operand(0), region.outputs[0]
    assert x is not None
    if len(region.outputs) != 1 or any(s < 0 for s in (*p.a.strides, *out.strides)):
        return ()
    first = np.arange(0, p.rows.extent, points)
    row = 0 if p.rows.out is None else out.strides[p.rows.out]
    end = (np.minimum(first + points, p.rows.extent) - 1) * row + (p.columns - 1) * out.strides[-1] + 1
    lead = (end[:-1] * out.type.itemsize - first[1:] * p.rows.a * p.a.type.itemsize).max(initial=0)
    return ((x, 0, int(lead)),)


TEMPLATE = Template(
    "dsp_matmul",
    ("matmul_integer",),
    plan,
    {"dsp_matmul": _dsp.emit, "dsp_matmul.steps": _dsp.emit_steps},
)
