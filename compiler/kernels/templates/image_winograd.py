"""Convolutions with the images of a batch as lanes, and fewer products: Winograd's F(m, r) along the lines.

As ``image_lanes``, but ``m`` neighbouring outputs of a line are computed from ``P = m + r - 1`` products for every
input channel and kernel line, where the plain sum takes ``m r`` (8 for 20 with F(4, 5)):
``y = A^T [(G w) * (B^T d)]`` (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). Three phases:
the lines of the weights are transformed, then the lines of x, a piece for every tile; then products are summed over
channels and kernel lines in registers, transformed back, and stored. Only stride and dilation 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from ._tile import GHZ, WORTH_SHARING, epilogue_inputs, epilogue_work, fits, inplace_pairs
from .image_lanes import Kernel, Taps, batch_last, distance, forward_taps, line_axis, transposed_taps

Data = dict[str, Any]
# Of the polynomials, by P, with both signs; 0 and infinity are the others. Chosen for the least rounding error.
POINTS = {4: (1.0,), 6: (0.75, 1.5), 8: (0.5, 1.0, 2.0)}
_ALIGN = 64


@dataclass(frozen=True)
class Form:
    """A tile: ``m`` outputs of a line, ``channels`` output channels, ``vectors`` of images; ``pad`` before a line."""

    m: int
    taps: int
    channels: int
    vectors: int
    pad: int
    across: int  # tiles of a line

    @property
    def products(self) -> int:
        return self.m + self.taps - 1


def matrices(m: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``A^T`` [m, P], ``G`` [P, taps], ``B^T`` [P, P] (Toom-Cook)."""
    points = np.array([0.0, *(sign * p for p in POINTS[m + taps - 1] for sign in (1, -1))])
    back, ahead = (np.zeros((m + taps - 1, n)) for n in (m, m + taps - 1))
    back[:-1] = points[:, None] ** np.arange(m)
    back[-1, -1] = 1
    scale = [np.prod(np.delete(p - points, i)) for i, p in enumerate(points)]
    weights = np.vstack([points[:, None] ** np.arange(taps) / np.array(scale)[:, None], np.eye(taps)[-1:]])
    for j in range(len(points)):
        ahead[j, :-1] = np.poly(np.delete(points, j))[::-1]
    ahead[-1] = np.poly(points)[::-1]
    return back.T, weights, ahead


# -- planning --------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    """The cheapest form, where the region allows another rounding than the plain sum's."""
    if region.exact or not fits(region) or any(region.operand(i) is None for i in (0, 1)):
        return []
    x, w = (region.inputs[i] for i in (region.operand(0), region.operand(1)) if i is not None)
    attrs = region.attrs
    if not batch_last(region, x, *region.outputs) or w.type.dtype != "float32":
        return []
    row_major = all(
        d == 1 or s == math.prod(w.type.dims[a + 1 :])
        for a, (d, s) in enumerate(zip(w.type.dims, w.strides, strict=True))
    )
    if not row_major or {*attrs["strides"], *attrs["dilations"]} != {1} or w.type.dims[-1] < 2:
        return []
    options = [(_cycles(region, x, w, form), -form.m, form.channels, form) for form in _forms(region, w)]
    if not options:
        return []
    cycles, *_, form = min(options, key=lambda o: o[:-1])
    return [_assemble(region, x, w, form, cycles)]


