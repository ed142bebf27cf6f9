"""Depthwise convolution by products of int16 pairs, bit for bit, on the emulated cores that have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from bare_cases import check_layers, last, moved, put_out
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.templates import dsp_depthwise
from nervure.compiler.kernels.templates._dsp_taps import taps_of
from nervure.compiler.plan import entry

pytestmark = pytest.mark.emulator


@dataclass(frozen=True)
class Layer:
    x: tuple[int, ...]
    kernel: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (1, 1, 1, 1)
    dilations: tuple[int, ...] = (1, 1)
    columns: int = 1
    dtype: str = "int8"
    zero: int = 5
    most: float = 1e-2
    to: str = "int8"
    low: int | None = None
    high: int | None = None
    tensor: bool = False  # one multiplier for all channels
    planes: bool = False  # the input lies channel by channel
    rescaled: bool = True
    extreme: bool = False  # only the ends of the types


USUAL = [
    Layer((1, 8, 7, 5), zero=-128),
    Layer((1, 16, 12, 12), strides=(2, 2), pads=(0, 0, 1, 1), dtype="uint8", zero=9, to="uint8"),
    Layer((1, 12, 6, 6), low=-100, high=90, extreme=True),
]
OTHERS = [
    Layer((1, 8, 48, 48), zero=-128),
    Layer((1, 64, 25, 5), zero=-128, extreme=True),
    Layer((1, 32, 3, 3), zero=-128),
    Layer((2, 8, 9, 11)),
    Layer((1, 5, 9, 13), dtype="uint8", zero=200),
    Layer((1, 3, 5, 5), extreme=True),
    Layer((1, 2, 4, 9), to="uint8"),
    Layer((1, 8, 11, 12), (5, 5), pads=(2, 2, 2, 2)),
    Layer((1, 8, 15, 14), (5, 5), (2, 2), (2, 2, 2, 2)),
    Layer((1, 4, 16, 15), (7, 7), pads=(3, 3, 3, 3)),
    Layer((1, 4, 12, 13), (3, 3), pads=(2, 3, 2, 3), dilations=(2, 3)),
    Layer((1, 4, 20, 9), (3, 5), (3, 2), (1, 2, 1, 2), (1, 2)),
    Layer((1, 8, 1, 30), (1, 5), pads=(0, 2, 0, 2)),
    Layer((1, 8, 30, 1), (7, 1), pads=(3, 0, 3, 0)),
    Layer((1, 8, 9, 9), (1, 1), pads=(0, 0, 0, 0)),
    Layer((1, 8, 9, 9), (1, 1), (2, 2), (0, 0, 0, 0)),
    Layer((1, 4, 11, 10), (2, 2), (3, 3), (0, 0, 1, 1)),
    Layer((1, 6, 10, 4), (10, 4), (2, 1), (4, 1, 5, 2)),
    Layer((1, 12, 40), (5,), (1,), (4, 4), (2,)),
    Layer((1, 4, 6, 7), columns=2),
    Layer((1, 6, 6, 7), columns=3, dtype="uint8", zero=0),
    Layer((1, 8, 6, 7), tensor=True, most=0.25),  # halves: the float rule
    Layer((1, 8, 6, 7), tensor=True, most=1.5),
    Layer((1, 8, 7, 7), rescaled=False),
    Layer((1, 8, 7, 6), planes=True),
    Layer((1, 40, 2, 2), most=1e-4),
]


def graph_of(layer: Layer, number: int) -> tuple[str, Graph, list[np.ndarray]]:
    rng, info = np.random.default_rng(number), np.iinfo(layer.dtype)
    x = rng.integers(info.min, info.max, layer.x, dtype=layer.dtype, endpoint=True)
    channels = layer.x[1] * layer.columns
    w = rng.integers(-128, 128, (channels, 1, *layer.kernel)).astype(np.int8)
    if layer.extreme:
        x = np.where(x > x.mean(), info.max, info.min).astype(layer.dtype)
        w = np.where(w > 0, 127, -128).astype(np.int8)
    graph = Graph(f"layer_{number}")
    source = graph.input("x", _type(x)) if layer.planes else last(graph, x)
    bias = graph.const(rng.integers(-(2**14), 2**14, channels).astype(np.int32), "b")
    attrs = {"strides": layer.strides, "pads": layer.pads, "dilations": layer.dilations}
    y = graph.add("conv_integer", source, graph.const(w, "w"), bias, **attrs, group=layer.x[1], zero_point=layer.zero)
    if layer.rescaled:
        each = np.geomspace(layer.most / 30, layer.most, channels).astype(np.float32)
        each = np.array(layer.most, np.float32) if layer.tensor else each.reshape(channels, *[1] * (x.ndim - 2))
        rule = {"x_zero_point": 0, "zero_point": -7 if layer.to == "int8" else 7, "low": layer.low, "high": layer.high}
        y = graph.add("requantize", y, graph.const(each, "m"), **rule, to=layer.to)
    put_out(graph, y)
    return graph.name, graph, [x if layer.planes else moved(x)]


def _type(array: np.ndarray) -> object:
    from nervure.compiler.types import type_of

    return type_of(array)


@pytest.fixture(autouse=True)
def preferred(monkeypatch):
    """Layers of a few points, and arenas that scratch would make much larger, are done by other templates."""
    monkeypatch.setattr(dsp_depthwise, "_UNSEEN", 1e9)
    monkeypatch.setattr(entry, "_LEAST_SCRATCH", 1 << 16)


def check(layers: list[Layer], target: str, folder) -> None:
    check_layers(layers, graph_of, "dsp_depthwise", target, folder)


def test_usual_layers(tmp_path):
    check(USUAL, "cortex-m4", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m7", "cortex-m33"])
def test_other_layers(target, tmp_path):
    check(USUAL + OTHERS, target, tmp_path)


@pytest.mark.slow
def test_generated_layers(tmp_path):
    rng = np.random.default_rng(42)
    layers = []
    while len(layers) < 60:
        kernel = tuple(int(v) for v in rng.integers(1, 6, 2))
        dilations = tuple(int(v) for v in rng.integers(1, 3, 2))
        strides = tuple(int(v) for v in rng.integers(1, 4, 2))
        pads = tuple(int(rng.integers(0, (kernel[i % 2] - 1) * dilations[i % 2] + 1)) for i in range(4))
        size = tuple(int(v) for v in rng.integers(3, 17, 2))
        if any(size[i] + pads[i] + pads[i + 2] < (kernel[i] - 1) * dilations[i] + 1 for i in (0, 1)) or kernel == (
            1,
            1,
        ):
            continue
        dtype = str(rng.choice(["int8", "uint8"]))
        zero = int(rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1))
        shape = (int(rng.integers(1, 3)), int(rng.integers(2, 14)), *size)
        columns = int(rng.choice([1, 1, 1, 2]))
        layers.append(Layer(shape, kernel, strides, pads, dilations, columns, dtype, zero, extreme=rng.random() < 0.3))
    check(layers, "cortex-m4", tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("extent", [1, 2, 3, 5, 6, 9, 48])
def test_taps_add_up(count, stride, dilation, extent):
    """A row walked by the steps gives the sums of its taps."""
    taps = taps_of(count, stride, dilation, extent)
    rng = np.random.default_rng(count)
    x = rng.integers(-99, 99, 2 * ((extent * stride + count * dilation) // 2 + 2))
    w = rng.integers(-99, 99, count)
    want = [sum(int(w[t] * x[o * stride + t * dilation]) for t in range(count)) for o in range(extent)]
    points = x.reshape(-1, 2)
    weights = np.array([[0 if t is None else w[t] for t in pair] for pair in taps.pairs])
    got = []
    for first in range(0, extent, taps.outputs):
        base = first // taps.outputs * taps.move
        for o in range(min(taps.outputs, extent - first)):
            total = 0
            for word, pair, halves in taps.steps[o]:
                a, b = points[base + word], weights[pair]
                total += int(a @ b) if halves == "both" else int(a["bt".index(halves[0])] * b["bt".index(halves[1])])
            got.append(total)
    assert got == want
