"""Writes the kernels of ``helium_dot`` that work out some columns only: the others are the same for all points, and
come from a constant row that is written first. Groups are of any four columns; their results are scattered."""

from __future__ import annotations

from typing import Any

from ._helium import rescaled, scatter
from ._helium_dot import GROUP, STEP, Dot

PARTS = 3  # vectors of a group in the table: starts, multipliers, places


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, packed weights, the row and each group's constants, numbers, the output, scratch if any."""
    k.noalias, k.counters = False, config["tile"] == 1
    Live(k, config).run()


class Live(Dot):
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction

        super().__init__(k, config)
        self.rows = {name: instruction(row) for name, row in config["rows"].items()}
        self.head = config["columns"]["count"] // GROUP  # words of the row
        self.scale: Any = None
        self.places: Any = None

    def number(self, value: Any) -> Any:
        return self.ev.values[value["at"]] if isinstance(value, dict) else value

    def _columns(self, outer: list[Any], y: Any, base: Any, span: Any) -> None:
        self._fill(outer, y, span)
        with self.k.loop(self.number(self.config["columns"]["groups"])) as g:
            self._group(outer, y, base, span, g, GROUP)

    def _fill(self, outer: list[Any], y: Any, span: Any) -> None:
        """The row, at each point of a block."""
        from ..tir import as_dtype, minimum, reinterpreted

        k, columns, point = self.k, self.config["columns"]["count"], self.config["point"]
        first, _, _, blocks = span
        count = point["extent"] if blocks == 1 else minimum(point["block"], point["extent"] - first)
        to, step = k.bind(self._place(outer, y, first), "to"), self.config["to"]["point"]
        dtype = self.config["program"]["outputs"][0]["dtype"]

        def piece(at: Any) -> None:
            held = reinterpreted(k.load(self.start, at // GROUP, GROUP), as_dtype(dtype, STEP))
            held = k.bind(held, "row")
            with k.loop(count) as x:
                k.store(self.outputs[0], to + at + x * step, held)

        with k.loop(columns // STEP) as i:
            piece(i * STEP)
        if columns % STEP:
            piece(columns - STEP)

    def _place(self, outer: list[Any], y: Any, x: Any) -> Any:
        """Where a point's results begin."""
        to = self.config["to"]
        return sum((i * s for i, s in zip(outer, to["outer"], strict=True)), y * to["line"] + x * to["point"])

    def _begin(self, g: Any, valid: int) -> Any:
        k, at = self.k, self.head + g * (PARTS * GROUP)
        start, scale, self.places = (k.bind(k.load(self.start, at + i * GROUP, GROUP)) for i in range(PARTS))
        self.scale = self._floats(scale)
        return start

    def _floats(self, words: Any) -> Any:
        from ..tir import reinterpreted

        return self.k.bind(reinterpreted(words, "float32x4"), "scale")

    def _store(self, outer: list[Any], y: Any, x: Any, column: Any, acc: Any, start: Any, valid: int) -> None:
        from ..tir import joined

        sums = joined([r.get() for r in acc]) + start
        value = rescaled(self.k, self.rows, self.config["program"]["rescale"], self.number, sums, self.scale)
        scatter(self.k, self.outputs[0], self._place(outer, y, x), self.places, value)
