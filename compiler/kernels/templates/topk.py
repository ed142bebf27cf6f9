"""topk: per row, insertion into a short sorted list, or a merge sort of the whole row where k is large."""

from __future__ import annotations

import math
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, expr32, move_cost
from ._nest import Data, nest, walk
from ._sort import merge_sort, passes
from .scatter import put

_INSERTION = 64


def plan(region: Region) -> list[Plan]:
    x = region.operand(0)
    if x is None or len(region.outputs) != 2 or not alone(region):
        return []
    shape, k = region.inputs[x].type.dims, region.attrs["k"]
    axis = region.attrs["axis"] % len(shape)
    size = shape[axis]
    if 0 in shape or k == 0:
        return [Plan("topk", (), 0.0)]
    insertion = k <= _INSERTION
    rest = [1 if a == axis else d for a, d in enumerate(shape)]
    row = size * (2.0 + k * 0.2) if insertion else size * passes(size) * 4.0
    order = [math.prod(rest[i + 1 :]) for i in range(len(rest))]
    config = {
        "program": serialize(region),
        "attrs": plain(dict(region.attrs)),
        "consts": [],
        "nest": nest(rest, [order], 1, solo=range(len(rest)), work=row),
        "scratch": 0 if insertion else 2 * size,
    }
    tasks = config["nest"]["tasks"]
    scratch = () if insertion else (Arg("worker"),)
    args = (Arg("in", x), Arg("out", 0), Arg("out", 1), *scratch)
    draft = Draft(KernelSpec("topk", config), args, tasks if tasks > 1 else None)
    how = "insertion" if insertion else "merge sort"
    cost = move_cost(region) + math.prod(rest) * row / 2.5
    return [Plan("topk", (draft,), cost, worker_bytes=config["scratch"] * 4, detail=f"topk by {how}")]


def emit(k: Any, config: Data) -> None:
    cursor = Cursor(k, config, lambda cursor, index, lanes: None)
    scratch = k.arg("order", "int32", config["scratch"]) if config["scratch"] else None
    axis = config["attrs"]["axis"] % len(cursor.shape(0))

    def body(index: list[Any], lanes: int) -> None:
        row = _Row(cursor, index, axis)
        if scratch is None:
            _insert(row, config["attrs"]["k"])
        else:
            _sort(row, config["attrs"]["k"], scratch)

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
        self.dtype: str = cursor.config["program"]["inputs"][0]["dtype"]

    def place(self, at: Any) -> list[Any]:
        return [(at, 0) if a == self.axis else c for a, c in enumerate(self.index)]

    def key(self, at: Any) -> Any:
        self.cursor.ev.begin()
        return self.cursor.value(0, self.place(at), 1)

    def before(self, a: Any, b: Any) -> Any:
        return a > b if self.cursor.attrs["largest"] else a < b

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
            with k.when(row.before(lower, upper)):
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
        with k.when(row.before(value, k.load(values, count - 1))):
            k.store(values, count - 1, value)
            k.store(numbers, count - 1, expr32(count + i))
            bubble(count - 1)
    with k.loop(count) as i:
        row.put(i, k.load(values, i), k.load(numbers, i))


def _sort(row: _Row, count: int, scratch: Any) -> None:
    k = row.cursor.k
    with k.loop(row.size) as i:
        k.store(scratch, i, expr32(i))
    first = merge_sort(k, scratch, 0, row.size, row.size, row.key, row.before)
    with k.loop(count) as i:
        number = k.bind(k.load(scratch, first + i), "number")
        row.put(i, row.key(number), number)


TEMPLATE = Template("topk", ("topk",), plan, {"topk": emit})
