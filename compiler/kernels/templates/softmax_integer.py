"""softmax_integer: row by row, a table of exponentials, their sum, and one rescaling."""

from __future__ import annotations

from typing import Any

from ...ops.shapes import normalise_axis
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import lanes_for


def plan(region: Region) -> list[Plan]:
    """One plan where the axis ends what is kept: every row is walked by itself."""
    if len(region.body) != 4 or len(region.outputs) != 1:
        return []
    x = region.inputs[region.operand(0) or 0]
    y, dims = region.outputs[0], region.anchor_type.dims
    axis = normalise_axis(region.attrs["axis"], len(dims))
    outer = [
        [d, s, o] for a, (d, s, o) in enumerate(zip(dims, x.strides, y.strides, strict=True)) if a != axis and d > 1
    ]
    config: dict[str, Any] = {
        "types": [o.type.dtype for o in (x, y)],
        "spans": [o.span for o in (x, y)],
        "outer": outer,
        "axis": [dims[axis], x.strides[axis], y.strides[axis]],
        "attrs": {k: region.attrs[k] for k in ("zero_point", "low", "high", "to")},
    }
    tasks = outer[0][0] if outer else None
    lanes = lanes_for(region.machine, 1)
    config["lanes"] = lanes if x.strides[axis] == y.strides[axis] == 1 and dims[axis] >= lanes > 1 else 1
    scratch = [Arg("worker", 0)] if config["lanes"] > 1 else []
    args = (*(Arg("in", region.operand(i) or 0) for i in range(3)), Arg("out"), *scratch)
    cost = 100 + (2.0 if scratch else 10.0) * x.type.size
    draft = Draft(KernelSpec("softmax_integer", config), args, tasks)
    return [Plan("softmax_integer", (draft,), cost, worker_bytes=4 * dims[axis] * len(scratch), detail="softmax")]


def emit(k: Any, config: dict[str, Any]) -> None:
    dtypes, spans = config["types"], config["spans"]
    x, table, multiplier = k.arg("x", dtypes[0], spans[0]), k.arg("table", "int32", 256), k.arg("m", "float32", 1)
    y = k.arg("y", dtypes[1], spans[1])
    outer, wide = config["outer"], config["lanes"] > 1
    parts = k.arg("parts", "int32", config["axis"][0]) if wide else None

    def rows(level: int, at: Any, to: Any) -> None:
        if level == len(outer):
            if parts is not None:
                _vectors(k, config, (x, table, multiplier, y, parts), at, to)
            else:
                _row(k, config, (x, table, multiplier, y), at, to)
            return
        extent, step, out = outer[level]
        with k.parallel(extent) if level == 0 else k.loop(extent) as i:
            rows(level + 1, at + i * step, to + i * out)

    rows(0, 0, 0)


def _row(k: Any, config: dict[str, Any], buffers: Any, at: Any, to: Any) -> None:
    from ..functions import cast
    from ..integers import rescaled
    from ..tir import constant, maximum

    x, table, multiplier, y = buffers
    extent, step, out = config["axis"]
    most, sums = k.register("int32", 1, "most"), k.register("int32", 1, "sum")

    def entry(i: Any) -> Any:
        return k.load(table, most.get() - cast(k.load(x, at + i * step), "int32"))

    most.set(constant(-128, "int32"))
    with k.loop(extent) as i:
        most.set(maximum(most.get(), cast(k.load(x, at + i * step), "int32")))
    sums.set(constant(0, "int32"))
    with k.loop(extent) as i:
        sums.set(sums.get() + entry(i))
    each = k.bind(k.load(multiplier, 0) / cast(sums.get(), "float32"), "each")
    with k.loop(extent) as i:
        k.store(y, to + i * out, rescaled(k, entry(i), each, config["attrs"]))


def _vectors(k: Any, config: dict[str, Any], buffers: Any, at: Any, to: Any) -> None:
    """A row whose elements are adjacent: only the table is read one by one, and once."""
    from ..functions import cast
    from ..integers import rescaled
    from ..tir import constant, maximum, splat

    x, table, multiplier, y, parts = buffers
    extent, lanes, dtype = config["axis"][0], config["lanes"], config["types"][0]
    starts = extent - lanes  # of the last vector, which may overlap the one before
    most = k.register(dtype, lanes, "most")
    most.set(k.load(x, at + starts, lanes))
    with k.loop(extent // lanes) as i:
        most.set(maximum(most.get(), k.load(x, at + i * lanes, lanes)))
    top = k.bind(cast(k.across(most.get(), maximum), "int32"), "top")
    sums = k.register("int32", 1, "sum")
    sums.set(constant(0, "int32"))
    with k.loop(extent) as i:
        part = k.bind(k.load(table, top - cast(k.load(x, at + i), "int32")), "part")
        k.store(parts, i, part)
        sums.set(sums.get() + part)
    each = k.bind(k.load(multiplier, 0) / cast(sums.get(), "float32"), "each")

    def finished(first: Any) -> None:
        value = rescaled(k, k.load(parts, first, lanes), splat(each, lanes), config["attrs"])
        k.store(y, to + first, value)

    with k.loop(extent // lanes) as i:
        finished(i * lanes)
    if extent % lanes:
        finished(starts)


TEMPLATE = Template("softmax_integer", ("softmax_integer",), plan, {"softmax_integer": emit})
