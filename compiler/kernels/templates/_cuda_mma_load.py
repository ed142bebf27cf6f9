"""Where a block tile's operands lie: loaders, which give the address of each copy, and the copies into shared memory.

A loader answers for one operand. ``begin(row)`` is asked once for each row (column of B) that a thread copies;
``at(state, step)`` gives ``(buffer, element, valid)`` for the ``width`` elements from that step of the depth on, along
the depth (layout ``k``) or along the rows (layout ``row``). ``valid`` is True where it always holds; what is not valid
becomes ``fill`` (four bytes as one number, 0 for zeros). Implicit products, of convolutions say, are other subclasses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..device import DeviceBuilder
from ..tir import constant
from ._cuda_mma import Tile

State = Any


class Loader:
    """``width`` elements of ``dtype`` are copied at once: ``copy`` bytes (16 or 4) straight to shared memory, or, where
    ``copy`` is less, one by one through registers. ``walk``: the direction that consecutive threads take, ``k`` or
    ``row``. ``rounded``: float32 that the tensor cores may take as it is."""

    def __init__(
        self,
        dtype: str,
        width: int,
        copy: int,
        *,
        layout: str = "k",
        walk: str = "",
        fill: int = 0,
        rounded: bool = False,
    ) -> None:
        self.dtype, self.width, self.copy, self.layout, self.fill = dtype, width, copy, layout, fill
        self.walk, self.rounded = walk or layout, rounded

    def begin(self, k: DeviceBuilder, row: Any) -> State:
        raise NotImplementedError

    def at(self, k: DeviceBuilder, state: State, step: Any) -> tuple[Any, Any, Any]:
        raise NotImplementedError


class Strided(Loader):
    """An operand with one stride for its rows and one for its steps, from element ``base`` on. ``tile_rows`` and
    ``tile_depth``: where these divide the extents nothing lies outside."""

    def __init__(
        self, buffer: Any, base: Any, side: dict[str, Any], rows: int, depth: int, tile_rows: int, tile_depth: int
    ) -> None:
        super().__init__(
            side["dtype"],
            side["width"],
            side["copy"],
            layout=side["layout"],
            walk=side["walk"],
            rounded=side.get("rounded", False),
        )
        self.buffer, self.base, self.rows, self.depth = buffer, base, rows, depth
        self.row, self.step = side["row"], side["step"]
        self.whole = rows % tile_rows == 0, depth % tile_depth == 0

    def begin(self, k: DeviceBuilder, row: Any) -> State:
        from tvm import tirx

        inside = True if self.whole[0] else row < self.rows
        at = row if self.whole[0] else tirx.Select(inside, row, 0)
        return k.bind(self.base + at * self.row, "row"), inside

    def at(self, k: DeviceBuilder, state: State, step: Any) -> tuple[Any, Any, Any]:
        from tvm import tirx

        offset, inside = state
        if self.whole[1]:
            return self.buffer, offset + step * self.step, inside
        valid = step < self.depth
        at = offset + tirx.Select(valid, step, 0) * self.step
        return self.buffer, at, valid if inside is True else tirx.all(inside, valid)


class Copies:
    """The copies that one operand of a block tile takes, by all its threads."""

    def __init__(self, k: DeviceBuilder, tile: Tile, side: str, loader: Loader, shared: Any, thread: Any) -> None:
        self.k, self.tile, self.loader, self.s, self.thread = k, tile, loader, shared, thread
        self.rows = tile.rows if side == "a" else tile.columns
        self.base = 0 if side == "a" else tile.side("a")
        self.pitch, self.direct = tile.pitch(side), loader.copy >= 4
        along = (tile.depth, self.rows) if loader.layout == "k" else (self.rows, tile.depth)
        assert loader.width == 1 or loader.walk == loader.layout
        assert not self.direct or loader.copy == loader.width * tile.item
        # (extent in the walking direction, extent across it), in copies
        self.inner, self.outer = along[0] // loader.width, along[1]
        if loader.walk != loader.layout:
            self.inner, self.outer = self.outer, self.inner
        self.count = -(-self.inner * self.outer // tile.threads)
        self.states: list[State] = []
        self.held: Any = None

    def place(self, i: int) -> tuple[Any, Any]:
        """``(row, step)`` of this thread's copy number ``i``, in the tile."""
        threads, width = self.tile.threads, self.loader.width
        if threads % self.inner == 0:
            inner, outer = self.thread % self.inner, self.thread // self.inner + i * (threads // self.inner)
        else:
            pieces = self.inner // threads
            inner, outer = self.thread + i % pieces * threads, i // pieces
        inner = inner * width
        return (outer, inner) if self.loader.walk == "k" else (inner, outer)

    def begin(self, row0: Any) -> None:
        """Finds what does not change with the depth. ``row0``: the tile's first row."""
        self.states = []
        for i in range(self.count):
            row, _ = self.place(i)
            known = i > 0 and self.loader.walk == "row" and self.tile.threads % self.inner == 0
            self.states.append(self.states[0] if known else self.loader.begin(self.k, row0 + row))
        if not self.direct:
            self.held = self.k.array(self.loader.dtype, self.count * self.loader.width, "held")

    def _each(self) -> Iterator[tuple[int, Any, Any]]:
        for i in range(self.count):
            row, step = self.place(i)
            line, along = (row, step) if self.loader.layout == "k" else (step, row)
            with self.k.when(
                self.thread < self.inner * self.outer if self.inner * self.outer < self.tile.threads else True
            ):
                yield i, step, self.base + line * self.pitch + along * self.tile.item

    def start(self, step0: Any, slot: Any) -> None:
        """Starts the copies of the steps from ``step0`` on to the stage that begins at byte ``slot``; or loads them to
        registers, from which ``finish`` takes them."""
        from tvm import tirx

        k, loader = self.k, self.loader
        for i, step, at in self._each():
            buffer, offset, valid = loader.at(k, self.states[i], step0 + step)
            if not self.direct:
                self._load(i, buffer, offset, valid)
            elif loader.fill and valid is not True:
                with k.when(valid):
                    k.run(f"nv_copy{loader.copy}", (self.s, slot + at), (buffer, offset), 1)
                with k.when(tirx.Not(valid)):
                    k.run(f"nv_fill{loader.copy}", (self.s, slot + at), loader.fill)
            else:
                k.run(
                    f"nv_copy{loader.copy}",
                    (self.s, slot + at),
                    (buffer, offset),
                    1 if valid is True else valid.astype("int32"),
                )

    def _load(self, i: int, buffer: Any, offset: Any, valid: Any) -> None:
        k, loader = self.k, self.loader
        for e in range(loader.width):
            at = i * loader.width + e
            byte = loader.fill & 255
            byte = byte - 256 if loader.dtype == "int8" and byte > 127 else byte
            k.store(self.held, at, constant(byte, loader.dtype))
            with k.when(valid):
                k.store(self.held, at, k.load(buffer, offset + e))

    def finish(self, slot: Any) -> None:
        """Puts what went through registers into the stage."""
        if self.direct:
            return
        for i, _, at in self._each():
            for e in range(self.loader.width):
                value = self.k.load(self.held, i * self.loader.width + e)
                self.k.run("nv_put", (self.s, slot + at + e * self.tile.item), value)
