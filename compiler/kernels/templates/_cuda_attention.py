"""Attention on a GPU: what its kernels share, and the kernel by FMA for single queries, for doubles and exact numbers.

Scores are never stored: softmax goes along with the walk over the keys (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021). In this kernel a
lane has a key while scores are made and columns of the values while these are mixed; a block's warps share out the keys
of its few queries, and where there are many keys, so do blocks, whose parts a second kernel joins in order.
"""

from __future__ import annotations

import math
from typing import Any

from ._cuda_rows import exchanged, from_lane
from ._rows import Coords, split_index
from .cuda_softmax import exponential

WARP = 32


class Shared:
    """Operands of one kernel: ``c`` holds ``program``, ``numbers`` (the inputs that are q, k, v, mask), ``lead``,
    ``queries``, ``depth``, ``length``, ``width``, ``scale``, ``causal``, ``softcap``, ``exact`` and ``dtype``, in which
    it computes."""

    def __init__(self, k: Any, config: dict[str, Any], *, joins: bool = False) -> None:
        from ..evaluate import Evaluator

        self.k, self.c, self.dtype = k, config, config["dtype"]
        program = config["program"]
        self.inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.out = k.arg("y", program["outputs"][0]["dtype"], program["outputs"][0]["span"])
        self.scratch = k.arg("parts", self.dtype, config["held"]) if config["parts"] > 1 else None
        self.anchor = program["anchor"][0]
        self.result: Any = None
        self.ev = Evaluator(k, program, self.inputs, anchor=lambda number, coords: self.result)
        self.operands: list[Any] = [None if n is None else program["inputs"][n] for n in config["numbers"]]
        self.buffers = [None if n is None else self.inputs[n] for n in config["numbers"]]
        self.lead: list[Any] = []

    def start(self, head: Any) -> None:
        """Where the operands of this block's head begin."""
        self.head = head
        for extent in reversed(self.c["lead"]):
            head, index = split_index(head, extent)
            self.lead.insert(0, index if isinstance(index, int) else self.k.bind(index, "lead"))
        self.base = [None if o is None else self._base(o) for o in self.operands]

    def _base(self, operand: dict[str, Any]) -> Any:
        strides, dims = operand["strides"][:-2], operand["shape"]
        axes = self.lead[len(self.lead) - len(strides) :]
        total: Any = 0
        for index, stride, extent in zip(axes, strides, dims, strict=False):
            if stride and extent > 1:
                total = total + index * stride
        return total if isinstance(total, int) else self.k.bind(total, "base")

    def strides(self, which: int) -> tuple[int, int]:
        """Of rows and columns of q, k, v or the mask; 0 where that is broadcast."""
        operand = self.operands[which]
        both = [s if d > 1 else 0 for s, d in zip(operand["strides"], operand["shape"], strict=True)]
        rows, columns = [0, 0, *both][-2:]
        return rows, columns

    def load(self, which: int, row: Any, column: Any, lanes: int = 1) -> Any:
        """Elements of q, k or v of this head from (row, column) on, side by side, in the operand's type."""
        rows, columns = self.strides(which)
        return self.k.load(self.buffers[which], self.base[which] + row * rows + column * columns, lanes)

    def value(self, which: int, row: Any, column: Any) -> Any:
        from ..functions import cast

        return cast(self.load(which, row, column), self.dtype)

    def adjacent(self, which: int, lanes: int) -> bool:
        """Whether rows can be read ``lanes`` elements at once."""
        return self.strides(which)[1] == 1 and self.operands[which]["shape"][-1] % lanes == 0

    def masked(self, x: Any, query: Any, key: Any, end: Any) -> Any:
        """Scale, cap and masks on one product of a query and a key; keys from ``end`` on are hidden."""
        from tvm import tirx

        from .. import vecmath
        from ..functions import cast
        from ..tir import like, select

        c, k = self.c, self.k
        hidden = like(-math.inf, x)
        x = x * like(c["scale"] / (c["softcap"] or 1.0), x)
        if c["softcap"]:
            x = vecmath.tanh(k, k.bind(x)) * like(c["softcap"], x)
        seen = tirx.LT(key, end)
        if c["causal"]:
            seen = tirx.all(seen, tirx.LE(key, query))
        if len(self.operands) > 3 and self.operands[3] is not None:
            rows, columns = self.strides(3)
            row, column = tirx.Min(query, c["queries"] - 1), tirx.Min(key, c["length"] - 1)
            given = k.bind(k.load(self.buffers[3], self.base[3] + row * rows + column * columns), "mask")
            if self.operands[3]["dtype"] == "bool":
                seen = tirx.all(seen, given != like(0, given))
            else:
                x = x + cast(given, self.dtype)
        return k.bind(select(k.bind(seen, "seen"), k.bind(x), hidden))

    def exp(self, x: Any) -> Any:
        return self.k.bind(exponential(self.k, self.k.bind(x), self.c["exact"]))

    def finite(self, most: Any) -> Any:
        """What is taken off scores: 0 where nothing is visible yet."""
        from tvm import tirx

        from ..tir import like, select

        return self.k.bind(select(tirx.EQ(most, like(-math.inf, most)), like(0, most), most))

    def quotient(self, mixed: Any, total: Any) -> Any:
        """A mix of values over the sum of weights; 0 where a query saw nothing."""
        from tvm import tirx

        from ..tir import like, select

        total = self.k.bind(total)
        blind = self.k.bind(tirx.EQ(total, like(0, total)))
        return self.k.bind(select(blind, like(0, total), mixed / select(blind, like(1, total), total)))

    def store(self, query: Any, column: Any, value: Any) -> None:
        """The epilogue and the store of one element."""
        from ..functions import cast

        self.result = self.k.bind(cast(value, self.ev.dtype(self.anchor)))
        coords: Coords = [*((x, 0) for x in self.lead), (query, 0), (column, 0)]
        self.ev.begin()
        self.ev.store(0, self.out, coords)


