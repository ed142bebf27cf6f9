"""Writes the kernels of ``dsp_depthwise``: lines into the ring, weights into scratch, and the walk along a line."""

from __future__ import annotations

from typing import Any

from ._fixed import finish
from ._numbers import number

_UNROLLED = 30  # taps of a kernel whose lines are written out


class Emitter:
    """One kernel: images, groups of channels, lines of the input; behind each line the line of outputs it completes."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.config = k, config
        self.line, self.point, self.taps = config["line"], config["point"], config["taps"]
        program, x, y, spans = config["program"], config["x"], config["y"], config["spans"]
        self.x = k.arg("x", x["dtype"], x["span"])
        self.w = k.arg("w", "int8", spans[0])
        self.table = k.arg("table", "int32", spans[1])
        numbers = k.arg("numbers", "int32", spans[2])
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.y = k.arg("y", y["dtype"], y["span"])
        self.held = k.arg("held", "int32", config["scratch"] // 4)
        self.part: Any = None
        self.ev = Evaluator(k, program, reads, lambda _, coords: self.part, numbers)
        self.alone = program["nodes"] and program["results"] == program["anchor"]
        self.zero = k.bind(number(k, numbers, config["pad"]), "zero")
        self.rule: dict[str, Any] | None = None
        if "rule" in config:
            attrs = self.ev.resolved({"attrs": program["rescale"]})["attrs"]
            attrs = {n: k.bind(v) if not isinstance(v, int | str | None) else v for n, v in attrs.items()}
            self.rule = {**config["rule"], "attrs": attrs}
            self.offset = k.bind(number(k, numbers, config["rule"]["offset"]), "offset")
        self.pad = k.bind(_pair(self.zero, self.zero), "pad")
        self.one = k.load(numbers, config["one"])  # not known to LLVM, which would write short loops out
        self.place = k.register("int32", 1, "place")

    def run(self) -> None:
        k, config = self.k, self.config
        channels, size = config["channels"], config["group"]
        with k.loop(config["batch"]) as b:
            if channels >= size:
                with k.loop(channels // size) as i:
                    self._group(b, i * size, size)
            if channels % size:
                self._group(b, channels - channels % size, channels % size)

    def _group(self, b: Any, first: Any, members: int) -> None:
        """All lines of a few channels. Of the lines ``dilation`` apart each ring holds as many as there are taps."""
        from tvm import tirx

        k, line, config = self.k, self.line, self.config
        self.weights = members * config["slots"] * config["words"]  # where they begin
        self._widen_weights(first, members)
        reach, apart, taps = (line["taps"] - 1) * line["dilation"], line["dilation"], line["taps"]
        source = b * config["x"]["batch"] + first * config["x"]["channel"]
        self.place.set(_const(-1))
        with k.loop((line["extent"] - 1) * line["stride"] + reach + 1, name="row") as i:
            at = i - line["pad"]
            place = self._next(i, apart, taps)
            ring = k.bind(i % apart * taps, "ring") if apart > 1 else 0
            slot = (ring + place) * config["words"]
            inside = tirx.all(at >= 0, at < line["size"]) if not isinstance(i, int) else 0 <= at < line["size"]
            with k.when(inside):
                self._widen(k.bind(source + at * line["step"], "source"), slot, members)
            with k.when(tirx.Not(inside) if not isinstance(inside, bool) else not inside):
                self._fill(slot, members)
            out = i - reach
            done = [out >= 0] if reach else []
            if line["stride"] > 1 and not isinstance(i, int):
                done.append((out % line["stride"]).equal(0))
            with k.when(tirx.all(*done) if done else True):
                y = out // line["stride"] if line["stride"] > 1 else out
                turn = (taps - 1 - place) * len(self.taps["pairs"])
                self._outputs((b, first, y), ring * config["words"], turn, members)

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
        with k.strides(members * columns, self.one, "column") as c, k.strides(rows, self.one, "tap") as t:
            source = ((first * columns + c) * rows + t) * width
            to = self.weights + (c * 2 * rows + t) * words
            values = [k.bind(_cast(k.load(self.w, source + j), "int32"), "w") for j in range(width)]
            both = [_pair(*(_const(0) if j is None else values[j] for j in p)) for p in pairs]
            for i, word in enumerate(k.bind(v, "pair") for v in both):
                k.store(self.held, to + i, word)
                k.store(self.held, to + rows * words + i, word)

    def _widen(self, source: Any, slot: Any, members: int) -> None:
        """A line of the input: words that lie inside in a loop, those with padding one by one."""
        k, config, point = self.k, self.config, self.point
        first, last = config["inner"]
        for word in (*range(first), *range(last, config["words"])):
            self._words(source, slot, word, [0 <= 2 * word + h - point["pad"] < point["size"] for h in (0, 1)], members)
        if last > first:
            with k.loop(last - first, name="word") as i:
                self._words(source, slot, i + first, [True, True], members)

    def _words(self, source: Any, slot: Any, word: Any, inside: list[bool], members: int) -> None:
        """Two neighbouring points of each channel as a word."""
        k, config = self.k, self.config
        at = [source + (word * 2 + h - self.point["pad"]) * self.point["step"] for h in (0, 1)]
        channel = config["slots"] * config["words"]
        if not any(inside):
            found = [self.pad] * members
        elif members == 4 and config["x"]["channel"] == 1:
            found = self._four(at, inside)
        else:
            step = config["x"]["channel"]

            def point(c: int, half: int) -> Any:
                return _cast(k.load(self.x, at[half] + c * step), "int32") if inside[half] else self.zero

            found = [_pair(point(c, 0), point(c, 1)) for c in range(members)]
        for c, value in enumerate(found):
            k.store(self.held, slot + word + c * channel, value)

    def _four(self, at: list[Any], inside: list[bool]) -> list[Any]:
        """Of two words of four channels the halves that belong together."""
        from ..tir import constant, reinterpreted, shift_left, shift_right

        k, dtype = self.k, self.config["x"]["dtype"]
        even, odd = (k.row(f"{name}.{dtype}") for name in ("even", "odd"))
        halves = []
        for a, i in zip(at, inside, strict=True):
            if not i:
                halves.append((self.pad, self.pad))
                continue
            word = k.bind(reinterpreted(k.load(self.x, a, 4), "int32"), "four")
            halves.append(tuple(k.bind(reinterpreted(k.instruction(r, a=word), "int32")) for r in (even, odd)))
        low, sixteen = constant(0xFFFF, "int32"), constant(16, "int32")
        high = constant(-65536, "int32")
        found: list[Any] = [None] * 4
        for parity in (0, 1):
            a, b = halves[0][parity], halves[1][parity]
            found[parity] = (a & low) | shift_left(b, sixteen)
            found[parity + 2] = (b & high) | (shift_right(a, sixteen) & low)
        return found

    def _fill(self, slot: Any, members: int) -> None:
        k, words = self.k, self.config["words"]
        with k.loop(members, name="member") as c, k.loop(words, name="word") as i:
            k.store(self.held, slot + c * (self.config["slots"] * words) + i, self.pad)

    # -- outputs ---------------------------------------------------------------------------------------------------

    def _outputs(self, place: tuple[Any, Any, Any], ring: Any, turn: Any, members: int) -> None:
        k, config, taps = self.k, self.config, self.taps
        b, first, y = place
        columns, wide = config["columns"], 2 if self.rule else 1
        with k.loop(members, name="member") as c, k.loop(columns, name="column") as j:
            column = c * columns + j
            channel = k.bind(first * columns + column, "channel")
            start = k.bind(k.load(self.table, channel * wide), "start")
            word = k.bind(k.load(self.table, channel * wide + 1), "word") if self.rule else None
            data = k.bind(c * (config["slots"] * config["words"]) + ring, "data")
            weights = k.bind(self.weights + column * config["weights"] + turn, "weights")
            shared = (b, channel, y, start, word, data, weights)
            whole = self.point["extent"] // taps["outputs"]
            with k.loop(whole, name="tile") as t:
                self._tile(shared, t, taps["outputs"])
            if taps["rest"]:
                self._tile(shared, whole, taps["rest"])

    def _tile(self, shared: Any, t: Any, outputs: int) -> None:
        k, taps, rows = self.k, self.taps, self.line["taps"]
        b, channel, y, start, word, data, weights = shared
        base = data + t * taps["move"]
        sums = [k.register("int32", 1, "sum") for _ in range(outputs)]
        for s in sums:
            s.set(start)
        words, pairs = self.config["words"], len(taps["pairs"])
        unrolled = rows * self.point["taps"] <= _UNROLLED
        if unrolled:
            for r in range(rows):
                self._row(sums, base + r * words, weights + r * pairs)
        else:
            with k.loop(rows, name="line") as r:
                self._row(sums, base + r * words, weights + r * pairs)
        x = t * taps["outputs"]
        parts = [s.get() for s in sums]
        if self.rule is None:
            for o, part in enumerate(parts):
                self._store(b, channel, y, x + o, part)
        else:
            finish(k, parts, word, self.rule, self.offset, lambda o, v: self._store(b, channel, y, x + o, v))

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
        if self.alone:
            to = self.config["y"]
            at = b * to["batch"] + channel * to["channel"] + y * self.line["out"] + x * self.point["out"]
            self.k.store(self.y, at, part)
            return
        coords: list[Any] = [(0, 0)] * len(self.config["program"]["outputs"][0]["shape"])
        coords[0], coords[1] = (b, 0), (channel, 0)
        for axis, index in ((self.line["axis"], y), (self.point["axis"], x)):
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
