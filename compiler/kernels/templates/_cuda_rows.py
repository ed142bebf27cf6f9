"""Rows on a GPU: the walk of ``_rows`` by the threads of blocks, and folds across them.

A block takes ``x`` units (coordinates of the kept axes) with ``y`` threads each; a thread takes every ``y``-th element
(or ``vec`` neighbours) of the reduced axes. Where memory runs along these, a unit's threads are neighbours, lanes of a
warp or whole warps; where it runs along the kept ones, units are, and each thread has a column. Folds go by shuffles
inside a warp and by shared memory across warps, always in the same tree. ``unrolled``: a thread's elements stay in
registers, so a row is read once; places behind its end repeat its last element and are left out of folds and stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ....targets.gpu import Gpu
from ..spec import Region
from ._cuda_cost import Load, nanoseconds
from ._rows import Coords, Spot, Unit, Walk, bound, main_strides, operations, source, split_index, walk

_ACCESS = 16  # bytes that a thread loads or stores at once
_HELD = 32  # values that a thread keeps at most
_BLOCK = 128  # threads of a block, where rows are short
_TURNS = 4  # elements that a thread asks for at once, where it goes over a long row
_FILL = 512  # threads that a multiprocessor should get, before rows are worth less of them
_TREE = 512  # threads of a block of columns


# -- planning ------------------------------------------------------------------------------------------------------


def device_walk(
    region: Region,
    reduced: Sequence[int],
    every: Sequence[Sequence[int]],
    *,
    shape: Sequence[int] | None = None,
    origin: Sequence[tuple[int, int]] | None = None,
    main: Sequence[int] | None = None,
    held: int = 1,
    split: bool = False,
    vectors: bool = False,
) -> dict[str, Any]:
    """The plan of a walk as JSON values, as ``_rows.walk`` makes it, with the geometry of its blocks. ``held`` are the
    values that a thread keeps of an element between passes; ``split`` allows several blocks for the same units, and
    ``vectors`` neighbours along the reduced axes that one thread takes at once."""
    gpu = region.machine.gpu
    assert gpu is not None
    space = walk(region, reduced, every, shape=shape, origin=origin, main=main, lanes=1, wide=1)
    sizes = [math.prod(space["shape"][a] for a in g) for g in space["kept"]]
    count = math.prod(space["shape"][a] for a in reduced)
    itemsize = region.body.type(source(region)).itemsize
    space["vec"] = _neighbours(gpu, space, count, itemsize, main or main_strides(region)) if vectors else 1
    return _placed(gpu, space, math.prod(sizes), count // space["vec"], held * space["vec"], split)


def _neighbours(gpu: Gpu, space: dict[str, Any], count: int, itemsize: int, main: Sequence[int]) -> int:
    """Elements that one access of a thread takes: as many as 16 bytes hold, where a row still has enough for a warp."""
    if not space["across"]:
        return 1
    inner = space["reduced"][-1]
    axis, factor = space["origin"][inner[-1]]
    extent = math.prod(space["shape"][a] for a in inner)
    fitting = (n for n in (8, 4, 2) if n * itemsize <= _ACCESS and extent % n == 0 and count >= n * gpu.warp)
    return next(fitting, 1) if abs(main[axis] * factor) == 1 else 1


def joining(gpu: Gpu, space: dict[str, Any]) -> dict[str, Any]:
    """The walk that joins what the parts of ``space`` came to: its reduced axis is the number of the part."""
    axis = len(space["shape"])
    shape, origin = [*space["shape"], space["parts"]], [*space["origin"], [0, 0]]
    joint = {**space, "shape": shape, "origin": origin, "reduced": [[axis]], "across": True, "vec": 1}
    return _placed(gpu, joint, space["units"], space["parts"], 1, False)


def _placed(gpu: Gpu, space: dict[str, Any], units: int, count: int, held: int, split: bool) -> dict[str, Any]:
    x, y = (_rows if space["across"] else _columns)(gpu, units, count, held)
    groups = -(-units // x)
    parts, chunk = 1, count
    wished = gpu.multiprocessors * gpu.resident
    if split and groups * x * y < wished and count >= 32 * y:
        parts = max(1, min(wished // (groups * x * y), count // (8 * y)))
        chunk = -(-count // (parts * y)) * y
        parts = -(-count // chunk)
    unrolled = parts == 1 and -(-count // y) * held <= (_HELD if x * y <= 512 else _HELD // 2)
    found = {"units": units, "x": x, "y": y, "parts": parts, "chunk": chunk, "unrolled": unrolled}
    return {**space, **found, "tasks": groups * parts}


def _rows(gpu: Gpu, units: int, count: int, held: int) -> tuple[int, int]:
    """Rows of a block and threads of a row, which are neighbours."""
    most = min(gpu.threads, floor2(count))
    y = min(32, most)
    while y < most and _more(gpu, units, y, count, held):
        y *= 2
    x = max(1, _BLOCK // y)
    while x * y > gpu.warp and units < x * gpu.multiprocessors:
        x //= 2
    return max(1, x), y


def _columns(gpu: Gpu, units: int, count: int, held: int) -> tuple[int, int]:
    """Columns of a block, which are neighbours, and threads of a column."""
    x, y = min(gpu.warp, floor2(2 * units - 1)), 1
    most = min(_TREE // x, floor2(count))
    while y < most and (x * y < gpu.warp or _more(gpu, -(-units // x) * x, y, count, held)):
        y *= 2
    return x, y


def _more(gpu: Gpu, units: int, y: int, count: int, held: int) -> bool:
    """Whether units are worth more threads than ``y``: for room in registers, or to fill the GPU."""
    each = -(-count // y)
    return each * held > _HELD or (units * y < gpu.multiprocessors * _FILL and each > 4)


def floor2(number: int) -> int:
    """The largest power of two up to a number from 1 on."""
    return 1 << (number.bit_length() - 1)


def walk_cost(region: Region, space: dict[str, Any], *, special: float = 0.0, passes: int = 1) -> float:
    """Nanoseconds of a kernel that goes over a region's rows; ``special``: exponentials and so on of an element."""
    gpu = region.machine.gpu
    assert gpu is not None
    elements = math.prod(space["shape"])
    again = 0 if space["unrolled"] else passes - 1
    traffic = sum(o.type.nbytes for o in (*region.inputs, *region.outputs))
    each = -(-space["chunk"] // space["y"])
    load = Load(
        blocks=space["tasks"],
        threads=space["x"] * space["y"],
        special=elements * special,
        plain=elements * (4.0 + operations(region)) * passes,
        far=traffic,
        near=traffic * again,
        in_flight=4.0 * space["vec"] * min(each, _HELD if space["unrolled"] else _TURNS),
        chain=passes * (each * 2.0 + 150.0),
    )
    return nanoseconds(gpu, load)


# -- emitting ------------------------------------------------------------------------------------------------------


class DeviceWalk(Walk):
    """Emits the work of one thread of a walk. ``unit`` is its unit's number, ``part`` its block's part."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config)
        self.y_size: int = config["y"]
        self.vec: int = config["vec"]
        self.count //= self.vec
        self.turns = -(-self.count // self.y_size) if config["unrolled"] else _TURNS
        self._places: dict[int, Spot] = {}
        self._rest: dict[tuple[int, int], Any] = {}  # conditions of slots that may lie behind the end

    def run(self, body: Callable[[Unit], None]) -> None:
        """Opens the grid and emits what one thread does."""
        from tvm import tirx

        c, k = self.c, self.k
        with k.grid(c["tasks"], c["x"] * c["y"]) as (block, thread):
            if self.across:
                self.x, self.y = split_index(thread, c["y"])
            else:
                self.y, self.x = split_index(thread, c["x"])
            group, self.part = split_index(block, c["parts"])
            at = k.bind(group * c["x"] + self.x, "unit")
            whole = c["units"] % c["x"] == 0
            self.inside = True if whole else k.bind(tirx.LT(at, c["units"]), "inside")
            self.unit = at if whole else k.bind(tirx.Min(at, c["units"] - 1), "unit")
            base = [self._held(b) for b in self._kept(self.unit, c["kept"])]
            body(Unit(base, [(0, 1)]))

    def _held(self, index: Any) -> Any:
        return index if isinstance(index, int) else self.k.bind(index, "at")

    # -- elements

    def slots(self, unit: Unit, turns: int) -> dict[tuple[int, int], int]:
        return {(0, t): self.vec for t in range(self.turns)}

    def over(self, unit: Unit, turns: int, body: Callable[[Spot], None]) -> None:
        """Calls ``body`` for each of the thread's elements. Unrolled: without conditions, at the same places in each
        pass; else under the condition that the element exists."""
        if self.c["unrolled"]:
            for turn in range(self.turns):
                body(self._place(unit, turn))
            return
        with self.k.when(self.inside):
            self._loops(unit, body)

    def _place(self, unit: Unit, turn: int) -> Spot:
        from tvm import tirx

        if turn not in self._places:
            at = self.k.bind(self.y + turn * self.y_size, "e") if self.y_size > 1 else turn
            if (turn + 1) * self.y_size > self.count:
                self._rest[0, turn] = self.k.bind(tirx.LT(at, self.count), "is")
                at = self.k.bind(tirx.Min(at, self.count - 1), "e")
            self._places[turn] = self._spot(unit, at, turn)
        return self._places[turn]

    def _loops(self, unit: Unit, body: Callable[[Spot], None]) -> None:
        from tvm import tirx

        k, c, step = self.k, self.c, self.y_size * self.turns
        first = k.bind(self.part * c["chunk"] + self.y, "first")
        length: Any = c["chunk"]
        if self.count % c["chunk"]:
            length = k.bind(tirx.Min(c["chunk"], self.count - self.part * c["chunk"]), "length")
        full = split_index(length, step)[0]
        with k.loop(full) as i:
            for turn in range(self.turns):
                body(self._spot(unit, k.bind(first + (i * step + turn * self.y_size), "e"), turn))
        end = k.bind(self.part * c["chunk"] + length, "end")
        for turn in range(self.turns):
            if isinstance(full, int) and full * step + turn * self.y_size >= self.count:
                break
            at = k.bind(first + (full * step + turn * self.y_size), "e")
            with k.when(tirx.LT(at, end)):
                body(self._spot(unit, at, turn))

    def _spot(self, unit: Unit, at: Any, turn: int) -> Spot:
        coords: Coords = [(b, 0) for b in unit.base]
        rest = at * self.vec
        for group, extent in reversed(list(zip(self.c["reduced"], self.extents, strict=True))):
            outermost = group == self.c["reduced"][0]
            rest, index = (0, rest) if outermost else split_index(rest, extent)
            lanes = 1 if self.vec > 1 and group == self.c["reduced"][-1] else 0
            coords[group[-1]] = (self._held(index), lanes)
        return Spot(coords, self.vec, (0, turn), at)

    # -- results

    def results(self, unit: Unit) -> Iterator[tuple[int, Coords, int]]:
        yield 0, [(b, 0) for b in unit.base], 1

    @contextmanager
    def guard(self, ev: Any, spot: Spot | None = None) -> Iterator[None]:
        """Statements for an element that exists (in a loop: as it is), or for one thread of each unit."""
        from tvm import tirx

        asked = [] if self.inside is True or (spot is not None and not self.c["unrolled"]) else [self.inside]
        if spot is None and self.y_size > 1:
            asked.append(tirx.EQ(self.y, 0))
        if spot is not None and spot.slot in self._rest and self.c["unrolled"]:
            asked.append(self._rest[spot.slot])
        with ev.apart(), self.k.when(tirx.all(*asked) if asked else True):
            yield

    # -- folds

    def fold(self, slots: dict[tuple[int, int], Any], column: int, combine: Callable[[Any, Any], Any]) -> Any:
        """What all threads' values of a unit come to, in every one of them."""
        join = bound(self.k, combine)
        lists = {s: [self.k.across(self.k.bind(v), join)] for s, v in slots.items()}
        return self.fold_all(lists, lambda a, b: [join(a[0], b[0])])[0]

    def fold_all(
        self, slots: dict[tuple[int, int], list[Any]], combine: Callable[[list[Any], list[Any]], list[Any]]
    ) -> list[Any]:
        """As ``fold``, of several values that are folded together. All threads of the block take part."""
        from ..tir import select

        k = self.k
        values = [[k.bind(v) for v in slots[s]] for s in sorted(slots) if s not in self._rest]
        found: list[Any] = k.fold(values, combine)
        for s in sorted(slots):
            if s in self._rest:
                joined = combine(found, [k.bind(v) for v in slots[s]])
                found = [k.bind(select(self._rest[s], a, b)) for a, b in zip(joined, found, strict=True)]
        return self._threads(found, combine)

    def _threads(self, values: list[Any], combine: Callable[[list[Any], list[Any]], list[Any]]) -> list[Any]:
        if self.y_size == 1:
            if self.c["units"] % self.c["x"]:
                self.k.barrier()
            return values
        if not self.across:
            return self._tree(values, combine)
        lanes = min(32, self.y_size)
        values = warp_fold(self.k, values, lanes, combine)
        if self.y_size > 32:
            return self._warps(values, combine)
        if self.c["units"] % self.c["x"]:
            self.k.barrier()  # threads without a unit read the last one's: before that one is stored
        return values

    def _warps(self, values: list[Any], combine: Callable[[list[Any], list[Any]], list[Any]]) -> list[Any]:
        """Across the warps of a row, each of which has its values in all lanes."""
        from tvm import tirx

        from ..tir import dtype_of

        k, warps = self.k, self.y_size // 32
        lane, warp = tirx.truncmod(self.y, 32), tirx.truncdiv(self.y, 32)
        held = [k.shared(dtype_of(v), warps * self.c["x"], "warps") for v in values]
        with k.when(tirx.EQ(lane, 0)):
            for buffer, value in zip(held, values, strict=True):
                k.store(buffer, self.x * warps + warp, value)
        k.barrier()
        found = [k.bind(k.load(b, self.x * warps + tirx.truncmod(self.y, warps))) for b in held]
        return warp_fold(k, found, warps, combine)

    def _tree(self, values: list[Any], combine: Callable[[list[Any], list[Any]], list[Any]]) -> list[Any]:
        """Across the threads of a column, halving."""
        from tvm import tirx

        from ..tir import dtype_of

        k, x = self.k, self.c["x"]
        held = [k.shared(dtype_of(v), x * self.y_size, "column") for v in values]
        place = k.bind(self.y * x + self.x, "place")
        for buffer, value in zip(held, values, strict=True):
            k.store(buffer, place, value)
        half = self.y_size // 2
        while half:
            k.barrier()
            with k.when(tirx.LT(self.y, half)):
                pair = [[k.bind(k.load(b, place + at)) for b in held] for at in (0, half * x)]
                for buffer, value in zip(held, combine(*pair), strict=True):
                    k.store(buffer, place, value)
            half //= 2
        k.barrier()
        return [k.bind(k.load(b, self.x)) for b in held]


def warp_fold(k: Any, values: list[Any], lanes: int, combine: Callable[[list[Any], list[Any]], list[Any]]) -> list[Any]:
    """The fold over each ``lanes`` (a power of two) neighbours of a warp, in every one of them. The lower lane's values
    are always ``combine``'s first."""
    distance = lanes // 2
    while distance:
        values = combine(values, [k.bind(exchanged(k, v, distance)) for v in values])
        distance //= 2
    return values


_EXCHANGE = {"float32": "", "float64": "_double", "int64": "_int64", "uint64": "_int64"}


def exchanged(k: Any, value: Any, distance: int) -> Any:
    """The value of the lane whose number differs by that bit."""
    return _moved(k, value, "nv_shuffle_xor", distance)


def from_lane(k: Any, value: Any, lane: Any) -> Any:
    """The value of that lane of the warp."""
    return _moved(k, value, "nv_shuffle", lane)


def _moved(k: Any, value: Any, function: str, where: Any) -> Any:
    from ..functions import cast
    from ..tir import dtype_of, reinterpret

    dtype = dtype_of(value)
    if dtype in ("float16", "bfloat16"):
        return cast(k.device(function, "float32", cast(value, "float32"), where), dtype)
    if dtype not in _EXCHANGE:
        return cast(k.device(f"{function}_int", "int32", cast(value, "int32"), where), dtype)
    name = f"{function}{_EXCHANGE[dtype]}"
    if dtype == "uint64":
        return reinterpret("uint64", k.device(name, "int64", reinterpret("int64", value), where))
    return k.device(name, dtype, value, where)
