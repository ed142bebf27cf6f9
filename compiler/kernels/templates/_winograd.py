"""Writes the kernels of Winograd convolutions. See ``winograd`` for the terms and the forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ._tile import pieces

# Of the polynomials, with both signs; 0 and infinity are the others. 3/4 and 3/2 leave a third of the error of 1 and 2.
POINTS = {2: (1.0,), 4: (0.75, 1.5)}


def _transform_input(m: int, d: list[Any]) -> list[Any]:
    """``B^T d`` for the points 0, 1, -1, infinity, or 0, p, -p, q, -q, infinity."""
    if m == 1:
        return d
    if m == 2:
        return [d[2] - d[0], d[2] + d[1], d[2] - d[1], d[3] - d[1]]
    p, q = POINTS[m]
    pp, qq = p * p, q * q
    found = [pp * qq * d[0] - (pp + qq) * d[2] + d[4]]
    for point, other in ((p, qq), (q, pp)):
        even, odd = d[4] - other * d[2], d[3] - other * d[1]
        found += [even + point * odd, even - point * odd]
    return [*found, pp * qq * d[1] - (pp + qq) * d[3] + d[5]]


def _transform_output(m: int, d: list[Any]) -> list[Any]:
    """``A^T d``."""
    if m == 1:
        return d
    if m == 2:
        return [d[0] + d[1] + d[2], d[1] - d[2] + d[3]]
    p, q = POINTS[m]
    s, u, t, v = d[1] + d[2], d[1] - d[2], d[3] + d[4], d[3] - d[4]
    return [
        d[0] + s + t,
        p * u + q * v,
        p * p * s + q * q * t,
        d[5] + p**3 * u + q**3 * v,
    ]


class Lanes:
    """A vector expression that numbers may multiply; sums are held in registers, so that none is computed twice."""

    def __init__(self, k: Any, value: Any) -> None:
        self.k, self.value = k, value

    def __add__(self, other: Lanes) -> Lanes:
        return Lanes(self.k, self.k.bind(self.value + other.value))

    def __sub__(self, other: Lanes) -> Lanes:
        return Lanes(self.k, self.k.bind(self.value - other.value))

    def __rmul__(self, factor: float) -> Lanes:
        from ..tir import like

        return Lanes(self.k, self.value * like(factor, self.value))


class Winograd:
    """The three parts of the kernels. ``first`` is the first row of tiles of the chunk at hand."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.config = k, config
        (self.my, self.mx), (self.lines, self.wide) = config["m"], config["patch"]
        self.points = self.lines * self.wide
        self.across, self.depth = config["across"], config["x"]["channels"]
        self.part: Any = None  # the lanes that are being stored
        self.read = (self.lines, self.wide)  # extents of what a tile reads
        self.transform: Callable[[int, list[Any]], list[Any]] = _transform_input
        self.origin: Any = 0  # where the channels begin

    # V[point][tile][channel]

    def into(self, x: Any, v: Any, batch: Any, row: Any, at: Any) -> None:
        """Transforms row ``row`` of tiles, which is row ``at`` of V."""
        k, c = self.k, self.config
        (_, wide), (top, left), (down, right) = c["size"], c["pads"], c["x"]["step"]
        y = row * self.my - top
        for start, count in self._runs(left, wide):
            with k.loop(count) as j:
                tile = start + j
                column = tile * self.mx - left
                seen = (0, self.read[1])
                if count == 1:
                    seen = (max(0, -column), max(0, min(self.read[1], wide - column)))
                base = self.origin + batch * c["x"]["batch"] + y * down + column * right
                to = (at * self.across + tile) * self.depth
                lanes = k.lanes
                if self.depth >= lanes:
                    with k.loop(self.depth // lanes) as i:
                        self._into_tile(x, v, base + i * lanes, to + i * lanes, y, seen, lanes)
                done = self.depth // lanes * lanes
                for offset, width in pieces(self.depth - done):
                    self._into_tile(x, v, base + done + offset, to + done + offset, y, seen, width)

    def _runs(self, left: int, wide: int) -> Iterator[tuple[int, int]]:
        """Tiles of a row as ``(first, count)``: those at a border one by one."""
        inside = [t for t in range(self.across) if t * self.mx >= left and t * self.mx - left + self.read[1] <= wide]
        first, end = (inside[0], inside[-1] + 1) if inside else (self.across, self.across)
        yield from ((t, 1) for t in range(first))
        if inside:
            yield first, end - first
        yield from ((t, 1) for t in range(end, self.across))

    def _into_tile(self, x: Any, v: Any, base: Any, to: Any, y: Any, seen: tuple[int, int], lanes: int) -> None:
        from tvm import tirx

        from ..tir import constant

        k, c = self.k, self.config
        down, right = c["x"]["step"]
        border = c["pads"][0] > 0 or c["down"] * self.my + self.read[0] - self.my > c["size"][0]
        zero = constant(0, "float32", lanes)
        held = [[k.register("float32", lanes, "d") for _ in range(self.wide)] for _ in range(self.read[0])]
        for i, line in enumerate(held):
            if border:
                for r in line:
                    r.set(zero)
            inside = tirx.And(y + i >= 0, y + i < c["size"][0]) if border and not isinstance(y, int) else True
            if border and isinstance(y, int):
                inside = 0 <= y + i < c["size"][0]
            with k.when(inside):
                row = [
                    Lanes(k, k.bind(k.load(x, base + i * down + j * right, lanes)) if seen[0] <= j < seen[1] else zero)
                    for j in range(self.read[1])
                ]
                for r, value in zip(line, self.transform(self.mx, row), strict=True):
                    r.set(value.value)
        for j in range(self.wide):
            column = self.transform(self.my, [Lanes(k, line[j].get()) for line in held])
            for i, value in enumerate(column):
                k.store(v, (i * self.wide + j) * c["v"] + to, value.value)

    # M[point][tile][column of the group]

    def product(self, u: Any, v: Any, mm: Any, group: Any) -> None:
        k, c = self.k, self.config
        _, packed, widths, _ = group
        width = sum(widths)
        tiles = c["chunk"] * self.across
        base = packed * (self.points * self.depth)
        with k.loop(self.points) as p:
            whole, rest = divmod(tiles, c["rows"])
            for start, rows, count in ((0, c["rows"], whole), (whole * c["rows"], rest, 1)):
                if not rows or not count:
                    continue
                with k.loop(count) as i:
                    tile = start + i * rows
                    self._product_tile(
                        (u, base + p * (self.depth * width)),
                        (v, p * c["v"] + tile * self.depth),
                        (mm, p * c["mm"] + tile * width),
                        rows,
                        widths,
                    )

    def _product_tile(self, u: Any, v: Any, mm: Any, rows: int, widths: list[int]) -> None:
        from ..tir import constant, splat

        k, width = self.k, sum(widths)
        acc = [[k.register("float32", w, "acc") for w in widths] for _ in range(rows)]
        held = [k.register("float32", w, "b") for w in widths]
        for row in acc:
            for r in row:
                r.set(constant(0, "float32", r.lanes))

        def step(at: Any) -> None:
            for n, r in enumerate(held):
                r.set(k.load(u[0], u[1] + at * width + sum(widths[:n]), r.lanes))
            for i, row in enumerate(acc):
                value = k.load(v[0], v[1] + i * self.depth + at)
                for r, b in zip(row, held, strict=True):
                    r.add_product(splat(value, r.lanes), b.get())

        unroll = 2 if k.machine["registers"] < 32 and k.machine["in_order"] else 4
        with k.loop(self.depth // unroll) as i:
            for n in range(unroll):
                step(i * unroll + n)
        for n in range(self.depth // unroll * unroll, self.depth):
            step(n)
        for i, row in enumerate(acc):
            for n, r in enumerate(row):
                k.store(mm[0], mm[1] + i * width + sum(widths[:n]), r.get())

    def out(self, ev: Any, mm: Any, bias: Any, outputs: list[Any], batch: Any, row: Any, at: Any, group: Any) -> None:
        """Row ``at`` of M becomes row ``row`` of output tiles."""
        k, (_, wide) = self.k, self.config["out"]
        column, packed, widths, valid = group
        width = sum(widths)
        whole, rest = divmod(wide, self.mx)
        full = sum(w == v == widths[0] for w, v in zip(widths, valid, strict=True))
        for start, count, shown in ((0, whole, self.mx), (whole, 1, rest)):
            if not count or not shown:
                continue
            with k.loop(count) as j:
                tile = (at * self.across + start + j) * width
                here = (ev, mm, bias, outputs, batch, row, start + j, shown)
                if full:
                    with k.loop(full) as n:
                        skip = n * widths[0]
                        self._out_tile(*here, tile + skip, column + skip, packed + skip, widths[0], widths[0])
                for n in range(full, len(widths)):
                    skip = sum(widths[:n])
                    self._out_tile(*here, tile + skip, column + skip, packed + skip, widths[n], valid[n])

    def _out_tile(
        self, ev: Any, mm: Any, bias: Any, outputs: Any, batch: Any, row: Any, tile: Any, shown: int, at: Any,
        column: Any, packed: Any, width: int, valid: int,
    ) -> None:  # fmt: skip
        from ._contract import part

        k, c = self.k, self.config
        held = []
        for j in range(self.wide):
            source = [
                Lanes(k, k.bind(k.load(mm, (i * self.wide + j) * c["mm"] + at, width))) for i in range(self.lines)
            ]
            held.append(_transform_output(self.my, source))
        add = k.bind(k.load(bias, packed, width)) if bias is not None else None
        for i in range(self.my):
            y = row * self.my + i
            clipped = c["out"][0] % self.my > 0 and i >= c["out"][0] % self.my
            with k.when(y < c["out"][0] if clipped else True):
                values = _transform_output(self.mx, [Lanes(k, k.bind(h[i].value)) for h in held])
                ev.begin()
                for j in range(shown):
                    value = k.bind(values[j].value if add is None else values[j].value + add)
                    for first, lanes in pieces(valid):
                        self.part = part(value, first, lanes)
                        spatial = [(y, 0), (tile * self.mx + j, 0)][4 - c["rank"] :]
                        coords = [(batch, 0), (column + first, 1 if lanes > 1 else 0), *spatial]
                        ev.store_all(outputs, coords, lanes)

    def groups(self) -> Iterator[Any]:
        """The groups of columns; the full ones as a loop."""
        columns = self.config["columns"]
        wide = columns["nv"] * columns["lanes"]
        if columns["full"]:
            with self.k.loop(columns["full"]) as g:
                yield self._full(g * wide)
        for rest in columns["rests"]:
            yield tuple(rest)

    def _full(self, at: Any) -> Any:
        columns = self.config["columns"]
        widths = [columns["lanes"]] * columns["nv"]
        return at, at, widths, widths

    def epilogue(self) -> tuple[Any, Any, list[Any]]:
        """Declares the arguments of the output transform: evaluator, bias, outputs."""
        from ..evaluate import Evaluator

        k, c = self.k, self.config
        program = c["program"]
        bias = k.arg("bias", "float32", c["packed"]) if c["bias"] else None
        buffers: list[Any] = [None] * len(program["inputs"])
        for i in c["reads"]:
            buffers[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        return Evaluator(k, program, buffers, lambda number, coords: self.part), bias, outputs


def emit_chunk(k: Any, config: dict[str, Any]) -> None:
    """One kernel: transform, products and output of each chunk."""
    w = Winograd(k, config)
    x = k.arg("x", "float32", config["x"]["span"])
    u = k.arg("u", "float32", w.points * w.depth * config["packed"])
    v = k.arg("v", "float32", w.points * config["v"])
    mm = k.arg("m", "float32", w.points * config["mm"])
    ev, bias, outputs = w.epilogue()

    def chunk(task: Any) -> None:
        batch = task // config["chunks"] if config["batch"] > 1 else 0
        first = (task % config["chunks"] if config["batch"] > 1 else task) * config["chunk"]
        with k.loop(config["chunk"]) as i:
            w.into(x, v, batch, first + i, i)
        for group in w.groups():
            w.product(u, v, mm, group)
            with k.loop(config["chunk"]) as i:
                w.out(ev, mm, bias, outputs, batch, first + i, i, group)

    if config["tasks"] > 1:
        with k.parallel(config["tasks"]) as task:
            chunk(task)
    else:
        chunk(0)


def emit_input(k: Any, config: dict[str, Any]) -> None:
    """The first phase of the split form; a task is a row of tiles."""
    w = Winograd(k, config)
    x = k.arg("x", "float32", config["x"]["span"])
    v = k.arg("v", "float32", w.points * config["v"])
    if config["down"] > 1:
        with k.parallel(config["down"]) as row:
            w.into(x, v, 0, row, row)
    else:
        w.into(x, v, 0, 0, 0)


def emit_output(k: Any, config: dict[str, Any]) -> None:
    """The second phase of the split form; a task is a group of output channels."""
    w = Winograd(k, config)
    u = k.arg("u", "float32", w.points * w.depth * config["packed"])
    v = k.arg("v", "float32", w.points * config["v"])
    mm = k.arg("m", "float32", w.points * config["mm"])
    ev, bias, outputs = w.epilogue()
    columns = config["columns"]

    def one(group: Any) -> None:
        w.product(u, v, mm, group)
        with k.loop(config["chunk"]) as i:
            w.out(ev, mm, bias, outputs, 0, i, i, group)

    groups = columns["full"] + len(columns["rests"])
    if groups == 1:
        for group in w.groups():
            one(group)
        return
    from ._contract import equal

    with k.parallel(groups) as task:
        if columns["full"]:
            with k.when(task < columns["full"] if columns["rests"] else True):
                one(w._full(task * (columns["nv"] * columns["lanes"])))
        for n, rest in enumerate(columns["rests"]):
            with k.when(equal(task, columns["full"] + n)):
                one(tuple(rest))


def emit_weights(k: Any, config: dict[str, Any]) -> None:
    """Transforms weights at run time; a task is some input channels. Arguments: the weights, U."""
    from ._contract import least

    (lines, down), (points, right), (depth, channel) = config["axes"]
    first, second = config["transforms"]
    total = len(first) * len(second)
    w = k.arg("w", "float32", config["span"])
    u = k.arg("u", "float32", total * depth * config["packed"])

    def vector(c: Any, column: Any, lanes: int, to: Any, width: int) -> None:
        at = config["base"] + c * channel + column * config["column"]
        held = [
            [Lanes(k, k.bind(k.load(w, at + i * down + j * right, lanes, config["column"]))) for j in range(points)]
            for i in range(lines)
        ]
        half = [[dot(row, [line[j] for line in held]) for j in range(points)] for row in first]
        for a, line in enumerate(half):
            for b, row in enumerate(second):
                k.store(u, to + ((a * len(second) + b) * depth + c) * width, dot(row, line).value)

    def group(c: Any, at: Any) -> None:
        from ..tir import constant

        column, packed, widths, valid = at
        base = packed * (total * depth)
        for v, (width, real) in enumerate(zip(widths, valid, strict=True)):
            skip = sum(widths[:v])
            for start, lanes in pieces(real):
                vector(c, column + sum(valid[:v]) + start, lanes, base + skip + start, sum(widths))
            if real < width:
                with k.loop(total) as p:
                    for pad in range(real, width):
                        k.store(u, base + (p * depth + c) * sum(widths) + skip + pad, constant(0, "float32"))

    def channels(start: Any, count: Any) -> None:
        columns = config["columns"]
        with k.loop(count) as i:
            if columns["full"]:
                widths = [columns["lanes"]] * columns["nv"]
                with k.loop(columns["full"]) as g:
                    at = g * sum(widths)
                    group(start + i, (at, at, widths, widths))
            for rest in columns["rests"]:
                group(start + i, tuple(rest))

    if config["tasks"] == 1:
        channels(0, depth)
        return
    with k.parallel(config["tasks"]) as task:
        channels(task * 8, 8 if depth % 8 == 0 else least(8, depth - task * 8))


def dot(row: list[float], values: list[Lanes]) -> Lanes:
    """A row of a transform times a vector of vectors."""
    terms = [v if f == 1.0 else f * v for f, v in zip(row, values, strict=True) if f]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