def emit_rows(k: Any, config: dict[str, Any]) -> None:
    """``rows`` queries of a head and a part of its keys for each block of ``warps``."""
    _Rows(k, config).kernel()


class _Rows(Shared):
    def kernel(self) -> None:
        from tvm import tirx

        from ..tir import constant

        k, c = self.k, self.c
        rows, warps = c["rows"], c["warps"]
        with k.grid(c["blocks"], warps * WARP) as (block, thread):
            rest, self.part = split_index(block, c["parts"])
            head, group = split_index(rest, c["groups"])
            self.start(head)
            self.warp, self.lane = split_index(thread, WARP)
            self.thread, self.first = thread, k.bind(group * rows, "first")
            self.queries = [k.bind(tirx.Min(self.first + r, c["queries"] - 1), "query") for r in range(rows)]
            held = k.shared(self.dtype, rows * c["depth"], "q")
            with k.loop(-(-rows * c["depth"] // (warps * WARP))) as i:
                at = k.bind(i * (warps * WARP) + thread, "at")
                row, column = split_index(at, c["depth"])
                with k.when(tirx.LT(at, rows * c["depth"])):
                    k.store(held, at, self.value(0, tirx.Min(self.first + row, c["queries"] - 1), column))
            k.barrier()
            self.q = held
            self.columns = -(-c["width"] // WARP)
            self.most = [k.register(self.dtype, 1, "most") for _ in range(rows)]
            self.total = [k.register(self.dtype, 1, "total") for _ in range(rows)]
            self.mixed = [[k.register(self.dtype, 1, "mixed") for _ in range(self.columns)] for _ in range(rows)]
            for r in range(rows):
                self.most[r].set(constant(-math.inf, self.dtype))
                for register in (self.total[r], *self.mixed[r]):
                    register.set(constant(0, self.dtype))
            self._walk()
            self._join()

    def _walk(self) -> None:
        """The keys of this warp: every ``warps``-th tile of the part."""
        from tvm import tirx

        k, c = self.k, self.c
        begin = k.bind(self.part * (c["share"] * WARP), "begin") if c["parts"] > 1 else 0
        end: Any = tirx.Min(begin + c["share"] * WARP, c["length"])
        if c["causal"]:
            end = tirx.Min(end, self.first + c["rows"])
        end = k.bind(tirx.Max(end, begin), "end")
        tiles = k.bind(tirx.truncdiv(end - begin + (WARP * c["warps"] - 1) - self.warp * WARP, WARP * c["warps"]), "n")
        with k.loop(tiles, name="tile") as i:
            at = k.bind(begin + (i * c["warps"] + self.warp) * WARP, "key")
            weights = self._weights(at, end)
            self._mix(at, k.bind(tirx.Min(WARP, end - at), "count"), weights)

    def _weights(self, at: Any, end: Any) -> list[Any]:
        """The weight of this lane's key for each query; what was mixed before is scaled to the new largest score."""
        from tvm import tirx

        from ..tir import constant
        from ..vecmath import combine

        k, c = self.k, self.c
        key = k.bind(at + self.lane, "key")
        row = k.bind(tirx.Min(key, c["length"] - 1), "row")
        sums = [k.register(self.dtype, 1, "sum") for _ in range(c["rows"])]
        for register in sums:
            register.set(constant(0, self.dtype))
        lanes = next(n for n in (4, 2, 1) if n == 1 or self.adjacent(1, n))
        with k.loop(c["depth"] // lanes, name="e") as e:
            self._products(sums, row, e * lanes, lanes)
        weights, larger = [], combine("maximum")
        for r, register in enumerate(sums):
            score = self.masked(k.bind(register.get()), self.queries[r], key, end)
            most, old = score, k.bind(self.most[r].get())
            distance = WARP // 2
            while distance:
                most = k.bind(larger(most, k.bind(exchanged(k, most, distance))))
                distance //= 2
            most = k.bind(larger(old, most))
            safe = self.finite(most)
            weight, factor = self.exp(score - safe), self.exp(old - safe)
            self.most[r].set(most)
            self.total[r].set(self.total[r].get() * factor + weight)
            for mixed in self.mixed[r]:
                mixed.set(mixed.get() * factor)
            weights.append(weight)
        return weights

    def _products(self, sums: list[Any], row: Any, column: Any, lanes: int) -> None:
        from ..functions import cast

        k, depth = self.k, self.c["depth"]
        held = k.register(self.operands[1]["dtype"], lanes, "k")
        held.set(self.load(1, row, column, lanes))
        for i in range(lanes):
            factor = k.bind(cast(k.load(held.buffer, i), self.dtype))
            for r, register in enumerate(sums):
                register.set(k.load(self.q, r * depth + column + i) * factor + register.get())

    def _mix(self, at: Any, count: Any, weights: list[Any]) -> None:
        from tvm import tirx

        k, c = self.k, self.c
        with k.loop(count, name="t") as t:
            factors = [k.bind(from_lane(k, w, t)) for w in weights]
            for i in range(self.columns):
                column = tirx.Min(self.lane + i * WARP, c["width"] - 1) if c["width"] % WARP else self.lane + i * WARP
                value = k.bind(self.value(2, at + t, column))
                for mixed, factor in zip(self.mixed, factors, strict=True):
                    mixed[i].set(factor * value + mixed[i].get())

    def _join(self) -> None:
        """The warps' parts: put into shared memory, and each thread joins some columns."""
        from tvm import tirx

        k, c = self.k, self.c
        rows, warps, wide = c["rows"], c["warps"], self.columns * WARP
        most, total = (k.shared(self.dtype, warps * rows, n) for n in ("most", "total"))
        mixed = k.shared(self.dtype, warps * rows * wide, "mixed")
        for r in range(rows):
            place = k.bind(self.warp * rows + r, "place")
            sums = self.total[r].get()
            distance = WARP // 2
            while distance:
                sums = k.bind(sums)
                sums = k.bind(sums + exchanged(k, sums, distance))
                distance //= 2
            with k.when(tirx.EQ(self.lane, 0)):
                k.store(most, place, self.most[r].get())
                k.store(total, place, sums)
            for i, register in enumerate(self.mixed[r]):
                k.store(mixed, place * wide + i * WARP + self.lane, register.get())
        k.barrier()
        with k.loop(-(-rows * c["width"] // (warps * WARP))) as i:
            at = k.bind(i * (warps * WARP) + self.thread, "at")
            row, column = (k.bind(v) for v in split_index(at, c["width"]))
            query = k.bind(self.first + row, "query")
            with k.when(tirx.all(tirx.LT(at, rows * c["width"]), tirx.LT(query, c["queries"]))):
                places = [w * rows + row for w in range(warps)]
                parts = [tuple(k.bind(k.load(b, p)) for b in (most, total)) for p in places]
                values = [k.bind(k.load(mixed, p * wide + column)) for p in places]
                self._finish(query, column, [(m, s, v) for (m, s), v in zip(parts, values, strict=True)])

    def _finish(self, query: Any, column: Any, parts: list[tuple[Any, Any, Any]]) -> None:
        from tvm import tirx

        from ..vecmath import combine

        k, c = self.k, self.c
        larger = combine("maximum")
        most = k.fold([m for m, _, _ in parts], lambda a, b: k.bind(larger(a, b)))
        safe = self.finite(most)
        factors = [self.exp(m - safe) for m, _, _ in parts]
        total = k.fold([k.bind(f * s) for f, (_, s, _) in zip(factors, parts, strict=True)], lambda a, b: a + b)
        value = k.fold([k.bind(f * v) for f, (_, _, v) in zip(factors, parts, strict=True)], lambda a, b: a + b)
        if self.scratch is None:
            self.store(query, column, self.quotient(value, total))
            return
        line = c["width"] + 2
        place = k.bind(((self.head * c["queries"] + query) * c["parts"] + self.part) * line, "place")
        k.store(self.scratch, place + 2 + column, value)
        with k.when(tirx.EQ(column, 0)):
            k.store(self.scratch, place, most)
            k.store(self.scratch, place + 1, total)


def emit_join(k: Any, config: dict[str, Any]) -> None:
    """Joins the parts of the keys: a thread for each element of the result."""
    from tvm import tirx

    from ..tir import constant
    from ..vecmath import combine

    kernel, c = Shared(k, config), config
    threads, size = c["join_threads"], math.prod(c["lead"]) * c["queries"] * c["width"]
    with k.grid(-(-size // threads), threads) as (block, thread):
        at = k.bind(block * threads + thread, "at")
        with k.when(tirx.LT(at, size)):
            row, column = (k.bind(v) for v in split_index(at, c["width"]))
            head, query = (k.bind(v) for v in split_index(row, c["queries"]))
            kernel.start(head)
            place = k.bind(row * (c["parts"] * (c["width"] + 2)), "place")
            most, total, value = (k.register(kernel.dtype, 1, n) for n in ("most", "total", "value"))
            for register, start in ((most, -math.inf), (total, 0.0), (value, 0.0)):
                register.set(constant(start, kernel.dtype))
            larger = combine("maximum")
            with k.loop(c["parts"]) as part:
                most.set(larger(most.get(), k.bind(k.load(kernel.scratch, place + part * (c["width"] + 2)))))
            safe = kernel.finite(k.bind(most.get()))
            with k.loop(c["parts"]) as part:
                here = k.bind(place + part * (c["width"] + 2), "here")
                factor = kernel.exp(k.load(kernel.scratch, here) - safe)
                total.set(total.get() + factor * k.load(kernel.scratch, here + 1))
                value.set(value.get() + factor * k.load(kernel.scratch, here + 2 + column))
            kernel.store(query, column, kernel.quotient(value.get(), total.get()))
