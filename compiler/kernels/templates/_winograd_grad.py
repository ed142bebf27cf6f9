"""Writes the kernel of ``winograd_grad_weight``; see there for the terms."""

from __future__ import annotations

from typing import Any

from ._grad_weight import Ending
from ._winograd import POINTS, Lanes, Winograd, dot


def _transform_grad(m: int, g: list[Any]) -> list[Any]:
    """``G g`` but for the scale of each point, which the way back makes up for."""
    found = [g[0]]
    for p in POINTS[m]:
        even, odd = g[0] + p * p * g[2], g[1] + p * p * g[3]
        found += [even + p * odd, even - p * odd]
    return [*found, g[3]]


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: x, g, V, U, M, sums; where the end is done here too, what that reads and the outputs."""
    _Kernel(k, config).run()


class _Kernel:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.config = k, config
        self.left, self.right = Winograd(k, config["x"]), Winograd(k, config["g"])
        self.right.read, self.right.transform = (4, 4), _transform_grad
        self.points = self.left.points
        self.tiles = config["rows"] * config["x"]["across"]
        self.x = k.arg("x", "float32", config["x"]["x"]["span"])
        self.g = k.arg("g", "float32", config["g"]["x"]["span"])
        self.v = k.arg("v", "float32", self.points * config["x"]["v"])
        self.u = k.arg("u", "float32", self.points * config["g"]["v"])
        self.m = k.arg("m", "float32", self.points * config["m"])
        self.sums = k.arg("sums", "float32", config["sums"])
        self.ending = Ending(k, config["finish"], self.sums) if config["finish"] else None

    def run(self) -> None:
        k, (parts, blocks, channels) = self.k, self.config["dims"]
        if parts * blocks * channels == 1:
            self._task(0, 0, 0)
            return
        with k.parallel(parts * blocks * channels) as task:
            part = task // (blocks * channels) if blocks * channels > 1 else task
            block = task // channels % blocks if blocks > 1 else 0
            self._task(part if parts > 1 else 0, block, task % channels if channels > 1 else 0)

    def _task(self, part: Any, block: Any, channels: Any) -> None:
        from ..tir import constant

        k, c = self.k, self.config
        column, channel = block * c["width"], channels * c["channels"]
        self.left.origin, self.right.origin = channel, column
        down = c["x"]["down"]
        if c["chunks"] > 1:
            with k.loop(self.points * c["m"] // k.lanes) as i:
                k.store(self.m, i * k.lanes, constant(0, "float32", k.lanes))
        with k.loop(c["chunks"]) as n:
            with k.loop(c["rows"]) as i:
                at = n * c["rows"] + i
                image, row = (part * c["images"] + at // down, at % down) if down > 1 else (part * c["images"] + at, 0)
                image, row = k.bind(image, "image"), k.bind(row, "row")
                self.left.into(self.x, self.v, image, row, i)
                self.right.into(self.g, self.u, image, row, i)
            with k.loop(self.points) as p, k.loop(c["groups"]) as group:
                self._products(p, group * (c["nv"] * c["lanes"]))
        with k.loop(c["channels"]) as i, k.loop(c["width"] // c["lanes"]) as v:
            self._back(part, column, channel, i, v)
        if self.ending:
            rows = c["channels"] * 9
            with k.loop(c["width"] // c["lanes"]) as v:
                skip = v * c["lanes"]
                self.ending.vector(0, column + skip, c["lanes"], skip * rows, channel * 9, rows)

    def _products(self, p: Any, column: Any) -> None:
        c = self.config
        whole, rest = divmod(c["channels"], c["tile"])
        for start, size, count in ((0, c["tile"], whole), (whole * c["tile"], rest, 1)):
            if size and count:
                with self.k.loop(count) as i:
                    self._product_tile(p, start + i * size, size, column)

    def _product_tile(self, p: Any, channel: Any, size: int, column: Any) -> None:
        """``M[point][channel][column] += V[point][tile][channel] U[point][tile][column]``."""
        from ..tir import constant, splat

        k, c = self.k, self.config
        nv, lanes = range(c["nv"]), c["lanes"]
        v, u, m = p * c["x"]["v"] + channel, p * c["g"]["v"] + column, p * c["m"] + channel * c["width"] + column
        acc = [[k.register("float32", lanes, "acc") for _ in nv] for _ in range(size)]
        for i, row in enumerate(acc):
            for n, r in enumerate(row):
                at = m + i * c["width"] + n * lanes
                r.set(k.load(self.m, at, lanes) if c["chunks"] > 1 else constant(0, "float32", lanes))
        held = [k.register("float32", lanes, "u") for _ in nv]

        def step(tile: Any) -> None:
            for n, r in enumerate(held):
                r.set(k.load(self.u, u + tile * c["width"] + n * lanes, lanes))
            for i, row in enumerate(acc):
                value = k.load(self.v, v + tile * c["channels"] + i)
                for r, b in zip(row, held, strict=True):
                    r.add_product(splat(value, lanes), b.get())

        unroll = next(n for n in (4, 2, 1) if self.tiles % n == 0)
        with k.loop(self.tiles // unroll) as t:
            for n in range(unroll):
                step(t * unroll + n)
        for i, row in enumerate(acc):
            for n, r in enumerate(row):
                k.store(self.m, m + i * c["width"] + n * lanes, r.get())

    def _back(self, part: Any, column: Any, channel: Any, i: Any, v: Any) -> None:
        """One vector of M becomes nine of weights."""
        k, c = self.k, self.config
        lanes, back, wide = c["lanes"], c["back"], self.left.wide
        at = i * c["width"] + v * lanes
        rows = (c["channels"] if self.ending else c["depth"]) * 9
        base = v * (lanes * rows)
        row = i if self.ending else channel + i
        if not self.ending:
            base = part * (c["packed"] * rows) + column * rows + base
        held = []
        for line in range(self.left.lines):
            source = [Lanes(k, k.bind(k.load(self.m, (line * wide + j) * c["m"] + at, lanes))) for j in range(wide)]
            held.append([dot(r, source) for r in back])
        for a, down in enumerate(back):
            for b in range(len(back)):
                value = dot(down, [line[b] for line in held])
                k.store(self.sums, base + (row * 9 + a * 3 + b) * lanes, value.value)
