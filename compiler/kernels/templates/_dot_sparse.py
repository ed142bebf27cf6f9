"""Writes integer contractions that walk lists of steps: only those in which some weight of the group is not zero.

A step's place in A is read from a list. It is either ``fold`` bytes for all columns (as in ``_dot``), or a *window*
of up to 16 bytes from which each column picks ``fold`` bytes of its own by a byte shuffle: then the windows must hold
few weights of each column, but need no pattern that columns share. The numbers of the bytes are half a byte each, so
that two steps share a vector of them.
"""

from __future__ import annotations

from typing import Any

from ._contract import part
from ._dot import FLIP, Dot
from ._dot_gathers import PART
from ._dot_picks import NIBBLE, table
from ._dot_sparse_plan import chains
from ._tile import vector_spans

GROUP = 4  # numbers that describe a group: first step, steps, where its weights and its picks begin


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: those of ``_dot``, behind the numbers: groups, places in A, and picks where there are windows."""
    Sparse(k, config).run()


class Sparse(Dot):
    """One kernel whose tiles walk their group's list."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction

        super().__init__(k, config)
        self.picks = {int(size): instruction(name) for size, name in config["picks"].items()}

    def _places(self, outer: Any, line: Any, x: Any, packed: Any) -> tuple[Any, Any, Any]:
        """As in ``_dot``, with the number of the group for the place of B."""
        a, _, starts = super()._places(outer, line, x, packed)
        columns = self.columns
        size = columns["nv"] * columns["lanes"]
        if isinstance(packed, int) and packed >= columns["full"] * size:
            firsts = [rest[1] for rest in columns["rests"]]
            return a, columns["full"] + firsts.index(packed), starts
        return a, packed // size, starts

    def reduce(self, acc: Any, sums: Any, widths: list[int], rows: list[int], a: Any, b: Any) -> None:
        (Gathered if "gathers" in self.config else Steps)(self, acc, widths, rows).emit(a, b)


