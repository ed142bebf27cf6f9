"""Writes the kernels of ``helium_windows``: four outputs of a channel at a time.

Four lines of the input lie in scratch ``[point][channel][line]``, interleaved as they are stored: a gather of four
words is then a window of 4x4 bytes. With a stride of 1 two lines by two points see the same: each has the kernel's
weights in a vector of its own, moved by a byte (the next line) or by a word (the next point). With a larger stride each
of four neighbouring points has its own window.
"""

from __future__ import annotations

from typing import Any

from ._helium import address, rescaled, scatter

_STEP = 16  # bytes of a vector
TABLE = 5  # words of a channel: its weights by columns, what its sums begin with, its multiplier
_GATHER = "llvm.arm.mve.vldr.gather.offset.v4i32.p0.v4i32"
_INTERLEAVE = "llvm.arm.mve.vst4q.p0.v16i8"


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, each channel's constants, numbers, the output, scratch."""
    k.noalias = k.pointers = False
    Windows(k, config).run()


class Windows:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ....targets import instruction

        self.k, self.config = k, config
        self.a = k.arg("a", "int8", config["a"]["span"])
        self.table = k.arg("table", "int32", config["spans"][0])
        numbers = k.arg("numbers", "int32", config["spans"][1])
        out = config["program"]["outputs"][0]
        self.out = k.arg("y", out["dtype"], out["span"])
        self.scratch = k.arg("scratch", "int8", config["scratch"])
        self.rows = {name: instruction(row) for name, row in config["rows"].items()}
        self.numbers = [k.bind(k.load(numbers, i), "number") for i in range(config["spans"][1])]

    def number(self, value: Any) -> Any:
        return self.numbers[value["at"]] if isinstance(value, dict) else value

    def run(self) -> None:
        from ..functions import cast
        from ..tir import minimum, splat

        k, config = self.k, self.config
        zero = k.bind(splat(cast(self.number(config["zero"]), "int8"), _STEP), "zero")
        with k.loop(config["scratch"] // _STEP) as i:
            k.store(self.scratch, i * _STEP, zero)
        high, lines = config["out"][0], config["tile"][0]
        with k.loop(config["batch"]["extent"]) as n, k.loop(-(-high // lines)) as row:
            y = k.bind(minimum(row * lines, high - lines), "y") if high % lines else row * lines
            self._lines(n * config["batch"]["a"], y * config["stride"] - config["pad"][0], zero)
            to = n * config["batch"]["y"] + y * config["steps"][0]
            with k.loop(config["channels"]) as c:
                self._channel(c, to + c)

    # -- lines -----------------------------------------------------------------------------------------------------

    def _lines(self, at: Any, top: Any, zero: Any) -> None:
        """Interleaves four lines, the first of which is ``top``; those outside A are zero points."""
        from tvm import tirx

        k, config = self.k, self.config
        size, step = config["size"], config["line"]
        first = k.bind(at + top * step, "first")
        whole = k.bind(tirx.And(top >= 0, top + 3 < size[0]))
        to = config["pad"][1] * config["channels"] * 4
        with k.when(whole), k.loop(config["chunks"]) as i:
            self._interleave(
                to + i * 4 * _STEP, [k.load(self.a, first + r * step + i * _STEP, _STEP) for r in range(4)]
            )
        with k.when(tirx.Not(whole)), k.loop(config["chunks"]) as i:
            lines = []
            for r in range(4):
                held = k.register("int8", _STEP, "line")
                held.set(zero)
                with k.when(tirx.And(top + r >= 0, top + r < size[0])):
                    held.set(k.load(self.a, first + r * step + i * _STEP, _STEP))
                lines.append(held.get())
            self._interleave(to + i * 4 * _STEP, lines)

    def _interleave(self, to: Any, lines: list[Any]) -> None:
        from tvm import tirx

        held = [self.k.bind(line, "line") for line in lines]
        for stage in range(4):
            args = [address(self.scratch, to), *held, tirx.const(stage, "int32")]
            self.k.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", _INTERLEAVE, *args)))

    # -- windows ---------------------------------------------------------------------------------------------------

    def _channel(self, c: Any, to: Any) -> None:
        """All points of the lines of a tile, of one channel."""
        from ..tir import splat

        k, config = self.k, self.config
        wide, (line, point), (high, points) = config["out"][1], config["steps"], config["tile"]
        weights = self._weights(c)
        start = k.bind(k.load(self.table, c * TABLE + 3), "start")
        scale = k.bind(self._float(k.load(self.table, c * TABLE + 4)), "scale")
        places = k.bind(self._vector([4 * config["channels"] * i for i in range(4)]), "places")
        outs = k.bind(
            self._vector([0, point, line, line + point] if high > 1 else [i * point for i in range(4)]), "outs"
        )

        def tile(x: Any) -> None:
            sums = self._sums(x, c, weights, places) + splat(start, 4)
            value = rescaled(k, self.rows, config["program"]["rescale"], self.number, sums, splat(scale, 4))
            scatter(k, self.out, to + x * point, outs, value)

        with k.loop(wide // points) as i:
            tile(i * points)
        if wide % points:
            tile(wide - points)

    def _weights(self, c: Any) -> list[Any]:
        """The kernel as the outputs that share a window want it."""
        from ..tir import chosen, constant, like, shift_left

        k = self.k
        own = k.bind(k.load(self.table, c * TABLE, 4))
        none = constant(0, "int32", 4)
        here = k.bind(chosen([own, none], (0, 1, 2, 4)), "w")
        if self.config["tile"][0] == 1:
            return [here]
        right = k.bind(chosen([own, none], (4, 0, 1, 2)), "w")
        below = [k.bind(shift_left(w, like(8, w)), "w") for w in (here, right)]
        return [here, right, *below]

    def _sums(self, x: Any, c: Any, weights: list[Any], places: Any) -> Any:
        """Of one window, or of four that are a stride apart."""
        from ..tir import constant, joined, reinterpreted

        k, channels, dots = self.k, self.config["channels"], []
        for i in range(4 // len(weights)):
            at = address(self.scratch, ((x + i) * (self.config["stride"] * channels) + c) * 4)
            words = k.bind(k.call(_GATHER, "int32x4", at, places, *self._ints(32, 0, 0)), "window")
            given = [(reinterpreted(words, "int8x16"), reinterpreted(w, "int8x16")) for w in weights]
            dots += [k.instruction(self.rows["dot"], acc=constant(0, "int32"), a=a, b=b) for a, b in given]
        return joined([k.bind(d, "sum") for d in dots])

    def _float(self, word: Any) -> Any:
        from ..tir import reinterpreted

        return reinterpreted(word, "float32")

    def _vector(self, values: list[int]) -> Any:
        from ..tir import constant, joined

        return joined([constant(v, "int32") for v in values])

    def _ints(self, *values: int) -> list[Any]:
        from ..tir import constant

        return [constant(v, "int32") for v in values]
