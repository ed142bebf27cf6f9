"""Convolutions and matrix products as the short loops that a person would write, for C that people read.

One point of the output at a time; of dense ones four channels, which share what is read of the input. Weights keep
their element type and lie in the order in which they are read: ``[channel][tap][depth]``, depthwise
``[tap][channel]``. Taps that fall outside the input are left out by the bounds of the loops.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._overlap import window_lead
from ._tile import GHZ, accumulator, epilogue_inputs, epilogue_work, fits, inplace_pairs
from .conv import Geometry
from .matmul import product

TOGETHER = (4, 2)  # channels at a time
CYCLES = {True: 3.2, False: 6.5}  # a product, with several channels at a time and without


def plan(region: Region) -> list[Plan]:
    if not region.machine.readable or not fits(region) or None in (region.operand(0), region.operand(1)):
        return []
    return [_conv(region)] if region.op.startswith("conv") else _matmul(region)


def _conv(region: Region) -> Plan:
    g = Geometry(region)
    reads = epilogue_inputs(region)
    flat = g.flat(region, reads)
    if flat:
        g.flatten()
    depthwise = g.depth == 1 and g.columns == 1 and g.group > 1
    packed, steps = _weights(g, depthwise)
    channels = g.group if depthwise else g.columns
    outer = [_loop("n", g.batch, g.x.strides[0], 0, 0)]
    if not depthwise:
        outer.append(_loop("group", g.group, g.depth * g.x.strides[1], steps["group"], None, channels))
    rank = region.anchor_type.rank
    space = [
        {
            **_loop("p" if flat else f"o{name}", g.out[i], 0, 0, rank - 3 + i),
            **{"taps": g.kernel[i], "tap": f"k{name}", "stride": g.strides[i], "dilation": g.dilations[i]},
            **{"pad": g.pads[i], "size": g.size[i], "border": g.border(i), "step": g.step[i], "w": steps["taps"][i]},
        }
        for i, name in enumerate("zyx")
    ]
    config = {
        "outer": [o for o in outer if o["extent"] > 1],
        "space": [s for s in space if s["extent"] > 1 or s["taps"] > 1],
        "columns": _loop("oc", channels, g.x.strides[1] if depthwise else 0, steps["column"], 1),
        "depth": _loop("ic", 1 if depthwise else g.depth, g.x.strides[1], steps["depth"], None),
        "zero": [region.attrs.get("zero_point", 0), 0],
    }
    return _planned(region, config, packed, reads, None if g.group > 1 and not depthwise else (g, flat))


def _loop(name: str, extent: int, a: int, w: int, out: int | None, channels: int = 0) -> dict[str, Any]:
    """A loop: steps in the input and in the weights, the output's axis, channels of the output that it goes on by."""
    return {"name": name, "extent": extent, "a": a, "w": w, "out": out, "channels": channels}


