"""Writes the kernels of integer contractions: register tiles of an instruction that folds neighbours.

Each step of the reduction takes ``fold`` bytes that lie side by side, of one point of A (broadcast to all lanes) and of
each column of B (packed ``[group of columns][taps][step][column][fold]``). Every accumulator begins with its column's
``start``, which holds the bias and what A's zero point adds to all products, so that no element is shifted. What is
padded is copied first: see ``_dot_border``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import _dot_border
from ._contract import equal, least, most, part
from ._tile import pieces, vector_spans

FLIP = {2: -0x7F80, 4: -0x7F7F7F80}  # 0x80 in each byte: exchanges int8 and uint8 128 apart


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, packed B, starts, numbers, columns' offsets if any, the epilogue's inputs, outputs, scratch."""
    Dot(k, config).run()


class Dot:
    """One kernel. Its dimensions are the ``outer`` ones, blocks of lines (of points, where there is one line) and
    chunks of columns; the first ``split`` of them make the tasks."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction
        from ..evaluate import Evaluator

        self.k, self.config = k, config
        self.outer, self.columns, self.fold = config["outer"], config["columns"], config["fold"]
        program, a = config["program"], config["a"]
        self.a = k.arg("a", a["dtype"], a["span"])
        self.b = k.arg("b", "int8", config["weights"])
        self.start = k.arg("start", "int32", config["starts"])
        self.numbers = k.arg("numbers", "int32", config["numbers"])
        self.offsets = k.arg("offsets", "int32", config["starts"]) if config["offset"] else None
        self.lists = {name: k.arg(name, dtype, size) for name, dtype, size in config.get("lists", ())}
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.border = config["border"]
        self.source, self.flip = self.a, a["flip"]
        if self.border:
            self.source, self.flip = k.arg("scratch", a["as"], self.border["bytes"]), False
        self.rows = {int(lanes): instruction(name) for lanes, name in config["instructions"].items()}
        self.ev = Evaluator(k, program, reads, lambda number, coords: self.part, self.numbers)
        self.part: Any = None  # the accumulator's lanes that are being stored
        self.dims = [o["extent"] for o in self.outer] + [config["blocks"], config["chunks"]]

    # -- blocks and tasks ------------------------------------------------------------------------------------------

    def run(self) -> None:
        split = self.config["split"]
        if not split:
            return self._nest([])
        with self.k.parallel(math.prod(self.dims[:split])) as task:
            chosen, rest = [], task
            for i in range(split):
                under = math.prod(self.dims[i + 1 : split])
                chosen.append(0 if self.dims[i] == 1 else rest // under if under > 1 else rest)
                rest = rest % under if under > 1 else 0
            self._nest(chosen)

    def _nest(self, chosen: list[Any]) -> None:
        if len(chosen) < len(self.dims) - 1:
            with self.k.loop(self.dims[len(chosen)]) as i:
                return self._nest([*chosen, i])
        if self.border:
            _dot_border.emit(self.k, self, chosen[: len(self.dims) - 2], chosen[len(self.dims) - 2])
        if len(chosen) == len(self.dims):
            return self._chunk(chosen[:-1], chosen[-1])
        with self.k.loop(self.dims[-1]) as chunk:
            self._chunk(chosen, chunk)

    def _chunk(self, chosen: Sequence[Any], chunk: Any) -> None:
        """The column groups of one chunk; those that are not full belong to the last one."""
        k, columns, size = self.k, self.columns, self.config["chunk"]
        chunks, full = self.dims[-1], self.columns["full"]
        if full:
            first = chunk * size
            count = size if chunks * size <= full else full if chunks == 1 else most(0, least(size, full - first))
            with k.loop(count) as g:
                lanes, nv = columns["lanes"], columns["nv"]
                at = (first + g) * (nv * lanes)
                self._lines(chosen, (at, at, [lanes] * nv, [lanes] * nv))
        with k.when(equal(chunk, chunks - 1) if chunks > 1 and columns["rests"] else True):
            for rest in columns["rests"]:
                self._lines(chosen, tuple(rest))

    def _lines(self, chosen: Sequence[Any], group: Any) -> None:
        """The points of a block: whole tiles along the blocked axis, then what is left of the last block."""
        config, (*outer, block) = self.config, chosen
        along, tile = ("line", 0) if config["line"]["extent"] > 1 else ("point", 1)
        extent, size = config[along]["extent"], config["block"]
        sizes = config["tile"]
        whole = extent // sizes[tile]
        first = block * size
        count = size if whole % size == 0 else least(size, whole - first) if config["blocks"] > 1 else whole
        with self.k.loop(count) as i:
            self._points(outer, block, (first + i) * sizes[tile], i * sizes[tile], sizes[tile], group)
        rest = extent % sizes[tile]
        if rest:
            with self.k.when(equal(block, config["blocks"] - 1) if config["blocks"] > 1 else True):
                at = whole * sizes[tile]
                own = at - block * (size * sizes[tile]) if config["blocks"] > 1 else at
                self._points(outer, block, at, own, rest, group)

    def _points(self, outer: Sequence[Any], block: Any, at: Any, own: Any, count: int, group: Any) -> None:
        """One line of tiles; ``own`` is the line's number in its block."""
        config = self.config
        if config["line"]["extent"] == 1:
            return self._tile(outer, (0, 0), at, 1, count, group)
        extent, width = config["point"]["extent"], config["tile"][1]
        with self.k.loop(extent // width) as i:
            self._tile(outer, (at, own), i * width, count, width, group)
        if extent % width:
            self._tile(outer, (at, own), extent // width * width, count, extent % width, group)

    # -- one register tile -----------------------------------------------------------------------------------------

    def _tile(self, outer: Sequence[Any], line: tuple[Any, Any], x: Any, high: int, wide: int, group: Any) -> None:
        k, config = self.k, self.config
        column, packed, widths, valid = group
        steps = [config[n]["scratch" if self.border else "a"] for n in ("line", "point")]
        a, b, starts = self._places(outer, line, x, packed)
        rows = [i * steps[0] + j * steps[1] for i in range(high) for j in range(wide)]
        acc = [[k.register("int32", w, "acc") for w in widths] for _ in rows]
        for row in acc:
            for (at, w), r in zip(vector_spans(widths), row, strict=True):
                r.set(k.load(self.start, starts + at, w))
        sums = [k.register("int32", widths[0], "sum") for _ in rows] if self.offsets is not None else []
        for r in sums:
            r.set(_constant(0, widths[0]))
        self.reduce(acc, sums, widths, rows, a, b)
        if sums:
            self._add_offsets(acc, sums, widths, starts)
        self._finish(outer, line[0], x, (high, wide), column, valid, acc)

    def reduce(self, acc: Any, sums: Any, widths: list[int], rows: list[int], a: Any, b: Any) -> None:
        """Adds all products to a tile's accumulators; ``a`` and ``b`` are where its A and B begin."""
        Reduction(self, acc, sums, widths, rows).emit(self.config["taps"], a, b)

    def _places(self, outer: Sequence[Any], line: tuple[Any, Any], x: Any, packed: Any) -> tuple[Any, Any, Any]:
        """Where a tile's A and B lie, and the starts of its columns."""
        steps = [self.config[n]["scratch" if self.border else "a"] for n in ("line", "point")]
        starts = sum((i * o["start"] for i, o in zip(outer, self.outer, strict=True)), start=packed)
        if self.border:
            a = line[1] * steps[0] + x * steps[1]
            a = a + sum((i * o["scratch"] for i, o in zip(outer, self.outer, strict=True)), start=0)
        else:
            a = sum((i * o["a"] for i, o in zip(outer, self.outer, strict=True)), start=self.config["a"]["base"])
            a = a + line[0] * steps[0] + x * steps[1]
        b = sum((i * o["b"] for i, o in zip(outer, self.outer, strict=True)), start=packed * self.config["depth"])
        return a, b, starts

    def _add_offsets(self, acc: Any, sums: Any, widths: list[int], starts: Any) -> None:
        """Columns whose weights are all larger than what is packed add the sum of A that many times."""
        for row, total in zip(acc, sums, strict=True):
            for (at, w), r in zip(vector_spans(widths), row, strict=True):
                offset = self.k.load(self.offsets, starts + at, w)
                r.set(r.get() + part(total.get(), 0, w) * offset)

    def _finish(
        self, outer: Sequence[Any], y: Any, x: Any, size: tuple[int, int], column: Any, valid: list[int], acc: Any
    ) -> None:
        """The epilogue and the stores."""
        config, axes = self.config, self.config["axes"]
        coords: list[Any] = [(0, 0)] * axes["rank"]
        for i, o in zip(outer, self.outer, strict=True):
            if o["axis"] is not None:
                coords[o["axis"]] = (i, 0)
            column = column + i * o["column"]
        self.ev.begin()
        for v in range(len(valid)):
            for at, lanes in pieces(valid[v]):
                first = column + sum(valid[:v]) + at
                for p, row in enumerate(acc):
                    here = list(coords)
                    if axes["line"] is not None:
                        here[axes["line"]] = (y + p // size[1], 0)
                    if axes["point"] is not None:
                        here[axes["point"]] = (x + p % size[1], 0)
                    if axes["column"] is not None:
                        here[axes["column"]] = (first, 1 if lanes > 1 else 0)
                    value = part(row[v].get(), at, lanes)
                    if config["runtime_bias"] is not None:
                        value = value + self.ev.read(config["runtime_bias"], [here[axes["column"]]], lanes)
                    self.part = value
                    self.ev.store_all(self.outputs, here, lanes)


class Reduction:
    """The loops over taps, and over the bytes of a run, of one tile. The last step of a run that ``fold`` does not
    divide begins earlier where nothing behind the run may be read; its weights of bytes seen before are zero."""

    def __init__(self, of: Dot, acc: Any, sums: Any, widths: list[int], rows: list[int]) -> None:
        self.of, self.k, self.acc, self.sums, self.widths, self.rows = of, of.k, acc, sums, widths, rows
        self.fold = of.fold
        self.b = [of.k.register("int8", w * self.fold, "b") for w in widths]
        self.width = sum(widths) * self.fold

    def emit(self, taps: list[list[int]], a: Any, b: Any) -> None:
        """``taps`` are extents and steps in A, outermost first."""
        run = self.of.config["run"]
        if taps:
            (extent, step), *rest = taps
            under = math.prod(t[0] for t in rest) * run["steps"] * self.width
            with self.k.loop(extent) as i:
                self.emit(rest, a + i * step, b + i * under)
            return
        full = run["bytes"] // self.fold
        unroll = self._unroll(full)
        with self._loop(full // unroll) as i:
            for u in range(unroll):
                self._step(a + (i * unroll + u) * self.fold, b + (i * unroll + u) * self.width, self.fold)
        for u in range(full // unroll * unroll, full):
            self._step(a + u * self.fold, b + u * self.width, self.fold)
        rest = run["bytes"] % self.fold
        if rest:
            back = self.fold - rest if run["overlap"] else 0
            self._step(a + (full * self.fold - back), b + full * self.width, rest, late=run["overlap"])

    def _loop(self, count: int) -> Any:
        """A loop that LLVM does not unroll where that makes a long line of steps, which its scheduler would mix until
        accumulators are spilled: how far each round goes is read from behind the starts, where a 1 stands."""
        if count <= 1 or len(self.rows) * len(self.b) * count <= 12:
            return self.k.loop(count)
        return self.k.strides(count, self.k.load(self.of.start, self.of.config["starts"] - 1))

    def _unroll(self, count: int) -> int:
        """Steps written out: enough that the loop costs nothing, few enough that LLVM does not hoist loads."""
        limit = 4 if len(self.rows) * len(self.b) <= 12 else 2
        return max(1, min(limit, count))

    def _step(self, a: Any, b: Any, used: int, late: bool = False) -> None:
        """One step; ``used`` of its bytes count (the last ones if ``late``), the others have weights of zero."""
        from ..tir import reinterpret

        k, fold = self.k, self.fold
        for (at, w), r in zip(vector_spans(self.widths), self.b, strict=True):
            r.set(k.load(self.of.b, b + at * fold, w * fold))
        ones = sum(1 << 8 * i for i in (range(fold - used, fold) if late else range(used)))
        for p, offset in enumerate(self.rows):
            x = k.bind(reinterpret(f"int{8 * fold}", k.load(self.of.source, a + offset, fold)), "x")
            spread = {w: k.bind(self._spread(x, w), "xs") for w in sorted(set(self.widths))}
            for w, r, acc in zip(self.widths, self.b, self.acc[p], strict=True):
                acc.set(k.instruction(self.of.rows[w], acc=acc.get(), a=spread[w], b=r.get()))
            if self.sums:
                w, total = self.widths[0], self.sums[p]
                row = self.of.rows[w]
                total.set(k.instruction(row, acc=total.get(), a=spread[w], b=_constant(ones, w, f"int{8 * fold}")))

    def _spread(self, x: Any, lanes: int) -> Any:
        from ..tir import splat

        return splat(x ^ _constant(FLIP[self.fold], 1, f"int{8 * self.fold}") if self.of.flip else x, lanes)


def _constant(value: int, lanes: int, dtype: str = "int32") -> Any:
    from ..tir import constant

    return constant(value, dtype, lanes)
