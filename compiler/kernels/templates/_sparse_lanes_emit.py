"""Writes the kernels of ``sparse_lanes``: contractions whose lanes each pick their own inputs out of a window."""

from __future__ import annotations

from typing import Any

from ._contract import Contraction, Reduction, part


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments as those of ``_contract.emit``, then B again, as bytes; B holds windows: words of places, weights."""
    kernel = Picked(k, config, Windows)
    kernel.places = k.arg("places", "uint8", 4 * config["b"]["span"])
    kernel.run()


class Picked(Contraction):
    """A contraction that knows B as bytes too."""

    places: Any = None


class Windows(Reduction):
    """Takes a window of neighbouring channels at once. Each lane has its own non-zeros there: a word says where they
    are, a permutation brings the inputs to the lanes."""

    def _level(self, names: list[str], a: Any, b: Any, rows: range) -> None:
        if names != ["c"]:
            super()._level(names, a, b, rows)
            return
        form = self.of.config["windows"]
        height = (form["slots"] + words(form["slots"], form["bits"])) * self.step
        if form["full"]:
            with self.k.loop(form["full"], name="window") as i:
                self._window(a + i * form["lanes"], b + i * height, rows, form["slots"])
        if form["rest"]:
            self._window(a + form["last"], b + form["full"] * height, rows, form["rest"])

    def _window(self, a: Any, b: Any, rows: range, slots: int) -> None:
        k, lanes = self.k, self.of.config["windows"]["lanes"]
        permute, half = k.row("permute", lanes), k.row("permute2", lanes // 2)
        held = [k.bind(k.load(self.of.a, a + p * self.of.point["a"], lanes), "x") for p in rows]
        bits = self.of.config["windows"]["bits"]
        above, each = words(slots, bits), 32 // bits
        for v, (offset, width) in enumerate(zip(self.offsets, (r.lanes for r in self.b), strict=True)):
            for s in range(slots):
                weight = self.b[v]
                weight.set(k.load(self.of.b, b + (above + s) * self.step + offset, width))
                narrow = half is not None and width == lanes // 2
                wide = width if narrow else lanes
                index = self._place(b + s // each * self.step + offset, s % each * bits, width, wide)
                for p, x in zip(rows, held, strict=True):
                    if narrow:
                        picked = k.instruction(half, t0=part(x, 0, width), t1=part(x, width, width), i=index)
                    else:
                        picked = part(k.instruction(permute, t=x, i=index), 0, width)
                    self.acc[p][v].add_product(picked, weight.get())

    def _place(self, at: Any, bit: int, width: int, lanes: int) -> Any:
        """The places at a bit of each lane's word. Only a permutation's low bits count: whole bytes are passed over by
        reading from a later one on."""
        from tvm import tirx

        from ..tir import constant, joined

        k = self.k
        assert isinstance(self.of, Picked)
        data = k.load(self.of.places, at * 4 + bit // 8, 4 * width)
        word = tirx.reinterpret(f"uint32x{width}" if width > 1 else "uint32", data)
        if bit % 8:
            word = tirx.shift_right(word, constant(bit % 8, "uint32", width))
        if width < lanes:  # what the other lanes pick is not looked at
            word = tirx.Broadcast(word, lanes) if width == 1 else joined([word] * (lanes // width))
        return k.bind(tirx.reinterpret(f"int32x{lanes}", word), "place")


def words(slots: int, bits: int) -> int:
    """Rows of words that say in ``bits`` each where ``slots`` non-zeros of each lane are."""
    return -(-slots * bits // 32)
