"""Writes the kernels of ``helium_dot``: tiles of points times four columns, each of which has its sums in a register.

A step multiplies 16 bytes of a point with 16 of each column and adds them to one number (row ``dot16``); four columns'
sums then make a vector for the epilogue. Lines with a border, and runs that are shorter than a step, are copied to
scratch first (``copy``); short runs are then laid side by side, one line of bytes for each point (``gather``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STEP = 16  # bytes
GROUP = 4  # columns
FEW = 6  # steps of a round whose weights loads reach well enough from one address
REACH = 4  # steps from one address in longer rounds


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, packed weights, starts, numbers, the epilogue's inputs, outputs, scratch if any."""
    k.noalias, k.counters = False, config["tile"] == 1
    Dot(k, config).run()


class Dot:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction
        from ..ahead import Ahead

        self.k, self.config = k, config
        program, a = config["program"], config["a"]
        self.a = k.arg("a", a["dtype"], a["span"])
        self.weights = k.arg("w", "int32", config["spans"][0])
        self.start = k.arg("start", "int32", config["spans"][1])
        self.numbers = k.arg("numbers", "int32", config["spans"][2])
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.scratch = k.arg("scratch", "int8", config["scratch"]) if config["scratch"] else None
        self.source = self.a if self.scratch is None else self.scratch
        self.row = instruction(config["row"])
        self.part: Any = None
        self.ev = Ahead(k, program, reads, lambda number, coords: self.part, self.numbers, config["spans"][2])
        self.one, self.jump = (config[n] and self.ev.values[config[n]["at"]] for n in ("one", "jump"))

    def run(self) -> None:
        self._outer([], 0)

    def _outer(self, chosen: list[Any], at: Any) -> None:
        outer = self.config["outer"]
        if len(chosen) < len(outer):
            own = outer[len(chosen)]
            with self.k.loop(own["extent"]) as i:
                return self._outer([*chosen, i], at + i * own["a"])
        with self.k.loop(self.config["line"]["extent"]) as y:
            if self.scratch is None:
                self._line(chosen, y, at + y * self.config["line"]["a"])
            else:
                self._line(chosen, y, Lines(self, at).emit(y))

    def _line(self, outer: list[Any], y: Any, base: Any) -> None:
        """The points of a line in blocks, each for all columns."""
        from ..tir import minimum

        k, point, tile = self.k, self.config["point"], self.config["tile"]
        extent, block = point["extent"], point["block"]
        blocks = -(-extent // block)
        with k.loop(blocks) as b:
            first = b * block
            tiles = extent // tile if blocks == 1 else minimum(block // tile, extent // tile - b * (block // tile))
            self._columns(outer, y, base, (first, tiles, b, blocks))

    def _columns(self, outer: list[Any], y: Any, base: Any, span: Any) -> None:
        """All columns of a block."""
        whole, rest = divmod(self.config["columns"]["count"], GROUP)
        with self.k.loop(whole) as g:
            self._group(outer, y, base, span, g, GROUP)
        if rest:
            self._group(outer, y, base, span, whole, rest)

    def _begin(self, g: Any, valid: int) -> Any:
        """What a group's sums begin with; what else it needs is read, too."""
        config, axes = self.config, self.config["axes"]
        start = self.k.bind(self.k.load(self.start, g * GROUP, GROUP), "start")
        self.ev.hold(config["reads"] if valid == GROUP else [], axes["column"], axes["rank"], g * GROUP, GROUP)
        return start

    def _group(self, outer: list[Any], y: Any, base: Any, span: Any, g: Any, valid: int) -> None:
        """The tiles of a block for one group of columns, and what is left of the last block."""
        from tvm import tirx

        k, config = self.k, self.config
        first, tiles, b, blocks = span
        tile, extent, point = config["tile"], config["point"]["extent"], config["point"]
        start = self._begin(g, valid)
        weights = g * (config["depth"] * GROUP // 4)

        def at(x: Any, count: int) -> None:
            sums = self._sums(base + x * point["a"], weights, count)
            for p, columns in enumerate(sums):
                self._store(outer, y, x + p, g * GROUP, columns, start, valid)

        if extent // tile:
            with k.loop(tiles) as i:
                at(first + i * tile, tile)
        if extent % tile:
            with k.when(tirx.EQ(b, blocks - 1) if blocks > 1 else True):
                at(extent // tile * tile, extent % tile)

    # -- one tile --------------------------------------------------------------------------------------------------

    def _sums(self, a: Any, weights: Any, count: int) -> list[list[Any]]:
        """The sums ``[point][column]`` of ``count`` points whose bytes begin at ``a``."""
        from ..tir import constant

        acc = [[self.k.register("int32", 1, "acc") for _ in range(GROUP)] for _ in range(count)]
        for r in (r for row in acc for r in row):
            r.set(constant(0, "int32"))
        self._taps(self.config["taps"], acc, a, weights)
        return acc

    def _taps(self, taps: list[list[int]], acc: Any, a: Any, weights: Any) -> None:
        run = self.config["run"]
        if taps:
            (extent, step), *rest = taps
            under = run["steps"] * STEP
            for inner, _ in rest:
                under *= inner
            with self._rounds(extent, a, step, weights, under) as (at, to):
                return self._taps(rest, acc, at, to)
        full, each, late = run["bytes"] // STEP, run["each"], run["late"]
        rounds, reach = (run["steps"] - late) // each, REACH if each > FEW else each
        with self._rounds(rounds, a, each * STEP, weights, each * STEP) as (at, to):
            for u in range(each if rounds else 0):
                if u and u % reach == 0:
                    to = self.k.bind(to + self.jump, "there")
                self._step(acc, at + u * STEP, to + u % reach * STEP)
        if late:
            self._step(acc, a + (run["bytes"] - STEP), weights + full * STEP)

    @contextmanager
    def _rounds(self, count: int, a: Any, step: int, weights: Any, under: int) -> Iterator[tuple[Any, Any]]:
        """A loop over places in A and in the weights that LLVM neither unrolls, which would take more addresses than
        loads reach, nor counts in LR, which holds a sum: how far it goes is a number that the kernel reads."""
        from tvm import tirx

        from ..tir import constant

        k = self.k
        if count <= 1:
            yield a, weights
            return
        if self.config["tile"] == 1:  # there is room for the count
            with k.loop(count) as i:
                yield a + i * step, weights + i * under
            return
        at, here, there = (k.register("int32", 1, n) for n in ("at", "here", "there"))
        for r, value in ((at, constant(0, "int32")), (here, a), (there, weights)):
            r.set(value if not isinstance(value, int) else constant(value, "int32"))
        with k.block() as body:
            yield here.get(), there.get()
            at.set(at.get() + self.one)
            here.set(here.get() + step)
            there.set(there.get() + under)
        k.emit(tirx.While(at.get() < count, body()))

    def _step(self, acc: Any, a: Any, weights: Any) -> None:
        """One step; ``weights`` counts words."""
        from ..tir import reinterpreted

        k, point = self.k, self.config["point"]
        xs = [k.bind(k.load(self.source, a + p * point["a"], STEP), "x") for p in range(len(acc))]
        for c in range(GROUP):
            w = k.bind(reinterpreted(k.load(self.weights, weights + c * (STEP // 4), STEP // 4), "int8x16"), "w")
            for x, row in zip(xs, acc, strict=True):
                row[c].set(k.instruction(self.row, acc=row[c].get(), a=x, b=w))

    def _store(self, outer: list[Any], y: Any, x: Any, column: Any, acc: Any, start: Any, valid: int) -> None:
        from ..tir import joined
        from ._contract import part

        config, axes = self.config, self.config["axes"]
        sums = self.k.bind(joined([r.get() for r in acc]) + start, "sums")
        here: list[Any] = [(0, 0)] * axes["rank"]
        for i, o in zip(outer, config["outer"], strict=True):
            if o["axis"] is not None:
                here[o["axis"]] = (i, 0)
        for name, value in (("line", y), ("point", x)):
            if axes[name] is not None:
                here[axes[name]] = (value, 0)
        for first, lanes in [(0, GROUP)] if valid == GROUP else [(c, 1) for c in range(valid)]:
            here[axes["column"]] = (column + first, 1 if lanes > 1 else 0)
            self.ev.begin()
            self.part = sums if lanes == GROUP else part(sums, first, 1)
            self.ev.store_all(self.outputs, here, lanes)


class Lines:
    """The lines of A that a line of results reads, with their border, in scratch; ``at`` is where A's first lies."""

    def __init__(self, of: Any, at: Any) -> None:
        self.of, self.k, self.at, self.data = of, of.k, at, of.config["copy"]

    def emit(self, y: Any) -> Any:
        """Copies them; returns where the first point's bytes begin."""
        k, line = self.k, self.data["line"]
        with k.loop(line["taps"]) as t:
            to, row = t * self.data["bytes"], k.bind(y * line["stride"] + (t * line["dilation"] - line["pad"]), "row")
            self._line(row, to)
        return self._gather() if self.data["gather"] else 0

    def _line(self, row: Any, to: Any) -> None:
        """A line of A, or one of its border, at ``to`` in scratch."""
        from tvm import tirx

        line = self.data["line"]
        if not line["border"]:
            return self._row(row, to)
        inside = tirx.And(row >= 0, row < line["size"])
        with self.k.when(inside):
            self._row(row, to)
        with self.k.when(tirx.Not(inside)):
            self._fill(to, self.data["bytes"])

    def _row(self, row: Any, to: Any) -> None:
        k, line, point, width = self.k, self.data["line"], self.data["point"], self.data["channels"]
        left, count = point["pad"], self.data["inside"]
        self._fill(to, left * width)
        at = self.at + row * line["a"]
        if point["a"] == width:
            self._copy(at, to + left * width, count * width)
        else:
            with k.loop(count) as x:
                self._copy(at + x * point["a"], to + (left + x) * width, width)
        self._fill(to + (left + count) * width, (point["count"] - left - count) * width)

    def _fill(self, to: Any, nbytes: int) -> None:
        """Zero points."""
        from ..functions import cast
        from ..tir import splat

        zero = cast(self.of.ev.values[self.data["zero"]["at"]], "int8")
        self._pieces(nbytes, lambda at, size: self.k.store(self.of.scratch, to + at, splat(zero, size)))

    def _copy(self, at: Any, to: Any, nbytes: int) -> None:
        self._pieces(nbytes, lambda first, size: self._piece(at + first, to + first, size))

    def _pieces(self, nbytes: int, each: Callable[[Any, int], None]) -> None:
        """Whole vectors, the last of which may begin within the one before; of fewer bytes narrower ones."""
        if nbytes >= STEP:
            with self.k.loop(nbytes // STEP) as i:
                each(i * STEP, STEP)
            if nbytes % STEP:
                each(nbytes - STEP, STEP)
            return
        done = 0
        while done < nbytes:
            size = next(n for n in (8, 4, 1) if n <= nbytes - done)
            each(done, size)
            done += size

    def _piece(self, at: Any, to: Any, size: int) -> None:
        from ..tir import as_dtype, like, reinterpreted

        value = self.k.load(self.of.a, at, size)
        if self.data["flip"]:
            value = reinterpreted(value ^ like(128, value), as_dtype("int8", size))
        self.k.store(self.of.scratch, to, value)

    def _gather(self) -> Any:
        """Each point's runs side by side. Whole vectors are moved, so that each run is written over the end of the
        one before; what is behind the last has weights of zero."""
        k, data, scratch = self.k, self.data, self.of.scratch
        base = data["gather"]["base"]
        with k.loop(self.of.config["point"]["extent"]) as x:
            to = base + x * self.of.config["point"]["a"]
            at = x * (data["point"]["stride"] * data["channels"])
            self._runs(data["gather"]["taps"], at, to)
        assert scratch is not None
        return base

    def _runs(self, taps: list[list[int]], at: Any, to: Any) -> None:
        k, run, scratch = self.k, self.data["gather"]["run"], self.of.scratch
        if taps:
            (extent, step), *rest = taps
            under = run
            for inner, _ in rest:
                under *= inner
            with k.loop(extent) as i:
                return self._runs(rest, at + i * step, to + i * under)
        for first in range(0, run, STEP):
            k.store(scratch, to + first, k.load(scratch, at + first, STEP))
