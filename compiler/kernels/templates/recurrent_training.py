"""Recurrent layers in training: the scan over the steps that keeps its gates, and its backward pass.

A task takes all steps of some rows of the batch in one direction. In each step a matrix product fills the gates of
blocks of hidden units (forward), or takes the gradients of all gates back to the state before (backward); between
stands the cell, a row at a time. Recurrent weights are known at run time only: phases of packing put them into panels
``[block][depth][gate][unit]`` once a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...ops import OPS
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cells import (
    GATES,
    accumulate,
    activations,
    by_fours,
    chosen,
    derivatives,
    described,
    equals,
    offset_of,
    parity,
)
from ._rows import pieces, split_index

ROWS = 16  # rows of the batch in a task, about
_OPS = ("lstm_scan", "gru_scan", "rnn_scan", "lstm_scan_grad", "gru_scan_grad", "rnn_scan_grad")


# -- planning ------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    body, attrs, machine = region.body, region.attrs, region.machine
    args = body.args(region.anchor)  # type: ignore[arg-type]
    names = [n.rstrip("?") for n in OPS[region.op].inputs][: len(args)]
    numbers = {n: region.operand(i) for i, n in enumerate(names) if args[i] is not None}
    if any(v.node != region.anchor for v in body.outputs) or None in numbers.values():
        return []
    found = {n: region.inputs[i] for n, i in numbers.items() if i is not None}
    layer, backward = region.op.split("_")[0], region.op.endswith("_grad")
    states = found[("c" if layer == "lstm" else "h") if backward else "fed"]
    directions, steps, batch, _ = states.type.dims
    hidden = found["r"].type.dims[2]
    dtype = "float64" if states.type.dtype == "float64" else "float32"
    linear = bool(attrs.get("linear_before_reset", False))
    blocks = -(-batch // ROWS)
    rows = -(-batch // blocks) if batch else 1
    config: dict[str, Any] = {
        "layer": layer,
        "backward": backward,
        "steps": steps,
        "batch": batch,
        "directions": directions,
        "hidden": hidden,
        "rows": rows,
        "blocks": -(-batch // rows),
        "dtype": dtype,
        "direction": attrs["direction"],
        "activations": chosen(attrs, layer, directions),
        "clip": attrs["clip"],
        "coupled": bool(attrs.get("input_forget", False)),
        "linear": linear,
        "panels": _panels(layer, backward, linear, hidden, machine.lanes, machine.registers),
        "given": {n: described(o) for n, o in found.items()},
        "outputs": [{"which": v.index, **described(o)} for v, o in zip(body.outputs, region.outputs, strict=True)],
    }
    size = 8 if dtype == "float64" else 4
    direct = [n for n in found if n != "r"]
    config["direct"] = direct
    scratch = _scratch(config)
    tasks = directions * config["blocks"]
    weights = Arg("in", numbers["r"] or 0)
    phases = [
        Draft(
            KernelSpec("recurrent_training.pack", {**config, "panel": i}),
            (weights, Arg("shared", 0)),
            _packers(config, i),
        )
        for i in range(len(config["panels"]))
    ]
    arguments = [Arg("in", numbers[n] or 0) for n in direct]
    arguments += [Arg("out", i) for i in range(len(region.outputs))]
    arguments += [Arg("shared", 0), Arg("worker", 0)]
    phases.append(Draft(KernelSpec("recurrent_training", config), tuple(arguments), tasks if tasks > 1 else None))
    flops = 2.0 * steps * batch * directions * GATES[layer] * hidden * hidden
    return [
        Plan(
            "recurrent_training",
            tuple(phases),
            500 + flops / machine.flops_per_cycle / 2.0,
            shared_bytes=found["r"].type.size * size,
            worker_bytes=sum(scratch.values()) * size,
            inplace=_inplace(region, numbers),
            detail=f"{region.op} {rows} rows a task",
        )
    ]


def _panels(layer: str, backward: bool, linear: bool, hidden: int, lanes: int, registers: int) -> list[dict[str, Any]]:
    """The matrix products of a step: rows of r that take part (as gates), and the vectors of units in a block."""
    groups = {"lstm": [[0, 1, 2, 3]], "rnn": [[0]], "gru": [[0, 1, 2]] if linear else [[0, 1], [2]]}[layer]
    start, panels = 0, []
    for gates in groups:
        across = 1 if backward else len(gates)  # columns of each unit
        wide = max(1, min(4 // across, -(-hidden // lanes)))
        columns = wide * across
        most = max(1, ((24 if registers >= 32 else 12) if columns > 1 else 8) // columns)
        if registers < 32 and columns == 4:
            most = 2
        panels.append({"gates": gates, "wide": wide * lanes, "tile": most, "start": start})
        start += len(gates) * hidden * hidden
    return panels


def _inplace(region: Region, numbers: dict[str, int | None]) -> tuple[tuple[int, int], ...]:
    """Gates take the place of ``fed``, and their gradients that of the gates: what is written depends on what was
    read there (not so where gates are coupled: the forget gate's gradient is 0)."""
    if region.attrs.get("input_forget"):
        return ()
    number = numbers.get("gates", numbers.get("fed"))
    which = 0 if "gates" in numbers else {"lstm_scan": 2, "gru_scan": 1}.get(region.op, 0)
    pairs = [(number, j) for j, v in enumerate(region.body.outputs) if v.index == which and number is not None]
    return tuple(
        (i, j)
        for i, j in pairs
        if (region.inputs[i].type, region.inputs[i].strides) == (region.outputs[j].type, region.outputs[j].strides)
    )


def _packers(config: dict[str, Any], index: int) -> int | None:
    tasks = config["directions"] * -(-config["hidden"] // config["panels"][index]["wide"])
    return tasks if tasks > 1 else None


def _scratch(config: dict[str, Any]) -> dict[str, int]:
    """Elements of each part of a worker's scratch."""
    rows, hidden, gates = config["rows"], config["hidden"], GATES[config["layer"]]
    states = rows * _padded(hidden)
    if config["backward"]:
        parts = {"dh": states, "dgates": rows * _padded(gates * hidden)}
        parts |= {"dc": rows * hidden} if config["layer"] == "lstm" else {}
        parts |= {"dextra": rows * hidden} if config["layer"] == "gru" and not config["linear"] else {}
    else:
        widest = max(p["wide"] * len(p["gates"]) for p in config["panels"])
        parts = {"h": 2 * states, "sums": rows * widest}
        parts |= {"c": rows * hidden} if config["layer"] == "lstm" else {}
        parts |= {"extra": states, "update": rows * hidden} if config["layer"] == "gru" and not config["linear"] else {}
    return {n: -(-size // 16) * 16 for n, size in parts.items()}


def _padded(width: int) -> int:
    """A row's elements in scratch: rows a power of two apart would fall on the same cache lines."""
    return width + 16 if width % 128 == 0 else width


# -- packing -------------------------------------------------------------------------------------------------------


def emit_pack(k: Any, config: dict[str, Any]) -> None:
    """One panel group of r to shared scratch."""
    from ..functions import cast
    from .transpose import transposed

    operand, panel, hidden = config["given"]["r"], config["panels"][config["panel"]], config["hidden"]
    source = k.arg("r", operand["dtype"], operand["span"])
    target = k.arg("packed", config["dtype"], math.prod(operand["shape"]))
    of_d, of_row, of_k = operand["strides"]
    gates, units = panel["gates"], panel["wide"]
    whole, rest = divmod(hidden, units)
    area = len(gates) * hidden  # elements of a unit

    def rows_side_by_side(d: Any, start: Any, width: int) -> None:
        """Backward: units are columns of r."""
        base = d * (GATES[config["layer"]] * hidden * hidden) + panel["start"] + start * area
        with k.loop(area) as row:
            for o, w in pieces(width, k.lanes):
                at = d * of_d + (gates[0] * hidden + row) * of_row + (start + o) * of_k
                k.store(target, base + row * width + o, cast(k.load(source, at, w, of_k), config["dtype"]))

    def columns_of_gates(d: Any, start: Any, width: int) -> None:
        """Forward: units are rows of r, by squares that are transposed in registers where they are whole."""
        base = d * (GATES[config["layer"]] * hidden * hidden) + panel["start"] + start * area
        count = len(gates)
        for g, gate in enumerate(gates):
            for o, w in pieces(width, k.lanes):
                at = d * of_d + (gate * hidden + start + o) * of_row
                squares = hidden // w if of_k == 1 and w in (4, 8, 16) and operand["dtype"] == config["dtype"] else 0
                with k.loop(squares) as square:
                    rows = [k.bind(k.load(source, at + u * of_row + square * w, w)) for u in range(w)]
                    for j, row in enumerate(transposed(k, rows)):
                        k.store(target, base + ((square * w + j) * count + g) * width + o, row)
                with k.loop(hidden - squares * w) as j:
                    i = squares * w + j
                    value = cast(k.load(source, at + i * of_k, w, of_row), config["dtype"])
                    k.store(target, base + (i * count + g) * width + o, value)

    block = rows_side_by_side if config["backward"] else columns_of_gates
    blocks = whole + (rest > 0)

    def task(index: Any) -> None:
        d, j = split_index(index, blocks)
        if whole:
            with k.when(_below(j, whole) if rest else True):
                block(d, j * units, units)
        if rest:
            with k.when(equals(j, whole)):
                block(d, whole * units, rest)

    if config["directions"] * blocks > 1:
        with k.parallel(config["directions"] * blocks) as index:
            task(index)
    else:
        task(0)


def _below(a: Any, b: int) -> Any:
    return a < b


# -- scans ---------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    scan = (_Backward if config["backward"] else _Forward)(k, config)
    tasks = config["directions"] * config["blocks"]
    if tasks > 1:
        with k.parallel(tasks) as task:
            scan.task(task)
    else:
        scan.task(0)


Vectors = Sequence[tuple[int, int]]


class _Scan:
    """What both passes share: operands, scratch, the order of steps, the tiles of a product."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.c, self.dtype = k, config, config["dtype"]
        self.layer, self.hidden = config["layer"], config["hidden"]
        self.gates, self.panels = GATES[self.layer], config["panels"]
        self.given = {n: k.arg(n, config["given"][n]["dtype"], config["given"][n]["span"]) for n in config["direct"]}
        self.outputs = {o["which"]: (o, k.arg(f"y{o['which']}", o["dtype"], o["span"])) for o in config["outputs"]}
        self.r = k.arg("r", self.dtype, config["directions"] * self.gates * self.hidden * self.hidden)
        parts = _scratch(config)
        self.scratch = k.arg("scratch", self.dtype, sum(parts.values()))
        self.places = {n: sum(list(parts.values())[:i]) for i, n in enumerate(parts)}
        self.d: Any = 0
        self.first: Any = 0  # row of the batch
        self.rows = 0
        self.position: Any = 0

    def task(self, task: Any) -> None:
        c, k = self.c, self.k
        self.d, part = split_index(task, c["blocks"])
        self.first = part * c["rows"]
        rest = c["batch"] - (c["blocks"] - 1) * c["rows"]
        same = rest == c["rows"]
        if not same:
            with k.when(_below(part, c["blocks"] - 1)):
                self._activated(c["rows"])
        with k.when(True if same else equals(part, c["blocks"] - 1)):
            self._activated(rest)

    def _activated(self, rows: int) -> None:
        """The task for each set of activations (that of each direction, where they differ)."""
        names = self.c["activations"]
        same = all(n == names[0] for n in names)
        for d, chosen_names in enumerate(names[:1] if same else names):
            with self.k.when(True if same else equals(self.d, d)):
                self.rows = rows
                self.functions = activations(self.k, chosen_names, self.c["clip"])
                self.derivatives = derivatives(self.k, chosen_names, self.c["clip"])
                self.run()

    def run(self) -> None:
        raise NotImplementedError

    # -- places

    def time(self, step: Any) -> Any:
        """The position in the sequence of the ``step``-th step that is taken."""
        last = self.c["steps"] - 1
        if self.c["direction"] == "forward":
            return step
        if self.c["direction"] == "reverse":
            return last - step
        return step + self.d * (last - 2 * step)

    def own(self, part: str, row: Any, unit: Any) -> Any:
        """Offset of an element of scratch."""
        widths = {"dgates": _padded(self.gates * self.hidden), "h": _padded(self.hidden), "dh": _padded(self.hidden)}
        widths["extra"] = widths["h"]
        return self.places[part] + row * widths.get(part, self.hidden) + unit

    def kept(self, part: str, row: Any, unit: Any, lanes: int) -> Any:
        return self.k.bind(self.k.load(self.scratch, self.own(part, row, unit), lanes))

    def keep(self, part: str, row: Any, unit: Any, value: Any) -> None:
        self.k.store(self.scratch, self.own(part, row, unit), value)

    def read(self, name: str, indices: Sequence[Any], lanes: int) -> Any:
        """A vector of an input, held."""
        from ..functions import cast

        strides = self.c["given"][name]["strides"]
        value = self.k.load(self.given[name], offset_of(strides, indices), lanes, strides[-1])
        return self.k.bind(cast(value, self.dtype))

    def ask(self, name: str, indices: Sequence[Any]) -> None:
        """Asks for the cache line of an element of an input."""
        self.k.prefetch(self.given[name], offset_of(self.c["given"][name]["strides"], indices))

    def ask_to_write(self, which: int, indices: Sequence[Any]) -> None:
        """Asks for the cache line of an element of an output."""
        if which in self.outputs:
            out, buffer = self.outputs[which]
            self.k.prefetch(buffer, offset_of(out["strides"], indices), write=True)

    def optional(self, name: str, indices: Sequence[Any], lanes: int) -> Any:
        return self.read(name, indices, lanes) if name in self.given else self._zero(lanes)

    def _zero(self, lanes: int) -> Any:
        from ..tir import constant

        return constant(0, self.dtype, lanes)

    def show(self, which: int, indices: Sequence[Any], value: Any) -> None:
        """Stores a vector of an output, if somebody wants it."""
        from ..functions import cast

        if which in self.outputs:
            out, buffer = self.outputs[which]
            self.k.store(buffer, offset_of(out["strides"], indices), cast(value, out["dtype"]), out["strides"][-1] or 1)

    def here(self, row: Any, unit: Any) -> tuple[Any, ...]:
        """Indices of an element of a [D,T,B,n] tensor at this step."""
        return self.d, self.position, self.first + row, unit

    def final(self, row: Any, unit: Any) -> tuple[Any, ...]:
        return self.d, self.first + row, unit

    def alive(self, row: Any, lanes: int) -> Any:
        """Whether the sequence of a row has not ended, in every lane; None where there are no lengths."""
        from ..tir import splat

        if "lengths" not in self.given:
            return None
        from tvm import tirx

        strides = self.c["given"]["lengths"]["strides"]
        length = self.k.load(self.given["lengths"], offset_of(strides, (self.first + row,)))
        return self.k.bind(splat(tirx.Cast("int32", length) > self.position, lanes))

    # -- loops

    def each_vector(self, body: Callable[[Any, Any, int], None]) -> None:
        """``body(row, unit, lanes)`` for all hidden units of all rows."""
        k = self.k
        with k.loop(self.rows, name="row") as row:
            whole, rest = divmod(self.hidden, k.lanes)
            with k.loop(whole, name="unit") as j:
                body(row, j * k.lanes, k.lanes)
            for o, w in pieces(rest, k.lanes):
                body(row, whole * k.lanes + o, w)

    def each_block(self, panel: dict[str, Any], body: Callable[[Any, Vectors], None]) -> None:
        """``body(first unit, vectors)`` for the blocks of a panel."""
        whole, rest = divmod(self.hidden, panel["wide"])
        with self.k.loop(whole, name="block") as j:
            body(j * panel["wide"], pieces(panel["wide"], self.k.lanes))
        if rest:
            body(whole * panel["wide"], pieces(rest, self.k.lanes))

    def each_tile(self, most: int, body: Callable[[Any, int], None]) -> None:
        """``body(first row, rows)`` for tiles of nearly equal height."""
        tiles = -(-self.rows // most)
        size, larger = divmod(self.rows, tiles)
        if larger:
            with self.k.loop(larger, name="tile") as i:
                body(i * (size + 1), size + 1)
        with self.k.loop(tiles - larger, name="tile") as i:
            body(larger * (size + 1) + i * size, size)

    def product(
        self,
        rows: int,
        widths: Sequence[int],
        depth: int,
        source: Callable[[int, Any], Any],
        packed: Any,
        start: Callable[[int, int], Any],
        done: Callable[[int, int, Any], None],
    ) -> None:
        """A register tile: ``start(row, column) + sum over i of scratch[source(row, i)] * r[packed + ...]``."""
        k = self.k
        sums = [[k.register(self.dtype, w, "acc") for w in widths] for _ in range(rows)]
        for b, line in enumerate(sums):
            for j, register in enumerate(line):
                register.set(start(b, j))
        held = [k.register(self.dtype, w, "r") for w in widths]
        sources = [k.bind(source(b, 0)) for b in range(rows)]
        width = sum(widths)

        def step(i: Any) -> None:
            at = packed + i * width
            for j, register in enumerate(held):
                register.set(k.load(self.r, at + sum(widths[:j]), register.lanes))
            for line, origin in zip(sums, sources, strict=True):
                accumulate(line, k.load(self.scratch, origin + i), [r.get() for r in held])

        by_fours(k, depth, step)
        for b, line in enumerate(sums):
            for j, register in enumerate(line):
                done(b, j, register.get())

    def packed(self, panel: dict[str, Any], unit: Any) -> Any:
        """Where a block of a panel starts."""
        square = self.hidden * self.hidden
        return self.d * (self.gates * square) + panel["start"] + unit * (len(panel["gates"]) * self.hidden)


class _Forward(_Scan):
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


class _Backward(_Scan):
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


TEMPLATE = Template(
    "recurrent_training", _OPS, plan, {"recurrent_training": emit, "recurrent_training.pack": emit_pack}
)
