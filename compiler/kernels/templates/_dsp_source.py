"""Widens the inputs of a tile of ``_dsp`` into pairs of int16.

What one point reads are lines of runs of bytes. Runs of whole words are widened where they lie; others are first copied
side by side. What lies outside the input is its zero point.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """One point: lines of runs of taps, all of them inside or not."""
    from tvm import tirx

    config = of.config
    source, line, point = config["source"], config["line"], config["point"]
    y, x = of.line_and_point(at)
    iy, ix = (k.bind(at * axis["stride"] - axis["pad"], "i") for at, axis in ((y, line), (x, point)))
    start = k.bind(base + y * line["a"] + x * point["a"], "start")
    if not source["border"]:
        _taps(k, of, start, lambda ky, kx, begin, to: _run(k, of, begin, to, source["run"], p, source["run"]))
    else:
        within = [tirx.all(i >= 0, i <= a["size"] - a["reach"]) for i, a in ((iy, line), (ix, point))]
        inside = k.bind(tirx.Select(tirx.all(*within), tirx.const(1, "int32"), tirx.const(0, "int32")), "inside")
        with k.when(inside == 1):
            _taps(k, of, start, lambda ky, kx, begin, to: _run(k, of, begin, to, source["run"], p, source["run"]))
        with k.when(inside == 0):
            edge = (iy, ix)
            _taps(k, of, start, lambda ky, kx, begin, to: _bordered(k, of, edge, (ky, kx), begin, to, p))
    if of.bytes is not None:
        depth = config["depth"]
        _widened(k, of, (of.bytes, 0), 0, (of.bytes, depth), p, depth)


def _taps(k: Any, of: Any, start: Any, run: Callable[[Any, Any, Any, Any], None]) -> None:
    """``run(line, tap, where it lies, where it belongs)`` for each run."""
    source, line, point = (of.config[name] for name in ("source", "line", "point"))
    with k.loop(of.count(source["lines"]), name="ky") as ky, k.loop(of.count(source["runs"]), name="kx") as kx:
        begin = start + ky * (line["dilation"] * line["step"]) + kx * (point["dilation"] * point["step"])
        run(ky, kx, begin, (ky * source["runs"] + kx) * source["run"])


def _bordered(k: Any, of: Any, at: tuple[Any, Any], tap: tuple[Any, Any], start: Any, to: Any, p: Any) -> None:
    """A run of taps (``taps`` of ``tap`` bytes each) of which some may lie outside."""
    from tvm import tirx

    from ..tir import constant, maximum, minimum, select

    source, line, point = (of.config[name] for name in ("source", "line", "point"))
    iy, ix = (i + t * axis["dilation"] for i, t, axis in zip(at, tap, (line, point), strict=True))
    height, width, taps, size = line["size"], point["size"], source["taps"], source["tap"]

    def number(value: int) -> Any:
        return constant(value, "int32")

    left = minimum(maximum(0 - ix, number(0)), number(taps))
    end = maximum(minimum(width - ix, number(taps)), left)
    if source["border"] == "both":
        inside = tirx.all(iy >= 0, iy < height)
        left, end = (select(inside, v, number(taps)) for v in (k.bind(left, "left"), k.bind(end, "end")))
    left, end = k.bind(left, "left"), k.bind(end, "end")
    _fill(k, of, to, left * size, p)
    with k.when(end > left):
        _run(k, of, start + left * (size * source["unit"]), to + left * size, (end - left) * size, p, size)
    _fill(k, of, to + end * size, (number(taps) - end) * size, p)


def _run(k: Any, of: Any, start: Any, to: Any, count: Any, p: Any, unit: int) -> None:
    """``count`` bytes, at least one and a multiple of ``unit``."""
    apart = of.config["source"]["unit"]
    if of.bytes is None:
        _widened(k, of, (of.a, start), to, (of.a, start + count), p, unit)
    elif apart == 1 and unit >= 4:
        k.helper(*_dsp_asm.copy(whole=unit % 4 == 0), (of.a, start), (of.bytes, to), (of.a, start + count))
    else:
        start, to = k.bind(start, "from"), k.bind(to, "to")
        with k.loop(of.count(count), name="byte") as i:
            k.store(of.bytes, to + i, k.load(of.a, start + i * apart))


def _widened(k: Any, of: Any, start: Any, to: Any, end: Any, p: Any, unit: int) -> None:
    """Bytes from ``start`` to ``end``, a multiple of ``unit``, as those from ``to`` on of a point."""
    place = (of.scratch, to // 2 * of.points + p)
    k.helper(*_dsp_asm.widen(of.config["a"]["dtype"], of.points, _dsp_asm.round_of(unit)), start, place, end)


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
