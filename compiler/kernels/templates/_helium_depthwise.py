"""Writes the kernels of ``helium_depthwise``: sixteen channels of a point (or of a few points) at a time.

Products of bytes are int16, even and odd channels apart; those of a few taps are added as such (``sums`` says of which:
as many as certainly fit), and then widened. The four int32 vectors hold every fourth channel each, so that narrowing
them brings the channels back in order.
"""

from __future__ import annotations

from typing import Any

from ._helium_dot import STEP, Lines


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, packed weights, starts, multipliers, numbers, the epilogue's inputs, outputs, scratch."""
    k.noalias = False
    Depthwise(k, config).run()


class Depthwise:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction
        from ..ahead import Ahead

        self.k, self.config = k, config
        program, a, spans = config["program"], config["a"], config["spans"]
        self.a = k.arg("a", a["dtype"], a["span"])
        self.weights = k.arg("w", "int8", spans[0])
        self.start = k.arg("start", "int32", spans[1])
        self.scale = k.arg("scale", "float32", spans[2])
        numbers = k.arg("numbers", "int32", spans[3])
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.scratch = k.arg("scratch", "int8", config["scratch"])
        self.rows = {name: instruction(row) for name, row in config["rows"].items()}
        self.part: Any = None
        self.ev = Ahead(k, program, reads, lambda number, coords: self.part, numbers, spans[3])

    def run(self) -> None:
        k, config = self.k, self.config
        with k.loop(config["batch"]["extent"]) as n, k.loop(config["line"]["extent"]) as y:
            lines = Ring(self, n * config["batch"]["a"]).emit(y)
            with k.loop(config["full"]) as g:
                self._points(n, y, lines, g, STEP)
            if config["rest"]:
                self._points(n, y, lines, config["full"], config["rest"])

    def _points(self, n: Any, y: Any, lines: list[Any], g: Any, valid: int) -> None:
        """The points of a line, for one group of channels; where those are few, points of one vector are neighbours."""
        k, point = self.k, self.config["point"]
        if not point["flat"]:
            with k.loop(point["extent"]) as x:
                self._store(self._bytes(lines, g, x * point["a"] + g * STEP), n, y, x, g * STEP, valid)
            return
        whole, rest = divmod(point["extent"] * point["flat"], STEP)
        with k.loop(whole) as i:
            self._store(self._bytes(lines, g, i * STEP), n, y, 0, i * STEP, STEP)
        if rest:
            self._store(self._bytes(lines, g, whole * STEP), n, y, 0, whole * STEP, rest)

    def _bytes(self, lines: list[Any], g: Any, at: Any) -> Any:
        """The results of 16 bytes; ``at`` is where their first tap lies in its line."""
        k, config = self.k, self.config
        taps = config["taps"]
        acc = [k.register("int32", 4, "acc") for _ in range(4)]
        for i, r in enumerate(acc):
            r.set(k.load(self.start, g * STEP + 4 * i, 4))
        first = 0
        for count in config["sums"]:
            self._add(acc, [(n, lines[taps[n][0]] + at + taps[n][1]) for n in range(first, first + count)], g)
            first += count
        return self._narrowed([self._rescaled(r.get(), g * STEP + 4 * i) for i, r in enumerate(acc)])

    def _add(self, acc: list[Any], taps: list[tuple[int, Any]], g: Any) -> None:
        """Adds the products of a few taps."""
        from ..tir import as_dtype, like, reinterpreted, shift_left, shift_right

        k = self.k
        sums: list[Any] = []
        for number, at in taps:
            x = k.bind(k.load(self.scratch, at, STEP), "x")
            w = k.bind(k.load(self.weights, (g * len(self.config["taps"]) + number) * STEP, STEP), "w")
            found = [k.instruction(self.rows[half], a=x, b=w) for half in ("even", "odd")]
            sums = [k.bind(f + s if sums else f, "s") for f, s in zip(found, sums or found, strict=True)]
        for half, s in enumerate(sums):
            wide = k.bind(reinterpreted(s, as_dtype("int32", 4)))
            low = shift_right(shift_left(wide, like(16, wide)), like(16, wide))
            for r, value in ((acc[2 * half], low), (acc[2 * half + 1], shift_right(wide, like(16, wide)))):
                r.set(r.get() + value)

    def _rescaled(self, sums: Any, at: Any) -> Any:
        from ..functions import cast
        from ..tir import splat

        k, zero = self.k, self.config["program"]["rescale"]["zero_point"]
        real = k.bind(cast(sums, "float32") * k.load(self.scale, at, 4))
        whole = k.instruction(self.rows["round"], a=real)
        held = self.ev.values[zero["at"]] if isinstance(zero, dict) else zero
        return k.bind(whole if isinstance(held, int) and not held else whole + splat(held, 4))

    def _narrowed(self, parts: list[Any]) -> Any:
        """The bytes of channels 0, 4, ..; 2, 6, ..; 1, 5, ..; 3, 7, .. in order, clipped."""
        from ...ops.selection import step_bounds
        from ..integers import _within
        from ..tir import as_dtype, reinterpreted

        k, attrs = self.k, self.config["program"]["rescale"]
        to = attrs["to"]
        halves = []
        for a, b in (parts[:2], parts[2:]):
            low = k.instruction(self.rows["half.even"], into=reinterpreted(a, as_dtype("int16", 8)), a=a)
            halves.append(k.bind(k.instruction(self.rows["half.odd"], into=low, a=b)))
        into = reinterpreted(halves[0], as_dtype("int8", STEP))
        low = k.instruction(self.rows["byte.even"], into=into, a=halves[0])
        value = k.bind(reinterpreted(k.instruction(self.rows["byte.odd"], into=low, a=halves[1]), as_dtype(to, STEP)))
        known = [self.ev.values[v["at"]] if isinstance(v, dict) else v for v in (attrs["low"], attrs["high"])]
        least, most = step_bounds(None, None, to)
        return _within(k, value, least if known[0] is None else known[0], most if known[1] is None else known[1])

    def _store(self, value: Any, n: Any, y: Any, x: Any, channel: Any, valid: int) -> None:
        from ._contract import part

        value = self.k.bind(value)
        axes = self.config["axes"]
        here: list[Any] = [(0, 0)] * axes["rank"]
        here[0] = (n, 0)
        for name, at in (("line", y), ("point", x)):
            if axes[name] is not None:
                here[axes[name]] = (at, 0)
        done = 0
        while done < valid:
            lanes = next(size for size in (STEP, 8, 4, 1) if size <= valid - done)
            here[1] = (channel + done, 1 if lanes > 1 else 0)
            self.ev.begin()
            self.part = part(value, done, lanes)
            self.ev.store_all(self.outputs, here, lanes)
            done += lanes


class Ring(Lines):
    """The lines that a line of results reads; those that the one before had read, too, stay where they are."""

    def emit(self, y: Any) -> list[Any]:
        """Copies what is new; returns where each line lies."""
        from tvm import tirx

        from ..tir import constant, select

        k, line = self.k, self.data["line"]
        taps, stride = line["taps"], line["stride"]
        if line["dilation"] != 1 or stride >= taps:
            super().emit(y)
            return [t * self.data["bytes"] for t in range(taps)]
        first = (
            0 if isinstance(y, int) else k.bind(select(y > 0, constant(taps - stride, "int32"), constant(0, "int32")))
        )
        with k.loop(taps - first) as i:
            number = k.bind(y * stride + (i + first), "number")
            self._line(number - line["pad"], tirx.truncmod(number, taps) * self.data["bytes"])
        return [k.bind(tirx.truncmod(y * stride + t, taps) * self.data["bytes"], "line") for t in range(taps)]
