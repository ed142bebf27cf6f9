"""argmax and argmin: values and their positions folded side by side, inside the walk of ``reduce``."""

from __future__ import annotations

from typing import Any

from ...ops.numeric import highest, lowest, numpy_dtype
from ._rows import Spot, Unit


class Better:
    """Compares (value, position) pairs: the larger or smaller value, of equal ones the first or last; NaN wins."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.largest, self.last = config["folds"][0] == "argmax", config["last"]
        self.is_float = config["dtypes"][0].startswith("float")

    def above(self, new: Any, old: Any) -> Any:
        from tvm import tirx

        from ..vecmath import isnan

        better = new > old if self.largest else new < old
        return tirx.Or(better, tirx.And(isnan(new), tirx.Not(isnan(old)))) if self.is_float else better

    def tied(self, a: Any, b: Any) -> Any:
        from tvm import tirx

        from ..vecmath import isnan

        return tirx.Or(tirx.EQ(a, b), tirx.And(isnan(a), isnan(b))) if self.is_float else tirx.EQ(a, b)

    def later(self, new: Any, old: Any) -> Any:
        """Whether a value further on replaces the one held."""
        from tvm import tirx

        return tirx.Or(self.above(new, old), self.tied(new, old)) if self.last else self.above(new, old)

    def other(self, a: Any, i: Any, b: Any, j: Any) -> Any:
        """Whether (b, j) replaces (a, i), in whatever order they lie."""
        from tvm import tirx

        return tirx.Or(self.above(b, a), tirx.And(self.tied(a, b), j > i if self.last else j < i))


def positions(fold: Any, unit: Unit) -> None:
    """argmax, argmin: values and positions side by side in registers."""
    from tvm import tirx

    from ..tir import constant, select, splat

    k, dtype, better = fold.k, fold.dtypes[0], Better(fold.c)
    slots = fold.walk.slots(unit, 1)
    best = {s: k.register(dtype, w) for s, w in slots.items()}
    where = {s: k.register("int32", w) for s, w in slots.items()}
    worst = (lowest if better.largest else highest)(numpy_dtype(dtype))
    for s, w in slots.items():
        best[s].set(constant(worst, dtype, w))
        where[s].set(constant(-1, "int32", w))

    def take(spot: Spot) -> None:
        (value,), held = fold.values(spot), best[spot.slot].get()
        first = tirx.const(spot.index, "int32") if isinstance(spot.index, int) else spot.index
        index = splat(first, spot.lanes)
        if fold.walk.across and spot.lanes > 1:
            index = tirx.Ramp(first, 1, spot.lanes)
        unset = tirx.EQ(where[spot.slot].get(), constant(-1, "int32", spot.lanes))
        wins = k.bind(tirx.Or(unset, better.later(k.bind(value), held)))
        best[spot.slot].set(select(wins, value, held))
        where[spot.slot].set(select(wins, index, where[spot.slot].get()))

    fold.walk.over(unit, 1, take)
    for column, coords, lanes in fold.walk.results(unit):
        mine = [s for s in sorted(slots) if fold.walk.across or s[0] == column]
        pairs = [(best[s].get(), where[s].get()) for s in mine]
        if fold.walk.across:
            pairs = [_across(k, better, *p) for p in pairs]
        while len(pairs) > 1:
            pairs = [better_pair(k, better, pairs[0], pairs[1]), *pairs[2:]]
        fold.store(coords, lanes, [pairs[0][1]])


def better_pair(k: Any, better: Better, a: Any, b: Any) -> tuple[Any, Any]:
    from ..tir import select

    (x, i), (y, j) = ((k.bind(v) for v in pair) for pair in (a, b))
    wins = k.bind(better.other(x, i, y, j))
    return k.bind(select(wins, y, x)), k.bind(select(wins, j, i))


def _across(k: Any, better: Better, value: Any, index: Any) -> tuple[Any, Any]:
    """The best pair of a vector's lanes."""
    from tvm import tirx

    from ..tir import lanes_of

    while lanes_of(value) > 1:
        half = lanes_of(value) // 2
        halves = [
            tuple(tirx.Shuffle([v], [tirx.IntImm("int32", at + i) for i in range(half)]) for v in (value, index))
            for at in (0, half)
        ]
        value, index = better_pair(k, better, *halves)
    return value, index
