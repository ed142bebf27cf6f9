"""Attention as one kernel: scores of a block of queries stay in the worker's scratch, softmax and the mix of values
follow at once. Heads and ranges of queries are the tasks.

Keys arrive as rows [T,E]; a task packs its head's keys to columns first (and values to dense rows where theirs lie far
apart), so that both products run in register tiles of ``rows`` queries by ``wide`` vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._rows import Coords, Passes, Spot, Unit, Walk, operations, pieces, split_index

_TASKS = 8  # tasks that a large region should have at least
_SHARE = 64  # queries for which packing the keys again pays


# -- planning ------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    body, attrs, machine = region.body, region.attrs, region.machine
    args = body.args(region.anchor)  # type: ignore[arg-type]
    numbers = [region.operand(i) for i in range(len(args))]
    if any(n is None and a is not None for n, a in zip(numbers, args, strict=True)) or len(region.outputs) != 1:
        return []
    operands = [None if n is None else region.inputs[n] for n in numbers]
    q, keys, values = operands[:3]
    assert q is not None and keys is not None and values is not None
    *lead, queries, depth = q.type.dims
    length, width = values.type.dims[-2:]
    heads, lanes = math.prod(lead), machine.lanes
    rows, wide = (8, 3) if machine.registers >= 32 else (4, 3)
    rows = max(1, min(rows, queries))
    dtype = "float64" if q.type.dtype == "float64" else "float32"
    size = 8 if dtype == "float64" else 4
    vectors = -(-length // lanes)
    if attrs["causal"]:  # panels are left out by their number, so all are of one width
        wide = next(w for w in (3, 2, 1) if vectors % w == 0)
    padded = vectors * lanes
    line = padded + (lanes if padded % 256 == 0 else 0)  # rows of scores that do not fall into one set of the cache
    shares = 1 if heads >= _TASKS else max(1, min(-(-_TASKS // max(1, heads)), queries // _SHARE))
    blocks = -(-queries // rows)
    share = -(-blocks // shares) if blocks else 1
    shares = -(-blocks // share) if blocks else 1
    flops = 2.0 * heads * queries * length * (depth + width + 8)
    tasks = heads * shares if flops > 200_000 else 1
    dense_values = (
        values.type.dtype == dtype and values.strides[-1] == 1 and (values.strides[-2] == width or queries < 2 * rows)
    )
    config: dict[str, Any] = {
        "program": serialize(region),
        "numbers": numbers,
        "lead": lead,
        "queries": queries,
        "depth": depth,
        "length": length,
        "width": width,
        "padded": padded,
        "line": line,
        "rows": rows,
        "wide": wide,
        "share": share,
        "shares": shares,
        "tasks": tasks,
        "dtype": dtype,
        "pack_values": not dense_values,
        "scale": float(attrs["scale"]),
        "causal": bool(attrs["causal"]),
        "softcap": float(attrs["softcap"] or 0.0),
    }
    scratch = [depth * padded * size, rows * line * size, 0 if dense_values else length * width * size]
    offsets = [sum(-(-b // 64) * 64 for b in scratch[:i]) for i in range(len(scratch) + 1)]
    arguments = [*(Arg("in", i) for i in range(len(region.inputs))), Arg("out")]
    arguments += [Arg("worker", 0, o) for o, b in zip(offsets, scratch, strict=False) if b]
    cost = 200 + flops / machine.flops_per_cycle * 1.3 / 2.5 + heads * shares * length * depth / lanes
    cost += heads * queries * width * operations(region) / lanes / 2.5
    draft = Draft(KernelSpec("attention", config), tuple(arguments), tasks if tasks > 1 else None)
    return [Plan("attention", (draft,), cost, worker_bytes=offsets[-1], detail=f"attention {rows}x{wide}")]


# -- emitting ------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _Attention(k, config)
    heads = math.prod(config["lead"])
    if config["tasks"] > 1:
        with k.parallel(config["tasks"]) as task:
            kernel.task(task)
    else:
        with k.loop(heads * config["shares"]) as task:
            kernel.task(task)


class _Attention:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c, self.dtype = k, config, config["dtype"]
        program = config["program"]
        self.inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.out = k.arg("y", program["outputs"][0]["dtype"], program["outputs"][0]["span"])
        self.keys = k.arg("keys", self.dtype, config["depth"] * config["padded"])
        self.scores = k.arg("scores", self.dtype, config["rows"] * config["line"])
        self.values = k.arg("values", self.dtype, config["length"] * config["width"]) if config["pack_values"] else None
        self.anchor = program["anchor"][0]
        self.result: Any = None
        self.ev = Evaluator(k, program, self.inputs, anchor=lambda number, coords: self.result)
        self.operands: list[Any] = [None if n is None else program["inputs"][n] for n in config["numbers"]]
        self.buffers = [None if n is None else self.inputs[n] for n in config["numbers"]]

    def task(self, task: Any) -> None:
        """One head, or a share of its queries."""
        c, k = self.c, self.k
        head, share = split_index(task, c["shares"])
        self.lead: list[Any] = []
        for extent in reversed(c["lead"]):
            head, index = split_index(head, extent)
            self.lead.insert(0, index)
        self.base = [None if o is None else self._base(o) for o in self.operands]
        self._pack_keys()
        if self.values is not None:
            self._pack_values()
        full = c["queries"] // c["rows"]
        rest = c["queries"] - full * c["rows"]
        first = share * c["share"]
        if full:
            if c["shares"] == 1:
                count: Any = full
            else:
                from ..tir import minimum

                count = minimum(c["share"], full - first)
            with k.loop(count, name="block") as block:
                self._block((first + block) * c["rows"], c["rows"])
        if rest:
            from tvm import tirx

            with k.when(True if c["shares"] == 1 else tirx.EQ(share, c["shares"] - 1)):
                self._block(full * c["rows"], rest)

    def _base(self, operand: dict[str, Any]) -> Any:
        """The element offset of this task's head."""
        strides = operand["strides"][:-2]
        axes = self.lead[len(self.lead) - len(strides) :]
        dims = operand["shape"]
        total: Any = 0
        for index, stride, extent in zip(axes, strides, dims, strict=False):
            if stride and extent > 1:
                total = total + index * stride
        return total if isinstance(total, int) else self.k.bind(total)

    def _load(self, which: int, row: Any, column: Any, lanes: int = 1, step: int | None = None) -> Any:
        """Elements of q, k or v of this head, from (row, column) on, ``step`` apart (default: along the last axis)."""
        from ..functions import cast

        operand = self.operands[which]
        rows, columns = operand["strides"][-2:]
        at = self.base[which] + row * rows + column * columns
        return cast(self.k.load(self.buffers[which], at, lanes, columns if step is None else step), self.dtype)

    # -- packing

    def _pack_keys(self) -> None:
        """Keys to panels [E, wide lanes] of columns, so that a tile walks memory in order."""
        c, k, lanes = self.c, self.k, self.k.lanes
        panels, rest = divmod(c["length"], c["wide"] * lanes)
        with k.loop(panels, name="panel") as panel, k.loop(c["wide"], name="v") as v:
            self._pack_square((panel * c["wide"] + v) * lanes, lanes, self._panel(panel) + v * lanes, c["wide"])
        vectors = -(-rest // lanes)
        for v in range(vectors):
            t = (panels * c["wide"] + v) * lanes
            self._pack_square(t, min(lanes, c["length"] - t), self._panel(panels) + v * lanes, vectors)

    def _panel(self, number: Any) -> Any:
        return number * (self.c["depth"] * self.c["wide"] * self.k.lanes)

    def _pack_square(self, t: Any, count: int, to: Any, vectors: int) -> None:
        """``count`` keys from ``t`` on to one vector of each line of a panel of ``vectors``; missing ones are 0."""
        from ..tir import constant

        c, k, lanes = self.c, self.k, self.k.lanes
        stride_t, stride_e = self.operands[1]["strides"][-2:]
        squares = c["depth"] // lanes if stride_e == 1 and lanes > 1 and count == lanes else 0
        line = vectors * lanes
        if squares:
            with k.loop(squares, name="e") as e:
                held = [k.bind(self._load(1, t + i, e * lanes, lanes)) for i in range(lanes)]
                for i, vector in enumerate(transposed(k, held)):
                    k.store(self.keys, to + (e * lanes + i) * line, vector)
        with k.loop(c["depth"] - squares * lanes, name="e") as rest:
            e = squares * lanes + rest
            if count == lanes:
                k.store(self.keys, to + e * line, self._load(1, t, e, lanes, stride_t))
                return
            k.store(self.keys, to + e * line, constant(0, self.dtype, lanes))
            with k.loop(count, name="t") as i:
                k.store(self.keys, to + e * line + i, self._load(1, t + i, e))

    def _pack_values(self) -> None:
        c, k = self.c, self.k
        full = c["width"] // k.lanes
        with k.loop(c["length"], name="t") as t:
            if full:
                with k.loop(full) as i:
                    k.store(self.values, t * c["width"] + i * k.lanes, self._load(2, t, i * k.lanes, k.lanes))
            for at, width in pieces(c["width"], k.lanes)[full:]:
                k.store(self.values, t * c["width"] + at, self._load(2, t, at, width))

    # -- a block of queries

    def _block(self, first: Any, rows: int) -> None:
        c, k = self.c, self.k
        limit: Any = c["length"]
        if c["causal"]:
            from ..tir import minimum

            limit = k.bind(minimum(limit, first + rows))
        self._scores(first, rows, limit)
        inverse = k.array(self.dtype, c["rows"], "inverse")
        with k.loop(rows, name="row") as row:
            self._weigh(first, row, inverse)
        self._mix(first, rows, limit, inverse)

    def _scores(self, first: Any, rows: int, limit: Any) -> None:
        """q kT of the block; columns that no query of the block may see are left out."""
        c, k, lanes = self.c, self.k, self.k.lanes

        def panel(number: Any, vectors: int) -> None:
            start = number * (c["wide"] * lanes)
            base = self._panel(number)
            self._tile(
                rows,
                [(v * lanes, lanes) for v in range(vectors)],
                c["depth"],
                lambda i, e: self._load(0, first + i, e),
                lambda e, at, w: k.load(self.keys, base + e * (vectors * lanes) + at, w),
                lambda i, at, value: k.store(self.scores, i * c["line"] + start + at, value),
            )

        panels, rest = divmod(c["padded"] // lanes, c["wide"])
        with k.loop(split_up(limit, c["wide"] * lanes) if c["causal"] else panels, name="panel") as j:
            panel(j, c["wide"])
        if rest:
            panel(panels, rest)

    def _weigh(self, first: Any, row: Any, inverse: Any) -> None:
        """Softmax of one row of scores but for the division, whose factor goes to ``inverse``."""
        from tvm import tirx

        from .. import vecmath
        from ..tir import like, maximum, select, splat

        c, k = self.c, self.k
        length = c["length"]
        small = len(pieces(length, k.lanes)) <= k.machine.get("registers", 16) // 2
        space = {"shape": [length], "origin": [[0, 1]], "kept": [], "reduced": [[0]], "across": True, "lanes": k.lanes}
        start = k.bind(row * c["line"]) if not isinstance(row, int) else row * c["line"]

        def put(spot: Spot, value: Any) -> None:
            k.store(self.scores, start + spot.index, value)

        def read(spot: Spot) -> Any:
            return self._masked(k.bind(k.load(self.scores, start + spot.index, spot.lanes)), first + row, spot)

        how = "registers" if small else "again"
        unit = Unit([0], [(0, 1)])
        rows = Passes(Walk(k, space), unit, how, None, read)

        def keep(spot: Spot, x: Any) -> tuple[Any, Any]:
            if not small:
                put(spot, x)
            return x, x

        (most,) = rows.fold(maximum, float("-inf"), self.dtype, keep, first=True)
        most = k.bind(select(tirx.EQ(most, like(float("-inf"), most)), like(0, most), most))
        rows.read = lambda spot: k.bind(k.load(self.scores, start + spot.index, spot.lanes))

        def weigh(spot: Spot, x: Any) -> tuple[None, Any]:
            shifted = k.bind(x - splat(most, spot.lanes))
            e = vecmath.exp(k, shifted) if self.dtype == "float64" else vecmath.exp_fast(k, shifted, negative=True)
            put(spot, e)
            return None, e

        (total,) = rows.fold(lambda a, b: a + b, 0.0, self.dtype, weigh)
        blind = tirx.EQ(total, like(0, total))
        k.store(inverse, row, select(blind, like(0, total), like(1, total) / select(blind, like(1, total), total)))

    def _masked(self, x: Any, query: Any, spot: Spot) -> Any:
        """Scale, cap and masks on a vector of scores."""
        from .. import vecmath
        from ..evaluate import lanewise
        from ..functions import cast
        from ..tir import like, select, splat

        c, k, lanes = self.c, self.k, spot.lanes
        hidden = like(float("-inf"), x)
        x = x * like(c["scale"] / (c["softcap"] or 1.0), x)
        if c["softcap"]:
            x = vecmath.tanh(k, x) * like(c["softcap"], x)
        if len(self.operands) > 3 and self.operands[3] is not None:
            mask, base = self.operands[3], self.base[3]
            strides = [0, 0, *(s if d > 1 else 0 for s, d in zip(mask["strides"], mask["shape"], strict=True))]
            rows, columns = strides[-2:]
            given = self.k.load(self.buffers[3], base + query * rows + spot.index * columns, lanes, columns)
            if mask["dtype"] == "bool":
                x = select(given != like(0, given), x, hidden)
            else:
                x = x + cast(splat(given, lanes), self.dtype)
        if c["causal"]:
            at = lanewise((spot.index, 1 if lanes > 1 else 0), lanes)
            x = select(at <= splat(lanewise((query, 0), 1), lanes), k.bind(x), hidden)
        return k.bind(x)

    def _mix(self, first: Any, rows: int, limit: Any, inverse: Any) -> None:
        """Weights times values, the division, the epilogue and the store."""
        from ..functions import cast
        from ..tir import splat

        c, k = self.c, self.k

        def value(t: Any, at: Any, width: int) -> Any:
            if self.values is not None:
                return k.load(self.values, t * c["width"] + at, width)
            return self._load(2, t, at, width)

        def done(i: int, at: Any, total: Any) -> None:
            width = 1 if not hasattr(total, "ty") else _lanes(total)
            divided = total * splat(k.load(inverse, i), width)
            self.result = k.bind(cast(divided, self.ev.dtype(self.anchor)))
            coords: Coords = [*((x, 0) for x in self.lead), (first + i, 0), (at, 1 if width > 1 else 0)]
            self.ev.begin()
            self.ev.store(0, self.out, coords, width)

        whole = c["width"] // k.lanes
        wide = c["wide"] if whole % c["wide"] == 0 or whole > 4 else 2
        groups = [(j * wide, min(wide, whole - j * wide)) for j in range(-(-whole // wide))]
        columns = [[((j + v) * k.lanes, k.lanes) for v in range(n)] for j, n in groups]
        columns += [[piece] for piece in pieces(c["width"], k.lanes)[whole:]]
        for group in columns:
            self._tile(rows, group, limit, lambda i, t: k.load(self.scores, i * c["line"] + t), value, done)

    def _tile(
        self,
        rows: int,
        columns: Sequence[tuple[Any, int]],
        depth: Any,
        left: Callable[[int, Any], Any],
        right: Callable[[Any, Any, int], Any],
        done: Callable[[int, Any, Any], None],
    ) -> None:
        """``done(i, column, sum over d of left(i, d) * right(d, column))`` in a tile of registers."""
        from ..tir import constant, splat

        k = self.k
        sums = [[k.register(self.dtype, w) for _, w in columns] for _ in range(rows)]
        for line in sums:
            for register in line:
                register.set(constant(0, self.dtype, register.lanes))

        def step(d: Any) -> None:
            vectors = [k.bind(right(d, at, w)) for at, w in columns]
            for i, line in enumerate(sums):
                factor = left(i, d)
                for register, vector in zip(line, vectors, strict=True):
                    register.add_product(splat(factor, register.lanes), vector)

        quads, rest = split_index(depth, 4)
        with k.loop(quads, name="d") as d:
            for u in range(4):
                step(d * 4 + u)
        if not (isinstance(rest, int) and rest == 0):
            with k.loop(rest, name="d") as d:
                step(quads * 4 + d)
        for i, line in enumerate(sums):
            for (at, _), register in zip(columns, line, strict=True):
                done(i, at, k.bind(register.get()))


def split_up(limit: Any, step: int) -> Any:
    """limit / step, rounded up."""
    return split_index(limit + (step - 1), step)[0]


def _lanes(value: Any) -> int:
    from ..tir import lanes_of

    return lanes_of(value)


def transposed(k: Any, vectors: Sequence[Any]) -> list[Any]:
    """The transpose of a square of lanes, by log2 exchanges of growing distance."""
    from tvm import tirx

    held, lanes = list(vectors), len(vectors)
    distance = 1
    while distance < lanes:
        first = [j if not j & distance else lanes + j - distance for j in range(lanes)]
        second = [j + distance if not j & distance else lanes + j for j in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                pair = [held[i], held[i + distance]]
                for to, order in ((i, first), (i + distance, second)):
                    held[to] = k.bind(tirx.Shuffle(pair, [tirx.IntImm("int32", j) for j in order]))
        distance *= 2
    return held


TEMPLATE = Template("attention", ("attention",), plan, {"attention": emit})
