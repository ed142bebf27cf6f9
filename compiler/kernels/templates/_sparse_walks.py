"""Writes contractions whose weights are lists: for every group of columns the rows that have any weight.

The walk over blocks, lines and tiles, the bias and the epilogue are those of ``_contract``. What differs is a tile's
reduction: it walks the group's list, whose entries say where in A the products of that row begin (``index``, in units),
beside one vector of weights for each vector of the group. Entries are sorted by tap, and ``starts`` tells where each
tap's begin, so that at a border the taps that fall outside are left out as whole lists.
"""

from __future__ import annotations

from typing import Any

from ._contract import Arguments, Contraction, least, most


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, the weights, the packed bias if there is one, the epilogue's inputs, the outputs, then ``index``
    and ``starts``."""
    Lists(k, config).run()


class Lists(Contraction):
    """One kernel."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config, Walk, Arguments(k, config))  # type: ignore[arg-type]
        lists = config["lists"]
        self.index = k.arg("index", lists["dtype"], lists["entries"])
        self.starts = k.arg("starts", "int32", lists["count"] * lists["taps"] + 1 + len(self.columns["rests"]))

    def weights(self, outer: Any, group: Any) -> tuple[Any, Any]:
        """The group's number, and what to add to a place in the weights: groups of fewer vectors lie behind."""
        column, _, _, _ = group
        columns, lists = self.columns, self.config["lists"]
        whole = columns["nv"] * columns["lanes"]
        if not isinstance(column, int) or column < columns["full"] * whole:
            return column // whole, 0
        rest = next(i for i, r in enumerate(columns["rests"]) if r[0] == column)
        shift = self.k.load(self.starts, lists["count"] * lists["taps"] + 1 + rest)
        return columns["full"] + rest, self.k.bind(shift, "shift")


class Walk:
    """The reduction of one tile."""

    def __init__(
        self, of: Lists, acc: Any, widths: list[int], shift: Any, segment: dict[str, Any], at: dict[str, Any]
    ) -> None:
        self.of, self.k, self.acc, self.widths, self.shift = of, of.k, acc, widths, shift
        self.segment, self.at, self.lists = segment, at, of.config["lists"]
        self.axes = {"z": of.config["slab"] or {"taps": 1, "border": False}, "y": of.line, "x": of.point}

    def emit(self, a: Any, group: Any) -> None:
        rows = range(len(self.acc))
        self.a = self.k.bind(a, "a")
        first = group * self.lists["taps"]
        valid = self.segment["valid"]
        if not self.lists["border"]:
            self._run(first, first + 1, rows)
        elif isinstance(valid, list):
            self._within("zy", first, lambda t: self._points(t, valid))
        elif valid == "dynamic":
            self._within("zyx", first, lambda t: self._run(t, t + 1, rows))
        else:
            self._within("zy", first, lambda t: self._run(t, t + self.axes["x"]["taps"], rows))

    def _within(self, names: str, first: Any, do: Any) -> None:
        """Calls ``do`` with the first list of all taps inside the input, by the axes' numbers."""
        if not names:
            do(first)
            return
        low, count = self._range(names[0])
        under = 1
        for n in "zyx"["zyx".index(names[0]) + 1 :]:
            under *= self.axes[n]["taps"]
        with self.k.loop(count) as i:
            self._within(names[1:], first + (low + i) * under, do)

    def _points(self, first: Any, valid: list[list[int]]) -> None:
        """The taps along a line of points, neighbours that count for the same points at once."""
        start = 0
        for tap in range(1, len(valid) + 1):
            if tap == len(valid) or valid[tap] != valid[start]:
                if valid[start][0] < valid[start][1]:
                    self._run(first + start, first + tap, range(*valid[start]))
                start = tap

    def _range(self, name: str) -> tuple[Any, Any]:
        """First tap and number of taps inside the input."""
        axis = self.axes[name]
        if not axis["border"]:
            return 0, axis["taps"]
        at, dilation = self.at[name], axis["dilation"]
        start = at * axis["stride"] - axis["pad"]
        low = self.k.bind(most(0, (axis["pad"] - at * axis["stride"] + (dilation - 1)) // dilation), "low")
        return low, most(0, least(axis["taps"], (axis["size"] - 1 - start) // dilation + 1) - low)

    def _run(self, low: Any, high: Any, rows: range) -> None:
        """The entries of the lists from ``low`` until before ``high``."""
        k = self.k
        begin = k.bind(k.load(self.of.starts, low), "begin")
        count = k.bind(k.load(self.of.starts, high) - begin, "count")
        unroll = self.lists["unroll"]
        if unroll == 1:
            with k.loop(count) as i:
                self._entry(begin + i, rows, self.acc)
            return
        sets = [self.acc, *(self._zeros() for _ in range(unroll - 1))]
        with k.loop(count // unroll) as i:
            for u, acc in enumerate(sets):
                self._entry(begin + i * unroll + u, rows, acc)
        done = k.bind(count // unroll * unroll, "done")
        with k.loop(count - done) as i:
            self._entry(begin + done + i, rows, self.acc)
        for p in rows:
            for v, total in enumerate(self.acc[p]):
                total.set(k.fold([acc[p][v].get() for acc in sets], lambda x, y: x + y))

    def _zeros(self) -> list[list[Any]]:
        from ..tir import constant

        k, dtype = self.k, self.of.dtype
        found = [[k.register(dtype, w, "acc") for w in self.widths] for _ in self.acc]
        for row in found:
            for r in row:
                r.set(constant(0, dtype, r.lanes))
        return found

    def _entry(self, entry: Any, rows: range, acc: Any) -> None:
        from tvm import tirx

        from ..tir import splat

        k, of = self.k, self.of
        place = k.bind(tirx.Cast("int32", k.load(of.index, entry)) * self.lists["unit"] + self.a, "place")
        first = entry * sum(self.widths) + self.shift
        held = [k.bind(k.load(of.b, first + sum(self.widths[:v]), w), "b") for v, w in enumerate(self.widths)]
        for p in rows:
            value = k.load(of.a, place + p * of.point["a"])
            for vector, total in zip(held, acc[p], strict=True):
                total.add_product(splat(value, total.lanes), vector)
