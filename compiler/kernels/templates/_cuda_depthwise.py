"""Writes the kernels of ``cuda_depthwise``. Arguments: x, weights, what the epilogue reads, the outputs."""

from __future__ import annotations

from typing import Any

from ..tir import constant
from ._cuda_conv_lanes import Kernel, both, decoded, number, padding, placed, within


def emit(k: Any, config: dict[str, Any]) -> None:
    x, w = (k.arg(n, config[n]["dtype"], config[n]["span"]) for n in "xw")
    kernel = Kernel(k, config, (x, w))
    _, line, point = config["axes"]
    lanes = config["accesses"]["lanes"]
    lines, points = (-(-a["extent"] // config[n]) for a, n in ((line, "lines"), (point, "points")))
    extents = [config["batch"], config["axes"][0]["extent"], lines, points]
    vectors = config["channels"] // lanes
    order = [*extents, vectors] if config["by_channel"] else [extents[0], vectors, *extents[1:]]
    with k.grid(config["blocks"], config["threads"]) as (block, thread):
        index = k.bind(block * config["threads"] + thread, "index")
        total = vectors
        for extent in extents:
            total *= extent
        with k.when(True if total % config["threads"] == 0 else index < total):
            at = decoded(k, index, order)
            channel = at.pop(4 if config["by_channel"] else 1) * lanes
            _Rectangle(kernel, at, channel).run()


class _Rectangle:
    """One thread's work. ``at``: image, slab and the numbers of the rectangle among lines and points."""

    def __init__(self, kernel: Kernel, at: list[Any], channel: Any) -> None:
        self.kernel, self.k, self.c = kernel, kernel.k, kernel.config
        self.lanes = self.c["accesses"]["lanes"]
        self.axes, self.channel = self.c["axes"], channel
        self.lines, self.points = self.c["lines"], self.c["points"]
        self.at = [at[0], at[1], at[2] * self.lines, at[3] * self.points]
        self.acc = self.k.array(self.c["dtype"], self.lines * self.points * self.lanes, "acc")

    def run(self) -> None:
        for i in range(self.lines * self.points * self.lanes):
            self.k.store(self.acc, i, constant(0, self.c["dtype"]))
        slab = self.axes[0]
        with self.k.loop(slab["taps"]) as tap:
            z = self._meets(slab, self.at[1], tap)
            base = self._base() + self._step(slab, self.at[1], tap)
            weight = self._weights_base() + tap * self.c["w"]["taps"][0]
            if self.c["written"] == 2:
                self._written(base, weight, z)
            else:
                self._lines(base, weight, z)
        self._finish()

    # -- where things lie ------------------------------------------------------------------------------------------

    def _base(self) -> Any:
        from tvm import tirx

        x, channel, many = self.c["x"], self.channel, self.c["multiplier"]
        if many > 1 and not isinstance(channel, int):
            channel = tirx.truncdiv(channel, many)
        return self.k.bind(self.at[0] * x["batch"] + channel * x["channel"], "base")

    def _weights_base(self) -> Any:
        return self.c["w"]["base"] + self.channel * self.c["w"]["channel"]

    def _input(self, axis: dict[str, Any], point: Any, tap: Any) -> Any:
        return point * axis["stride"] - axis["pad"] + tap * axis["dilation"]

    def _step(self, axis: dict[str, Any], point: Any, tap: Any) -> Any:
        return self._input(axis, point, tap) * axis["step"]

    def _meets(self, axis: dict[str, Any], point: Any, tap: Any, more: int = 0) -> Any:
        """Whether a tap lies inside the input."""
        return within(self._input(axis, point, tap) + more, axis["size"]) if axis["border"] else True

    # -- products --------------------------------------------------------------------------------------------------

    def _written(self, base: Any, weight: Any, valid: Any) -> None:
        """All taps of a slab written out: each input is read once."""
        line, y = self.axes[1], self.at[2]
        met: dict[int, list[tuple[int, int]]] = {}
        for p in range(self.lines):
            for t in range(line["taps"]):
                met.setdefault(p * line["stride"] + t * line["dilation"], []).append((p, t))
        for offset in sorted(met):
            at = self._input(line, y, 0) + offset
            # a last line that is no line of the output may lie anywhere
            inside = line["border"] or line["extent"] % self.lines != 0
            here = both(valid, within(at, line["size"]) if inside else True)
            self._row(base + at * line["step"], weight, here, met[offset])

    def _lines(self, base: Any, weight: Any, valid: Any) -> None:
        """A loop over the kernel's lines."""
        line, y = self.axes[1], self.at[2]
        with self.k.loop(line["taps"]) as tap:
            here = both(valid, self._meets(line, y, tap))
            row = base + self._step(line, y, tap)
            own = weight + tap * self.c["w"]["taps"][1]
            if self.c["written"]:
                self._row(row, own, here, [(0, 0)])
            else:
                self._taps(row, own, here)

    def _taps(self, row: Any, weight: Any, valid: Any) -> None:
        """A loop over the kernel's points of one line."""
        point = self.axes[2]
        with self.k.loop(point["taps"]) as tap:
            factor = self._weight(weight + tap * self.c["w"]["taps"][2])
            for p in range(self.points):
                at = self._input(point, self.at[3] + p, tap)
                self._products(p, self._load(row, at, valid), factor)

    def _row(self, row: Any, weight: Any, valid: Any, meets: list[tuple[int, int]]) -> None:
        """One line of the input, which is met by ``(line of the rectangle, tap)`` each."""
        point = self.axes[2]
        uses: dict[int, list[tuple[int, int]]] = {}
        for p in range(self.points):
            for t in range(point["taps"]):
                uses.setdefault(p * point["stride"] + t * point["dilation"], []).append((p, t))
        start = self._input(point, self.at[3], 0)
        values = {offset: self._load(row, start + offset, valid) for offset in sorted(uses)}
        steps = self.c["w"]["taps"]
        for p, tap in meets:
            factors = [self._weight(weight + tap * steps[1] + t * steps[2]) for t in range(point["taps"])]
            for offset in sorted(uses):
                for q, t in uses[offset]:
                    self._products(p * self.points + q, values[offset], factors[t])

    def _load(self, row: Any, at: Any, valid: Any) -> Any:
        """The channels of an input point, widened, without their zero point; zeros where it lies outside."""
        k, x, point = self.k, self.kernel.first[0], self.axes[2]
        lanes = self.lanes if self.c["multiplier"] == 1 else 1
        held = k.array(self.c["dtype"], lanes, "x")
        inside = point["border"] or point["extent"] % self.points != 0
        here = both(valid, within(at, point["size"]) if inside else True)
        zero, pad = self._constant(self.c["zero"]), padding(k, self.c["zero"], self.c["dtype"])
        k.run(f"nv_read<{lanes}>", (held, 0), (x, row + at * point["step"]), number(here), pad)
        values = [k.load(held, i) - zero if self.c["zero"] else k.load(held, i) for i in range(lanes)]
        return values if lanes == self.lanes else values * self.lanes

    def _weight(self, at: Any) -> Any:
        k, w = self.k, self.kernel.first[1]
        held = k.array(self.c["dtype"], self.lanes, "w")
        if self.c["w"]["channel"] == 1:
            k.run(f"nv_read<{self.lanes}>", (held, 0), (w, at))
        else:
            for i in range(self.lanes):
                k.run("nv_read<1>", (held, i), (w, at + i * self.c["w"]["channel"]))
        return [k.load(held, i) for i in range(self.lanes)]

    def _products(self, at: int, values: list[Any], factors: list[Any]) -> None:
        for i, (value, factor) in enumerate(zip(values, factors, strict=True)):
            place = at * self.lanes + i
            self.k.store(self.acc, place, self.k.load(self.acc, place) + value * factor)

    def _constant(self, value: int) -> Any:
        return constant(value, self.c["dtype"])

    # -- results ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        k, (slab, line, point) = self.k, self.axes
        z = placed(slab, self.at[1])
        for p in range(self.lines):
            for q in range(self.points):
                y, x = self.at[2] + p, self.at[3] + q
                inside = both(
                    y < line["extent"] if p and line["extent"] % self.lines else True,
                    x < point["extent"] if q and point["extent"] % self.points else True,
                )
                with k.when(inside):
                    first = (p * self.points + q) * self.lanes
                    place = [self.at[0], z, placed(line, y), placed(point, x)]
                    self.kernel.finish(place, self.channel, (self.acc, first))
