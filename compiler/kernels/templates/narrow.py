"""Products and convolutions with weights that are stored narrow (``_narrow`` has how they lie).

Three ways. Floats of 16 bits are widened as the micro-kernel loads them. Where every weight is used by one register
tile only (a vector, or a few, times a matrix), integers become floats in registers: how fast weights come from memory
bounds such a product, so that narrow ones are faster. Else the panel of one group of
columns is unpacked into the worker's scratch, small enough for its caches, and the float micro-kernel runs over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from . import _contract, _narrow
from ._tile import Columns, Shape, Tile, choose, epilogue_inputs, epilogue_work, fits, pack
from .conv import Geometry, configure, finished, shape_of
from .matmul import assemble, product

ROWS_OF_A_PANEL = 48  # as few rows as an unpacked panel should serve
STREAM_VECTORS = 4  # of a tile whose sums are kept twice
TWICE = 2  # rows up to which sums of a segment are scaled, and not each weight


def plan(region: Region) -> list[Plan]:
    """One plan, where the weights are constants."""
    if not fits(region) or region.operand(0) is None or not _narrow.known(region, 1, 3):
        return []
    return [_matmul(region) if region.op == "matmul_narrow" else _conv(region)]


def _without(operand: Operand) -> Operand:
    """The operand as if it were read at run time: what a float template would pack is not wanted."""
    return Operand(operand.type, operand.strides)


def _weights(region: Region) -> Operand:
    at = region.operand(1)
    assert at is not None
    return region.inputs[at]


# -- plans -----------------------------------------------------------------------------------------------------------


def _matmul(region: Region) -> Plan:
    reads = epilogue_inputs(region)
    p = product(region, reads)
    w, machine = _weights(region), region.machine
    p.b = _without(p.b)
    shape = Shape(
        rows=p.rows.extent,
        lines=math.prod(o.extent for o in p.outer),
        columns=p.columns,
        depth=p.depth,
        row_step=abs(p.rows.a) * 4,
        line_bytes=p.rows.extent * p.depth * 4,
        epilogue=epilogue_work(region),
        exact_columns=region.small,
        alone=True,
    )
    tile = choose(machine, shape)
    scale, zero = _narrow.operands(region)
    if scale is None:
        plan = assemble(region, p, tile, "float32", reads, True)
        return _halves(region, plan, w, lambda a: a[None], tile.columns)
    held = _narrow.store(w, scale, zero, region.attrs["block"], lambda a: np.asarray(a)[None], p.depth)
    stream = p.rows.extent <= tile.rows
    tile = _streaming(region, tile, shape) if stream else _panel_tile(region, tile, shape)
    plan = assemble(region, p, tile, "float32", reads, True)
    return _integers(region, plan, held, tile.columns, stream)


def _conv(region: Region) -> Plan:
    reads = epilogue_inputs(region)
    g = Geometry(region)
    if g.flat(region, reads):
        g.flatten()
    w, shape = g.w, shape_of(region, g)
    g.w = _without(g.w)
    tile = choose(region.machine, shape)
    scale, zero = _narrow.operands(region)
    stream = scale is not None and shape.rows * shape.lines == g.group == math.prod(g.kernel) == 1
    if scale is not None:
        tile = _streaming(region, tile, shape) if stream else _panel_tile(region, tile, shape)
    if not stream:
        tile = replace(tile, line_block=max(tile.line_block, -(-ROWS_OF_A_PANEL // max(1, g.out[2]))))
    config = configure(region, g, tile, "float32", reads)
    dims = [*(o["extent"] for o in config["outer"]), *config["blocks"]]
    tasks = math.prod(dims[: config["split"]]) if config["split"] else None
    plan = finished(region, [g], tile.columns, config, "conv", (tasks, tile.cycles), f"direct {tile.describe()}")
    plan = replace(plan, phases=plan.phases[-1:], shared_bytes=0)
    if scale is None:
        return _halves(region, plan, w, g.reduction_major, tile.columns)
    inner = math.prod(g.kernel) if g.planes else g.depth
    held = _narrow.store(w, scale, zero, region.attrs["block"], g.reduction_major, inner)
    return _integers(region, plan, held, tile.columns, stream)


def _streaming(region: Region, tile: Tile, shape: Shape) -> Tile:
    """One tile of all rows. Registers hold its sums and either second ones or scale, offset and weight of a column."""
    registers, rows = region.machine.registers, shape.rows
    most = STREAM_VECTORS if registers >= 32 else 2
    if rows > TWICE:
        most = max(1, (registers - 1) // (rows + 3))
    nv = min(most, len(tile.columns.widths))
    return replace(tile, rows=rows, columns=replace(tile.columns, nv=nv))


def _panel_tile(region: Region, tile: Tile, shape: Shape) -> Tile:
    """The tile with so few columns that an unpacked panel stays in the second-level cache, and with blocks of so many
    rows that unpacking is little work beside the products."""
    machine, nv, rows = region.machine, tile.columns.nv, tile.rows
    while nv > 1 and nv * machine.lanes * shape.depth * 4 > machine.l2 // 2:
        nv -= 1
        rows = max(rows, min(shape.rows, machine.registers * 3 // 4 // nv, (machine.registers - 1 - nv) // nv))
    block = max(tile.row_block, -(-ROWS_OF_A_PANEL // rows)) if tile.row_block else 0
    return replace(tile, rows=rows, columns=replace(tile.columns, nv=nv), row_block=block)


def _halves(region: Region, plan: Plan, w: Operand, rows: Any, columns: Columns) -> Plan:
    """The plan with packed floats of 16 bits."""
    assert w.const is not None
    bits = _narrow.bits_of(np.asarray(w.const))
    packed = pack(np.asarray(rows(bits)), columns)
    return _with_weights(plan, {"mode": "halves"}, [packed], 0, f"{w.type.dtype} weights")


def _integers(region: Region, plan: Plan, held: _narrow.Stored, columns: Columns, stream: bool) -> Plan:
    """The plan with packed integers and their scales."""
    depth, layout = region_depth(plan), held.layout
    given = [held.codes, held.scales, *([] if held.zeros is None else [held.zeros])]
    packed = [pack(a, columns) for a in given]
    scratch = 0 if stream else 4 * _narrow.worker_floats(depth, columns.nv, columns.lanes, columns.packed)
    mode = {"mode": "stream" if stream else "panel", "layout": layout, "packed": columns.packed}
    kind = "streamed" if stream else "unpacked"
    return _with_weights(plan, mode, packed, scratch, f"{layout['bits']}-bit weights {kind}")


def region_depth(plan: Plan) -> int:
    return int(plan.phases[-1].spec.config["depth"])


def _with_weights(plan: Plan, narrow: dict[str, Any], packed: Sequence[np.ndarray], scratch: int, detail: str) -> Plan:
    """A float plan whose B (its second argument) are constants of its own. The first takes B's place among the
    arguments, the others and the scratch come last."""
    draft = plan.phases[-1]
    config = dict(draft.spec.config)
    config["b"] = {"dtype": str(packed[0].dtype), "span": packed[0].size, "step": 0, "column": 1}
    tables = [[str(a.dtype), a.size] for a in packed[1:]]
    config["narrow"] = {**narrow, "tables": tables, "scratch": scratch // 4}
    if narrow["mode"] != "halves":
        steps = _narrow.panels(config["outer"], config["depth"], narrow["packed"])
        config["narrow"]["panels"] = steps
    first = len(plan.consts)
    args = [draft.args[0], Arg("const", first), *draft.args[2:]]
    args += [Arg("const", first + 1 + i) for i in range(len(packed) - 1)]
    args += [Arg("worker", 0)] if scratch else []
    spec = KernelSpec("narrow", config)
    return replace(
        plan,
        template="narrow",
        phases=(Draft(spec, tuple(args), draft.tasks),),
        consts=(*plan.consts, *packed),
        worker_bytes=scratch,
        detail=f"{plan.detail}, {detail}",
    )


# -- kernels ---------------------------------------------------------------------------------------------------------


class Arguments(_contract.Arguments):
    """Behind a contraction's own: scales, zero points, scratch."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config)
        own = config["narrow"]
        self.tables = [k.arg(f"t{i}", dtype, size) for i, (dtype, size) in enumerate(own["tables"])]
        self.scratch = k.arg("panel", "float32", own["scratch"]) if own["scratch"] else None


