"""Direct convolution of one to three spatial axes, any kernel, stride, dilation, padding and group.

The input may lie in any order (channels last is walked pixel by pixel, planes channel by channel); the output wants a
unit stride along its channels to be fast. Borders are peeled: no tap outside the input is computed or read. Constant
weights are packed ``[group of columns][reduction][vectors]``; others are packed into shared scratch by a first phase.
A 1x1 convolution with stride 1 is one long line of points where the memory allows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _contract
from ._overlap import of_contraction
from ._tile import (
    GHZ,
    SLOW_INTEGERS,
    Columns,
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
    pack_vector,
    split,
)

_STATIC_TILES = 8  # border tiles that are written out; beyond, border points are computed one by one


class Geometry:
    """A convolution as three spatial axes (slab, line, point): extents, strides in elements, taps."""

    def __init__(self, region: Region) -> None:
        x, w = (region.operand(i) for i in (0, 1))
        assert x is not None and w is not None
        self.x, self.w, self.y = region.inputs[x], region.inputs[w], region.outputs[0]
        attrs = region.attrs
        rank = self.x.type.rank - 2
        lead = [1] * (3 - rank)
        self.batch, self.channels, *size = self.x.type.dims
        self.size: list[int] = [*lead, *size]
        self.out: list[int] = [*lead, *region.anchor_type.dims[2:]]
        self.kernel: list[int] = [*lead, *self.w.type.dims[2:]]
        self.step: list[int] = [0] * (3 - rank) + list(self.x.strides[2:])
        self.strides: list[int] = [*lead, *attrs["strides"]]
        self.dilations: list[int] = [*lead, *attrs["dilations"]]
        self.pads: list[int] = [0] * (3 - rank) + list(attrs["pads"][:rank])
        self.group = attrs["group"]
        self.columns = self.w.type.dims[0] // self.group
        self.depth = self.w.type.dims[1]
        self.rank = rank
        self.depthwise = False  # columns are channels of x too
        self.place: list[tuple[int, int]] = [(0, 1)] * 3  # first point of the output, distance to the next one

    @property
    def planes(self) -> bool:
        """Whether x holds one plane a channel, so that the reduction walks a plane before the next one."""
        return not self.depthwise and (self.depth == 1 or abs(self.x.strides[1]) > max(1, *map(abs, self.step)))

    def reduction_major(self, w: np.ndarray) -> np.ndarray:
        """Weights as ``[group, reduction, columns]`` in the order in which the kernel walks the reduction."""
        kernel = w.reshape(self.group, self.columns, self.depth, *self.kernel)
        order = (0, 2, 3, 4, 5, 1) if self.planes else (0, 3, 4, 5, 2, 1)
        return kernel.transpose(order).reshape(self.group, -1, self.columns)

    def weight_columns(self) -> tuple[list[int], int]:
        """How weights that are known only at run time lie: number and stride of the groups, stride of a column."""
        return [self.group, self.columns * self.w.strides[0]], self.w.strides[0]

    def weight_rows(self) -> tuple[int, list[list[int]]]:
        """Where the first row lies, and extent and stride of the reduction's axes as the kernel walks them."""
        steps = [0] * (3 - self.rank) + list(self.w.strides[2:])
        taps = [[n, step] for n, step in zip(self.kernel, steps, strict=True)]
        channel = [self.depth, self.w.strides[1]]
        return 0, [channel, *taps] if self.planes else [*taps, channel]

    def border(self, axis: int) -> bool:
        """Whether some tap of that axis falls outside the input for some output point."""
        reach: int = (self.out[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis]
        return self.pads[axis] > 0 or reach - self.pads[axis] >= self.size[axis]

    def inside(self, axis: int, point: int, tap: int) -> bool:
        at: int = point * self.strides[axis] - self.pads[axis] + tap * self.dilations[axis]
        return 0 <= at < self.size[axis]

    def flat(self, region: Region, reads: list[int]) -> bool:
        """Whether all output points can be walked as one line."""
        if self.rank == 1 or self.size[1] == 1 or coordinates_matter(region):
            return False
        plain = all(k == s == 1 for k, s in zip(self.kernel[1:], self.strides[1:], strict=True))
        joined = self.step[1] == self.step[2] * self.size[2]
        last = self.rank + 1
        return plain and joined and self.size[1:] == self.out[1:] and joinable(region, last, last - 1, reads)

    def flatten(self) -> None:
        for extents in (self.size, self.out):
            extents[1:] = [1, extents[1] * extents[2]]
        self.step[1] = 0


def _segment(start: int, count: int, repeat: int = 1, valid: Any = None, inner: bool = False) -> dict[str, Any]:
    return {"start": start, "count": count, "repeat": repeat, "valid": valid, "inner": inner}


def segments(g: Geometry, tile: int) -> list[dict[str, Any]]:
    """The points of a line as tiles: those that see all taps as one loop, border tiles written out."""
    extent, taps = g.out[2], range(g.kernel[2])

    def valid(start: int, count: int) -> list[list[int]] | None:
        rows = []
        for t in taps:
            seen = [p for p in range(count) if g.inside(2, start + p, t)]
            rows.append([seen[0], seen[-1] + 1] if seen else [0, 0])
        return None if all(r == [0, count] for r in rows) else rows

    cuts = [(i, min(tile, extent - i)) for i in range(0, extent, tile)]
    kinds = [valid(*cut) for cut in cuts]
    whole = [i for i, (cut, v) in enumerate(zip(cuts, kinds, strict=True)) if v is None and cut[1] == tile]
    if len(cuts) - len(whole) <= _STATIC_TILES:
        found = [_segment(*cut, valid=v) for cut, v in zip(cuts, kinds, strict=True)]
        if whole:
            first, last = whole[0], whole[-1] + 1
            found[first:last] = [_segment(cuts[first][0], tile, last - first, inner=True)]
        return found
    clear = [p for p in range(extent) if all(g.inside(2, p, t) for t in taps)]
    if not clear:
        return [_segment(0, 1, extent, "dynamic", inner=True)]
    low, high = clear[0], clear[-1] + 1
    tiles, rest = divmod(high - low, tile)
    found = [_segment(0, 1, low, "dynamic")] if low else []
    if tiles:
        found.append(_segment(low, tile, tiles, inner=True))
    if rest:
        found.append(_segment(high - rest, rest))
    return [*found, _segment(high, 1, extent - high, "dynamic")] if high < extent else found


def axis(g: Geometry, i: int, tap_b: int) -> dict[str, Any]:
    """A spatial axis for the emitter. ``a`` and ``tap_a`` are steps in A, ``tap_b`` reduction steps in B."""
    return {
        "extent": g.out[i],
        "a": g.step[i] * g.strides[i],
        "taps": g.kernel[i],
        "tap_a": g.step[i] * g.dilations[i],
        "tap_b": tap_b,
        "stride": g.strides[i],
        "dilation": g.dilations[i],
        "pad": g.pads[i],
        "size": g.size[i],
        "border": g.border(i),
        "first": g.place[i][0],
        "apart": g.place[i][1],
    }


def plan(region: Region) -> list[Plan]:
    """One plan, whatever the convolution."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None:
        return []
    g = Geometry(region)
    reads = epilogue_inputs(region)
    if g.flat(region, reads):
        g.flatten()
    dtype = accumulator(region.anchor_type.dtype)
    tile = choose(of_sums(region.machine, dtype), shape_of(region, g), np.dtype(dtype).itemsize)
    found = assemble(region, g, tile, dtype, reads)
    return [replace(found, cost=found.cost * SLOW_INTEGERS) if region.op == "conv_integer" else found]


def shape_of(region: Region, g: Geometry) -> Shape:
    """What the choice of a tile depends on."""
    span = g.size[2] * abs(g.step[2])
    return Shape(
        rows=g.out[2],
        lines=g.out[0] * g.out[1] * g.batch * g.group,
        columns=g.columns,
        depth=g.depth * math.prod(g.kernel),
        row_step=abs(g.step[2]) * g.strides[2] * g.x.type.itemsize,
        line_bytes=max(span, g.size[2] * g.depth) * g.strides[1] * g.x.type.itemsize,
        epilogue=epilogue_work(region),
        exact_columns=region.small,
        unrolled=g.planes,
    )


def assemble(region: Region, g: Geometry, tile: Tile, dtype: str, reads: list[int], template: str = "conv") -> Plan:
    """The plan of a convolution with a chosen tile, for the emitter of that name."""
    config = configure(region, g, tile, dtype, reads)
    overlaps = of_contraction(region, config)
    if overlaps:
        config["overlaps"] = True
    dims = [*(o["extent"] for o in config["outer"]), *config["blocks"]]
    tasks = math.prod(dims[: config["split"]]) if config["split"] else None
    detail = f"{'depthwise' if g.depthwise else 'direct'} {tile.describe()}"
    found = finished(region, [g], tile.columns, config, template, (tasks, tile.cycles), detail)
    return replace(found, overlaps=overlaps)


def configure(
    region: Region,
    g: Geometry,
    tile: Tile,
    dtype: str,
    reads: list[int],
    depth: int | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """What the emitter of a contraction reads. ``depth`` rows of weights are packed for it, of which its own begin
    with ``first`` (all are its own unless given)."""
    columns, own = tile.columns, g.depth * math.prod(g.kernel)
    total = own if depth is None else depth
    order = "czyx" if g.planes else "zyxc"
    extents = dict(zip("zyxc", [*g.kernel, g.depth], strict=True))
    taps = {n: math.prod(extents[m] for m in order[order.index(n) + 1 :]) for n in order}
    slab, line, point = (axis(g, i, taps[n]) for i, n in enumerate("zyx"))
    line["block"] = min(tile.line_block, g.out[1])
    point["segments"] = segments(g, tile.rows)
    tiles = next((s["repeat"] for s in point["segments"] if s["inner"]), 1)
    point["block"] = min(tile.row_block, tiles) if tile.row_block else tiles
    blocks = [-(-g.out[1] // line["block"]), -(-tiles // point["block"]), columns.groups]
    outer = [
        {"extent": g.batch, "a": g.x.strides[0], "b": 0, "bias": 0, "axis": 0, "column": 0},
        {
            "extent": g.group,
            "a": g.depth * g.x.strides[1],
            "b": total * columns.packed,
            "bias": columns.packed,
            "axis": None,
            "column": g.columns,
        },
    ]
    rank = region.anchor_type.rank
    if g.rank == 3:
        place = {key: slab[key] for key in ("first", "apart")}
        outer.append({"extent": g.out[0], "a": slab["a"], "b": 0, "bias": 0, "axis": 2, "column": 0, **place})
    bias = region.operand(2)
    constant = bias is not None and region.inputs[bias].const is not None
    dims = [*(o["extent"] for o in outer), *blocks]
    return {
        "program": serialize(region),
        "dtype": dtype,
        "type": region.anchor_type.dtype,
        "a": {
            "dtype": g.x.type.dtype,
            "span": g.x.span,
            "base": -sum(g.pads[i] * g.step[i] for i in range(3)),
            "column": int(g.depthwise),
            "zero": region.attrs.get("zero_point", 0),
        },
        "b": {"dtype": dtype, "span": g.group * total * columns.packed, "step": 0, "column": 1, "first": first},
        "bias": g.group * columns.packed if constant else 0,
        "runtime_bias": None if constant else bias,
        "reads": sorted({*reads, *([bias] if bias is not None and not constant else [])}),
        "outer": outer,
        "slab": slab if g.rank == 3 else None,
        "line": line,
        "point": point,
        "inner": {"taps": g.depth, "tap_a": g.x.strides[1], "tap_b": taps["c"], "border": False},
        "order": [n for n in order if n != "z" or g.rank == 3],
        "depth": total,
        "columns": columns.data(),
        "blocks": blocks,
        "split": split(dims, tile.cycles),
        "axes": {
            "rank": rank,
            "line": rank - 2 if g.out[1] > 1 or g.place[1] != (0, 1) else None,
            "point": rank - 1,
            "column": 1,
        },
    }


def finished(
    region: Region,
    geometries: Sequence[Geometry],
    columns: Columns,
    config: dict[str, Any],
    template: str,
    work: tuple[int | None, float],
    detail: str,
) -> Plan:
    """The plan of a kernel whose weights are those of ``geometries``, one behind the other. ``config`` is its
    configuration (or has the first one's as ``phases``), ``work`` its tasks and cycles."""
    first, g = config.get("phases", [config])[0], geometries[0]
    dtype, depth = first["dtype"], first["depth"]
    bias = region.operand(2)
    consts: list[np.ndarray] = []
    phases: list[Draft] = []
    shared = 0
    if g.w.const is not None:
        rows = np.concatenate([h.reduction_major(g.w.const.astype(dtype)) for h in geometries], axis=1)
        consts.append(pack(rows, columns))
        source = Arg("const", 0)
    else:
        at = region.operand(1)
        assert at is not None
        outer, column = g.weight_columns()
        blocks = [h.weight_rows() for h in geometries]
        phases.append(pack_draft(g.w, [outer], [], column, columns, dtype, Arg("in", at), blocks))
        shared = g.group * depth * columns.packed * np.dtype(dtype).itemsize
        source = Arg("shared", 0)
    x = region.operand(0)
    assert x is not None
    args = [Arg("in", x), source]
    if first["bias"]:
        assert bias is not None
        held = region.inputs[bias].const
        assert held is not None
        args.append(Arg("const", len(consts)))
        consts.append(pack_vector(held.astype(dtype).reshape(g.group, -1), columns))
    args += [Arg("in", i) for i in first["reads"]] + [Arg("out", j) for j in range(len(region.outputs))]
    tasks, cycles = work
    y = region.outputs[0]
    if y.type.dims[1] > 1 and y.strides[1] != 1:  # channels apart in memory: vectors are stored lane by lane
        cycles += 2.0 * y.type.size
    phases.append(Draft(KernelSpec(template, config), tuple(args), tasks))
    return Plan(
        template.split(".")[0],
        tuple(phases),
        cost=cycles / GHZ + 50,
        consts=tuple(consts),
        shared_bytes=shared,
        inplace=inplace_pairs(region),
        detail=detail,
    )


TEMPLATE = Template("conv", ("conv", "conv_integer"), plan, {"conv": _contract.emit, "conv.pack": _contract.emit_pack})
