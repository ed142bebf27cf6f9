"""Writes the kernels of ``cuda_max_pool_grad``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._cuda_grad_parts import Data, every
from ._cuda_walk import over

_WRITTEN = 9  # kernel elements that are written out; more are loops


def emit(k: Any, config: Data) -> None:
    """Windows that share no element. Arguments: the inputs, the outputs."""
    from tvm import tirx

    from ..tir import constant, select, splat

    pool = _Pool(k, config)
    attrs = config["attrs"]

    def run(coords: list[Any], lanes: int) -> None:
        pool.begin()
        window, inside, own = [], [], 0
        for axis, ((at, _), stride, pad, extent) in enumerate(
            zip(coords[2:], attrs["strides"], attrs["pads"], attrs["kernel_shape"], strict=False)
        ):
            index = k.bind(tirx.truncdiv(_expr(at + pad), stride), "window")
            tap = k.bind(at + pad - index * stride, "tap")
            inside += [index < config["sizes"][1][2 + axis]] + ([tap < extent] if extent < stride else [])
            window.append((index, 0))
            own = own * extent + tap
        share = k.register(pool.dtype, lanes, "share")
        share.set(constant(0, pool.dtype, lanes))
        with k.when(every(inside)), pool.ev.apart():
            found = pool.first_largest([*coords[:2], *window], lanes)
            grad = splat(pool.value(1, [*coords[:2], *window], lanes), lanes)
            share.set(select(tirx.EQ(found, splat(_expr(own), lanes)), grad, constant(0, pool.dtype, lanes)))
        pool.store(coords, lanes, share.get())

    pool.walk(run)


def emit_find(k: Any, config: Data) -> None:
    """The number of each window's first largest element. Arguments: the inputs, the scratch."""
    pool = _Pool(k, config)
    strides, size = config["where"]
    where = k.arg("where", "int32", size)

    def run(coords: list[Any], lanes: int) -> None:
        pool.begin()
        base, step = pool.ev.address(strides, coords)
        k.store(where, base, pool.first_largest(coords, lanes), step or 1)

    pool.walk(run)


def emit_sum(k: Any, config: Data) -> None:
    """Every element's windows that chose it. Arguments: the inputs, the outputs, the scratch."""
    from tvm import tirx

    from ..tir import constant, select, splat

    pool = _Pool(k, config)
    strides, size = config["where"]
    where = k.arg("where", "int32", size)
    attrs = config["attrs"]

    def run(coords: list[Any], lanes: int) -> None:
        pool.begin()
        total = k.register(pool.dtype, lanes, "total")
        total.set(constant(0, pool.dtype, lanes))

        def take(taps: Sequence[Any]) -> None:
            window, met = [], []
            for axis, (t, (at, _)) in enumerate(zip(taps, coords[2:], strict=True)):
                stride = attrs["strides"][axis]
                corner = k.bind(_expr(at + attrs["pads"][axis] - t * attrs["dilations"][axis]), "corner")
                index = k.bind(tirx.truncdiv(corner, stride), "window")
                met += [corner >= 0, index < config["sizes"][1][2 + axis]]
                met += [tirx.EQ(index * stride, corner)] if stride > 1 else []
                window.append((index, 0))
            with k.when(every(met)), pool.ev.apart():
                place = [*coords[:2], *window]
                base, step = pool.ev.address(strides, place)
                chosen = tirx.EQ(k.load(where, base, lanes, step or 1), splat(_expr(pool.number(taps)), lanes))
                grad = splat(pool.value(1, place, lanes), lanes)
                total.set(total.get() + select(chosen, grad, constant(0, pool.dtype, lanes)))

        pool.taps(take)
        pool.store(coords, lanes, total.get())

    pool.walk(run)


class _Pool:
    """The arguments of a kernel, and what it asks of windows."""

    def __init__(self, k: Any, config: Data) -> None:
        from ..evaluate import Evaluator

        self.k, self.config, self.attrs = k, config, config["attrs"]
        program = config["program"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.share: Any = None
        self.ev = Evaluator(k, program, inputs, anchor=lambda *_: self.share)
        self.args: list[int] = next(n["args"] for n in program["nodes"] if n["op"] == "anchor")
        dtype = self.ev.dtype(self.args[0])
        self.dtype = "float64" if dtype == "float64" else "float32"

    def begin(self) -> None:
        self.ev.begin()

    def walk(self, run: Callable[[list[Any], int], None]) -> None:
        nest = self.config["nest"]
        with self.k.grid(nest["blocks"], nest["threads"]) as (block, thread):
            over(self.k, nest, block, thread, run)

    def value(self, arg: int, coords: list[Any], lanes: int) -> Any:
        return self.ev.value(self.args[arg], coords, lanes)

    def store(self, coords: list[Any], lanes: int, share: Any) -> None:
        """Every result there, of an element that got ``share``."""
        self.share = share
        self.ev.store_all(self.outputs, coords, lanes)

    def number(self, taps: Sequence[Any]) -> Any:
        """A kernel element's number."""
        flat: Any = 0
        for t, extent in zip(taps, self.attrs["kernel_shape"], strict=True):
            flat = flat * extent + t
        return flat

    def taps(self, body: Callable[[list[Any]], None]) -> None:
        """All kernel elements, in order."""
        kernel = self.attrs["kernel_shape"]
        count = 1
        for extent in kernel:
            count *= extent
        self._taps(body, kernel, [], count <= _WRITTEN)

    def _taps(self, body: Callable[[list[Any]], None], kernel: list[int], taken: list[Any], written: bool) -> None:
        if not kernel:
            body(taken)
        elif written:
            for t in range(kernel[0]):
                self._taps(body, kernel[1:], [*taken, t], written)
        else:
            with self.k.loop(kernel[0]) as t:
                self._taps(body, kernel[1:], [*taken, t], written)

    def first_largest(self, window: list[Any], lanes: int) -> Any:
        """The number of the first largest element of a window, which has one on x."""
        from tvm import tirx

        from ..tir import constant, select, splat

        k, attrs = self.k, self.attrs
        best, where = k.register(self.dtype, lanes, "best"), k.register("int32", lanes, "where")
        best.set(constant(0, self.dtype, lanes))
        where.set(constant(-1, "int32", lanes))

        def take(taps: Sequence[Any]) -> None:
            place, there = list(window[:2]), []
            for axis, (t, (at, _)) in enumerate(zip(taps, window[2:], strict=True)):
                own = k.bind(
                    _expr(at * attrs["strides"][axis] - attrs["pads"][axis] + t * attrs["dilations"][axis]), "own"
                )
                there += [own >= 0, own < self.config["sizes"][0][2 + axis]]
                place.append((own, 0))
            with k.when(every(there)), self.ev.apart():
                value = k.bind(splat(self.value(0, place, lanes), lanes), "value")
                none = constant(0, "int32", lanes)
                better = k.bind(tirx.Or(value > best.get(), where.get() < none), "better")
                best.set(select(better, value, best.get()))
                where.set(select(better, splat(_expr(self.number(taps)), lanes), where.get()))

        self.taps(take)
        return where.get()


def _expr(value: Any) -> Any:
    from ..tir import constant

    return constant(value, "int32") if isinstance(value, int) else value
