"""A graph of a thousand nodes goes through all passes, fusion, layout, selection and the memory plan in three seconds.

Processor time is measured, not wall time: the test machine may be busy.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from builders import Net, convolutional, recurrent, transformer
from nervure.compiler.kernels.templates import templates
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.frontends.onnx import load
from nervure.targets import get

SECONDS = 3.0


def chain() -> onnx.ModelProto:
    """Elementwise work without end: one kernel cannot hold it all."""
    net = Net()
    x = net.input("x", 1, 64)
    for i in range(1000):
        x = net.op(("Relu", "Sigmoid", "Tanh", "Exp", "Neg")[i % 5], x)
    return net.model(x)


def diamonds() -> onnx.ModelProto:
    """2 ** 500 ways from the input to the output."""
    net = Net()
    x = net.input("x", 1, 64)
    for _ in range(500):
        x = net.op("Mul", net.op("Sigmoid", x), x)
    return net.model(x)


def tangle() -> onnx.ModelProto:
    net = Net()
    values = [net.input("x", 1, 64)]
    for _ in range(500):
        a, b = net.rng.integers(max(0, len(values) - 30), len(values), 2)
        values.append(net.op("Add", net.op("Tanh", values[a]), values[b]))
    return net.model(*values[-5:])


def wide() -> onnx.ModelProto:
    """Five hundred branches that meet in one concat."""
    net = Net()
    x = net.input("x", 1, 64)
    rows = [net.op("Mul", net.op("Tanh", x), net.random(64, scale=1)) for _ in range(500)]
    return net.model(net.op("Concat", *rows, axis=1))


def sizes() -> onnx.ModelProto:
    """Convolutions of many widths: a tile has to be chosen for each."""
    net = Net()
    x, inner = net.input("x", 1, 8, 20, 20), 8
    for i in range(330):
        outer = 8 + (i * 7) % 57
        x = net.op("Conv", x, net.random(outer, inner, 3, 3), net.random(outer, scale=0.1), pads=[1] * 4)
        x, inner = net.op("Tanh", net.op("Relu", x)), outer
    return net.model(x)


def movement() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", 4, 6, 8)
    for i in range(250):
        x = net.op("Transpose", x, perm=[[1, 0, 2], [2, 1, 0], [0, 2, 1]][i % 3])
        x = net.op("Reshape", x, net.const(np.array([[8, 24], [4, 48], [6, 32]][i % 3])))
        x = net.op("Reshape", net.op("Softmax", x, axis=-1), net.const(np.array([4, 6, 8])))
    return net.model(x)


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "cnn": lambda: convolutional(blocks=55),
    "transformer": lambda: transformer(layers=20),
    "recurrent": lambda: recurrent(layers=60),
    "chain": chain,
    "diamonds": diamonds,
    "tangle": tangle,
    "wide": wide,
    "sizes": sizes,
    "movement": movement,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_a_thousand_nodes_in_three_seconds(name: str) -> None:
    graph = load(GRAPHS[name]())
    machine = get("host")
    templates()  # importing them is not planning
    gc.collect()
    begin = time.process_time()
    program, _ = plan_program([EntryGraph(graph)], machine, Options())
    spent = time.process_time() - begin
    print(f"{name}: {len(graph)} nodes, {len(program.entries[0].steps)} steps, {spent:.2f} s")
    assert spent <= SECONDS
