"""What becomes of a block tile's sums: they pass through shared memory, from where consecutive threads take four
neighbouring columns each, do the elementwise work behind the product and store; or parts of the depth leave their sums
in scratch, which a second kernel adds in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..device import DeviceBuilder
from ..evaluate import Coord, Evaluator
from ..tir import constant
from ._cuda_mma import QUAD, SUM_THREADS, Tile, sum_blocks
from ._cuda_mma_emit import Core

Place = Callable[[Any], list[Coord]]  # the coordinates of a row, the columns' axis left at (0, 0)


class Sums:
    """The evaluator of what follows a product, and the sums that it is at. ``axis``: the output's axis of the columns,
    None where there is but one; ``fix(column, lanes)``: what is added to the sums there, before anything else."""

    def __init__(
        self,
        k: DeviceBuilder,
        program: dict[str, Any],
        buffers: list[Any],
        outputs: list[Any],
        axis: int | None,
        columns: int,
        dtype: str,
        fix: Callable[[Any, int], Any] | None = None,
    ) -> None:
        self.k, self.outputs, self.axis, self.columns, self.dtype, self.fix = k, outputs, axis, columns, dtype, fix
        self.ev = Evaluator(k, program, buffers, anchor=self._anchor)
        self.now: Any = None

    def _anchor(self, number: int, coords: list[Coord]) -> Any:
        return self.now

    def store(self, coords: list[Coord], column: Any, values: Any, lanes: int) -> None:
        """Finishes ``lanes`` columns from ``column`` on. ``values`` is their sums."""
        self.ev.begin()
        self.now = self.k.bind(values + self.fix(column, lanes)) if self.fix else values
        if self.axis is not None:
            coords = [*coords[: self.axis], (column, 1 if lanes > 1 else 0), *coords[self.axis + 1 :]]
        self.ev.store_all(self.outputs, coords, lanes)

    def quads(self, column: Any, read: Callable[[Any, int], Any], coords: list[Coord]) -> None:
        """Up to four columns from ``column`` on; ``read(offset, lanes)`` gives their sums."""
        k, whole = self.k, self.columns % QUAD == 0
        if self.columns >= QUAD:
            with k.when(True if whole else column + QUAD <= self.columns):
                self.store(coords, column, read(0, QUAD), QUAD)
        if whole:
            return
        rest = True if self.columns < QUAD else column + QUAD > self.columns
        with k.when(rest), k.loop(QUAD, name="c") as c, k.when(column + c < self.columns):
            at = k.bind(column + c, "column")
            self.store(coords, at, read(c, 1), 1)


@contextmanager
def pieces(k: DeviceBuilder, count: int, threads: int, thread: Any) -> Iterator[Any]:
    """The numbers below ``count`` that fall to this thread."""
    with k.loop(-(-count // threads), name="piece") as turn:
        at = k.bind(turn * threads + thread, "at")
        with k.when(at < count if count % threads else True):
            yield at


def each_quad(
    k: DeviceBuilder,
    core: Core,
    origin: tuple[Any, Any],
    extents: tuple[int, int],
    down: bool,
    use: Callable[[Any, Any, Callable[[Any, int], Any]], None],
) -> None:
    """``use(row, column, read)`` for four columns of the tile at ``origin`` at a time, as far as ``extents`` reach.
    ``down``: consecutive threads take consecutive rows, for outputs whose rows are neighbours."""
    from tvm import tirx
    from tvm.tirx import truncdiv, truncmod

    tile = core.tile
    quads = tile.columns // QUAD
    for high, row_of in core.passes():
        with pieces(k, high * quads, tile.threads, core.thread) as at:
            r, q = truncmod(at, high if down else quads), truncdiv(at, high if down else quads)
            r, q = (r, q) if down else (q, r)
            row = k.bind(origin[0] + row_of(r), "row")
            column = k.bind(origin[1] + q * QUAD, "column")
            with k.when(tirx.all(row < extents[0], column < extents[1])):
                base = k.bind((r * tile.out_pitch + q * QUAD) * tile.out_item, "from")

                def read(offset: Any, lanes: int, base: Any = base) -> Any:
                    held = k.array(tile.sums, lanes, "sum")
                    k.run(f"nv_spread<{lanes}, 1>", (held, 0), (core.s, base + offset * tile.out_item))
                    return k.load(held, 0, lanes)

                use(row, column, read)


def finish(
    k: DeviceBuilder, core: Core, sums: Sums, origin: tuple[Any, Any], rows: int, place: Place, *, down: bool = False
) -> None:
    """Everything behind the product, for the tile at ``origin``; ``rows``: of the product."""

    def use(row: Any, column: Any, read: Callable[[Any, int], Any]) -> None:
        sums.quads(column, read, place(row))

    each_quad(k, core, origin, (rows, sums.columns), down, use)


def leave(
    k: DeviceBuilder, core: Core, scratch: Any, base: Any, origin: tuple[Any, Any], rows: int, columns: int
) -> None:
    """The tile's sums to ``scratch``, rows of ``columns`` from element ``base`` on."""

    def use(row: Any, column: Any, read: Callable[[Any, int], Any]) -> None:
        at = k.bind(base + row * columns + column, "to")
        if columns % QUAD == 0:
            k.store(scratch, at, read(0, QUAD))
            return
        with k.loop(QUAD, name="c") as c, k.when(column + c < columns):
            k.store(scratch, at + c, read(c, 1))

    each_quad(k, core, origin, (rows, columns), False, use)


def add_parts(
    k: DeviceBuilder,
    scratch: Any,
    parts: int,
    sums: Sums,
    sizes: tuple[int, int],
    place: Callable[[Any, Any], list[Coord]],
) -> None:
    """A whole kernel: adds what ``leave`` left, part after part, and finishes. ``sizes``: products and rows of each;
    ``place(product, row)`` gives coordinates."""
    from tvm.tirx import truncdiv, truncmod

    batch, rows = sizes
    columns = sums.columns
    quads = -(-columns // QUAD)
    count = batch * rows * quads
    with k.grid(sum_blocks(batch, rows, columns), SUM_THREADS) as (block, thread):
        at = k.bind(block * SUM_THREADS + thread, "at")
        with k.when(at < count if count % SUM_THREADS else True):
            line, column = k.bind(truncdiv(at, quads), "line"), k.bind(truncmod(at, quads) * QUAD, "column")

            def read(offset: Any, lanes: int) -> Any:
                held = k.array(sums.dtype, lanes, "sum")
                for i in range(lanes):
                    k.store(held, i, constant(0, sums.dtype))
                with k.loop(parts, name="part") as part:
                    found = k.load(scratch, part * (batch * rows * columns) + line * columns + column + offset, lanes)
                    k.store(held, 0, k.load(held, 0, lanes) + found)
                return k.load(held, 0, lanes)

            sums.quads(column, read, place(truncdiv(line, rows), truncmod(line, rows)))


def turns_of(tile: Tile, depth: int, parts: int, part: Any) -> tuple[Any, Any]:
    """``(first step, turns)`` of a part of the depth."""
    from tvm import tirx

    turns = -(-depth // tile.depth)
    if parts == 1:
        return 0, turns
    each = -(-turns // parts)
    return part * (each * tile.depth), tirx.Select(part == parts - 1, turns - (parts - 1) * each, each)
