"""What one task of an integer recurrent layer does: its scratch, its products, its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...ops.recurrent_integers import CELL_BITS, GATE_BITS, GATES, MOST_GATE, ONE, REACH, UNIT_BITS
from ._cells import offset_of, position
from ._recurrent_packing import depth_of
from ._rows import pieces, split_index

Sums = list[list[Any]]  # [gate][vector of units]


class Layer:
    # the parts of a worker's scratch: see ``parts``
    x: Any
    h: Any
    new: Any
    fed: Any
    state: Any
    update: Any
    fold: Any

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.c = k, config
        self.gates, self.hidden, self.units = GATES[config["layer"]], config["hidden"], config["units"]
        self.lanes, self.wide, self.group = config["lanes"], config["wide"], config["group"]
        self.block = self.lanes * self.wide
        self.given = {n: k.arg(n, config["given"][n]["dtype"], config["given"][n]["span"]) for n in config["direct"]}
        self.outputs = {o["which"]: (o, k.arg(f"y{o['which']}", o["dtype"], o["span"])) for o in config["outputs"]}
        rows = config["directions"] * self.gates * self.units
        self.packed: dict[str, Any] = {}
        for name in config["packed"]:
            if name in ("w", "r"):
                self.packed[name] = k.arg(name, "int8", rows * depth_of(config, name))
                self.packed[f"{name}_start"] = k.arg(f"{name}_start", "int32", rows)
            else:
                dtype, size = ("int32", 2 * rows) if name == "b" else ("float32", rows)
                self.packed[name] = k.arg(name, dtype, size)
        self.table = k.arg("table", "int32", 256)
        self.given_scratch()
        self.d: Any = 0
        self.row: Any = 0
        self.position: Any = 0

    def given_scratch(self) -> None:
        """The parts of scratch as the last arguments."""
        for name, dtype, size in self.parts(self.c):
            setattr(self, name, self.k.arg(name, dtype, size))

    @contextmanager
    def over(self, extent: int, name: str = "i") -> Iterator[Any]:
        """Statements for each of so many indices."""
        with self.k.loop(extent, name=name) as i:
            yield i

    @contextmanager
    def blocks(self) -> Iterator[tuple[Any, Sequence[Any]]]:
        """Statements for each block of units, and the numbers of its vectors."""
        with self.k.loop(self.units // self.block, name="block") as block:
            yield block, range(self.wide)

    @staticmethod
    def parts(config: dict[str, Any]) -> list[tuple[str, str, int]]:
        """The parts of scratch: name, type, elements. ``x`` and ``h`` are first factors of products, ``new`` the next
        h; ``fed`` what x gives the gates; ``state`` an LSTM's memory or a GRU's state."""
        element, units = config["element"], max(config["units"], depth_of(config, "r"))
        found = [
            ("x", element, config["chunk"] * depth_of(config, "w")),
            ("h", element, units),
            ("new", element, units),
            ("fed", "int32", config["chunk"] * GATES[config["layer"]] * units),
            ("state", "int32", units),
        ]
        if config["layer"] == "gru" and not config["linear"]:
            found += [("update", "int32", units), ("fold", element, units)]
        return found

    # -- one task

    def task(self, task: Any) -> None:
        from ..tir import minimum

        c, k = self.c, self.k
        self.d, self.row = split_index(task, c["batch"])
        self.h_multiplier = k.bind(k.load(self.given["h_multiplier"], 0), "hm")
        self._start()
        with k.loop(-(-c["steps"] // c["chunk"]), name="chunk") as chunk:
            first = chunk * c["chunk"]
            self._feed(first)
            count: Any = c["chunk"]
            if c["steps"] % c["chunk"]:
                count = minimum(count, c["steps"] - first)
            with k.loop(count, name="step") as step:
                self._step(first + step, step)
        self._finish()

    def _step(self, step: Any, line: Any) -> None:
        """One time step; a sequence that has ended shows 0 and keeps its state."""
        from tvm import tirx

        from ..tir import constant

        k = self.k
        self.position = position(self.c, self.d, step)
        cell = self._lstm if self.c["layer"] == "lstm" else self._gru
        if "lengths" not in self.given:
            cell(line)
            self._show()
            return
        length = k.load(self.given["lengths"], self._at("lengths", self.row))
        alive = tirx.Cast("int32", length) > self.position
        with k.when(alive):
            cell(line)
            self._show()
        if 0 in self.outputs:
            with k.when(tirx.Not(alive)):
                self._each(self.hidden, lambda u, w: self._put(0, u, constant(self.c["zero_point"], self.c["to"], w)))

    def _start(self) -> None:
        """Initial states; what fills vectors up is 0."""
        from ..functions import cast
        from ..tir import constant

        k, first = self.k, "c0" if self.c["layer"] == "lstm" else "h0"
        nothing = constant(self.c["zero_point"] - self.c["offsets"]["r"], "int32")
        with self.over(max(self.units, depth_of(self.c, "r"))) as u:
            k.store(self.h, u, cast(nothing, self.c["element"]))
            k.store(self.state, u, constant(0, "int32"))
        with self.over(self.hidden) as u:
            if first in self.given:
                value = k.bind(cast(k.load(self.given[first], self._at(first, self.d, self.row, u)), "int32"))
                k.store(self.state, u, value)
                if first == "h0":
                    k.store(self.h, u, self._factor(self._to_steps(value)))
            if self.c["layer"] == "lstm" and "h0" in self.given:
                value = k.load(self.given["h0"], self._at("h0", self.d, self.row, u))
                k.store(self.h, u, self._factor(value))

    def _finish(self) -> None:
        """Final states."""
        from ..functions import cast

        k, of_state = self.k, 2 if self.c["layer"] == "lstm" else 1
        for which, (out, buffer) in self.outputs.items():
            if which == 0:
                continue
            with self.over(self.hidden) as u:
                held = k.load(self.state if which == of_state else self.h, u)
                value = cast(held, out["dtype"]) if which == of_state else self._back(held)
                k.store(buffer, offset_of(out["strides"], (self.d, self.row, u)), value)

    # -- addresses and types

    def _at(self, name: str, *indices: Any) -> Any:
        return offset_of(self.c["given"][name]["strides"], indices)

    def _put(self, which: int, unit: Any, value: Any) -> None:
        out, buffer = self.outputs[which]
        to = offset_of(out["strides"], (self.position, self.d, self.row, unit))
        self.k.store(buffer, to, value, out["strides"][-1] or 1)

    def _each(self, extent: int, body: Callable[[Any, int], None]) -> None:
        """``body(start, width)`` for vectors that cover an extent."""
        whole, rest = divmod(extent, self.lanes)
        with self.over(whole) as i:
            body(i * self.lanes, self.lanes)
        for o, w in pieces(rest, self.lanes):
            body(whole * self.lanes + o, w)

    def _factor(self, steps: Any, name: str = "r") -> Any:
        """Steps as first factors of products."""
        from ..functions import cast
        from ..tir import like

        wide = cast(steps, "int32")
        return cast(wide - like(self.c["offsets"][name], wide), self.c["element"])

    def _back(self, factor: Any) -> Any:
        from ..functions import cast
        from ..tir import like

        wide = cast(factor, "int32")
        return cast(wide + like(self.c["offsets"]["r"], wide), self.c["to"])

    def _to_steps(self, value: Any) -> Any:
        """A hidden value with UNIT_BITS as steps."""
        from ..integers import rescaled
        from ..tir import lanes_of, splat

        attrs = {"zero_point": self.c["zero_point"], "low": None, "high": None, "to": self.c["to"]}
        return rescaled(self.k, value, splat(self.h_multiplier, lanes_of(value)), attrs)

    def _show(self) -> None:
        """The next h takes its place, and stands in y."""
        k = self.k

        def move(unit: Any, width: int) -> None:
            held = k.bind(k.load(self.new, unit, width))
            k.store(self.h, unit, held)
            if 0 in self.outputs:
                self._put(0, unit, self._back(held))

        self._each(self.hidden, move)

    # -- products

    def _feed(self, first: Any) -> None:
        """``fed`` for the steps of a chunk (past the last one: again the last): what x gives, and the biases."""
        from ..functions import cast
        from ..tir import constant, minimum

        c, k = self.c, self.k
        depth, lines = depth_of(c, "w"), c["chunk"]
        stride = c["given"]["x"]["strides"][2]
        for line in range(lines):
            step = first + line
            if c["steps"] % lines:
                step = minimum(step, c["steps"] - 1)
            start = k.bind(self._at("x", position(c, self.d, step), self.row, 0))

            def copy(i: Any, width: int, line: int = line, start: Any = start) -> None:
                held = k.load(self.given["x"], start + i * stride, width, stride)
                k.store(self.x, line * depth + i, self._factor(held, "w"))

            self._each(c["features"], copy)
            for i in range(c["features"], depth):
                k.store(self.x, line * depth + i, cast(constant(0, "int32"), c["element"]))
        most = max(1, (24 if k.machine.get("registers", 16) >= 32 else 8) // lines)
        with self.blocks() as (block, vectors):
            columns = [(g, v) for g in range(self.gates) for v in vectors]
            for i in range(0, len(columns), most):
                part = columns[i : i + most]
                sources = [(self.x, line * depth) for line in range(lines)]
                for line, found in enumerate(self._products("w", block, part, sources)):
                    for (g, v), value in zip(part, found, strict=True):
                        to = (line * self.gates + g) * self.units + block * self.block + v * self.lanes
                        k.store(self.fed, to, self._biased(value, g, block, v))

    def _biased(self, value: Any, gate: int, block: Any, v: Any) -> Any:
        """Both biases of a gate, but of a GRU's candidate only x's where the reset comes after the product."""
        for which in range(2):
            if not (which == 1 and gate == 2 and self.c["linear"]):
                value = value + self._bias(which, gate, block, v) if "b" in self.packed else value
        return value

    def _bias(self, which: int, gate: int, block: Any, v: Any) -> Any:
        at = ((self.d * 2 + which) * self.gates + gate) * self.units + block * self.block + v * self.lanes
        return self.k.load(self.packed["b"], at, self.lanes)

    def _products(
        self, name: str, block: Any, columns: Sequence[tuple[int, Any]], sources: Sequence[tuple[Any, Any]]
    ) -> list[list[Any]]:
        """For each source (buffer, offset): what its products with the columns (gate, vector) of a block of ``w`` or
        ``r`` give the gates."""
        k, depth = self.k, depth_of(self.c, name)
        weights, size = self.packed[name], self.gates * self.block * self.group
        base = self.d * (self.gates * self.units * depth) + block * (self.gates * self.block * depth)
        starts = [(self.d * self.gates + g) * self.units + block * self.block + v * self.lanes for g, v in columns]
        sums = [[k.register("int32", self.lanes, "acc") for _ in columns] for _ in sources]
        for line in sums:
            for register, at in zip(line, starts, strict=True):
                register.set(k.load(self.packed[f"{name}_start"], at, self.lanes))

        def turn(i: Any) -> None:
            held = []
            for g, v in columns:
                at = base + i * size + (g * self.block + v * self.lanes) * self.group
                held.append(k.bind(k.load(weights, at, self.lanes * self.group), "weights"))
            for line, (buffer, origin) in zip(sums, sources, strict=True):
                factor = self._spread(buffer, origin + i * self.group)
                for register, w in zip(line, held, strict=True):
                    register.set(self._dot(register.get(), factor, w))

        with k.loop(depth // self.group // 4, name="e") as e:
            for u in range(4):
                turn(e * 4 + u)
        for u in range(depth // self.group % 4):
            turn(depth // self.group // 4 * 4 + u)
        multipliers = [k.bind(k.load(self.packed[f"{name}_multiplier"], at, self.lanes)) for at in starts]
        return [[self._rounded(r.get(), m) for r, m in zip(line, multipliers, strict=True)] for line in sums]

    def _spread(self, buffer: Any, at: Any) -> Any:
        """A group of first factors in every lane."""
        from ..tir import as_dtype, reinterpreted, splat

        k = self.k
        if self.group == 1:
            return k.bind(splat(k.load(buffer, at), self.lanes), "factor")
        one = reinterpreted(k.load(buffer, at, self.group), f"int{8 * self.group}")
        wide = as_dtype(self.c["element"], self.group * self.lanes)
        return k.bind(reinterpreted(splat(one, self.lanes), wide), "factor")

    def _dot(self, total: Any, factor: Any, weights: Any) -> Any:
        from ....targets import instruction
        from ..functions import cast

        if self.c["row"] is None:
            return total + factor * cast(weights, "int32")
        return self.k.instruction(instruction(self.c["row"]), acc=total, a=factor, b=weights)

    def _rounded(self, sums: Any, multiplier: Any) -> Any:
        from .. import vecmath
        from ..functions import cast

        k = self.k
        real = k.bind(vecmath.bounded(k.bind(cast(sums, "float32") * multiplier), -MOST_GATE, MOST_GATE))
        return k.bind(cast(vecmath.round_even(k, real), "int32"))

    # -- cells

    def _squash(self, x: Any, *, half: bool) -> Any:
        """tanh, or sigmoid where ``half``."""
        from tvm import tirx

        from ..tir import like, maximum, minimum, select, shift_right

        k = self.k
        x = k.bind(x)
        size = maximum(x, like(0, x) - x)
        size = k.bind(minimum(size if half else size * like(2, x), like(REACH - 1, x)))
        index = k.bind(shift_right(size, like(8, x)), "index")
        entry = k.bind(tirx.BufferLoad(self.table, [index]), "entry")
        slope, rest = tirx.bitwise_and(entry, like(0xFFFF, x)), tirx.bitwise_and(size, like(255, x))
        value = k.bind(shift_right(entry, like(16, x)) + shift_right(slope * rest + like(128, x), like(8, x)))
        signed = select(x < like(0, x), like(0, x) - value, value)
        return k.bind(shift_right(like(ONE, x) + signed, like(1, x)) if half else signed)

    def _shift(self, x: Any, bits: int) -> Any:
        """x / 2^bits, rounded half up."""
        from ..tir import like, shift_right

        return self.k.bind(shift_right(x + like(1 << (bits - 1), x), like(bits, x)))

    def _recurrent(self, block: Any, vectors: Sequence[Any], gates: Sequence[int], buffer: Any) -> Sums:
        columns, wide = [(g, v) for g in gates for v in vectors], len(vectors)
        (found,) = self._products("r", block, columns, [(buffer, 0)])
        return [found[i * wide : (i + 1) * wide] for i in range(len(gates))]

    def _fed(self, line: Any, gate: int, unit: Any) -> Any:
        return self.k.load(self.fed, (line * self.gates + gate) * self.units + unit, self.lanes)

    def _lstm(self, line: Any) -> None:
        from ..tir import like, maximum, minimum

        k = self.k
        with self.blocks() as (block, vectors):
            sums = self._recurrent(block, vectors, range(4), self.h)
            for place, v in enumerate(vectors):
                unit = block * self.block + v * self.lanes
                gates = [k.bind(sums[g][place] + self._fed(line, g, unit)) for g in range(4)]
                i, o, f = (self._squash(gate, half=True) for gate in gates[:3])
                memory = k.load(self.state, unit, self.lanes)
                more = self._shift(i * self._squash(gates[3], half=False), UNIT_BITS - CELL_BITS)
                new = self._shift(f * memory + more, UNIT_BITS)
                new = k.bind(minimum(maximum(new, like(-32768, new)), like(32767, new)))
                k.store(self.state, unit, new)
                exposed = self._squash(new * like(1 << (GATE_BITS - CELL_BITS), new), half=False)
                value = self._shift(o * exposed, UNIT_BITS)
                k.store(self.new, unit, self._factor(self._to_steps(value)))

    def _gru(self, line: Any) -> None:
        if self.c["linear"]:
            self._gru_linear(line)
            return
        k = self.k
        with self.blocks() as (block, vectors):
            sums = self._recurrent(block, vectors, range(2), self.h)
            for place, v in enumerate(vectors):
                unit = block * self.block + v * self.lanes
                update, reset = (self._squash(sums[g][place] + self._fed(line, g, unit), half=True) for g in range(2))
                before = k.load(self.state, unit, self.lanes)
                k.store(self.update, unit, update)
                kept = self._to_steps(self._shift(reset * before, UNIT_BITS))
                k.store(self.fold, unit, self._factor(kept))
        with self.blocks() as (block, vectors):
            sums = self._recurrent(block, vectors, (2,), self.fold)
            for place, v in enumerate(vectors):
                unit = block * self.block + v * self.lanes
                candidate = self._squash(sums[0][place] + self._fed(line, 2, unit), half=False)
                self._advance(unit, k.load(self.update, unit, self.lanes), candidate)

    def _gru_linear(self, line: Any) -> None:
        from ..tir import like, maximum, minimum

        k = self.k
        with self.blocks() as (block, vectors):
            sums = self._recurrent(block, vectors, range(3), self.h)
            for place, v in enumerate(vectors):
                unit = block * self.block + v * self.lanes
                update, reset = (self._squash(sums[g][place] + self._fed(line, g, unit), half=True) for g in range(2))
                own = sums[2][place] + self._bias(1, 2, block, v) if "b" in self.packed else sums[2][place]
                own = k.bind(minimum(maximum(own, like(1 - REACH, own)), like(REACH - 1, own)))
                fold = self._shift(reset * own, UNIT_BITS)
                candidate = self._squash(self._fed(line, 2, unit) + fold, half=False)
                self._advance(unit, update, candidate)

    def _advance(self, unit: Any, update: Any, candidate: Any) -> None:
        """The state between the candidate and what it was."""
        from ..tir import like

        k = self.k
        update = k.bind(update)
        before = k.load(self.state, unit, self.lanes)
        value = self._shift((like(ONE, update) - update) * candidate + update * before, UNIT_BITS)
        k.store(self.state, unit, value)
        k.store(self.new, unit, self._factor(self._to_steps(value)))
