"""Writes the kernels of ``dsp_depthwise``: lines into the ring, weights into scratch, and the walk along a line."""

from __future__ import annotations

from typing import Any

from ._dsp_rows import tile
from ._fixed import finish
from ._numbers import number
from ._rolled import rolled

_ANY = 1 << 24  # elements of a buffer whose size a kernel does not know
_SHORT = 2  # words of a line that may be written out


class Emitter:
    """One kernel: images, groups of channels, lines of the input; behind each line the line of outputs it completes."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.config = k, config
        self.line, self.point, self.taps = config["line"], config["point"], config["taps"]
        self.x = k.arg("x", config["x"]["dtype"], _ANY)
        self.w = k.arg("w", "int8", _ANY)
        self.table = k.arg("table", "int32", _ANY)
        self.numbers = k.arg("numbers", "int32", _ANY)
        self.ev = self._evaluator(config.get("program"))
        self.y = k.arg("y", config["y"]["dtype"], _ANY)
        self.held = k.arg("held", "int32", _ANY)
        self.shape = config["shape"]
        self.plane = self.shape["words"] * config["slots"]
        self.zero = k.bind(number(k, self.numbers, config["pad"]), "zero")
        self.rule: dict[str, Any] | None = None
        if "rule" in config:
            rescale = config["program"]["rescale"] if self.ev else config["rescale"]
            attrs = {n: self._known(v) for n, v in rescale.items()}
            self.rule = {"shift": config["rule"]["shift"], "mixed": True, "attrs": attrs}
            self.offset = self._known(config["rule"]["offset"])
        self.pad = k.bind(_pair(self.zero, self.zero), "pad")
        self.to = k.register("int32", 1, "to")  # where the line of outputs begins
        self.place = k.register("int32", 1, "place")

    def _known(self, value: Any) -> Any:
        return self.k.bind(number(self.k, self.numbers, value)) if isinstance(value, dict) else value

    def _evaluator(self, program: Any) -> Any:
        """What comes behind the sums, or behind their rescaling."""
        from ..evaluate import Evaluator

        if program is None:
            return None
        reads: list[Any] = [None] * len(program["inputs"])
        for i in self.config["reads"]:
            reads[i] = self.k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.part: Any = None
        return Evaluator(self.k, program, reads, lambda _, coords: self.part, self.numbers)

    def run(self) -> None:
        k, config = self.k, self.config
        size, groups = config["group"], self.shape["groups"]
        with k.loop(config["batch"]) as b:
            with k.loop(groups, name="group") as i:
                self._group(b, i * size, size)
            if config["rest"]:
                self._group(b, groups * size, config["rest"])

    def _group(self, b: Any, first: Any, members: int) -> None:
        """All lines of a few channels. Of the lines ``dilation`` apart each ring holds as many as there are taps."""
        from tvm import tirx

        k, line, config, shape = self.k, self.line, self.config, self.shape
        self.weights = self.plane * members  # where they begin
        self._widen_weights(first, members)
        reach, apart, taps = (line["taps"] - 1) * line["dilation"], line["dilation"], line["taps"]
        self.place.set(_const(-1))
        source = b * config["x"]["batch"] + first * config["x"]["channel"]
        self.to.set(_const(0) + b * config["y"]["batch"])
        with k.loop(shape["lines"], name="row") as i:
            at = i - line["pad"]
            place = self._next(i, apart, taps)
            ring = k.bind(i % apart * taps, "ring") if apart > 1 else 0
            slot = k.bind((ring + place) * shape["words"], "slot")
            whole = not isinstance(i, int) and (line["pad"] > 0 or shape["lines"] - line["pad"] > shape["size"])
            inside = tirx.all(at >= 0, at < shape["size"]) if whole else True
            with k.when(inside):
                self._widen(k.bind(source + at * shape["line_step"], "source"), slot, members)
            if whole:
                with k.when(tirx.Not(inside)):
                    self._fill(slot, members)
            out = i - reach
            done = [out >= 0] if reach else []
            if line["stride"] > 1 and not isinstance(i, int):
                done.append((out % line["stride"]).equal(0))
            with k.when(tirx.all(*done) if done else True):
                y = out // line["stride"] if line["stride"] > 1 else out
                turn = (taps - 1 - place) * len(self.taps["pairs"])
                self._outputs((b, first, y), ring * shape["words"], turn, members)

    def _next(self, i: Any, apart: int, taps: int) -> Any:
        """The place in its ring of line ``i`` of the input."""
        if taps == 1:
            return 0
        if apart > 1:
            return self.k.bind(i // apart % taps, "place")
        from ..tir import select

        after = self.k.bind(self.place.get() + 1, "after")
        self.place.set(select(after < taps, after, _const(0)))
        return self.place.get()

    # -- into scratch ----------------------------------------------------------------------------------------------

    def _widen_weights(self, first: Any, members: int) -> None:
        k, config, pairs = self.k, self.config, self.taps["pairs"]
        rows, columns, words = self.line["taps"], config["columns"], len(self.taps["pairs"])
        width = self.point["taps"]
        with rolled(k, members * columns) as c, rolled(k, rows) as t:
            source = ((first * columns + c) * rows + t) * width
            to = self.weights + (c * 2 * rows + t) * words
            values = [k.bind(_cast(k.load(self.w, source + j), "int32"), "w") for j in range(width)]
            both = [_pair(*(_const(0) if j is None else values[j] for j in p)) for p in pairs]
            for i, word in enumerate(k.bind(v, "pair") for v in both):
                k.store(self.held, to + i, word)
                k.store(self.held, to + rows * words + i, word)

    def _widen(self, source: Any, slot: Any, members: int) -> None:
        """A line of the input: words that lie inside in a loop, those with padding one by one."""
        k, config, inner = self.k, self.config, self.shape["inner"]
        first = len(config["before"])
        for word, inside in enumerate(config["before"]):
            self._words(source, slot, word, inside, members)
        if self.config["joined"] and inner > 1:
            with rolled(k, inner // 2) as i:
                self._run(source, slot, first + i * 2)
            if inner % 2:
                self._words(source, slot, first + inner - 1, [True, True], members)
        elif inner:
            with rolled(k, inner) if inner > _SHORT else k.loop(inner, name="word") as i:
                self._words(source, slot, i + first, [True, True], members)
        for word, inside in enumerate(config["after"]):
            self._words(source, slot, inner + first + word, inside, members)

    def _words(self, source: Any, slot: Any, word: Any, inside: list[bool], members: int) -> None:
        """Two neighbouring points of each channel as a word."""
        k, config = self.k, self.config
        at = [source + (word * 2 + half - self.point["pad"]) * self.shape["point_step"] for half in (0, 1)]
        if not any(inside):
            found = [self.pad] * members
        elif members == 4 and config["x"]["channel"] == 1:
            found = self._four(at, inside)
        else:
            step = config["x"]["channel"]

            def point(c: int, half: int) -> Any:
                return _cast(k.load(self.x, at[half] + c * step), "int32") if inside[half] else self.zero

            found = [_pair(point(c, 0), point(c, 1)) for c in range(members)]
        for c, value in enumerate([k.bind(v, "both") for v in found]):
            k.store(self.held, slot + word + self.plane * c, value)

    def _run(self, source: Any, slot: Any, word: Any) -> None:
        """Four neighbouring elements of a line as two words."""
        from ..tir import reinterpreted

        k = self.k
        four = k.bind(reinterpreted(k.load(self.x, source + word * 2 - self.point["pad"], 4), "int32"), "four")
        even, odd = self._halves(four)
        k.store(self.held, slot + word, _pair(even, odd))
        k.store(self.held, slot + word + 1, _tops(even, odd))

    def _halves(self, word: Any) -> tuple[Any, Any]:
        """The even and the odd bytes of a word."""
        from ..tir import reinterpreted

        k, dtype = self.k, self.config["x"]["dtype"]
        rows = (k.row(f"{name}.{dtype}") for name in ("even", "odd"))
        even, odd = (k.bind(reinterpreted(k.instruction(r, a=word), "int32")) for r in rows)
        return even, odd

    def _four(self, at: list[Any], inside: list[bool]) -> list[Any]:
        """Of two words of four channels the halves that belong together."""
        from ..tir import reinterpreted

        k = self.k
        halves = []
        for a, i in zip(at, inside, strict=True):
            word = k.bind(reinterpreted(k.load(self.x, a, 4), "int32"), "four") if i else None
            halves.append((self.pad, self.pad) if word is None else self._halves(word))
        both = list(zip(*halves, strict=True))
        return [_pair(*both[0]), _pair(*both[1]), _tops(*both[0]), _tops(*both[1])]

    def _fill(self, slot: Any, members: int) -> None:
        k = self.k
        with rolled(k, members) as c, rolled(k, self.shape["words"]) as i:
            k.store(self.held, slot + c * self.plane + i, self.pad)

    # -- outputs ---------------------------------------------------------------------------------------------------

    def _outputs(self, place: tuple[Any, Any, Any], ring: Any, turn: Any, members: int) -> None:
        k, config, taps, shape = self.k, self.config, self.taps, self.shape
        b, first, y = place
        columns, wide = config["columns"], 2 if self.rule else 1
        with k.loop(members, name="member") as c, k.loop(columns, name="column") as j:
            column = c * columns + j
            channel = k.bind(first * columns + column, "channel")
            start = k.bind(k.load(self.table, channel * wide), "start")
            word = k.bind(k.load(self.table, channel * wide + 1), "word") if self.rule else None
            data = k.bind(c * self.plane + ring, "data")
            weights = k.bind(self.weights + column * config["weights"] + turn, "weights")
            shared = (b, channel, y, start, word, data, weights)
            with k.loop(shape["tiles"], name="tile") as t:
                self._tile(shared, t, taps["outputs"])
            if taps["rest"]:
                self._tile(shared, shape["tiles"], taps["rest"])
        self.to.set(self.to.get() + shape["line_out"])

    def _tile(self, shared: Any, t: Any, outputs: int) -> None:
        k, taps = self.k, self.taps
        b, channel, y, start, word, data, weights = shared
        parts = self._sums(start, data + t * taps["move"], weights, outputs)
        x = t * taps["outputs"]
        if self.rule is None:
            for o, part in enumerate(parts):
                self._store(b, channel, y, x + o, part)
        else:
            spare = (self.held, self.config["spare"], lambda extent: rolled(k, extent))
            finish(k, parts, word, self.rule, self.offset, lambda o, v: self._store(b, channel, y, x + o, v), spare)

    def _sums(self, start: Any, base: Any, weights: Any, outputs: int) -> list[Any]:
        k, taps, rows, words = self.k, self.taps, self.line["taps"], self.shape["words"]
        pairs = len(taps["pairs"])
        code = tile(taps["steps"][:outputs], pairs, rows, words)
        if code is not None:
            found = k.array("int32", outputs, "sums")
            k.helper(*code, (self.held, base), (self.held, weights), start, (found, 0))
            return [k.bind(k.load(found, o), "sum") for o in range(outputs)]
        sums = [k.register("int32", 1, "sum") for _ in range(outputs)]
        for s in sums:
            s.set(start)
        with k.loop(rows, name="line") as r:
            self._row(sums, base + r * words, weights + r * pairs)
        return [s.get() for s in sums]

    def _row(self, sums: Any, base: Any, weights: Any) -> None:
        """The products of one line of taps."""
        k, taps = self.k, self.taps
        both = k.row("pair")
        single = {h: k.row(f"half.{h}") for h in ("bb", "bt", "tb", "tt")}
        held: dict[Any, Any] = {}

        def value(kind: str, at: int) -> Any:
            if (kind, at) not in held:
                held[kind, at] = k.bind(k.load(self.held, (weights if kind == "w" else base) + at), kind)
            return held[kind, at]

        for i in range(len(taps["pairs"])):
            value("w", i)
        for at in sorted({step[0] for steps in taps["steps"][: len(sums)] for step in steps}):
            value("x", at)
        order = sorted((step, o) for o in range(len(sums)) for step in taps["steps"][o])
        for (at, pair, halves), o in order:
            row = both if halves == "both" else single[halves]
            sums[o].set(k.instruction(row, acc=sums[o].get(), a=value("x", at), b=value("w", pair)))

    def _store(self, b: Any, channel: Any, y: Any, x: Any, part: Any) -> None:
        if self.ev is None:
            at = self.to.get() + channel * self.config["y"]["channel"] + x * self.shape["point_out"]
            self.k.store(self.y, at, part)
            return
        coords: list[Any] = [(0, 0)] * len(self.config["program"]["outputs"][0]["shape"])
        coords[0], coords[1] = (b, 0), (channel, 0)
        for axis, index in zip(self.config["axes"], (y, x), strict=True):
            if axis is not None:
                coords[axis] = (index, 0)
        self.ev.begin()
        self.part = part
        self.ev.store(0, self.y, coords)


def _cast(value: Any, dtype: str) -> Any:
    from ..functions import cast

    return cast(value, dtype)


def _const(value: int) -> Any:
    from ..tir import constant

    return constant(value, "int32")


def _pair(low: Any, high: Any) -> Any:
    """Two int32 that hold int16 as one word."""
    from ..tir import shift_left

    return (low & _const(0xFFFF)) | shift_left(high, _const(16))


def _tops(low: Any, high: Any) -> Any:
    """The upper halves of two words as one."""
    from ..tir import shift_right

    return (high & _const(-65536)) | (shift_right(low, _const(16)) & _const(0xFFFF))