def _forms(region: Region, w: Operand) -> Iterator[Form]:
    machine, dims, taps = region.machine, region.anchor_type.dims, w.type.dims[-1]
    pad = region.attrs["pads"][len(dims) - 3]
    pad = pad if region.op == "conv" else taps - 1 - pad
    blocks = dims[0] // machine.lanes
    for products in POINTS:
        m = products - taps + 1
        if not 1 < m <= dims[-1] or pad < 0:
            continue
        for vectors in (v for v in (1, 2) if blocks % v == 0):
            most = (machine.registers - 2 - vectors) // (products * vectors)
            for channels in range(1, min(most, dims[1] // region.attrs["group"]) + 1):
                yield Form(m, taps, channels, vectors, pad, -(-dims[-1] // m))


def _lines(region: Region, w: Operand) -> list[Taps]:
    make = forward_taps if region.op == "conv" else transposed_taps
    pads, dims = region.attrs["pads"], region.anchor_type.dims
    return [make(dims[2 + a], w.type.dims[2 + a], 1, 1, pads[a])[0] for a in range(len(dims) - 3)]


def _cycles(region: Region, x: Operand, w: Operand, form: Form) -> float:
    machine, dims, group = region.machine, region.anchor_type.dims, region.attrs["group"]
    outputs, inputs = dims[1] // group, x.type.dims[1] // group
    lines = _lines(region, w)
    rows = math.prod(t.count for t in lines)
    visits = math.prod(
        sum(high - low for low, high in t.valid(size, 0, t.count))
        for t, size in zip(lines, x.type.dims[2:], strict=False)
    )
    tiles = form.across * (dims[0] // machine.lanes)  # of one vector
    total = 0.0
    for channels, times in ((form.channels, outputs // form.channels), (outputs % form.channels, 1)):
        if not channels:
            continue
        products = channels * form.products * form.vectors
        scalars = min(2.0, 2 * machine.load_ports) if machine.lanes == 16 else machine.load_ports
        loads = form.products * (form.vectors / machine.load_ports + channels / scalars)
        step = max(products / machine.fma_ports, loads, machine.fma_latency) + 0.1 * loads + 2
        ends = 14 + channels * form.vectors * (2.5 * form.products + form.m * (1.5 + epilogue_work(region)))
        total += times * tiles / form.vectors * (inputs * visits * step + rows * ends)
    total = total * group + x.type.dims[1] * math.prod(x.type.dims[2:-1]) * tiles * (6 * form.products + 10)
    held = 4 * x.type.dims[1] * math.prod(x.type.dims[2:-1]) * form.across * form.products * dims[0]
    total += distance(machine, held, form.vectors)
    return float(total + w.type.size / form.taps * (form.taps + 8))


def _assemble(region: Region, x: Operand, w: Operand, form: Form, cycles: float) -> Plan:
    dims, lanes = region.anchor_type.dims, region.machine.lanes
    rank, batch, width = len(dims) - 2, dims[0], 1 << (form.products - 1).bit_length()
    back, weights, ahead = matrices(form.m, form.taps)
    if region.op != "conv":
        weights = weights[:, ::-1]
    packed = np.zeros((form.taps, width), np.float32)
    packed[:, : form.products] = weights.T
    rows = w.type.size // form.taps
    held = 4 * rows * width  # bytes of transformed weights
    shared = -(-held // _ALIGN) * _ALIGN
    piece = form.across * form.products * batch  # elements of a transformed line
    strides = [math.prod(x.type.dims[a + 1 : -1]) * piece for a in range(1, rank + 1)]
    turned = replace(x, strides=(1, *strides, form.products * batch))
    thin = replace(w, strides=(*(s // form.taps * width for s in w.strides[:-1]), 1))
    phases = [
        Draft(
            KernelSpec("image_winograd.weights", {"rows": rows, "taps": form.taps, "width": width}),
            (Arg("in", region.operand(1)), Arg("const"), Arg("shared")),  # type: ignore[arg-type]
            prepares=held,
        ),
        _ahead(region, x, form, ahead, piece, shared),
    ]
    config = _config(region, turned, thin, form, cycles, lanes)
    config["x"]["span"] = x.type.dims[1] * math.prod(x.type.dims[2:-1]) * piece
    config["w"]["span"] = rows * width
    config["back"] = back.tolist()
    args = [Arg("shared", offset=shared), Arg("shared"), *(Arg("in", i) for i in config["reads"])]
    args += [Arg("out", j) for j in range(len(region.outputs))]
    phases.append(Draft(KernelSpec("image_winograd", config), tuple(args), config["tasks"] or None))
    return Plan(
        "image_winograd",
        tuple(phases),
        cycles / GHZ + 150,
        consts=(packed,),
        shared_bytes=shared + 4 * config["x"]["span"],
        inplace=inplace_pairs(region),
        detail=f"image lanes, winograd F({form.m},{form.taps}) {form.channels}x{form.vectors}v{lanes}",
    )


def _ahead(region: Region, x: Operand, form: Form, ahead: np.ndarray, piece: int, shared: int) -> Draft:
    """The phase that transforms the lines of x."""
    _, channels, *lines, size = x.type.dims
    cuts = [t * form.m - form.pad for t in range(form.across)]
    seen = [(max(0, -c), min(form.products, size - c)) for c in cuts]
    segments = []
    for valid, run in groupby(range(form.across), key=lambda t: seen[t]):
        numbers = list(run)
        segments.append({"first": numbers[0], "repeat": len(numbers), "valid": valid})
    tasks = channels * math.prod(lines)
    config = {
        "span": x.span,
        "batch": x.type.dims[0],
        "dims": [channels, *lines],
        "strides": list(x.strides[1:-1]),
        "point": x.strides[-1],
        "segments": segments,
        "m": form.m,
        "pad": form.pad,
        "matrix": ahead.tolist(),
        "piece": piece,
        "tasks": tasks if x.type.size > 1 << 14 and tasks > 1 else 0,
    }
    args = (Arg("in", region.operand(0)), Arg("shared", offset=shared))  # type: ignore[arg-type]
    return Draft(KernelSpec("image_winograd.lines", config), args, config["tasks"] or None)


def _config(region: Region, x: Operand, w: Operand, form: Form, cycles: float, lanes: int) -> Data:
    """The last phase, as ``image_lanes`` has it: x are transformed lines, w transformed lines of weights."""
    attrs, dims = region.attrs, region.anchor_type.dims
    group, conv, rank = attrs["group"], region.op == "conv", len(dims) - 2
    outputs, inputs = dims[1] // group, x.type.dims[1] // group
    lines = _lines(region, w)
    images = dims[0] // (lanes * form.vectors)
    apart, within = (images, 1) if rank == 1 else (1, images)
    bias = region.operand(2)
    units = apart * group * (lines[0].count if lines else 1)
    full, rest = divmod(dims[-1], form.m)
    segments = [{"start": 0, "count": form.m, "repeat": full}, {"start": full, "count": rest, "repeat": int(rest > 0)}]
    return {
        "program": serialize(region),
        "reads": sorted({*epilogue_inputs(region), *([bias] if bias is not None else [])}),
        "bias": bias,
        "x": {"channel": x.strides[1], "point": dims[0]},
        "w": {
            "group": w.strides[0] * (outputs if conv else inputs),
            "output": w.strides[0 if conv else 1],
            "input": w.strides[1 if conv else 0],
        },
        "rows": [{"lines": [line_axis(t, x, w, a) for a, t in enumerate(lines)], "first": 0, "count": units}],
        "segments": [s for s in segments if s["repeat"]],
        "products": form.products,
        "m": form.m,
        "dims": [apart, group, 1],
        "within": within,
        "tile": [form.channels, form.products, form.vectors],
        "full": outputs // form.channels,
        "rest": outputs % form.channels,
        "outputs": outputs,
        "inputs": inputs,
        "tasks": units if cycles > WORTH_SHARING and units > 1 else 0,
    }


# -- emitting --------------------------------------------------------------------------------------------------------


def emit_weights(k: Any, config: Data) -> None:
    """Arguments: w, G [taps, width], the transformed lines [lines, width]."""
    rows, taps, width = config["rows"], config["taps"], config["width"]
    w = k.arg("w", "float32", rows * taps)
    matrix = k.arg("g", "float32", taps * width)
    out = k.arg("u", "float32", rows * width)
    lanes = min(width, k.lanes)
    with k.loop(rows) as row:
        for at in range(0, width, lanes):
            total = k.load(w, row * taps, lanes, 0) * k.load(matrix, at, lanes)
            for tap in range(1, taps):
                total = total + k.load(w, row * taps + tap, lanes, 0) * k.load(matrix, tap * width + at, lanes)
            k.store(out, row * width + at, total)


def emit_lines(k: Any, config: Data) -> None:
    """Arguments: x, its transformed lines ``[channel, line, tile, P, batch]``."""
    from ..tir import constant

    x = k.arg("x", "float32", config["span"])
    total = math.prod(config["dims"])
    out = k.arg("v", "float32", total * config["piece"])
    matrix, batch, count = config["matrix"], config["batch"], len(config["matrix"])

    def line(number: Any) -> None:
        origin, rest = 0, number
        for size, stride in zip(reversed(config["dims"]), reversed(config["strides"]), strict=True):
            origin = origin + (rest % size if size > 1 else 0) * stride
            rest = rest // size if size > 1 else rest
        origin, to = k.bind(origin, "line"), number * config["piece"]
        for s in config["segments"]:
            with k.loop(s["repeat"]) as i, k.loop(batch // k.lanes) as image:
                tile, (low, high) = s["first"] + i, s["valid"]
                first = origin + (tile * config["m"] - config["pad"]) * config["point"] + image * k.lanes
                zero = constant(0.0, "float32", k.lanes)
                values = [
                    k.bind(k.load(x, first + j * config["point"], k.lanes)) if low <= j < high else zero
                    for j in range(count)
                ]
                for j, value in enumerate(_paired(k, matrix, values)):
                    k.store(out, to + (tile * count + j) * batch + image * k.lanes, value)

    if config["tasks"]:
        with k.parallel(config["tasks"]) as task:
            line(task)
    else:
        with k.loop(total) as number:
            line(number)


def _paired(k: Any, matrix: Sequence[Sequence[float]], values: list[Any]) -> list[Any]:
    """A transform of inputs: the rows of a point and its negative share their even and their odd part."""
    found = [_dot(k, matrix[0], values)]
    for plus in matrix[1:-1:2]:
        even, odd = (_dot(k, [f if j % 2 == side else 0.0 for j, f in enumerate(plus)], values) for side in (0, 1))
        found += [even + odd, even - odd]
    return [*found, _dot(k, matrix[-1], values)]


def _dot(k: Any, row: Sequence[float], values: list[Any]) -> Any:
    from ..tir import like

    total = None
    for factor, value in zip(row, values, strict=True):
        if abs(factor) > 1e-12:
            term = value if factor == 1.0 else value * like(factor, value)
            total = term if total is None else term + total
    return k.bind(total)


class _Kernel(Kernel):
    """The last phase: a line of tiles; for each tile and vector of images all output channels."""

    def unit(self, row: Data, unit: Any) -> None:
        images, group, _ = self.c["dims"]
        count = row["lines"][0]["count"] if row["lines"] else 1
        line = self.k.bind(unit % count, "line") if count > 1 else 0
        rest = unit // count if count > 1 else unit
        number = self.k.bind(rest % group, "group") if group > 1 else 0
        image = rest // group if group > 1 else rest
        self._walk(row, [line], number, image if images > 1 else 0)

    def _walk(self, row: Data, at: list[Any], group: Any, image: Any) -> None:
        if len(at) < len(row["lines"]):
            with self.k.loop(row["lines"][len(at)]["count"]) as i:
                self._walk(row, [*at, i], group, image)
            return
        channels = self.c["tile"][0]
        for s in self.c["segments"]:
            with self.k.loop(s["repeat"]) as i, self.k.loop(self.c["within"]) as j:
                place = (s["start"] + i, group, j if self.c["within"] > 1 else image)
                with self.k.loop(self.c["full"]) as block:
                    self._sums(row, at, s, place, block * channels, channels)
                if self.c["rest"]:
                    self._sums(row, at, s, place, self.c["full"] * channels, self.c["rest"])

    def _sums(self, row: Data, at: list[Any], segment: Data, place: Any, channel: Any, channels: int) -> None:
        from ..tir import constant

        (tile, group, image), c, k = place, self.c, self.k
        first = image * (self.lanes * c["tile"][2])
        acc = [
            [[k.register("float32", self.lanes, "acc") for _ in range(c["tile"][2])] for _ in range(c["products"])]
            for _ in range(channels)
        ]
        for register in (r for plane in acc for pixel in plane for r in pixel):
            register.set(constant(0.0, "float32", self.lanes))
        x = first + group * (c["inputs"] * c["x"]["channel"]) + tile * (c["products"] * c["x"]["point"])
        w = group * c["w"]["group"] + channel * c["w"]["output"]
        with k.loop(c["inputs"]) as i:
            self._taps(row["lines"], at, x + i * c["x"]["channel"], w + i * c["w"]["input"], {}, segment, acc)
        channel = group * c["outputs"] + channel
        point = {"step": 1, "first": 0}
        self._finish(row, at, point, tile * c["m"], first, channel, self._back(acc, segment["count"], channel))

    def _row(self, x: Any, w: Any, point: Data, segment: Data, acc: Any) -> None:
        k, vectors = self.k, self.c["tile"][2]
        for p in range(self.c["products"]):
            at = x + p * self.c["x"]["point"]
            values = [k.bind(k.load(self.x, at + v * self.lanes, self.lanes), "x") for v in range(vectors)]
            for i, plane in enumerate(acc):
                weight = k.load(self.w, w + (i * self.c["w"]["output"] + p), self.lanes, 0)
                weight = k.bind(weight, "w") if vectors > 1 else weight
                for register, value in zip(plane[p], values, strict=True):
                    register.add_product(value, weight)

    def _back(self, acc: Any, count: int, channel: Any) -> list[list[list[_Value]]]:
        """Outputs ``[channel][point][vector]`` from the sums of products."""
        found = []
        for i, plane in enumerate(acc):
            bias = self._start(channel + i)
            columns = [self._outputs([products[v].get() for products in plane], count) for v in range(len(plane[0]))]
            found.append([[_Value(column[p] + bias) for column in columns] for p in range(count)])
        return found

    def _outputs(self, sums: list[Any], count: int) -> list[Any]:
        """``A^T`` times the sums: a point and its negative enter by their sum (even powers) or difference (odd)."""
        k, back = self.k, self.c["back"]
        pairs = [(k.bind(a + b), k.bind(a - b)) for a, b in zip(sums[1:-1:2], sums[2:-1:2], strict=True)]
        found = []
        for i in range(count):
            row = [back[i][0], *back[i][1:-1:2], back[i][-1]]
            found.append(_dot(k, row, [sums[0], *(pair[i % 2] for pair in pairs), sums[-1]]))
        return found


@dataclass(frozen=True)
class _Value:
    """A finished value where the base class has a register."""

    value: Any

    def get(self) -> Any:
        return self.value


def emit(k: Any, config: Data) -> None:
    """Arguments: the transformed lines of x and of w, what bias and epilogue read, the outputs."""
    kernel = _Kernel(k, config)
    (row,) = config["rows"]
    if config["tasks"]:
        with k.parallel(config["tasks"]) as task:
            kernel.unit(row, task)
        return
    with k.loop(row["count"]) as unit:
        kernel.unit(row, unit)


TEMPLATE = Template(
    "image_winograd",
    ("conv", "conv_transpose"),
    plan,
    {"image_winograd": emit, "image_winograd.weights": emit_weights, "image_winograd.lines": emit_lines},
)
