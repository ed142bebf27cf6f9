"""Writes the kernels of max_pool's gradient. See ``max_pool_grad`` for what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._boxes import Cursor, affine, over_boxes
from ._nest import Data, walk


def _number(attrs: Data, tap: Sequence[Any]) -> Any:
    """A kernel element's number."""
    flat: Any = 0
    for t, k in zip(tap, attrs["kernel_shape"], strict=True):
        flat = flat * k + t
    return flat


def _element(cursor: Cursor, origin: list[Any], tap: Sequence[Any], lanes: int) -> Any:
    """The element of x at a kernel element of the window whose first one is at ``origin``."""
    moved = [(b + t * d, s) for (b, s), t, d in zip(origin[2:], tap, cursor.attrs["dilations"], strict=True)]
    return cursor.k.bind(cursor.value(0, [*origin[:2], *moved], lanes))


def emit_disjoint(k: Any, config: Data) -> None:
    """Arguments: the inputs, the outputs."""
    from ..tir import constant, select

    part: list[Any] = [None]
    cursor = Cursor(k, config, lambda cursor, index, lanes: part[0])
    dtype = cursor.dtype(0)

    def fill(row: Data, task: Any) -> None:
        data = row["data"]

        def put(coords: list[Any], lanes: int) -> None:
            cursor.ev.begin()
            cursor.ev.store_all(cursor.outputs, coords, lanes)

        def body(index: list[Any], lanes: int) -> None:
            zero = constant(0, dtype, lanes)
            origin = [affine(p, index) for p in data["place"]]
            if not data["taps"]:
                part[0] = zero
                put(origin, lanes)
                return
            cursor.ev.begin()
            values = [_element(cursor, origin, tap, lanes) for tap in data["taps"]]
            rest = k.bind(cursor.value(1, [affine(p, index) for p in data["window"]], lanes))
            best, above = values[0], []
            for value in values[1:]:
                above.append((value, best))
                best = k.bind(select(value > best, value, best))
            found = []
            for value, before in reversed(above):
                found.append(k.bind(select(value > before, rest, zero)))
                rest = k.bind(select(value > before, zero, rest))
            for tap, share in zip(data["taps"], [rest, *reversed(found)], strict=True):
                part[0] = share
                put([*origin[:2], *((b + t, s) for (b, s), t in zip(origin[2:], tap, strict=True))], lanes)

        walk(k, row["nest"], task, body)

    over_boxes(k, config, fill)


class _Choice:
    """The largest element so far and its number; ``known``: the first element is on x for sure."""

    def __init__(self, cursor: Cursor, lanes: int, known: bool) -> None:
        from ..tir import constant

        self.k, self.lanes, self.known, self.empty = cursor.k, lanes, known, True
        self.best = cursor.k.register(cursor.dtype(0), lanes, "best")
        self.where = cursor.k.register("int32", lanes, "where")
        self.best.set(constant(0, cursor.dtype(0), lanes))
        self.where.set(constant(-1, "int32", lanes))

    def add(self, value: Any, number: Any) -> None:
        from tvm import tirx

        from ..tir import constant, select, splat

        number = constant(number, "int32", self.lanes) if isinstance(number, int) else splat(number, self.lanes)
        better = value > self.best.get()
        if not self.known:
            better = tirx.Or(better, self.where.get() < constant(0, "int32", self.lanes))
        first, self.empty = self.known and self.empty, False
        chosen = number if first else self.k.bind(select(better, number, self.where.get()))
        self.best.set(value if first else select(better, value, self.best.get()))
        self.where.set(chosen)


def emit_find(k: Any, config: Data) -> None:
    """Arguments: the inputs, the scratch."""
    cursor = Cursor(k, config, lambda cursor, index, lanes: None)
    where = k.arg("where", "int32", config["where"]["size"])
    attrs = config["attrs"]

    def fill(row: Data, task: Any) -> None:
        data = row["data"]

        def body(index: list[Any], lanes: int) -> None:
            cursor.ev.begin()
            choice = _Choice(cursor, lanes, data["taps"] is not None)
            if data["taps"] is None:
                window = index
                starts = zip(index[2:], attrs["strides"], attrs["pads"], strict=False)
                origin = [*index[:2], *((b * s - p, 0) for (b, _), s, p in starts)]
                _loops(
                    k,
                    attrs,
                    lambda axis, t: _on_x(config, axis, origin, t, attrs),
                    [],
                    lambda taps: choice.add(_element(cursor, origin, taps, lanes), _number(attrs, taps)),
                )
            else:
                window = [affine(p, index) for p in data["window"]]
                origin = [affine(p, index) for p in data["place"]]
                for tap in data["taps"]:
                    choice.add(_element(cursor, origin, tap, lanes), _number(attrs, tap))
            base, step = cursor.ev.address(config["where"]["strides"], window)
            k.store(where, base, choice.where.get(), step or 1)

        walk(k, row["nest"], task, body)

    over_boxes(k, config, fill)


