"""Writes the kernels of ``cuda_conv_grad_weight`` that are no matrix product: depthwise sums, and the sum of parts."""

from __future__ import annotations

import math
from typing import Any

from ._cuda_grad_parts import Data, Ending, div, every, indices, least, leaves, mod


def emit(k: Any, config: Data) -> None:
    """Depthwise. Arguments: x, g, scratch of sums (a part after the other, each by channel and tap). Threads of a block
    are ``rows`` points by ``lanes`` channels; their sums meet in shared memory in a fixed order."""
    from ..tir import constant

    x = k.arg("x", config["x"][0], config["x"][1])
    g = k.arg("g", config["g"][0], config["g"][1])
    scratch = k.arg("sums", "float32", config["parts"] * config["outputs"] * math.prod(config["kernel"]))
    rows, lanes, taps = config["rows"], config["lanes"], config["taps"]
    with k.grid(math.prod(config["dims"]), rows * lanes) as (block, thread):
        work = _Channels(k, config, block, thread)
        sums = k.array("float32", taps, "sums")
        for t in range(taps):
            k.store(sums, t, constant(0, "float32"))
        shared = k.shared("float32", rows * taps * lanes)
        first = k.bind(work.part * (config["each"] * rows) + work.row, "first")
        with k.loop(config["each"]) as step:
            work.point(k.bind(first + step * rows, "number"), x, g, sums)
        for t in range(taps):
            k.store(shared, (work.row * taps + t) * lanes + work.lane, k.load(sums, t))
        k.barrier()
        work.join(shared, scratch)


class _Channels:
    """The channel, points and taps of a thread."""

    def __init__(self, k: Any, config: Data, block: Any, thread: Any) -> None:
        self.k, self.config = k, config
        _, across, chunks = config["dims"]
        self.lane = k.bind(mod(thread, config["lanes"]), "lane")
        self.row = k.bind(div(thread, config["lanes"]), "row")
        self.first = k.bind(mod(block, chunks) * config["taps"], "tap")
        self.channel = k.bind(mod(div(block, chunks), across) * config["lanes"] + self.lane, "channel")
        self.part = k.bind(div(block, chunks * across), "part")
        self.taps = math.prod(config["kernel"])
        self.own = k.bind(self.channel * config["g"][2][1], "own")
        self.source = k.bind(div(self.channel, config["each_group"]) * config["x"][2][1], "source")
        self.shifts = [self._shift(self.first + t) for t in range(config["taps"])]

    def _shift(self, tap: Any) -> list[Any]:
        """How far a tap lies from a window's corner."""
        steps = zip(indices(tap, self.config["kernel"]), self.config["dilations"], strict=True)
        return [index * d if isinstance(index, int) else self.k.bind(index * d, "shift") for index, d in steps]

    def point(self, number: Any, x: Any, g: Any, sums: Any) -> None:
        """Takes in a point of g, if there is such a one."""
        from tvm import tirx

        from ..functions import cast

        k, config = self.k, self.config
        points = math.prod(config["out"])
        there = tirx.all(number < config["batch"] * points, self.channel < config["outputs"])
        with k.when(there):
            image = div(number, points)
            place = [k.bind(i, "place") for i in indices(mod(number, points), config["out"])]
            at = self.own + image * config["g"][2][0]
            grad = k.bind(cast(k.load(g, at + _along(place, config["g"][3])), "float32"), "grad")
            corner = [p * s - pad for p, s, pad in zip(place, config["strides"], config["pads"], strict=True)]
            base = self.source + image * config["x"][2][0] + _along(corner, config["x"][3])
            base = k.bind(base, "base")
            for t, shifts in enumerate(self.shifts):
                with k.when(self._met(t, corner)):
                    value = cast(k.load(x, base + _along(shifts, config["x"][3])), "float32")
                    k.store(sums, t, k.fma(value, grad, k.load(sums, t)))

    def _met(self, t: int, corner: list[Any]) -> Any:
        """Whether the thread has such a tap, and the window's lies on x."""
        config = self.config
        valid = [self.first + t < self.taps] if self.taps % config["taps"] else []
        for axis in range(3):
            if leaves(config, axis):
                there = corner[axis] + self.shifts[t][axis]
                valid += [there >= 0, there < config["size"][axis]]
        return every(valid)

    def join(self, shared: Any, scratch: Any) -> None:
        """The sums of the block's points."""
        from tvm import tirx

        k, config = self.k, self.config
        rows, taps, lanes = config["rows"], config["taps"], config["lanes"]
        with k.loop(-(-taps // rows)) as i:
            tap = k.bind(self.row + i * rows, "tap")
            inside = tirx.all(tap < taps, self.first + tap < self.taps, self.channel < config["outputs"])
            with k.when(inside):
                total = _joined(k, rows, lambda r: k.load(shared, (r * taps + tap) * lanes + self.lane))
                place = (self.part * config["outputs"] + self.channel) * self.taps + self.first + tap
                k.store(scratch, place, total)


def _along(place: list[Any], steps: list[int]) -> Any:
    return sum((p * s for p, s in zip(place, steps, strict=True)), start=0)


def _joined(k: Any, count: int, value: Any) -> Any:
    """Sums in a fixed tree."""
    return k.fold([value(i) for i in range(count)], lambda a, b: a + b)


def emit_sum(k: Any, config: Data) -> None:
    """Arguments: scratch of sums, what the end reads, the outputs. ``lanes`` threads share the parts of a weight."""
    from ..tir import constant

    parts, size, lanes, weights = config["parts"], config["size"], config["lanes"], config["weights"]
    scratch = k.arg("sums", "float32", parts * size)
    ending = Ending(k, config, config["dims"])
    with k.grid(-(-size // weights), weights * lanes) as (block, thread):
        own, lane = k.bind(mod(thread, weights), "own"), k.bind(div(thread, weights), "lane")
        number = k.bind(block * weights + own, "number")
        total = k.register("float32", 1, "total")
        total.set(constant(0, "float32"))
        at = least(number, size - 1)
        with k.loop(-(-parts // lanes)) as i:
            part = lane + i * lanes
            with k.when(part < parts if parts % lanes else True):
                total.set(total.get() + k.load(scratch, part * size + at))
        if lanes > 1:
            shared = k.shared("float32", lanes * weights)
            k.store(shared, thread, total.get())
            k.barrier()
        with k.when(number < size if lanes == 1 else _both(lane, number, size)):
            value = total.get() if lanes == 1 else _joined(k, lanes, lambda j: k.load(shared, own + j * weights))
            ending.put(number, value)


def _both(lane: Any, number: Any, size: int) -> Any:
    from tvm import tirx

    return tirx.all(lane < 1, number < size)
