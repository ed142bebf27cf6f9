"""Writes the kernels of ``conv_grad_weight``; see there for the terms."""

from __future__ import annotations

import math
from typing import Any

from ._contract import equal, least, most


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: x, g, scratch; where the end is done here too, what that reads and the outputs."""
    _Kernel(k, config).run()


class _Kernel:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.config = k, config
        self.x = k.arg("x", *config["x"][:2])
        self.g = k.arg("g", *config["g"][:2])
        self.sums = k.arg("sums", config["dtype"], config["scratch"])
        self.finish = Ending(k, config["finish"], self.sums) if config["finish"] else None
        self.parts, self.groups, self.column_blocks, self.channel_blocks = config["dims"]
        self.taps = math.prod(config["kernel"])
        self.channels = config["depth"] // self.channel_blocks  # of a task
        # a task's own scratch holds its columns and rows only, shared scratch all of them
        self.rows = (self.channels if self.finish else config["depth"]) * self.taps
        self.blocks = -(-config["images"] // config["block"]) * config["bands"]

    def run(self) -> None:
        k, dims = self.k, self.config["dims"]
        if math.prod(dims) == 1:
            self._task([0, 0, 0, 0])
            return
        with k.parallel(math.prod(dims)) as task:
            chosen: list[Any] = []
            for i, extent in enumerate(dims):
                under = math.prod(dims[i + 1 :])
                above = task // under if under > 1 else task
                chosen.append(0 if extent == 1 else k.bind(above % extent if i else above, "part"))
            self._task(chosen)

    def _task(self, chosen: list[Any]) -> None:
        part, group, block, channels = chosen
        columns = self.config["columns"]
        lanes, nv = columns["lanes"], columns["nv"]
        first = channels * self.channels
        if self.column_blocks > 1:
            if columns["full"]:
                with self.k.when(block < columns["full"] if columns["rests"] else True):
                    at = block * (nv * lanes)
                    self._share(part, group, [(None, (at, at, [lanes] * nv, [lanes] * nv))], first)
            for j, rest in enumerate(columns["rests"]):
                with self.k.when(equal(block, columns["full"] + j)):
                    self._share(part, group, [(None, tuple(rest))], first)
            return
        kinds: list[Any] = [(columns["full"], None)] if columns["full"] else []
        self._share(part, group, kinds + [(None, tuple(r)) for r in columns["rests"]], first)

    def _share(self, part: Any, group: Any, kinds: list[Any], first: Any) -> None:
        """A task: ``kinds`` are column groups, or the number of the full ones."""
        k, config = self.k, self.config
        images, batch, block = config["images"], config["batch"], config["block"]
        count: Any = images if batch % images == 0 else least(images, batch - part * images)
        blocks = count if block == 1 else (count + (block - 1)) // block
        self._over(kinds, lambda g: self._clear(part, group, g, first))
        with k.loop(blocks) as b:
            here: Any = block if images % block == 0 and batch % images == 0 else least(block, count - b * block)
            with k.loop(config["bands"]) as band:
                self._over(kinds, lambda g: self._tiles(part, group, g, first, (part * images + b * block, here, band)))
        if self.finish:
            for n, column_group in kinds:
                if n is not None:
                    lanes = config["columns"]["lanes"]
                    with k.loop(n * config["columns"]["nv"]) as v:
                        at = v * lanes
                        self._end(group, (at, at, [lanes], [lanes]), first)
                else:
                    self._end(group, column_group, first)

    def _over(self, kinds: list[Any], body: Any) -> None:
        columns = self.config["columns"]
        lanes, nv = columns["lanes"], columns["nv"]
        for n, column_group in kinds:
            if n is None:
                body(column_group)
                continue
            with self.k.loop(n) as i:
                at = i * (nv * lanes)
                body((at, at, [lanes] * nv, [lanes] * nv))

    def _base(self, part: Any, group: Any, packed: Any) -> Any:
        """Where the sums of a column group begin."""
        if self.finish:
            return 0 if self.column_blocks > 1 else packed * self.rows
        return ((part * self.groups + group) * self.config["packed"] + packed) * self.rows

    def _end(self, group: Any, column_group: Any, first: Any) -> None:
        assert self.finish is not None
        column, packed, widths, _ = column_group
        for v, width in enumerate(widths):
            skip = sum(widths[:v])
            at = self._base(0, group, packed) + skip * self.rows
            self.finish.vector(group, column + skip, width, at, first * self.taps, self.rows)

    def _clear(self, part: Any, group: Any, column_group: Any, first: Any) -> None:
        """A first block begins from zeros in registers; only where there are several blocks is scratch cleared."""
        from ..tir import constant

        if self._once():
            return
        _, packed, widths, _ = column_group
        base = self._base(part, group, packed)
        row = 0 if self.finish else first * self.taps
        with self.k.loop(self.channels * self.taps) as r:
            for v, width in enumerate(widths):
                at = base + sum(widths[:v]) * self.rows + (row + r) * width
                self.k.store(self.sums, at, constant(0, self.config["dtype"], width))

    def _once(self) -> bool:
        return bool(self.blocks == 1)

    # -- tiles -----------------------------------------------------------------------------------------------------

    def _tiles(self, part: Any, group: Any, column_group: Any, first: Any, images: Any) -> None:
        k, config = self.k, self.config
        lines, _, size, _ = config["tile"]
        base = self._base(part, group, column_group[1])
        whole, rest = divmod(self.channels, size)
        for start, channels, count in ((0, size, whole), (whole * size, rest, 1)):
            if not channels or not count:
                continue
            with k.loop(count) as i, k.loop(config["kernel"][0]) as z:
                channel = start + i * channels  # within the task
                row = (channel if self.finish else first + channel) * self.taps
                at = (group, column_group, first + channel, channels, base, row, images)
                if lines > 1:
                    self._line(at, z, list(range(lines)), config["lines"])
                else:
                    with k.loop(config["kernel"][1]) as y:
                        self._line(at, z, [y], None)

    def _line(self, at: Any, z: Any, ys: list[Any], runs: Any) -> None:
        if self.config["tile"][1] == 0:
            with self.k.loop(self.config["kernel"][2]) as tap:
                self._tile(at, z, ys, runs, [tap], None)
            return
        for taps, segments in self.config["segments"]:
            self._tile(at, z, ys, runs, taps, segments)

    def _tile(self, at: Any, z: Any, ys: list[Any], runs: Any, taps: list[Any], segments: Any) -> None:
        """One register tile over a block of images."""
        from ..tir import constant

        k, config = self.k, self.config
        group, (column, _, widths, _), channel, channels, base, row, (image, images, band) = at
        kernel = config["kernel"]
        acc: dict[Any, Any] = {}
        places = {}
        for v, width in enumerate(widths):
            for i in range(channels):
                for y, line in enumerate(ys):
                    for t, tap in enumerate(taps):
                        acc[y, t, i, v] = k.register(config["dtype"], width, "acc")
                        r = row + ((i * kernel[0] + z) * kernel[1] + line) * kernel[2] + tap
                        places[y, t, i, v] = base + sum(widths[:v]) * self.rows + r * width
        for key, register in acc.items():
            zero = constant(0, config["dtype"], register.lanes)
            register.set(zero if self._once() else k.load(self.sums, places[key], register.lanes))
        with k.loop(images) as n:
            x = (image + n) * config["x"][2][0]
            g = (image + n) * config["g"][2][0] + column * config["g"][2][1]
            if config["depthwise"]:
                x = x + column * config["x"][2][1]
            else:
                g = g + group * (config["count"] * config["g"][2][1])
                x = x + (group * config["depth"] + channel) * config["x"][2][1]
            self._points(acc, z, ys, runs, taps, segments, x, g, (channels, widths, band))
        for key, register in acc.items():
            k.store(self.sums, places[key], register.get())

    def _points(
        self, acc: Any, z: Any, ys: list[Any], runs: Any, taps: Any, segments: Any, x: Any, g: Any, shape: Any
    ) -> None:
        """The loops over an image's slabs, lines and points. Without ``runs`` the lines that the tile's one kernel
        line meets are a range known at run time; without ``segments`` so are the points."""
        k, config = self.k, self.config
        xs, gs = config["x"][3], config["g"][3]
        low, count = self._range(0, z)
        with k.loop(count) as i:
            x, g = x + self._input(0, low + i, z) * xs[0], g + (low + i) * gs[0]
            if runs is None:
                first, lines = self._band(*self._range(1, ys[0]), shape[2])
                rows = [(first, lines, [0])]
            else:
                rows = [(first, lines, met) for first, lines, met in runs]
            for first, lines, met in rows:
                with k.loop(lines) as j:
                    g_line = g + (first + j) * gs[1]
                    x_lines = {y: x + self._input(1, first + j, ys[y]) * xs[1] for y in met}
                    self._columns(acc, x_lines, g_line, taps, segments, shape)

    def _band(self, first: Any, count: Any, band: Any) -> tuple[Any, Any]:
        bands, lines = self.config["bands"], self.config["out"][1]
        if bands == 1:
            return first, count
        size = -(-lines // bands)
        low = self.k.bind(most(first, band * size), "low")
        return low, most(0, least(first + count, band * size + size) - low)

    def _columns(self, acc: Any, x_lines: Any, g: Any, taps: Any, segments: Any, shape: Any) -> None:
        k, unroll = self.k, self.config["tile"][3]
        if segments is None:
            first, count = self._range(2, taps[0])
            with k.loop(count) as p:
                self._step(acc, x_lines, g, first + p, 1, taps, [0], shape)
            return
        for first, count, met in segments:
            tiles = [t for t, tap in enumerate(taps) if tap in met]
            whole, rest = divmod(count, unroll)
            if whole:
                with k.loop(whole) as p:
                    self._step(acc, x_lines, g, first + p * unroll, unroll, taps, tiles, shape)
            if rest:
                self._step(acc, x_lines, g, first + whole * unroll, rest, taps, tiles, shape)

    def _step(
        self, acc: Any, x_lines: Any, g: Any, point: Any, points: int, taps: Any, tiles: list[int], shape: Any
    ) -> None:
        """Takes in some points: each element of x is loaded once for all the points and taps that meet it."""
        from ..functions import cast
        from ..tir import splat

        k, config = self.k, self.config
        channels, widths, _ = shape
        dtype, stride = config["dtype"], config["strides"][2]
        step, channel, down = config["x"][3][2], config["x"][2][1], config["g"][3][2]
        column = config["g"][2][1]
        offsets = [sum(widths[:v]) for v in range(len(widths))]
        held: dict[tuple[int, int], Any] = {}

        def grad(u: int, v: int) -> Any:
            """Loaded where it is first needed, so that few are alive at a time."""
            if (u, v) not in held:
                held[u, v] = self._load(self.g, g + (point + u) * down, column, offsets[v], widths[v])
            return held[u, v]

        start = self._input(2, point, taps[0])
        uses: dict[int, list[tuple[int, int]]] = {}
        for u in range(points):
            for t in tiles:
                shift = (taps[t] - taps[0]) * config["dilations"][2] if len(taps) > 1 else 0
                uses.setdefault(u * stride + shift, []).append((u, t))
        for y, line in x_lines.items():
            for offset in sorted(uses):
                at = line + (start + offset) * step
                if config["depthwise"]:
                    for v, (o, w) in enumerate(zip(offsets, widths, strict=True)):
                        value = self._load(self.x, at, channel, o, w)
                        for u, t in uses[offset]:
                            acc[y, t, 0, v].add_product(value, grad(u, v))
                    continue
                for i in range(channels):
                    value = k.bind(cast(k.load(self.x, at + i * channel), dtype), "x")
                    for u, t in uses[offset]:
                        for v, w in enumerate(widths):
                            acc[y, t, i, v].add_product(splat(value, w), grad(u, v))

    def _load(self, buffer: Any, at: Any, step: int, offset: int, lanes: int) -> Any:
        from ..functions import cast

        return self.k.bind(cast(self.k.load(buffer, at + offset * step, lanes, step), self.config["dtype"]), "v")

    def _input(self, axis: int, point: Any, tap: Any) -> Any:
        c = self.config
        return point * c["strides"][axis] + (tap * c["dilations"][axis] - c["pads"][axis])

    def _range(self, axis: int, tap: Any) -> tuple[Any, Any]:
        """First output point and number of points for which a tap meets the input."""
        c = self.config
        out, size, stride = c["out"][axis], c["size"][axis], c["strides"][axis]
        reach = (c["kernel"][axis] - 1) * c["dilations"][axis] - c["pads"][axis]
        if c["pads"][axis] == 0 and (out - 1) * stride + reach < size:
            return 0, out
        offset = c["pads"][axis] - tap * c["dilations"][axis]
        first = self._bind(most(0, offset + (stride - 1)) // stride)
        # an offset below 1 - size would make the quotient round the wrong way: no point is met then
        end = least(out, most(0, size - 1 + offset + stride) // stride)
        return first, self._bind(most(0, end - first))

    def _bind(self, value: Any) -> Any:
        return self.k.bind(value, "range")


class Ending:
    """Sums parts, transposes vectors of columns into the weights' order, does the elementwise work, stores."""

    def __init__(self, k: Any, config: dict[str, Any], sums: Any) -> None:
        from ..evaluate import Evaluator

        self.k, self.config, self.sums = k, config, sums
        program = config["program"]
        buffers: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            buffers[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.shape = program["outputs"][0]["shape"]
        self.part: Any = None
        self.ev = Evaluator(k, program, buffers, lambda number, coords: self.part)

    def vector(self, group: Any, column: Any, width: int, at: Any, first: Any, rows: int) -> None:
        """``width`` columns from ``column`` on, whose sums lie at ``at``; ``rows`` of them, the first one being row
        ``first`` of the weights."""
        column = column + group * self.config["count"]
        if not self.config["merged"]:
            self._plain(column, width, at, first, rows)
            return
        k, square = self.k, width > 1
        whole = rows // width if square else 0
        if whole:
            with k.loop(whole) as b:
                self._square(column, width, at + b * (width * width), first + b * width)
        for start, lanes in _powers(rows - whole * width, k.lanes):
            skip = whole * width + start
            with k.loop(width) as o:
                value = self._sum(at + skip * width + o, lanes, width)
                self._store((column + o, 0), first + skip, value, lanes)

    def _square(self, column: Any, width: int, at: Any, row: Any) -> None:
        from .transpose import transposed

        rows = [self.k.bind(self._sum(at + r * width, width), "row") for r in range(width)]
        for o, value in enumerate(transposed(self.k, rows)):
            self._store((column + o, 0), row, value, width)

    def _plain(self, column: Any, width: int, at: Any, first: Any, rows: int) -> None:
        """Vectors along the columns, whatever the strides."""
        k = self.k
        with k.loop(rows) as r:
            rest = first + r
            coords: list[Any] = []
            for extent in reversed(self.shape[1:]):
                coords.insert(0, (k.bind(rest % extent, "at") if extent > 1 else 0, 0))
                rest = rest // extent if extent > 1 else rest
            self.ev.begin()
            self.part = self._cast(k.bind(self._sum(at + r * width, width), "sum"))
            self.ev.store_all(self.outputs, [(column, 1 if width > 1 else 0), *coords], width)

    def _store(self, column: Any, row: Any, value: Any, lanes: int) -> None:
        coords: list[Any] = [column, *[(0, 0)] * (len(self.shape) - 1)]
        walked = [a for a in range(1, len(self.shape)) if self.shape[a] > 1]
        if walked:
            coords[walked[-1]] = (row, 1 if lanes > 1 else 0)
        self.ev.begin()
        self.part = self._cast(self.k.bind(value, "sum"))
        self.ev.store_all(self.outputs, coords, lanes)

    def _cast(self, value: Any) -> Any:
        from ..functions import cast

        return cast(value, self.config["type"])

    def _sum(self, at: Any, lanes: int, step: int = 1) -> Any:
        """The sum of all parts, in their order."""
        size = self.config["group"] * self.config["packed"] * self.config["rows"]
        total = self.k.load(self.sums, at, lanes, step)
        for p in range(1, self.config["parts"]):
            total = total + self.k.load(self.sums, at + p * size, lanes, step)
        return total


def _powers(extent: int, lanes: int) -> list[tuple[int, int]]:
    from ._nest import pieces

    found, at = [], 0
    while extent - at >= lanes:
        found.append((at, lanes))
        at += lanes
    return found + [(at + start, width) for start, width in pieces(extent - at, lanes)]


def emit_sum(k: Any, config: dict[str, Any]) -> None:
    """The second phase; a task is a vector of columns. Arguments: the parts' sums, what the end reads, outputs."""
    columns, rows = config["columns"], config["rows"]
    sums = k.arg("sums", config["dtype"], config["group"] * config["parts"] * config["packed"] * rows)
    finish = Ending(k, config, sums)
    lanes, full = columns["lanes"], columns["full"] * columns["nv"]
    rests = [(packed + sum(widths[:v]), w) for _, packed, widths, _ in columns["rests"] for v, w in enumerate(widths)]
    count = full + len(rests)

    def one(group: Any, v: Any) -> None:
        base = group * (config["packed"] * rows)
        if full:
            with k.when(v < full if rests else True):
                finish.vector(group, v * lanes, lanes, base + v * (lanes * rows), 0, rows)
        for j, (at, width) in enumerate(rests):
            with k.when(equal(v, full + j) if count > 1 else True):
                finish.vector(group, at, width, base + at * rows, 0, rows)

    if config["group"] * count == 1:
        one(0, 0)
        return
    with k.parallel(config["group"] * count) as task:
        one(task // count if count > 1 else task, task % count if count > 1 else 0)
