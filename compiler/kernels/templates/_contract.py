"""Writes the kernels of contractions: register tiles, blocks, borders and epilogue. See ``_tile`` for the terms.

The configuration is plain data: ``outer`` loops (batch, channel groups), ``line`` and ``point`` (the two axes of
output points, each with its kernel taps), ``inner`` (the reduction over channels), ``columns``, and the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ._tile import pieces


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, B, the packed bias if there is one, the epilogue's inputs, the outputs."""
    Contraction(k, config, Reduction).run()


class Arguments:
    """The pointer arguments of a contraction's kernel."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        program = config["program"]
        self.a = k.arg("a", config["a"]["dtype"], config["a"]["span"])
        self.b = k.arg("b", config["b"]["dtype"], config["b"]["span"])
        self.bias = k.arg("bias", config["dtype"], config["bias"]) if config["bias"] else None
        self.reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            self.reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]


class Contraction:
    """One kernel. ``reduction`` writes the loops that fill a tile's accumulators. ``args`` are those of another
    contraction in the same kernel."""

    def __init__(
        self, k: Any, config: dict[str, Any], reduction: type[Reduction], args: Arguments | None = None
    ) -> None:
        from ..evaluate import Evaluator

        self.k, self.config, self.reduction = k, config, reduction
        k.noalias = k.noalias and not config.get("overlaps", False)
        self.outer, self.line, self.point = config["outer"], config["line"], config["point"]
        self.inner, self.columns = config["inner"], config["columns"]
        self.dtype = config["dtype"]
        self.args = args or Arguments(k, config)
        self.a, self.b, self.bias, self.outputs = self.args.a, self.args.b, self.args.bias, self.args.outputs
        self.ev = Evaluator(k, config["program"], self.args.reads, lambda number, coords: self.part)
        self.part: Any = None  # the accumulator's lanes that are being stored

    # -- blocks and tasks ------------------------------------------------------------------------------------------

    def run(self) -> None:
        split = self.config["split"]  # how many of the dimensions make tasks
        if split:
            with self.k.parallel(math.prod(self._dims()[:split])) as task:
                self.share(task, split)
        else:
            self.share(0, 0)

    def share(self, task: Any, split: int) -> None:
        """The work of one task, the first ``split`` dimensions being its number."""
        dims = self._dims()
        chosen: list[Any] = []
        rest = task
        for i in range(split):
            under = math.prod(dims[i + 1 : split])
            chosen.append(0 if dims[i] == 1 else rest // under if under > 1 else rest)
            rest = rest % under if under > 1 else 0
        self._nest(chosen, dims)

    def _dims(self) -> list[int]:
        return [o["extent"] for o in self.outer] + list(self.config["blocks"])

    def _nest(self, chosen: list[Any], dims: list[int]) -> None:
        """Outer loops, line blocks, point blocks; then the column groups, each with its lines."""
        k, columns = self.k, self.columns
        if len(chosen) < len(dims) - 1:
            with k.loop(dims[len(chosen)]) as i:
                self._nest([*chosen, i], dims)
        elif len(chosen) < len(dims):
            if columns["full"]:
                with k.loop(columns["full"]) as g:
                    self._lines(chosen, self._full(g))
            for rest in columns["rests"]:
                self._lines(chosen, tuple(rest))
        else:
            g = chosen.pop()
            if columns["full"]:
                with k.when(g < columns["full"] if columns["rests"] else True):
                    self._lines(chosen, self._full(g))
            for j, rest in enumerate(columns["rests"]):
                with k.when(equal(g, columns["full"] + j) if dims[-1] > 1 else True):
                    self._lines(chosen, tuple(rest))

    def _full(self, g: Any) -> tuple[Any, Any, list[int], list[int]]:
        lanes, nv = self.columns["lanes"], self.columns["nv"]
        at = g * (nv * lanes)
        return at, at, [lanes] * nv, [lanes] * nv

    def _lines(self, chosen: Sequence[Any], group: tuple[Any, Any, list[int], list[int]]) -> None:
        """All lines of one block for one group of columns."""
        k, line = self.k, self.line
        *outer, line_block, point_block = chosen
        extent, block = line["extent"], line["block"]
        first = line_block * block
        count: Any = min(block, extent)
        if extent % block and extent > block:
            count = least(block, extent - first)
        with k.loop(count) as i:
            self._points(outer, first + i, point_block, group)

    def _points(self, outer: Sequence[Any], y: Any, block: Any, group: Any) -> None:
        """One line: its tiles of points. The segment marked ``inner`` is cut into blocks; those before it belong to
        the first block, those behind it to the last."""
        k = self.k
        segments, blocks = self.point["segments"], self.config["blocks"][1]
        inner = next((i for i, s in enumerate(segments) if s["inner"]), len(segments))
        for i, s in enumerate(segments):
            if i == inner and blocks > 1:
                size = self.point["block"]
                count = size if s["repeat"] % size == 0 else least(size, s["repeat"] - block * size)
                with k.loop(count) as t:
                    self._tile(outer, y, s["start"] + (block * size + t) * s["count"], s, group)
                continue
            mine = True if blocks == 1 else equal(block, 0 if i < inner else blocks - 1)
            with k.when(mine), k.loop(s["repeat"]) as t:
                self._tile(outer, y, s["start"] + t * s["count"], s, group)

    # -- one register tile -----------------------------------------------------------------------------------------

    def _tile(self, outer: Sequence[Any], y: Any, x: Any, segment: dict[str, Any], group: Any) -> None:
        k, config = self.k, self.config
        column, packed, widths, valid = group
        a = sum((i * o["a"] for i, o in zip(outer, self.outer, strict=True)), start=config["a"]["base"])
        a = a + y * self.line["a"] + x * self.point["a"]
        b, step = self.weights(outer, group)
        count = segment["count"]
        acc = [[k.register(self.dtype, w, "acc") for w in widths] for _ in range(count)]
        bias = sum((i * o["bias"] for i, o in zip(outer, self.outer, strict=True)), start=0) + packed
        for row in acc:
            for v, r in enumerate(row):
                r.set(self._start(bias, widths, v))
        at = {"z": outer[-1] if config["slab"] else 0, "y": y, "x": x}
        self.reduction(self, acc, widths, step, segment, at).emit(a + column * config["a"]["column"], b)
        self._finish(outer, y, x, column, valid, acc)

    def weights(self, outer: Sequence[Any], group: Any) -> tuple[Any, Any]:
        """Where a group's columns of B begin, and how far one row lies from the next."""
        column, packed, widths, _ = group
        own = self.config["b"]
        b = sum((i * o["b"] for i, o in zip(outer, self.outer, strict=True)), start=0)
        packs = own["step"] == 0
        b = b + (packed * self.config["depth"] if packs else column * own["column"])
        step = sum(widths) if packs else own["step"]
        return b + own.get("first", 0) * step, step

    def _start(self, bias: Any, widths: list[int], v: int) -> Any:
        from ..tir import constant

        if self.bias is None:
            return constant(0, self.dtype, widths[v])
        return self.k.load(self.bias, bias + sum(widths[:v]), widths[v])

    def _finish(self, outer: Sequence[Any], y: Any, x: Any, column: Any, valid: list[int], acc: Any) -> None:
        """The epilogue and the stores."""
        from ..functions import cast

        axes = self.config["axes"]
        coords: list[Any] = [(0, 0)] * axes["rank"]
        for i, o in zip(outer, self.outer, strict=True):
            if o["axis"] is not None:
                coords[o["axis"]] = (placed(o, i), 0)
            column = column + i * o["column"]
        if axes["line"] is not None:
            coords[axes["line"]] = (placed(self.line, y), 0)
        self.ev.begin()
        for v in range(len(valid)):
            for at, lanes in pieces(valid[v]):
                first = column + sum(valid[:v]) + at
                for p, row in enumerate(acc):
                    here = list(coords)
                    if axes["point"] is not None:
                        here[axes["point"]] = (placed(self.point, x + p), 0)
                    if axes["column"] is not None:
                        here[axes["column"]] = (first, 1 if lanes > 1 else 0)
                    value = part(row[v].get(), at, lanes)
                    if self.config["runtime_bias"] is not None:
                        value = value + cast(
                            self.ev.read(self.config["runtime_bias"], [here[axes["column"]]], lanes), self.dtype
                        )
                    self.part = cast(value, self.config["type"])
                    self.ev.store_all(self.outputs, here, lanes)


