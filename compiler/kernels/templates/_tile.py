"""How a contraction is cut: register tile, column groups, blocks and tasks, by an analytical model of the machine.

A contraction here is ``Y[row, column] += A[row + tap, k] * B[tap, k, column]``: a matrix product (no taps) or a
convolution whose columns are its output channels and whose rows are the output points of one line. A register tile
holds ``rows`` points times a *group* of column vectors; each step of the reduction loads the group's vectors of B once
and broadcasts one element of A for each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ...ops import OPS, Kind
from ...ops.selection import POSITIONAL
from ...types import is_integer
from ..spec import Arg, Draft, KernelSpec, Operand, Region

GHZ = 2.5  # for estimates in nanoseconds; the same in every template
ACCUMULATORS = {"float32": "float32", "float16": "float32", "bfloat16": "float32", "float64": "float64"}
TASKS = 16  # wished number of tasks of a kernel that is worth sharing
SLOW_INTEGERS = 4.0  # by how much integers that are widened one by one take longer than float32
WORTH_SHARING = 12_000  # cycles below which a kernel stays on one core


@dataclass(frozen=True)
class Columns:
    """``count`` columns as vectors (``widths``, of which ``valid`` lanes are real), ``nv`` of them to a full group."""

    count: int
    lanes: int
    nv: int
    widths: tuple[int, ...]
    valid: tuple[int, ...]

    @cached_property
    def full(self) -> int:
        """Number of groups of ``nv`` full vectors."""
        return sum(w == v == self.lanes for w, v in zip(self.widths, self.valid, strict=True)) // self.nv

    @property
    def rests(self) -> list[tuple[int, int]]:
        """The other groups: ranges of vectors."""
        first, end = self.full * self.nv, len(self.widths)
        return [(i, min(i + self.nv, end)) for i in range(first, end, self.nv)]

    @property
    def groups(self) -> int:
        return self.full + len(self.rests)

    @property
    def packed(self) -> int:
        """Columns in memory, the padding of the last vectors counted."""
        return sum(self.widths)

    def data(self) -> dict[str, Any]:
        """For the emitter: full groups, then each rest as ``[first column, first packed column, widths, valid]``."""
        rests = [
            [sum(self.valid[:i]), sum(self.widths[:i]), list(self.widths[i:j]), list(self.valid[i:j])]
            for i, j in self.rests
        ]
        return {"lanes": self.lanes, "nv": self.nv, "full": self.full, "rests": rests}

    def slices(self) -> Iterator[Any]:
        """``(first column, first packed column, widths, valid)`` of each group."""
        for g in range(self.full):
            at = g * self.nv * self.lanes
            yield at, at, [self.lanes] * self.nv, [self.lanes] * self.nv
        yield from self.data()["rests"]


def vectors(count: int, lanes: int, *, exact: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and valid lanes of the vectors that cover ``count`` columns: full ones, then one of the next power of
    two (padded) or, where ``exact``, unpadded ones of falling width."""
    full, rest = divmod(count, lanes)
    widths, valid = [lanes] * full, [lanes] * full
    while rest:
        width = 1 << (rest - 1).bit_length() if not exact else 1 << (rest.bit_length() - 1)
        widths.append(width)
        valid.append(min(rest, width))
        rest -= valid[-1]
    return tuple(widths), tuple(valid)


