"""The main loop of a block tile: stages of copies ahead of the products, which stay in registers.

The layout of a warp's registers is PTX's for mma.m16n8k*: lane ``4 g + t`` holds of a sum tile rows g and g + 8 at
columns 2 t and 2 t + 1. Operands whose lines lie along the depth look alike for all types: 16 rows (8 columns) times 32
bytes of depth, which ldmatrix deals out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..device import DeviceBuilder
from ..tir import constant
from ._cuda_mma import STEP, Tile
from ._cuda_mma_load import Copies, Loader

ONES = 0x01010101


class Core:
    """One block tile. ``lines``: also sums the rows of A and the columns of B (8-bit integers, for zero points), where
    the flags say so; ``flip``: B is uint8, taken as int8 with 128 less."""

    def __init__(
        self,
        k: DeviceBuilder,
        tile: Tile,
        a: Loader,
        b: Loader,
        thread: Any,
        *,
        lines: tuple[bool, bool] = (False, False),
        flip: bool = False,
    ) -> None:
        self.k, self.tile, self.a, self.b, self.thread, self.flip = k, tile, a, b, thread, flip
        self.s = k.shared("uint8", tile.shared)
        self.sums = k.array(tile.sums, tile.held, "sums")
        self.copies = (Copies(k, tile, "a", a, self.s, thread), Copies(k, tile, "b", b, self.s, thread))
        self.lines = lines
        self.extra: list[Any] = [
            k.array("int32", n, "line") if f else None for f, n in zip(lines, self._extra(), strict=True)
        ]

    def _extra(self) -> tuple[int, int]:
        return self.tile.warp_rows // 4, self.tile.warp_columns // 2

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self, row0: Any, column0: Any, first: Any, turns: Any) -> None:
        """Sums the products of the steps from ``first`` on, ``turns`` times the tile's depth of them."""
        from tvm import tirx

        k, tile = self.k, self.tile
        self._clear()
        for copies, at in zip(self.copies, (row0, column0), strict=True):
            copies.begin(at)
        for stage in range(tile.stages - 1):
            self._start(first + stage * tile.depth, stage * tile.stage, turns, stage)
            for copies in self.copies:
                copies.finish(stage * tile.stage)
        self._places()
        read, write = k.register("int32", 1, "read"), k.register("int32", 1, "write")
        read.set(constant(0, "int32"))
        write.set(constant((tile.stages - 1) * tile.stage, "int32"))
        through = not all(c.direct for c in self.copies)
        with k.loop(tirx.IntImm("int32", turns) if isinstance(turns, int) else turns, name="turn") as turn:
            k.run(f"nv_copies_wait{tile.stages - 2}")
            k.barrier()
            ahead = turn + (tile.stages - 1)
            self._start(first + ahead * tile.depth, write.get(), turns, ahead)
            self._multiply(read.get())
            if through:
                for copies in self.copies:
                    copies.finish(write.get())
            for at in (read, write):
                at.set(tirx.Select(at.get() == (tile.stages - 1) * tile.stage, 0, at.get() + tile.stage))
        k.run("nv_copies_wait0")
        k.barrier()

    def _clear(self) -> None:
        self.k.run(f"nv_clear<{self.tile.held}>", (self.sums, 0))
        for array, count in zip(self.extra, self._extra(), strict=True):
            if array is not None:
                self.k.run(f"nv_clear<{count}>", (array, 0))

    def _start(self, step0: Any, slot: Any, turns: Any, ahead: Any) -> None:
        with self.k.when(ahead < turns):
            for copies in self.copies:
                copies.start(step0, slot)
        self.k.run("nv_copies_close")

    # -- products ----------------------------------------------------------------------------------------------

    def _places(self) -> None:
        """Where this thread reads in a stage, in bytes."""
        k, tile = self.k, self.tile
        across = tile.columns // tile.warp_columns
        if not tile.function:
            self.tr, self.tc = k.bind(self.thread // across), k.bind(self.thread % across)
            return
        self.lane, warp = k.bind(self.thread % 32), self.thread // 32
        self.warp_row = k.bind(warp // across * tile.warp_rows)
        self.warp_column = k.bind(warp % across * tile.warp_columns)
        self.at = [
            k.bind(self._place("a", self.warp_row)),
            k.bind(self._place("b", self.warp_column) + tile.side("a")),
        ]

    def _place(self, side: str, row0: Any) -> Any:
        from tvm.tirx import truncdiv, truncmod

        tile, lane = self.tile, self.lane
        pitch = tile.pitch(side)
        layout = tile.a_layout if side == "a" else tile.b_layout
        low, high, far = truncmod(lane, 8), truncmod(truncdiv(lane, 8), 2) * 8, truncdiv(lane, 16) * 8
        if layout == "k":
            row, chunk = (low + high, far) if side == "a" else (low + far, high)
            return (row0 + row) * pitch + chunk * 2
        if tile.item == 2:
            step, row = (low + far, high) if side == "a" else (low + high, far)
            return step * pitch + (row0 + row) * 2
        return truncmod(lane, 4) * pitch + (row0 + truncdiv(lane, 4)) * tile.item

    def _multiply(self, slot: Any) -> None:
        if not self.tile.function:
            self._by_threads(slot)
            return
        k, tile = self.k, self.tile
        counts = (tile.warp_rows // 16, tile.warp_columns // 16)  # of 16 rows, of 16 columns: four registers each
        steps = tile.depth * tile.item // STEP
        held = [[k.array("uint32", 4 * n, "abcd"[side]) for side, n in enumerate(counts)] for _ in range(min(2, steps))]
        self.rest = [k.array("uint32", 4 * n, "low") for n in counts] if tile.split else []
        at = [k.bind(slot + base) for base in self.at]
        self._fragments(held[0], at, counts, 0)
        for step in range(steps):
            if step + 1 < steps:
                self._fragments(held[(step + 1) % 2], at, counts, step + 1)
            if tile.split:
                self._split(held[step % 2], counts)
                self._products([self.rest[0], held[step % 2][1]], counts)
                self._products([held[step % 2][0], self.rest[1]], counts)
            self._products(held[step % 2], counts)

    def _split(self, held: list[Any], counts: tuple[int, int]) -> None:
        """Each operand as a TF32 number and what is left of it, as another."""
        for side, count in enumerate(counts):
            for i in range(count):
                self.k.run("nv_split_tf32_4", (held[side], 4 * i), (self.rest[side], 4 * i))

    def _fragments(self, held: list[Any], at: list[Any], counts: tuple[int, int], step: int) -> None:
        """Reads a step's registers of both operands."""
        k, tile = self.k, self.tile
        for side, name in enumerate("ab"):
            layout, pitch = (tile.a_layout, tile.b_layout)[side], tile.pitch(name)
            loader = (self.a, self.b)[side]
            for i in range(counts[side]):
                to = (held[side], 4 * i)
                if layout == "k":
                    k.run("nv_ldmatrix4", to, (self.s, at[side] + (16 * i * pitch + step * STEP)))
                elif tile.item == 2:
                    k.run("nv_ldmatrix4_transposed", to, (self.s, at[side] + (step * 16 * pitch + 32 * i)))
                else:
                    near, far = (8 * tile.item, 4 * pitch) if side == 0 else (4 * pitch, 8 * tile.item)
                    k.run("nv_words4", to, (self.s, at[side] + (step * 8 * pitch + 16 * i * tile.item)), near, far)
                if tile.dtype == "float32" and not tile.split and not loader.rounded:
                    k.run("nv_tf32_4", to)
                if side and self.flip:
                    k.run("nv_flip4", to)

    def _products(self, held: list[Any], counts: tuple[int, int]) -> None:
        k, tile = self.k, self.tile
        across = 2 * counts[1]
        if any(self.lines):
            ones = k.array("uint32", 4, "ones")
            for i in range(4):
                k.store(ones, i, constant(ONES, "uint32"))
            for i in range(counts[0] if self.lines[0] else 0):
                k.run(tile.function, (self.extra[0], 4 * i), (held[0], 4 * i), (ones, 0))
            for j in range(across if self.lines[1] else 0):
                k.run("nv_mma_s8", (self.extra[1], 4 * j), (ones, 0), (held[1], 2 * j))
        for i in range(counts[0]):
            for j in range(across):
                k.run(tile.function, (self.sums, 4 * (i * across + j)), (held[0], 4 * i), (held[1], 2 * j))

    def _by_threads(self, slot: Any) -> None:
        """FMA on tiles of a thread; four steps' operands at once where the lines lie along the depth."""
        k, tile = self.k, self.tile
        shapes = ((tile.warp_rows, "a", self.tr), (tile.warp_columns, "b", self.tc))
        four = 16 // tile.item if "k" in (tile.a_layout, tile.b_layout) else 1
        held = [k.array(tile.dtype, n * four, "f") for n, _, _ in shapes]
        bases = (slot, slot + tile.side("a"))
        with k.loop(tile.depth // four, name="step") as step:
            for (count, side, mine), array, base in zip(shapes, held, bases, strict=True):
                self._operand(array, count, side, mine, base, step * four, four)
            for u in range(four):
                a, b = ((h, u * n) for h, (n, _, _) in zip(held, shapes, strict=True))
                k.run(f"nv_fma_tile<{tile.warp_rows}, {tile.warp_columns}>", (self.sums, 0), a, b)

    def _operand(self, array: Any, count: int, side: str, mine: Any, base: Any, step: Any, four: int) -> None:
        """``array[u count + i]``: row ``i`` of this thread at step ``step + u``."""
        k, tile = self.k, self.tile
        pitch, item = tile.pitch(side), tile.item
        layout = tile.a_layout if side == "a" else tile.b_layout
        if layout == "k":
            for i in range(count):
                at = (self._row(side, mine, i)) * pitch + step * item
                k.run(f"nv_spread<{four}, {count}>", (array, i), (self.s, base + at))
            return
        for u in range(four):
            for i in range(0, count, self.group(side)):
                at = (step + u) * pitch + self._row(side, mine, i) * item
                k.run(f"nv_spread<{self.group(side)}, 1>", (array, u * count + i), (self.s, base + at))

    def group(self, side: str) -> int:
        """Neighbouring rows of a thread of a FMA tile."""
        tile = self.tile
        layout, count = (tile.a_layout, tile.warp_rows) if side == "a" else (tile.b_layout, tile.warp_columns)
        return 1 if layout == "k" else min(count, 16 // tile.item)

    def _row(self, side: str, mine: Any, i: int) -> Any:
        tile, group = self.tile, self.group(side)
        lanes = tile.rows // tile.warp_rows if side == "a" else tile.columns // tile.warp_columns
        return i // group * (group * lanes) + mine * group + i % group

    # -- sums --------------------------------------------------------------------------------------------------

    def correct(self, zeros: tuple[int, int], steps: Any, padded: Any) -> None:
        """Takes the zero points out of integer sums of ``steps`` products; ``padded`` further ones were zeros."""
        k, tile = self.k, self.tile
        across = tile.warp_columns // 8
        for i in range(tile.warp_rows // 16):
            for j in range(across):
                for e in range(4):
                    at = 4 * (i * across + j) + e
                    value = k.load(self.sums, at)
                    if self.lines[0]:
                        value = value - k.load(self.extra[0], 4 * i + e // 2 * 2) * zeros[1]
                    if self.lines[1]:
                        line = k.load(self.extra[1], 4 * j + e % 2) + (128 * padded if self.flip else 0)
                        value = value - line * zeros[0]
                    k.store(self.sums, at, value + steps * (zeros[0] * zeros[1]))

    def passes(self) -> Iterator[tuple[int, Any]]:
        """Puts the sums into shared memory, piece after piece, as rows of ``out_pitch``; gives for each the number of
        rows and the function from such a row to the tile's. The threads have met when it is read."""
        from tvm.tirx import truncdiv, truncmod

        tile, k = self.tile, self.k
        for p in range(tile.passes):
            if p:
                k.barrier()
            if tile.function:
                self._put_warps(p)
                high = tile.warp_rows // tile.passes

                def row(r: Any, p: int = p, high: int = high) -> Any:
                    return truncdiv(r, high) * tile.warp_rows + p * high + truncmod(r, high)

            else:
                self._put_threads(p)

                def row(r: Any, p: int = p, high: int = tile.rows // tile.passes) -> Any:
                    return p * high + r

            k.barrier()
            yield tile.rows // tile.passes, row

    def _put_warps(self, p: int) -> None:
        from tvm.tirx import truncdiv, truncmod

        k, tile = self.k, self.tile
        high, across = tile.warp_rows // tile.passes, tile.warp_columns // 8
        row0 = truncdiv(self.warp_row, tile.warp_rows) * high + truncdiv(self.lane, 4)
        base = k.bind((row0 * tile.out_pitch + self.warp_column + truncmod(self.lane, 4) * 2) * tile.out_item)
        for i in range(high // 16):
            for j in range(across):
                for half in range(2):
                    at = 4 * ((p * (high // 16) + i) * across + j) + 2 * half
                    to = base + ((16 * i + 8 * half) * tile.out_pitch + 8 * j) * tile.out_item
                    k.run("nv_put2", (self.s, to), k.load(self.sums, at), k.load(self.sums, at + 1))

    def _put_threads(self, p: int) -> None:
        k, tile = self.k, self.tile
        count = tile.warp_rows // tile.passes
        for i in range(count):
            row = self._row("a", self.tr, p * count + i) - p * (tile.rows // tile.passes)
            for j in range(tile.warp_columns):
                at = (row * tile.out_pitch + self._row("b", self.tc, j)) * tile.out_item
                k.run("nv_put", (self.s, at), k.load(self.sums, (p * count + i) * tile.warp_columns + j))
