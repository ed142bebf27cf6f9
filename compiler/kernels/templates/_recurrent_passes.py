"""The forward and the backward pass of a recurrent scan: what a step does between its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._cells import equals, parity
from ._recurrent import Scan, Vectors


class Forward(Scan):
    def run(self) -> None:
        from ..tir import minimum

        k = self.k
        self.before: Any = 0
        self.after: Any = 1
        self.each_vector(self._start)
        with k.loop(self.c["steps"], name="step") as step:
            self.before, self.after = k.bind(parity(step)), k.bind(1 - parity(step))
            self.position = k.bind(self.time(step))
            self.next = k.bind(self.time(minimum(step + 1, self.c["steps"] - 1)))
            if self.layer == "gru" and not self.c["linear"]:
                self._fill(self.panels[0], "h", self._reset)
                self._fill(self.panels[1], "extra", self._candidate)
            else:
                self._fill(self.panels[0], "h", {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.layer])
        self.before = self.c["steps"] % 2
        self.each_vector(self._finish)

    def _start(self, row: Any, unit: Any, lanes: int) -> None:
        self.keep("h", row, unit, self.optional("h0", self.final(row, unit), lanes))
        if self.layer == "lstm":
            self.keep("c", row, unit, self.optional("c0", self.final(row, unit), lanes))

    def _finish(self, row: Any, unit: Any, lanes: int) -> None:
        last = {"lstm": 3, "gru": 3, "rnn": 1}[self.layer]
        self.show(last, self.final(row, unit), self.kept("h", self._turn(self.before, row), unit, lanes))
        if self.layer == "lstm":
            self.show(last + 1, self.final(row, unit), self.kept("c", row, unit, lanes))

    def _turn(self, turn: Any, row: Any) -> Any:
        """The row of a state: two copies take turns, so that a step reads the whole state before."""
        return turn * self.rows + row

    def _fill(self, panel: dict[str, Any], source: str, cell: Callable[..., None]) -> None:
        """The sums of a panel's gates for a block of units to scratch, then the cell, row by row."""
        k, gates = self.k, panel["gates"]
        # a GRU's own product of the candidate is kept apart where the reset comes after it
        bare = (2,) if self.layer == "gru" and self.c["linear"] else ()

        def block(unit: Any, vectors: Vectors) -> None:
            width = sum(w for _, w in vectors)
            columns = [(g, o, w) for g in gates for o, w in vectors]
            packed = self.packed(panel, unit)
            base = self.places["sums"]

            def tile(first: Any, rows: int) -> None:
                def line(b: int, i: Any) -> Any:
                    row = self._turn(self.before, first + b) if source == "h" else first + b
                    return self.own(source, row, i)

                self._ask(first, rows, unit, width)

                def start(b: int, j: int) -> Any:
                    g, o, w = columns[j]
                    if g in bare:
                        return self.optional("b", (self.d, unit + o), w)
                    return self.read("fed", self.here(first + b, g * self.hidden + unit + o), w)

                def done(b: int, j: int, value: Any) -> None:
                    g, o, _ = columns[j]
                    at = ((first + b) * len(gates) + gates.index(g)) * width + o
                    k.store(self.scratch, base + at, value)

                self.product(rows, [w for *_, w in columns], self.hidden, line, packed, start, done)

            self.each_tile(panel["tile"], tile)
            with k.loop(self.rows, name="row") as row:
                for o, w in vectors:
                    at = [base + (row * len(gates) + j) * width + o for j in range(len(gates))]
                    cell(row, unit + o, w, [k.bind(k.load(self.scratch, a, w)) for a in at])

        self.each_block(panel, block)

    def _ask(self, first: Any, rows: int, unit: Any, width: int) -> None:
        """Fetches what the next step will start these sums from: the steps' rows lie too far apart for hardware."""
        for b in range(rows):
            for g in range(self.gates):
                for at in range(0, width, 16):
                    self.ask("fed", (self.d, self.next, self.first + first + b, g * self.hidden + unit + at))
            for at in range(0, width, 16):
                self.ask_to_write(0, self.here(first + b, unit + at))
                if self.layer == "lstm":
                    self.ask_to_write(1, self.here(first + b, unit + at))
                for g in range(self.gates if self.layer != "rnn" else 0):
                    self.ask_to_write(
                        2 if self.layer == "lstm" else 1, self.here(first + b, g * self.hidden + unit + at)
                    )

    def _gate(self, index: int, row: Any, unit: Any, value: Any, which: int, alive: Any) -> None:
        from ..tir import like, select

        kept = value if alive is None else select(alive, value, like(0, value))
        self.show(which, self.here(row, index * self.hidden + unit), kept)

    def _state(self, row: Any, unit: Any, lanes: int, new: Any, alive: Any) -> None:
        """The next hidden state."""
        from ..tir import select

        if alive is not None:
            new = self.k.bind(select(alive, new, self.kept("h", self._turn(self.before, row), unit, lanes)))
        self.keep("h", self._turn(self.after, row), unit, new)
        self.show(0, self.here(row, unit), new)

    def _lstm(self, row: Any, unit: Any, lanes: int, sums: Sequence[Any]) -> None:
        from ..tir import like, select

        k, (f, g, h), alive = self.k, self.functions, self.alive(row, lanes)
        memory = self.kept("c", row, unit, lanes)
        i, o, forget, new = sums
        p = [self.read("p", (self.d, j * self.hidden + unit), lanes) for j in range(3)] if "p" in self.given else None
        i = f(i if p is None else i + p[0] * memory)
        forget = k.bind(like(1, i) - i) if self.c["coupled"] else f(forget if p is None else forget + p[2] * memory)
        new = g(new)
        following = k.bind(forget * memory + i * new)
        if alive is not None:
            following = k.bind(select(alive, following, memory))
        o = f(o if p is None else o + p[1] * following)
        self.keep("c", row, unit, following)
        self.show(1, self.here(row, unit), following)
        for j, gate in enumerate((i, o, forget, new)):
            self._gate(j, row, unit, gate, 2, alive)
        self._state(row, unit, lanes, k.bind(o * h(following)), alive)

    def _gru(self, row: Any, unit: Any, lanes: int, sums: Sequence[Any]) -> None:
        k, (f, g), alive = self.k, self.functions, self.alive(row, lanes)
        update, reset, extra = f(sums[0]), f(sums[1]), sums[2]
        new = g(self.read("fed", self.here(row, 2 * self.hidden + unit), lanes) + reset * extra)
        for j, gate in enumerate((update, reset, new)):
            self._gate(j, row, unit, gate, 1, alive)
        self._gate(0, row, unit, extra, 2, alive)
        old = self.kept("h", self._turn(self.before, row), unit, lanes)
        self._state(row, unit, lanes, k.bind(new + update * (old - new)), alive)

    def _reset(self, row: Any, unit: Any, lanes: int, sums: Sequence[Any]) -> None:
        """Update and reset, and the reset state that the candidate's product takes."""
        (f, _), alive = self.functions, self.alive(row, lanes)
        update, reset = f(sums[0]), f(sums[1])
        extra = self.k.bind(reset * self.kept("h", self._turn(self.before, row), unit, lanes))
        self.keep("update", row, unit, update)
        self.keep("extra", row, unit, extra)
        for j, gate in enumerate((update, reset)):
            self._gate(j, row, unit, gate, 1, alive)
        self._gate(0, row, unit, extra, 2, alive)

    def _candidate(self, row: Any, unit: Any, lanes: int, sums: Sequence[Any]) -> None:
        k, (_, g), alive = self.k, self.functions, self.alive(row, lanes)
        new, update = g(sums[0]), self.kept("update", row, unit, lanes)
        self._gate(2, row, unit, new, 1, alive)
        old = self.kept("h", self._turn(self.before, row), unit, lanes)
        self._state(row, unit, lanes, k.bind(new + update * (old - new)), alive)

    def _rnn(self, row: Any, unit: Any, lanes: int, sums: Sequence[Any]) -> None:
        (f,) = self.functions
        self._state(row, unit, lanes, f(sums[0]), self.alive(row, lanes))