def vector_spans(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Vectors side by side as ``(first lane, lanes)``."""
    return [(sum(widths[:v]), w) for v, w in enumerate(widths)]


def pieces(valid: int) -> list[tuple[int, int]]:
    """A vector's valid lanes as ``(first lane, lanes)`` of powers of two."""
    found, at = [], 0
    while at < valid:
        width = 1 << ((valid - at).bit_length() - 1)
        found.append((at, width))
        at += width
    return found


@dataclass(frozen=True)
class Shape:
    """What the choice of a tile depends on. ``lines`` times ``rows`` points; ``tails`` says that a line cannot be
    joined to the next one. ``depth`` products make an output; ``row_step`` bytes lie between the A of two rows;
    ``line_bytes`` is the part of A that one line reads."""

    rows: int
    lines: int
    columns: int
    depth: int
    row_step: int
    line_bytes: int
    epilogue: int = 1
    exact_columns: bool = False
    cold: bool = True  # B comes from memory or the outer caches once a run
    unrolled: bool = False  # the innermost loop is over few taps and written out
    alone: bool = False  # lines are products of their own: blocks are made of tiles


@dataclass(frozen=True)
class Tile:
    rows: int
    columns: Columns
    line_block: int  # lines of a block; 1 line: blocks of row_block tiles
    row_block: int
    cycles: float

    def describe(self) -> str:
        blocks = f"{self.line_block}l" if self.row_block == 0 else f"{self.row_block}t"
        return f"{self.rows}x{self.columns.nv}v{self.columns.lanes} block {blocks}"


def of_sums(machine: Machine, dtype: str) -> Machine:
    """The machine as sums of that type see it. Without vectors, integers lie in the core's own registers, of which a
    dozen are free, and a product of narrow ones takes the multiplication and what widens it."""
    if machine.lanes > 1 or not is_integer(dtype):
        return machine
    return replace(machine, registers=12, fma_ports=machine.multiplies / 2, issues=1)


def step_cycles(machine: Machine, rows: int, widths: Sequence[int], itemsize: int = 4) -> float:
    """Cycles of one reduction step of a tile whose operands lie in the first-level cache."""
    lanes = machine.lanes * 4 // itemsize
    # a core that issues one full-width FMA splits it over two half-width units: narrow ones cost half
    half = 0.5 if machine.fma_ports == 1 and machine.lanes == 16 else 1.0
    fma = rows * sum(max(half, w / lanes) if w < lanes else 1.0 for w in widths) / machine.fma_ports
    scalar_loads = (
        min(2.0, 2 * machine.load_ports) if machine.lanes == 16 or machine.load_ports < 1 else machine.load_ports
    )
    loads = rows / scalar_loads + len(widths) / machine.load_ports
    if machine.issues == 1:
        return max(fma, float(machine.fma_latency)) + loads
    contention = 0.15 if machine.fma_ports >= 2 else 0.03
    return max(fma, loads, float(machine.fma_latency)) + contention * loads


def conflicts(machine: Machine, rows: int, row_step: int) -> bool:
    """Whether the lines that ``rows`` rows walk at once fall into too few sets of the first-level cache."""
    span = machine.l1 // machine.l1_ways
    step = row_step % span
    distinct = span // math.gcd(step, span) if step else 1
    return rows / max(1, min(distinct, span // machine.line)) > machine.l1_ways - 2


def tile_candidates(machine: Machine, shape: Shape, count: int) -> Iterator[tuple[int, int]]:
    """Register tiles ``(rows, vectors)`` that leave the register file some air: LLVM hoists loads, and larger tiles
    than these spill sooner than they save loads."""
    most = machine.registers // 2 if shape.unrolled else machine.registers * 3 // 4
    for nv in range(1, min(count, 12) + 1):
        for r in range(1, min(shape.rows, most // nv, (machine.registers - 1 - nv) // nv) + 1):
            yield r, nv


@lru_cache(4096)
def choose(machine: Machine, shape: Shape, itemsize: int = 4) -> Tile:
    """The cheapest tile and blocking; deterministic."""
    lanes = max(1, machine.lanes * 4 // itemsize)
    widths, valid = vectors(shape.columns, lanes, exact=shape.exact_columns)
    weights = shape.depth * sum(widths) * itemsize
    stream = machine.l2_bandwidth if weights <= machine.l2 else machine.l3_bandwidth
    if weights > max(machine.l3, machine.l2):
        stream = machine.memory_bandwidth
    best: tuple[float, int, int, Columns] | None = None
    for rows, nv in tile_candidates(machine, shape, len(widths)):
        columns = Columns(shape.columns, lanes, nv, widths, valid)
        total = 0.0
        for group, times in _group_kinds(columns):
            for r, count in ((rows, shape.rows // rows), (shape.rows % rows, 1)):
                if not r or not count:
                    continue
                step = step_cycles(machine, r, group, itemsize)
                if conflicts(machine, r, shape.row_step):
                    step *= 1.4
                step = max(step, sum(group) * itemsize / stream)
                total += times * count * (shape.depth * step + 14 + r * len(group) * (1.5 + shape.epilogue))
        if best is None or total < best[0] * 0.999:
            best = (total, rows, nv, columns)
    assert best is not None
    line_block, row_block, extra = cut_blocks(machine, shape, best[1], best[3], weights, best[0] * shape.lines)
    cold = weights / (machine.l3_bandwidth if machine.l3 and weights < machine.l3 / 16 else machine.memory_bandwidth)
    cycles = best[0] * shape.lines + extra + (0.5 * cold if shape.cold else 0.0)
    return Tile(best[1], best[3], line_block, row_block, cycles)


def _group_kinds(columns: Columns) -> list[tuple[tuple[int, ...], int]]:
    kinds = [(columns.widths[: columns.nv], columns.full)] if columns.full else []
    return kinds + [(columns.widths[i:j], 1) for i, j in columns.rests]


def cut_blocks(
    machine: Machine, shape: Shape, rows: int, columns: Columns, weights: int, cycles: float
) -> tuple[int, int, float]:
    """Lines (or, where there is one line, tiles) that are computed for one column group before the next, and the
    cycles spent on fetching A and B again. Few rows keep A near, many keep B near."""
    lines = shape.lines > 1 and not shape.alone
    units = shape.lines if lines else max(1, shape.rows // rows)
    unit_bytes = shape.line_bytes if lines else shape.line_bytes * rows // max(1, shape.rows)
    far = machine.l3_bandwidth if machine.l3 else machine.memory_bandwidth
    best: tuple[float, int] | None = None
    block = 1
    sizes = []
    while block < units:
        sizes.append(block)
        block *= 2
    for block in [*sizes, units]:
        blocks = -(-units // block)
        again = 0.0
        if weights > 0.6 * machine.l2:
            again += 0.5 * (blocks - 1) * weights / far
        elif weights > 0.5 * machine.l1 and block > 1:
            again -= 0.0
        held = block * unit_bytes
        if held > 0.6 * machine.l2:
            again += 0.5 * (columns.groups - 1) * units * unit_bytes / far
        elif held > 0.6 * machine.l1:
            again += 0.15 * (columns.groups - 1) * units * unit_bytes / machine.l2_bandwidth
        if cycles > WORTH_SHARING and blocks * columns.groups < min(TASKS, units * columns.groups):
            again += 0.02 * cycles
        if best is None or again < best[0] - 1:
            best = (again, block)
    assert best is not None
    return (best[1], 0, best[0]) if lines else (1, best[1], best[0])


def pack(matrix: np.ndarray, columns: Columns) -> np.ndarray:
    """``[..., depth, count]`` as ``[..., group, depth, vectors of the group]``, padded with zeros, flat."""
    *outer, depth, _ = matrix.shape
    parts = []
    for first, _, widths, valid in columns.slices():
        part = matrix[..., first : first + sum(valid)]
        if sum(widths) > sum(valid):
            part = np.concatenate([part, np.zeros((*outer, depth, sum(widths) - sum(valid)), matrix.dtype)], axis=-1)
        parts.append(part.reshape(*outer, -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=-1)).reshape(-1)


def pack_vector(vector: np.ndarray, columns: Columns) -> np.ndarray:
    """``[..., count]`` padded as ``pack`` pads columns."""
    return pack(vector[..., None, :], columns)


def accumulator(dtype: str) -> str:
    """The element type that sums of products of ``dtype`` are kept in."""
    if is_integer(dtype):
        return "int64" if dtype in ("int64", "uint64") else dtype
    return ACCUMULATORS[dtype]


def split(dims: list[int], cycles: float) -> int:
    """How many of the outer dimensions make up the tasks: as few as give enough tasks; 0 for little work."""
    if cycles < WORTH_SHARING or math.prod(dims) == 1:
        return 0
    for i in range(1, len(dims) + 1):
        if math.prod(dims[:i]) >= TASKS:
            return i
    return len(dims)


def pack_draft(
    source: Operand,
    outer: list[list[int]],
    axes: list[list[int]],
    column: int,
    columns: Columns,
    dtype: str,
    arg: Arg,
    blocks: list[tuple[int, list[list[int]]]] | None = None,
) -> Draft:
    """The phase ``[outer][axes][column]`` (extents and strides of ``source``) to packed columns at shared offset 0.
    ``blocks`` are several kinds of rows, one behind the other: where each begins in ``source``, and its axes."""
    blocks = blocks or [(0, axes)]
    config: dict[str, Any] = {
        "type": source.type.dtype,
        "span": source.span,
        "dtype": dtype,
        "outer": outer,
        "blocks": [[base, own] for base, own in blocks],
        "column": column,
        "depth": sum(math.prod(a[0] for a in own) for _, own in blocks),
        "packed": columns.packed,
        "columns": columns.data(),
    }
    count = math.prod(o[0] for o in outer)
    tasks = count * columns.groups
    nbytes = count * config["depth"] * columns.packed * np.dtype(dtype).itemsize
    spec = KernelSpec("conv.pack", config)
    return Draft(spec, (arg, Arg("shared", 0)), tasks if tasks > 1 else None, prepares=nbytes)


# -- what a contraction template must know of its region ------------------------------------------------------------


def fits(region: Region) -> bool:
    """Whether everything behind the anchor is elementwise and nothing lies before it."""
    body, anchor = region.body, region.anchor
    if anchor is None or len(body.values(anchor)) != 1:
        return False
    if any(a is not None and a.node not in body.inputs for a in body.args(anchor)):
        return False
    for n in body:
        kind = OPS[body.node(n).op].kind
        if n != anchor and kind in (Kind.INJECTIVE, Kind.VIEW) and anchor in _ancestors(region, n):
            return False
    dims = region.anchor_type.dims
    return all(dims) and all(o.type.dims == dims for o in region.outputs)


def _ancestors(region: Region, node: int) -> set[int]:
    found: set[int] = set()
    stack = [node]
    while stack:
        for p in region.body.nx.predecessors(stack.pop()):
            if p not in found:
                found.add(p)
                stack.append(p)
    return found


def epilogue_inputs(region: Region) -> list[int]:
    """Region inputs that the elementwise work reads (the anchor's own operands only if that reads them too)."""
    body = region.body
    used = {p for n in body if n != region.anchor and body.node(n).op != "input" for p in body.nx.predecessors(n)} | {
        v.node for v in body.outputs
    }
    return [i for i, n in enumerate(body.inputs) if n in used]


def epilogue_work(region: Region) -> int:
    return sum(OPS[region.body.node(n).op].kind is Kind.ELEMENTWISE for n in region.body)


def coordinates_matter(region: Region) -> bool:
    """Whether some operator looks at more than addresses, so that axes must not be joined."""
    ops = [region.body.node(n).op for n in region.body]
    return any(op in POSITIONAL or OPS[op].kind in (Kind.INJECTIVE, Kind.VIEW) for op in ops)


def joinable(region: Region, inner: int, outer: int, inputs: Sequence[int], extent: int | None = None) -> bool:
    """Whether the outputs and the given inputs (aligned at the right to the output) walk two output axes as one.
    ``extent`` is that of the inner axis with what has been joined to it already."""
    rank = region.anchor_type.rank
    dims = region.anchor_type.dims
    reach = dims[inner] if extent is None else extent
    for operand in (*region.outputs, *(region.inputs[i] for i in inputs)):
        shift = rank - operand.type.rank
        own = [
            (operand.type.dims[a - shift], operand.strides[a - shift]) if a >= shift else (1, 0) for a in (outer, inner)
        ]
        (d_out, s_out), (d_in, s_in) = own
        if dims[outer] == 1:
            continue
        whole = d_out == dims[outer] and d_in == dims[inner] and s_out == s_in * reach
        if not (whole or (d_out == 1 and d_in == 1)):
            return False
    return True


def inplace_pairs(region: Region) -> tuple[tuple[int, int], ...]:
    """(input, output) pairs that may share a buffer: read exactly where, and just before, it is written."""
    own = {region.operand(i) for i in range(3)}
    return tuple(
        (i, j)
        for j, out in enumerate(region.outputs)
        for i in epilogue_inputs(region)
        if i not in own
        and region.inputs[i].type.dims == out.type.dims
        and region.inputs[i].type.itemsize == out.type.itemsize
        and region.inputs[i].strides == out.strides
    )
