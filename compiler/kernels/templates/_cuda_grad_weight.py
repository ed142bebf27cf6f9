"""Writes the matrix product of ``cuda_conv_grad_weight``: sums of a tile of weights over a part of all points.

Pieces of both sides lie in shared memory a point to a line, in two buffers: while one is multiplied, the next piece is
on its way into registers. Lines are padded so that the lanes of a warp read different banks.
"""

from __future__ import annotations

import math
from typing import Any

from ._cuda_grad_parts import Data, Ending, div, every, indices, least, leaves, mod

PAD = 8  # words after a line of shared memory


def emit(k: Any, config: Data) -> None:
    """Arguments: x, g, then scratch of sums (a part after the other, each by channel, tap, input channel) or what the
    end reads and the outputs."""
    finish = config["finish"]
    x = k.arg("x", config["x"][0], config["x"][1])
    g = k.arg("g", config["g"][0], config["g"][1])
    ending = None
    if finish is None:
        size = config["group"] * config["columns"] * config["depth"] * math.prod(config["kernel"])
        scratch = k.arg("sums", "float32", config["parts"] * size)
    else:
        ending = Ending(k, finish, [config["depth"], config["kernel"], config["rank"]])
    rows, columns, depth, *_ = config["tile"]
    with k.grid(math.prod(config["dims"]), config["threads"]) as (block, thread):
        work = _Work(k, config, block, thread)
        words = max(2 * depth * (rows + columns + 2 * PAD), rows * (columns + 1))
        shared = k.shared("uint32" if config["matrix"] else "float32", words)
        sides = [
            _Side(work, g, config["g"], rows, config["lanes"][0], 0, shared, work.gradient()),
            _Side(work, x, config["x"], columns, config["lanes"][1], depth * (rows + PAD), shared, work.input()),
        ]
        sums = (_Matrix if config["matrix"] else _Threads)(work, sides)
        _walk(k, work, sides, sums)
        if ending is None:
            _spill(work, shared, sums, lambda row, column, value: work.keep(scratch, row, column, value))
        else:
            _spill(work, shared, sums, lambda row, column, value: ending.put(work.place(row, column), value))


def _walk(k: Any, work: _Work, sides: list[_Side], sums: Any) -> None:
    """All pieces of the part, the next one fetched while one is multiplied."""
    each, depth = work.config["each"], work.config["tile"][2]
    first = k.bind(work.part * each * depth, "first")
    end = k.bind(least((work.part + 1) * each * depth, work.points), "end")
    for side in sides:
        side.fetch(first, end)
        side.put(0)
    k.barrier()
    with k.loop(each) as step:
        for side in sides:
            side.fetch(first + (step + 1) * depth, end)
        sums.add(step % 2)
        for side in sides:
            side.put((step + 1) % 2)
        k.barrier()


