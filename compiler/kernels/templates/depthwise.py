"""Depthwise convolution: one filter a channel, vectors along the channels, which must be adjacent in memory.

A tile is a run of output points of one line times one vector of channels. For each row of the kernel the taps' weights
are loaded once, and each input vector once, to be multiplied into all the outputs that it belongs to. Lines are the
outermost loop, then channels, then the points of the line, so that memory is walked in bands of a few lines.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ..spec import KernelSpec, Plan, Region, Template
from . import _contract
from ._tile import Columns, Tile, accumulator, epilogue_inputs, epilogue_work, fits, of_sums, step_cycles, vectors
from .conv import Geometry, assemble

_EASY_ROWS = 8  # longer tiles gain nothing and are scheduled worse
KEPT = ("int8", "int16")  # types of weights that are widened where they are loaded
_SHARED_TAPS = 7  # longest kernel row whose weights are held in registers


def plan(region: Region) -> list[Plan]:
    """One plan, where there are as many groups as input and output channels."""
    if not fits(region) or region.operand(0) is None or region.operand(1) is None or region.anchor_type.rank > 4:
        return []
    g = Geometry(region)
    if g.group == 1 or g.depth != 1 or g.columns != 1 or g.x.strides[1] != 1:
        return []
    g.columns, g.group, g.depthwise = g.group, 1, True
    dtype = products(region, g)
    tile = best_tile(region, g, 2 if dtype == "int32" and g.x.type.itemsize == 1 else 1)
    found = assemble(region, g, tile, dtype, epilogue_inputs(region), "depthwise")
    return [narrow_weights(found, g.w.type.dtype) if g.w.const is not None and g.w.type.dtype in KEPT else found]


def products(region: Region, g: Geometry) -> str:
    """The type that sums are kept in: float32 for integers where it is exact and the machine multiplies it faster."""
    dtype, machine, at = accumulator(region.anchor_type.dtype), region.machine, region.operand(2)
    if dtype != "int32" or g.x.type.itemsize > 1 or g.w.const is None or machine.multiplies >= machine.fma_ports:
        return dtype
    bias = np.zeros(1) if at is None else region.inputs[at].const
    if bias is None:
        return dtype
    largest = [int(np.abs(np.asarray(a, np.int64)).max(initial=0)) for a in (g.w.const, bias)]
    return "float32" if 255 * largest[0] * math.prod(g.kernel) + largest[1] < 1 << 24 else dtype


def narrow_weights(plan: Plan, dtype: str) -> Plan:
    """The plan with its packed weights kept as integers: they are widened where they are loaded."""
    (draft,) = plan.phases
    config = {**draft.spec.config, "b": {**draft.spec.config["b"], "dtype": dtype}}
    spec = KernelSpec(draft.spec.template, config)
    return replace(plan, phases=(replace(draft, spec=spec),), consts=(plan.consts[0].astype(dtype), *plan.consts[1:]))


def best_tile(region: Region, g: Geometry, double: int = 1) -> Tile:
    """The cheapest run of points; columns are the channels. Where steps are multiplied as int16 to int32, a vector is
    one of int16, whose sums take ``double`` registers."""
    machine = _machine(region)
    itemsize = 8 if accumulator(region.anchor_type.dtype).endswith("64") else 4
    lanes = max(1, machine.lanes * 4 // itemsize)
    columns = Columns(g.columns, double * lanes, 1, *vectors(g.columns, double * lanes, exact=True))
    line = {r: _line_cycles(region, g, columns, r, itemsize) for r in range(1, _most_rows(region, g, double) + 1)}
    rows = min(line, key=lambda r: (line[r] * (1 + 0.015 * max(0, r - _EASY_ROWS)), -r))
    lines = g.out[0] * g.out[1] * g.batch
    traffic = (region.inputs[region.operand(0)].type.nbytes + region.outputs[0].type.nbytes) / machine.l2_bandwidth  # type: ignore[index]
    cycles = max(line[rows] * lines, traffic) + 0.25 * traffic
    return Tile(rows, columns, 1, 0, cycles)


def _machine(region: Region) -> Machine:
    return of_sums(region.machine, accumulator(region.anchor_type.dtype))


def _most_rows(region: Region, g: Geometry, double: int) -> int:
    held = g.kernel[2] if g.kernel[2] <= _SHARED_TAPS else 1
    return max(1, min(g.out[2], (_machine(region).registers - held - 2) // double, 28))


def _line_cycles(region: Region, g: Geometry, columns: Columns, rows: int, itemsize: int) -> float:
    """Estimated cycles of one line of outputs, all channels."""
    machine, taps, after = _machine(region), math.prod(g.kernel), epilogue_work(region)
    total = 0.0
    for width in columns.widths:
        for r, count in ((rows, g.out[2] // rows), (g.out[2] % rows, 1)):
            if r and count:
                each = max(1, machine.lanes * 4 // itemsize)
                step = step_cycles(machine, r, (min(width, each),) * -(-width // each), itemsize)
                inputs = min(r * g.kernel[2], (r - 1) * g.strides[2] + g.kernel[2]) * g.kernel[1] / machine.load_ports
                total += count * (max(taps * step, inputs) + 8 + r * (1.5 + after))
    return total


class Depthwise(_contract.Reduction):
    """The taps of one tile: the kernel's rows in a loop, its columns written out."""

    def emit(self, a: Any, b: Any) -> None:
        first, count = self._range("y")
        with self.k.loop(count) as i:
            self._row(*self._at("y", a, b, first + i))

    def _row(self, a: Any, b: Any) -> None:
        point, valid = self.of.point, self.segment["valid"]
        if valid == "dynamic" or point["taps"] > _SHARED_TAPS:
            taps = enumerate(valid) if isinstance(valid, list) else None
            if taps is None:
                first, count = self._range("x")
                with self.k.loop(count) as i:
                    self._tap(*self._at("x", a, b, first + i), range(len(self.acc)))
            else:
                for tap, (low, high) in taps:
                    self._tap(*self._at("x", a, b, tap), range(low, high))
            return
        taps_of = valid or [[0, len(self.acc)]] * point["taps"]
        uses: dict[int, list[tuple[int, int]]] = {}  # offset of an input point -> (tap, row) pairs that read it
        for tap, (low, high) in enumerate(taps_of):
            for p in range(low, high):
                uses.setdefault(p * point["stride"] + tap * point["dilation"], []).append((tap, p))
        weights = [self._weight(self._at("x", a, b, tap)[1]) for tap in range(point["taps"])]
        step = point["tap_a"] // point["dilation"]
        for offset in sorted(uses):
            value = self._input(a + offset * step)
            for tap, p in uses[offset]:
                self.acc[p][0].add_product(value, weights[tap])

    def _tap(self, a: Any, b: Any, rows: range) -> None:
        weight = self._weight(b)
        for p in rows:
            self.acc[p][0].add_product(self._input(a + p * self.of.point["a"]), weight)

    def _weight(self, at: Any) -> Any:
        value = self.k.load(self.of.b, at, self.b[0].lanes)
        return self.k.bind(self._wide(value), "w")

    def _input(self, at: Any) -> Any:
        from ..integers import shifted
        from ..tir import dtype_of

        zero = self.of.config["a"].get("zero", 0)
        value = self.k.load(self.of.a, at, self.b[0].lanes)
        narrow = self.of.dtype == "int32" and dtype_of(value).endswith("int8")
        return self.k.bind(self._wide(shifted(value, zero, "int16" if narrow else self.of.dtype)), "x")

    def _wide(self, value: Any) -> Any:
        """In the type of the sums; by way of int16, so that LLVM finds what multiplies int16 to int32."""
        from ..functions import cast
        from ..tir import dtype_of

        by = "int16" if self.of.dtype == "int32" and dtype_of(value).endswith("int8") else self.of.dtype
        return cast(cast(value, by), self.of.dtype)


def emit(k: Any, config: dict[str, Any]) -> None:
    _contract.Contraction(k, config, Depthwise).run()


TEMPLATE = Template("depthwise", ("conv", "conv_integer"), plan, {"depthwise": emit})
