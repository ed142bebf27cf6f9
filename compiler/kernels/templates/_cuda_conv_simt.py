"""Writes the kernels of ``cuda_conv_simt``. Arguments: x, weights, what the epilogue reads, the outputs."""

from __future__ import annotations

import math
from typing import Any

from ..tir import constant, dtype_of
from ._cuda_conv_lanes import Kernel, both, decoded, number, padding, placed, within


def emit(k: Any, config: dict[str, Any]) -> None:
    x, w = (k.arg(n, config[n]["dtype"], max(1, config[n]["span"])) for n in "xw")
    kernel = Kernel(k, config, (x, w))
    slab, line, point = config["axes"]
    lanes = config["accesses"]["lanes"]
    places = [config["batch"], slab["extent"], line["extent"], -(-point["extent"] // config["points"])]
    columns = [config["group"], config["columns"] // lanes]
    by_channel = config["by_channel"]
    order = [*places, *columns] if by_channel else [*columns, *places]
    total = math.prod(order)
    with k.grid(config["blocks"], config["threads"]) as (block, thread):
        index = k.bind(block * config["threads"] + thread, "index")
        with k.when(True if total % config["threads"] == 0 else index < total):
            at = decoded(k, index, order)
            place, column = (at[:4], at[4:]) if by_channel else (at[2:], at[:2])
            _Points(kernel, place, column[0], column[1] * lanes).run()


class _Points:
    """One thread's work: points from ``place`` (image, slab, line, number of the run of points) on, channels of a group
    from ``column`` on."""

    def __init__(self, kernel: Kernel, place: list[Any], group: Any, column: Any) -> None:
        self.kernel, self.k, self.c = kernel, kernel.k, kernel.config
        self.lanes, self.points, self.step = self.c["accesses"]["lanes"], self.c["points"], self.c["step"]
        self.axes = dict(zip("zyx", self.c["axes"], strict=True))
        self.place = [*place[:3], place[3] * self.points]
        self.group, self.column = group, column
        self.acc = self.k.array(self.c["dtype"], self.points * self.lanes, "acc")

    def run(self) -> None:
        k, c = self.k, self.c
        for i in range(self.points * self.lanes):
            k.store(self.acc, i, constant(0, c["dtype"]))
        x = self.place[0] * c["x"]["batch"] + self.group * (c["depth"] * c["x"]["channel"])
        w = c["w"]["base"] + self.group * c["w"]["group"] + self.column * c["w"]["column"]
        self._level(c["order"], k.bind(x, "base"), k.bind(w, "weight"), None)
        self._finish()

    def _level(self, names: str, x: Any, w: Any, offsets: list[tuple[Any, Any]] | None) -> None:
        """Loops over the taps of an axis or the channels. ``offsets``: of each point's input from ``x``, and whether
        it lies inside."""
        if not names:
            assert offsets is not None
            return self._products(x, w, offsets)
        name, rest = names[0], names[1:]
        step = self.c["w"][name]
        if name == "c":
            with self.k.loop(self.c["depth"] // self.step) as i:
                self._level(rest, x + i * (self.step * self.c["x"]["channel"]), w + i * (self.step * step), offsets)
            return
        axis = self.axes[name]
        with self.k.loop(axis["taps"]) as tap:
            if name == "x":
                self._level(rest, x, w + tap * step, self._inputs(axis, tap))
                return
            at = self.place["zy".index(name) + 1] * axis["stride"] - axis["pad"] + tap * axis["dilation"]
            with self.k.when(within(at, axis["size"]) if axis["border"] else True):
                self._level(rest, x + at * axis["step"], w + tap * step, offsets)

    def _inputs(self, axis: dict[str, Any], tap: Any) -> list[tuple[Any, Any]]:
        inside = axis["border"] or axis["extent"] % self.points != 0
        found = []
        for p in range(self.points):
            at = (self.place[3] + p) * axis["stride"] - axis["pad"] + tap * axis["dilation"]
            valid = within(at, axis["size"]) if inside else True
            found.append((self._bound(at * axis["step"]), valid if isinstance(valid, bool) else self._bound(valid)))
        return found

    def _bound(self, value: Any) -> Any:
        if isinstance(value, int):
            return value
        return self.k.bind(value if dtype_of(value) != "bool" else number(value), "tap")

    def _products(self, x: Any, w: Any, offsets: list[tuple[Any, Any]]) -> None:
        """``step`` channels of one tap."""
        k, c = self.k, self.c
        zero, pad = self._constant(c["zero"]), padding(k, c["zero"], c["dtype"])
        held = k.array(c["dtype"], self.points * self.step, "x")
        for p, (offset, valid) in enumerate(offsets):
            inside = int(valid) if isinstance(valid, bool) else valid
            k.run(f"nv_read<{self.step}>", (held, p * self.step), (self.kernel.first[0], x + offset), inside, pad)
        for u in range(self.step):
            factors = self._weights(w + u * c["w"]["c"])
            for p in range(self.points):
                value = k.load(held, p * self.step + u)
                value = value - zero if c["zero"] else value
                for i, factor in enumerate(factors):
                    at = p * self.lanes + i
                    k.store(self.acc, at, k.load(self.acc, at) + value * factor)

    def _weights(self, at: Any) -> list[Any]:
        k, w = self.k, self.c["w"]
        held = k.array(self.c["dtype"], self.lanes, "w")
        for i in range(0, self.lanes, w["wide"]):
            k.run(f"nv_read<{w['wide']}>", (held, i), (self.kernel.first[1], at + i * w["column"]))
        return [k.load(held, i) for i in range(self.lanes)]

    def _constant(self, value: int) -> Any:
        return constant(value, self.c["dtype"])

    def _finish(self) -> None:
        k, (slab, line, point) = self.k, self.c["axes"]
        z, y = placed(slab, self.place[1]), placed(line, self.place[2])
        channel = self.group * self.c["columns"] + self.column
        for p in range(self.points):
            x = self.place[3] + p
            with k.when(both(x < point["extent"] if p and point["extent"] % self.points else True)):
                self.kernel.finish([self.place[0], z, y, placed(point, x)], channel, (self.acc, p * self.lanes))
