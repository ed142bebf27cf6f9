"""Products with constant weights of which any may be zero: rows (or output points) are put in the lanes.

The inputs of a tile of rows are turned into columns in scratch, a column for each k (and tap of a kernel, borders
being zeros). Each non-zero weight then costs an FMA for each vector of rows, wherever it is; sums are turned back and
go through the epilogue. The scheme is that of *Fast Sparse ConvNets* (Elsen, Dukhan, Gale, Simonyan, 2020), which
leaves the layout to the network; here it changes inside the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _sparse_rows_emit
from ._sparse import sparse_matrix
from ._sparse_rows_pack import Cut, Packed, pack, pad_bias, pitch_of
from ._tile import GHZ, TASKS, WORTH_SHARING, epilogue_inputs, epilogue_work, fits, inplace_pairs, joinable, vectors
from .conv import Geometry
from .matmul import product

SCRATCH = 0.3  # part of the bytes that come and go, which fits beside them in most arenas
_ROLLED = 3  # elementwise operations beyond which the epilogue is not written out for each row


@dataclass
class Problem:
    """A product of rows of x (or of its patches) and a sparse matrix, as the emitter sees it."""

    rows: int
    depth: int
    outputs: int
    channels: int
    x: dict[str, int]  # span, base, row (where rows are apart evenly), step (from channel to channel)
    outer: list[dict[str, Any]]
    axes: dict[str, Any]
    walk: dict[str, Any] = field(default_factory=dict)  # how rows lie in an image, where they are not apart evenly

    @property
    def taps(self) -> int:
        return self.depth // self.channels

    @property
    def repeats(self) -> int:
        return math.prod(o["extent"] for o in self.outer)

    @property
    def direct(self) -> bool:
        """Whether x is a column as it lies: a row alone, one element after the other."""
        return self.rows == 1 and not self.walk and self.x["step"] == 1


def _matmul(region: Region, reads: list[int]) -> Problem | None:
    p = product(region, reads)
    if p.column is None or any(o.b for o in p.outer):
        return None
    outer = [{"extent": o.extent, "a": o.a, "axis": o.out} for o in p.outer]
    axes = {"rank": region.anchor_type.rank, "line": None, "point": p.rows.out, "column": p.column, "width": 0}
    x = {"span": p.a.span, "base": 0, "row": p.rows.a, "step": p.a_step}
    return Problem(p.rows.extent, p.depth, p.columns, p.depth, x, outer, axes)


def _conv(region: Region, reads: list[int]) -> Problem | None:
    g = Geometry(region)
    if g.rank > 2:
        return None
    outer = [{"extent": g.batch, "a": g.x.strides[0], "axis": 0}]
    rank = region.anchor_type.rank
    axes: dict[str, Any] = {"rank": rank, "line": rank - 2, "point": rank - 1, "column": 1, "width": g.out[2]}
    x = {"span": g.x.span, "base": 0, "row": g.step[2] * g.strides[2], "step": g.x.strides[1]}
    if g.rank == 1 or g.out[1] == 1 or joinable(region, rank - 1, rank - 2, reads):
        axes["width"], axes["line"] = 0, None
    plain = g.kernel == [1, 1, 1] and not any(g.pads)
    if plain and (g.out[1] == 1 or (g.strides[1:] == [1, 1] and g.step[1] == g.step[2] * g.size[2])):
        return Problem(g.out[1] * g.out[2], g.depth, g.columns, g.depth, x, outer, axes)
    walk: dict[str, Any] = {"width": g.out[2]}
    for name, i in (("line", 1), ("point", 2)):
        walk[name] = {"taps": g.kernel[i], "step": g.step[i], "stride": g.strides[i], "dilation": g.dilations[i]}
        walk[name] |= {"pad": g.pads[i], "size": g.size[i], "border": g.border(i)}
    depth = g.depth * math.prod(g.kernel)
    return Problem(g.out[1] * g.out[2], depth, g.columns, g.depth, x, outer, axes, walk)


def plan(region: Region) -> list[Plan]:
    """One plan where the weights are a constant with zeros, and one of less scratch where it takes much."""
    matrix = sparse_matrix(region)
    if matrix is None or not fits(region) or region.operand(0) is None:
        return []
    if {region.anchor_type.dtype, matrix.dtype.name, *(_types(region))} != {"float32"}:
        return []
    reads = epilogue_inputs(region)
    problem = (_matmul if region.op == "matmul" else _conv)(region, reads)
    if problem is None or _bias(region) is False:
        return []
    kept, work = int(np.count_nonzero(matrix)), epilogue_work(region)
    best = choose(region.machine, problem, kept, work)
    found = [best]
    room = SCRATCH * 4 * (problem.x["span"] + region.anchor_type.size)
    if sum(scratch(problem, best, region.machine.lanes)) > room:
        found.append(choose(region.machine, problem, kept, work, room))
    return [_assemble(region, problem, tiling, matrix, reads) for tiling in found]


def _types(region: Region) -> set[str]:
    at = region.operand(0)
    return set() if at is None else {region.inputs[at].type.dtype}


def _bias(region: Region) -> Any:
    """The anchor's constant bias; None where it has none, False where it is computed."""
    if len(region.body.args(region.anchor or 0)) < 3 or region.body.args(region.anchor or 0)[2] is None:
        return None
    at = region.operand(2)
    const = None if at is None else region.inputs[at].const
    return False if const is None else const