class Narrow(_contract.Contraction):
    """A contraction that finds its weights' codes and scales by itself."""

    def __init__(self, k: Any, config: dict[str, Any], reduction: type[_contract.Reduction]) -> None:
        super().__init__(k, config, reduction, Arguments(k, config))
        self.codes, self.layout = self.args.b, config["narrow"]["layout"]
        self.tables: list[Any] = self.args.tables  # type: ignore[attr-defined]

    def places(self, outer: Sequence[Any], packed: Any) -> tuple[Any, Any]:
        """Where a group's codes and its scales begin."""
        own = self.config["narrow"]
        panel = sum((i * s for i, s in zip(outer, own["panels"], strict=True) if s), start=0)
        first = panel * own["packed"] + packed
        return first * self.layout["bytes"], first * self.layout["segments"]

    def factors(self, at: Any, lanes: int) -> tuple[Any, Any]:
        """The scale of a segment's columns, and what is added to each scaled integer (None: nothing)."""
        from ..functions import cast
        from ..tir import constant

        k = self.k
        scale = k.bind(cast(k.load(self.tables[0], at, lanes), "float32"), "scale")
        if not self.layout["offset"]:
            return scale, None
        zero: Any = constant(-float(self.layout["zero"]), "float32", lanes)
        if len(self.tables) > 1:
            zero = constant(0.0, "float32", lanes) - cast(k.load(self.tables[1], at, lanes), "float32")
        return scale, k.bind(scale * zero, "offset")


