"""Fusion of reductions in training graphs: siblings, rows, what is computed again; inference graphs as ever."""

from __future__ import annotations

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.ops.gradient import Sym
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.fuse import fuse, op_label
from nervure.compiler.types import TensorType


class Net:
    """A graph under construction, with tensors that have operators."""

    def __init__(self, training: bool = True) -> None:
        self.graph = Graph("net")
        if training:
            count = self.state("count")
            self.bind(count, count + 1.0)

    def _sym(self, value: Value) -> Sym:
        return Sym(self.graph, value, ("test",))

    def input(self, name: str, *shape: int) -> Sym:
        return self._sym(self.graph.input(name, TensorType("float32", shape)))

    def state(self, name: str, *shape: int) -> Sym:
        return self._sym(self.graph.state(np.ones(shape, np.float32), name))

    def bind(self, stored: Sym, value: Sym) -> None:
        self.graph.bind(stored.value, value.value)

    def outputs(self, *values: Sym) -> None:
        for value in values:
            self.graph.output(value.value)

    def fused(self) -> Graph:
        """The fused graph, of which both the rules and the results are checked."""
        before = canonicalize(self.graph, check=True)
        after = fuse(before)
        after.check()
        rng = np.random.default_rng(0)
        feeds = [rng.standard_normal(before.node(n).types[0].dims).astype(np.float32) for n in before.inputs]
        for have, want in zip(interpret(after, feeds), interpret(before, feeds), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
        return after


def kernels(graph: Graph) -> list[list[str]]:
    """The operators of each fused node that is more than scalar work."""
    nodes = [graph.node(k) for k in graph.order() if graph.node(k).op == "fused"]
    return [op_label(n.attrs["body"]).split("+") for n in nodes if any(t.size > 1 for t in _operands(n))]


def _operands(node) -> list[TensorType]:
    body = node.attrs["body"]
    return [*node.types, *(body.node(n).types[0] for n in body.inputs)]


def folds(graph: Graph) -> list[int]:
    """How many reductions each kernel makes."""
    return [sum(op.startswith("reduce_") for op in ops) for ops in kernels(graph)]


def test_reductions_of_one_tensor_are_made_in_one_walk():
    net = Net()
    x = net.input("x", 8, 6, 5, 4)
    net.outputs(x.sum((0, 2, 3)), (x * x).sum((0, 2, 3)), x.mean((0, 2, 3)))
    assert folds(net.fused()) == [3]


def test_other_axes_other_shapes_and_other_tensors_stay_apart():
    net = Net()
    x, y, z = net.input("x", 8, 6, 5), net.input("y", 8, 6, 5), net.input("z", 8, 6)
    net.outputs(x.sum((0,)), x.sum((0, 2)), y.sum((0,)), z.sum((0,)))
    assert folds(net.fused()) == [1, 1, 1, 1]


def test_a_reduction_that_needs_another_is_no_sibling():
    net = Net()
    x = net.input("x", 64, 6)
    mean = x.mean((0,))
    net.outputs(((x - mean) * (x - mean)).mean((0,)), mean)
    assert folds(net.fused()) == [1, 1]


def test_no_group_waits_for_itself():
    """Two sums of x, one before and one behind a matrix product that needs the first: no sibling may come between."""
    net = Net()
    x, w = net.input("x", 32, 16), net.input("w", 16, 16)
    first = x.sum((0,))
    product = first.reshape((1, 16)) @ w
    second = (x * product).sum((0,))
    net.outputs(second, (x * x).sum((0,)))
    assert sorted(folds(net.fused())) == [0, 1, 2]


def test_what_is_cheap_is_computed_again():
    """The masked gradient goes into two sums and into dx: nothing stores it."""
    net = Net()
    g, y, x, gain = net.input("g", 8, 6, 5), net.input("y", 8, 6, 5), net.input("x", 8, 6, 5), net.input("gain", 6, 1)
    masked = (y > 0.0).where(g, 0.0)
    net.outputs(masked.sum((0, 2)), (masked * x).sum((0, 2)), masked * gain)
    fused = net.fused()
    assert sorted(folds(fused)) == [0, 2]
    assert all(not any(t.dtype == "bool" for t in n.types) for n in map(fused.node, fused.order()) if n.op == "fused")
    assert sum(len(fused.node(k).types) for k in fused.order() if fused.node(k).op == "fused") == 3 + 1  # and the count


def test_what_is_dear_or_stored_anyway_is_not():
    net = Net()
    x, gain = net.input("x", 8, 6, 5), net.input("gain", 6, 1)
    dear, stored = (x * gain).op("exp"), x * x
    net.outputs(dear.sum((0, 2)), dear * gain, stored.sum((0, 2)), stored)
    made = kernels(net.fused())
    assert sum("exp" in ops for ops in made) == 1
    assert sum(ops.count("mul") for ops in made) == 3


def test_updates_ride_in_the_epilogue():
    net = Net()
    x, g = net.input("x", 64, 24), net.input("g", 64, 24)
    gamma, beta, m = net.state("gamma", 24), net.state("beta", 24), net.state("m", 24)
    moved = m * 0.9 + (g * x).sum((0,))
    net.bind(m, moved)
    net.bind(gamma, gamma - moved * 0.1)
    net.bind(beta, beta - g.sum((0,)) * 0.1)
    net.outputs(x.mean((0, 1)))
    assert len([ops for ops in kernels(net.fused()) if len(ops) > 1]) == 1


@pytest.mark.parametrize("length", [10, 128, 4000])
def test_the_backward_pass_of_softmax_is_one_kernel(length):
    net = Net()
    y, g = net.input("y", 12, length), net.input("g", 12, length)
    net.outputs(y * (g - (g * y).sum((1,), True)))
    assert len(kernels(net.fused())) == 1


def test_the_backward_pass_of_layer_norm_is_one_kernel_for_rows_and_one_for_columns():
    net = Net()
    x, g, scale = net.input("x", 12, 40), net.input("g", 12, 40), net.input("scale", 40)
    near = x - x.mean((1,), True)
    inverse = ((near * near).mean((1,), True) + 1e-5).op("rsqrt")
    y, back = near * inverse, g * scale
    dx = inverse * (back - back.mean((1,), True) - y * (back * y).mean((1,), True))
    net.outputs(dx, (g * y).sum((0,)), g.sum((0,)))
    fused = net.fused()
    assert sorted(folds(fused)) == [2, 4]
    whole = [t for k in fused.order() if fused.node(k).op == "fused" for t in fused.node(k).types if t.size == 480]
    assert len(whole) == 1  # dx: x standardised is not stored


def test_long_rows_are_no_rows():
    net = Net()
    x = net.input("x", 3, 50000)
    net.outputs(x / x.sum((1,), True))
    assert folds(net.fused()) == [1, 0]


def test_contractions_keep_their_epilogues():
    net = Net()
    x, w, b = net.input("x", 12, 16), net.input("w", 16, 20), net.input("b", 20)
    h = (x @ w + b).op("relu")
    net.outputs(h * h.sum((1,), True))
    assert kernels(net.fused())[0][:3] == ["matmul", "add", "relu"]


def test_inference_graphs_are_fused_as_ever():
    net = Net(training=False)
    x = net.input("x", 8, 6, 5)
    near = x - x.mean((2,), True)
    net.outputs(near.sum((0, 2)), (near * near).sum((0, 2)), near / (near * near).sum((2,), True))
    assert max(folds(net.fused())) == 1
