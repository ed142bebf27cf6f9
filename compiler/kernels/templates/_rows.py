"""What reductions, softmax and norms share: a walk over the kept axes of a tensor, and over the reduced ones inside.

Vector lanes lie along the axis that is contiguous in memory. Where that axis is reduced, each kept coordinate is a row
of its own, and lanes are folded at its end; where it is kept, neighbouring rows are the lanes (``columns``). Tails take
narrower vectors, powers of two, so that nothing is read or written twice.

Axes here are *virtual*: a logical axis may be seen as two (group norm's channels as groups and members). Adjacent axes
that every operand walks as one are merged; a merged group carries its flat index on its last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ...ir import Value
from ...ops.elementwise import EXPONENTIAL
from ...ops.selection import POSITIONAL
from ..spec import Region

Coord = tuple[Any, int | None]
Coords = list[Coord]

_TASKS = 32  # tasks of a large region at most
_TASK_WORK = 512.0  # vector operations that a task should have at least


# -- planning ------------------------------------------------------------------------------------------------------


def ancestors(region: Region) -> set[int]:
    """Nodes that the anchors' inputs come from."""
    body = region.body
    seen: set[int] = set()
    stack = [a.node for anchor in region.anchors for a in body.args(anchor) if a is not None]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += list(body.nx.predecessors(node))
    return seen


def axis_strides(region: Region, out_axes: Sequence[int], by_channel: Sequence[int] = ()) -> list[list[int]]:
    """For each operand that is walked (inputs, then outputs), its stride along each logical axis of the anchor's first
    input, 0 where it is broadcast. ``out_axes`` are the axes of that input which the result keeps, in order; inputs
    numbered in ``by_channel`` are vectors along axis 1."""
    body = region.body
    rank = body.type(body.args(region.anchor)[0]).rank  # type: ignore[arg-type]
    before = ancestors(region)
    after = {u for n in body for u in body.nx.predecessors(n) if n not in before and n not in region.anchors}
    found = []
    for number, (node, operand) in enumerate(zip(body.inputs, region.inputs, strict=True)):
        own = [s if d > 1 else 0 for s, d in zip(operand.strides, operand.type.dims, strict=True)]
        if number in by_channel:
            found.append([own[0] if a == 1 else 0 for a in range(rank)])
            continue
        if node in before:
            found.append([0] * (rank - len(own)) + own)
        if node in after:
            found.append(_spread(own, out_axes, rank))
    found += [
        _spread([s if d > 1 else 0 for s, d in zip(o.strides, o.type.dims, strict=True)], out_axes, rank)
        for o in region.outputs
    ]
    return found


def _spread(own: Sequence[int], out_axes: Sequence[int], rank: int) -> list[int]:
    strides = [0] * rank
    for stride, axis in zip(reversed(own), reversed(out_axes), strict=False):
        strides[axis] = stride
    return strides


def main_strides(region: Region) -> list[int]:
    """Strides of the largest input that the anchors' first inputs are computed from."""
    body = region.body
    rank = body.type(source(region)).rank
    reached = {body.args(anchor)[0].node for anchor in region.anchors}  # type: ignore[union-attr]
    for node in reversed(body.order()):
        if node in reached:
            reached.update(body.nx.predecessors(node))
    best = max(
        (o for n, o in zip(body.inputs, region.inputs, strict=True) if n in reached),
        key=lambda o: o.type.size,
        default=None,
    )
    if best is None:
        return [1] * rank
    return [0] * (rank - best.type.rank) + [
        s if d > 1 else 0 for s, d in zip(best.strides, best.type.dims, strict=True)
    ]


