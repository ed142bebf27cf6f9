"""How a matrix product is cut for a GPU: block tile, warps' tiles, stages of copies and parts of the depth.

A block computes ``rows x columns`` sums. Its operands come through shared memory in ``stages`` pieces of ``depth``
steps each, copied while the products of earlier pieces run; every warp multiplies its own tile on the tensor cores
(``function``) or, without one, every thread a tile of ``warp_rows x warp_columns`` by FMA. Sources: PTX ISA (fragment
layouts of mma.m16n8k*, ldmatrix, cp.async); Kerr et al., "CUTLASS: Fast Linear Algebra in CUDA C++" (2017) for the
hierarchy of tiles. Convolutions are such products whose rows' addresses another loader finds (``_cuda_mma_load``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from ....targets.gpu import Gpu
from ._cuda_cost import Load, busy, fits, nanoseconds, resident

CHUNK = 16  # bytes of the widest copy
STEP = 32  # bytes of depth that one tensor-core instruction takes of each row
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int8": 1, "uint8": 1}
MATRIX = {"float16": "float16", "bfloat16": "bfloat16", "float32": "tfloat32", "int8": "int8", "uint8": "uint8"}
SUMS = {"float64": "float64", "int8": "int32", "uint8": "int32"}  # float32 for all others
QUAD = 4  # neighbouring columns that a thread finishes
SUM_THREADS = 256  # of a block that adds parts of the depth
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
PARTIAL = 8 << 20  # bytes of sums that parts of the depth may leave behind
MOST_REGISTERS = 240  # by that estimate, which is a few too many: nothing may spill
_OVERHEAD = 44  # registers of a thread beside sums and fragments: addresses, counters

# block tile, warp tile
_WARPED = (
    *((256, 128, 64, 64), (128, 256, 64, 64), (128, 128, 64, 32), (128, 128, 64, 64), (256, 64, 64, 32)),
    *((128, 64, 64, 32), (64, 128, 32, 64), (128, 64, 32, 32), (64, 64, 32, 32), (128, 32, 32, 32), (32, 128, 32, 32)),
    *((256, 32, 64, 16), (64, 32, 32, 16), (32, 64, 16, 32), (32, 32, 16, 16), (16, 128, 16, 32), (16, 64, 16, 16)),
    *((128, 16, 32, 16), (64, 16, 16, 16), (16, 256, 16, 32)),
)
# block tile, thread tile
_THREADED = (
    *((128, 128, 8, 8), (128, 64, 8, 4), (64, 128, 4, 8), (64, 64, 4, 4), (64, 32, 4, 4), (32, 64, 4, 4)),
    *((32, 32, 4, 2), (16, 64, 4, 4), (64, 16, 4, 4), (16, 32, 2, 4), (128, 32, 8, 4), (32, 128, 4, 8)),
)


@dataclass(frozen=True)
class Tile:
    """``dtype``: of the operands in shared memory. A side's layout is ``k`` where its lines lie along the depth, else
    ``row``: a line for each step, of neighbouring rows (or columns). ``split``: float32 as two TF32 numbers each, of
    whose four products the three largest are summed: all of float32's bits but the last one or two (Ootomo and Yokota,
    "Recovering single precision accuracy from Tensor Cores", 2022)."""

    function: str
    dtype: str
    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    depth: int
    stages: int
    a_layout: str = "k"
    b_layout: str = "k"
    split: bool = False

    @property
    def sums(self) -> str:
        """The element type of the sums."""
        return SUMS.get(self.dtype, "float32")

    @property
    def item(self) -> int:
        return ITEM[self.dtype]

    @property
    def threads(self) -> int:
        tiles = self.rows // self.warp_rows * (self.columns // self.warp_columns)
        return tiles * 32 if self.function else tiles

    @property
    def held(self) -> int:
        """Sums of a thread."""
        return self.warp_rows * self.warp_columns // (32 if self.function else 1)

    @property
    def registers(self) -> int:
        """Of a thread, about."""
        wide = 2 if self.dtype == "float64" else 1
        if not self.function:
            return wide * (self.held + 4 * self.warp_rows + 4 * self.warp_columns) + _OVERHEAD
        fragments = (self.warp_rows + self.warp_columns) // 2
        return self.held + fragments * (2 if self.split else 1) + _OVERHEAD

    def pitch(self, side: str) -> int:
        """Bytes from line to line in shared memory: padded so that the rows of a matrix fall into different banks."""
        layout, rows = (self.a_layout, self.rows) if side == "a" else (self.b_layout, self.columns)
        if layout == "k":
            return self.depth * self.item + CHUNK
        return rows * self.item + (2 * CHUNK if self.item == 4 and self.function else CHUNK)

    def lines(self, side: str) -> int:
        layout, rows = (self.a_layout, self.rows) if side == "a" else (self.b_layout, self.columns)
        return rows if layout == "k" else self.depth

    def side(self, side: str) -> int:
        """Bytes of one operand of a stage."""
        return self.pitch(side) * self.lines(side)

    @property
    def stage(self) -> int:
        return self.side("a") + self.side("b")

    @property
    def out_item(self) -> int:
        return ITEM.get(self.sums, 4)

    @property
    def out_pitch(self) -> int:
        """Sums from row to row where they pass through shared memory."""
        return self.columns + 8

    @property
    def passes(self) -> int:
        """Pieces in which the sums pass through shared memory, so that they take little more than the stages do."""
        units = self.warp_rows // 16 if self.function else max(1, self.warp_rows // 4)
        found = 1
        while found < units and self.rows // found * self.out_pitch * self.out_item > max(
            32 << 10, self.stages * self.stage
        ):
            found *= 2
        return found

    @property
    def shared(self) -> int:
        """Bytes of a block."""
        return max(self.stages * self.stage, self.rows // self.passes * self.out_pitch * self.out_item)

    def data(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        unit = self.function.removeprefix("nv_mma_") or f"fma {self.dtype}"
        unit = f"3 x {unit}" if self.split else unit
        tiles = f"{self.rows}x{self.columns}x{self.depth}"
        return f"{unit} {tiles} by {self.warp_rows}x{self.warp_columns}, {self.stages} stages"


@dataclass(frozen=True)
class Product:
    """What the choice of a tile depends on. ``a_bytes``, ``b_bytes``, ``out_bytes``: what all of each operand takes in
    memory; ``batch`` products of the same form. ``a_copy``, ``b_copy``: bytes of one copy of that operand (16, 4, or
    less: through registers). ``stepped``: whether the depth may be cut in parts. ``lines``: sides whose lines
    are summed beside the products (see ``_cuda_mma_emit.Core``)."""

    rows: int
    columns: int
    depth: int
    batch: int
    dtype: str
    exact: bool
    a_bytes: int
    b_bytes: int
    out_bytes: int
    a_layout: str = "k"
    b_layout: str = "k"
    a_copy: int = 16
    b_copy: int = 16
    epilogue: int = 1
    stepped: bool = True
    lines: int = 0
    fast: bool = False  # float32 as one TF32 number each


@dataclass(frozen=True)
class Cut:
    """A tile, the number of parts of the depth, and the estimated nanoseconds."""

    tile: Tile
    parts: int
    cost: float
    load: Load

    def part(self, depth: int) -> int:
        """Steps of the depth of a part: a multiple of the tile's."""
        turns = -(-depth // self.tile.depth)
        return -(-turns // self.parts) * self.tile.depth


def function_of(gpu: Gpu, dtype: str, exact: bool) -> str | None:
    """The device function of the tensor cores for that type of operands; empty where FMA does it; None: neither."""
    if dtype == "float64" or (dtype == "float32" and exact):
        return ""
    matrix = gpu.matrix(MATRIX.get(dtype, ""))
    return None if matrix is None else matrix.function


def tiles(gpu: Gpu, p: Product) -> Iterator[Tile]:
    """Block tiles that fit the GPU, each with the most stages that fit and that the depth fills."""
    function = function_of(gpu, p.dtype, p.exact)
    if function is None:
        return
    split = bool(function) and p.dtype == "float32" and not p.fast
    yield from _tiles_by(gpu, p, function, split)
    if split:
        yield from _tiles_by(gpu, p, "", False)


def _tiles_by(gpu: Gpu, p: Product, function: str, split: bool) -> Iterator[Tile]:
    """The tiles of one way to multiply."""
    layouts = (p.a_layout, p.b_layout)
    through_registers = min(p.a_copy, p.b_copy) < 4
    for rows, columns, warp_rows, warp_columns in _WARPED if function else _THREADED:
        for nbytes, choice in ((64, (4, 3, 2)), (128, (3,))) if function else ((64, (3, 2)),):
            depth = nbytes // ITEM[p.dtype]
            turns = -(-p.depth // depth)
            for stages in (2,) if through_registers else choice:
                tile = Tile(function, p.dtype, rows, columns, warp_rows, warp_columns, depth, stages, *layouts, split)
                registers = registers_of(tile, p)
                filled = stages == 2 or turns >= stages - 1
                if filled and registers <= MOST_REGISTERS and fits(gpu, tile.threads, registers, tile.shared):
                    yield tile
                    break


def registers_of(tile: Tile, p: Product) -> int:
    """Of a thread, about: with operands that pass through registers and sums of lines."""
    found = tile.registers + p.lines * (tile.warp_rows // 4 + tile.warp_columns // 2)
    for copy, rows in ((p.a_copy, tile.rows), (p.b_copy, tile.columns)):
        found += rows * tile.depth // tile.threads if copy < 4 else 0
    return found


def load_of(gpu: Gpu, p: Product, tile: Tile, parts: int) -> Load:
    """What the kernel of the products does."""
    across, down = -(-p.columns // tile.columns), -(-p.rows // tile.rows)
    blocks = across * down * p.batch * parts
    whole = -(-p.depth // tile.depth)
    turns = -(-whole // parts)
    matrix = gpu.matrix(MATRIX.get(p.dtype, "")) if tile.function else None
    per_cycle = (
        matrix.per_cycle / (3 if tile.split else 1) if matrix else gpu.fma / (2 if tile.dtype == "float64" else 1)
    )
    macs = float(blocks * tile.rows * tile.columns * turns * tile.depth)
    # what one multiprocessor reads of its shared memory limits narrow tiles: 128 bytes a cycle, a third of that where
    # lanes read the same
    area = tile.warp_rows * tile.warp_columns / (tile.warp_rows + tile.warp_columns)
    per_cycle = min(per_cycle, area * (128 / tile.item if tile.function else 43))
    copies = sum(
        rows * tile.item * tile.depth / (c or tile.item)
        for c, rows in ((p.a_copy, tile.rows), (p.b_copy, tile.columns))
    )
    plain = blocks * (turns * copies * 4 + tile.rows * tile.columns * (2 + p.epilogue))
    asked = float(blocks * (tile.rows + tile.columns) * turns * tile.depth * tile.item)
    far = float(p.a_bytes + p.b_bytes + p.out_bytes)
    far += 0 if far < gpu.l2 / 2 else 0.1 * asked
    sums = p.rows * p.columns * p.batch * tile.out_item * parts if parts > 1 else 0
    return Load(
        blocks,
        tile.threads,
        registers_of(tile, p),
        tile.shared,
        macs=macs,
        rate=per_cycle,
        plain=plain,
        far=far,
        near=max(0.0, asked - p.a_bytes - p.b_bytes) + sums,
        in_flight=max(16.0, (tile.stages - 1) * tile.stage / tile.threads),
        chain=600 + turns * (90.0 if tile.stages > 2 else 350.0) + (500 if min(p.a_copy, p.b_copy) < 4 else 0),
    )


@lru_cache(4096)
def choose(gpu: Gpu, p: Product) -> Cut | None:
    """The cheapest cut of a product; None where the GPU has no instruction for its type. Deterministic."""
    best: Cut | None = None
    for tile in tiles(gpu, p):
        if _too_large(tile, p):
            continue
        blocks = -(-p.columns // tile.columns) * -(-p.rows // tile.rows) * p.batch
        slots = gpu.multiprocessors * max(1, resident(gpu, tile.threads, tile.registers, tile.shared))
        for parts in PARTS:
            if parts > 1 and not _may_split(p, tile, parts, blocks, slots):
                break
            load = load_of(gpu, p, tile, parts)
            cost = nanoseconds(gpu, load) + (sum_cost(gpu, p, parts) if parts > 1 else 0.0)
            if best is None or cost < 0.995 * best.cost:
                best = Cut(tile, parts, cost, load)
    return best


def _too_large(tile: Tile, p: Product) -> bool:
    """More than half of the tile lies outside, although a smaller one would do."""
    return (tile.rows > 32 and tile.rows >= 2 * p.rows) or (tile.columns > 32 and tile.columns >= 2 * p.columns)


def _may_split(p: Product, tile: Tile, parts: int, blocks: int, slots: int) -> bool:
    turns = -(-p.depth // tile.depth)
    size = p.rows * p.columns * p.batch * tile.out_item * parts
    full = (parts - 1) * -(-turns // parts) < turns  # no part is empty
    return p.stepped and full and turns >= 4 * parts and blocks * parts <= 2 * slots and size <= PARTIAL


def sum_cost(gpu: Gpu, p: Product, parts: int) -> float:
    """Nanoseconds of the kernel that adds the parts."""
    count = p.rows * p.columns * p.batch
    item = ITEM.get(SUMS.get(p.dtype, ""), 4)
    load = Load(-(-count // 1024), 256, plain=float(count * (parts + p.epilogue)), far=float(p.out_bytes))
    return gpu.launch * 1e9 + busy(gpu, load) * 1e9 + count * item * parts / (gpu.bandwidth * gpu.l2_bandwidth) * 1e9


def sum_blocks(batch: int, rows: int, columns: int) -> int:
    """Blocks of the kernel that adds the parts."""
    return -(-batch * rows * -(-columns // QUAD) // SUM_THREADS)
