"""Writes the kernels of ``cuda_conv``."""

from __future__ import annotations

import math
from typing import Any

from ..device import DeviceBuilder
from ..evaluate import Coord
from ..functions import cast
from ..tir import constant, dtype_of
from ._cuda_conv_lanes import both, decoded, placed, within
from ._cuda_conv_parts import is_float
from ._cuda_mma import Tile
from ._cuda_mma_emit import Core
from ._cuda_mma_load import Loader, Strided
from ._cuda_mma_out import Sums, add_parts, finish, leave, turns_of


def emit(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """The whole convolution. Arguments: x, weights, corrections for a zero point, the epilogue's inputs, outputs."""
    _Product(k, c).whole()


def emit_parts(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """Parts of the depth to scratch. Arguments: x, weights, scratch."""
    _Product(k, c).parts()


def emit_sum(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """What ``emit_parts`` left, added and finished. Arguments: scratch, then as ``emit``."""
    rows = _rows(c)
    scratch = k.arg("parts", c["dtype"], c["parts"] * c["group"] * rows * c["columns"])
    tail = _Tail(k, c, c["dtype"])

    def place(group: Any, row: Any) -> list[Coord]:
        tail.sums.offset = group * c["columns"] if c["group"] > 1 else 0
        return tail.place(row)

    add_parts(k, scratch, c["parts"], tail.sums, (c["group"], rows), place)


def emit_pack(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """Weights into lines along the depth. Arguments: the weights, the lines."""
    groups, columns = c["extents"]
    count = groups * columns * c["line"]
    source, lines = k.arg("source", c["type"], c["span"]), k.arg("lines", c["type"], count)
    extents = [n for n, _ in c["axes"]]
    depth = math.prod(extents)
    with k.grid(c["blocks"], c["threads"]) as (block, thread):
        index = k.bind(block * c["threads"] + thread, "index")
        with k.when(index < count):
            group, column, step = decoded(k, index, [groups, columns, c["line"]])
            at = c["base"] + group * c["group"] + column * c["column"]
            for i, (_, stride) in zip(decoded(k, step, extents), c["axes"], strict=True):
                at = at + i * stride
            k.store(lines, index, constant(0, c["type"]))
            with k.when(step < depth):
                k.store(lines, index, k.load(source, at))


def _rows(c: dict[str, Any]) -> int:
    return int(c["batch"] * math.prod(a["extent"] for a in c["axes"]))


class Windows(Loader):
    """Rows are output points; the depth runs over taps and channels."""

    def __init__(self, buffer: Any, base: Any, c: dict[str, Any], tile: Tile) -> None:
        a = c["a"]
        byte = c["zero"] & 255
        fill = byte * 0x01010101
        super().__init__(
            a["dtype"],
            a["width"],
            a["copy"],
            layout=a["layout"],
            walk=a["walk"],
            fill=fill - (1 << 32) if fill >= 1 << 31 else fill,
        )
        self.buffer, self.base, self.c = buffer, base, c
        self.rows, self.taps = _rows(c), [a["taps"] for a in c["axes"]]
        self.depth = c["channels"] * math.prod(self.taps)
        self.whole = self.rows % tile.rows == 0, self.depth % tile.depth == 0

    def begin(self, k: DeviceBuilder, row: Any) -> Any:
        from tvm import tirx

        c, inside = self.c, True if self.whole[0] else row < self.rows
        row = k.bind(row if self.whole[0] else tirx.Select(inside, row, 0), "point")
        if c["a"]["linear"] is not None:
            return k.bind(self.base + row * c["a"]["linear"]), inside, None
        image, *place = decoded(k, row, [c["batch"], *(a["extent"] for a in c["axes"])])
        at = [p * a["stride"] - a["pad"] for p, a in zip(place, c["axes"], strict=True)]
        at = [p if isinstance(p, int) else k.bind(p, "first") for p in at]
        offset = self.base + image * c["a"]["batch"]
        for p, axis in zip(at, c["axes"], strict=True):
            offset = offset + p * axis["step"]
        return offset if isinstance(offset, int) else k.bind(offset), inside, at

    def at(self, k: DeviceBuilder, state: Any, step: Any) -> tuple[Any, Any, Any]:
        from tvm import tirx

        offset, inside, at = state
        valid, channel = [inside, True if self.whole[1] else step < self.depth], step
        if at is not None:
            order = self.c["order"]
            extents = [self.c["channels"] if n == "c" else self.taps["zyx".index(n)] for n in order]
            found = dict(zip(order, decoded(k, step, extents), strict=True))
            channel = found["c"]
            for n, first, axis in zip("zyx", at, self.c["axes"], strict=True):
                reach = found[n] * axis["dilation"]
                offset = offset + reach * axis["step"]
                if axis["border"]:
                    valid.append(within(first + reach, axis["size"]))
        inside, place = both(*valid), offset + channel * self.c["a"]["channel"]
        if inside is False:
            return self.buffer, 0, tirx.const(False, "bool")
        return self.buffer, place if inside is True else tirx.Select(inside, place, 0), inside


class _Sums(Sums):
    """Sums of a group: its channels begin at ``offset``."""

    offset: Any = 0

    def store(self, coords: list[Coord], column: Any, values: Any, lanes: int) -> None:
        column = column if isinstance(self.offset, int) and self.offset == 0 else self.k.bind(self.offset + column)
        super().store(coords, column, values, lanes)


class _Tail:
    """What follows the sums: the evaluator and the coordinates."""

    def __init__(self, k: DeviceBuilder, c: dict[str, Any], dtype: str) -> None:
        self.k, self.c, self.dtype = k, c, dtype
        k.contract = is_float(dtype)
        self.fixes = k.arg("fixes", "int32", c["fixes"]) if c["fixes"] else None
        program = c["program"]
        self.buffers: list[Any] = [None] * len(program["inputs"])
        for i in c["reads"]:
            self.buffers[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        outputs = [k.arg(f"y{j}", o["dtype"], o["span"]) for j, o in enumerate(program["outputs"])]
        fix = self._fix if c["fixes"] or c["bias"] is not None else None
        self.sums = _Sums(k, program, self.buffers, outputs, 1, c["columns"], dtype, fix)

    def place(self, row: Any) -> list[Coord]:
        c, rank = self.c, self.c["rank"]
        image, *place = decoded(self.k, row, [c["batch"], *(a["extent"] for a in c["axes"])])
        spatial = [(placed(a, p), 0) for p, a in zip(place, c["axes"], strict=True)]
        return [(image, 0), (0, 0), *spatial[3 - (rank - 2) :]]

    def _fix(self, channel: Any, lanes: int) -> Any:
        k, c, found = self.k, self.c, None
        if self.fixes is not None:
            found = k.load(self.fixes, channel, lanes)
        if c["bias"] is not None:
            stride = c["program"]["inputs"][c["bias"]]["strides"][0]
            bias = k.load(self.buffers[c["bias"]], channel * stride, lanes, stride)
            bias = cast(bias, self.dtype) if dtype_of(bias) != self.dtype else bias
            found = bias if found is None else found + bias
        return found


class _Product:
    def __init__(self, k: DeviceBuilder, c: dict[str, Any]) -> None:
        self.k, self.c, self.tile, self.rows = k, c, Tile(**c["tile"]), _rows(c)
        self.a, self.b = (k.arg(n, c[n]["dtype"], c[n]["span"]) for n in "ab")
        self.depth = c["channels"] * math.prod(a["taps"] for a in c["axes"])

    def whole(self) -> None:
        k, c = self.k, self.c
        tail = _Tail(k, c, self.tile.sums)
        with k.grid(c["blocks"], self.tile.threads) as (block, thread):
            group, origin = self._where(block)
            core = self._multiplied(group, origin, thread, 0)
            tail.sums.offset = group * c["columns"]
            finish(k, core, tail.sums, origin, self.rows, tail.place, down=c["down"])

    def parts(self) -> None:
        k, c = self.k, self.c
        size = c["group"] * self.rows * c["columns"]
        scratch = k.arg("parts", self.tile.sums, c["parts"] * size)
        with k.grid(c["blocks"], self.tile.threads) as (block, thread):
            part = k.bind(block % c["parts"], "part")
            group, origin = self._where(block // c["parts"])
            core = self._multiplied(group, origin, thread, part)
            base = part * size + group * (self.rows * c["columns"])
            leave(k, core, scratch, k.bind(base, "base"), origin, self.rows, c["columns"])

    def _where(self, block: Any) -> tuple[Any, tuple[Any, Any]]:
        """A block's group and tile: all columns of some points, then the next points, which share taps with them."""
        k, c, tile = self.k, self.c, self.tile
        down, across = c["grid"]
        group, row, column = decoded(k, block, [c["group"], down, across])
        return group, (self._bound(row * tile.rows), self._bound(column * tile.columns))

    def _bound(self, value: Any) -> Any:
        return constant(value, "int32") if isinstance(value, int) else self.k.bind(value, "origin")

    def _multiplied(self, group: Any, origin: tuple[Any, Any], thread: Any, part: Any) -> Core:
        k, c, tile = self.k, self.c, self.tile
        bases = [group * (c["channels"] * c["a"]["channel"]), group * (c["columns"] * c["b"]["row"])]
        bases = [b if isinstance(b, int) else k.bind(b, "base") for b in bases]
        a = Windows(self.a, bases[0], c, tile)
        b = Strided(self.b, bases[1], c["b"], c["columns"], self.depth, tile.columns, tile.depth)
        core = Core(k, tile, a, b, thread, lines=(False, c["by_lines"]))
        first, turns = turns_of(tile, self.depth, c["parts"], part)
        turns = turns if isinstance(turns, int) else k.bind(turns, "turns")
        core.run(origin[0], origin[1], first if isinstance(first, int) else k.bind(first, "first"), turns)
        if c["by_lines"]:
            core.correct((c["zero"], 0), 0, 0)
        return core
