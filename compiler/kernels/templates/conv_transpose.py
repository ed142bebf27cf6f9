"""conv_transpose: by the kernels of conv (see ``_transposed``), and where that does not fit, as a plain loop nest in
gather form that takes every element type, stride and memory order.
"""

from __future__ import annotations

import math
from typing import Any

from ...ir import Value
from ..spec import Plan, Region, Template
from . import _transposed
from ._boxes import Box, Cursor, anchor_args, elementwise_around, emit_boxes, move_cost, plan_boxes

_MOST_PHASES, _MOST_TAPS = 16, 16


def plan(region: Region) -> list[Plan]:
    args = anchor_args(region)
    assert args[0] is not None and args[1] is not None
    if not elementwise_around(region) or 0 in region.anchor_type.dims:
        return []
    return [*_general(region, args), *_transposed.tiled(region)]


def _macs(region: Region, args: list[Value | None]) -> float:
    x, w = (region.body.type(a).dims for a in args[:2] if a is not None)
    return math.prod(x) * math.prod(w[1:])


# -- the general path ------------------------------------------------------------------------------------------------


def _general(region: Region, args: list[Value | None]) -> list[Plan]:
    """Any element type, any weights: one element (or a vector of channels) at a time."""
    x, w = (region.body.type(a) for a in args[:2] if a is not None)
    group, out = region.attrs["group"], region.anchor_type.dims
    inner, outer = x.dims[1] // group, w.dims[1]
    extents = (out[0], group, outer, *out[2:])
    place = ((0, ((0, 1),)), (0, ((1, outer), (2, 1))), *((0, ((3 + a, 1),)) for a in range(len(out) - 2)))
    spatial = tuple(range(3, len(extents)))
    box = Box(extents, place, (), range(len(extents)), scalar=spatial, data={"inner": inner})  # type: ignore[arg-type]
    macs = _macs(region, args)
    vector = region.machine.lanes if abs(region.outputs[0].strides[1]) == 1 else 1
    cost = move_cost(region) + macs * (1.0 + 8.0 / vector) / 2.5
    work = max(1.0, macs / region.anchor_type.size)
    return plan_boxes(region, "conv_transpose.general", [box], cost=cost, work=work, detail="conv_transpose general")


def _source(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from ..functions import cast
    from ..tir import constant

    dtype = cursor.dtype(0)
    wide = accumulator(dtype)
    total = cursor.k.register(wide, lanes, "total")
    total.set(constant(0, wide, lanes))
    _taps(cursor, index, [], [], lanes, total)
    value = cast(total.get(), dtype)
    if len(cursor.args) > 2 and cursor.args[2] is not None:
        outer = cursor.shape(1)[1]
        (g, gs), (o, os) = index[1], index[2]
        bias = cursor.value(2, [(g * outer + o, gs * outer + os)], lanes)
        value = cast(total.get() + cast(bias, wide), dtype)
    return value


def _taps(cursor: Cursor, index: Any, taps: list[Any], at: list[Any], lanes: int, total: Any) -> None:
    """Loops over the kernel's axes, and over the input channels of the taps that meet an element."""
    from tvm import tirx

    from ..functions import cast

    k, attrs, axis = cursor.k, cursor.attrs, len(taps)
    weights, inner = cursor.shape(1), cursor.data["inner"]
    if axis < len(attrs["strides"]):
        s, size = attrs["strides"][axis], cursor.shape(0)[2 + axis]
        with k.loop(weights[2 + axis]) as tap:
            reach = k.bind(index[3 + axis][0] + attrs["pads"][axis] - tap * attrs["dilations"][axis], "reach")
            reach = reach if not isinstance(reach, int) else tirx.IntImm("int32", reach)
            meets = tirx.all(tirx.EQ(tirx.truncmod(reach, s), 0), reach >= 0, reach < size * s)
            with k.when(meets):
                _taps(cursor, index, [*taps, tap], [*at, tirx.truncdiv(reach, s)], lanes, total)
        return
    batch, (g, gs), (o, os) = index[:3]
    with k.loop(inner) as i:
        x = cursor.value(0, [batch, (g * inner + i, gs * inner), *((c, 0) for c in at)], lanes)
        w = cursor.value(1, [(g * inner + i, gs * inner), (o, os), *((t, 0) for t in taps)], lanes)
        total.set(total.get() + cast(x, total.dtype) * cast(w, total.dtype))


def accumulator(dtype: str) -> str:
    """The type in which products are summed: integers wrap like the element type."""
    if dtype.startswith(("float", "bfloat")):
        return "float64" if dtype == "float64" else "float32"
    return dtype if dtype.endswith("64") else "int32" if dtype.startswith("int") else "uint32"


def emit_general(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, _source)


TEMPLATE = Template(
    "conv_transpose",
    ("conv_transpose",),
    plan,
    {"conv_transpose.tiled": _transposed.emit, "conv_transpose.general": emit_general},
)
