"""Writes the kernels of ``helium_depthwise``: eight channels of two points at a time.

Bytes are widened to int16 where they are loaded; the products of a few taps are added as such (``sums`` says of how
many: as many as certainly fit) and then widened, even and odd channels apart, so that narrowing brings them back in
order. The lines that a line of results reads lie in scratch ``[group of channels][line][point][8]`` with their border;
those that the next line of results reads, too, stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LANES = 8  # channels of a group
HEAD = 8 * LANES  # bytes of a group's starts and multipliers, before its weights
_STEP = 16  # bytes of a vector
_POINTS = 2  # of a tile


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, each group's constants, numbers, the epilogue's inputs, outputs, scratch."""
    k.noalias = k.pointers = False
    Depthwise(k, config).run()


class Depthwise:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction
        from ..ahead import Ahead

        self.k, self.config = k, config
        program, a, spans = config["program"], config["a"], config["spans"]
        self.a = k.arg("a", a["dtype"], a["span"])
        self.table = k.arg("table", "int8", spans[0])
        numbers = k.arg("numbers", "int32", spans[1])
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.scratch = k.arg("scratch", "int8", config["scratch"])
        self.rows = {name: instruction(row) for name, row in config["rows"].items()}
        self.part: Any = None
        self.ev = Ahead(k, program, reads, lambda number, coords: self.part, numbers, spans[1])

    def run(self) -> None:
        k, config = self.k, self.config
        with k.loop(config["batch"]["extent"]) as n:
            self._fill(0, config["scratch"])
            with k.loop(config["line"]["extent"]) as y:
                lines = self._lines(n * config["batch"]["a"], y)
                for g, valid in self._groups():
                    self._points(n, y, lines, g, valid)

    def _groups(self) -> Iterator[tuple[Any, int]]:
        full, rest = divmod(self.config["channels"], LANES)
        if full:
            with self.k.loop(full) as g:
                yield g, LANES
        if rest:
            yield full, rest

    # -- lines -----------------------------------------------------------------------------------------------------

    def _lines(self, at: Any, y: Any) -> list[Any]:
        """Copies the lines of A, whose first byte is ``at``, that are new to line ``y``; returns where each lies."""
        from tvm import tirx

        from ..tir import constant, select

        k, line, nbytes = self.k, self.config["copy"]["line"], self.config["copy"]["bytes"]
        taps, stride = line["taps"], line["stride"]
        stays = line["dilation"] == 1 and stride < taps
        first: Any = 0
        if stays and not isinstance(y, int):
            first = k.bind(select(y > 0, constant(taps - stride, "int32"), constant(0, "int32")))
        with k.loop(taps - first) as i:
            number = k.bind(y * stride + (first + i), "number") if stays else first + i
            to = tirx.truncmod(number, taps) * nbytes if stays and not isinstance(number, int) else number * nbytes
            row = number - line["pad"] if stays else y * stride + i * line["dilation"] - line["pad"]
            self._line(at, k.bind(row, "row"), k.bind(to, "to"))
        if not stays or isinstance(y, int):
            return [t * nbytes for t in range(taps)]
        return [k.bind(tirx.truncmod(y * stride + t, taps) * nbytes, "line") for t in range(taps)]

    def _line(self, at: Any, row: Any, to: Any) -> None:
        from tvm import tirx

        k, copy = self.k, self.config["copy"]
        line, point = copy["line"], copy["point"]
        inside = tirx.And(row >= 0, row < line["size"]) if line["border"] else True
        with k.when(inside):
            for g, valid in self._groups():
                start = to + g * self.config["plane"] + point["pad"] * LANES
                with k.loop(copy["inside"]) as x:
                    self._copy(at + row * line["a"] + x * point["a"] + g * LANES, start + x * LANES, valid)
        if inside is not True:
            with k.when(tirx.Not(inside)), k.loop(self.config["groups"]) as g:
                self._fill(to + g * self.config["plane"], copy["bytes"])

    def _copy(self, at: Any, to: Any, valid: int) -> None:
        from ..tir import as_dtype, like, reinterpreted

        for first, size in _pieces(valid):
            value = self.k.load(self.a, at + first, size)
            if self.config["copy"]["flip"]:
                value = reinterpreted(value ^ like(128, value), as_dtype("int8", size))
            self.k.store(self.scratch, to + first, value)

    def _fill(self, to: Any, nbytes: int) -> None:
        """Zero points, in whole vectors: a line's bytes are a multiple of 8, and so is the scratch."""
        from ..functions import cast
        from ..tir import splat

        zero = cast(self.ev.values[self.config["copy"]["zero"]["at"]], "int8")
        with self.k.loop(nbytes // _STEP) as i:
            self.k.store(self.scratch, to + i * _STEP, splat(zero, _STEP))
        if nbytes % _STEP:
            self.k.store(self.scratch, to + nbytes // _STEP * _STEP, splat(zero, LANES))

    # -- tiles -----------------------------------------------------------------------------------------------------

    def _points(self, n: Any, y: Any, lines: list[Any], g: Any, valid: int) -> None:
        """The points of a line, for one group of channels."""
        k, point = self.k, self.config["point"]
        extent = point["extent"]
        places = [k.register("int32", 1, "place") for _ in lines]  # of a tile: what LLVM cannot take apart
        for place, line in zip(places, lines, strict=True):
            place.set(line + g * self.config["plane"])

        def tile(x: Any, count: int) -> None:
            for p, value in enumerate(self._tile(places, g, count)):
                self._store(value, n, y, x + p, g * LANES, valid)
            for place in places:
                place.set(place.get() + count * point["stride"] * LANES)

        with k.loop(extent // _POINTS) if extent >= _POINTS else k.loop(1) as i:
            tile(i * _POINTS, min(extent, _POINTS))
        if extent > _POINTS and extent % _POINTS:
            tile(extent - 1, 1)

    def _tile(self, places: list[Any], g: Any, count: int) -> list[Any]:
        """The results of ``count`` neighbouring points, eight channels each."""
        k, config = self.k, self.config
        table = g * config["table"]
        acc = [[k.register("int32", 4, "acc") for _ in range(2)] for _ in range(count)]
        for half in range(2):
            start = k.bind(self._words(table + half * _STEP, "int32"), "start")
            for pair in acc:
                pair[half].set(start)
        first = 0
        for number in config["sums"]:
            self._add(acc, range(first, first + number), [p.get() for p in places], table)
            first += number
        scale = [k.bind(self._words(table + (2 + half) * _STEP, "float32"), "scale") for half in range(2)]
        return [self._narrowed([self._rescaled(*both) for both in zip(pair, scale, strict=True)]) for pair in acc]

    def _words(self, at: Any, dtype: str) -> Any:
        from ..tir import as_dtype, reinterpreted

        return reinterpreted(self.k.load(self.table, at, _STEP), as_dtype(dtype, 4))

    def _add(self, acc: list[list[Any]], taps: range, places: list[Any], table: Any) -> None:
        """Adds the products of a few taps."""
        from ..functions import cast
        from ..tir import as_dtype, like, reinterpreted, shift_left, shift_right

        k, config = self.k, self.config
        sums: list[Any] = []
        for tap in taps:
            line, at = config["taps"][tap]
            w = k.bind(cast(k.load(self.table, table + HEAD + tap * LANES, LANES), "int16"), "w")
            for p in range(len(acc)):
                place = places[line] + (at + p * config["point"]["stride"]) * LANES
                product = cast(k.load(self.scratch, place, LANES), "int16") * w
                sums.append(k.bind(product if tap == taps[0] else sums[len(sums) - len(acc)] + product, "s"))
        for pair, s in zip(acc, sums[-len(acc) :], strict=True):
            wide = k.bind(reinterpreted(s, as_dtype("int32", 4)))
            pair[0].set(pair[0].get() + shift_right(shift_left(wide, like(16, wide)), like(16, wide)))
            pair[1].set(pair[1].get() + shift_right(wide, like(16, wide)))

    def _rescaled(self, sums: Any, scale: Any) -> Any:
        from ..functions import cast
        from ..tir import splat

        k, zero = self.k, self.config["program"]["rescale"]["zero_point"]
        whole = k.instruction(self.rows["round"], a=k.bind(cast(sums.get(), "float32") * scale))
        held = self.ev.values[zero["at"]] if isinstance(zero, dict) else zero
        return k.bind(whole if isinstance(held, int) and not held else whole + splat(held, 4))

    def _narrowed(self, halves: list[Any]) -> Any:
        """Even and odd channels in order, clipped, as bytes."""
        from ...ops.selection import step_bounds
        from ..functions import cast
        from ..integers import spread
        from ..tir import as_dtype, maximum, minimum, reinterpreted

        k, attrs = self.k, self.config["program"]["rescale"]
        even, odd = halves
        into = k.instruction(self.rows["even"], into=reinterpreted(even, as_dtype("int16", LANES)), a=even)
        value = k.bind(k.instruction(self.rows["odd"], into=into, a=odd))
        low, high = (self.ev.values[v["at"]] if isinstance(v, dict) else v for v in (attrs["low"], attrs["high"]))
        least, most = step_bounds(None, None, attrs["to"])
        if low in (None, least) and high in (None, most):
            into = reinterpreted(value, as_dtype(attrs["to"], _STEP))
            value = k.instruction(self.rows["byte"], into=into, a=value)
            value = reinterpreted(value, as_dtype("int16", LANES))
        else:
            value = k.bind(maximum(value, spread(least if low is None else low, value)))
            value = minimum(value, spread(most if high is None else high, value))
        return k.bind(cast(value, attrs["to"]))

    def _store(self, value: Any, n: Any, y: Any, x: Any, channel: Any, valid: int) -> None:
        from ._contract import part

        axes = self.config["axes"]
        here: list[Any] = [(0, 0)] * axes["rank"]
        here[0] = (n, 0)
        for name, at in (("line", y), ("point", x)):
            if axes[name] is not None:
                here[axes[name]] = (at, 0)
        for first, lanes in _pieces(valid):
            here[1] = (channel + first, 1 if lanes > 1 else 0)
            self.ev.begin()
            self.part = part(value, first, lanes)
            self.ev.store_all(self.outputs, here, lanes)


def _pieces(valid: int) -> list[tuple[int, int]]:
    found, done = [], 0
    while done < valid:
        found.append((done, next(size for size in (LANES, 4, 1) if size <= valid - done)))
        done += found[-1][1]
    return found
