"""Winograd convolution, F(4, 3) and F(2, 3): kernels of 3x3, 1x3, 3x1 and 3 and stride 1 with fewer products (4x and
2.25x for 3x3, 2x and 1.5x along one axis).

``Y = A^T [(G g G^T) * (B^T d B)] A`` for each tile of outputs (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2015). The transformed weights are constants, or are made by a first phase; a transposed convolution
of stride 1 is one with flipped weights. The products of all tiles of a chunk are, for each of the transform's points,
one matrix product ``M[point] = V[point] U[point]`` over the channels.

Two forms: ``chunk`` does everything for some rows of tiles in one kernel, V and M in a worker's scratch, and fits many
pixels; ``split`` transforms the whole input first and then shares out the output channels, so that large weights are
read once, and fits few pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _winograd
from ._tile import (
    GHZ,
    WORTH_SHARING,
    Columns,
    Shape,
    choose,
    epilogue_inputs,
    epilogue_work,
    fits,
    inplace_pairs,
    pack,
    pack_vector,
    vectors,
)
from ._transposed import Phase
from .conv import Geometry

_MIN_CHANNELS = 4  # below, transforms cost more than the products that they save


@cache
def weight_transform(m: int, taps: int = 3) -> np.ndarray:
    """``G``: what ``taps`` weights of a line become, for tiles of ``m`` outputs (Toom-Cook)."""
    if m == 1:
        return np.ones((1, 1))
    points = np.array([0.0, *(s * p for p in _winograd.POINTS[m + taps - 3] for s in (1, -1))])
    scale = [np.prod(np.delete(p - points, i)) for i, p in enumerate(points)]
    rows = points[:, None] ** np.arange(taps) / np.array(scale)[:, None]
    return np.vstack([rows, np.eye(taps)[-1:]])


@dataclass(frozen=True)
class Tiling:
    """Output tiles of ``m`` (lines, points): their number along both axes, and the rows of tiles of a chunk."""

    m: tuple[int, int]
    down: int
    across: int
    chunk: int

    @property
    def points(self) -> int:
        return math.prod(self.patch)

    @property
    def patch(self) -> tuple[int, int]:
        """Extents of the input that one tile reads."""
        return tuple(m + 2 if m > 1 else 1 for m in self.m)  # type: ignore[return-value]

    @property
    def label(self) -> str:
        return f"F({max(self.m)},3)" + ("" if min(self.m) > 1 else " 1-D")

    @property
    def tiles(self) -> int:
        """Tiles of a chunk."""
        return self.chunk * self.across


def plan(region: Region) -> list[Plan]:
    """Plans for both tile sizes and both forms, where the region allows another rounding than the plain sum's."""
    if region.exact or region.small or not fits(region) or region.anchor_type.dtype != "float32":
        return []
    if region.operand(0) is None or region.operand(1) is None or region.anchor_type.rank > 4:
        return []
    g = _geometry(region)
    if g is None:
        return []
    plain = g.kernel[1:] in ([3, 3], [1, 3], [3, 1]) and g.strides == g.dilations == [1, 1, 1] and g.group == 1
    plain = plain and not any(p for p, k in zip(g.pads, g.kernel, strict=True) if k == 1)
    plain = plain and all(o == n for o, n, k in zip(g.out, g.size, g.kernel, strict=True) if k == 1)
    if not plain or min(g.pads) < 0 or g.x.strides[1] != 1 or min(g.depth, g.columns) < _MIN_CHANNELS:
        return []
    bias = region.operand(2)
    if bias is not None and region.inputs[bias].const is None:
        return []
    found = []
    for m in (4, 2):
        tile = (m if g.kernel[1] == 3 else 1, m if g.kernel[2] == 3 else 1)
        down, across = -(-g.out[1] // tile[0]), -(-g.out[2] // tile[1])
        if g.out[1] < tile[0] or g.out[2] < tile[1]:
            continue
        options = [Tiling(tile, down, across, c) for c in range(1, down + 1) if down % c == 0]
        best = min((_propose(region, g, t) for t in options), key=lambda p: p[0])
        found.append(_chunked(region, g, *best) if best[0] < math.inf else None)
        if g.batch == 1 and down * across <= 64 and g.w.const is not None:
            found.append(_split(region, g, Tiling(tile, down, across, down)))
    return [p for p in found if p is not None]


def _geometry(region: Region) -> Geometry | None:
    """The convolution; a transposed one of stride 1 is one with flipped weights."""
    if region.op == "conv":
        return Geometry(region)
    return Phase(region, (0,) * len(region.attrs["strides"])) if max(region.attrs["strides"]) == 1 else None


# -- cost --------------------------------------------------------------------------------------------------------------


def _transform_cycles(region: Region, g: Geometry, t: Tiling) -> tuple[float, float]:
    """Cycles to transform one tile of the input (all channels) and one of the output."""
    machine, both = region.machine, min(t.m) > 1
    slow = 1.0 / max(0.25, min(1.0, machine.load_ports)) if machine.in_order else 1.0
    into, out = vectors(g.depth, machine.lanes, exact=True)[0], vectors(g.columns, machine.lanes)[0]
    first = len(into) * (t.points * (3.5 if both else 1.8) + (20 if both else 10)) * slow
    last = (
        len(out)
        * (t.points * (2.2 if both else 1.3) + math.prod(t.m) * (2.0 + epilogue_work(region)) + (20 if both else 10))
        * slow
    )
    return first, last


def _product(region: Region, g: Geometry, t: Tiling) -> tuple[Columns, int, float]:
    """Columns, rows of a register tile, and cycles of the products of one chunk."""
    shape = Shape(
        rows=t.tiles,
        lines=t.points,
        columns=g.columns,
        depth=g.depth,
        row_step=g.depth * 4,
        line_bytes=t.tiles * g.depth * 4,
        cold=False,
        alone=True,
    )
    tile = choose(region.machine, shape)
    return tile.columns, tile.rows, tile.cycles


def _scratch(g: Geometry, t: Tiling, columns: Columns) -> tuple[int, int]:
    """Elements between the points of V and of M (one group of columns): not a multiple of a page."""
    width = min(columns.nv * columns.lanes, columns.packed)
    return t.tiles * g.depth + 16, t.tiles * width + 16


def _propose(region: Region, g: Geometry, t: Tiling) -> tuple[float, Tiling, Columns, int]:
    """Cost in cycles of the chunked form, infinite where its scratch is too large."""
    machine = region.machine
    columns, rows, product = _product(region, g, t)
    v, m = _scratch(g, t, columns)
    scratch = t.points * (v + m) * 4
    if (scratch > 0.3 * machine.l2 and t.chunk > 1) or scratch > 1.2 * machine.l2:
        return math.inf, t, columns, rows
    chunks = g.batch * t.down // t.chunk
    weights = t.points * g.depth * columns.packed * 4
    first, last = _transform_cycles(region, g, t)
    far = machine.l2_bandwidth if weights + scratch < 0.7 * machine.l2 else _outer_bandwidth(machine, weights)
    again = (0.1 if weights < machine.l3 / 2 else 0.4) * weights / far * chunks
    if scratch > 0.6 * machine.l2:
        again += 0.3 * columns.groups * t.points * v * 4 / _outer_bandwidth(machine, scratch) * chunks
    cycles = chunks * (product + t.tiles * (first + last)) + again + _cold(machine, weights)
    if cycles > 2 * WORTH_SHARING and chunks < 8:
        cycles *= 1.02 + 0.01 * (8 - chunks)  # too few tasks for several cores
    return cycles, t, columns, rows


def _outer_bandwidth(machine: Machine, weights: int) -> float:
    return machine.l3_bandwidth if machine.l3 and weights < machine.l3 / 2 else machine.memory_bandwidth


def _cold(machine: Machine, weights: int) -> float:
    """Cycles of reading the weights for the first time."""
    near = machine.l3 and weights < machine.l3 / 16
    return 0.7 * weights / (machine.l3_bandwidth if near else machine.memory_bandwidth)


# -- plans -------------------------------------------------------------------------------------------------------------


def _config(region: Region, g: Geometry, t: Tiling, columns: Columns, rows: int) -> dict[str, Any]:
    v, m = _scratch(g, t, columns)
    return {
        "program": serialize(region),
        "reads": epilogue_inputs(region),
        "m": list(t.m),
        "patch": list(t.patch),
        "down": t.down,
        "across": t.across,
        "chunk": t.chunk,
        "chunks": t.down // t.chunk,
        "batch": g.batch,
        "size": g.size[1:],
        "out": g.out[1:],
        "pads": g.pads[1:],
        "x": {"span": g.x.span, "batch": g.x.strides[0], "step": g.step[1:], "channels": g.depth},
        "columns": columns.data(),
        "packed": columns.packed,
        "rows": rows,
        "v": v,
        "mm": m,
        "bias": region.operand(2) is not None,
        "rank": region.anchor_type.rank,
    }


def _weights(region: Region, g: Geometry, t: Tiling, columns: Columns) -> tuple[tuple[np.ndarray, ...], Draft | None]:
    """Constants: transformed weights ``[group][point][channel][vectors]`` and the padded bias; or the phase that
    transforms weights that are known only at run time."""
    bias = region.operand(2)
    consts: list[np.ndarray] = []
    if bias is not None:
        held = region.inputs[bias].const
        assert held is not None
        consts.append(pack_vector(held, columns))
    if g.w.const is None:
        return tuple(consts), _transform_phase(region, g, t, columns)
    kernel = g.reduction_major(g.w.const.astype(np.float64)).reshape(*g.kernel[1:], g.depth, g.columns)
    down, right = (weight_transform(m) for m in t.m)
    u = np.einsum("ai,ijco,bj->abco", down, kernel, right, optimize=["einsum_path", (0, 1), (0, 1)])
    return (*consts, pack(u.astype(np.float32).reshape(-1, g.columns), columns)), None


def _transform_phase(region: Region, g: Geometry, t: Tiling, columns: Columns) -> Draft:
    at = region.operand(1)
    assert at is not None
    base, (_, *axes) = g.weight_rows()
    tasks = -(-g.depth // 8)
    config = {
        "span": g.w.span,
        "base": base,
        "axes": axes,  # lines, points, channels: extents and strides
        "column": g.weight_columns()[1],
        "transforms": [weight_transform(m).tolist() for m in t.m],
        "columns": columns.data(),
        "packed": columns.packed,
        "tasks": tasks,
    }
    spec, nbytes = KernelSpec("winograd.weights", config), t.points * g.depth * columns.packed * 4
    return Draft(spec, (Arg("in", at), Arg("shared")), tasks if tasks > 1 else None, prepares=nbytes)


def _operands(region: Region) -> tuple[Arg, ...]:
    """Arguments of the output transform: bias, what the epilogue reads, outputs."""
    bias = [Arg("const", 0)] if region.operand(2) is not None else []
    reads = [Arg("in", i) for i in epilogue_inputs(region)]
    return (*bias, *reads, *(Arg("out", j) for j in range(len(region.outputs))))


def _chunked(region: Region, g: Geometry, cycles: float, t: Tiling, columns: Columns, rows: int) -> Plan:
    config = _config(region, g, t, columns, rows)
    x = region.operand(0)
    assert x is not None
    v_bytes = -(-t.points * config["v"] * 4 // 64) * 64
    tasks = g.batch * config["chunks"]
    consts, phase = _weights(region, g, t, columns)
    u = Arg("shared") if phase else Arg("const", len(consts) - 1)
    args = (Arg("in", x), u, Arg("worker", 0), Arg("worker", 0, v_bytes), *_operands(region))
    config["tasks"] = tasks
    weights = t.points * g.depth * columns.packed * 4
    main = Draft(KernelSpec("winograd", config), args, tasks if tasks > 1 else None)
    return Plan(
        "winograd",
        (phase, main) if phase else (main,),
        cost=cycles / GHZ + 50 + (0.5 * weights / region.machine.lanes if phase else 0),
        consts=consts,
        shared_bytes=weights if phase else 0,
        worker_bytes=v_bytes + t.points * config["mm"] * 4,
        inplace=inplace_pairs(region),
        detail=f"winograd {t.label} {t.chunk} of {t.down} tile rows, {rows}x{columns.nv}",
    )


def _split(region: Region, g: Geometry, t: Tiling) -> Plan | None:
    machine = region.machine
    columns, rows, product = _product(region, g, t)
    config = _config(region, g, t, columns, rows)
    v_bytes = t.points * config["v"] * 4
    if v_bytes > machine.l2:
        return None
    weights = t.points * g.depth * columns.packed * 4
    first, last = _transform_cycles(region, g, t)
    cycles = product + t.tiles * (first + last) + (1 + 0.3 * columns.groups) * v_bytes / machine.l2_bandwidth
    x = region.operand(0)
    assert x is not None
    consts, _ = _weights(region, g, t, columns)
    phases = (
        Draft(KernelSpec("winograd.input", config), (Arg("in", x), Arg("shared", 0)), t.down if t.down > 1 else None),
        Draft(
            KernelSpec("winograd.output", config),
            (Arg("const", len(consts) - 1), Arg("shared", 0), Arg("worker", 0), *_operands(region)),
            columns.groups if columns.groups > 1 else None,
        ),
    )
    return Plan(
        "winograd",
        phases,
        cost=(cycles + _cold(machine, weights)) / GHZ + 500,
        consts=consts,
        shared_bytes=v_bytes,
        worker_bytes=t.points * config["mm"] * 4,
        inplace=inplace_pairs(region),
        detail=f"winograd {t.label} split, {rows}x{columns.nv}",
    )


TEMPLATE = Template(
    "winograd",
    ("conv", "conv_transpose"),
    plan,
    {
        "winograd": _winograd.emit_chunk,
        "winograd.input": _winograd.emit_input,
        "winograd.output": _winograd.emit_output,
        "winograd.weights": _winograd.emit_weights,
    },
)
