"""Writes integer contractions for tile registers: matrices of up to 16 rows by 64 bytes, multiplied as a whole (AMX).

A register of A holds a run of bytes of up to 16 points, one of B ``[steps][16 columns][4]``, one of sums 16 x 16 int32.
A tile of the result is up to two registers of points by two of columns. The sums are stored to a small array on the
stack; from there they go through the epilogue like those of ``_dot``, whose loops and copy of A are used.

The last piece of a run that the pieces do not divide begins earlier, with weights of zero for bytes seen before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ._dot import Dot

ROWS, COLUMNS, FOLD = 16, 16, 4
SUMS, LEFT, RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)  # numbers of the registers


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments as those of ``_dot``."""
    Tiles(k, config).run()


class Tiles(Dot):
    """One kernel whose register tiles are made of tile registers."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config)
        self.functions = config["tiles"]
        self.piece = config["piece"]
        self.held: int | None = None  # points that are configured

    def call(self, name: str, *args: Any) -> None:
        """One of the machine's tile instructions (or, where a test runs it, a C function of that meaning)."""
        from tvm import tirx

        function = self.functions[name]
        call = tirx.call_llvm_intrin if function.startswith("llvm.") else tirx.call_extern
        self.k.emit(tirx.Evaluate(call("void", function, *args)))

    def address(self, buffer: Any, at: Any) -> Any:
        from tvm import tirx

        return tirx.call_intrin("handle", "tirx.address_of", tirx.BufferLoad(buffer, [at]))

    def _nest(self, chosen: list[Any]) -> None:
        outermost = len(chosen) == self.config["split"]
        if outermost:
            self._prepare()
        super()._nest(chosen)
        if outermost:
            self.call("release")

    def _prepare(self) -> None:
        """Memory for the configuration and the sums, and the configuration of whole tiles."""
        k = self.k
        self.block = k.array("uint8", 64, "shape")
        self.sums = k.array("int32", len(SUMS) * ROWS * COLUMNS, "sums")
        with k.loop(64) as i:
            k.store(self.block, i, _byte(0))
        k.store(self.block, 0, _byte(1))
        self.held = None
        self._configure(self.config["tile"][1])

    def _configure(self, points: int) -> None:
        """Shapes of all registers for tiles of so many points. It clears them."""
        if self.held == points:
            return
        k, bytes_of_piece = self.k, self.piece
        for half in (0, 1):
            rows = max(0, min(ROWS, points - half * ROWS))
            shapes = [(SUMS[2 * half], rows, 64), (SUMS[2 * half + 1], rows, 64), (LEFT[half], rows, bytes_of_piece)]
            for t, height, width in [*shapes, (RIGHT[half], bytes_of_piece // FOLD, 64)]:
                k.store(self.block, 16 + 2 * t, _byte(width if height else 0))
                k.store(self.block, 48 + t, _byte(height))
        self.call("configure", self.address(self.block, 0))
        self.held = points

    def _tile(self, outer: Sequence[Any], line: tuple[Any, Any], x: Any, high: int, wide: int, group: Any) -> None:
        whole = self.held
        self._configure(wide)
        column, packed, widths, valid = group
        a, b, starts = self._places(outer, line, x, packed)
        halves = range(-(-wide // ROWS))
        columns = range(len(widths))
        for half in halves:
            for v in columns:
                self.call("zero", _number(SUMS[2 * half + v]))
        self._reduce(self.config["taps"], a, b, halves, columns)
        for half in halves:
            for v in columns:
                at = (2 * half + v) * ROWS * COLUMNS
                self.call("store", _number(SUMS[2 * half + v]), self.address(self.sums, at), _long(COLUMNS * 4))
        for half in halves:
            with self.k.loop(min(ROWS, wide - half * ROWS)) as p:
                rows = [_Sum(self, half, v, p, starts + v * COLUMNS) for v in columns]
                self._finish(outer, line[0], x + (half * ROWS + p), (1, 1), column, valid, [rows])
        if whole is not None:
            self._configure(whole)

    def _reduce(self, taps: list[list[int]], a: Any, b: Any, halves: range, columns: range) -> None:
        """``taps`` are extents and steps in A, outermost first."""
        run = self.config["run"]
        width = len(columns) * COLUMNS * FOLD  # bytes of a step of B
        if taps:
            (extent, step), *rest = taps
            under = run["steps"] * (self.piece // FOLD) * width * math.prod(t[0] for t in rest)
            with self.k.loop(extent) as i:
                self._reduce(rest, a + i * step, b + i * under, halves, columns)
            return
        pieces = run["steps"]
        back = pieces * self.piece - run["bytes"] if run["overlap"] else 0
        with self.k.loop(pieces if not back else pieces - 1) as i:
            self._piece(a + i * self.piece, b + i * (self.piece // FOLD * width), width, halves, columns)
        if back:
            last = (pieces - 1) * self.piece
            self._piece(a + (last - back), b + (pieces - 1) * (self.piece // FOLD * width), width, halves, columns)

    def _piece(self, a: Any, b: Any, width: int, halves: range, columns: range) -> None:
        step = self.config["point"]["scratch" if self.border else "a"]
        for v in columns:
            self.call("load", _number(RIGHT[v]), self.address(self.b, b + v * COLUMNS * FOLD), _long(width))
        for half in halves:
            at = a + half * (ROWS * step)
            self.call("load", _number(LEFT[half]), self.address(self.source, at), _long(step))
            for v in columns:
                self.call("dot", *(_number(t) for t in (SUMS[2 * half + v], LEFT[half], RIGHT[v])))


class _Sum:
    """The sums of one point for a register of columns, as the epilogue asks for them."""

    def __init__(self, of: Tiles, half: int, v: int, point: Any, start: Any) -> None:
        self.of, self.at, self.start = of, (2 * half + v) * ROWS * COLUMNS + point * COLUMNS, start

    def get(self) -> Any:
        k = self.of.k
        return k.load(self.of.sums, self.at, COLUMNS) + k.load(self.of.start, self.start, COLUMNS)


def _byte(value: int) -> Any:
    from ..tir import constant

    return constant(value, "uint8")


def _number(value: int) -> Any:
    from ..tir import constant

    return constant(value, "int8")


def _long(value: int) -> Any:
    from ..tir import constant

    return constant(value, "int64")
