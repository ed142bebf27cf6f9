"""Pointwise regions whose tensors have different innermost axes: square tiles, transposed in registers.

A tile of an input that lies across the output is read as rows along its own unit-stride axis, transposed by
log2(T) rounds of two-vector shuffles, and kept in a small array in which the body reads it along the output's axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...ops.selection import POSITIONAL
from ...types import DTYPES
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import lanes_for, move_cost
from ._leaves import Leaf, all_leaves
from ._nest import Data, merged, nest, walk

_STACK = 8 << 10  # bytes of tiles at once


@dataclass(frozen=True)
class Crossing:
    """A region that reads some inputs across its results' rows: ``crossing`` ones, whose rows lie along axis ``along``,
    where the results' lie along ``across``. ``groups`` of axes walk as one, of ``sizes`` by their last."""

    groups: list[list[int]]
    sizes: dict[int, int]
    along: int
    across: int
    crossing: list[Leaf]


def find_crossing(region: Region) -> Crossing | None:
    """What a tiled transpose works on; None where nothing is read across."""
    out = region.outputs[0]
    shape, body = out.type.dims, region.body
    if any((o.type.dims, o.strides) != (shape, out.strides) for o in region.outputs) or 0 in shape:
        return None
    read = all_leaves(region)
    coordinates = any(body.node(n).op in POSITIONAL for n in body)
    solo = range(len(shape)) if coordinates or len(region.inputs) != len(read) else ()
    groups = merged(shape, [out.strides, *(s for _, s, _ in read)], solo)
    if not groups or abs(out.strides[groups[-1][-1]]) != 1:
        return None
    across = groups[-1][-1]
    twice = {i for i, *_ in read if sum(j == i for j, *_ in read) > 1}
    crossing = [leaf for leaf in read if leaf[0] not in twice and leaf[1][across] not in (0, 1)]
    along = [g for g in groups[:-1] if crossing and all(s[g[-1]] == 1 for _, s, _ in crossing)]
    if not along:
        return None
    sizes = {g[-1]: math.prod(shape[a] for a in g) for g in groups}
    return Crossing(groups, sizes, along[0][-1], across, crossing)


def plan(region: Region) -> list[Plan]:
    found, machine = find_crossing(region), region.machine
    if found is None:
        return []
    sizes = found.sizes
    item = [DTYPES[region.inputs[i].type.dtype][0] for i, *_ in found.crossing]
    most = min(16 if machine.registers >= 32 else 8, lanes_for(machine, max(item)))
    tile = 1 << (min(most, sizes[found.across], sizes[found.along]).bit_length() - 1)
    if tile < 4 or tile * tile * sum(item) > _STACK:
        return []
    return [_plan(region, found.groups, sizes, found.along, found.crossing, tile)]


