"""LSTM, GRU and plain recurrent layers: one kernel, whose tasks are directions and blocks of the batch.

A task takes a few time steps at once: what x gives the gates is one matrix product for all of them (each weight is
read once), then the steps follow one another with the gates of a block of hidden units in registers and the cell's
update fused. Weights are packed ``[block][input][gate][unit]``, so that the gates of neighbouring units lie side by
side; those that are not constants are packed by a phase of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from ._cells import (
    GATES,
    accumulate,
    activations,
    by_fours,
    chosen,
    described,
    equals,
    gru_update,
    lstm,
    offset_of,
    parity,
    position,
    zero,
)
from ._rows import pieces, split_index

_INPUTS = ("x", "w", "r", "b", "lengths", "h0", "c0", "p")
_ROWS = 6  # rows of x taken at once


# -- planning ------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    body, attrs, machine, op = region.body, region.attrs, region.machine, region.op
    args = body.args(region.anchor)  # type: ignore[arg-type]
    numbers = {n: region.operand(i) for i, n in enumerate(_INPUTS[: len(args)]) if args[i] is not None}
    if any(v.node != region.anchor for v in body.outputs) or None in numbers.values():
        return []
    found = {n: region.inputs[i] for n, i in numbers.items() if i is not None}
    steps, batch, features = found["x"].type.dims
    directions, _, hidden = found["r"].type.dims
    gates, lanes = GATES[op], machine.lanes
    rows = max(d for d in range(1, 5) if batch % d == 0) if batch else 1
    limit = (24 if machine.registers >= 32 else 12) // (gates * rows)
    wide = max(1, min(limit, -(-hidden // lanes), 8 // gates + 1))
    chunk = max(1, min(steps, _ROWS // rows))
    dtype = "float64" if found["x"].type.dtype == "float64" else "float32"
    size = 8 if dtype == "float64" else 4
    tasks = directions * (batch // rows)
    config: dict[str, Any] = {
        "op": op,
        "steps": steps,
        "batch": batch,
        "features": features,
        "directions": directions,
        "hidden": hidden,
        "rows": rows,
        "wide": wide,
        "lanes": lanes,
        "chunk": chunk,
        "tasks": tasks,
        "dtype": dtype,
        "direction": attrs["direction"],
        "activations": chosen(attrs, op, directions),
        "clip": attrs["clip"],
        "coupled": bool(attrs.get("input_forget", False)),
        "linear": bool(attrs.get("linear_before_reset", False)),
        "given": {n: described(o) for n, o in found.items()},
        "outputs": [{"which": v.index, **described(o)} for v, o in zip(body.outputs, region.outputs, strict=True)],
    }
    direct = [n for n in found if n not in ("w", "r")]
    config["direct"] = direct  # inputs that the kernel reads as they are
    arguments = [Arg("in", numbers[n] or 0) for n in direct]
    arguments += [Arg("out", i) for i in range(len(region.outputs))]
    weights, phases, consts, shared = _weights(config, found, numbers)
    flops = 2.0 * steps * batch * directions * gates * hidden * (features + hidden)
    cost = 300 + flops / (machine.flops_per_cycle if batch >= 4 else machine.l2_bandwidth / 2) / 2.5
    held = (4 if op == "gru" else 3) * rows * hidden * size
    plans = []
    for count in sorted({chunk, 1}):  # fewer steps at once want less scratch
        offset = -(-count * rows * gates * hidden * size // 64) * 64
        scratch = [Arg("worker", 0, 0), Arg("worker", 0, offset)]
        spec = KernelSpec("recurrent", {**config, "chunk": count})
        main = Draft(spec, (*arguments, *weights, *scratch), tasks if tasks > 1 else None)
        plans.append(
            Plan(
                "recurrent",
                (*phases, main),
                cost * (1 + 0.1 * (chunk - count) / chunk),
                tuple(consts),
                shared_bytes=shared,
                worker_bytes=offset + held,
                detail=f"{op} {rows}x{gates}x{wide}, {count} steps at once",
            )
        )
    return plans


def _weights(
    config: dict[str, Any], found: dict[str, Operand], numbers: dict[str, int | None]
) -> tuple[list[Arg], list[Draft], list[np.ndarray], int]:
    """The packed weights of x and of h: constants, or what phases of packing leave in shared scratch."""
    args: list[Arg] = []
    phases: list[Draft] = []
    consts: list[np.ndarray] = []
    shared = 0
    for name in ("w", "r"):
        operand = found[name]
        if operand.const is not None:
            args.append(Arg("const", len(consts)))
            consts.append(packed(operand.const.astype(config["dtype"]), config))
            continue
        part = {**config, "pack": name}
        args.append(Arg("shared", 0, shared))
        phases.append(Draft(KernelSpec("recurrent.pack", part), (Arg("in", numbers[name] or 0), args[-1])))
        shared += -(-operand.type.size * (8 if config["dtype"] == "float64" else 4) // 64) * 64
    return args, phases, consts, shared


def _blocks(config: dict[str, Any]) -> tuple[int, int, int]:
    """The number of whole blocks of hidden units, the units of one, and the units that are left."""
    units = config["wide"] * config["lanes"]
    return config["hidden"] // units, units, config["hidden"] % units


def packed(weights: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """``[D, gates H, K]`` as ``[D][block][K][gate][unit]``, flat."""
    directions, _, depth = weights.shape
    gates, hidden = GATES[config["op"]], config["hidden"]
    units = config["wide"] * config["lanes"]
    split = weights.reshape(directions, gates, hidden, depth)
    starts = range(0, hidden, units)
    parts = [split[:, :, s : s + units].transpose(0, 3, 1, 2).reshape(directions, -1) for s in starts]
    return np.ascontiguousarray(np.concatenate(parts, axis=1)).reshape(-1)


# -- emitting ------------------------------------------------------------------------------------------------------


def emit_pack(k: Any, config: dict[str, Any]) -> None:
    """Packs weights that are not constants."""
    from ..functions import cast

    operand = config["given"][config["pack"]]
    source = k.arg("weights", operand["dtype"], operand["span"])
    target = k.arg("packed", config["dtype"], math.prod(operand["shape"]))
    gates, (directions, _, depth), hidden = GATES[config["op"]], operand["shape"], config["hidden"]
    whole, units, rest = _blocks(config)
    of_d, of_row, of_k = operand["strides"]

    def block(d: Any, start: Any, width: int) -> None:
        with k.loop(depth) as i, k.loop(gates) as g, k.loop(width) as u:
            value = k.load(source, d * of_d + (g * hidden + start + u) * of_row + i * of_k)
            k.store(
                target,
                d * (gates * hidden * depth) + start * (gates * depth) + (i * gates + g) * width + u,
                cast(value, config["dtype"]),
            )

    with k.loop(directions) as d:
        with k.loop(whole) as j:
            block(d, j * units, units)
        if rest:
            block(d, whole * units, rest)


def emit(k: Any, config: dict[str, Any]) -> None:
    layer = _Layer(k, config)
    if config["tasks"] > 1:
        with k.parallel(config["tasks"]) as task:
            layer.task(task)
    elif config["tasks"]:
        layer.task(0)


class _Layer:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.c, self.dtype = k, config, config["dtype"]
        self.gates, self.hidden, self.rows = GATES[config["op"]], config["hidden"], config["rows"]
        self.given = {n: k.arg(n, config["given"][n]["dtype"], config["given"][n]["span"]) for n in config["direct"]}
        self.outputs = [(o, k.arg(f"y{i}", o["dtype"], o["span"])) for i, o in enumerate(config["outputs"])]
        total = config["directions"] * self.gates * self.hidden
        self.w = k.arg("w", self.dtype, total * config["features"])
        self.r = k.arg("r", self.dtype, total * self.hidden)
        self.fed = k.arg("fed", self.dtype, config["chunk"] * self.rows * self.gates * self.hidden)
        self.state = k.arg("state", self.dtype, (4 if config["op"] == "gru" else 3) * self.rows * self.hidden)
        self.blocks = _blocks(config)

    # -- addresses

    def at(self, name: str, *indices: Any) -> Any:
        """Offset of an element of an input."""
        return offset_of(self.c["given"][name]["strides"], indices)

    def _read(self, name: str, offset: Any, lanes: int, stride: int) -> Any:
        from ..functions import cast

        return cast(self.k.load(self.given[name], offset, lanes, stride), self.dtype)

    def vector(self, name: str, row: Any, unit: Any, lanes: int) -> Any:
        """``lanes`` neighbours of an input [D, n]."""
        return self._read(name, self.at(name, row, unit), lanes, self.c["given"][name]["strides"][-1])

    def h(self, turn: Any, row: Any, unit: Any) -> Any:
        """Offset of a hidden state: two copies take turns, so that a step reads the whole state before."""
        return (turn * self.rows + row) * self.hidden + unit

    def extra(self, part: int, row: Any, unit: Any) -> Any:
        """Offset in the scratch behind them: the memory cell, or the update gate and the reset state."""
        return ((2 + part) * self.rows + row) * self.hidden + unit

    def each_block(self, body: Any) -> None:
        """``body(start, vectors)`` for each block of hidden units, vectors as (offset, width)."""
        whole, units, rest = self.blocks
        with self.k.loop(whole, name="block") as j:
            body(j * units, pieces(units, self.k.lanes))
        if rest:
            body(whole * units, pieces(rest, self.k.lanes))

    # -- one task

    def task(self, task: Any) -> None:
        c, k = self.c, self.k
        self.d, part = split_index(task, c["batch"] // c["rows"])
        self.first = part * c["rows"]
        self._start()
        with k.loop(-(-c["steps"] // c["chunk"]), name="chunk") as chunk:
            start = chunk * c["chunk"]
            self._feed(start)
            count: Any = c["chunk"]
            if c["steps"] % c["chunk"]:
                from ..tir import minimum

                count = minimum(count, c["steps"] - start)
            with k.loop(count, name="step") as step:
                self._step(start + step, step)
        self._finish()

    def time(self, step: Any) -> Any:
        return position(self.c, self.d, step)

    def _start(self) -> None:
        """Initial states."""
        k = self.k
        for name in ("h0", "c0") if self.c["op"] == "lstm" else ("h0",):
            with k.loop(self.rows) as b, k.loop(self.hidden) as u:
                value: Any = zero(self.dtype)
                if name in self.given:
                    value = self._read(name, self.at(name, self.d, self.first + b, u), 1, 1)
                k.store(self.state, self.h(0, b, u) if name == "h0" else self.extra(0, b, u), value)

    def _finish(self) -> None:
        """Final states, and the outputs that carry them."""
        from ..functions import cast

        k, last = self.k, self.c["steps"] % 2
        for out, buffer in self.outputs:
            if out["which"] == 0:
                continue
            with k.loop(self.rows) as b, k.loop(self.hidden) as u:
                place = self.h(last, b, u) if out["which"] == 1 else self.extra(0, b, u)
                value = cast(k.load(self.state, place), out["dtype"])
                k.store(buffer, offset_of(out["strides"], (self.d, self.first + b, u)), value)

    # -- what x gives the gates

    def _feed(self, start: Any) -> None:
        """``fed[step, row] = W x + bias`` for the steps of a chunk (past the last one: again the last)."""
        from ..tir import minimum

        c, k = self.c, self.k
        lines = c["chunk"] * c["rows"]
        sources = []
        for line in range(lines):
            step = start + line // c["rows"]
            if c["steps"] % c["chunk"]:
                step = minimum(step, c["steps"] - 1)
            sources.append(k.bind(self.at("x", self.time(step), self.first + line % c["rows"], 0)))
        most = max(1, (24 if k.machine.get("registers", 16) >= 32 else 12) // lines)
        depth = c["features"]

        def block(unit: Any, vectors: Sequence[tuple[int, int]]) -> None:
            width = sum(w for _, w in vectors)
            base = self.d * (self.gates * self.hidden * depth) + unit * (self.gates * depth)
            columns = [(g, o, w) for g in range(self.gates) for o, w in vectors]
            for i in range(0, len(columns), most):
                group = columns[i : i + most]
                sums = [[k.register(self.dtype, w) for _, _, w in group] for _ in range(lines)]
                for line in sums:
                    for register, (g, o, w) in zip(line, group, strict=True):
                        register.set(self._bias(g, unit + o, w))

                def step(e: Any, group: Any = group, sums: Any = sums) -> None:
                    held = [k.bind(k.load(self.w, base + (e * self.gates + g) * width + o, w)) for g, o, w in group]
                    for line, source in zip(sums, sources, strict=True):
                        x = self._read("x", source + e * c["given"]["x"]["strides"][2], 1, 1)
                        accumulate(line, x, held)

                by_fours(k, depth, step)
                for number, line in enumerate(sums):
                    for register, (g, o, _) in zip(line, group, strict=True):
                        to = (number * self.hidden + unit) * self.gates + g * width + o
                        k.store(self.fed, to, register.get())

        self.each_block(block)

    def _bias(self, gate: int, unit: Any, lanes: int) -> Any:
        """Both biases of a gate, but of a GRU's candidate only x's where the reset comes after the product."""
        from ..tir import constant

        if "b" not in self.given:
            return constant(0, self.dtype, lanes)
        bias = self.vector("b", self.d, gate * self.hidden + unit, lanes)
        if self.c["linear"] and gate == 2:
            return bias
        return bias + self.vector("b", self.d, (self.gates + gate) * self.hidden + unit, lanes)

    # -- one time step

    def _step(self, step: Any, line: Any) -> None:
        self.before, self.after = self.k.bind(parity(step)), self.k.bind(1 - parity(step))
        self.position = self.time(step)
        names = self.c["activations"]
        same = all(n == names[0] for n in names)
        for d, chosen_names in enumerate(names[:1] if same else names):
            with self.k.when(True if same else equals(self.d, d)):
                functions = activations(self.k, chosen_names, self.c["clip"])
                {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.c["op"]](line, functions)

    def _products(
        self,
        line: Any,
        unit: Any,
        vectors: Sequence[tuple[int, int]],
        gates: Sequence[int],
        source: Any,
        fresh: Sequence[int] = (),
    ) -> list[list[list[Any]]]:
        """``[row][vector][gate]``: what x gave the gates (zero and the recurrent bias for ``fresh`` ones) plus R times
        the state whose row ``b`` starts at ``source(b)``."""
        k, width = self.k, sum(w for _, w in vectors)
        base = self.d * (self.gates * self.hidden * self.hidden) + unit * (self.gates * self.hidden)
        columns = [(g, o, w) for o, w in vectors for g in gates]
        sums = []
        for b in range(self.rows):
            sums.append([k.register(self.dtype, w) for _, _, w in columns])
            for register, (g, o, w) in zip(sums[-1], columns, strict=True):
                register.set(self._fresh(g, unit + o, w) if g in fresh else self._fed(line, b, unit, g * width + o, w))
        sources = [k.bind(source(b)) for b in range(self.rows)]

        def step(e: Any) -> None:
            held = [k.bind(k.load(self.r, base + (e * self.gates + g) * width + o, w)) for g, o, w in columns]
            for registers, start in zip(sums, sources, strict=True):
                accumulate(registers, k.load(self.state, start + e), held)

        by_fours(k, self.hidden, step)
        size = len(gates)
        return [[[k.bind(r.get()) for r in regs[v : v + size]] for v in range(0, len(regs), size)] for regs in sums]

    def _fed(self, line: Any, row: int, unit: Any, offset: int, lanes: int) -> Any:
        start = ((line * self.rows + row) * self.hidden + unit) * self.gates
        return self.k.load(self.fed, start + offset, lanes)

    def _fresh(self, gate: int, unit: Any, lanes: int) -> Any:
        from ..tir import constant

        if "b" not in self.given:
            return constant(0, self.dtype, lanes)
        return self.vector("b", self.d, (self.gates + gate) * self.hidden + unit, lanes)

    def _old(self, row: int, unit: Any, lanes: int) -> Any:
        return self.k.bind(self.k.load(self.state, self.h(self.before, row, unit), lanes))

    def _emit_state(self, row: int, unit: Any, lanes: int, new: Any) -> None:
        """Stores the next hidden state and the output of this step."""
        from ..functions import cast
        from ..tir import like, select

        k, alive = self.k, self._alive(row, lanes)
        shown = new
        if alive is not None:
            old = self._old(row, unit, lanes)
            new, shown = k.bind(select(alive, new, old)), k.bind(select(alive, new, like(0, new)))
        k.store(self.state, self.h(self.after, row, unit), new)
        for out, buffer in self.outputs:
            if out["which"] == 0:
                to = offset_of(out["strides"], (self.position, self.d, self.first + row, unit))
                k.store(buffer, to, cast(shown, out["dtype"]), out["strides"][-1] or 1)

    def _alive(self, row: int, lanes: int) -> Any:
        """Whether the sequence of a row has not ended yet, in every lane; None where there are no lengths."""
        from ..tir import splat

        if "lengths" not in self.given:
            return None
        length = self.k.load(self.given["lengths"], self.at("lengths", self.first + row))
        from tvm import tirx

        return self.k.bind(splat(tirx.Cast("int32", length) > self.position, lanes))

    def _lstm(self, line: Any, functions: Any) -> None:
        from ..tir import select

        k = self.k

        def block(unit: Any, vectors: Sequence[tuple[int, int]]) -> None:
            sums = self._products(line, unit, vectors, range(4), lambda b: self.h(self.before, b, 0))
            for b in range(self.rows):
                for (o, w), gates in zip(vectors, sums[b], strict=True):
                    at = self.extra(0, b, unit + o)
                    memory = k.bind(k.load(self.state, at, w))

                    def peep(j: int, o: int = o, w: int = w) -> Any:
                        return self.vector("p", self.d, j * self.hidden + unit + o, w)

                    new, following = lstm(
                        k, functions, gates, memory, peep if "p" in self.given else None, self.c["coupled"]
                    )
                    alive = self._alive(b, w)
                    k.store(self.state, at, following if alive is None else select(alive, following, memory))
                    self._emit_state(b, unit + o, w, new)

        self.each_block(block)

    def _gru(self, line: Any, functions: Any) -> None:
        f, g = functions
        k, linear = self.k, self.c["linear"]

        def gates(unit: Any, vectors: Sequence[tuple[int, int]]) -> None:
            """All gates, or (where the reset comes before the product) update and reset to scratch."""
            wanted = range(3) if linear else range(2)
            sums = self._products(line, unit, vectors, wanted, lambda b: self.h(self.before, b, 0), (2,))
            width = sum(w for _, w in vectors)
            for b in range(self.rows):
                for (o, w), found in zip(vectors, sums[b], strict=True):
                    before = self._old(b, unit + o, w)
                    update, reset = f(found[0]), f(found[1])
                    if linear:
                        candidate = g(reset * found[2] + self._fed(line, b, unit, 2 * width + o, w))
                        self._emit_state(b, unit + o, w, gru_update(k, update, candidate, before))
                    else:
                        k.store(self.state, self.extra(0, b, unit + o), update)
                        k.store(self.state, self.extra(1, b, unit + o), reset * before)

        def candidates(unit: Any, vectors: Sequence[tuple[int, int]]) -> None:
            sums = self._products(line, unit, vectors, (2,), lambda b: self.extra(1, b, 0))
            for b in range(self.rows):
                for (o, w), found in zip(vectors, sums[b], strict=True):
                    before = self._old(b, unit + o, w)
                    update = k.bind(k.load(self.state, self.extra(0, b, unit + o), w))
                    self._emit_state(b, unit + o, w, gru_update(k, update, g(found[0]), before))

        self.each_block(gates)
        if not linear:
            self.each_block(candidates)

    def _rnn(self, line: Any, functions: Any) -> None:
        (f,) = functions

        def block(unit: Any, vectors: Sequence[tuple[int, int]]) -> None:
            sums = self._products(line, unit, vectors, (0,), lambda b: self.h(self.before, b, 0))
            for b in range(self.rows):
                for (o, w), found in zip(vectors, sums[b], strict=True):
                    self._emit_state(b, unit + o, w, f(found[0]))

        self.each_block(block)


TEMPLATE = Template("recurrent", ("lstm", "gru", "rnn"), plan, {"recurrent": emit, "recurrent.pack": emit_pack})