@dataclass(frozen=True)
class Tiling:
    """Kinds of tiles (the emitter's data), the cut of the weights and the time in cycles."""

    tiles: tuple[dict[str, Any], ...]
    cut: Cut
    cycles: float
    tasks: int

    @property
    def pitch(self) -> int:
        return max(len(t["widths"]) for t in self.tiles)


def kinds(rows: int, lanes: int, most: int) -> tuple[dict[str, Any], ...]:
    """Tiles of ``most`` vectors of rows, and a last one of what is left."""
    widths, valid = vectors(rows, lanes)
    full = rows // lanes // most
    found = []
    if full:
        found.append({"widths": [lanes] * most, "valid": [lanes] * most, "repeat": full})
    if len(widths) > full * most:
        found.append({"widths": list(widths[full * most :]), "valid": list(valid[full * most :]), "repeat": 1})
    for i, tile in enumerate(found):
        tile |= {"rows": most * lanes, "start": full * most * lanes if i or not full else 0}
    return tuple(found)


def choose(machine: Machine, problem: Problem, count: int, epilogue: int, room: float = math.inf) -> Tiling:
    """The cheapest tile and cut whose scratch fits in ``room`` bytes (or that with the least); deterministic."""
    best: Tiling | None = None
    least: Tiling | None = None
    for most in range(1, min(8, machine.registers // 2) + 1):
        tiles = kinds(problem.rows, machine.lanes, most)
        for cut in _cuts(machine, problem, tiles):
            found = _timed(machine, problem, tiles, cut, count, epilogue)
            need = sum(scratch(problem, found, machine.lanes))
            if least is None or need < sum(scratch(problem, least, machine.lanes)):
                least = found
            if need <= room and (best is None or found.cycles < best.cycles * 0.999):
                best = found
    chosen = best or least
    assert chosen is not None
    return chosen


def scratch(problem: Problem, tiling: Tiling, lanes: int) -> tuple[int, int]:
    """Bytes of columns and of sums, for each worker."""
    pitch = max(pitch_of(t["widths"], lanes) for t in tiling.tiles) * 4
    columns = 0 if problem.direct else (min(tiling.cut.block, problem.depth) + lanes) * pitch
    return -(-columns // 64) * 64, tiling.cut.padded * pitch + lanes * 4  # a vector is read from the last row on


def _cuts(machine: Machine, problem: Problem, tiles: Sequence[dict[str, Any]]) -> Iterator[Cut]:
    lanes, vectors = machine.lanes, max(len(t["widths"]) for t in tiles)
    pitch = max(pitch_of(t["widths"], lanes) for t in tiles) * 4
    together = max(1, min(4, machine.registers // 4 // vectors, problem.outputs))
    unit = problem.channels if problem.taps > 1 else lanes
    blocks = {problem.depth}
    for size in (machine.l2 // 4, *(machine.l1 * n // 8 for n in (6, 4, 2, 1))):
        held = size // pitch // unit * unit
        blocks |= {max(unit, min(problem.depth, held))}
    sums = machine.l2 // 3 // pitch
    for block in sorted(blocks):
        if block >= 1 << 16:
            continue
        for tasks in (1, 2, 4, 8, 16, 32, 64):
            chunk = -(-problem.outputs // tasks)
            chunk = min(-(-chunk // lanes) * lanes, max(lanes, sums // lanes * lanes), 1 << 15)
            yield Cut(chunk, block, together)


def _timed(
    machine: Machine, problem: Problem, tiles: tuple[dict[str, Any], ...], cut: Cut, count: int, epilogue: int
) -> Tiling:
    chunks, blocks = -(-problem.outputs // cut.chunk), -(-problem.depth // cut.block)
    cycles = 0.0
    for tile in tiles:
        own = _walk(machine, problem, tile, cut, count, blocks)
        vectors = len(tile["widths"])
        turned = problem.depth * chunks * TURN * (1.5 if problem.walk else 1.0)
        turned *= max(1.0, machine.lanes / problem.channels) ** NARROW
        back = problem.outputs * (TURN + 1.5 + epilogue)
        if pitch_of(tile["widths"], machine.lanes) == 1:
            turned, back = (2 * n / machine.lanes for n in (turned, back))
        turned = 0.0 if problem.direct else turned
        cycles += tile["repeat"] * (own + vectors * (turned + back))
    cycles *= problem.repeats
    tasks = chunks * problem.repeats * sum(t["repeat"] for t in tiles)
    if cycles > WORTH_SHARING and tasks < TASKS:
        cycles *= 1 + 0.04 * math.log2(TASKS / tasks)
    cold = (
        count * 5 / (machine.l3_bandwidth if machine.l3 and count * 5 < machine.l3 / 16 else machine.memory_bandwidth)
    )
    return Tiling(tiles, cut, cycles + 0.5 * cold, tasks if cycles > WORTH_SHARING else 1)


TURN = 5.0  # cycles to turn one vector
NARROW = 0.7  # a power: how much longer it takes where there are fewer channels than lanes, which go one by one


def _walk(machine: Machine, problem: Problem, tile: dict[str, Any], cut: Cut, count: int, blocks: int) -> float:
    """Cycles of the non-zeros of one tile."""
    lanes, vectors = machine.lanes, len(tile["widths"])
    fma = sum(w / lanes for w in tile["widths"]) / machine.fma_ports
    loads = sum(max(0.5, w / lanes) for w in tile["widths"]) / machine.load_ports + 1.0 / machine.load_ports / 2
    held = cut.block * pitch_of(tile["widths"], lanes) * 4
    far = sum(tile["widths"]) * 4 / machine.l2_bandwidth * max(0.0, 1 - 1.2 * machine.l1 / held)
    apart = 0.25 * min(fma, loads) if lanes == 4 else 0.0  # narrow cores load and multiply in two instructions
    step: float = max(fma, loads) + apart + 0.45 * far + 0.45
    if sum(tile["widths"]) * 4 <= lanes:
        step *= 1.5  # dense kernels of few rows wait for memory in the model, but not where caches hold the weights
    groups: float = problem.outputs / cut.together * blocks
    begin: float = 12 + cut.together * vectors * (2.0 if blocks == 1 else 3.5)
    return count * step + groups * begin


def _assemble(region: Region, problem: Problem, tiling: Tiling, matrix: np.ndarray, reads: list[int]) -> Plan:
    cut, lanes = tiling.cut, region.machine.lanes
    packed = pack(matrix, cut)
    constant = _bias(region)
    bias = pad_bias(constant, problem.outputs, cut)
    chunks, blocks = -(-problem.outputs // cut.chunk), -(-problem.depth // cut.block)
    held, sums = scratch(problem, tiling, lanes)
    tasks = chunks * problem.repeats * sum(t["repeat"] for t in tiling.tiles)
    config = {
        "program": serialize(region),
        "lanes": lanes,
        "index": packed.index.dtype.name,
        "sizes": _sizes(packed, bias, held // 4, sums // 4),
        "x": problem.x,
        "outer": problem.outer,
        "axes": problem.axes,
        "walk": problem.walk,
        "flat": not problem.walk,
        "direct": problem.direct,
        "tiles": list(tiling.tiles),
        "tasks": tasks,
        "chunks": chunks,
        "chunk": cut.chunk,
        "padded": cut.padded,
        "blocks": blocks,
        "block": cut.block,
        "together": cut.together,
        "taps": problem.taps,
        "channels": problem.channels,
        "outputs": problem.outputs,
        "reads": reads,
        "rolled": epilogue_work(region) > _ROLLED,
    }
    consts = [packed.weights, packed.index, packed.heads, packed.starts, *([] if bias is None else [bias])]
    x = region.operand(0)
    assert x is not None
    args = [Arg("in", x), *(Arg("const", i) for i in range(len(consts))), *(Arg("in", i) for i in reads)]
    args += [Arg("out", j) for j in range(len(region.outputs))]
    args += [Arg("worker", 0), Arg("worker", 0, held)]
    return Plan(
        "sparse_rows",
        (Draft(KernelSpec("sparse_rows", config), tuple(args), tasks if tasks > 1 else None),),
        cost=tiling.cycles / GHZ + 50,
        consts=tuple(consts),
        worker_bytes=held + sums,
        inplace=inplace_pairs(region),
        detail=f"sparse rows {tiling.pitch}v{lanes}x{cut.together}, k {cut.block}, outputs {cut.chunk}",
    )


def _sizes(packed: Packed, bias: np.ndarray | None, columns: int, sums: int) -> dict[str, int]:
    return {
        "weights": packed.weights.size,
        "heads": packed.heads.size,
        "starts": packed.starts.size,
        "bias": 0 if bias is None else bias.size,
        "columns": columns,
        "sums": sums,
    }


TEMPLATE = Template("sparse_rows", ("matmul", "conv"), plan, {"sparse_rows": _sparse_rows_emit.emit})
