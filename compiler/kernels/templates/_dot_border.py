"""Writes the copy of the part of A that a block of lines reads, with its border, to the worker's scratch.

Then every tile is an inner one, and the bytes of neighbouring points are one run. Points lie ``[slab][line][point]
[pixel bytes]``; what is outside A is its zero point; bytes of a pixel behind its channels are 0.
"""

from __future__ import annotations

from typing import Any

from ._numbers import number
from ._tile import pieces


def emit(k: Any, of: Any, outer: Any, block: Any) -> None:
    """``of`` is the ``Dot`` whose scratch is filled, ``outer`` and ``block`` the indices of its dimensions."""
    _Border(k, of).run(outer, block)


class _Border:
    def __init__(self, k: Any, of: Any) -> None:
        self.k, self.of, self.data = k, of, of.border
        self.slab, self.line, self.point = (self.data[n] for n in ("slab", "line", "point"))
        self.pixel = self.data["pixel"]
        self.dtype = of.config["a"]["as"]
        self.bytes = k.machine["lanes"] * 4

    def run(self, outer: Any, block: Any) -> None:
        k, of = self.k, self.of
        base = sum(
            (i * o["a"] for i, o in zip(outer, of.outer, strict=True) if o["axis"] != 2 or not self.slab_axis()),
            start=0,
        )
        lines, size = self.line, of.config["block"] * of.config["tile"][0]
        top = block * (size * lines["stride"]) - lines["pad"]
        with k.loop(self.slab["count"]) as z:
            slab = self._slab(outer) + z * self.slab["dilation"]
            with k.loop(lines["count"]) as y:
                to = (z * lines["count"] + y) * (self.point["count"] * self.pixel)
                inside = self._inside(slab, self.slab, top + y, lines)
                at = base + slab * self.slab["step"] + (top + y) * lines["step"]
                with k.when(inside):
                    self._row(at, to)
                if inside is not True:
                    with k.when(_not(inside)):
                        self._fill(to, self.point["count"])

    def slab_axis(self) -> bool:
        return bool(self.of.config["slab"])

    def _slab(self, outer: Any) -> Any:
        return outer[-1] * self.slab["stride"] - self.slab["pad"] if self.slab_axis() else -self.slab["pad"]

    def _inside(self, slab: Any, slabs: dict[str, Any], line: Any, lines: dict[str, Any]) -> Any:
        from tvm import tirx

        tests = [tirx.And(at >= 0, at < axis["size"]) for at, axis in ((slab, slabs), (line, lines)) if axis["border"]]
        return True if not tests else tests[0] if len(tests) == 1 else tirx.And(*tests)

    def _row(self, at: Any, to: Any) -> None:
        """One line of A between its borders."""
        left, inside = self.point["left"], self.point["inside"]
        self._fill(to, left)
        if inside:
            getattr(self, "_" + self.data["kind"])(at + self.point["from"] * self.point["step"], to + left * self.pixel)
        self._fill(to + (left + inside) * self.pixel, self.point["count"] - left - inside)

    def _fill(self, to: Any, points: int) -> None:
        """Points outside."""
        from ..functions import cast
        from ..tir import constant, reinterpret, splat

        if points == 0:
            return
        zero, channels = self.data["zero"], self.data["channels"]
        if channels == self.pixel or zero == 0:  # (LLVM code of a reinterpreted 0 cannot be made of a vector)
            byte = cast(number(self.k, self.of.numbers, zero), self.dtype)
            self._spread(to, points * self.pixel, lambda lanes: splat(byte, lanes))
            return
        bits = sum((zero & 255) << 8 * c for c in range(channels))
        kind = f"int{8 * self.pixel}"
        word = constant(bits - (1 << 8 * self.pixel) if bits >> (8 * self.pixel - 1) else bits, kind)
        with self.k.loop(points) as p:
            self.k.store(self.of.source, to + p * self.pixel, reinterpret(f"{self.dtype}x{self.pixel}", word))

    def _spread(self, to: Any, count: int, value: Any) -> None:
        """Stores ``count`` bytes that are all alike."""
        k = self.k
        whole = count // self.bytes
        with k.loop(whole) as i:
            k.store(self.of.source, to + i * self.bytes, value(self.bytes))
        for at, lanes in pieces(count % self.bytes):
            k.store(self.of.source, to + whole * self.bytes + at, value(lanes))

    def _taken(self, value: Any) -> Any:
        """Bytes of A as the instruction wants them."""
        from ..tir import constant, lanes_of, reinterpreted

        lanes = lanes_of(value)
        kind = self.dtype if lanes == 1 else f"{self.dtype}x{lanes}"
        if not self.of.config["a"]["flip"]:
            return value
        return reinterpreted(value, kind) ^ constant(0x80 if self.dtype == "uint8" else -0x80, self.dtype, lanes)

    # -- kinds of lines ----------------------------------------------------------------------------------------------

    def _copy(self, at: Any, to: Any, count: int) -> None:
        """``count`` bytes side by side."""
        k = self.k
        whole = count // self.bytes
        with k.loop(whole) as i:
            k.store(
                self.of.source, to + i * self.bytes, self._taken(k.load(self.of.a, at + i * self.bytes, self.bytes))
            )
        for first, lanes in pieces(count % self.bytes):
            first = whole * self.bytes + first
            k.store(self.of.source, to + first, self._taken(k.load(self.of.a, at + first, lanes)))

    def _run(self, at: Any, to: Any) -> None:
        """Channels last, points side by side."""
        self._copy(at, to, self.point["inside"] * self.pixel)

    def _points(self, at: Any, to: Any) -> None:
        """Channels side by side, points apart."""
        with self.k.loop(self.point["inside"]) as p:
            self._copy(at + p * self.point["step"], to + p * self.pixel, self.pixel)

    def _planes(self, at: Any, to: Any) -> None:
        """Up to four channels apart, points side by side: vectors of points are put together bit by bit."""
        k, lanes = self.k, self.k.machine["lanes"]
        if self.point["step"] != 1:
            return self._scattered(at, to)
        whole = self.point["inside"] // lanes
        with k.loop(whole) as i:
            self._together(at + i * lanes, to + i * (lanes * self.pixel), lanes)
        for first, n in pieces(self.point["inside"] % lanes):
            first = whole * lanes + first
            self._together(at + first, to + first * self.pixel, n)

    def _together(self, at: Any, to: Any, lanes: int) -> None:
        from ..functions import cast
        from ..tir import as_dtype, constant, reinterpreted

        k = self.k
        kind = f"uint{8 * self.pixel}"
        whole: Any = None
        for c in range(self.data["channels"]):
            found = self._taken(k.load(self.of.a, at + c * self.data["step"], lanes))
            byte = cast(reinterpreted(found, as_dtype("uint8", lanes)), kind)
            whole = byte if whole is None else whole | (byte << constant(8 * c, kind, lanes))
        k.store(self.of.source, to, reinterpreted(whole, f"{self.dtype}x{lanes * self.pixel}"))

    def _scattered(self, at: Any, to: Any) -> None:
        """Any strides, byte by byte."""
        from ..tir import constant

        with self.k.loop(self.point["inside"]) as p, self.k.loop(self.data["channels"]) as c:
            value = self.k.load(self.of.a, at + p * self.point["step"] + c * self.data["step"])
            self.k.store(self.of.source, to + p * self.pixel + c, self._taken(value))
        for c in range(self.data["channels"], self.pixel):
            with self.k.loop(self.point["inside"]) as p:
                self.k.store(self.of.source, to + p * self.pixel + c, constant(0, self.dtype))


def _not(condition: Any) -> Any:
    from tvm import tirx

    return tirx.Not(condition)
