"""Writes the kernels of ``cuda_matmul``."""

from __future__ import annotations

import math
from typing import Any

from ..device import DeviceBuilder
from ..evaluate import Coord
from ._cuda_mma import Tile
from ._cuda_mma_emit import Core
from ._cuda_mma_load import Strided
from ._cuda_mma_out import Sums, add_parts, finish, leave, turns_of
from ._cuda_walk import rounds_each

GROUP = 8  # tiles of rows that run side by side, so that both operands stay in the second-level cache


def emit(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """The whole product."""
    _Product(k, c).whole()


def emit_parts(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """Parts of the depth to scratch."""
    _Product(k, c).parts()


def emit_sum(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """What ``emit_parts`` left, added and finished."""
    batch = math.prod(o["extent"] for o in c["outer"])
    scratch = k.arg("parts", c["sums"], c["parts"] * batch * c["rows"] * c["columns"])
    tail = Tail(k, c, c["sums"])

    def place(number: Any, row: Any) -> list[Coord]:
        tail.at(indices_of(k, c["outer"], number))
        return tail.place(row)

    add_parts(k, scratch, c["parts"], tail.sums, (batch, c["rows"]), place)


def indices_of(k: DeviceBuilder, outer: list[dict[str, Any]], number: Any) -> list[Any]:
    """A product's index on each outer axis."""
    from tvm.tirx import truncdiv, truncmod

    found: list[Any] = []
    for axis in outer[:0:-1]:
        found.insert(0, k.bind(truncmod(number, axis["extent"]), "outer"))
        number = k.bind(truncdiv(number, axis["extent"]), "rest")
    return [number, *found] if outer else []


class Tail:
    """What follows the product: the evaluator and the coordinates."""

    def __init__(self, k: DeviceBuilder, c: dict[str, Any], dtype: str) -> None:
        self.k, self.c = k, c
        self.fixes = k.arg("fixes", "int32", c["fixes"]) if c["fixes"] else None
        program = c["program"]
        k.contract = dtype != "int32" and not rounds_each(program)
        self.buffers: list[Any] = [None] * len(program["inputs"])
        for i in c["reads"]:
            self.buffers[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        outputs = [k.arg(f"y{j}", o["dtype"], o["span"]) for j, o in enumerate(program["outputs"])]
        fix = self._fix if c["fixes"] or c["bias"] is not None else None
        self.sums = Sums(k, program, self.buffers, outputs, c["axes"]["column"], c["columns"], dtype, fix)
        self.indices: list[Any] = []

    def at(self, indices: list[Any]) -> None:
        """The indices of the product on the outer axes."""
        self.indices = indices

    def place(self, row: Any) -> list[Coord]:
        coords: list[Coord] = [(0, 0)] * self.c["axes"]["rank"]
        for index, axis in zip(self.indices, self.c["outer"], strict=True):
            coords[axis["axis"]] = (index, 0)
        if self.c["axes"]["row"] is not None:
            coords[self.c["axes"]["row"]] = (row, 0)
        return coords

    def _fix(self, column: Any, lanes: int) -> Any:
        k, c, found = self.k, self.c, None
        if self.fixes is not None:
            base = sum((i * o["fix"] for i, o in zip(self.indices, c["outer"], strict=True) if o["fix"]), start=0)
            found = k.load(self.fixes, base + column, lanes)
        if c["bias"] is not None:
            stride = c["program"]["inputs"][c["bias"]]["strides"][-1]
            bias = k.load(self.buffers[c["bias"]], column * stride, lanes, stride)
            found = bias if found is None else found + bias
        return found


class _Product:
    def __init__(self, k: DeviceBuilder, c: dict[str, Any]) -> None:
        self.k, self.c, self.tile = k, c, Tile(**c["tile"])
        self.a, self.b = (k.arg(n, c[n]["dtype"], c[n]["span"]) for n in "ab")

    def whole(self) -> None:
        k, c = self.k, self.c
        tail = Tail(k, c, self.tile.sums)
        with k.grid(c["blocks"], self.tile.threads) as (block, thread):
            number, origin = self._where(block)
            indices = indices_of(k, c["outer"], number)
            core = self._multiplied(indices, origin, thread, 0)
            tail.at(indices)
            finish(k, core, tail.sums, origin, c["rows"], tail.place, down=c["down"])

    def parts(self) -> None:
        k, c = self.k, self.c
        batch = math.prod(o["extent"] for o in c["outer"])
        size = batch * c["rows"] * c["columns"]
        scratch = k.arg("parts", self.tile.sums, c["parts"] * size)
        with k.grid(c["blocks"], self.tile.threads) as (block, thread):
            part = k.bind(block % c["parts"], "part")
            number, origin = self._where(block // c["parts"])
            core = self._multiplied(indices_of(k, c["outer"], number), origin, thread, part)
            base = part * size + number * (c["rows"] * c["columns"])
            leave(k, core, scratch, k.bind(base, "base"), origin, c["rows"], c["columns"])

    def _where(self, block: Any) -> tuple[Any, tuple[Any, Any]]:
        """A block's product and tile: groups of tiles of rows, in each the columns one after the other."""
        from tvm import tirx
        from tvm.tirx import truncdiv, truncmod

        k, (down, across) = self.k, self.c["grid"]
        number, at = k.bind(block // (down * across), "number"), k.bind(block % (down * across), "tile")
        if down <= GROUP or across == 1:
            row, column = truncmod(at, down), truncdiv(at, down)
        else:
            group = k.bind(truncdiv(at, GROUP * across), "group")
            high = k.bind(tirx.Min(down - group * GROUP, GROUP), "high")
            inside = k.bind(truncmod(at, GROUP * across), "inside")
            row, column = group * GROUP + truncmod(inside, high), truncdiv(inside, high)
        return number, (k.bind(row * self.tile.rows, "row0"), k.bind(column * self.tile.columns, "column0"))

    def _multiplied(self, indices: list[Any], origin: tuple[Any, Any], thread: Any, part: Any) -> Core:
        from tvm import tirx

        k, c, tile, zeros = self.k, self.c, self.tile, self.c["zeros"]
        bases = [
            k.bind(sum((i * o[n] for i, o in zip(indices, c["outer"], strict=True) if o[n]), start=0), f"{n}0")
            for n in "ab"
        ]
        a = Strided(self.a, bases[0], c["a"], c["rows"], c["depth"], tile.rows, tile.depth)
        b = Strided(self.b, bases[1], c["b"], c["columns"], c["depth"], tile.columns, tile.depth)
        integer = tile.sums == "int32"
        lines = (integer and zeros["b"] != 0, integer and zeros["a"] != 0)
        core = Core(k, tile, a, b, thread, lines=lines, flip=zeros["flip"])
        first, turns = turns_of(tile, c["depth"], c["parts"], part)
        turns = turns if isinstance(turns, int) else k.bind(turns, "turns")
        core.run(origin[0], origin[1], first if isinstance(first, int) else k.bind(first, "first"), turns)
        if any(lines):
            steps = tirx.Min(c["depth"] - first, turns * tile.depth)
            core.correct((zeros["a"], zeros["b"]), steps, turns * tile.depth - steps)
        return core
