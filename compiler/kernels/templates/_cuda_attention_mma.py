"""Attention on the tensor cores of a GPU: scores and weights of a tile stay in registers (Dao et al., "FlashAttention",
2022; the layouts of fragments are PTX's, "Matrix Fragments for mma.m16n8k8 / k16").

A warp has 16 queries and ``keys`` keys at a time; a block's ``warps`` are ``rows`` / 16 groups of queries by ``sides``
of keys, whose mixes are joined at the end. Keys and values come through shared memory, ``sides`` tiles at once.
The scores of two neighbouring keys lie in one thread, as the left operand of the second product wants its 16-bit
numbers; for TF32, where it wants keys four apart, the values' rows are taken in another order instead: a product's sum
does not depend on it. float32 counts with 10 bits of fraction in both products, sums are float32.
"""

from __future__ import annotations

import math
from typing import Any

from ._cuda_attention import WARP, Shared
from ._cuda_rows import exchanged
from ._rows import split_index

_PACK = {"float16": "nv_pack_f16", "bfloat16": "nv_pack_bf16"}
_AT_ONCE = 4  # loads of a thread before it stores


def emit_mma(k: Any, config: dict[str, Any]) -> None:
    """One block of queries of a head against all keys."""
    _Tiles(k, config).kernel()


