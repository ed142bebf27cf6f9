"""Writes the kernels of 8-bit contractions for cores whose word holds two int16 (Arm's DSP extension).

A tile is a few points of the output. Its inputs are widened once into pairs of int16 in the worker's scratch, then all
channels walk over them, a pair or two of channels at a time. The weights of channels ``a`` and ``b`` share a halfword,
``256 a + b``: one product of pairs adds up ``256 A + B``, another one, with the sign-extended lower bytes, ``B``. Where
``256 A`` may leave an int32, the upper bytes are widened too (``split``).
"""

from __future__ import annotations

from typing import Any

from . import _dsp_asm, _dsp_source


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: the input, packed weights, numbers, the epilogue's inputs, outputs, scratch, bytes of a point."""
    Pairs(k, config).run()


class Pairs:
    """One kernel."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.config = k, config
        program, a = config["program"], config["a"]
        k.noalias = not config["overlaps"]
        self.a = k.arg("a", a["dtype"], a["span"])
        self.weights = k.arg("w", "int32", config["weights"])
        numbers = k.arg("numbers", "int32", config["numbers"]) if config["numbers"] else None
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.scratch = k.arg("scratch", "int32", config["scratch"])
        self.bytes = k.arg("bytes", a["dtype"], config["depth"]) if config["source"]["kind"] == "bytes" else None
        self.points, self.pairs, self.quads = config["points"], config["pairs"], config["depth"] // 4
        self.sums = self.quads * 2 * self.points  # where they lie in the scratch
        self.ev = Evaluator(k, program, reads, lambda number, coords: self.sum, numbers)
        self.sum: Any = None

    def count(self, number: Any) -> Any:
        """The extent of a loop that is not to be unrolled."""
        return number if number == 1 else self.k.helper(*_dsp_asm.opaque(), number)

    def run(self) -> None:
        """All tiles."""
        config, k = self.config, self.k
        extent = config["line"]["extent"] * config["point"]["extent"]
        tiles = -(-extent // self.points)
        with k.loop(config["batch"]["extent"]) as n, k.loop(self.count(tiles), name="tile") as t:
            first = k.bind(t * self.points, "first")
            _dsp_source.emit(k, self, n, first)
            self._channels(n, first)

    def _channels(self, n: Any, first: Any) -> None:
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
        loop = _dsp_asm.products(self.points, pairs, self.quads, self.config["split"])
        end = (self.scratch, self.sums)
        k.helper(*loop, (self.scratch, 0), (self.weights, first * size), end)
        extent = self.config["line"]["extent"] * self.config["point"]["extent"]
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

    def _coords(self, place: tuple[Any, Any], column: Any) -> list[tuple[Any, int]]:
        axes, (n, at) = self.config["axes"], place
        coords: list[tuple[Any, int]] = [(0, 0)] * axes["rank"]
        line, point = (0, at) if axes["line"] is None else self.line_and_point(at)
        for axis, where in (("batch", n), ("line", line), ("point", point), ("column", column)):
            if axes[axis] is not None:
                coords[axes[axis]] = (where, 0)
        return coords

    def line_and_point(self, at: Any) -> tuple[Any, Any]:
        """Of a point's number."""
        width = self.config["point"]["extent"]
        if self.config["line"]["extent"] == 1:
            return 0, at
        line = self.k.bind(at // width, "line")
        return line, self.k.bind(at - line * width, "point")