def _weights(g: Geometry, depthwise: bool) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Weights as they are packed (None where they are known only later), and the steps along their axes."""
    taps = math.prod(g.kernel)
    if g.w.const is None:
        lead = [0] * (3 - g.rank)
        group = g.columns * g.w.strides[0]
        steps = {"group": group, "column": group if depthwise else g.w.strides[0], "depth": g.w.strides[1]}
        return None, steps | {"taps": [*lead, *g.w.strides[2:]]}
    rows = g.w.const.reshape(g.group * g.columns, g.depth, taps)
    own = [math.prod(g.kernel[i + 1 :]) for i in range(3)]
    if depthwise:
        channels = g.group
        steps = {"group": 0, "column": 1, "depth": 0, "taps": [n * channels for n in own]}
        return np.ascontiguousarray(rows[:, 0].T.reshape(*g.kernel[3 - g.rank :], channels)), steps
    steps = {"group": g.columns * taps * g.depth, "column": taps * g.depth, "depth": 1}
    packed = rows.transpose(0, 2, 1).reshape(-1, *g.kernel[3 - g.rank :], g.depth)
    return np.ascontiguousarray(packed), steps | {"taps": [n * g.depth for n in own]}


def _matmul(region: Region) -> list[Plan]:
    reads = epilogue_inputs(region)
    p = product(region, reads)
    zero = [region.attrs.get("zero_point", 0), region.attrs.get("b_zero_point", 0)]
    packed, depth, column = None, p.b_step, p.b_column
    outer = [_loop("n", o.extent, o.a, o.b, o.out) for o in p.outer]
    if p.b.const is not None:
        matrix = p.b.const.reshape(-1, p.depth, p.columns)
        if matrix.shape[0] == 1:
            packed, depth, column = np.ascontiguousarray(matrix[0].T), 1, p.depth
    config = {
        "outer": outer,
        "space": [{**_loop("row", p.rows.extent, p.rows.a, 0, p.rows.out), "taps": 0}] if p.rows.extent > 1 else [],
        "columns": _loop("column", p.columns, 0, column, p.column),
        "depth": _loop("k", p.depth, p.a_step, depth, None),
        "zero": zero,
    }
    return [_planned(region, config, packed, reads, None)]


def _planned(
    region: Region,
    config: dict[str, Any],
    packed: np.ndarray | None,
    reads: list[int],
    window: tuple[Geometry, bool] | None,
) -> Plan:
    ia, ib, ibias = (region.operand(i) for i in range(3))
    assert ia is not None and ib is not None
    dtype = accumulator(region.anchor_type.dtype)
    held = None if ibias is None else region.inputs[ibias].const
    bias = _folded(config, packed, None if held is None else held.reshape(-1).astype(dtype), dtype)
    runtime = ibias if ibias is not None and held is None else None
    reads = sorted({*reads, *([] if runtime is None else [runtime])})
    consts = [c for c in (packed, bias) if c is not None]
    overlaps = _overlaps(region, ia, reads, window)
    columns = config["columns"]
    together = 1 if columns["a"] else next((n for n in TOGETHER if columns["extent"] % n == 0), 1)
    a, b = region.inputs[ia], region.inputs[ib]
    config |= {
        "program": serialize(region),
        "dtype": dtype,
        "type": region.anchor_type.dtype,
        "x": [a.type.dtype, a.span],
        "w": [b.type.dtype, b.span if packed is None else packed.size],
        "bias": None if bias is None else bias.size,
        "runtime_bias": runtime,
        "reads": reads,
        "together": together,
        "rank": region.anchor_type.rank,
        "overlaps": bool(overlaps),
    }
    args = [Arg("in", ia), Arg("in", ib) if packed is None else Arg("const", 0)]
    args += [Arg("const", len(consts) - 1)] * (bias is not None)
    args += [Arg("in", i) for i in reads] + [Arg("out", j) for j in range(len(region.outputs))]
    taps = math.prod(s["taps"] or 1 for s in config["space"])
    macs = region.anchor_type.size * config["depth"]["extent"] * taps
    cycles = macs * CYCLES[together > 1] + region.anchor_type.size * (6.0 + 2.0 * epilogue_work(region))
    return Plan(
        "plain",
        (Draft(KernelSpec("plain", config), tuple(args)),),
        cost=cycles / GHZ + 50,
        consts=tuple(consts),
        inplace=inplace_pairs(region),
        detail=f"plain loops, {together} channels at a time" if together > 1 else "plain loops",
        overlaps=overlaps,
    )


def _folded(
    config: dict[str, Any], packed: np.ndarray | None, bias: np.ndarray | None, dtype: str
) -> np.ndarray | None:
    """The bias with the input's zero point in it, where all taps of all points lie inside the input."""
    zero, columns = config["zero"][0], config["columns"]
    border = any(s["taps"] and s["border"] for s in config["space"])
    if not zero or packed is None or border or config["zero"][1] or columns["a"]:
        return bias
    config["zero"] = [0, 0]
    sums = packed.reshape(packed.shape[0], -1).sum(axis=1, dtype=np.int64) * zero
    return np.asarray((0 if bias is None else bias.astype(np.int64)) - sums).astype(dtype)


def _overlaps(
    region: Region, source: int, reads: list[int], window: tuple[Geometry, bool] | None
) -> tuple[tuple[int, int, int], ...]:
    """A point's input is read before anything is written over what later points read."""
    if window is None or source in reads or len(region.outputs) != 1 or region.machine.system != "bare":
        return ()
    g, flat = window
    x, y = region.inputs[source], region.outputs[0]
    stride, pad = ((g.strides[1], g.strides[2]), (g.pads[1], g.pads[2]))
    if g.rank == 3:
        return ()
    lead = window_lead(x, y, (1, 1) if flat else stride, (0, 0) if flat else pad, (1, 1))
    return () if lead is None else ((source, 0, lead),)


# -- the kernel ------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    _Loops(k, config).run()