def _spill(work: _Work, shared: Any, sums: Any, put: Any) -> None:
    """The sums through shared memory, so that neighbouring threads write neighbouring weights."""
    from ..tir import reinterpreted

    k, (rows, columns) = work.k, work.config["tile"][:2]
    sums.store(lambda row, column, value: k.store(shared, row * (columns + 1) + column, value))
    k.barrier()
    with k.loop(rows * columns // work.config["threads"]) as i:
        at = k.bind(work.thread + i * work.config["threads"], "at")
        row, column = k.bind(div(at, columns), "row"), k.bind(mod(at, columns), "column")
        value = k.load(shared, row * (columns + 1) + column)
        with k.when(work.inside(row, column)):
            put(row, column, reinterpreted(value, "float32"))


class _Work:
    """Which part of the sum a block has, and where its tile of weights lies."""

    def __init__(self, k: Any, config: Data, block: Any, thread: Any) -> None:
        self.k, self.config, self.thread = k, config, thread
        _, groups, down, across = config["dims"]
        self.taps = math.prod(config["kernel"])
        self.count = config["depth"] * self.taps  # columns of a group
        self.points = config["batch"] * math.prod(config["out"])
        self.column = k.bind(mod(block, across) * config["tile"][1], "column")
        self.row = k.bind(mod(div(block, across), down) * config["tile"][0], "row")
        self.group = k.bind(mod(div(block, across * down), groups), "group")
        self.part = k.bind(div(block, across * down * groups), "part")

    def gradient(self) -> Any:
        """What a line of g is: (address of a column, no shifts, whether there is such a column)."""
        config, channel = self.config, self.config["g"][2][1]

        def column(at: Any) -> tuple[Any, None, Any]:
            own = self.row + at
            return (self.group * config["columns"] + own) * channel, None, own < config["columns"]

        return column

    def input(self) -> Any:
        """The same of x, whose columns are taps and input channels: their shifts along the three axes beside it."""
        k, config = self.k, self.config

        def column(at: Any) -> tuple[Any, list[Any], Any]:
            own = self.column + at
            tap, channel = k.bind(div(own, config["depth"]), "tap"), mod(own, config["depth"])
            shifts = [
                k.bind(index * d - p, "shift")
                for index, d, p in zip(indices(tap, config["kernel"]), config["dilations"], config["pads"], strict=True)
            ]
            base = (self.group * config["depth"] + channel) * config["x"][2][1]
            base = base + sum((s * step for s, step in zip(shifts, config["x"][3], strict=True)), start=0)
            return base, shifts, own < self.count

        return column

    def point(self, number: Any) -> tuple[Any, list[Any]]:
        """A point by its number: image, and its place along the three axes."""
        points = math.prod(self.config["out"])
        image, rest = div(number, points), mod(number, points)
        return image, indices(rest, self.config["out"])

    def inside(self, row: Any, column: Any) -> Any:
        from tvm import tirx

        return tirx.all(self.row + row < self.config["columns"], self.column + column < self.count)

    def linear(self, row: Any, column: Any) -> Any:
        """A weight's number, by output channel, tap and input channel."""
        return (self.group * self.config["columns"] + self.row + row) * self.count + self.column + column

    def keep(self, scratch: Any, row: Any, column: Any, value: Any) -> None:
        size = self.config["group"] * self.config["columns"] * self.count
        self.k.store(scratch, self.part * size + self.linear(row, column), value)

    def place(self, row: Any, column: Any) -> Any:
        return self.linear(row, column)


class _Side:
    """One factor: a piece of it in registers, and in shared memory behind ``base``; every thread has the same columns
    of all lines that it fetches."""

    def __init__(
        self, work: _Work, buffer: Any, facts: Any, width: int, lanes: int, base: int, shared: Any, column: Any
    ) -> None:
        self.work, self.buffer, self.facts, self.lanes, self.shared = work, buffer, facts, lanes, shared
        k, config = work.k, work.config
        self.width, self.base, self.pitch = width, base, width + PAD
        depth, threads = config["tile"][2], config["threads"]
        across = width // lanes
        self.lines = threads // across  # that the block fetches at once
        self.times = depth // self.lines
        assert self.times * self.lines == depth, "threads without a line"
        self.at = k.bind(mod(work.thread, across) * lanes, "at")
        self.line = k.bind(div(work.thread, across), "line")
        address, self.shifts, self.there = column(self.at)
        self.address = k.bind(address, "address")
        matrix = config["matrix"]
        self.held = [k.array("float32", lanes) for _ in range(self.times)]
        self.bits = k.array("uint32", lanes) if matrix else None
        rows, columns = config["tile"][:2]
        self.buffer_words = depth * (rows + columns + 2 * PAD)

    def fetch(self, first: Any, end: Any) -> None:
        """The piece that begins at point ``first`` into registers; zeros beyond ``end`` and beside x."""
        from ..functions import cast
        from ..tir import constant

        k, config = self.work.k, self.work.config
        for i in range(self.times):
            number = k.bind(first + self.line + i * self.lines, "number")
            image, place = self.work.point(number)
            valid = [self.there, number < end]
            at = self.address + image * self.facts[2][0]
            for axis in range(3):
                stride = config["strides"][axis] if self.shifts is not None else 1
                own = place[axis] * stride
                at = at + own * self.facts[3][axis]
                if self.shifts is not None and leaves(config, axis):
                    own = k.bind(own + self.shifts[axis], "own")
                    valid += [own >= 0, own < config["size"][axis]]
            for j in range(self.lanes):
                k.store(self.held[i], j, constant(0, "float32"))
            with k.when(every(valid)):
                if self.lanes > 1:
                    k.run(f"nv_read<{self.lanes}>", (self.held[i], 0), (self.buffer, at))
                else:
                    k.store(self.held[i], 0, cast(k.load(self.buffer, at), "float32"))

    def put(self, which: Any) -> None:
        """What was fetched into shared memory, rounded for the tensor cores if it is for them."""
        k = self.work.k
        for i in range(self.times):
            line = self.line + i * self.lines
            at = which * self.buffer_words + self.base + line * self.pitch + self.at
            source = self.held[i]
            if self.bits is not None:
                for j in range(self.lanes):
                    k.store(self.bits, j, k.device("nv_tf32", "uint32", k.load(self.held[i], j)))
                source = self.bits
            if self.lanes > 1:
                k.run(f"nv_write<{self.lanes}>", (self.shared, at), (source, 0))
            else:
                k.store(self.shared, at, k.load(source, 0))


class _Matrix:
    """A warp's tile on the tensor cores: mma.m16n8k8 of TF32, whose fragments PTX describes."""

    def __init__(self, work: _Work, sides: list[_Side]) -> None:
        from ..tir import constant

        k, (rows, columns, _, down, across) = work.k, work.config["tile"]
        self.work, self.sides = work, sides
        self.tall, self.wide = rows // down, columns // across
        self.m, self.n = self.tall // 16, self.wide // 8
        lane, warp = mod(work.thread, 32), div(work.thread, 32)
        self.high, self.low = k.bind(div(lane, 4), "high"), k.bind(mod(lane, 4), "low")
        self.row = k.bind(div(warp, across) * self.tall, "row")
        self.column = k.bind(mod(warp, across) * self.wide, "column")
        self.sums = k.array("float32", 4 * self.m * self.n, "sums")
        self.a, self.b = k.array("uint32", 4 * self.m, "a"), k.array("uint32", 2 * self.n, "b")
        for i in range(4 * self.m * self.n):
            k.store(self.sums, i, constant(0, "float32"))

    def add(self, which: Any) -> None:
        k, (g, x) = self.work.k, self.sides
        for step in range(0, self.work.config["tile"][2], 8):
            at = which * g.buffer_words + (self.low + step) * g.pitch + self.row + self.high
            for i in range(self.m):
                for j, (line, column) in enumerate(((0, 0), (0, 8), (4, 0), (4, 8))):
                    k.store(self.a, 4 * i + j, k.load(g.shared, at + (line * g.pitch + 16 * i + column)))
            at = which * x.buffer_words + x.base + (self.low + step) * x.pitch + self.column + self.high
            for i in range(self.n):
                for j in range(2):
                    k.store(self.b, 2 * i + j, k.load(x.shared, at + (4 * j * x.pitch + 8 * i)))
            for i in range(self.m):
                for j in range(self.n):
                    k.run("nv_mma_tf32", (self.sums, 4 * (i * self.n + j)), (self.a, 4 * i), (self.b, 2 * j))

    def store(self, put: Any) -> None:
        from ..tir import reinterpreted

        for i in range(self.m):
            for j in range(self.n):
                for part in range(4):
                    row = self.row + self.high + (16 * i + 8 * (part // 2))
                    column = self.column + self.low * 2 + (8 * j + part % 2)
                    value = self.work.k.load(self.sums, 4 * (i * self.n + j) + part)
                    put(row, column, reinterpreted(value, "uint32"))


class _Threads:
    """A thread's tile, by FMA."""

    def __init__(self, work: _Work, sides: list[_Side]) -> None:
        from ..tir import constant

        k, (_, columns, _, self.m, self.n) = work.k, work.config["tile"]
        self.work, self.sides = work, sides
        across = columns // self.n
        self.row = k.bind(div(work.thread, across) * self.m, "row")
        self.column = k.bind(mod(work.thread, across) * self.n, "column")
        self.sums = k.array("float32", self.m * self.n, "sums")
        self.a, self.b = k.array("float32", self.m, "a"), k.array("float32", self.n, "b")
        for i in range(self.m * self.n):
            k.store(self.sums, i, constant(0, "float32"))

    def add(self, which: Any) -> None:
        k, (g, x) = self.work.k, self.sides
        with k.loop(self.work.config["tile"][2], "unrolled") as step:
            at = which * g.buffer_words + step * g.pitch + self.row
            self._read(self.a, g.shared, at, self.m)
            at = which * x.buffer_words + x.base + step * x.pitch + self.column
            self._read(self.b, x.shared, at, self.n)
            for i in range(self.m):
                for j in range(self.n):
                    s = i * self.n + j
                    k.store(self.sums, s, k.fma(k.load(self.a, i), k.load(self.b, j), k.load(self.sums, s)))

    def _read(self, to: Any, shared: Any, at: Any, count: int) -> None:
        for i in range(0, count, 4):
            self.work.k.run(f"nv_read<{min(4, count - i)}>", (to, i), (shared, at + i))

    def store(self, put: Any) -> None:
        for i in range(self.m):
            for j in range(self.n):
                put(self.row + i, self.column + j, self.work.k.load(self.sums, i * self.n + j))
