"""Writes the kernels of 8-bit contractions for cores whose word holds two int16 (Arm's DSP extension).

A tile is a few points of the output. Its inputs are widened once into pairs of int16 in the worker's scratch, then all
channels walk over them, a pair or two of channels at a time. The weights of channels ``a`` and ``b`` share a halfword,
``256 a + b``: one product of pairs adds up ``256 A + B``, another one, with the sign-extended lower bytes, ``B``. Where
``256 A`` may leave an int32, the upper bytes are widened too (``split``).
"""

from __future__ import annotations

from typing import Any

from . import _dsp_asm, _dsp_source


def emit_steps(k: Any, config: dict[str, Any]) -> None:
    """Arguments: the input, packed weights, a constant row if any, the output, scratch, bytes of a point."""
    Requantized(k, config).run()


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: the input, packed weights, numbers, the epilogue's inputs, outputs, scratch, bytes of a point."""
    Evaluated(k, config).walk()


class Tiles:
    """What both kinds of kernels do: the walk over the tiles."""

    k: Any
    config: dict[str, Any]
    a: Any
    bytes: Any
    scratch: Any

    def count(self, number: Any) -> Any:
        """The extent of a loop that is not to be unrolled."""
        return number if isinstance(number, int) and number == 1 else self.k.helper(*_dsp_asm.opaque(), number)

    @property
    def points(self) -> int:
        return int(self.config["points"])

    @property
    def quads(self) -> int:
        return int(self.config["depth"]) // 4

    @property
    def extent(self) -> int:
        """Points of one image."""
        return int(self.config["line"]["extent"] * self.config["point"]["extent"])

    def walk(self) -> None:
        """All tiles."""
        k, tiles = self.k, -(-self.extent // self.points)
        with k.loop(self.config["batch"]["extent"]) as n, k.loop(self.count(tiles), name="tile") as t:
            first = k.bind(t * self.points, "first")
            _dsp_source.emit(k, self, n, first)
            self.channels(n, first)

    def channels(self, n: Any, first: Any) -> None:
        """All channels of one tile."""
        raise NotImplementedError

    def that_is(self, first: Any, p: Any) -> Any:
        """A point of the tile; the last one in place of those behind it."""
        from ..tir import constant, minimum

        at = first + p
        if self.extent % self.points == 0:
            return at
        return self.k.bind(minimum(at, constant(self.extent - 1, "int32")), "at")

    def line_and_point(self, at: Any) -> tuple[Any, Any]:
        """Of a point's number."""
        width = self.config["point"]["extent"]
        if self.config["line"]["extent"] == 1:
            return 0, at
        line = self.k.bind(at // width, "line")
        return line, self.k.bind(at - line * width, "point")


class Requantized(Tiles):
    """A kernel whose results are requantized in registers."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.config = k, config
        a, row = config["a"], config["row"]
        k.noalias, k.pointers = not config["overlaps"], False
        self.a = k.arg("a", a["dtype"], a["span"])
        self.weights = k.arg("w", "int32", config["weights"])
        self.row = k.arg("row", config["steps"]["to"], row) if row else None
        self.out = k.arg("y", config["steps"]["to"], config["out"]["span"])
        self.scratch = k.arg("scratch", "int32", config["scratch"])
        self.bytes = k.arg("bytes", a["dtype"], config["depth"]) if config["source"]["kind"] == "bytes" else None
        self.kept = self.quads * 2 * self.points  # where addresses lie in the scratch

    def run(self) -> None:
        """What stays is written first."""
        from ..tir import constant

        ends = ((self.weights, self.config["weights"]), (self.scratch, 0))
        for i, address in enumerate(ends):
            self.k.helper(*_dsp_asm.keep(), (self.scratch, self.kept + self.points + i), address)
        source, a = self.config["source"], self.config["a"]
        if self.bytes is not None:  # what lies behind a point's bytes counts as input
            for i in range(source["lines"] * source["runs"] * source["run"], self.config["depth"]):
                self.k.store(self.bytes, i, constant(0, a["dtype"]))
        self.walk()

    def channels(self, n: Any, first: Any) -> None:
        k, config = self.k, self.config
        batch, line, point = config["out"]["strides"]
        if config["offset"]:
            to = (self.scratch, self.kept + self.points + 2)
            k.helper(*_dsp_asm.input_sums(self.points), (self.scratch, 0), to, (self.scratch, self.kept))
        joined = line == point * config["point"]["extent"]
        for p in range(self.points):
            at = self.that_is(first, p)
            y, x = (0, at) if joined else self.line_and_point(at)
            to = (self.out, k.bind(n * batch + y * line + x * point, "to"))
            k.helper(*_dsp_asm.keep(), (self.scratch, self.kept + p), to)
            if self.row is not None:
                k.helper(*_dsp_asm.copy(), (self.row, 0), to, (self.row, config["row"]))
        shape = (self.points, config["pairs"], _dsp_asm.round_of(config["depth"]))
        kinds = {name: config[name] for name in _dsp_asm.KINDS}
        tile = _dsp_asm.tile(shape, config["steps"], **kinds, direct=None)
        k.helper(*tile, (self.scratch, 0), (self.weights, 0), (self.scratch, self.kept))


class Evaluated(Tiles):
    """A kernel whose sums go through an evaluator."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.config = k, config
        program, a = config["program"], config["a"]
        k.noalias, k.pointers = not config["overlaps"], False
        self.a = k.arg("a", a["dtype"], a["span"])
        self.weights = k.arg("w", "int32", config["weights"])
        numbers = k.arg("numbers", "int32", config["numbers"]) if config["numbers"] else None
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.scratch = k.arg("scratch", "int32", config["scratch"])
        self.bytes = k.arg("bytes", a["dtype"], config["depth"]) if config["source"]["kind"] == "bytes" else None
        self.pairs = config["pairs"]
        self.sums = self.quads * 2 * self.points  # where they lie in the scratch
        self.ev = Evaluator(k, program, reads, lambda number, coords: self.sum, numbers)
        self.sum: Any = None

    def channels(self, n: Any, first: Any) -> None:
        """All channels of one tile."""
        full, rest = divmod(self.config["columns"]["pairs"], self.pairs)
        if full:
            with self.k.loop(self.count(full), name="group") as g:
                self._tile((n, first), g * self.pairs, self.pairs)
        if rest:
            self._tile((n, first), full * self.pairs, rest)

    def _tile(self, place: tuple[Any, Any], first: Any, pairs: int) -> None:
        """``pairs`` pairs of channels from the pair ``first`` on."""
        k, size = self.k, 2 + 2 * self.quads
        loop = _dsp_asm.products(self.points, pairs, _dsp_asm.round_of(self.config["depth"]), self.config["split"])
        end = (self.scratch, self.sums)
        k.helper(*loop, (self.scratch, 0), (self.weights, first * size), end)
        extent = self.extent
        for p in range(self.points):
            whole = extent % self.points == 0 or p == 0
            with k.when(True if whole else place[1] + p < extent):
                for q in range(pairs):
                    self._pair(p, q, (place[0], place[1] + p), first + q)

    def _pair(self, p: int, q: int, place: tuple[Any, Any], pair: Any) -> None:
        """Everything behind the sums of two channels."""
        from ..tir import constant, shift_right

        k, config = self.k, self.config
        sums = [k.bind(k.load(self.scratch, self.sums + (2 * q + j) * self.points + p), "sum") for j in range(2)]
        if not config["split"]:
            sums[0] = k.bind(shift_right(sums[0] - sums[1], constant(8, "int32")), "sum")
        for j in range(2):
            column = pair * 2 + j
            if j == 1 and config["columns"]["odd"]:
                last = pair == config["columns"]["pairs"] - 1
                if isinstance(pair, int) and last:
                    continue
                with k.when(True if isinstance(pair, int) else last == 0):
                    self._result(sums[j], place, column)
            else:
                self._result(sums[j], place, column)

    def _result(self, value: Any, place: tuple[Any, Any], column: Any) -> None:
        self.sum = value
        self.ev.begin()
        self.ev.store_all(self.outputs, self._coords(place, column))

    def _coords(self, place: tuple[Any, Any], column: Any) -> list[tuple[Any, int | None]]:
        axes, (n, at) = self.config["axes"], place
        coords: list[tuple[Any, int | None]] = [(0, 0)] * axes["rank"]
        line, point = (0, at) if axes["line"] is None else self.line_and_point(at)
        for axis, where in (("batch", n), ("line", line), ("point", point), ("column", column)):
            if axes[axis] is not None:
                coords[axes[axis]] = (where, 0)
        return coords
