"""Widens the inputs of a tile of ``_dsp`` into pairs of int16.

What one point reads are lines of runs of bytes. Runs of whole words are widened where they lie; others are first copied
side by side. What lies outside the input is its zero point.
"""

from __future__ import annotations

from typing import Any

from . import _dsp_asm


def emit(k: Any, of: Any, n: Any, first: Any) -> None:
    """The inputs of the points from ``first`` on."""
    source = of.config["source"]
    base = k.bind(n * of.config["batch"]["a"] + source["base"], "base")
    plain = source["kind"] == "words" and not source["border"] and source["lines"] == source["runs"] == 1
    with k.loop(of.points if plain else of.count(of.points), "unrolled" if plain else "serial", name="p") as p:
        _point(k, of, base, of.that_is(first, p), p)


def _point(k: Any, of: Any, base: Any, at: Any, p: Any) -> None:
    """One point: lines of runs of taps."""
    config = of.config
    source, line, point = config["source"], config["line"], config["point"]
    y, x = of.line_and_point(at)
    with k.loop(of.count(source["lines"]), name="ky") as ky:
        iy = y * line["stride"] - line["pad"] + ky * line["dilation"]
        with k.loop(of.count(source["runs"]), name="kx") as kx:
            ix = x * point["stride"] - point["pad"] + kx * point["dilation"]
            start = base + (y * line["stride"] + ky * line["dilation"]) * line["step"]
            start = start + (x * point["stride"] + kx * point["dilation"]) * point["step"]
            to = (ky * source["runs"] + kx) * source["run"]
            if source["border"]:
                _bordered(k, of, (iy, ix), start, to, p)
            else:
                _run(k, of, start, to, source["run"], p)
    if of.bytes is not None:
        _widened(k, of, (of.bytes, 0), 0, (of.bytes, of.config["depth"]), p)


def _bordered(k: Any, of: Any, at: tuple[Any, Any], start: Any, to: Any, p: Any) -> None:
    """A run of taps (``taps`` of ``tap`` bytes each) of which some may lie outside."""
    from tvm import tirx

    from ..tir import constant, maximum, minimum, select

    source, (iy, ix) = of.config["source"], at
    height, width = (of.config[name]["size"] for name in ("line", "point"))
    taps, tap = source["taps"], source["tap"]

    def number(value: int) -> Any:
        return constant(value, "int32")

    left = minimum(maximum(0 - ix, number(0)), number(taps))
    end = maximum(minimum(width - ix, number(taps)), left)
    if source["border"] == "both":
        inside = tirx.all(iy >= 0, iy < height)
        left, end = (select(inside, v, number(taps)) for v in (k.bind(left, "left"), k.bind(end, "end")))
    left, end = k.bind(left, "left"), k.bind(end, "end")
    _fill(k, of, to, left * tap, p)
    with k.when(end > left):
        _run(k, of, start + left * (tap * source["unit"]), to + left * tap, (end - left) * tap, p)
    _fill(k, of, to + end * tap, (number(taps) - end) * tap, p)


def _run(k: Any, of: Any, start: Any, to: Any, count: Any, p: Any) -> None:
    """``count`` bytes, at least one."""
    unit = of.config["source"]["unit"]
    if of.bytes is not None:
        start, to = k.bind(start, "from"), k.bind(to, "to")
        with k.loop(of.count(count), name="byte") as i:
            k.store(of.bytes, to + i, k.load(of.a, start + i * unit))
        return
    _widened(k, of, (of.a, start), to, (of.a, start + count), p)


def _widened(k: Any, of: Any, start: Any, to: Any, end: Any, p: Any) -> None:
    """Bytes from ``start`` to ``end``, as those from ``to`` on of a point."""
    place = (of.scratch, to // 2 * of.points + p)
    k.helper(*_dsp_asm.widen(of.config["a"]["dtype"], of.points), start, place, end)


def _fill(k: Any, of: Any, to: Any, count: Any, p: Any) -> None:
    """``count`` zero points."""
    from ..tir import constant

    zero = of.config["a"]["zero"]
    if of.bytes is not None:
        with k.loop(of.count(count), name="pad") as i:
            k.store(of.bytes, to + i, constant(zero, of.config["a"]["dtype"]))
        return
    word = (zero & 0xFFFF) | (zero & 0xFFFF) << 16
    with k.loop(of.count(count // 2), name="pad") as i:
        k.store(of.scratch, (to // 2 + i) * of.points + p, constant(word - (word >> 31 << 32), "int32"))
