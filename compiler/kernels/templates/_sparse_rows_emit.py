"""Writes the kernels of ``sparse_rows``: a tile's inputs become columns, non-zeros are walked, sums are turned back.

A task is one tile of rows and one chunk of outputs. Scratch holds the *columns* ``[k of a block][rows of the tile]``
and the *sums* ``[outputs of the chunk][rows of the tile]``.
"""

from __future__ import annotations

import math
from typing import Any

from ._contract import equal, least, part
from ._sparse_rows_pack import pitch_of
from ._tile import pieces


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: x, weights, their k, heads of groups, starts of chunks, the bias if there is one, the epilogue's
    inputs, the outputs, columns, sums."""
    kernel = _Rows(k, config)
    if config["tasks"] > 1:
        with k.parallel(config["tasks"]) as task:
            kernel.task(task)
    else:
        kernel.task(0)


class _Rows:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c = k, config
        self.lanes: int = config["lanes"]
        program, sizes = config["program"], config["sizes"]
        self.x = k.arg("x", "float32", config["x"]["span"])
        self.weights = k.arg("weights", "float32", sizes["weights"])
        self.index = k.arg("index", config["index"], sizes["weights"])
        self.heads = k.arg("heads", "uint16", sizes["heads"])
        self.starts = k.arg("starts", "int32", sizes["starts"])
        self.bias = k.arg("bias", "float32", sizes["bias"]) if sizes["bias"] else None
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.columns = k.arg("columns", "float32", sizes["columns"])
        self.sums = k.arg("sums", "float32", sizes["sums"])
        self.value: Any = None
        self.ev = Evaluator(k, program, reads, lambda number, coords: self.value)

    def task(self, task: Any) -> None:
        c = self.c
        kinds = [t for t in c["tiles"] if t["repeat"]]
        tiles = sum(t["repeat"] for t in kinds)
        under = tiles * math.prod(o["extent"] for o in c["outer"])
        chunk, rest = (task // under, task % under) if c["chunks"] > 1 else (0, task)
        chunk = self.k.bind(chunk, "chunk")
        tile, rest = (rest % tiles, rest // tiles) if tiles > 1 else (0, rest)
        self.at: list[Any] = []
        for o in reversed(c["outer"]):
            self.at.insert(0, rest % o["extent"] if o["extent"] > 1 else 0)
            rest = rest // o["extent"] if o["extent"] > 1 else rest
        base = sum((i * o["a"] for i, o in zip(self.at, c["outer"], strict=True)), start=c["x"]["base"])
        for number, kind in enumerate(kinds):
            mine = True if len(kinds) == 1 else (tile < kinds[0]["repeat"]) if number == 0 else tile >= tiles - 1
            with self.k.when(mine):
                _Tile(self, kind, chunk, base, kind["start"] + (tile * kind["rows"] if number == 0 else 0)).emit()


class _Tile:
    """One tile: its vectors (``widths``, of which ``valid`` rows are real) from row ``first`` on."""

    def __init__(self, of: _Rows, kind: dict[str, Any], chunk: Any, base: Any, first: Any) -> None:
        self.of, self.k, self.c, self.lanes = of, of.k, of.c, of.lanes
        self.widths, self.valid = kind["widths"], kind["valid"]
        self.pitch = pitch_of(self.widths, self.lanes)
        self.chunk, self.base, self.first = chunk, base, of.k.bind(first, "first")

    def emit(self) -> None:
        where = None if self.c["flat"] else self._places()
        with self.k.loop(self.c["blocks"], name="block") as block:
            if not self.c["direct"]:
                self._gather(block, where)
            self._products(block)
        _Results(self).emit()

    # -- columns ---------------------------------------------------------------------------------------------------

    def _places(self) -> dict[str, Any]:
        """For each row of the tile where its first tap lies: address and coordinates."""
        from ..tir import constant

        k, walk = self.k, self.c["walk"]
        rows = sum(self.valid)
        held = {name: k.array("int32", self.pitch, name) for name in ("at", "line", "point")}
        with k.loop(rows) as r:
            row = self.first + r
            line = k.bind(row // walk["width"] * walk["line"]["stride"] - walk["line"]["pad"], "line")
            point = k.bind(row % walk["width"] * walk["point"]["stride"] - walk["point"]["pad"], "point")
            at = line * walk["line"]["step"] + point * walk["point"]["step"]
            for name, value in (("line", line), ("point", point), ("at", at)):
                k.store(held[name], r, constant(value, "int32") if isinstance(value, int) else value)
        return held

    def _gather(self, block: Any, where: Any) -> None:
        """The columns of one block of k: some taps of all channels, or some channels of the only tap."""
        k, c = self.k, self.c
        taps, channels = c["taps"], c["channels"]
        if taps == 1:
            first = block * c["block"]
            count = c["block"] if channels % c["block"] == 0 else least(c["block"], channels - first)
            self._tap(0, 0, first, count, 0, where)
            return
        size = c["block"] // channels
        count = size if taps % size == 0 else least(size, taps - block * size)
        with k.loop(count, name="tap") as t:
            tap = k.bind(block * size + t, "tap")
            across = c["walk"]["point"]["taps"]
            self._tap(tap // across, tap % across, 0, channels, t * channels, where)

    def _tap(self, line: Any, point: Any, first: Any, count: Any, row: Any, where: Any) -> None:
        """``count`` channels from ``first`` on of one tap, into the columns from ``row`` on."""
        k, lanes = self.k, self.lanes
        for v, (at, valid) in enumerate(self._vectors()):
            if v and valid == lanes:
                continue  # done by the loop of the first
            repeat = sum(n == lanes for n in self.valid) if valid == lanes else 1
            with k.loop(repeat, name="v") as i:
                lane = at + i * lanes
                spots = [self._spot(lane + r, line, point, where) for r in range(valid)]
                self._turn(lane, spots, first, count, row)

    def _vectors(self) -> list[tuple[int, int]]:
        return [(v * self.lanes, n) for v, n in enumerate(self.valid)]

    def _spot(self, lane: Any, line: Any, point: Any, where: Any) -> tuple[Any, Any]:
        """Where a row's tap lies in x, and whether it lies inside (None: surely)."""
        from tvm import tirx

        k, c = self.k, self.c
        if where is None:
            return self.base + (self.first + lane) * c["x"]["row"], None
        walk, inside = c["walk"], None
        at = self.base + k.load(where["at"], lane)
        for name, tap in (("line", line), ("point", point)):
            axis = walk[name]
            at = at + tap * (axis["dilation"] * axis["step"])
            if axis["border"]:
                place = k.load(where[name], lane) + tap * axis["dilation"]
                mine = tirx.And(place >= 0, place < axis["size"])
                inside = mine if inside is None else tirx.And(inside, mine)
        at = k.bind(at, "at")
        if inside is None:
            return at, None
        # a place outside is told by its address
        held = k.register("int32", 1, "spot")
        held.set(at)
        with k.when(tirx.Not(inside)):
            held.set(tirx.const(-1, "int32"))
        return held.get(), held.get() >= 0

    def _turn(self, lane: Any, spots: list[tuple[Any, Any]], first: Any, count: Any, row: Any) -> None:
        k, lanes, step = self.k, self.lanes, self.c["x"]["step"]
        if step != 1 or self.c["channels"] < lanes:
            with k.loop(count, name="c") as i:
                for r, spot in enumerate(spots):
                    value = self._read(spot, (first + i) * step, 1)
                    k.store(self.of.columns, self._column(row + i) + lane + r, value)
            return
        from .transpose import transposed

        last, width = self.c["channels"] - lanes, min(lanes, self.pitch)
        exact = isinstance(count, int) and count % lanes == 0
        with k.loop((count + lanes - 1) // lanes, name="c") as i:
            # the last vector overlaps the one before: same values
            channel = first + i * lanes if exact else k.bind(least(first + i * lanes, last), "channel")
            rows = [k.bind(self._read(s, channel, lanes), "row") for s in spots]
            if self.pitch == 1:
                k.store(self.of.columns, self._column(row + channel - first), rows[0])
                return
            rows += [k.bind(_zero(lanes), "row")] * (lanes - len(rows))
            for r, column in enumerate(transposed(k, rows)):
                k.store(self.of.columns, self._column(row + channel - first + r) + lane, part(column, 0, width))

    def _column(self, row: Any) -> Any:
        return (row + self.lanes) * self.pitch  # a vector's rows of room, for one that begins before its block

    def _read(self, spot: tuple[Any, Any], offset: Any, lanes: int) -> Any:
        from tvm import tirx

        at, inside = spot
        value = self.k.load(self.of.x, at + offset, lanes)
        return value if inside is None else tirx.if_then_else(inside, value, _zero(lanes))

    # -- products --------------------------------------------------------------------------------------------------

    def _products(self, block: Any) -> None:
        from tvm import tirx

        k, c, of = self.k, self.c, self.of
        together, pitch = c["together"], self.pitch
        columns, begin = (of.x, self.base + block * c["block"]) if c["direct"] else (of.columns, self.lanes * pitch)
        start = (self.chunk * c["blocks"] + block) * 3
        head, groups = k.bind(k.load(of.starts, start), "head"), k.bind(k.load(of.starts, start + 2), "groups")
        data = k.register("int32", 1, "data")
        data.set(k.load(of.starts, start + 1))

        def number(buffer: Any, at: Any) -> Any:
            return tirx.Cast("int32", k.load(buffer, at))

        with k.loop(groups, name="group") as g:
            own = head + g * (together + 1)
            count = k.bind(number(of.heads, own), "count")
            rows = [k.bind(number(of.heads, own + 1 + i), "row") for i in range(together)]
            sums = [[k.register("float32", w, "sum") for w in self.widths] for _ in rows]
            self._begin(block, rows, sums)
            with k.loop(count, name="j") as j:
                for i, row in enumerate(sums):
                    at = data.get() + j * together + i
                    column = k.bind(number(of.index, at) * pitch + begin, "column")
                    weight = k.bind(k.load(of.weights, at), "weight")
                    for v, (acc, width) in enumerate(zip(row, self.widths, strict=True)):
                        value = k.load(columns, column + v * self.lanes, width)
                        acc.add_product(tirx.Broadcast(weight, width) if width > 1 else weight, value)
            data.set(data.get() + count * together)
            for row, held in zip(rows, sums, strict=True):
                for v, acc in enumerate(held):
                    k.store(of.sums, row * pitch + v * self.lanes, acc.get())

    def _begin(self, block: Any, rows: list[Any], sums: Any) -> None:
        from ..tir import splat

        k, c, of = self.k, self.c, self.of
        for row, held in zip(rows, sums, strict=True):
            first = _zero(1) if of.bias is None else k.bind(k.load(of.bias, self.chunk * c["padded"] + row), "bias")
            for acc in held:
                acc.set(splat(first, acc.lanes))
        if c["blocks"] > 1:
            with k.when(block > 0):
                for row, held in zip(rows, sums, strict=True):
                    for v, acc in enumerate(held):
                        acc.set(k.load(of.sums, row * self.pitch + v * self.lanes, acc.lanes))


class _Results:
    """The sums of a tile, turned back: rows of neighbouring outputs, through the epilogue into memory."""

    def __init__(self, tile: _Tile) -> None:
        self.tile, self.of, self.k, self.c, self.lanes = tile, tile.of, tile.k, tile.c, tile.lanes

    def emit(self) -> None:
        k, c, lanes = self.k, self.c, self.lanes
        last = c["outputs"] - (c["chunks"] - 1) * c["chunk"]
        whole, rest = divmod(last, lanes)
        final = c["chunks"] - 1
        count: Any = whole
        if c["chunks"] > 1:
            from tvm import tirx

            count = k.bind(tirx.Select(equal(self.tile.chunk, final), whole, c["chunk"] // lanes), "count")
        if c["chunks"] > 1 or whole:
            with k.loop(count, name="n") as n:
                self._columns(n * lanes, lanes)
        if rest:
            with k.when(True if c["chunks"] == 1 else equal(self.tile.chunk, final)):
                self._columns(whole * lanes, rest)

    def _columns(self, n: Any, valid: int) -> None:
        full = sum(v == self.lanes for v in self.tile.valid)
        if full:
            with self.k.loop(full, name="v") as v:
                self._square(n, valid, v * self.lanes, self.lanes)
        for v, rows in enumerate(self.tile.valid):
            if rows < self.lanes:
                self._square(n, valid, v * self.lanes, rows)

    def _square(self, n: Any, valid: int, lane: Any, rows: int) -> None:
        from .transpose import transposed

        k, lanes, of = self.k, self.lanes, self.of
        at = n * self.tile.pitch + lane
        if self.tile.pitch == 1:
            self._store(n, valid, lane, k.bind(k.load(of.sums, at, lanes), "row"))
            return
        lines = [k.bind(k.load(of.sums, at + i * self.tile.pitch, lanes), "sum") for i in range(lanes)]
        turned = transposed(k, lines)
        if not self.c["rolled"]:
            for r in range(rows):
                self._store(n, valid, lane + r, turned[r])
            return
        held = k.array("float32", lanes * lanes, "turned")
        for r in range(rows):
            k.store(held, r * lanes, turned[r])
        with k.loop(rows, name="r") as r:
            self._store(n, valid, lane + r, k.bind(k.load(held, r * lanes, lanes), "row"))

    def _store(self, n: Any, valid: int, lane: Any, value: Any) -> None:
        axes, tile = self.c["axes"], self.tile
        coords: list[Any] = [(0, 0)] * axes["rank"]
        for i, o in zip(self.of.at, self.c["outer"], strict=True):
            if o["axis"] is not None:
                coords[o["axis"]] = (i, 0)
        row = self.k.bind(tile.first + lane, "row")
        if axes["width"]:
            coords[axes["line"]] = (self.k.bind(row // axes["width"], "line"), 0)
            row = self.k.bind(row % axes["width"], "point")
        if axes["point"] is not None:
            coords[axes["point"]] = (row, 0)
        self.of.ev.begin()
        for at, lanes in pieces(valid):
            here = list(coords)
            here[axes["column"]] = (tile.chunk * self.c["chunk"] + n + at, 1 if lanes > 1 else 0)
            self.of.value = part(value, at, lanes)
            self.of.ev.store_all(self.of.outputs, here, lanes)


def _zero(lanes: int) -> Any:
    from ..tir import constant

    return constant(0, "float32", lanes)