class Backward(Scan):
    """``dh`` holds the gradient of the state after a step; a product makes that of the state before of it."""

    def run(self) -> None:
        from ..tir import maximum

        k, steps = self.k, self.c["steps"]
        self.each_vector(self._start)
        carries = self.layer == "gru" or "lengths" in self.given
        with k.loop(steps, name="step") as back:
            self.step = k.bind(steps - 1 - back)
            self.position = k.bind(self.time(self.step))
            self.next = k.bind(self.time(maximum(self.step - 1, 0)))
            if self.layer == "gru" and not self.c["linear"]:
                self.each_vector(self._candidate)
                self._take_back(self.panels[1], "dextra", False)
                self.each_vector(self._reset)
            else:
                self.each_vector({"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.layer])
            self._take_back(self.panels[0], "dh", carries)
        self.each_vector(self._finish)

    def _start(self, row: Any, unit: Any, lanes: int) -> None:
        self.keep("dh", row, unit, self.optional("ghn", self.final(row, unit), lanes))
        if self.layer == "lstm":
            self.keep("dc", row, unit, self.optional("gcn", self.final(row, unit), lanes))

    def _finish(self, row: Any, unit: Any, lanes: int) -> None:
        self.show(1, self.final(row, unit), self.kept("dh", row, unit, lanes))
        if self.layer == "lstm":
            self.show(2, self.final(row, unit), self.kept("dc", row, unit, lanes))

    def _take_back(self, panel: dict[str, Any], target: str, carries: bool) -> None:
        """``target = dgates r``, on top of what ``target`` holds where it ``carries`` something."""
        depth, offset = len(panel["gates"]) * self.hidden, panel["gates"][0] * self.hidden

        def block(unit: Any, vectors: Vectors) -> None:
            def tile(first: Any, rows: int) -> None:
                def start(b: int, j: int) -> Any:
                    o, w = vectors[j]
                    at = self.own(target, first + b, unit + o)
                    return self.k.load(self.scratch, at, w) if carries else self._zero(w)

                self.product(
                    rows,
                    [w for _, w in vectors],
                    depth,
                    lambda b, i: self.own("dgates", first + b, offset + i),
                    self.packed(panel, unit),
                    start,
                    lambda b, j, value: self.keep(target, first + b, unit + vectors[j][0], value),
                )

            self.each_tile(panel["tile"], tile)

        self.each_block(panel, block)

    # -- cells

    def _arriving(self, row: Any, unit: Any, lanes: int, part: str = "dh", name: str = "gh") -> Any:
        """The gradient of a state after this step, from the steps behind it and from outside."""
        found = self.kept(part, row, unit, lanes)
        return self.k.bind(found + self.read(name, self.here(row, unit), lanes)) if name in self.given else found

    def _before(self, states: str, initial: str, row: Any, unit: Any, lanes: int) -> Any:
        """The state before this step, held."""
        k = self.k
        if self.c["steps"] == 1:
            return self.optional(initial, self.final(row, unit), lanes)
        held = k.register(self.dtype, lanes, "before")
        with k.when(self.step > 0):
            held.set(self.read(states, (self.d, self.time(self.step - 1), self.first + row, unit), lanes))
        with k.when(equals(self.step, 0)):
            held.set(self.optional(initial, self.final(row, unit), lanes))
        return held.get()

    def _gates(self, row: Any, unit: Any, lanes: int) -> list[Any]:
        for j in range(self.gates):
            self.ask("gates", (self.d, self.next, self.first + row, j * self.hidden + unit))
        for j in range(self.gates):
            self.ask_to_write(0, (self.d, self.next, self.first + row, j * self.hidden + unit))
        return [self.read("gates", self.here(row, j * self.hidden + unit), lanes) for j in range(self.gates)]

    def _with_kept(self, value: Any, gate: int, row: Any, unit: Any, lanes: int) -> Any:
        """``value`` plus the gradient that arrives for a kept gate from outside."""
        name, gate = ("gextras", 0) if self.layer == "gru" and gate == 3 else ("ggates", gate)
        if name in self.given:
            value = value + self.read(name, self.here(row, gate * self.hidden + unit), lanes)
        return self.k.bind(value)

    def _emit(self, gate: int, row: Any, unit: Any, value: Any, alive: Any, *, shown: bool = True) -> Any:
        """Keeps the gradient of a gate for the product and (``shown``) gives it out; 0 behind a sequence's end."""
        value = self._masked(value, alive)
        self.keep("dgates", row, gate * self.hidden + unit, value)
        if shown:
            self.show(0, self.here(row, gate * self.hidden + unit), value)
        return value

    def _masked(self, value: Any, alive: Any) -> Any:
        from ..tir import like, select

        return self.k.bind(value if alive is None else select(alive, value, like(0, value)))

    def _lstm(self, row: Any, unit: Any, lanes: int) -> None:
        from ..tir import like, select

        k, alive = self.k, self.alive(row, lanes)
        (_, _, h), (df, dg, dh_of) = self.functions, self.derivatives
        i, o, forget, new = self._gates(row, unit, lanes)
        memory, before = self.read("c", self.here(row, unit), lanes), self._before("c", "c0", row, unit, lanes)
        p = [self.read("p", (self.d, j * self.hidden + unit), lanes) for j in range(3)] if "p" in self.given else None
        dh = self._arriving(row, unit, lanes)
        dc = self._arriving(row, unit, lanes, "dc", "gc")
        shown = h(memory)
        to_o = k.bind(self._with_kept(dh * shown, 1, row, unit, lanes) * df(o))
        within = k.bind(dc + dh * o * dh_of(shown))
        if p is not None:
            within = k.bind(within + to_o * p[1])
        to_forget = self._with_kept(within * before, 2, row, unit, lanes)
        to_i = self._with_kept(within * new, 0, row, unit, lanes)
        if self.c["coupled"]:
            to_i, to_forget = k.bind((to_i - to_forget) * df(i)), like(0, i)
        else:
            to_i, to_forget = k.bind(to_i * df(i)), k.bind(to_forget * df(forget))
        to_new = k.bind(self._with_kept(within * i, 3, row, unit, lanes) * dg(new))
        for gate, value in enumerate((to_i, to_o, to_forget, to_new)):
            self._emit(gate, row, unit, value, alive)
        back = within * forget
        if p is not None:
            back = k.bind(back + to_i * p[0] + to_forget * p[2])
        if alive is not None:
            back = select(alive, back, dc)
            self.keep("dh", row, unit, select(alive, like(0, dh), dh))
        self.keep("dc", row, unit, back)

    def _gru(self, row: Any, unit: Any, lanes: int) -> None:
        """Where the reset comes after the product: the product's own gradient takes the candidate's place in it."""
        k, alive = self.k, self.alive(row, lanes)
        df, dg = self.derivatives
        update, reset, new = self._gates(row, unit, lanes)
        extra = self.read("extras", self.here(row, unit), lanes)
        dh, to_new, to_update = self._halves(row, unit, lanes, update, new)
        to_new, to_update = k.bind(to_new * dg(new)), k.bind(to_update * df(update))
        to_extra = self._with_kept(to_new * reset, 3, row, unit, lanes)
        to_reset = k.bind(self._with_kept(to_new * extra, 1, row, unit, lanes) * df(reset))
        self._emit(0, row, unit, to_update, alive)
        self._emit(1, row, unit, to_reset, alive)
        self.show(0, self.here(row, 2 * self.hidden + unit), self._masked(to_new, alive))
        self.show(2, self.here(row, unit), self._emit(2, row, unit, to_extra, alive, shown=False))
        self._carry(row, unit, dh, k.bind(dh * update), alive)

    def _halves(self, row: Any, unit: Any, lanes: int, update: Any, new: Any) -> tuple[Any, Any, Any]:
        """The gradients of the state, of the candidate and of the update gate."""
        from ..tir import like

        dh, before = self._arriving(row, unit, lanes), self._before("h", "h0", row, unit, lanes)
        to_new = self._with_kept(dh * (like(1, update) - update), 2, row, unit, lanes)
        return dh, to_new, self._with_kept(dh * (before - new), 0, row, unit, lanes)

    def _carry(self, row: Any, unit: Any, dh: Any, direct: Any, alive: Any) -> None:
        """What reaches the state before without a product."""
        from ..tir import select

        self.keep("dh", row, unit, direct if alive is None else select(alive, direct, dh))

    def _candidate(self, row: Any, unit: Any, lanes: int) -> None:
        k, alive = self.k, self.alive(row, lanes)
        df, dg = self.derivatives
        update, new = (self.read("gates", self.here(row, j * self.hidden + unit), lanes) for j in (0, 2))
        dh, to_new, to_update = self._halves(row, unit, lanes, update, new)
        self._emit(2, row, unit, k.bind(to_new * dg(new)), alive)
        self._emit(0, row, unit, k.bind(to_update * df(update)), alive)
        self._carry(row, unit, dh, k.bind(dh * update), alive)

    def _reset(self, row: Any, unit: Any, lanes: int) -> None:
        from ..tir import like, select

        k, alive = self.k, self.alive(row, lanes)
        df, _ = self.derivatives
        reset = self.read("gates", self.here(row, self.hidden + unit), lanes)
        to_extra = self._with_kept(self.kept("dextra", row, unit, lanes), 3, row, unit, lanes)
        before = self._before("h", "h0", row, unit, lanes)
        self._emit(1, row, unit, k.bind(self._with_kept(to_extra * before, 1, row, unit, lanes) * df(reset)), alive)
        direct = k.bind(to_extra * reset)
        if alive is not None:
            direct = select(alive, direct, like(0, direct))
        self.keep("dh", row, unit, self.kept("dh", row, unit, lanes) + direct)

    def _rnn(self, row: Any, unit: Any, lanes: int) -> None:
        from ..tir import like, select

        k, alive = self.k, self.alive(row, lanes)
        (df,) = self.derivatives
        dh = self._arriving(row, unit, lanes)
        self._emit(0, row, unit, k.bind(dh * df(self.read("h", self.here(row, unit), lanes))), alive)
        if alive is not None:
            self.keep("dh", row, unit, select(alive, like(0, dh), dh))
