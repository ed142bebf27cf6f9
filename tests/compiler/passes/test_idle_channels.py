"""Channels that hold one number, or that nothing reads, go; results stay to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes.channels import drop_idle_channels

WINDOW = {"strides": (1, 1), "dilations": (1, 1)}


class Net:
    """Quantized convolutions one after the other, some of whose channels have no weights."""

    def __init__(self, seed: int, channels: int = 6, size: int = 7) -> None:
        self.random, self.graph = np.random.default_rng(seed), Graph("net")
        self.x = self.graph.input("x", self._type(channels, size), ("test",))
        self.zero, self.layers = 3, 0

    @staticmethod
    def _type(channels: int, size: int):
        from nervure.compiler.types import TensorType

        return TensorType("int8", (1, channels, size, size))

    def conv(self, columns: int, kernel: int = 1, pad: int = 0, empty: float = 0.5, shut: float = 0.5) -> Net:
        """``empty`` of the channels have no weights, ``shut`` of these end at the number that stands for zero."""
        channels = self.graph.type(self.x).dims[1]
        return self._layer((columns, channels, kernel, kernel), 1, pad, empty, shut)

    def depthwise(self, kernel: int = 3, pad: int = 1, empty: float = 0.3, shut: float = 0.5) -> Net:
        channels = self.graph.type(self.x).dims[1]
        return self._layer((channels, 1, kernel, kernel), channels, pad, empty, shut)

    def _layer(self, shape: tuple[int, ...], group: int, pad: int, empty: float, shut: float) -> Net:
        random, g = self.random, self.graph
        w = random.integers(-127, 128, shape).astype(np.int8)
        bias = random.integers(-2000, 2000, shape[0]).astype(np.int32)
        gone = random.random(shape[0]) < empty
        w[gone] = 0
        closed = random.random(shape[0]) < shut
        bias[gone] = np.where(closed[gone], -(1 << 30), 600 + np.abs(bias[gone]))
        name = f"layer{self.layers}"
        args = (g.const(w, f"{name}.w"), g.const(bias, f"{name}.bias"))
        window = {**WINDOW, "pads": (pad,) * 4, "group": group, "zero_point": self.zero}
        sums = g.add("conv_integer", self.x, *args, names=[f"{name}.sums"], origin=("test",), **window)
        scale = random.uniform(0.002, 0.02, (shape[0], 1, 1)).astype(np.float32)
        self.zero = int(random.integers(-128, 20))
        attrs = {"zero_point": self.zero, "low": self.zero, "to": "int8"}  # with a ReLU
        multiplier = g.const(scale, f"{name}.scale")
        self.x = g.add("requantize", sums, multiplier, names=[name], origin=("test",), **attrs)
        self.layers += 1
        return self

    def done(self) -> Graph:
        self.graph.output(self.x, "y")
        return self.graph


def columns(graph: Graph) -> list[int]:
    """The output channels of each convolution, in order."""
    return [graph.node(k).types[0].dims[1] for k in graph.order() if graph.node(k).op == "conv_integer"]


def same(graph: Graph, made: Graph) -> None:
    made.check()
    types = [graph.node(k).types[0] for k in graph.inputs]
    x = [np.random.default_rng(9).integers(-128, 128, t.dims).astype(np.int8) for t in types]
    for got, wanted in zip(interpret(made, x), interpret(graph, x), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [graph.node(k).names for k in graph.inputs] == [made.node(k).names for k in made.inputs]
    assert graph.output_names == made.output_names


@pytest.mark.parametrize("seed", range(12))
def test_chains(seed: int) -> None:
    net = (
        Net(seed)
        .conv(24)
        .depthwise(pad=seed % 2)
        .conv(20)
        .depthwise(pad=1)
        .conv(18, kernel=3, pad=seed % 3 % 2)
        .conv(5)
    )
    graph = net.done()
    made = drop_idle_channels(graph, 1)
    assert sum(columns(made)) < sum(columns(graph))
    assert columns(made)[-1] == 5
    same(graph, made)
    assert drop_idle_channels(made, 1) is made or sum(columns(drop_idle_channels(made, 1))) <= sum(columns(made))


def test_what_is_dropped() -> None:
    """Shut channels go in front of padding, others only where nothing is padded."""
    shut = Net(1).conv(16, empty=0.5, shut=1.0).conv(8, kernel=3, pad=1, empty=0).done()
    other = Net(1).conv(16, empty=0.5, shut=0.0).conv(8, kernel=3, pad=1, empty=0).done()
    inside = Net(1).conv(16, empty=0.5, shut=0.0).conv(8, kernel=3, pad=0, empty=0).done()
    assert columns(drop_idle_channels(shut, 1))[0] < 16
    assert drop_idle_channels(other, 1) is other
    assert columns(drop_idle_channels(inside, 1))[0] < 16
    for graph in (shut, inside):
        same(graph, drop_idle_channels(graph, 1))


def test_channels_that_nothing_reads() -> None:
    net = Net(2).conv(16, empty=0).depthwise(empty=0).conv(8, empty=0)
    graph = net.done()
    last = [k for k in graph.order() if graph.node(k).op == "conv_integer"][-1]
    w = np.array(graph.constant(graph.args(last)[1]))
    w[:, 5:12] = 0
    graph.set_arg(last, 1, graph.const(w, "cut"))
    made = drop_idle_channels(graph, 1)
    assert columns(made) == [9, 9, 8]
    same(graph, made)


def test_numbers_of_channels_stay_whole_granules() -> None:
    graph = Net(3).conv(48, empty=0.7, shut=1.0).depthwise(empty=0).conv(16, empty=0).done()
    for granule in (4, 16):
        made = drop_idle_channels(graph, granule)
        assert columns(made)[0] < 48 and columns(made)[0] % granule == 0
        same(graph, made)


def test_all_channels_of_a_layer_idle() -> None:
    graph = Net(4).conv(8, empty=1.1, shut=1.0).conv(4, empty=0).done()
    made = drop_idle_channels(graph, 1)
    assert columns(made) == [1, 4]
    same(graph, made)


def test_other_readers_keep_everything() -> None:
    """A sum of two branches, an output in the middle: nothing is known of who reads a channel."""
    net = Net(5, channels=8).conv(8, empty=0.6, shut=1.0)
    middle = net.x
    net.conv(8, empty=0)
    net.graph.output(middle, "middle")
    graph = net.done()
    assert drop_idle_channels(graph, 1) is graph
    assert graph.node(Value(middle.node)).op == "requantize"


def test_the_argument_stays() -> None:
    graph = Net(6).conv(24, shut=1.0).depthwise().conv(6).done()
    before = graph.text()
    drop_idle_channels(graph, 1)
    assert graph.text() == before