class Panel(Narrow):
    """Unpacks each group of columns before its lines."""

    def __init__(self, k: Any, config: dict[str, Any], reduction: type[_contract.Reduction]) -> None:
        super().__init__(k, config, reduction)
        self.b = self.args.scratch  # type: ignore[attr-defined]

    def weights(self, outer: Sequence[Any], group: Any) -> tuple[Any, Any]:
        return 0, sum(group[2])

    def _lines(self, chosen: Sequence[Any], group: tuple[Any, Any, list[int], list[int]]) -> None:
        self._unpack(chosen[: len(self.outer)], group)
        super()._lines(chosen, group)

    def _unpack(self, outer: Sequence[Any], group: tuple[Any, Any, list[int], list[int]]) -> None:
        k, layout = self.k, self.layout
        _, packed, widths, _ = group
        width, bits = sum(widths), layout["bits"]
        codes, scales = self.places(outer, packed)
        spans = [(sum(widths[:v]), w) for v, w in enumerate(widths)]

        def segment(number: Any, row: Any, byte: Any, rows: int) -> None:
            factors = [self.factors(scales + number * width + at, w) for at, w in spans]

            def one(first: Any, source: Any, count: int) -> None:
                for (at, w), (scale, offset) in zip(spans, factors, strict=True):
                    base = codes + (byte + source) * width + at
                    for j, value in enumerate(_narrow.floats(k, self.codes, base, w, bits, count)):
                        k.store(self.b, (row + first + j) * width + at, scaled(value, scale, offset))

            _narrow.over_bytes(k, bits, rows, 1, one)

        _narrow.over_segments(k, layout, segment)


def scaled(value: Any, scale: Any, offset: Any) -> Any:
    return value * scale if offset is None else value * scale + offset


