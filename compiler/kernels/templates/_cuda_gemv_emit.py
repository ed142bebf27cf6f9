"""Writes the kernels of ``cuda_gemv``."""

from __future__ import annotations

import math
from typing import Any

from ..device import DeviceBuilder
from ..tir import constant
from ._cuda_matmul_emit import Tail, indices_of
from ._cuda_mma import CHUNK, ITEM
from ._cuda_mma_out import pieces

THREADS, WARP = 256, 32
SHUFFLES = {
    "float32": "nv_shuffle_xor",
    "int32": "nv_shuffle_xor_int",
    "float64": "nv_shuffle_xor_double",
}


def emit(k: DeviceBuilder, c: dict[str, Any]) -> None:
    """The whole product."""
    _Few(k, c).emit()


class _Few:
    def __init__(self, k: DeviceBuilder, c: dict[str, Any]) -> None:
        self.k, self.c = k, c
        self.big, self.small = (k.arg(n, c[n]["dtype"], c[n]["span"]) for n in ("big", "small"))
        self.tail = Tail(k, c, c["sums"])
        self.width = CHUNK // ITEM[c["big"]["dtype"]]
        self.few, self.lines, self.share = c["few"], c["lines"], c["share"]

    def emit(self) -> None:
        from tvm.tirx import truncdiv, truncmod

        k, c = self.k, self.c
        batch = math.prod(o["extent"] for o in c["outer"])
        with k.grid(c["blocks"] * batch, THREADS) as (block, self.thread):
            number = k.bind(truncdiv(block, c["blocks"]), "number")
            self.indices = indices_of(k, c["outer"], number)
            self.tail.at(self.indices)
            self.x = k.shared(c["small"]["dtype"], self.few * c["pitch"])
            self._hold_few()
            at = truncmod(block, c["blocks"])
            if c["form"] == "dot":
                self._dot(at)
            else:
                self._sum(at)

    def _base(self, name: str) -> Any:
        return sum((i * o[name] for i, o in zip(self.indices, self.c["outer"], strict=True) if o[name]), start=0)

    def _hold_few(self) -> None:
        """The few rows into shared memory, zeros up to the pitch."""
        from tvm.tirx import truncdiv, truncmod

        k, c, side = self.k, self.c, self.c["small"]
        base = k.bind(self._base("b" if c["swapped"] else "a"), "base")
        width = self.width if side["step"] == 1 and c["depth"] % self.width == 0 else 1
        per_row = c["pitch"] // width
        with pieces(k, self.few * per_row, THREADS, self.thread) as at:
            row, step = truncdiv(at, per_row), truncmod(at, per_row) * width
            source = base + row * side["row"] + step * side["step"]
            if c["pitch"] == c["depth"]:
                k.store(self.x, at * width, k.load(self.small, source, width))
            else:
                k.store(self.x, at, constant(0, side["dtype"]))
                with k.when(step < c["depth"]):
                    k.store(self.x, at, k.load(self.small, source))
        k.barrier()

    # -- lines along the depth ---------------------------------------------------------------------------------

    def _dot(self, block: Any) -> None:
        from tvm import tirx
        from tvm.tirx import truncdiv, truncmod

        k, c, count = self.k, self.c, self.lines * self.few
        groups = THREADS // WARP // self.share
        lane, warp = k.bind(truncmod(self.thread, WARP), "lane"), k.bind(truncdiv(self.thread, WARP), "warp")
        group, mine = truncmod(warp, groups), truncdiv(warp, groups)
        line0 = k.bind(block * (groups * self.lines) + group * self.lines, "line0")
        sums = k.array(c["sums"], count, "sums")
        k.run(f"nv_clear<{count}>", (sums, 0))
        base = self._base("a" if c["swapped"] else "b")
        starts = [
            k.bind(base + tirx.Min(line0 + r, c["many"] - 1) * c["big"]["row"], "start") for r in range(self.lines)
        ]
        chunks = c["pitch"] // self.width
        step = WARP * self.share
        first = k.bind(mine * WARP + lane, "first")
        self._walk(chunks, step, first, lambda at: self._dots(sums, starts, at))
        self._fold(sums, count)
        folded = k.shared(c["sums"], THREADS // WARP * count)
        with k.when(lane == 0):
            for i in range(count):
                k.store(folded, warp * count + i, k.load(sums, i))
        k.barrier()
        self._finish(block, groups * self.lines, folded, self.share, groups * count, self.few)

    def _walk(self, count: int, step: int, first: Any, body: Any) -> None:
        """``body(at)`` for ``at = first, first + step, ...`` below ``count``, four at once: so many loads are under
        way."""
        k, whole = self.k, count // step
        unroll = 4 if whole >= 4 else 1
        with k.loop(whole // unroll, name="turn") as turn:
            for u in range(unroll):
                body(first + (turn * unroll + u) * step)
        for u in range(whole - whole % unroll, whole):
            body(first + u * step)
        if count % step:
            at = first + whole * step
            with k.when(at < count):
                body(at)

    def _dots(self, sums: Any, starts: list[Any], at: Any) -> None:
        k = self.k
        for r, start in enumerate(starts):
            line = (self.big, start + at * self.width)
            k.run(f"nv_dots<{self.few}>", (sums, r * self.few), line, (self.x, at * self.width), self.c["pitch"])

    def _fold(self, sums: Any, count: int) -> None:
        k, dtype = self.k, self.c["sums"]
        for lanes in (16, 8, 4, 2, 1):
            for i in range(count):
                other = k.device(SHUFFLES[dtype], dtype, k.load(sums, i), lanes)
                k.store(sums, i, k.load(sums, i) + other)

    # -- lines across the depth --------------------------------------------------------------------------------

    def _sum(self, block: Any) -> None:
        from tvm import tirx
        from tvm.tirx import truncdiv, truncmod

        k, c, count = self.k, self.c, self.few * self.width
        lane, slice_ = (
            k.bind(truncmod(self.thread, self.lines), "lane"),
            k.bind(truncdiv(self.thread, self.lines), "slice"),
        )
        across = self.lines * self.width
        line0 = k.bind(block * across + lane * self.width, "line0")
        sums = k.array(c["sums"], count, "sums")
        k.run(f"nv_clear<{count}>", (sums, 0))
        base = self._base("a" if c["swapped"] else "b")
        # a thread beyond the last line reads the last ones again
        start = k.bind(base + tirx.Min(line0, c["many"] - self.width), "start")

        def body(at: Any) -> None:
            across = (self.big, start + at * c["big"]["step"])
            k.run(f"nv_axpys<{self.few}>", (sums, 0), across, (self.x, at), c["pitch"])

        self._walk(c["depth"], self.share, slice_, body)
        folded = k.shared(c["sums"], THREADS * count)
        for i in range(count):  # [slice][row][line]
            f, j = divmod(i, self.width)
            k.store(folded, (slice_ * self.few + f) * across + lane * self.width + j, k.load(sums, i))
        k.barrier()
        self._finish(block, across, folded, self.share, self.few * across, 0)

    # -- what follows ------------------------------------------------------------------------------------------

    def _finish(self, block: Any, lines: int, folded: Any, shares: int, step: int, few: int) -> None:
        """Adds what shares of the depth found, and finishes ``lines`` lines from the block's first on. ``few``: of a
        line in ``folded``, 0 where the lines of a row lie side by side."""
        from tvm.tirx import truncdiv, truncmod

        k, c = self.k, self.c
        with pieces(k, lines * self.few, THREADS, self.thread) as at:
            inside, row = k.bind(truncmod(at, lines), "inside"), k.bind(truncdiv(at, lines), "few")
            line = k.bind(block * lines + inside, "line")
            with k.when(line < c["many"]):
                total = k.register(c["sums"], 1, "total")
                total.set(constant(0, c["sums"]))
                place = inside * few + row if few else row * lines + inside
                with k.loop(shares, name="part") as part:
                    total.set(total.get() + k.load(folded, part * step + place))
                line, row = (row, line) if c["swapped"] else (line, row)
                self.tail.sums.store(self.tail.place(row), line, total.get(), 1)