class _Loops:
    def __init__(self, k: Any, c: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c, self.dtype = k, c, c["dtype"]
        k.noalias = not c["overlaps"]
        self.x, self.w = k.arg("x", *c["x"]), k.arg("w", *c["w"])
        self.bias = k.arg("bias", self.dtype, c["bias"]) if c["bias"] else None
        inputs = c["program"]["inputs"]
        factors = {n["args"][1] for n in c["program"]["nodes"] if n["op"] == "requantize"}
        names = ["multiplier" if i in factors else f"x{i}" for i in range(len(inputs))]
        reads = [
            k.arg(n, o["dtype"], o["span"]) if i in c["reads"] else None
            for i, (n, o) in enumerate(zip(names, inputs, strict=True))
        ]
        outs = c["program"]["outputs"]
        self.outputs = [k.arg(f"y{j}" if j else "y", o["dtype"], o["span"]) for j, o in enumerate(outs)]
        self.ev = Evaluator(k, c["program"], reads, lambda number, coords: self.part)
        self.part: Any = None
        self.coords: list[Any] = [(0, 0)] * c["rank"]
        self.at = {"a": 0, "w": 0, "column": 0}

    def run(self) -> None:
        self._outer(list(self.c["outer"]))

    def _outer(self, left: list[dict[str, Any]]) -> None:
        if not left:
            return self._space(list(self.c["space"]), [])
        axis, before = left[0], dict(self.at)
        with self.k.loop(axis["extent"], name=axis["name"]) as i:
            for key, step in (("a", axis["a"]), ("w", axis["w"]), ("column", axis["channels"])):
                self.at[key] = before[key] + i * step
            if axis["out"] is not None:
                self.coords[axis["out"]] = (i, 0)
            self._outer(left[1:])

    def _space(self, left: list[dict[str, Any]], points: list[tuple[dict[str, Any], Any]]) -> None:
        """The points of the output, and at each which taps meet the input."""
        if not left:
            return self._columns(points)
        axis, before = left[0], self.at["a"]
        with self.k.loop(axis["extent"], name=axis["name"]) as i:
            self.at["a"] = before + i * axis["a"]
            if axis["out"] is not None:
                self.coords[axis["out"]] = (i, 0)
            self._space(left[1:], [*points, (axis, i)] if axis["taps"] else points)

    def _columns(self, points: list[tuple[dict[str, Any], Any]]) -> None:
        k, c, columns = self.k, self.c, self.c["columns"]
        bounds = [self._bounds(axis, i) for axis, i in points]
        count = c["together"]
        with k.loop(columns["extent"] // count, name=columns["name"]) as i:
            numbers = [i * count + j for j in range(count)]
            sums = [k.register(self.dtype, 1, "acc") for _ in numbers]
            for register, number in zip(sums, numbers, strict=True):
                register.set(self._start(number))
            self._taps(list(zip(points, bounds, strict=True)), self.at["a"], self.at["w"], numbers, sums)
            for register, number in zip(sums, numbers, strict=True):
                self._finish(register, number)

    def _start(self, number: Any) -> Any:
        from ..tir import constant

        if self.bias is None:
            return constant(0, self.dtype)
        return self.k.load(self.bias, self.at["column"] + number)

    def _bounds(self, axis: dict[str, Any], i: Any) -> tuple[Any, Any]:
        """The first tap that meets the input, and the one behind the last."""
        from ..tir import maximum, minimum

        taps, apart = axis["taps"], axis["dilation"]
        if not axis["border"]:
            return 0, taps
        ahead = axis["pad"] - i * axis["stride"]
        if isinstance(ahead, int):
            first = max(0, -(-ahead // apart))
            return first, max(first, min(taps, -(-(ahead + axis["size"]) // apart)))
        first, end = maximum(0, ahead), ahead + axis["size"]
        if apart > 1:
            first, end = (first + (apart - 1)) // apart, maximum(0, end + (apart - 1)) // apart
        name = axis["tap"]
        return self.k.bind(first, f"{name}_first"), self.k.bind(minimum(taps, end), f"{name}_end")

    def _taps(self, left: list[Any], a: Any, w: Any, numbers: list[Any], sums: list[Any]) -> None:
        if not left:
            return self._depth(a, w, numbers, sums)
        (axis, point), (first, end) = left[0]
        with self.k.loop_from(first, end, axis["tap"] if axis["taps"] > 1 else "k") as tap:
            at = point * axis["stride"] - axis["pad"] + tap * axis["dilation"]
            self._taps(left[1:], a + at * axis["step"], w + tap * axis["w"], numbers, sums)

    def _depth(self, a: Any, w: Any, numbers: list[Any], sums: list[Any]) -> None:
        from ..functions import cast

        k, c = self.k, self.c
        depth, columns = c["depth"], c["columns"]
        with k.loop(depth["extent"], name=depth["name"]) as i:
            at = a + i * depth["a"]
            if columns["a"]:
                at = at + numbers[0] * columns["a"]
            x = self._less(cast(k.load(self.x, at), self.dtype), c["zero"][0])
            x = k.bind(x, "value") if len(numbers) > 1 else x
            for number, register in zip(numbers, sums, strict=True):
                weight = cast(k.load(self.w, w + number * columns["w"] + i * depth["w"]), self.dtype)
                register.set(register.get() + x * self._less(weight, c["zero"][1]))

    def _less(self, value: Any, zero: int) -> Any:
        from ..tir import like

        return value - like(zero, value) if zero else value

    def _finish(self, register: Any, number: Any) -> None:
        from ..functions import cast

        c, columns = self.c, self.c["columns"]
        self.ev.begin()
        channel = self.at["column"] + number
        if columns["out"] is not None:
            self.coords[columns["out"]] = (channel, 0)
        value = register.get()
        if c["runtime_bias"] is not None:
            value = value + cast(self.ev.read(c["runtime_bias"], [(channel, 0)], 1), self.dtype)
        self.part = cast(value, c["type"])
        self.ev.store_all(self.outputs, list(self.coords), 1)


TEMPLATE = Template("plain", ("conv", "conv_integer", "matmul", "matmul_integer"), plan, {"plain": emit})
