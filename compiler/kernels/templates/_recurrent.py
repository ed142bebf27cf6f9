"""What both passes of a recurrent scan share: operands, scratch, the order of steps, register tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._cells import GATES, accumulate, activations, by_fours, derivatives, equals, offset_of, position
from ._rows import pieces, split_index

Vectors = Sequence[tuple[int, int]]


def scratch(config: dict[str, Any]) -> dict[str, int]:
    """Elements of each part of a worker's scratch."""
    rows, hidden, gates = config["rows"], config["hidden"], GATES[config["layer"]]
    states = rows * padded(hidden)
    if config["backward"]:
        parts = {"dh": states, "dgates": rows * padded(gates * hidden)}
        parts |= {"dc": rows * hidden} if config["layer"] == "lstm" else {}
        parts |= {"dextra": rows * hidden} if config["layer"] == "gru" and not config["linear"] else {}
    else:
        widest = max(p["wide"] * len(p["gates"]) for p in config["panels"])
        parts = {"h": 2 * states, "sums": rows * widest}
        parts |= {"c": rows * hidden} if config["layer"] == "lstm" else {}
        parts |= {"extra": states, "update": rows * hidden} if config["layer"] == "gru" and not config["linear"] else {}
    return {n: -(-size // 16) * 16 for n, size in parts.items()}


def padded(width: int) -> int:
    """A row's elements in scratch: rows a power of two apart would fall on the same cache lines."""
    return width + 16 if width % 128 == 0 else width


class Scan:
    """What both passes share: operands, scratch, the order of steps, the tiles of a product."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        self.k, self.c, self.dtype = k, config, config["dtype"]
        self.layer, self.hidden = config["layer"], config["hidden"]
        self.gates, self.panels = GATES[self.layer], config["panels"]
        self.given = {n: k.arg(n, config["given"][n]["dtype"], config["given"][n]["span"]) for n in config["direct"]}
        self.outputs = {o["which"]: (o, k.arg(f"y{o['which']}", o["dtype"], o["span"])) for o in config["outputs"]}
        self.r = k.arg("r", self.dtype, config["directions"] * self.gates * self.hidden * self.hidden)
        parts = scratch(config)
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
            with k.when(part < c["blocks"] - 1):
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
        return position(self.c, self.d, step)

    def own(self, part: str, row: Any, unit: Any) -> Any:
        """Offset of an element of scratch."""
        widths = {"dgates": padded(self.gates * self.hidden), "h": padded(self.hidden), "dh": padded(self.hidden)}
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
