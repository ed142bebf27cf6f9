"""Writes the kernel of ``helium_dot`` for points that are one run of bytes each, side by side, and are requantized:
1x1 convolutions. How many points and columns there are is data, so that layers of one depth share it."""

from __future__ import annotations

from typing import Any

from ._helium import rescaled, scatter
from ._helium_dot import GROUP, STEP
from ._helium_live import Live

PARTS = 9  # words of a group in the table: starts, multipliers, and the places of its columns as bytes
MOST = 256  # columns, so that a byte says their places


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, packed weights, the row and each group's constants, numbers, the output."""
    k.noalias = k.counters = False
    Plain(k, config).run()


class Plain(Live):
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction

        self.k, self.config, self.scratch = k, config, None
        self.a = self.source = k.arg("a", "int8", 1)
        self.weights, self.start = k.arg("w", "int32", 1), k.arg("table", "int32", 1)
        numbers = k.arg("numbers", "int32", 1)
        self.outputs = [k.arg("y", config["rescale"]["to"], 1)]
        self.row = instruction(config["row"])
        self.rows = {name: instruction(row) for name, row in config["rows"].items()}
        self.values = [k.bind(k.load(numbers, i), "number") for i in range(config["numbers"])]
        self.one, self.jump = (self.number(config[name]) for name in ("one", "jump"))
        self.shape = {name: self.number(value) for name, value in config["shape"].items()}

    def number(self, value: Any) -> Any:
        return self.values[value["at"]] if isinstance(value, dict) else value

    def run(self) -> None:
        from ..tir import minimum

        k, shape = self.k, self.shape
        with k.loop(shape["blocks"]) as b:
            first = k.bind(b * shape["block"], "first")
            count = k.bind(minimum(shape["block"], shape["points"] - first), "count")
            self._rows(first, count)
            with k.loop(shape["groups"]) as g:
                self._tiles(first, count, g)

    def _rows(self, first: Any, count: Any) -> None:
        """The row, if there is one, at each point of a block."""
        from ..tir import as_dtype, minimum, reinterpreted

        k, shape = self.k, self.shape
        with k.loop(shape["chunks"]) as i:
            word = k.bind(minimum(i * (STEP // 4), shape["last"]), "word")
            held = reinterpreted(k.load(self.start, word, STEP // 4), as_dtype(self.config["rescale"]["to"], STEP))
            held = k.bind(held, "row")
            with k.loop(count) as x:
                k.store(self.outputs[0], (first + x) * shape["to"] + word * 4, held)

    def _tiles(self, first: Any, count: Any, g: Any) -> None:
        """The points of a block for four columns, by twos; one may be left over."""
        from tvm import tirx

        k = self.k
        start = self._begin(g, GROUP)
        weights = g * (self.config["depth"] * GROUP // 4)
        with k.loop(count >> 1) as i:
            self._tile(first + i * 2, 2, weights, start)
        if self.config["odd"]:
            with k.when(tirx.NE(count & 1, 0)):
                self._tile(first + count - 1, 1, weights, start)

    def _tile(self, x: Any, points: int, weights: Any, start: Any) -> None:
        for p, acc in enumerate(self._sums(x * self.config["point"]["a"], weights, points)):
            self._put((x + p) * self.shape["to"], acc, start)

    def _begin(self, g: Any, valid: int) -> Any:
        from ..tir import constant, joined, like, shift_right, splat

        k, at = self.k, self.shape["head"] + g * PARTS
        start, scale = (k.bind(k.load(self.start, at + i * GROUP, GROUP)) for i in range(2))
        word = splat(k.load(self.start, at + 2 * GROUP), GROUP)
        places = shift_right(word, joined([constant(8 * i, "int32") for i in range(GROUP)]))
        self.scale, self.places = self._floats(scale), k.bind(places & like(0xFF, places), "places")
        return start

    def _put(self, to: Any, acc: Any, start: Any) -> None:
        from ..tir import joined

        sums = joined([r.get() for r in acc]) + start
        value = rescaled(self.k, self.rows, self.config["rescale"], self.number, sums, self.scale)
        scatter(self.k, self.outputs[0], to, self.places, value)