class _Tiles(Shared):
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config)
        self.item = self.operands[0]["dtype"]
        self.half = self.item != "float32"
        self.step, self.keys = config["step"], config["keys"]
        self.steps, self.panels = config["deep"] // self.step, config["wide"] // 8
        self.held = self.keys * config["sides"]  # keys in shared memory
        self.threads = config["warps"] * WARP

    def kernel(self) -> None:
        from tvm import tirx

        k, c = self.k, self.c
        with k.grid(c["blocks"], self.threads) as (block, self.thread):
            head, group = split_index(block, c["groups"])
            self.start(head)
            warp, lane = split_index(self.thread, WARP)
            self.side, warp = (k.bind(v) for v in split_index(warp, c["rows"] // 16))
            self.lane = k.bind(lane, "lane")
            self.row, self.pair = (k.bind(v) for v in split_index(self.lane, 4))
            self.own = k.bind(warp * 16 + self.row, "own")
            first = k.bind(group * c["rows"], "first")
            self.query = k.bind(first + self.own, "query")
            kind = self.item if self.half else "uint32"
            self.held_keys = k.shared(kind, self.held * c["key_line"], "keys")
            self.held_values = k.shared(kind, self.held * c["value_line"], "values")
            self._queries()
            self._clear()
            end: Any = c["length"]
            if c["causal"]:
                end = k.bind(tirx.Min(c["length"], first + c["rows"]), "end")
            with k.loop(split_index(end + (self.held - 1), self.held)[0], name="tile") as tile:
                at = k.bind(tile * self.held, "key") if not isinstance(tile, int) else tile * self.held
                self._tile(at)
            self._finish()

    def _clear(self) -> None:
        from ..tir import constant

        k = self.k
        self.mixed = k.array("float32", 4 * self.panels, "mixed")
        self.most = [k.register("float32", 1, "most") for _ in range(2)]
        self.total = [k.register("float32", 1, "total") for _ in range(2)]
        for i in range(4 * self.panels):
            k.store(self.mixed, i, constant(0, "float32"))
        for most, total in zip(self.most, self.total, strict=True):
            most.set(constant(-math.inf, "float32"))
            total.set(constant(0, "float32"))

    # -- operands

    def _queries(self) -> None:
        """The fragments of this warp's queries, from memory."""
        from tvm import tirx

        k, c = self.k, self.c
        self.q = k.array("uint32", 4 * self.steps, "q")
        rows = [k.bind(tirx.Min(self.query + 8 * r, c["queries"] - 1), "row") for r in range(2)]
        for s in range(self.steps):
            for i in range(4):
                row, unit = rows[i % 2], s * self.step + i // 2 * (self.step // 2)
                if self.half:
                    column = k.bind(self.pair * 2 + unit, "column")
                    parts = [self._padded(row, column + j) for j in range(2)]
                    word = k.device(_PACK[self.item], "uint32", *parts)
                else:
                    word = k.device("nv_tf32", "uint32", self._padded(row, k.bind(self.pair + unit, "column")))
                k.store(self.q, 4 * s + i, word)

    def _padded(self, row: Any, column: Any) -> Any:
        """A query's element, 0 behind its end."""
        from tvm import tirx

        from ..tir import constant, select

        depth = self.c["depth"]
        if self.c["deep"] == depth:
            return self.k.bind(self.value(0, row, column))
        value = self.k.bind(self.value(0, row, tirx.Min(column, depth - 1)))
        return self.k.bind(select(tirx.LT(column, depth), value, constant(0, "float32")))

    def _copy(self, which: int, held: Any, line: int, columns: int, first: Any) -> None:
        """Keys or values from ``first`` on to shared memory; 0 behind their ends."""
        lanes = self.c["lanes"][which - 1]
        pieces = columns // lanes
        total = self.held * pieces
        count = -(-total // self.threads)

        def some(start: Any, number: int, tail: bool) -> None:
            chunk = [self._piece(which, first, start + i, pieces, lanes) for i in range(number)]
            for row, column, valid, value in chunk:
                self._put(held, row, line, column, lanes, valid, value, tail)

        tail = total % self.threads != 0
        with self.k.loop(count // _AT_ONCE) as turn:
            some(turn * _AT_ONCE, _AT_ONCE, tail and count % _AT_ONCE == 0)
        if count % _AT_ONCE:
            some(count // _AT_ONCE * _AT_ONCE, count % _AT_ONCE, tail)

    def _piece(self, which: int, first: Any, number: int, pieces: int, lanes: int) -> tuple[Any, Any, Any, Any]:
        """One thread's piece: its place, whether it exists, and its elements in registers or where they lie."""
        from tvm import tirx

        from ..tir import constant

        k, c = self.k, self.c
        at = k.bind(number * self.threads + self.thread, "at")
        row, piece = (k.bind(v) for v in split_index(at, pieces))
        column = k.bind(piece * lanes, "column")
        extent = c["depth"] if which == 1 else c["width"]
        valid = k.bind(tirx.all(tirx.LT(first + row, c["length"]), tirx.LT(column, extent)), "valid")
        if c["asynchronous"]:
            return row, column, valid, (which, first + row)
        held = k.register(self.item, lanes, "piece")
        held.set(constant(0, self.item, lanes))
        with k.when(valid):
            held.set(self.load(which, first + row, column, lanes))
        return row, column, valid, held

    def _put(self, to: Any, row: Any, line: int, column: Any, lanes: int, valid: Any, value: Any, tail: bool) -> None:
        from tvm import tirx

        k = self.k
        with k.when(tirx.LT(row, self.held) if tail else True):
            place = k.bind(row * line + column, "place")
            if self.c["asynchronous"]:
                which, key = value
                rows = self.strides(which)[0]
                extent = self.c["depth"] if which == 1 else self.c["width"]
                source = self.base[which] + tirx.Min(key, self.c["length"] - 1) * rows
                source = source + tirx.Min(column, extent - lanes)
                k.run("nv_copy16", (to, place), (self.buffers[which], source), tirx.Cast("int32", valid))
            elif self.half:
                k.store(to, place, value.get())
            else:
                words = k.array("uint32", lanes, "words")
                for i in range(lanes):
                    k.store(words, i, k.device("nv_tf32", "uint32", k.load(value.buffer, i)))
                k.store(to, place, k.load(words, 0, lanes))

    # -- a tile of keys

    def _tile(self, first: Any) -> None:
        from ..tir import constant

        k, c = self.k, self.c
        k.barrier()
        self._copy(1, self.held_keys, c["key_line"], c["deep"], first)
        self._copy(2, self.held_values, c["value_line"], c["wide"], first)
        if c["asynchronous"]:
            k.run("nv_copies_close")
            k.run("nv_copies_wait0")
        k.barrier()
        scores = k.array("float32", self.keys // 2, "scores")
        for i in range(self.keys // 2):
            k.store(scores, i, constant(0, "float32"))
        matrix, line = split_index(self.lane, 8)
        upper, lower = split_index(matrix, 2)
        place = (self.side * self.keys + upper * 8 + line) * c["key_line"] + lower * (self.step // 2)
        place = k.bind(place, "place")
        for s in range(self.steps):
            for n in range(self.keys // 16):
                right = k.array("uint32", 4, "right")
                at = place + (n * 16 * c["key_line"] + s * self.step)
                k.run("nv_ldmatrix4", (right, 0), (self.held_keys, at))
                for j in range(2):
                    k.run(c["function"], (scores, 8 * n + 4 * j), (self.q, 4 * s), (right, 2 * j))
        self._weigh(scores, k.bind(first + self.side * self.keys, "first"))
        (self._mix_half if self.half else self._mix_float)(scores)

    def _weigh(self, scores: Any, first: Any) -> None:
        """Scores become weights relative to the largest score so far; what was mixed before is scaled to that."""
        from ..vecmath import combine

        k, larger = self.k, combine("maximum")
        for r in range(2):
            places = [4 * n + 2 * r + j for n in range(self.keys // 8) for j in range(2)]
            old = k.bind(self.most[r].get())
            most = old
            for i in places:
                key = first + (self.pair * 2 + (i // 4 * 8 + i % 2))
                score = self.masked(k.bind(k.load(scores, i)), self.query + 8 * r, key, self.c["length"])
                k.store(scores, i, score)
                most = k.bind(larger(most, score))
            for distance in (1, 2):
                most = k.bind(larger(most, k.bind(exchanged(k, most, distance))))
            safe = self.finite(most)
            factor = self.exp(old - safe)
            self.most[r].set(most)
            weights = []
            for i in places:
                weights.append(self.exp(k.bind(k.load(scores, i)) - safe))
                k.store(scores, i, weights[-1])
            self.total[r].set(self.total[r].get() * factor + k.fold(weights, lambda a, b: a + b))
            for n in range(self.panels):
                for i in (4 * n + 2 * r, 4 * n + 2 * r + 1):
                    k.store(self.mixed, i, k.load(self.mixed, i) * factor)

    def _mix_half(self, weights: Any) -> None:
        k, line = self.k, self.c["value_line"]
        matrix, row = split_index(self.lane, 8)
        right_half, lower = split_index(matrix, 2)
        place = k.bind((self.side * self.keys + lower * 8 + row) * line + right_half * 8, "place")
        for s in range(self.keys // 16):
            left = k.array("uint32", 4, "left")
            for i in range(4):
                at = 8 * s + i // 2 * 4 + i % 2 * 2
                k.store(left, i, k.device(_PACK[self.item], "uint32", k.load(weights, at), k.load(weights, at + 1)))
            for n in range(self.panels // 2):
                right = k.array("uint32", 4, "right")
                k.run("nv_ldmatrix4_transposed", (right, 0), (self.held_values, place + (s * 16 * line + n * 16)))
                for j in range(2):
                    k.run(self.c["function"], (self.mixed, 8 * n + 4 * j), (left, 0), (right, 2 * j))

    def _mix_float(self, weights: Any) -> None:
        k, line = self.k, self.c["value_line"]
        place = k.bind((self.side * self.keys + self.pair * 2) * line + self.row, "place")
        for s in range(self.keys // 8):
            left = k.array("uint32", 4, "left")
            for i, at in enumerate((0, 2, 1, 3)):  # keys 2t and 2t + 1 as columns t and t + 4
                k.store(left, i, k.device("nv_tf32", "uint32", k.load(weights, 4 * s + at)))
            for n in range(self.panels):
                right = k.array("uint32", 2, "right")
                for i in range(2):
                    k.store(right, i, k.load(self.held_values, place + (s * 8 * line + i * line + n * 8)))
                k.run(self.c["function"], (self.mixed, 4 * n), (left, 0), (right, 0))

    # -- the result

    def _finish(self) -> None:
        from tvm import tirx

        k, c = self.k, self.c
        for total in self.total:
            for distance in (1, 2):
                value = k.bind(total.get())
                total.set(value + exchanged(k, value, distance))
        if c["sides"] > 1:
            self._join()
        for r in range(2):
            query = k.bind(self.query + 8 * r, "query")
            with k.when(tirx.all(tirx.LT(query, c["queries"]), tirx.EQ(self.side, 0))):
                scale = self.quotient(1.0, k.bind(self.total[r].get()))
                for n in range(self.panels):
                    for j in range(2):
                        column = k.bind(self.pair * 2 + (8 * n + j), "column")
                        inside = True if 8 * n + 8 <= c["width"] else tirx.LT(column, c["width"])
                        with k.when(inside):
                            self.store(query, column, k.load(self.mixed, 4 * n + 2 * r + j) * scale)

    def _join(self) -> None:
        """The first side's warps take in what the others' come to, one after the other."""
        from tvm import tirx

        k, c = self.k, self.c
        rows, line = c["rows"], c["wide"] + 8
        facts = k.shared("float32", c["sides"] * rows * 2, "facts")
        mixed = k.shared("float32", c["sides"] * rows * line, "others")
        with k.when(self.side > 0):
            for r in range(2):
                place = k.bind(self.side * rows + self.own + 8 * r, "place")
                k.store(facts, place * 2, self.most[r].get())
                k.store(facts, place * 2 + 1, self.total[r].get())
                for n in range(self.panels):
                    for j in range(2):
                        at = place * line + self.pair * 2 + (8 * n + j)
                        k.store(mixed, at, k.load(self.mixed, 4 * n + 2 * r + j))
        k.barrier()
        with k.when(tirx.EQ(self.side, 0)):
            for side in range(1, c["sides"]):
                for r in range(2):
                    self._take_in(facts, mixed, k.bind(self.own + (side * rows + 8 * r), "place"), r)

    def _take_in(self, facts: Any, mixed: Any, place: Any, r: int) -> None:
        from ..vecmath import combine

        k, line, larger = self.k, self.c["wide"] + 8, combine("maximum")
        most, old = k.bind(k.load(facts, place * 2)), k.bind(self.most[r].get())
        both = k.bind(larger(old, most))
        safe = self.finite(both)
        kept, taken = self.exp(old - safe), self.exp(most - safe)
        self.most[r].set(both)
        self.total[r].set(self.total[r].get() * kept + k.load(facts, place * 2 + 1) * taken)
        for n in range(self.panels):
            for j in range(2):
                i, at = 4 * n + 2 * r + j, place * line + self.pair * 2 + (8 * n + j)
                k.store(self.mixed, i, k.load(self.mixed, i) * kept + k.load(mixed, at) * taken)
