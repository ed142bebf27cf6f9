"""topk: per row, insertion into a short sorted list; for larger k, candidates that beat the k-th best so far are
gathered and now and then sorted and cut back to k."""

from __future__ import annotations

import math
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, expr32, move_cost, put
from ._nest import Data, nest, walk
from ._sort import merge_sort, packed, sort, unpacked

_INSERTION = 32


def plan(region: Region) -> list[Plan]:
    x = region.operand(0)
    if x is None or len(region.outputs) != 2 or not alone(region):
        return []
    type, k = region.inputs[x].type, region.attrs["k"]
    axis = region.attrs["axis"] % type.rank
    size = type.dims[axis]
    if type.size == 0 or k == 0:
        return [Plan("topk", (), 0.0)]
    insertion = k <= _INSERTION
    capacity = min(size, 2 * k)
    rest = [1 if a == axis else d for a, d in enumerate(type.dims)]
    candidates = k * (1 + math.log(size / k))  # of a row in random order
    row = size * 2.0 + candidates * (k if insertion else 30.0)
    order = [math.prod(rest[i + 1 :]) for i in range(len(rest))]
    config = {
        "program": serialize(region),
        "attrs": plain(dict(region.attrs)),
        "consts": [],
        "nest": nest(rest, [order], 1, solo=range(len(rest)), work=row),
        "capacity": 0 if insertion else capacity,
    }
    tasks = config["nest"]["tasks"]
    scratch = () if insertion else (Arg("worker"),)
    args = (Arg("in", x), Arg("out", 0), Arg("out", 1), *scratch)
    draft = Draft(KernelSpec("topk", config), args, tasks if tasks > 1 else None)
    how = "insertion" if insertion else "candidates"
    cost = move_cost(region) + math.prod(rest) * row / 2.5
    return [Plan("topk", (draft,), cost, worker_bytes=config["capacity"] * 16, detail=f"topk by {how}")]


def emit(k: Any, config: Data) -> None:
    cursor = Cursor(k, config, lambda cursor, index, lanes: None)
    capacity = config["capacity"]
    scratch = k.arg("entries", "int64", 2 * capacity) if capacity else None
    axis = config["attrs"]["axis"] % len(cursor.shape(0))

    def body(index: list[Any], lanes: int) -> None:
        row = _Row(cursor, index, axis)
        if scratch is None:
            _insert(row, config["attrs"]["k"])
        else:
            _candidates(row, config["attrs"]["k"], scratch, capacity)

    loops = config["nest"]
    if loops["tasks"] > 1:
        with k.parallel(loops["tasks"]) as task:
            walk(k, loops, task, body)
    else:
        walk(k, loops, None, body)


class _Row:
    def __init__(self, cursor: Cursor, index: list[Any], axis: int) -> None:
        self.cursor, self.index, self.axis = cursor, index, axis
        self.size = cursor.shape(0)[axis]
        self.dtype: str = cursor.dtype(0)
        self.wide = self.dtype.endswith("64")

    def place(self, at: Any) -> list[Any]:
        return [(at, 0) if a == self.axis else c for a, c in enumerate(self.index)]

    def key(self, at: Any) -> Any:
        self.cursor.ev.begin()
        return self.cursor.value(0, self.place(at), 1)

    def better(self, a: Any, b: Any) -> Any:
        return a > b if self.cursor.attrs["largest"] else a < b

    def entry(self, at: Any) -> Any:
        from ..functions import cast

        at = expr32(at)
        return cast(at, "int64") if self.wide else packed(self.cursor.k, self.key(at), at, self.cursor.attrs["largest"])

    def before(self, a: Any, b: Any) -> Any:
        """Whether entry ``a`` comes strictly before ``b``."""
        return self.better(self.key(unpacked(a)), self.key(unpacked(b))) if self.wide else a < b

    def put(self, at: Any, value: Any, number: Any) -> None:
        from ..functions import cast

        put(self.cursor, 0, self.place(at), value)
        put(self.cursor, 1, self.place(at), cast(number, "int64"))


def _insert(row: _Row, count: int) -> None:
    k = row.cursor.k
    values, numbers = k.array(row.dtype, count, "best"), k.array("int32", count, "which")

    def bubble(last: Any) -> None:
        """Moves the entry at ``last`` up to its place; equal ones stay in front."""
        with k.loop(last) as i:
            at = k.bind(last - i, "at")
            upper, lower = k.bind(k.load(values, at - 1)), k.bind(k.load(values, at))
            with k.when(row.better(lower, upper)):
                k.store(values, at - 1, lower)
                k.store(values, at, upper)
                moved = k.bind(k.load(numbers, at))
                k.store(numbers, at, k.load(numbers, at - 1))
                k.store(numbers, at - 1, moved)

    with k.loop(count) as i:
        k.store(values, i, row.key(i))
        k.store(numbers, i, expr32(i))
        bubble(i)
    with k.loop(row.size - count) as i:
        value = k.bind(row.key(count + i), "key")
        with k.when(row.better(value, k.load(values, count - 1))):
            k.store(values, count - 1, value)
            k.store(numbers, count - 1, expr32(count + i))
            bubble(count - 1)
    with k.loop(count) as i:
        row.put(i, k.load(values, i), k.load(numbers, i))


def _candidates(row: _Row, count: int, scratch: Any, capacity: int) -> None:
    """Later elements count only if they beat the last kept one strictly, so equal ones keep their order."""
    from tvm import tirx

    from ..tir import constant

    k = row.cursor.k
    held, last = k.register("int32", 1, "held"), k.register("int64", 1, "last")
    with k.loop(capacity) as i:
        k.store(scratch, i, row.entry(i))
    held.set(constant(capacity, "int32"))
    _cut(row, count, scratch, capacity, held, last)
    with k.loop(row.size - capacity) as i:
        entry = k.bind(row.entry(capacity + i), "entry")
        with k.when(row.before(entry, last.get())):
            k.store(scratch, held.get(), entry)
            held.set(held.get() + 1)
            with k.when(tirx.EQ(held.get(), capacity)):
                _cut(row, count, scratch, capacity, held, last)
    if row.size > capacity:
        _cut(row, count, scratch, capacity, held, last)
    with k.loop(count) as i:
        number = k.bind(unpacked(k.load(scratch, i)), "number")
        row.put(i, row.key(number), number)


def _cut(row: _Row, count: int, scratch: Any, capacity: int, held: Any, last: Any) -> None:
    """Sorts what is held and keeps the best ``count``, in order, at the front."""
    from ..tir import constant

    k = row.cursor.k
    wide = (capacity, held.get(), row.before)
    first = merge_sort(k, scratch, *wide) if row.wide else sort(k, scratch, capacity, held.get())
    if first:
        with k.loop(count) as i:
            k.store(scratch, i, k.load(scratch, first + i))
    held.set(constant(count, "int32"))
    last.set(k.load(scratch, count - 1))


TEMPLATE = Template("topk", ("topk",), plan, {"topk": emit})
