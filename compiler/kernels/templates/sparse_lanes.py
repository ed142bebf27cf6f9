"""Matrix products and convolutions of weights with a pattern of its own for each output: outputs are in the lanes.

A window of neighbouring channels of x is loaded as a vector, once for each row. Each lane then has its own list of
non-zeros in that window, as long as the longest one: a permutation picks the lane's inputs (places of four bits), an
FMA multiplies them. Right for N:M, where all lists are equally long. Row tiles, borders, tasks and epilogue are those
of the dense contraction. Where the machine has no such permutation (a row ``permute``) there is no plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _sparse_lanes_emit, conv, matmul
from ._sparse import sparse_matrix
from ._sparse_lanes_emit import words
from ._tile import (
    GHZ,
    Columns,
    Shape,
    Tile,
    conflicts,
    cut_blocks,
    epilogue_inputs,
    epilogue_work,
    fits,
    inplace_pairs,
    pack,
    pack_vector,
    vectors,
)

FEW = 4  # rows below which bytes of weights cost more than instructions
MOST = 0.8  # part of a window's places beyond which a dense kernel is better for sure


@dataclass(frozen=True)
class Windows:
    """``full`` windows of ``lanes`` channels with ``slots`` non-zeros for each output, and a last one of ``rest``
    (0: there is none), which begins at channel ``last``; so for each of the ``taps``. Places take ``bits``: bytes need
    no shift, fours less room."""

    lanes: int
    taps: int
    channels: int
    full: int
    slots: int
    rest: int
    bits: int = 4

    @property
    def last(self) -> int:
        return self.channels - self.lanes

    @property
    def rows(self) -> int:
        """Rows of words and weights for each tap."""
        return self.full * self.height(self.slots) + self.height(self.rest)

    def height(self, slots: int) -> int:
        """Rows of a window."""
        return slots + words(slots, self.bits)

    def data(self) -> dict[str, int]:
        found = {"lanes": self.lanes, "full": self.full, "slots": self.slots, "rest": self.rest, "last": self.last}
        return {**found, "bits": self.bits}

    def placed(self, rows: int, small: bool) -> Windows:
        """With places of the better size for so many rows."""
        free = words(self.slots, 8) == words(self.slots, 4)
        return replace(self, bits=8 if free or (rows >= FEW and not small) else 4)


def plan(region: Region) -> list[Plan]:
    """One plan, where the machine permutes and windows are empty enough."""
    permute = region.machine.instruction("permute")
    if permute is None or region.anchor_type.dtype != "float32" or not fits(region) or region.operand(0) is None:
        return []
    matrix = sparse_matrix(region)
    x = region.inputs[region.operand(0)]  # type: ignore[index]
    if matrix is None or x.type.dtype != "float32":
        return []
    reads = epilogue_inputs(region)
    return _product(region, matrix, reads) if region.op == "matmul" else _convolution(region, matrix, reads)


def windows_of(matrix: np.ndarray, channels: int, lanes: int) -> Windows | None:
    """The windows of a matrix ``[K, N]``; None where they would not pay."""
    if channels < lanes:
        return None
    taps, full = matrix.shape[0] // channels, channels // lanes
    alive = (matrix != 0).reshape(taps, channels, -1)
    cells = alive[:, : full * lanes].reshape(taps, full, lanes, -1).sum(axis=2, dtype=np.int32)
    slots = int(cells.max(initial=0))
    rest = int(alive[:, full * lanes :].sum(axis=1, dtype=np.int32).max(initial=0))
    if not slots or slots > MOST * lanes:
        return None
    return Windows(lanes, taps, channels, full, slots, rest)


def _product(region: Region, matrix: np.ndarray, reads: list[int]) -> list[Plan]:
    p = matmul.product(region, reads)
    form = windows_of(matrix, p.depth, region.machine.lanes)
    if form is None or p.a_step != 1:
        return []
    shape = Shape(
        rows=p.rows.extent,
        lines=math.prod(o.extent for o in p.outer),
        columns=p.columns,
        depth=p.depth,
        row_step=abs(p.rows.a) * 4,
        line_bytes=p.rows.extent * p.depth * 4,
        epilogue=epilogue_work(region),
        alone=True,
    )
    form = form.placed(shape.rows * shape.lines, region.small)
    tile = choose(region.machine, shape, form)
    config = matmul.configure(region, p, tile, "float32", reads, False)
    return [_assemble(region, matrix, form, tile, config)]


def _convolution(region: Region, matrix: np.ndarray, reads: list[int]) -> list[Plan]:
    g = conv.Geometry(region)
    if g.flat(region, reads):
        g.flatten()
    form = windows_of(matrix, g.depth, region.machine.lanes)
    if form is None or g.planes or g.x.strides[1] != 1:
        return []
    shape = conv.shape_of(region, g)
    form = form.placed(shape.rows * shape.lines, region.small)
    tile = choose(region.machine, shape, form)
    config = conv.configure(region, g, tile, "float32", reads)
    return [_assemble(region, matrix, form, tile, config)]


# -- how it is cut -------------------------------------------------------------------------------------------------


def choose(machine: Machine, shape: Shape, form: Windows) -> Tile:
    """The cheapest register tile; deterministic."""
    widths, valid = vectors(shape.columns, machine.lanes)
    kept = form.taps * form.rows * sum(widths) * 4
    best: Tile | None = None
    for nv in range(1, min(len(widths), 6) + 1):
        columns = Columns(shape.columns, machine.lanes, nv, widths, valid)
        for rows in range(1, min(shape.rows, 16) + 1):
            if rows * (nv + 1) + nv + 3 > machine.registers:
                break
            cycles = _cycles(machine, shape, form, columns, rows, kept)
            if best is None or cycles < 0.998 * best.cycles:
                best = Tile(rows, columns, 1, 0, cycles)
    assert best is not None
    total = best.cycles * shape.lines + 0.5 * cold_cycles(machine, kept)
    line_block, row_block, extra = cut_blocks(
        machine, replace(shape, cold=False), best.rows, best.columns, kept, best.cycles * shape.lines
    )
    return Tile(best.rows, best.columns, line_block, row_block, total + extra)


def cold_cycles(machine: Machine, kept: int) -> float:
    """Cycles until weights have come from where they lie between runs."""
    return kept / (machine.l3_bandwidth if machine.l3 and kept < machine.l3 / 16 else machine.memory_bandwidth)


def _cycles(machine: Machine, shape: Shape, form: Windows, columns: Columns, rows: int, kept: int) -> float:
    """All tiles of one line."""
    stream = machine.l2_bandwidth if kept <= machine.l2 else machine.l3_bandwidth
    if kept > max(machine.l3, machine.l2):
        stream = machine.memory_bandwidth
    kinds = [(columns.widths[: columns.nv], columns.full)] if columns.full else []
    kinds += [(columns.widths[i:j], 1) for i, j in columns.rests]
    # results that leave the caches are written faster when few rows are open at once
    open_rows = 0.25 if shape.rows * shape.lines * shape.columns * 4 > machine.l2 else 0.0
    total = 0.0
    for group, times in kinds:
        for r, count in ((rows, shape.rows // rows), (shape.rows % rows, 1)):
            if not r or not count:
                continue
            step = form.full * window_cycles(machine, r, group, form.slots, form.bits, stream)
            step += window_cycles(machine, r, group, form.rest, form.bits, stream) if form.rest else 0.0
            if conflicts(machine, r, shape.row_step):
                step *= 1.2
            total += times * count * (form.taps * step + 14 + r * len(group) * (1.5 + open_rows * r + shape.epilogue))
    return total


def window_cycles(machine: Machine, rows: int, group: tuple[int, ...], slots: int, bits: int, stream: float) -> float:
    """Cycles of one window of a register tile: permutations and FMAs share ports on some cores."""
    permute = machine.instruction("permute")
    assert permute is not None
    fma, pick = 1 / machine.fma_ports, 1 / permute.per_cycle
    pair = max(fma, pick) + 0.4 * min(fma, pick)
    # a half vector takes half the time where there is a permutation as wide, and one FMA a cycle in two halves
    halves = machine.instruction("permute2") is not None and machine.fma_ports == 1
    vectors = sum(0.5 if halves and 2 * w == machine.lanes else 1.0 for w in group)
    work = slots * (vectors * rows * pair + len(group) * 0.5 * (bits == 4))
    loads = (rows + len(group) * 2 * slots) / machine.load_ports
    latency = slots * (machine.fma_latency + 1.0)
    far = (slots + words(slots, bits)) * sum(group) * 4 / stream
    return max(work, loads, latency, far) + 0.1 * loads


# -- what is kept --------------------------------------------------------------------------------------------------


def packed(matrix: np.ndarray, form: Windows) -> np.ndarray:
    """``[rows of words and weights, N]``, tap after tap, window after window."""
    taps = matrix.reshape(form.taps, form.channels, -1)
    inner = form.full * form.lanes
    full = taps[:, :inner].reshape(form.taps * form.full, form.lanes, -1)
    parts = _windows(full, form.slots, form.bits).reshape(form.taps, -1, taps.shape[-1])
    if form.rest:
        own = taps[:, form.last :].copy()
        own[:, : inner - form.last] = 0  # in the window before
        parts = np.concatenate([parts, _windows(own, form.rest, form.bits)], axis=1)
    return parts.reshape(-1, taps.shape[-1])


def _windows(values: np.ndarray, slots: int, size: int) -> np.ndarray:
    """Windows ``[count, lanes, N]`` as ``[count, words and weights, N]``; the words' bits as float32."""
    places = np.argsort(values == 0, axis=1, kind="stable")[:, :slots]
    weights = np.take_along_axis(values, places, axis=1)
    count, _, n = values.shape
    each = 32 // size
    bits = np.zeros((count, words(slots, size), n), np.uint32)
    for s in range(slots):
        bits[:, s // each] |= places[:, s].astype(np.uint32) << np.uint32(s % each * size)
    return np.concatenate([bits.view(np.float32), weights], axis=1)


def _assemble(region: Region, matrix: np.ndarray, form: Windows, tile: Tile, config: dict[str, Any]) -> Plan:
    """The plan of a contraction with a chosen tile."""
    columns = tile.columns
    depth = form.taps * form.rows
    config |= {"depth": depth, "windows": form.data()}
    config["b"] |= {"span": depth * columns.packed}
    if region.op == "conv":  # taps lie closer together
        for name in ("slab", "line", "point"):
            if config[name] is not None:
                config[name]["tap_b"] = config[name]["tap_b"] // form.channels * form.rows
        for outer in config["outer"]:
            outer["b"] = 0
    consts = [pack(packed(matrix, form), columns)]
    x, bias = region.operand(0), region.operand(2)
    assert x is not None
    args = [Arg("in", x), Arg("const", 0)]
    if config["bias"]:
        held = region.inputs[bias].const if bias is not None else None
        assert held is not None
        args.append(Arg("const", len(consts)))
        consts.append(pack_vector(held.astype(np.float32), columns))
    args += [Arg("in", i) for i in config["reads"]] + [Arg("out", j) for j in range(len(region.outputs))]
    args.append(Arg("const", 0))
    cycles = tile.cycles
    y = region.outputs[0]
    if region.op == "conv" and y.type.dims[1] > 1 and y.strides[1] != 1:
        cycles += 2.0 * y.type.size  # channels apart in memory: vectors are stored lane by lane
    return Plan(
        "sparse_lanes",
        (Draft(KernelSpec("sparse_lanes", config), tuple(args), matmul.tasks_of(config)),),
        cost=cycles / GHZ + 50,
        consts=tuple(consts),
        inplace=inplace_pairs(region),
        detail=f"windows {form.slots} of {form.lanes}, {tile.describe()}",
    )


TEMPLATE = Template("sparse_lanes", ("matmul", "conv"), plan, {"sparse_lanes": _sparse_lanes_emit.emit})
