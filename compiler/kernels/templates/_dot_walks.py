"""How ``dot_depthwise`` fills its sums: tiles over copied lines, or windows that roll along lines of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....targets import instruction
from ._contract import least, most, part
from ._tile import pieces

if TYPE_CHECKING:
    from ._dot_depthwise import Emitter

ZEROS = 8  # behind the start values


class Sums:
    """What both ways of walking a line share: windows, products, and what becomes of finished sums."""

    def __init__(self, of: Emitter, group: dict[str, Any], base: Any, rows: int) -> None:
        self.of, self.k, self.group, self.base, self.rows = of, of.k, group, base, rows
        self.lanes, self.quarter, self.step = group["lanes"], group["lanes"] // 4, of.step(group)
        self.dot = instruction(of.config["dots"][str(self.lanes)])
        self.points: dict[Any, Any] = {}
        self.pairs: dict[Any, list[Any]] = {}
        self.zero: Any = 0

    def hide(self, number: Any) -> None:
        """Makes ``zero`` a 0 that LLVM does not know, at each turn of a loop; else it loads all weights before the loop
        and spills them."""
        last = self.of.config["spans"][1] - ZEROS
        self.zero = 0 if isinstance(number, int) else self.k.bind(self.k.load(self.of.start, last + number % ZEROS))

    def starts(self) -> list[Any]:
        at = self.group["packed"] + self.zero
        return [self.k.load(self.of.start, at + q * self.quarter, self.quarter) for q in range(4)]

    def weight(self, across: int, window: int, v: int, q: int) -> Any:
        config = self.of.config
        size = config["windows"] * config["pair"] * 4
        at = ((across * config["windows"] + window) * config["pair"] + v) * 4 + q
        first = self.group["packed"] * (config["across"] * size)
        return self.k.bind(self.k.load(self.of.weights, self.zero + at * self.lanes + first, self.lanes), "w")

    def add(self, register: Any, value: Any, weight: Any) -> None:
        register.set(self.k.instruction(self.dot, acc=register.get(), a=value, b=weight))

    def window(self, at: list[Any]) -> list[Any]:
        """The vectors at four places (memoised by place) as four of which each holds their bytes for a quarter of the
        channels. A place is (line, point), from ``base`` on."""
        (low, high), (low2, high2) = self._pair(at[0], at[1]), self._pair(at[2], at[3])
        return [*self._unpacked(low, low2, 2), *self._unpacked(high, high2, 2)]

    def load(self, line: Any, point: Any) -> Any:
        """The bytes of all lanes at a place."""
        config, stride = self.of.config, self.of.point["stride"]
        if config["flat"]:
            point = point % stride * (config["points"] // stride) + point // stride
        offset = line * config["row"] + point * self.step
        return self.k.load(self.of.lines, self.base + offset, self.lanes)

    def _pair(self, a: Any, b: Any) -> list[Any]:
        for place in (a, b):
            if place not in self.points:
                self.points[place] = self.k.bind(self.load(*place), "p")
        if (a, b) not in self.pairs:
            self.pairs[a, b] = self._unpacked(self.points[a], self.points[b], 1)
        return self.pairs[a, b]

    def _unpacked(self, a: Any, b: Any, size: int) -> list[Any]:
        """Elements of ``size`` bytes of a and b in turns, of the low and of the high half of each 128 bits."""
        from ..tir import chosen

        found = []
        for half in (0, 8):
            order = [
                v * self.lanes + i * 16 + half + e * size + byte
                for i in range(self.lanes // 16)
                for e in range(8 // size)
                for v in (0, 1)
                for byte in range(size)
            ]
            found.append(self.k.bind(chosen([a, b], order), "u"))
        return found

    def finish(self, batch: Any, y: Any, x: Any, acc: list[list[list[Any]]]) -> None:
        """Stores the outputs ``[row][point][quarter]`` from (y, x) on."""
        k, of = self.k, self.of
        rank = len(of.config["program"]["outputs"][0]["shape"])
        scales = None
        if of.scale is not None:
            at = self.group["packed"] + self.zero
            scales = [k.bind(k.load(of.scale, at + q * self.quarter, self.quarter)) for q in range(4)]
        for o, row in enumerate(acc):
            for v, quarters in enumerate(row):
                whole = k.bind(self._result(quarters, scales))
                coords: list[Any] = [(0, 0)] * rank
                coords[0] = (batch, 0)
                if of.line["axis"] is not None:
                    coords[of.line["axis"]] = (y + o, 0)
                if of.point["axis"] is not None and not of.config["flat"]:
                    coords[of.point["axis"]] = (x + v, 0)
                self._store(whole, coords, x if of.config["flat"] else self.group["first"])

    def _store(self, whole: Any, coords: list[Any], channel: Any) -> None:
        of = self.of
        of.ev.begin()
        for at, lanes in pieces(self.group["valid"]):
            here = list(coords)
            here[1] = (channel + at, 1 if lanes > 1 else 0)
            of.part = part(whole, at, lanes)
            of.ev.store_all(of.outputs, here, lanes)

    def _result(self, acc: list[Any], scales: list[Any] | None) -> Any:
        """The sums of all lanes, or what they are rescaled to, in the order of the channels."""
        from ..integers import rescaled_parts
        from ..tir import chosen

        values = [a.get() for a in acc]
        if scales is not None:
            return rescaled_parts(self.k, values, scales, self.of.rescale)
        order = [q * self.quarter + i * 4 + j for i in range(self.lanes // 16) for q in range(4) for j in range(4)]
        return chosen(values, order)


class Tile(Sums):
    """``rows`` lines times ``outputs`` neighbouring points; windows along the points."""

    def __init__(self, of: Emitter, group: dict[str, Any], base: Any, rows: int, outputs: int) -> None:
        super().__init__(of, group, base, rows)
        self.outputs = outputs
        self.windows: dict[tuple[int, int], list[Any]] = {}

    def run(self, batch: Any, y: Any, x: Any, number: Any) -> None:
        self.hide(number)
        starts = [self.k.bind(v) for v in self.starts()]
        acc = [
            [[self.k.register("int32", self.quarter, "acc") for _ in starts] for _ in range(self.outputs)]
            for _ in range(self.rows)
        ]
        for row in acc:
            for output in row:
                for register, start in zip(output, starts, strict=True):
                    register.set(start)
        for tap in range(self.of.line["taps"]):
            for window in range(self.of.config["windows"]):
                self._products(acc, tap, window)
        self.finish(batch, y, x, acc)

    def _products(self, acc: Any, tap: int, window: int) -> None:
        """One window's taps of one line of the kernel, for all rows: weights are loaded once."""
        line, taps = self.of.line, self.of.point["taps"]
        for v in range(self.outputs):
            if not any(0 <= 4 * window + i - v < taps for i in range(4)):
                continue
            for q in range(4):
                weight = self.weight(tap, window, v, q)
                for o, row in enumerate(acc):
                    at = o * line["stride"] + tap * line["dilation"]
                    self.add(row[v][q], self._at(at, window)[q], weight)

    def _at(self, line: int, window: int) -> list[Any]:
        if (line, window) not in self.windows:
            reach = self.of.point["taps"] + self.outputs - 1  # points that count
            points = [min(4 * window + i, reach - 1) * self.of.point["dilation"] for i in range(4)]
            self.windows[line, window] = self.window([(line, p) for p in points])
        return self.windows[line, window]


