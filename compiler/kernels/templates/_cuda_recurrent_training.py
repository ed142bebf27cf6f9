"""Writes the kernels of ``cuda_recurrent_training``: the passes of the CPU's template, loops shared by threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ._cells import GATES, by_fours, offset_of
from ._cuda_grad_parts import Data, div, mod
from ._recurrent import Scan
from ._recurrent_passes import Backward, Forward


def parts(config: Data) -> dict[str, int]:
    """Words of each part of a block's shared memory."""
    states = config["rows"] * config["hidden"]
    gates = max(len(p["gates"]) for p in config["panels"])
    gru = config["layer"] == "gru" and not config["linear"]
    if config["backward"]:
        found = {"dh": states, "dgates": states * GATES[config["layer"]], "sums": states * config["slices"]}
        found |= {"dc": states} if config["layer"] == "lstm" else {}
        return found | ({"dextra": states} if gru else {})
    found = {"h": 2 * states, "sums": states * config["slices"] * gates}
    found |= {"c": states} if config["layer"] == "lstm" else {}
    return found | ({"extra": states, "update": states} if gru else {})


def words(config: Data) -> int:
    return sum(parts(config).values())


class _Shared(Scan):
    """A scan whose loops over units are threads, and whose scratch is the block's."""

    def __init__(self, k: Any, config: Data) -> None:
        self.k, self.c, self.dtype = k, config, config["dtype"]
        self.layer, self.hidden = config["layer"], config["hidden"]
        self.gates, self.panels = GATES[self.layer], config["panels"]
        self.given = {n: k.arg(n, config["given"][n]["dtype"], config["given"][n]["span"]) for n in config["direct"]}
        self.outputs = {o["which"]: (o, k.arg(f"y{o['which']}", o["dtype"], o["span"])) for o in config["outputs"]}
        r = config["given"]["r"]
        whole = config["directions"] * self.gates * self.hidden * self.hidden
        self.r = k.arg("r", r["dtype"], r["span"]) if config["backward"] else k.arg("r", self.dtype, whole)
        sizes = parts(config)
        self.places = {n: sum(list(sizes.values())[:i]) for i, n in enumerate(sizes)}
        self.d: Any = 0
        self.first: Any = 0
        self.rows = 0
        self.position: Any = 0
        self.thread: Any = 0

    def block(self, block: Any, thread: Any) -> None:
        self.scratch = self.k.shared(self.dtype, words(self.c))
        self.thread = thread
        self.task(block)

    def own(self, part: str, row: Any, unit: Any) -> Any:
        width = self.gates * self.hidden if part == "dgates" else self.hidden
        return self.places[part] + row * width + unit

    def each_vector(self, body: Callable[[Any, Any, int], None]) -> None:
        """Every thread has the same units of the same rows each time; all wait for each other behind it."""
        k, count, threads = self.k, self.rows * self.hidden, self.c["threads"]
        with k.loop(-(-count // threads)) as i:
            at = self.k.bind(self.thread + i * threads, "at")
            with k.when(True if count % threads == 0 else at < count):
                body(k.bind(div(at, self.hidden), "row"), k.bind(mod(at, self.hidden), "unit"), 1)
        k.barrier()

    def sums(
        self, columns: int, depth: int, source: Callable[[int, Any], Any], weight: Callable[[Any, int, Any], Any]
    ) -> None:
        """Products of ``source(row, i)`` (in scratch) and ``weight(i, column, unit)``, by slices of the depth."""
        from ..tir import constant

        k, across, slices = self.k, self.c["across"], self.c["slices"]
        lane, part = k.bind(mod(self.thread, across), "lane"), k.bind(div(self.thread, across), "part")
        each = -(-depth // slices)
        with k.loop(-(-self.hidden // across)) as j:
            unit = k.bind(lane + j * across, "unit")
            with k.when(True if self.hidden % across == 0 else unit < self.hidden):
                held = [[k.register(self.dtype, 1, "acc") for _ in range(columns)] for _ in range(self.rows)]
                for register in (register for line in held for register in line):
                    register.set(constant(0, self.dtype))

                def step(i: Any) -> None:
                    own = part * each + i
                    with k.when(True if depth % each == 0 else own < depth):
                        factors = [k.bind(weight(own, c, unit), "w") for c in range(columns)]
                        for b, line in enumerate(held):
                            value = k.bind(k.load(self.scratch, source(b, own)), "s")
                            for register, factor in zip(line, factors, strict=True):
                                register.set(k.fma(value, factor, register.get()))

                by_fours(k, each, step)
                for b, line in enumerate(held):
                    for c, register in enumerate(line):
                        k.store(self.scratch, self.sum_at(part, b, c, columns, unit), register.get())
        k.barrier()

    def sum_at(self, part: Any, row: Any, column: int, columns: int, unit: Any) -> Any:
        return self.places["sums"] + ((part * self.rows + row) * columns + column) * self.hidden + unit

    def total(self, start: Any, row: Any, column: int, columns: int, unit: Any) -> Any:
        """``start`` and all slices' sums."""
        k = self.k
        for part in range(self.c["slices"]):
            start = start + k.load(self.scratch, self.sum_at(part, row, column, columns, unit))
        return k.bind(start, "total")


class _Forward(_Shared, Forward):
    def _fill(self, panel: dict[str, Any], source: str, cell: Callable[..., None]) -> None:
        k, gates = self.k, panel["gates"]
        bare = (2,) if self.layer == "gru" and self.c["linear"] else ()
        lines = self.gates * self.hidden

        def of(b: int, i: Any) -> Any:
            return self.own(source, self._turn(self.before, b) if source == "h" else b, i)

        def weight(i: Any, column: int, unit: Any) -> Any:
            return k.load(self.r, (self.d * self.hidden + i) * lines + gates[column] * self.hidden + unit)

        self.sums(len(gates), self.hidden, of, weight)

        def end(row: Any, unit: Any, lanes: int) -> None:
            found = []
            for j, g in enumerate(gates):
                start = (
                    self.optional("b", (self.d, unit), 1)
                    if g in bare
                    else self.read("fed", self.here(row, g * self.hidden + unit), 1)
                )
                found.append(self.total(start, row, j, len(gates), unit))
            cell(row, unit, 1, found)

        self.each_vector(end)


class _Backward(_Shared, Backward):
    def _take_back(self, panel: dict[str, Any], target: str, carries: bool) -> None:
        from ..functions import cast

        k = self.k
        depth, offset = len(panel["gates"]) * self.hidden, panel["gates"][0] * self.hidden
        strides = self.c["given"]["r"]["strides"]

        def weight(i: Any, column: int, unit: Any) -> Any:
            return cast(k.load(self.r, offset_of(strides, (self.d, offset + i, unit))), self.dtype)

        self.sums(1, depth, lambda b, i: self.own("dgates", b, offset + i), weight)

        def end(row: Any, unit: Any, lanes: int) -> None:
            start = self.kept(target, row, unit, 1) if carries else self._zero(1)
            self.keep(target, row, unit, self.total(start, row, 0, 1, unit))

        self.each_vector(end)


def emit(k: Any, config: Data) -> None:
    """Arguments: the inputs but the weights, the outputs, the weights."""
    scan = (_Backward if config["backward"] else _Forward)(k, config)
    with k.grid(config["directions"] * config["blocks"], config["threads"]) as (block, thread):
        scan.block(block, thread)


def emit_pack(k: Any, config: Data) -> None:
    """The weights [direction, gate and unit, depth] as [direction, depth, gate and unit]."""
    from ..functions import cast

    r, threads = config["r"], config["threads"]
    _, lines, depth = r["shape"]
    size = math.prod(r["shape"])
    source, target = k.arg("r", r["dtype"], r["span"]), k.arg("packed", "float32", size)
    with k.grid(-(-size // threads), threads) as (block, thread):
        at = k.bind(block * threads + thread, "at")
        with k.when(True if size % threads == 0 else at < size):
            place = (div(at, lines * depth), mod(at, lines), mod(div(at, lines), depth))
            k.store(target, at, cast(k.load(source, offset_of(r["strides"], place)), "float32"))
