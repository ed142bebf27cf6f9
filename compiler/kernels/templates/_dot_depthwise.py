"""Writes the kernels of ``dot_depthwise``: the copy into padded lines, and the tiles over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._contract import equal, least
from ._dot_walks import Rolling, Tile
from ._numbers import number
from ._tile import pieces

_COPY = 64  # bytes copied at once


class Emitter:
    """One kernel: tasks are batch, group of channels and block of lines."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.config = k, config
        program, x = config["program"], config["x"]
        self.line, self.point = config["line"], config["point"]
        self.x = k.arg("x", x["dtype"], x["span"])
        self.weights = k.arg("w", "int8", config["spans"][0])
        self.start = k.arg("start", "int32", config["spans"][1])
        self.scale = k.arg("scale", "float32", config["spans"][2]) if config["scaled"] else None
        self.numbers = k.arg("numbers", "int32", config["spans"][-1])
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.lines = k.arg("lines", config["held"], config["scratch"]) if config["scratch"] else None
        self.ev = Evaluator(k, program, reads, lambda number, coords: self.part, self.numbers)
        self.rescale = self.ev.resolved({"attrs": program.get("rescale", {})})["attrs"]
        self.part: Any = None

    def run(self) -> None:
        config, k = self.config, self.k
        groups, blocks = config["groups"], config["blocks"]
        with (k.parallel if config["shared"] else k.loop)(config["tasks"]) as task:
            block = task % blocks if blocks > 1 else 0
            rest = task // blocks if blocks > 1 else task
            number = rest % len(groups) if len(groups) > 1 else 0
            batch = rest // len(groups) if len(groups) > 1 else rest
            same = [g for g in groups if g["lanes"] == g["valid"] == groups[0]["lanes"]]
            if same:
                with k.when(number < len(same) if len(same) < len(groups) else True):
                    shift = number * groups[0]["lanes"]
                    self._block(batch, block, {**groups[0], "first": shift, "packed": shift})
            for i, group in enumerate(groups[len(same) :], len(same)):
                with k.when(equal(number, i)):
                    self._block(batch, block, group)

    def _block(self, batch: Any, block: Any, group: dict[str, Any]) -> None:
        k, line, rows, size = self.k, self.line, self.config["rows"], self.config["block"]
        first = block * size
        count = size if line["extent"] % size == 0 else least(size, line["extent"] - first)
        if self.config["sets"] is None:
            self._copy(batch, first, count, group)
        whole = count // rows
        with k.loop(whole) as t:
            self._row(batch, first + t * rows, t * rows, rows, group)
        rest = line["extent"] % rows
        if rest:
            at = line["extent"] - rest
            with k.when(equal(block, self.config["blocks"] - 1)):
                self._row(batch, at, at - first, rest, group)

    def step(self, group: dict[str, Any]) -> int:
        """Bytes from a point to the next one in scratch."""
        return int(self.config["channels"] if self.config["flat"] else group["lanes"])

    # -- the lines that a block reads ------------------------------------------------------------------------------

    def _copy(self, batch: Any, first: Any, count: Any, group: dict[str, Any]) -> None:
        from tvm import tirx

        k, line, config = self.k, self.line, self.config
        needed = (count - 1) * line["stride"] + config["reach"]
        above = first * line["stride"] - line["pad"]
        last = (line["extent"] - 1) * line["stride"] + config["reach"] - line["pad"]
        with k.loop(needed) as i:
            at, to = above + i, i * config["row"]
            source = batch * config["x"]["batch"] + at * line["step"] + group["first"]
            border = line["pad"] > 0 or last > line["size"]
            with k.when(tirx.all(at >= 0, at < line["size"]) if border else True):
                self._line(source, to, group)
            if border:
                with k.when(tirx.any(at < 0, at >= line["size"])):
                    self._fill(to, config["points"] * self.step(group))

    def _line(self, source: Any, to: Any, group: dict[str, Any]) -> None:
        config, point = self.config, self.point
        if config["flat"] and point["stride"] > 1:
            self._spread_line(source, to)
            return
        step, pad = self.step(group), min(self.point["pad"], config["points"])
        inside = min(point["size"], config["points"] - pad)
        self._fill(to, pad * step)
        at = to + pad * step
        if config["flat"] or (group["valid"] == group["lanes"] and point["step"] == step):
            self._contiguous(inside * step, lambda i, n: self._move(source + i, at + i, n))
        else:
            with self.k.loop(inside) as p:
                for start, lanes in pieces(group["valid"]):
                    self._move(source + p * point["step"] + start, at + p * step + start, lanes)
        self._fill(at + inside * step, (config["points"] - pad - inside) * step)

    def _spread_line(self, source: Any, to: Any) -> None:
        """A line whose points go to as many planes as the outputs are apart."""
        point, channels, points = self.point, self.config["channels"], self.config["points"]
        stride, pad = point["stride"], point["pad"]
        self._fill(to, points * channels)
        for phase in range(stride):
            first = (phase - pad) % stride  # of the input's points
            count = len(range(first, min(point["size"], points - pad), stride))
            at = to + (phase * (points // stride) + (first + pad) // stride) * channels
            with self.k.loop(count) as i:
                self._move(source + (first + i * stride) * channels, at + i * channels, channels)

    def _fill(self, to: Any, count: int) -> None:
        self._contiguous(count, lambda i, n: self.k.store(self.lines, to + i, self.outside(n)))

    def outside(self, lanes: int) -> Any:
        """The bytes that count as zero."""
        from ..functions import cast
        from ..tir import splat

        return splat(cast(number(self.k, self.numbers, self.config["zero"]), self.config["held"]), lanes)

    def _contiguous(self, count: int, each: Callable[[Any, int], None]) -> None:
        whole = count // _COPY
        if whole:
            with self.k.loop(whole) as i:
                each(i * _COPY, _COPY)
        for at, lanes in pieces(count - whole * _COPY):
            each(whole * _COPY + at, lanes)

    def _move(self, source: Any, to: Any, lanes: int) -> None:
        from ..tir import as_dtype, like, reinterpreted

        value = self.k.load(self.x, source, lanes)
        if self.config["flip"]:
            value = value ^ like(-128 if self.config["x"]["dtype"] == "int8" else 128, value)
        self.k.store(self.lines, to, reinterpreted(value, as_dtype(self.config["held"], lanes)))

    # -- tiles -----------------------------------------------------------------------------------------------------

    def _row(self, batch: Any, y: Any, above: Any, rows: int, group: dict[str, Any]) -> None:
        """The tiles along ``rows`` lines of outputs, the first of which is number ``above`` of the block."""
        k, pair, extent = self.k, self.config["pair"], self.point["extent"]
        base = above * (self.line["stride"] * self.config["row"])
        move = self.point["stride"] * self.step(group)

        if self.config["sets"] is not None:
            self._rolling(batch, y, rows, group)
            return

        def tile(number: Any, at: Any, source: Any, outputs: int) -> None:
            Tile(self, group, base + source, rows, outputs).run(batch, y, at, number)

        if self.config["flat"]:
            total, lanes = extent * self.config["channels"], group["lanes"]
            with k.loop(total // lanes) as t:
                tile(t, t * lanes, t * lanes, 1)
            if total % lanes:
                tile(0, total - lanes, total - lanes, 1)
            return
        with k.loop(extent // pair) as t:
            tile(t, t * pair, t * (pair * move), pair)
        if extent % pair:
            at = extent - extent % pair
            tile(0, at, at * move, extent % pair)

    def _rolling(self, batch: Any, y: Any, rows: int, group: dict[str, Any]) -> None:
        """A walk along ``rows`` lines of outputs; where all that they read lies inside, without masks."""
        from tvm import tirx

        line, source = self.line, batch * self.config["x"]["batch"] + group["first"]
        top = y * line["stride"] - line["pad"]
        reach = (line["taps"] - 1 + rows - 1) * line["dilation"]
        if line["pad"] == 0 and (line["extent"] - 1) * line["stride"] + self.config["reach"] <= line["size"]:
            Rolling(self, group, source, rows, top, False).run(batch, y)
            return
        inside = tirx.all(top >= 0, top + reach < line["size"])
        with self.k.when(inside):
            Rolling(self, group, source, rows, top, False).run(batch, y)
        with self.k.when(tirx.Not(inside)):
            Rolling(self, group, source, rows, top, True).run(batch, y)
