"""Convolution of images with few channels by products of int16 pairs, bit for bit, on the emulated cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from bare_cases import check_layers, last, moved, put_out
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.templates import dsp_few
from nervure.compiler.plan import entry

pytestmark = pytest.mark.emulator


@dataclass(frozen=True)
class Layer:
    x: tuple[int, ...]
    columns: int
    kernel: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (1, 1, 1, 1)
    dilations: tuple[int, ...] = (1, 1)
    dtype: str = "int8"
    zero: int = 5
    most: float = 5e-3
    rescaled: bool = True
    extreme: bool = False


USUAL = [
    Layer((1, 3, 12, 12), 8, strides=(2, 2), pads=(0, 0, 1, 1), zero=-128),
    Layer((1, 3, 9, 10), 4, extreme=True),
    Layer((1, 1, 21, 10), 8, (10, 4), (2, 2), (4, 1, 5, 1), dtype="uint8", zero=83),
]
OTHERS = [
    Layer((1, 3, 32, 32), 16),
    Layer((1, 1, 49, 10), 64, (10, 4), (2, 2), (4, 1, 5, 1), zero=83),
    Layer((2, 2, 9, 7), 5, dtype="uint8", zero=255),
    Layer((1, 4, 8, 9), 6, (5, 5), pads=(2, 2, 2, 2)),
    Layer((1, 3, 20, 21), 3, (7, 7), (2, 2), (3, 3, 3, 3)),
    Layer((1, 1, 12, 11), 4, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    Layer((1, 3, 12, 11), 4, (3, 3), pads=(2, 1, 2, 1), dilations=(2, 1)),
    Layer((1, 2, 60), 7, (9,), (3,), (4, 4), (1,)),
    Layer((1, 3, 6, 5), 7, rescaled=False),
    Layer((1, 3, 3, 3), 1, extreme=True, dtype="uint8", zero=0),
    Layer((1, 1, 5, 40), 2, (1, 8), pads=(0, 0, 0, 0), strides=(1, 5)),
    Layer((1, 4, 6, 6), 4, (2, 2), (2, 2), (0, 0, 0, 0), most=0.5),
]


@pytest.fixture(autouse=True)
def preferred(monkeypatch):
    """Layers of a few points, and arenas that scratch would make much larger, are done by other templates."""
    monkeypatch.setattr(dsp_few, "_UNSEEN", 1e9)
    monkeypatch.setattr(entry, "_LEAST_SCRATCH", 1 << 16)


def graph_of(layer: Layer, number: int) -> tuple[str, Graph, list[np.ndarray]]:
    rng, info = np.random.default_rng(number), np.iinfo(layer.dtype)
    x = rng.integers(info.min, info.max, layer.x, dtype=layer.dtype, endpoint=True)
    w = rng.integers(-128, 128, (layer.columns, layer.x[1], *layer.kernel)).astype(np.int8)
    if layer.extreme:
        x = np.where(x > x.mean(), info.max, info.min).astype(layer.dtype)
        w = np.where(w > 0, 127, -128).astype(np.int8)
    graph = Graph(f"layer_{number}")
    bias = graph.const(rng.integers(-(2**14), 2**14, layer.columns).astype(np.int32), "b")
    attrs = {"strides": layer.strides, "pads": layer.pads, "dilations": layer.dilations}
    y = graph.add("conv_integer", last(graph, x), graph.const(w, "w"), bias, **attrs, group=1, zero_point=layer.zero)
    if layer.rescaled:
        each = np.geomspace(layer.most / 30, layer.most, layer.columns).astype(np.float32)
        rule = {"x_zero_point": 0, "zero_point": -7, "low": None, "high": None, "to": "int8"}
        y = graph.add("requantize", y, graph.const(each.reshape(-1, *[1] * (x.ndim - 2)), "m"), **rule)
    put_out(graph, y)
    return graph.name, graph, [moved(x)]


def check(layers: list[Layer], target: str, folder) -> None:
    check_layers(layers, graph_of, "dsp_few", target, folder)


def test_usual_layers(tmp_path):
    check(USUAL, "cortex-m4", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m7", "cortex-m33"])
def test_other_layers(target, tmp_path):
    check(USUAL + OTHERS, target, tmp_path)
