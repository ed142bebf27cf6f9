"""Pointwise regions on a GPU whose tensors have different innermost axes: square tiles, turned in shared memory.

A block reads its tile of every input that lies across the results along that input's own rows, keeps it with a row
pitch of an odd number of words (so that neither rows nor columns meet in a bank), and works along the results' rows.
"""

from __future__ import annotations

import math
from typing import Any

from ...types import DTYPES
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_walk import MOST, rounds_each, split, streaming
from ._leaves import Leaf
from ._nest import Data
from ._rows import effort
from .transpose import find_crossing

_THREADS, _WARP = 256, 32
_SHARED = 32 << 10  # bytes of tiles of a block


def plan(region: Region) -> list[Plan]:
    """One plan where an input is read across the results' rows and both axes are long enough for tiles."""
    found = find_crossing(region)
    if region.machine.gpu is None or found is None or any(o.span > MOST for o in (*region.inputs, *region.outputs)):
        return []
    sizes, along, across, crossing = found.sizes, found.along, found.across, found.crossing
    items = [DTYPES[region.inputs[i].type.dtype][0] for i, *_ in crossing]
    tile = 64 if max(items) <= 2 and min(sizes[across], sizes[along]) >= 64 else 32
    if min(sizes[across], sizes[along]) < tile // 2 or sum(_pitch(tile, i) * tile * i for i in items) > _SHARED:
        return []
    return [_plan(region, [g[-1] for g in found.groups[:-1]], sizes, (along, across), crossing, tile)]


def _pitch(tile: int, itemsize: int) -> int:
    """Elements from one row of a tile to the next."""
    return tile + max(1, 4 // itemsize)


def _plan(
    region: Region, outer: list[int], sizes: dict[int, int], axes: tuple[int, int], crossing: list[Leaf], tile: int
) -> Plan:
    along, across = axes
    rest = [a for a in outer if a != along]
    extents = [*(sizes[a] for a in rest), -(-sizes[along] // tile), -(-sizes[across] // tile)]
    program = serialize(region)
    config = {
        "program": program,
        "axes": [*rest, along, across],
        "extents": extents,
        "sizes": [sizes[along], sizes[across]],
        "tile": tile,
        "crossing": [[i, list(s), base] for i, s, base in crossing],
    }
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    blocks = math.prod(extents)
    work = max(1.0, sum(effort(n["op"]) for n in program["nodes"])) + 4
    draft = Draft(KernelSpec("cuda_transpose", config), args, blocks)
    assert region.machine.gpu is not None
    cost = streaming(region, region.machine.gpu, blocks, _THREADS, work=work)
    return Plan("cuda_transpose", (draft,), cost, detail=f"transpose {tile}x{tile}")


def emit(k: Any, config: Data) -> None:
    kernel = _Kernel(k, config)
    k.contract = not rounds_each(config["program"])
    with k.grid(math.prod(config["extents"]), _THREADS) as (block, thread):
        kernel.run(block, thread)


class _Kernel:
    def __init__(self, k: Any, config: Data) -> None:
        from ..evaluate import Evaluator

        program = config["program"]
        self.k, self.c, self.tile = k, config, config["tile"]
        self.buffers = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.tiles: dict[int, tuple[Any, int]] = {}  # of an input: shared memory, pitch
        self.place: tuple[Any, Any] = (0, 0)  # in the tile: along, across
        kernel = self

        class Tiled(Evaluator):
            """Reads the inputs that lie across from their tiles."""

            def read(self, index: int, coords: list[Any], lanes: int = 1) -> Any:
                return kernel.read(index) if index in kernel.tiles else super().read(index, coords, lanes)

        self.ev = Tiled(k, program, self.buffers)

    def run(self, block: Any, thread: Any) -> None:
        from tvm import tirx

        k, program = self.k, self.c["program"]
        index = split(k, block, self.c["extents"])
        self.lane, self.warp = (k.bind(f(thread, _WARP), "at") for f in (tirx.truncmod, tirx.truncdiv))
        coords: list[Any] = [(0, 0)] * len(program["outputs"][0]["shape"])
        for axis, number in zip(self.c["axes"][:-2], index[:-2], strict=True):
            coords[axis] = (number, 0)
        down, right = (k.bind(n * self.tile, "first") if not isinstance(n, int) else 0 for n in index[-2:])
        firsts = (down, right)
        for number, strides, base in self.c["crossing"]:
            self._load(number, strides, base + sum(c[0] * s for c, s in zip(coords, strides, strict=True)), firsts)
        k.barrier()
        self._work(coords, firsts)

    def _load(self, number: int, strides: list[int], origin: Any, firsts: tuple[Any, Any]) -> None:
        """An input's tile to shared memory, along its own rows."""
        k, (along, across) = self.k, self.c["axes"][-2:]
        dtype = self.c["program"]["inputs"][number]["dtype"]
        dtype = "uint8" if dtype == "bool" else dtype
        pitch = _pitch(self.tile, DTYPES[dtype][0])
        held = k.shared(dtype, self.tile * pitch, "tile")
        self.tiles[number] = (held, pitch)
        origin = k.bind(origin + firsts[0] * strides[along] + firsts[1] * strides[across], "origin")
        for first in range(0, self.tile, _THREADS // _WARP):
            for part in range(0, self.tile, _WARP):
                row, column = self.warp + first, self.lane + part
                with k.when(self._inside(firsts[0] + column, firsts[1] + row)):
                    value = k.load(self.buffers[number], origin + column * strides[along] + row * strides[across])
                    k.store(held, row * pitch + column, value)

    def _inside(self, along: Any, across: Any) -> Any:
        from tvm import tirx

        sizes = zip((along, across), self.c["sizes"], strict=True)
        tests = [at < size for at, size in sizes if size % self.tile]
        return tirx.all(*tests) if tests else True

    def _work(self, coords: list[Any], firsts: tuple[Any, Any]) -> None:
        """The results, along their rows."""
        k, step = self.k, _THREADS // _WARP
        along, across = self.c["axes"][-2:]
        with k.loop(self.tile // step, name="row") as i:
            for part in range(0, self.tile, _WARP):
                self.place = (self.warp + i * step, self.lane + part)
                a, b = firsts[0] + self.place[0], firsts[1] + self.place[1]
                placed = [(a, 0) if x == along else (b, 0) if x == across else c for x, c in enumerate(coords)]
                with k.when(self._inside(a, b)):
                    self.ev.begin()
                    self.ev.store_all(self.outputs, placed)

    def read(self, number: int) -> Any:
        from tvm import tirx

        from ..tir import constant

        held, pitch = self.tiles[number]
        value = self.k.load(held, self.place[1] * pitch + self.place[0])
        if self.c["program"]["inputs"][number]["dtype"] == "bool":
            value = tirx.NE(value, constant(0, "uint8"))
        return value


TEMPLATE = Template("cuda_transpose", ("pointwise",), plan, {"cuda_transpose": emit}, device=True)