class Steps:
    """The loop over a list, of one tile. Tiles of few sums take the steps in turns to several sets of them, because an
    instruction must wait for the one before it on the same sum."""

    def __init__(self, of: Sparse, acc: Any, widths: list[int], rows: list[int]) -> None:
        self.of, self.k, self.widths, self.rows, self.fold = of, of.k, widths, rows, of.fold
        self.window, self.width = of.config["window"], sum(widths) * of.fold
        count = chains(len(rows) * len(widths), *of.config["waits"])
        self.sets = [acc] + [
            [[self.k.register("int32", w, "acc") for w in widths] for _ in rows] for _ in range(count - 1)
        ]
        self.b = [self.k.register("int8", w * self.fold, "b") for w in widths]
        picks = [of.picks[w * self.fold].lanes for w in widths] if self.window else []
        self.pick = [self.k.register("uint8", size, "pick") for size in picks]

    def emit(self, a: Any, group: Any) -> None:
        k, table = self.k, self.of.lists["groups"]
        first, count, weights, picks = (k.bind(k.load(table, group * GROUP + i), "at") for i in range(GROUP))
        self._clear()

        def one(step: Any, acc: Any, odd: int) -> None:
            if self.window:
                self._load_picks(picks, step, odd)
            self._step(a, first + step, weights + step * self.width, acc)

        self._walk(count, one)
        self._join()

    def _clear(self) -> None:
        for row in (row for extra in self.sets[1:] for row in extra):
            for w, register in zip(self.widths, row, strict=True):
                register.set(_constant(0, w))

    def _walk(self, count: Any, one: Any) -> None:
        """``one(step, sums, place among those that are written out)`` for all steps."""
        k = self.k
        done: Any = 0
        for size in self._sizes():
            times = k.bind((count - done) // size, "times") if size > 1 else count - done
            with k.loop(times) as i:
                for u in range(size):
                    one(done + i * size + u, self.sets[u % len(self.sets)], u % 2)
            done = k.bind(done + times * size, "done")

    def _join(self) -> None:
        for extra in self.sets[1:]:
            for to, row in zip(self.sets[0], extra, strict=True):
                for register, other in zip(to, row, strict=True):
                    register.set(register.get() + other.get())

    def _sizes(self) -> list[int]:
        """Steps that are written out in loops one after the other; each loop takes what the last one left."""
        most = max(len(self.sets), 2 if 0 < self.window <= NIBBLE or len(self.rows) * len(self.b) <= 12 else 1)
        return [size for size in (4, 2, 1) if size <= most]

    def _load_picks(self, picks: Any, step: Any, odd: int) -> None:
        from ..tir import joined, like, shift_right

        for (at, w), register in zip(vector_spans(self.widths), self.pick, strict=True):
            size = w * self.fold
            place = at * self.fold + picks
            if self.window > NIBBLE:
                numbers = self.k.load(self.of.lists["picks"], place + step * self.width, size)
            else:
                both = self.k.load(self.of.lists["picks"], place + (step - odd) // 2 * self.width, size)
                numbers = shift_right(both, like(4, both)) if odd else both & like(15, both)
            register.set(joined([numbers] * (register.lanes // size)))

    def _step(self, a: Any, number: Any, weights: Any, acc: Any) -> None:
        k = self.k
        place = k.bind(a + self.k.load(self.of.lists["places"], number).astype("int32"), "place")
        for (at, w), register in zip(vector_spans(self.widths), self.b, strict=True):
            register.set(k.load(self.of.b, weights + at * self.fold, w * self.fold))
        for p, offset in enumerate(self.rows):
            spread = self._picked(place + offset) if self.window else self._same(place + offset)
            for v, (w, register) in enumerate(zip(self.widths, self.b, strict=True)):
                sums = acc[p][v]
                sums.set(k.instruction(self.of.rows[w], acc=sums.get(), a=spread(v, w), b=register.get()))

    def _same(self, at: Any) -> Any:
        """``fold`` bytes for every column."""
        from ..tir import reinterpret, splat

        kind = f"int{8 * self.fold}"
        x = reinterpret(kind, self.k.load(self.of.source, at, self.fold))
        x = self.k.bind(x ^ _constant(FLIP[self.fold], 1, kind) if self.of.flip else x, "x")
        held = {w: self.k.bind(splat(x, w), "xs") for w in sorted(set(self.widths))}
        return lambda v, w: held[w]

    def _picked(self, at: Any) -> Any:
        """The bytes of a window that each column picks."""
        from ..tir import as_dtype, constant, joined, reinterpreted

        k, words = self.k, self.window // 4
        x = reinterpreted(k.load(self.of.source, at, self.window), as_dtype("int32", words))
        x = k.bind(x ^ _constant(FLIP[4], words) if self.of.flip else x, "window")
        held: dict[Any, Any] = {}

        def spread(v: int, w: int) -> Any:
            row = self.of.picks[w * self.fold]
            size = table(row) // 4
            if (size, row.kind) not in held and size > words:
                more = [x] * (size // words - 1) if row.kind == "pick16" else [constant(0, "int32", size - words)]
                held[size, row.kind] = k.bind(joined([x, *more]), "windows")
            picked = k.instruction(row, t=held.get((size, row.kind), x), i=self.pick[v].get())
            return part(picked, 0, w * self.fold)

        return spread


class Gathered(Steps):
    """Part after part: the bytes that count are gathered for all points, then the steps go over them."""

    def __init__(self, of: Sparse, acc: Any, widths: list[int], rows: list[int]) -> None:
        from ....targets import instruction

        super().__init__(of, acc, widths, rows)
        data = of.config["gathers"]
        self.instruction, self.reach, self.size = instruction(data["row"]), data["window"], data["size"]
        self.line = PART + 64
        self.held = self.k.array("uint8", len(rows) * self.line, "held")

    def emit(self, a: Any, group: Any) -> None:
        k, lists = self.k, self.of.lists
        first, count, weights = (k.bind(k.load(lists["groups"], group * GROUP + i), "at") for i in range(3))
        at = k.register("int32", 1, "weights")
        at.set(weights)
        self._clear()
        with k.loop(count) as i:
            part_first, gathers, steps = (k.bind(k.load(lists["parts"], (first + i) * 3 + j), "part") for j in range(3))
            with k.loop(gathers) as e:
                self._gather(a, part_first + e)
            begin = k.bind(at.get(), "begin")
            self._walk(steps, lambda step, acc, _: self._dense(begin, step, acc))
            at.set(begin + steps * self.width)
        self._join()

    def _gather(self, a: Any, number: Any) -> None:
        from ..tir import as_dtype, constant, joined, reinterpreted

        k, row = self.k, self.instruction
        place = k.bind(a + k.load(self.of.lists["places"], number).astype("int32"), "place")
        end = k.bind(k.load(self.of.lists["ends"], number).astype("int32"), "end")
        index = k.load(self.of.lists["picks"], number * self.size, self.size)
        index = k.bind(joined([index] * (row.lanes // self.size)), "index")
        words, whole = self.reach // 4, table(row) // 4
        for p, offset in enumerate(self.rows):
            x = reinterpreted(k.load(self.of.source, place + offset, self.reach), as_dtype("int32", words))
            x = x ^ _constant(FLIP[4], words) if self.of.flip else x
            x = joined([k.bind(x, "x"), constant(0, "int32", whole - words)]) if whole > words else x
            picked = k.bind(k.instruction(row, t=x, i=index), "picked")
            k.store(self.held, end + p * self.line, part(picked, 0, self.size))

    def _dense(self, weights: Any, step: Any, acc: Any) -> None:
        from ..tir import reinterpret, splat

        k = self.k
        for (at, w), register in zip(vector_spans(self.widths), self.b, strict=True):
            register.set(k.load(self.of.b, weights + step * self.width + at * self.fold, w * self.fold))
        for p in range(len(self.rows)):
            x = reinterpret(f"int{8 * self.fold}", k.load(self.held, step * self.fold + p * self.line, self.fold))
            x = k.bind(x, "x")
            for w, register, sums in zip(self.widths, self.b, acc[p], strict=True):
                row = self.of.rows[w]
                sums.set(k.instruction(row, acc=sums.get(), a=splat(x, w), b=register.get()))


def _constant(value: int, lanes: int, dtype: str = "int32") -> Any:
    from ..tir import constant

    return constant(value, dtype, lanes)
