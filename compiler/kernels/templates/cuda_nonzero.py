"""nonzero on a GPU: one block counts, each thread a range of neighbours, then writes from where its range begins."""

from __future__ import annotations

import math
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, put
from ._cuda_cost import Load, nanoseconds
from ._cuda_walk import MOST, split
from ._nest import Data

_THREADS = 1024
_ELEMENT = 12.0  # cycles of a thread for an element, both times that it is looked at


def plan(region: Region) -> list[Plan]:
    x, gpu = region.operand(0), region.machine.gpu
    if gpu is None or x is None or len(region.outputs) != 2 or not alone(region) or region.inputs[x].span > MOST:
        return []
    config = {"program": serialize(region), "attrs": plain(dict(region.attrs)), "consts": []}
    args = (Arg("in", x), Arg("out", 0), Arg("out", 1))
    type = region.inputs[x].type
    load = Load(1, _THREADS, far=type.nbytes + region.outputs[0].type.nbytes, chain=2 * _ELEMENT * type.size / 32)
    return [Plan("cuda_nonzero", (Draft(KernelSpec("cuda_nonzero", config), args, 1),), nanoseconds(gpu, load))]


def emit(k: Any, config: Data) -> None:
    with_grid = _Nonzero(k, config)
    with k.grid(1, _THREADS) as (_, thread):
        with_grid.run(thread)


class _Nonzero:
    def __init__(self, k: Any, config: Data) -> None:
        self.k, self.cursor = k, Cursor(k, config, lambda cursor, index, lanes: None)
        self.shape = self.cursor.shape(0)
        self.total = math.prod(self.shape)
        self.room = config["program"]["outputs"][0]["shape"][1]  # coordinates that the result holds

    def run(self, thread: Any) -> None:
        from ..functions import cast
        from ..tir import constant

        k, share = self.k, -(-self.total // _THREADS)
        count = k.register("int32", 1, "count")
        count.set(constant(0, "int32"))
        self._each(thread, share, lambda index: count.set(count.get() + 1))
        ends = self._ends(thread, count)
        place = k.register("int32", 1, "place")
        place.set(k.load(ends, thread) - count.get())

        def write(index: list[Any]) -> None:
            for axis, i in enumerate(index):
                put(self.cursor, 0, [(axis, 0), (place.get(), 0)], cast(constant(0, "int32") + i, "int64"))
            place.set(place.get() + 1)

        self._each(thread, share, write)
        found = k.bind(k.load(ends, _THREADS - 1), "found")
        with k.loop(-(-self.room // _THREADS), name="turn") as turn:
            at = k.bind(turn * _THREADS + thread, "at")
            from tvm import tirx

            with k.when(tirx.And(at >= found, at < self.room)):
                for axis in range(len(self.shape)):
                    put(self.cursor, 0, [(axis, 0), (at, 0)], constant(0, "int64"))
        with k.when(thread < 1):
            put(self.cursor, 1, [], cast(found, "int64"))

    def _each(self, thread: Any, share: int, body: Any) -> None:
        """``body(coordinates)`` for the elements of a thread's range that are not zero."""
        from tvm import tirx

        from ..tir import dtype_of, like

        k = self.k
        with k.loop(share, name="e") as e:
            at = k.bind(thread * share + e, "at")
            with k.when(at < self.total):
                self.cursor.ev.begin()
                index = split(k, at, self.shape)
                value = self.cursor.value(0, [(i, 0) for i in index], 1)
                with k.when(value if dtype_of(value) == "bool" else tirx.NE(value, like(0, value))):
                    body(index)

    def _ends(self, thread: Any, count: Any) -> Any:
        """How many are found up to the end of each thread's range: sums over twice as many threads each round."""
        k = self.k
        ends = k.shared("int32", _THREADS, "ends")
        k.store(ends, thread, count.get())
        k.barrier()
        step = 1
        while step < _THREADS:
            more = k.register("int32", 1, "more")
            more.set(k.load(ends, thread))
            with k.when(thread >= step):
                more.set(more.get() + k.load(ends, thread - step))
            k.barrier()
            k.store(ends, thread, more.get())
            k.barrier()
            step *= 2
        return ends


TEMPLATE = Template("cuda_nonzero", ("nonzero",), plan, {"cuda_nonzero": emit}, device=True)