class Stream(_contract.Reduction):
    """One tile's reduction segment by segment. With few rows the sums of each are scaled and added up, with more of
    them every weight is scaled before."""

    def emit(self, a: Any, b: Any) -> None:
        of: Any = self.of
        k, layout = self.k, of.layout
        codes, scales = b
        bits, width, tap = layout["bits"], self.step, of.inner["tap_a"]
        spans = [(at, r.lanes) for at, r in zip(self.offsets, self.b, strict=True)]
        twice = len(self.acc) <= TWICE
        parts = [[k.register("float32", w, "part") for _, w in spans] for _ in self.acc] if twice else self.acc
        sums = [k.register("float32", 1, "sum") for _ in self.acc] if layout["offset"] and twice else []

        def segment(number: Any, row: Any, byte: Any, rows: int) -> None:
            at_scale = scales + number * width
            factors = [] if twice else [of.factors(at_scale + at, w) for at, w in spans]
            if twice:
                self._clear(parts, sums)

            def one(first: Any, source: Any, count: int) -> None:
                base = codes + (byte + source) * width
                columns = [_narrow.floats(k, of.codes, base + at, w, bits, count) for at, w in spans]
                for j in range(count):
                    weights = [c[j] for c in columns]
                    if not twice:
                        weights = [scaled(v, *f) for v, f in zip(weights, factors, strict=True)]
                    self._products(a + (row + first + j) * tap, weights, parts, sums)

            _narrow.over_bytes(k, bits, rows, 4 if bits == 8 else 2, one)
            if twice:
                self._scaled(at_scale, spans, parts, sums)

        _narrow.over_segments(k, layout, segment)

    def _clear(self, parts: Any, sums: Any) -> None:
        from ..tir import constant

        for r in (r for row in parts for r in row):
            r.set(constant(0, "float32", r.lanes))
        for r in sums:
            r.set(constant(0, "float32"))

    def _products(self, a: Any, columns: list[Any], parts: Any, sums: Any) -> None:
        from ..tir import splat

        held = [self.k.bind(c, "w") for c in columns] if len(parts) > 1 else columns
        for p, row in enumerate(parts):
            value = self.k.bind(self.k.load(self.of.a, a + p * self.of.point["a"]), "a")
            for r, w in zip(row, held, strict=True):
                r.add_product(splat(value, r.lanes), w)
            if sums:
                sums[p].set(sums[p].get() + value)

    def _scaled(self, scales: Any, spans: Any, parts: Any, sums: Any) -> None:
        from ..tir import splat

        for v, (at, w) in enumerate(spans):
            scale, offset = self.of.factors(scales + at, w)  # type: ignore[attr-defined]
            for p, acc in enumerate(self.acc):
                acc[v].add_product(parts[p][v].get(), scale)
                if sums:
                    acc[v].add_product(splat(sums[p].get(), w), offset)


class Streamed(Narrow):
    """Weights become floats in registers."""

    def weights(self, outer: Sequence[Any], group: Any) -> tuple[Any, Any]:
        return self.places(outer, group[1]), sum(group[2])


class Halves(_contract.Reduction):
    """Widens 16-bit floats as they are loaded."""

    def _step(self, a: Any, b: Any, rows: range) -> None:
        from ..tir import splat

        k, of = self.k, self.of
        for r, offset in zip(self.b, self.offsets, strict=True):
            r.set(_narrow.widened(k, of.b, b + offset, r.lanes))
        for p in rows:
            value = k.load(of.a, a + p * of.point["a"])
            for r, acc in zip(self.b, self.acc[p], strict=True):
                acc.add_product(splat(value, r.lanes), r.get())


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: those of a contraction, then scales, zero points and scratch."""
    mode = config["narrow"]["mode"]
    if mode == "halves":
        _contract.Contraction(k, config, Halves).run()
    elif mode == "stream":
        Streamed(k, config, Stream).run()
    else:
        Panel(k, config, _contract.Reduction).run()


TEMPLATE = Template("narrow", ("conv_narrow", "matmul_narrow"), plan, {"narrow": emit})
