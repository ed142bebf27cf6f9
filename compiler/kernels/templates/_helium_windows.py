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
LOOPS = ("clear", "rows", "tiles", "chunks", "channels")
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
        self.a, self.table = k.arg("a", "int8", 1), k.arg("table", "int32", 1)
        numbers = k.arg("numbers", "int32", 1)
        self.out, self.scratch = k.arg("y", config["rescale"]["to"], 1), k.arg("scratch", "int8", 1)
        self.rows = {name: instruction(row) for name, row in config["rows"].items()}
        self.numbers = [k.bind(k.load(numbers, i), "number") for i in range(config["numbers"])]
        # that a loop runs at least once is what LLVM cannot know
        self.shape = {n: self._positive(self.number(v), n in LOOPS) for n, v in config["shape"].items()}
        channels, point, line = (self.shape[n] for n in ("channels", "point", "to"))
        self.places = k.bind(self._vector([4 * channels * i for i in range(4)]), "places")
        outs = (
            [0, point, line, line + point]
            if config["tile"][0] > 1
            else [min(i, config["tile"][1] - 1) * point for i in range(4)]
        )
        self.outs = k.bind(self._vector(outs), "outs")
        # bytes of scratch between points that stand for neighbouring results, and between windows
        self.apart = k.bind(4 * config["stride"] * channels, "apart")
        self.move = k.bind(self.apart * 2, "move") if config["tile"][0] > 1 else self.apart
        self.back = k.bind(self.apart * self.shape["back"], "back")
        self.step = k.bind(point * config["tile"][1], "step")

    def _positive(self, value: Any, known: bool) -> Any:
        from ..tir import constant, maximum

        return self.k.bind(maximum(value, constant(1, "int32"))) if known and not isinstance(value, int) else value

    def number(self, value: Any) -> Any:
        return self.numbers[value["at"]] if isinstance(value, dict) else value

    def run(self) -> None:
        from ..functions import cast
        from ..tir import minimum, splat

        k, config, shape = self.k, self.config, self.shape
        zero = k.bind(splat(cast(self.number(config["zero"]), "int8"), _STEP), "zero")
        with k.loop(shape["clear"]) as i:
            k.store(self.scratch, i * _STEP, zero)
        lines, batch = config["tile"][0], config["batch"]
        with k.loop(batch["extent"]) as n, k.loop(shape["rows"]) as row:
            y = k.bind(minimum(row * lines, shape["high"]), "y") if lines > 1 else row
            self._lines(n * batch["a"], y * config["stride"] - config["pad"][0], zero)
            to = n * batch["y"] + y * shape["to"]
            with k.loop(shape["channels"]) as c:
                self._channel(c, to + c)

    # -- lines -----------------------------------------------------------------------------------------------------

    def _lines(self, at: Any, top: Any, zero: Any) -> None:
        """Interleaves four lines, the first of which is ``top``; those outside A are zero points."""
        from tvm import tirx

        from ..tir import minimum

        k, config, shape = self.k, self.config, self.shape
        size, step = shape["size"], shape["line"]
        first = k.bind(at + top * step, "first")
        whole = k.bind(tirx.And(top >= 0, top + 3 < size))
        to = config["pad"][1] * shape["channels"] * 4
        with k.when(whole), k.loop(shape["chunks"]) as i:
            chunk = k.bind(minimum(i * _STEP, shape["last"]), "chunk")
            self._interleave(to + chunk * 4, [k.load(self.a, first + r * step + chunk, _STEP) for r in range(4)])
        with k.when(tirx.Not(whole)), k.loop(shape["chunks"]) as i:
            lines, chunk = [], k.bind(minimum(i * _STEP, shape["last"]), "chunk")
            for r in range(4):
                held = k.register("int8", _STEP, "line")
                held.set(zero)
                with k.when(tirx.And(top + r >= 0, top + r < size)):
                    held.set(k.load(self.a, first + r * step + chunk, _STEP))
                lines.append(held.get())
            self._interleave(to + chunk * 4, lines)

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

        k, config, shape = self.k, self.config, self.shape
        weights = self._weights(c)
        start = k.bind(k.load(self.table, c * TABLE + 3), "start")
        scale = k.bind(self._float(k.load(self.table, c * TABLE + 4)), "scale")

        here, there = k.register("int32", 1, "here"), k.register("int32", 1, "there")

        def tile() -> None:
            sums = self._sums(here, weights) + splat(start, 4)
            value = rescaled(k, self.rows, config["rescale"], self.number, sums, splat(scale, 4))
            scatter(k, self.out, there.get(), self.outs, value)

        here.set(c * 4)
        there.set(to)
        known = isinstance(shape["tiles"], int)
        for _ in range(shape["tiles"] if known else 1):
            with k.loop(1 if known else shape["tiles"]):
                tile()
                there.set(there.get() + self.step)
        if not config["even"]:
            here.set(here.get() - self.back)  # the last tile overlaps the one before
            there.set(there.get() - shape["back"] * shape["point"])
            tile()

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

    def _sums(self, here: Any, weights: list[Any]) -> Any:
        """Of one window, or of four that are a stride apart; ``here`` moves on to the next tile."""
        from ..tir import constant, joined, reinterpreted

        k, dots = self.k, list[Any]()
        for i in range(4 // len(weights)):
            args = (address(self.scratch, here.get()), self.places, *self._ints(32, 0, 0))
            words = k.bind(k.call(_GATHER, "int32x4", *args), "window")
            if len(weights) > 1 or i < self.config["tile"][1] - 1 or i == 3:
                here.set(here.get() + self.move)
            given = [(reinterpreted(words, "int8x16"), reinterpreted(w, "int8x16")) for w in weights]
            dots += [k.instruction(self.rows["dot"], acc=constant(0, "int32"), a=a, b=b) for a, b in given]
        return joined([k.bind(d, "sum") for d in dots])

    def _float(self, word: Any) -> Any:
        from ..tir import reinterpreted

        return reinterpreted(word, "float32")

    def _vector(self, values: list[Any]) -> Any:
        from ..tir import constant, joined

        return joined([constant(v, "int32") if isinstance(v, int) else v for v in values])

    def _ints(self, *values: int) -> list[Any]:
        from ..tir import constant

        return [constant(v, "int32") for v in values]