class Reduction:
    """The loops over taps and channels of one tile. Taps that fall outside are left out: along the line's axis by the
    loop's range, along the points' axis by the rows that a tap counts for (known here), or by the range too."""

    def __init__(
        self, of: Contraction, acc: Any, widths: list[int], step: int, segment: dict[str, Any], at: dict[str, Any]
    ) -> None:
        self.of, self.k, self.acc, self.step = of, of.k, acc, step
        self.segment, self.at = segment, at
        self.b = [of.k.register(of.dtype, w, "b") for w in widths]
        self.offsets = [sum(widths[:v]) for v in range(len(widths))]
        config = of.config
        self.axes = {"z": config["slab"], "y": of.line, "x": of.point, "c": of.inner}
        self.order = config["order"]

    def emit(self, a: Any, b: Any) -> None:
        rows = range(len(self.acc))
        valid = self.segment["valid"]
        if any(self.axes[n]["taps"] == 0 for n in self.order):
            return
        if isinstance(valid, list):
            rest = [n for n in self.order if n != "x"]
            for tap, (low, high) in enumerate(valid):
                if low < high:
                    at = self._at("x", a, b, tap)
                    self._level(rest, *at, range(low, high))
        else:
            self._level(list(self.order), a, b, rows)

    def _at(self, name: str, a: Any, b: Any, tap: Any) -> tuple[Any, Any]:
        axis = self.axes[name]
        return a + tap * axis["tap_a"], b + tap * (axis["tap_b"] * self.step)

    def _level(self, names: list[str], a: Any, b: Any, rows: range) -> None:
        name, *rest = names
        first, count = self._range(name)
        if rest:
            with self.k.loop(count) as i:
                self._level(rest, *self._at(name, a, b, first + i), rows)
            return
        unroll = self._unroll(count, len(rows)) if isinstance(count, int) else 1
        whole = count // unroll if isinstance(count, int) else count
        if unroll == 1 or whole:
            with self.k.loop(whole) as i:
                for u in range(unroll):
                    self._step(*self._at(name, a, b, first + i * unroll + u), rows)
        if isinstance(count, int):
            for u in range(whole * unroll, count):
                self._step(*self._at(name, a, b, first + u), rows)

    def _unroll(self, count: int, rows: int) -> int:
        """Steps written out. With many of them, or few registers, LLVM hoists loads and spills accumulators."""
        limit = 2 if self.k.machine["registers"] < 32 and self.k.machine["in_order"] else 4
        if count <= limit:
            return max(1, count)
        if count < 8 and rows * len(self.b) * count <= 40 and limit == 4:
            return count
        return next(u for u in range(limit, 0, -1) if count >= 8 or count % u == 0)

    def _range(self, name: str) -> tuple[Any, Any]:
        """First tap and number of taps inside the input."""
        axis = self.axes[name]
        taps = axis["taps"]
        if not axis["border"] or (name == "x" and self.segment["valid"] != "dynamic"):
            return 0, taps
        at = self.at[name]
        start, dilation = at * axis["stride"] - axis["pad"], axis["dilation"]
        low = most(0, (axis["pad"] - at * axis["stride"] + (dilation - 1)) // dilation)
        high = least(taps, (axis["size"] - 1 - start) // dilation + 1)
        low = self.k.bind(low, "first")
        return low, most(0, high - low)

    def _step(self, a: Any, b: Any, rows: range) -> None:
        from ..integers import shifted
        from ..tir import splat

        k, of = self.k, self.of
        for r, offset in zip(self.b, self.offsets, strict=True):
            at = b + (offset if of.config["b"]["step"] == 0 else offset * of.config["b"]["column"])
            r.set(shifted(k.load(of.b, at, r.lanes), of.config["b"].get("zero", 0), of.dtype))
        for p in rows:
            value = shifted(k.load(of.a, a + p * of.point["a"]), of.config["a"].get("zero", 0), of.dtype)
            for r, acc in zip(self.b, self.acc[p], strict=True):
                acc.add_product(splat(value, r.lanes), r.get())


def placed(axis: dict[str, Any], at: Any) -> Any:
    """The output's coordinate of a point: a contraction may fill every second one only, or so."""
    step, first = axis.get("apart", 1), axis.get("first", 0)
    return at * step + first if first else at * step if step > 1 else at


def equal(a: Any, b: int) -> Any:
    from tvm import tirx

    return a == b if isinstance(a, int) else tirx.EQ(a, b)


def least(a: Any, b: Any) -> Any:
    from ..tir import minimum

    return min(a, b) if isinstance(a, int) and isinstance(b, int) else minimum(a, b)


def most(a: Any, b: Any) -> Any:
    from ..tir import maximum

    return max(a, b) if isinstance(a, int) and isinstance(b, int) else maximum(a, b)


def part(vector: Any, first: int, lanes: int) -> Any:
    """``lanes`` lanes of a vector from ``first`` on."""
    from tvm import tirx

    from ..tir import lanes_of

    if lanes == lanes_of(vector):
        return vector
    return tirx.Shuffle([vector], [tirx.IntImm("int32", first + i) for i in range(lanes)])


def emit_pack(k: Any, config: dict[str, Any]) -> None:
    """Packs columns at run time. Arguments: the source, the packed columns."""
    source = k.arg("source", config["type"], config["span"])
    columns, outer = config["columns"], config["outer"]
    count = math.prod(o[0] for o in outer)
    packed = k.arg("packed", config["dtype"], count * config["depth"] * config["packed"])
    groups = columns["full"] + len(columns["rests"])
    lanes, nv = columns["lanes"], columns["nv"]

    def one(task: Any) -> None:
        rest, a = task // groups if groups > 1 else task, 0
        base = rest * (config["depth"] * config["packed"])
        for extent, stride in reversed(outer):
            a = a + (rest % extent if extent > 1 else 0) * stride
            rest = rest // extent
        g = task % groups if groups > 1 else 0
        if columns["full"]:
            at = g * (nv * lanes)
            with k.when(g < columns["full"] if columns["rests"] else True):
                _pack_group(k, config, source, packed, a, base, (at, at, [lanes] * nv, [lanes] * nv))
        for j, group in enumerate(columns["rests"]):
            with k.when(equal(g, columns["full"] + j)):
                _pack_group(k, config, source, packed, a, base, group)

    if count * groups > 1:
        with k.parallel(count * groups) as task:
            one(task)
    else:
        one(0)


def _pack_group(k: Any, config: dict[str, Any], source: Any, packed: Any, a: Any, base: Any, group: Any) -> None:
    from ..functions import cast
    from ..tir import constant

    column, first, widths, valid = group
    width = sum(widths)
    a, base = a + column * config["column"], base + first * config["depth"]

    def walk(axes: list[list[int]], a: Any, row: Any, above: int) -> None:
        if axes:
            (extent, stride), *rest = axes
            with k.loop(extent) as i:
                walk(rest, a + i * stride, row * extent + i, above)
            return
        at, row = 0, row + above
        for w, v in zip(widths, valid, strict=True):
            for start, lanes in pieces(v):
                value = k.load(source, a + (at + start) * config["column"], lanes, config["column"])
                k.store(packed, base + row * width + at + start, cast(value, config["dtype"]))
            for pad in range(v, w):
                k.store(packed, base + row * width + at + pad, constant(0, config["dtype"]))
            at += w

    first = 0
    for start, axes in config["blocks"]:
        walk(axes, a + start, 0, first)
        first += math.prod(extent for extent, _ in axes)