class Rolling(Sums):
    """``rows`` lines, point after point; windows across the lines, read from the input itself. Each turn takes in as
    many points as the outputs are apart: the last taps of the oldest unfinished output, and the first of a new one.
    ``top`` is the first line that is read; with ``masked`` some may lie outside, and count as the zero point."""

    def __init__(self, of: Emitter, group: dict[str, Any], base: Any, rows: int, top: Any, masked: bool) -> None:
        super().__init__(of, group, base, rows)
        self.top, self.masks = top, {}
        self.number = of.line["taps"] + rows - 1
        if masked:
            self.masks = {n * of.line["dilation"]: self._mask(n * of.line["dilation"]) for n in range(self.number)}

    def _mask(self, line: int) -> tuple[Any, Any, Any]:
        """Which bits of a line count, what is put in their place, and a line that can be read."""
        from tvm import tirx

        from ..tir import constant, splat

        k, config, at = self.k, self.of.config, self.top + line
        inside = tirx.all(at >= 0, at < self.of.line["size"])
        none, all_bits = (constant(v, config["held"]) for v in (0, 255 if config["held"] == "uint8" else -1))
        keep, put = (
            k.bind(splat(tirx.Select(inside, *part), self.lanes))
            for part in ((all_bits, none), (none, self.of.outside(1)))
        )
        return keep, put, k.bind(most(0, least(at, self.of.line["size"] - 1)))

    def load(self, line: Any, point: Any) -> Any:
        from tvm import tirx

        from ..tir import as_dtype, constant, joined, like, reinterpreted

        of, held = self.of, self.of.config["held"]
        column = point - of.point["pad"]
        if isinstance(column, int) and not 0 <= column < of.point["size"]:
            return of.outside(self.lanes)
        keep, put, at = self.masks.get(line, (None, None, self.top + line))
        place = self.base + at * of.line["step"] + column * of.point["step"]
        found = [self.k.load(of.x, place + first, n) for first, n in pieces(self.group["valid"])]
        missing = self.lanes - self.group["valid"]
        value = joined(found + [constant(0, of.config["x"]["dtype"], n) for _, n in pieces(missing)])
        if of.config["flip"]:
            value = value ^ like(-128 if held == "uint8" else 128, value)
        value = reinterpreted(value, as_dtype(held, self.lanes))
        return value if keep is None else tirx.bitwise_or(tirx.bitwise_and(self.k.bind(value), keep), put)

    def run(self, batch: Any, y: Any) -> None:
        sets, point = self.of.config["sets"], self.of.point
        extent, step = point["extent"], point["stride"]
        self.acc = [
            [[self.k.register("int32", self.quarter, "acc") for _ in range(4)] for _ in range(self.rows)]
            for _ in range(sets + 1)
        ]
        # turns whose points lie inside, that start an output and that finish one are a loop
        first = max(sets, -(-point["pad"] // step))
        last = min(extent, (point["size"] + point["pad"]) // step)
        for t in range(min(first, extent + sets)):
            self._turn(batch, y, t)
        if last > first:
            with self.k.loop(last - first) as i:
                self.hide(i)
                self._turn(batch, y, i + first)
        self.zero = 0
        for t in range(max(first, last), extent + sets):
            self._turn(batch, y, t)

    def _turn(self, batch: Any, y: Any, t: Any) -> None:
        """Turn ``t``; set ``j`` belongs to output ``t - j``."""
        point, line, sets = self.of.point, self.of.line, self.of.config["sets"]
        known = isinstance(t, int)
        newest = max(0, t - point["extent"] + 1) if known else 0
        oldest = min(t, sets) if known else sets
        self.points, self.pairs = {}, {}
        if newest == 0:
            for row in self.acc[0]:
                for register, start in zip(row, self.starts(), strict=True):
                    register.set(start)
        for i in range(point["stride"]):
            used = [j for j in range(oldest, newest - 1, -1) if i + j * point["stride"] < point["taps"]]
            if not used:
                continue
            lines = [min(n, self.number - 1) * line["dilation"] for n in range(4)]
            for q, value in enumerate(self.window([(n, t * point["stride"] + i) for n in lines])):
                for j in used:
                    for v in range(self.rows):
                        self.add(self.acc[j][v][q], value, self.weight(i + j * point["stride"], 0, v, q))
        if oldest == sets:
            self.finish(batch, y, t - sets, [[row] for row in self.acc[sets]])
        for j in range(sets, 0, -1):
            for to, row in zip(self.acc[j], self.acc[j - 1], strict=True):
                for register, other in zip(to, row, strict=True):
                    register.set(other.get())