def merged(
    axes: Sequence[int], shape: Sequence[int], main: Sequence[int], every: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The axes, outermost in memory first, in groups that every operand walks as one."""
    groups: list[list[int]] = []
    for axis in sorted(axes, key=lambda a: (-abs(main[a]), a)):
        if shape[axis] == 1:
            continue
        if groups and all(s[groups[-1][-1]] == s[axis] * shape[axis] for s in every):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def walk(
    region: Region,
    reduced: Sequence[int],
    every: Sequence[Sequence[int]],
    *,
    shape: Sequence[int] | None = None,
    origin: Sequence[tuple[int, int]] | None = None,
    work: float = 1.0,
    wide: int = 4,
    across: bool | None = None,
    lanes: int | None = None,
    main: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The plan of a walk, as JSON values. ``reduced`` are virtual axes; ``shape`` and ``origin`` (logical axis and
    factor of each virtual one) default to the logical ones. ``work`` is operations an element, ``wide`` the vectors
    taken at once, ``across`` False forbids lanes along the reduced axes, ``lanes`` is the machine's if not given.
    ``main`` are the logical strides that lanes go by: those of the largest tensor before the anchors if not given."""
    body = region.body
    logical = body.type(body.args(region.anchor)[0]).dims  # type: ignore[arg-type]
    shape = list(shape if shape is not None else logical)
    origin = list(origin if origin is not None else [(a, 1) for a in range(len(logical))])
    virtual = [[s[a] * f for a, f in origin] for s in every]
    base = main_strides(region) if main is None else main
    main = [base[a] * f for a, f in origin]
    kept = merged([a for a in range(len(shape)) if a not in reduced], shape, main, virtual)
    folded = merged(list(reduced), shape, main, virtual)
    if any(n in POSITIONAL for n in (body.node(k).op for k in body)):
        virtual.append([7**9 + a for a in range(len(shape))])  # an operator that looks at coordinates: nothing merges
        kept = merged([a for a in range(len(shape)) if a not in reduced], shape, main, virtual)
        folded = merged(list(reduced), shape, main, virtual)
    by_reduced = bool(folded) and (not kept or _nearer(main[folded[-1][-1]], main[kept[-1][-1]]))
    by_reduced = by_reduced and across is not False
    lanes = region.machine.lanes if lanes is None else lanes
    extent = math.prod(shape[a] for a in kept[-1]) if kept and not by_reduced else 1
    blocks = max(1, -(-extent // (wide * lanes))) if not by_reduced else 1
    rows = math.prod((math.prod(shape[a] for a in g) for g in (kept if by_reduced else kept[:-1])), start=1)
    units = rows * blocks
    tasks = max(1, min(units, _TASKS, int(math.prod(shape) * work / (_TASK_WORK * lanes))))
    chunk = -(-units // tasks) if units else 0
    tasks = -(-units // chunk) if chunk else 1
    return {
        "shape": shape,
        "origin": [list(o) for o in origin],
        "kept": kept,
        "reduced": folded,
        "across": by_reduced,
        "lanes": lanes,
        "wide": wide,
        "blocks": blocks,
        "units": units,
        "chunk": chunk,
        "tasks": tasks,
    }


def _nearer(a: int, b: int) -> bool:
    """Whether stride ``a`` is the one to put lanes along."""
    return a != 0 and (b == 0 or abs(a) <= abs(b))


_DEAR = frozenset((*EXPONENTIAL, "softplus", "sin", "cos", "tan", "div"))


def effort(op: str) -> float:
    """Vector operations that an elementwise operator takes, about."""
    return 80.0 if op == "random_bits" else 20.0 if op in _DEAR else 0.0 if op in ("input", "const", "anchor") else 2.0


def operations(region: Region) -> float:
    """Vector operations of the region's elementwise nodes."""
    return sum(effort(region.body.node(n).op) for n in region.body if n not in region.anchors)


def source(region: Region) -> Value:
    """The anchor's first input."""
    found = region.body.args(region.anchor)[0]  # type: ignore[arg-type]
    assert found is not None
    return found


# -- emitting ------------------------------------------------------------------------------------------------------


def pieces(extent: int, lanes: int) -> list[tuple[int, int]]:
    """``(offset, width)`` of vectors that cover an extent: whole ones, then each power of two that is left."""
    found = [(i, lanes) for i in range(0, extent - lanes + 1, lanes)]
    at = len(found) * lanes
    while at < extent:
        width = 1 << ((extent - at).bit_length() - 1)
        found.append((at, width))
        at += width
    return found


@dataclass
class Unit:
    """What a body of the walk works on: kept coordinates (virtual, without lanes) and the columns, each an offset and
    a width along the kept vector axis; a single column of width 1 where lanes lie along the reduced axis."""

    base: list[Any]
    columns: list[tuple[Any, int]]


@dataclass(frozen=True)
class Spot:
    """One vector of elements: its virtual coordinates, its width, and the slot of an accumulator that it belongs to."""

    coords: Coords
    lanes: int
    slot: tuple[int, int]  # (column, turn)
    index: Any = 0  # flat index inside the reduced axes, of lane 0


class Walk:
    """Emits the loops of one planned walk."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.c = k, config
        self.lanes: int = config["lanes"]
        self.shape: list[int] = config["shape"]
        self.across: bool = config["across"]
        self.extents = [math.prod(self.shape[a] for a in g) for g in config["reduced"]]
        self.count = math.prod(self.extents)

    # -- the kept axes

    def run(self, body: Callable[[Unit], None]) -> None:
        """Calls ``body`` to emit the work of each unit, in tasks where the plan has them."""
        c = self.c
        if c["tasks"] == 1:
            with self.k.loop(c["units"], name="unit") as unit:
                self._unit(unit, body)
            return
        from tvm import tirx

        with self.k.parallel(c["tasks"]) as task:
            left = c["units"] - task * c["chunk"]
            count = c["chunk"] if c["units"] % c["chunk"] == 0 else tirx.Min(c["chunk"], left)
            with self.k.loop(count, name="unit") as unit:
                self._unit(task * c["chunk"] + unit, body)

    def _unit(self, unit: Any, body: Callable[[Unit], None]) -> None:
        c, k = self.c, self.k
        if self.across or not c["kept"]:
            body(Unit(self._kept(unit, c["kept"]), [(0, 1)]))
            return
        row, block = split_index(unit, c["blocks"])
        group = c["kept"][-1]
        extent = math.prod(self.shape[a] for a in group)
        size = c["wide"] * self.lanes
        full, base = extent // size, self._kept(row, c["kept"][:-1])

        def columns(width: int) -> list[tuple[Any, int]]:
            return [(block * size + at, w) for at, w in pieces(width, self.lanes)]

        rest = extent - full * size
        if full:
            with k.when(True if not rest else block < full):
                body(Unit(list(base), columns(size)))
        if rest:
            with k.when(True if not full else _equal(block, full)):
                body(Unit(list(base), columns(rest)))

    def _kept(self, row: Any, groups: Sequence[Sequence[int]]) -> list[Any]:
        found: list[Any] = [0] * len(self.shape)
        for group in reversed(groups):
            row, index = split_index(row, math.prod(self.shape[a] for a in group))
            found[group[-1]] = index
        return found

    # -- the reduced axes

    def slots(self, unit: Unit, turns: int) -> dict[tuple[int, int], int]:
        """The accumulators that ``over`` will name, with their widths."""
        if not self.across:
            depth = min(turns, self.extents[-1]) if self.extents else 1
            return {(c, t): w for c, (_, w) in enumerate(unit.columns) for t in range(depth)}
        found = pieces(self.extents[-1], self.lanes)
        full = [w for _, w in found if w == self.lanes]
        slots = {(0, t): self.lanes for t in range(min(turns, len(full)))}
        slots.update({(1 + i, 0): w for i, (_, w) in enumerate(p for p in found if p[1] < self.lanes)})
        return slots

    def over(self, unit: Unit, turns: int, body: Callable[[Spot], None]) -> None:
        """Calls ``body`` for each vector of the reduced axes, ``turns`` of them in each innermost iteration."""
        groups = self.c["reduced"]
        coords: Coords = [(b, 0) for b in unit.base]
        with ExitStack() as stack:
            flat: Any = 0
            for group, extent in zip(groups[:-1], self.extents[:-1], strict=True):
                at = stack.enter_context(self.k.loop(extent))
                coords[group[-1]] = (at, 0)
                flat = flat * extent + at
            if not groups:
                self._columns(unit, coords, 0, 0, body)
                return
            inner, extent = groups[-1][-1], self.extents[-1]
            if self.across:
                self._vectors(coords, inner, extent, turns, flat * extent, body)
            else:
                self._turns(unit, coords, inner, extent, turns, flat * extent, body)

    def _vectors(
        self, coords: Coords, axis: int, extent: int, turns: int, flat: Any, body: Callable[[Spot], None]
    ) -> None:
        found = pieces(extent, self.lanes)
        full = sum(w == self.lanes for _, w in found)

        def emit(at: Any, width: int, slot: tuple[int, int]) -> None:
            spot = list(coords)
            spot[axis] = (at, 1 if width > 1 else 0)
            body(Spot(spot, width, slot, flat + at))

        turns = min(turns, full)
        if full:
            step = turns * self.lanes
            with self.k.loop(full // turns) as i:
                for t in range(turns):
                    emit(i * step + t * self.lanes, self.lanes, (0, t))
            for t in range(full % turns):
                emit((full // turns * turns + t) * self.lanes, self.lanes, (0, t))
        for i, (at, width) in enumerate(found[full:]):
            emit(at, width, (1 + i, 0))

    def _turns(
        self, unit: Unit, coords: Coords, axis: int, extent: int, turns: int, flat: Any, body: Callable[[Spot], None]
    ) -> None:
        turns = min(turns, extent)
        if not turns:
            return
        with self.k.loop(extent // turns) as i:
            for t in range(turns):
                coords[axis] = (i * turns + t, 0)
                self._columns(unit, coords, t, flat + i * turns + t, body)
        for t in range(extent % turns):
            coords[axis] = (extent // turns * turns + t, 0)
            self._columns(unit, coords, t, flat + extent // turns * turns + t, body)

    def _columns(self, unit: Unit, coords: Coords, turn: int, flat: Any, body: Callable[[Spot], None]) -> None:
        for c, (offset, width) in enumerate(unit.columns):
            spot = list(coords)
            if self.c["kept"] and not self.across:
                spot[self.c["kept"][-1][-1]] = (offset, 1 if width > 1 else 0)
            body(Spot(spot, width, (c, turn), flat))

    # -- results

    def results(self, unit: Unit) -> Iterator[tuple[int, Coords, int]]:
        """``(column, virtual coordinates with the reduced axes at 0, width)`` of what a unit's folds belong to."""
        coords: Coords = [(b, 0) for b in unit.base]
        for c, (offset, width) in enumerate(unit.columns):
            spot = list(coords)
            if self.c["kept"] and not self.across:
                spot[self.c["kept"][-1][-1]] = (offset, 1 if width > 1 else 0)
            yield c, spot, width

    def fold(self, slots: dict[tuple[int, int], Any], column: int, combine: Callable[[Any, Any], Any]) -> Any:
        """What a column's accumulators come to, combined in a fixed tree."""
        k = self.k
        if not self.across:
            return k.bind(k.fold([r for (c, _), r in sorted(slots.items()) if c == column], bound(k, combine)))
        full = [r for (c, _), r in sorted(slots.items()) if c == 0]
        rest = [r for (c, _), r in sorted(slots.items()) if c > 0]
        joined = [k.fold(full, bound(k, combine))] if full else []
        return k.bind(k.fold([k.across(v, bound(k, combine)) for v in [*joined, *rest]], bound(k, combine)))

    def read(self, ev: Any, number: int, spot: Spot) -> Any:
        """The value numbered ``number`` of the evaluator's program in a spot, held, in every lane."""
        from ..tir import splat

        ev.begin()
        return self.k.bind(splat(ev.value(number, self.logical(spot.coords), spot.lanes), spot.lanes))

    def logical(self, coords: Coords) -> Coords:
        """Logical coordinates of virtual ones."""
        rank = 1 + max((a for a, _ in self.c["origin"]), default=-1)
        found: Coords = [(0, 0)] * rank
        for (base, step), (axis, factor) in zip(coords, self.c["origin"], strict=True):
            old, old_step = found[axis]
            scaled = base * factor if not (isinstance(base, int) and base == 0) else 0
            assert step is not None and old_step is not None
            found[axis] = (scaled if isinstance(old, int) and old == 0 else old + scaled, old_step + step * factor)
        return found


def bound(k: Any, combine: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``combine`` on held operands with a held result: expressions stay small."""
    return lambda a, b: k.bind(combine(k.bind(a), k.bind(b)))


def split_index(index: Any, extent: int) -> tuple[Any, Any]:
    """Quotient and remainder of a number that is not negative."""
    if extent == 1:
        return index, 0
    if isinstance(index, int):
        return divmod(index, extent)
    from tvm import tirx

    return tirx.truncdiv(index, extent), tirx.truncmod(index, extent)


def _equal(a: Any, b: int) -> Any:
    if isinstance(a, int):
        return a == b
    from tvm import tirx

    return tirx.EQ(a, b)


# -- rows that are gone over several times ---------------------------------------------------------------------------


def hold(region: Region, config: dict[str, Any], *, keeps: bool) -> tuple[str, int]:
    """How a row's elements are kept between passes, and the bytes of scratch that a worker needs: ``registers`` where
    the row fits into half of them, ``scratch``, or ``again`` (read anew; only where the template ``keeps`` nothing of
    its own and no work comes before it)."""
    machine, extents = region.machine, [math.prod(config["shape"][a] for a in g) for g in config["reduced"]]
    count = math.prod(extents)
    if len(extents) <= 1:
        vectors = len(pieces(count, machine.lanes)) if config["across"] else count * config["wide"]
        if vectors <= machine.registers // 2:
            return "registers", 0
    if (not keeps and operations(region) == 0) or count == 0:
        return "again", 0
    itemsize = 8 if region.body.type(source(region)).dtype == "float64" else 4
    return "scratch", -(-count * itemsize * (1 if config["across"] else config["wide"] * machine.lanes) // 64) * 64


class Passes:
    """Goes over one unit's elements several times. ``read`` gives an element's value; a pass may replace it."""

    def __init__(self, walk: Walk, unit: Unit, how: str, scratch: Any, read: Callable[[Spot], Any]) -> None:
        self.walk, self.unit, self.how, self.scratch, self.read = walk, unit, how, scratch, read
        self.turns = max(1, walk.count) if how == "registers" else 4
        self.width = 1 if walk.across else sum(w for _, w in unit.columns)
        self._values: dict[tuple[Any, ...], Any] = {}

    def each(self, body: Callable[[Spot, Any], Any], *, first: bool = False) -> None:
        """``body(spot, value)`` for each vector of elements; what it returns (if anything) replaces the value.
        ``first`` reads them; later passes take what the one before left."""

        def visit(spot: Spot) -> None:
            new = body(spot, self.read(spot) if first or self.how == "again" else self._get(spot))
            if new is not None and self.how != "again":
                self._put(spot, new)

        self.walk.over(self.unit, self.turns, visit)

    def fold(
        self,
        combine: Callable[[Any, Any], Any],
        start: float,
        dtype: str,
        body: Callable[[Spot, Any], Any],
        *,
        first: bool = False,
    ) -> list[Any]:
        """Each column's fold of what ``body(spot, value)`` returns as (value to keep or None, value to fold)."""
        from ..tir import constant

        k = self.walk.k
        if self.how == "registers":
            parts: dict[tuple[int, int], Any] = {}

            def take(spot: Spot, value: Any) -> Any:
                new, parts[spot.slot] = body(spot, value)
                return new

            self.each(take, first=first)
            return self._folded(parts, combine)
        turns = max(1, self.turns // len(self.unit.columns))
        slots = {s: k.register(dtype, w) for s, w in self.walk.slots(self.unit, turns).items()}
        for register in slots.values():
            register.set(constant(start, dtype, register.lanes))

        def accumulate(spot: Spot, value: Any) -> Any:
            new, part = body(spot, value)
            register = slots[spot.slot]
            register.set(combine(register.get(), part))
            return new

        self.turns, kept = turns, self.turns
        self.each(accumulate, first=first)
        self.turns = kept
        return self._folded({s: r.get() for s, r in slots.items()}, combine)

    def _folded(self, parts: dict[tuple[int, int], Any], combine: Callable[[Any, Any], Any]) -> list[Any]:
        return [self.walk.fold(parts, c, combine) for c, _ in enumerate(self.unit.columns)]

    def _place(self, spot: Spot) -> Any:
        if self.walk.across:
            return spot.index
        offsets = [sum(w for _, w in self.unit.columns[:c]) for c, _ in enumerate(self.unit.columns)]
        return spot.index * self.width + offsets[spot.slot[0]]

    def _put(self, spot: Spot, value: Any) -> None:
        if self.how == "registers":
            self._values[spot.slot] = self.walk.k.bind(value)
        else:
            self.walk.k.store(self.scratch, self._place(spot), value)

    def _get(self, spot: Spot) -> Any:
        if self.how == "registers":
            return self._values[spot.slot]
        return self.walk.k.bind(self.walk.k.load(self.scratch, self._place(spot), spot.lanes))
