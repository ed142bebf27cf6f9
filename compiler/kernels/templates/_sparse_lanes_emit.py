"""Writes the kernels of ``sparse_lanes``: contractions whose lanes each pick their own inputs out of a window."""

from __future__ import annotations

from typing import Any

from ._contract import Contraction, Reduction

BITS = 4  # of a place in a window
PLACES = 32 // BITS  # that one word holds


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments as those of ``_contract.emit``; B holds windows: words of places, then weights."""
    Contraction(k, config, Windows).run()


class Windows(Reduction):
    """Takes a window of neighbouring channels at once. Each lane has its own non-zeros there: a word says where they
    are, a permutation brings the inputs to the lanes."""

    def _level(self, names: list[str], a: Any, b: Any, rows: range) -> None:
        if names != ["c"]:
            super()._level(names, a, b, rows)
            return
        form = self.of.config["windows"]
        height = (form["slots"] + words(form["slots"])) * self.step
        if form["full"]:
            with self.k.loop(form["full"], name="window") as i:
                self._window(a + i * form["lanes"], b + i * height, rows, form["slots"])
        if form["rest"]:
            self._window(a + form["last"], b + form["full"] * height, rows, form["rest"])

    def _window(self, a: Any, b: Any, rows: range, slots: int) -> None:
        k, lanes = self.k, self.of.config["windows"]["lanes"]
        permute = k.row("permute", lanes)
        held = [k.bind(k.load(self.of.a, a + p * self.of.point["a"], lanes), "x") for p in rows]
        above = words(slots)
        for v, (offset, width) in enumerate(zip(self.offsets, (r.lanes for r in self.b), strict=True)):
            for word in range(above):
                places = self._places(b + word * self.step + offset, width, lanes)
                for s in range(word * PLACES, min(slots, (word + 1) * PLACES)):
                    weight = self.b[v]
                    weight.set(k.load(self.of.b, b + (above + s) * self.step + offset, width))
                    index = self._shifted(places, s % PLACES, lanes)
                    for p, x in zip(rows, held, strict=True):
                        picked = first_lanes(k.instruction(permute, t=x, i=index), width)
                        self.acc[p][v].add_product(picked, weight.get())

    def _places(self, at: Any, width: int, lanes: int) -> Any:
        from tvm import tirx

        from ..tir import joined

        k = self.k
        word = tirx.reinterpret(f"int32x{width}", k.load(self.of.b, at, width))
        if width < lanes:  # what the other lanes pick is not looked at
            word = tirx.Broadcast(word, lanes) if width == 1 else joined([word] * (lanes // width))
        return k.bind(word, "places")

    def _shifted(self, places: Any, slot: int, lanes: int) -> Any:
        from tvm import tirx

        from ..tir import constant

        if slot == 0:
            return places
        moved = tirx.shift_right(tirx.reinterpret(f"uint32x{lanes}", places), constant(slot * BITS, "uint32", lanes))
        return self.k.bind(tirx.reinterpret(f"int32x{lanes}", moved), "place")


def words(slots: int) -> int:
    """Rows of words that say where ``slots`` non-zeros of each lane are."""
    return -(-slots // PLACES)


def first_lanes(vector: Any, lanes: int) -> Any:
    from ._contract import part

    return part(vector, 0, lanes)