def _on_x(config: Data, axis: int, origin: list[Any], tap: Any, attrs: Data) -> Any:
    """Whether a kernel element of a window lies on x."""
    from tvm import tirx

    at = origin[2 + axis][0] + tap * attrs["dilations"][axis]
    if isinstance(at, int):
        return 0 <= at < config["sizes"][0][2 + axis]
    return tirx.all(at >= 0, at < config["sizes"][0][2 + axis])


def _window(config: Data, axis: int, index: list[Any], tap: Any) -> tuple[Any, Any]:
    """The window in which an element of x is the kernel's element ``tap``: times the stride, and its number."""
    from tvm import tirx

    attrs = config["attrs"]
    at = index[2 + axis][0] + attrs["pads"][axis] - tap * attrs["dilations"][axis]
    at = tirx.IntImm("int32", at) if isinstance(at, int) else at
    return at, tirx.floordiv(at, attrs["strides"][axis])


def _met(config: Data, axis: int, index: list[Any], tap: Any) -> Any:
    """Whether there is such a window."""
    from tvm import tirx

    at, stride = _window(config, axis, index, tap)[0], config["attrs"]["strides"][axis]
    return tirx.all(tirx.EQ(tirx.floormod(at, stride), 0), at >= 0, at < config["sizes"][1][2 + axis] * stride)


def _loops(
    k: Any, attrs: Data, counts: Callable[[int, Any], Any], taps: list[Any], body: Callable[[list[Any]], None]
) -> None:
    """Loops over all kernel elements; ``counts(axis, element)`` is the condition."""
    axis = len(taps)
    if axis == len(attrs["kernel_shape"]):
        body(taps)
        return
    with k.loop(attrs["kernel_shape"][axis]) as t, k.when(counts(axis, t)):
        _loops(k, attrs, counts, [*taps, t], body)


def emit_sum(k: Any, config: Data) -> None:
    """Arguments: the inputs, the outputs, the scratch."""
    from tvm import tirx

    from ..tir import constant, select, splat

    part: list[Any] = [None]
    cursor = Cursor(k, config, lambda cursor, index, lanes: part[0])
    where = k.arg("where", "int32", config["where"]["size"])
    attrs, dtype = config["attrs"], cursor.dtype(0)

    def fill(row: Data, task: Any) -> None:
        data = row["data"]

        def body(index: list[Any], lanes: int) -> None:
            cursor.ev.begin()
            total = k.register(dtype, lanes, "total")
            total.set(constant(0, dtype, lanes))

            def take(tap: Sequence[Any], window: list[Any]) -> None:
                base, step = cursor.ev.address(config["where"]["strides"], window)
                number = _number(attrs, tap)
                number = constant(number, "int32", lanes) if isinstance(number, int) else splat(number, lanes)
                mine = tirx.EQ(k.load(where, base, lanes, step or 1), number)
                share = select(mine, cursor.value(1, window, lanes), constant(0, dtype, lanes))
                total.set(total.get() + share)

            if data["taps"] is None:
                _loops(
                    k,
                    attrs,
                    lambda axis, t: _met(config, axis, index, t),
                    [],
                    lambda taps: take(
                        taps, [*index[:2], *((_window(config, a, index, t)[1], 0) for a, t in enumerate(taps))]
                    ),
                )
            else:
                for taps in data["taps"]:
                    at = [(b + window, s) for (b, s), (_, window) in zip(index[2:], taps, strict=True)]
                    take([t for t, _ in taps], [*index[:2], *at])
            part[0] = total.get()
            coords = [affine(p, index) for p in data["place"]]
            cursor.ev.begin()
            cursor.ev.store_all(cursor.outputs, coords, lanes)

        walk(k, row["nest"], task, body)

    over_boxes(k, config, fill)
