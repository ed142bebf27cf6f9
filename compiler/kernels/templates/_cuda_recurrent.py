"""The second kernel of a recurrent layer on a GPU: all steps (see ``cuda_recurrent``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ._cells import GATES, activations, equals, gru_update, lstm, offset_of, position
from ._cuda_recurrent_feed import fed_size
from ._cuda_walk import split

Data = dict[str, Any]
LANES = 8  # threads that share a row of recurrent weights


def emit(k: Any, config: Data) -> None:
    _Walk(k, config).run()


class _Walk:
    """A block's direction and rows through all steps."""

    def __init__(self, k: Any, config: Data) -> None:
        self.k, self.c = k, config
        self.gates, self.hidden, self.rows = GATES[config["op"]], config["hidden"], config["rows"]
        self.given = {n: k.arg(n, config["given"][n]["dtype"], config["given"][n]["span"]) for n in config["direct"]}
        self.outputs = [(o, k.arg(f"y{i}", o["dtype"], o["span"])) for i, o in enumerate(config["outputs"])]
        self.fed = k.arg("fed", "float32", fed_size(config))
        self.padded = config["chunk"] * 4 * LANES  # a row of the state, zeros behind it
        reset = config["op"] == "gru" and not config["linear"]
        self.panels = [(0, 2), (2, 1)] if reset else [(0, self.gates)]

    def run(self) -> None:
        from tvm import tirx

        c, k = self.c, self.k
        with k.grid(c["blocks"], c["threads"]) as (block, thread):
            self.thread = thread
            self.d, part = split(k, block, [c["directions"], c["blocks"] // c["directions"]])
            self.first = part * self.rows
            self.lane, self.group = (k.bind(f(thread, LANES), "at") for f in (tirx.truncmod, tirx.truncdiv))
            self.h = k.shared("float32", self.rows * self.padded, "h")
            self.sums = k.shared("float32", self.rows * self.gates * self.hidden, "sums")
            self.memory = k.shared("float32", self.rows * self.hidden, "memory")
            self.reset = k.shared("float32", self.rows * self.padded, "reset") if len(self.panels) > 1 else None
            self._hold()
            self._start()
            with k.loop(c["steps"], name="step") as step:
                self._step(step)
            self._finish()

    # -- weights

    def _hold(self) -> None:
        """Weights that stay: those of the first rounds in registers, those of the others in shared memory."""
        c, k = self.c, self.k
        if not c["fits"]:
            return
        size = c["chunk"] * 4
        self.kept = k.array("float32", max(1, c["kept"]) * size, "kept") if c["kept"] else None
        self.placed = k.shared("float32", c["placed"] * c["threads"] * size, "placed") if c["placed"] else None
        at = 0
        for (first, count), turns in zip(self.panels, c["turns"], strict=True):
            for turn in range(turns):
                row = self._row(turn, first, count)
                for part in range(c["chunk"]):
                    value = self._weights(row, part)
                    if at < c["kept"]:
                        k.store(self.kept, (at * c["chunk"] + part) * 4, value)
                    else:
                        k.store(self.placed, self._place(at, part), value)
                at += 1

    def _place(self, at: int, part: int) -> Any:
        return (((at - self.c["kept"]) * self.c["chunk"] + part) * self.c["threads"] + self.thread) * 4

    def _row(self, turn: Any, first: int, count: int) -> Any:
        """The row of weights that a group of threads takes in a round (past the end: again the last)."""
        from ..tir import minimum

        groups, rows = self.c["threads"] // LANES, count * self.hidden
        row = self.group + turn * groups
        row = row if rows % groups == 0 else minimum(row, rows - 1)
        return self.k.bind(row + first * self.hidden, "row")

    def _weights(self, row: Any, part: Any) -> Any:
        """Four neighbours of a row (behind its end: again the last, which meet zeros of the state)."""
        from ..functions import cast
        from ..tir import joined, minimum

        k, strides = self.k, self.c["given"]["r"]["strides"]
        at = self._column(part)
        if self.hidden % 4 == 0:
            at = at if self.hidden % (4 * LANES) == 0 else minimum(at, self.hidden - 4)
            return cast(k.load(self.given["r"], offset_of(strides, (self.d, row, at)), 4), "float32")
        found = [
            k.load(self.given["r"], offset_of(strides, (self.d, row, minimum(at + i, self.hidden - 1))))
            for i in range(4)
        ]
        return joined([cast(v, "float32") for v in found])

    def _column(self, part: Any) -> Any:
        return (part * LANES + self.lane) * 4

    # -- states

    def _each(self, rows: int, width: int, body: Callable[[Any, Any], None]) -> None:
        """``body(row, column)``, an element a thread at a time."""
        k, size, threads = self.k, rows * width, self.c["threads"]
        with k.loop(-(-size // threads), name="turn") as turn:
            at = k.bind(self.thread + turn * threads, "at")
            with k.when(True if size % threads == 0 else at < size):
                row, column = split(k, at, [rows, width])
                body(row, column)

    def _inside(self, row: Any) -> Any:
        return True if self.c["batch"] % self.rows == 0 else self.first + row < self.c["batch"]

    def _entry(self, row: Any) -> Any:
        """The row of the batch (past the end: the last)."""
        from ..tir import minimum

        if self.c["batch"] % self.rows == 0:
            return self.first + row
        return minimum(self.first + row, self.c["batch"] - 1)

    def _read(self, name: str, *indices: Any) -> Any:
        from ..functions import cast

        at = offset_of(self.c["given"][name]["strides"], indices)
        return self.k.bind(cast(self.k.load(self.given[name], at), "float32"), name)

    def _start(self) -> None:
        from ..tir import constant

        k = self.k

        def fill(row: Any, unit: Any) -> None:
            for buffer in (b for b in (self.h, self.reset) if b is not None):
                k.store(buffer, row * self.padded + unit, constant(0, "float32"))

        def initial(row: Any, unit: Any) -> None:
            if "h0" in self.given:
                k.store(self.h, row * self.padded + unit, self._read("h0", self.d, self._entry(row), unit))
            zero = constant(0, "float32")
            cell = self._read("c0", self.d, self._entry(row), unit) if "c0" in self.given else zero
            k.store(self.memory, row * self.hidden + unit, cell)

        self._each(self.rows, self.padded, fill)
        k.barrier()
        self._each(self.rows, self.hidden, initial)
        k.barrier()

    def _finish(self) -> None:
        """Final states, and the outputs that carry them."""
        from ..functions import cast

        k = self.k

        def store(row: Any, unit: Any) -> None:
            with k.when(self._inside(row)):
                for out, buffer in self.outputs:
                    if out["which"]:
                        final = k.load(self.h, row * self.padded + unit)
                        final = final if out["which"] == 1 else k.load(self.memory, row * self.hidden + unit)
                        to = offset_of(out["strides"], (self.d, self.first + row, unit))
                        k.store(buffer, to, cast(final, out["dtype"]))

        self._each(self.rows, self.hidden, store)

    # -- one step

    def _products(self, panel: int, source: Any) -> None:
        """``sums[row, gate unit]`` = R times the state in ``source``, for the gates of a panel."""
        k, (first, count), turns = self.k, self.panels[panel], self.c["turns"][panel]
        if self.c["fits"]:
            before = sum(self.c["turns"][:panel])
            for b in range(self.rows):
                held = [k.bind(self._state(source, b, part), "h") for part in range(self.c["chunk"])]
                for turn in range(turns):
                    self._row_sum(turn, first, count, b, lambda p, t=turn: self._held(before + t, p), held)
            return
        with k.loop(turns, name="turn") as turn:
            row = self._row(turn, first, count)
            sums = [k.register("float32", 4, "sum") for _ in range(self.rows)]
            self._clear(sums)
            with k.loop(self.c["chunk"], name="part") as part:
                weights = k.bind(self._weights(row, part), "w")
                for b, register in enumerate(sums):
                    register.add_product(weights, self._state(source, b, part))
            for b, register in enumerate(sums):
                self._keep(turn, first, count, b, register)

    def _clear(self, sums: list[Any]) -> None:
        from ..tir import constant

        for register in sums:
            register.set(constant(0, "float32", 4))

    def _row_sum(self, turn: int, first: int, count: int, b: int, weights: Any, state: list[Any]) -> None:
        total = self.k.register("float32", 4, "sum")
        self._clear([total])
        for part, held in enumerate(state):
            total.add_product(weights(part), held)
        self._keep(turn, first, count, b, total)

    def _held(self, at: int, part: int) -> Any:
        if at < self.c["kept"]:
            return self.k.load(self.kept, (at * self.c["chunk"] + part) * 4, 4)
        return self.k.load(self.placed, self._place(at, part), 4)

    def _state(self, source: Any, row: int, part: Any) -> Any:
        return self.k.load(source, row * self.padded + self._column(part), 4)

    def _keep(self, turn: Any, first: int, count: int, b: int, register: Any) -> None:
        """The sum over the threads that share a row, in a fixed order, to shared memory."""
        k = self.k
        value = k.bind(k.across(register.get(), lambda a, b: a + b), "total")
        for step in (4, 2, 1):
            value = k.bind(value + k.device("nv_shuffle_xor", "float32", value, step), "total")
        groups, rows = self.c["threads"] // LANES, count * self.hidden
        row = self.group + turn * groups
        with k.when(equals(self.lane, 0)), k.when(True if rows % groups == 0 else row < rows):
            k.store(self.sums, b * (self.gates * self.hidden) + first * self.hidden + row, value)

    def _step(self, step: Any) -> None:
        c, k = self.c, self.k
        self.position = k.bind(position(c, self.d, step), "position")
        self._products(0, self.h)
        k.barrier()
        names = c["activations"]
        same = all(n == names[0] for n in names)
        if self.reset is not None:
            for d, chosen in enumerate(names[:1] if same else names):
                with k.when(True if same else equals(self.d, d)):
                    self._resets(activations(k, chosen, c["clip"]))
            k.barrier()
            self._products(1, self.reset)
            k.barrier()
        for d, chosen in enumerate(names[:1] if same else names):
            with k.when(True if same else equals(self.d, d)):
                functions = activations(k, chosen, c["clip"])
                self._each(self.rows, self.hidden, partial(self._cell, functions))
        k.barrier()

    def _gate(self, gate: int, row: Any, unit: Any, *, product: bool = True) -> Any:
        """What x gave a gate, and the product with it."""
        k, width = self.k, self.gates * self.hidden
        lines = self.position * self.c["batch"] + self._entry(row)
        total = self.c["steps"] * self.c["batch"]
        value = k.load(self.fed, (self.d * total + lines) * width + gate * self.hidden + unit)
        return k.bind(value + self._sum(gate, row, unit) if product else value, "gate")

    def _sum(self, gate: int, row: Any, unit: Any) -> Any:
        return self.k.load(self.sums, row * (self.gates * self.hidden) + gate * self.hidden + unit)

    def _resets(self, functions: Any) -> None:
        """The reset state that the candidate's product is taken with; the update gate stays in its sum's place."""
        k = self.k

        def reset(row: Any, unit: Any) -> None:
            before = k.load(self.h, row * self.padded + unit)
            k.store(self.reset, row * self.padded + unit, functions[0](self._gate(1, row, unit)) * before)

        self._each(self.rows, self.hidden, reset)

    def _cell(self, functions: Any, row: Any, unit: Any) -> None:
        from ..tir import select

        k, op = self.k, self.c["op"]
        before = k.bind(k.load(self.h, row * self.padded + unit), "before")
        alive = self._alive(row)
        if op == "lstm":
            memory = k.bind(k.load(self.memory, row * self.hidden + unit), "memory")
            sums = [self._gate(g, row, unit) for g in range(4)]
            peep = None
            if "p" in self.given:

                def peep(j: int) -> Any:
                    return self._read("p", self.d, j * self.hidden + unit)

            new, following = lstm(k, functions, sums, memory, peep, self.c["coupled"])
            k.store(
                self.memory,
                row * self.hidden + unit,
                following if alive is None else select(alive, following, memory),
            )
        elif op == "gru":
            new = self._gru(functions, row, unit, before)
        else:
            new = functions[0](self._gate(0, row, unit))
        self._emit_state(row, unit, before, k.bind(new, "new"), alive)

    def _gru(self, functions: Any, row: Any, unit: Any, before: Any) -> Any:
        f, g = functions
        update = f(self._gate(0, row, unit))
        if not self.c["linear"]:
            return gru_update(self.k, update, g(self._gate(2, row, unit)), before)
        fresh = self._sum(2, row, unit)
        if "b" in self.given:
            fresh = fresh + self._read("b", self.d, (self.gates + 2) * self.hidden + unit)
        candidate = g(f(self._gate(1, row, unit)) * fresh + self._gate(2, row, unit, product=False))
        return gru_update(self.k, update, candidate, before)

    def _alive(self, row: Any) -> Any:
        """Whether the sequence of a row has not ended yet; None where there are no lengths."""
        from tvm import tirx

        if "lengths" not in self.given:
            return None
        at = offset_of(self.c["given"]["lengths"]["strides"], (self._entry(row),))
        return self.k.bind(tirx.Cast("int32", self.k.load(self.given["lengths"], at)) > self.position, "alive")

    def _emit_state(self, row: Any, unit: Any, before: Any, new: Any, alive: Any) -> None:
        from ..functions import cast
        from ..tir import like, select

        k, shown = self.k, new
        if alive is not None:
            new, shown = k.bind(select(alive, new, before)), k.bind(select(alive, new, like(0, new)))
        k.store(self.h, row * self.padded + unit, new)
        with k.when(self._inside(row)):
            for out, buffer in self.outputs:
                if out["which"] == 0:
                    to = offset_of(out["strides"], (self.position, self.d, self.first + row, unit))
                    k.store(buffer, to, cast(shown, out["dtype"]))