def _plan(region: Region, groups: Any, sizes: dict[int, int], along: int, crossing: list[Leaf], tile: int) -> Plan:
    across = groups[-1][-1]
    rest = [g[-1] for g in groups if g[-1] not in (along, across)]
    extents = [*(sizes[a] for a in rest), -(-sizes[along] // tile), -(-sizes[across] // tile)]
    loops = nest([math.prod(extents)], [[1]], 1, work=float(tile * tile))
    moved = any(region.body.node(n).op not in ("input", "copy", "transpose", "slice") for n in region.body)
    config = {
        "program": serialize(region),
        "axes": [*rest, along, across],
        "extents": extents,
        "sizes": [sizes[along], sizes[across]],
        "tile": tile,
        "crossing": [[i, list(s), base] for i, s, base in crossing],
        "nest": loops,
        "rolled": moved,
    }
    args = (
        *(Arg("in", i) for i in range(len(region.inputs))),
        *(Arg("out", i) for i in range(len(region.outputs))),
    )
    tasks = loops["tasks"] if loops["tasks"] > 1 else None
    draft = Draft(KernelSpec("transpose", config), args, tasks)
    return Plan("transpose", (draft,), move_cost(region, passes=2.0), detail=f"transpose {tile}x{tile}")


def emit(k: Any, config: Data) -> None:
    kernel = _Kernel(k, config)
    if config["nest"]["tasks"] > 1:
        with k.parallel(config["nest"]["tasks"]) as task:
            walk(k, config["nest"], task, kernel.tile)
    else:
        walk(k, config["nest"], None, kernel.tile)


class _Kernel:
    def __init__(self, k: Any, config: Data) -> None:
        from ..evaluate import Evaluator

        program = config["program"]
        self.k, self.config, self.width = k, config, config["tile"]
        self.buffers = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.rank = len(program["outputs"][0]["shape"])
        self.tiles: dict[int, Any] = {}
        self.row: Any = 0
        kernel = self

        class Tiled(Evaluator):
            """Reads the inputs that lie across from their transposed tiles."""

            def read(self, index: int, coords: list[Any], lanes: int = 1) -> Any:
                return kernel.read(index) if index in kernel.tiles else super().read(index, coords, lanes)

        self.ev = Tiled(k, program, self.buffers)

    def tile(self, at: list[Any], lanes: int) -> None:
        """Tile number ``at``: it counts the other axes, then tiles along, then tiles across."""
        from ..tir import minimum

        index: list[Any] = []
        rest = at[0][0]
        for size in reversed(self.config["extents"]):
            index.insert(0, self.k.bind(rest % size, "at") if size > 1 else 0)
            rest = rest // size if size > 1 else rest
        coords: list[Any] = [(0, 0)] * self.rank
        firsts = []
        for number, size in zip(index[-2:], self.config["sizes"], strict=True):
            first = number * self.width
            # the last tile overlaps the one before: same values
            firsts.append(first if size % self.width == 0 else self.k.bind(minimum(first, size - self.width), "first"))
        for axis, number in zip(self.config["axes"][:-2], index[:-2], strict=True):
            coords[axis] = (number, 0)
        along, across = self.config["axes"][-2:]
        for number, strides, base in self.config["crossing"]:
            origin = base + sum(c[0] * s for c, s in zip(coords, strides, strict=True))
            self._load(number, origin + firsts[0] * strides[along] + firsts[1] * strides[across], strides[across])
        coords[across] = (firsts[1], 1)
        if self.config["rolled"]:
            with self.k.loop(self.width) as row:
                self._store(coords, along, firsts[0], row)
        else:
            for row in range(self.width):
                self._store(coords, along, firsts[0], row)

    def _store(self, coords: list[Any], along: int, first: Any, row: Any) -> None:
        placed = [(first + row, 0) if a == along else c for a, c in enumerate(coords)]
        self.row = row
        self.ev.begin()
        self.ev.store_all(self.outputs, placed, self.width)

    def read(self, number: int) -> Any:
        from tvm import tirx

        from ..tir import constant

        value = self.k.load(self.tiles[number], self.row * self.width, self.width)
        if self.config["program"]["inputs"][number]["dtype"] == "bool":
            value = tirx.NE(value, constant(0, "uint8", self.width))
        return value

    def _load(self, number: int, origin: Any, step: int) -> None:
        """Reads ``width`` rows of an input from ``origin`` on, ``step`` apart, transposes, keeps."""
        k, width, buffer = self.k, self.width, self.buffers[number]
        if number not in self.tiles:
            dtype = self.config["program"]["inputs"][number]["dtype"]
            self.tiles[number] = k.array("uint8" if dtype == "bool" else dtype, width * width, "tile")
        rows = [k.bind(k.load(buffer, origin + r * step, width), "row") for r in range(width)]
        for r, row in enumerate(transposed(k, rows)):
            k.store(self.tiles[number], r * width, row)


def transposed(k: Any, rows: list[Any]) -> list[Any]:
    """The transpose of a square of vectors: rounds that swap off-diagonal blocks of 1, 2, 4, ... lanes."""
    from tvm import tirx

    width, distance = len(rows), 1
    while distance < width:
        low = [tirx.IntImm("int32", i if not i & distance else width + i - distance) for i in range(width)]
        high = [tirx.IntImm("int32", i + distance if not i & distance else width + i) for i in range(width)]
        for r in range(width):
            if not r & distance:
                a, b = rows[r], rows[r + distance]
                rows[r] = k.bind(tirx.Shuffle([a, b], low), "swap")
                rows[r + distance] = k.bind(tirx.Shuffle([a, b], high), "swap")
        distance *= 2
    return rows


TEMPLATE = Template("transpose", ("pointwise",), plan, {"transpose": emit})
