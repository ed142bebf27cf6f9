"""Batch normalisation, factors and addends folded into weights."""

from itertools import product

import numpy as np
import pytest
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.batchnorm import FOLDING, REMAINING

CONVS = {
    "conv": lambda b, *bias: b.conv(b.x(2, 4, 5, 5), b.w(6, 4, 3, 3), *bias, pads=1),
    "grouped": lambda b, *bias: b.conv(b.x(2, 4, 5, 5), b.w(6, 2, 3, 3), *bias, group=2),
    "depthwise": lambda b, *bias: b.conv(b.x(2, 6, 5), b.w(6, 1, 3), *bias, group=6, pads=1),
    "transposed": lambda b, *bias: b.conv(b.x(2, 4, 5, 5), b.w(4, 6, 2, 2), *bias, op="conv_transpose"),
    "transposed groups": lambda b, *bias: b.conv(b.x(2, 4, 5), b.w(4, 3, 2), *bias, op="conv_transpose", group=2),
}


def by_channel(b, y, *shape):
    return b.w(*shape, *(1,) * (b.graph.type(y).rank - 2))


BEHIND = {
    "batch_norm": lambda b, y: b.batch_norm(y, 6),
    "factor": lambda b, y: b.mul(y, by_channel(b, y, 6)),
    "number": lambda b, y: b.mul(b.c(3), y),
    "addend": lambda b, y: b.add(by_channel(b, y, 1, 6), y),
    "chain": lambda b, y: b.batch_norm(b.add(b.mul(y, by_channel(b, y, 6)), by_channel(b, y, 6)), 6),
}


@pytest.mark.parametrize(("conv", "behind", "bias"), [*product(CONVS, BEHIND, (False, True))])
def test_what_is_behind_a_convolution_goes_into_its_weights(b, kit, conv, behind, bias):
    y = CONVS[conv](b, *([b.w(6, name="b")] if bias else []))
    after, _ = kit.apply_rules(kit.finish(b, BEHIND[behind](b, y)), FOLDING)
    assert kit.operations(after) == {"conv_transpose" if "transposed" in conv else "conv": 1}
    assert after.tensor_name(after.outputs[0]) == "y"
    names = sorted(after.node(a).names[0] for a in after.args(after.outputs[0].node))
    assert "w" in names, "folded weights keep their name"


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize(("groups", "bias"), [*product((1, 2), (False, True))])
def test_what_is_before_a_convolution_goes_into_its_weights(b, kit, pads, groups, bias):
    """An addend would have to be padded too, so with padding it stays."""
    x = b.x(2, 4, 5, 5)
    given = [b.w(6, name="b")] if bias else []
    y = b.conv(b.batch_norm(x, 4), b.w(6, 4 // groups, 3, 3), *given, group=groups, pads=pads)
    after = canonicalize(kit.finish(b, y), check=True)
    kit.assert_same_results(b.graph, after)
    assert kit.operations(after) == ({"add": 1, "conv": 1, "mul": 1} if pads else {"conv": 1})


def test_a_factor_before_a_padded_convolution_is_folded(b, kit):
    y = b.conv(b.mul(b.relu(b.x(2, 4, 5)), b.w(4, 1)), b.w(6, 4, 3), pads=1)
    after, _ = kit.apply_rules(kit.finish(b, y), FOLDING)
    assert kit.operations(after) == {"conv": 1, "relu": 1}


@pytest.mark.parametrize("form", ["batch_norm", "mul"])
def test_factors_behind_a_matmul_go_into_the_matrix(b, kit, form):
    y = b.matmul(b.x(3, 4), b.w(4, 6))
    y = b.batch_norm(y, 6) if form == "batch_norm" else b.mul(y, b.w(6))
    after, _ = kit.apply_rules(kit.finish(b, y), FOLDING)
    assert kit.operations(after) == ({"add": 1, "matmul": 1} if form == "batch_norm" else {"matmul": 1})


def test_a_bias_behind_a_matmul_stays_an_addition(b, kit):
    graph = kit.finish(b, b.add(b.matmul(b.x(3, 4), b.w(4, 6)), b.w(6)))
    assert kit.operations(canonicalize(graph, check=True)) == {"add": 1, "matmul": 1}


def test_a_batch_norm_that_remains_is_a_factor_and_an_addend(b, kit):
    after, fired = kit.apply_rules(kit.finish(b, b.relu(b.batch_norm(b.x(2, 3, 4, 4), 3))), REMAINING)
    assert fired == ["batch_norm"]
    assert kit.operations(after) == {"add": 1, "mul": 1, "relu": 1}


def test_statistics_that_are_parameters_are_read_when_it_runs(b, kit):
    parts = [b.graph.param(np.ones(3, np.float32), n) for n in ("s", "b", "m", "v")]
    y = b.graph.add("batch_norm", b.x(2, 3, 4), *parts, epsilon=1e-5)
    after = canonicalize(kit.finish(b, y), check=True)
    assert "batch_norm" not in kit.operations(after)
    assert [after.node(n).names[0] for n in after.find("param")] == ["s", "b", "m", "v"]


@pytest.mark.parametrize("what", ["the convolution", "the weights are a parameter", "along the width"])
def test_what_may_not_be_folded(b, kit, what):
    w = b.graph.param(np.ones((6, 4, 3, 3), np.float32), "w") if "parameter" in what else b.w(6, 4, 3, 3)
    y = b.conv(b.x(2, 4, 5, 5), w)
    if what == "the convolution":
        b.graph.output(b.neg(y))
    z = b.mul(y, b.w(3) if "width" in what else b.w(6, 1, 1))
    _, fired = kit.apply_rules(kit.finish(b, z), FOLDING)
    assert fired == []


def test_folding_rounds_once(b):
    """The folded weight is the rounding of the product in float64, not a product of rounded numbers."""
    w = np.float32([[[0.1]]])
    scale, mean, var, bias = (np.float32([v]) for v in (0.3, 0.7, 1.9, 0.2))
    g = b.graph
    y = g.add("conv", b.x(1, 1, 1), g.const(w), strides=(1,), pads=(0, 0), dilations=(1,), group=1)
    g.output(g.add("batch_norm", y, *(g.const(v) for v in (scale, bias, mean, var)), epsilon=1e-5))
    after = canonicalize(g)
    _, weight, shift = after.args(after.outputs[0].node)
    factor = np.float64(scale) / np.sqrt(np.float64(var) + 1e-5)
    assert after.constant(weight).reshape(1) == np.float32(np.float64(w).reshape(1) * factor)
    assert after.constant(shift) == np.float32(np.float64(bias) - np.float64(mean) * factor)


def test_large_weights_with_two_users_are_not_stored_twice(b, kit):
    w = b.w(512, 1024, 1)
    x = b.x(1, 1024, 2)
    b.graph.output(b.mul(b.conv(x, w), b.w(512, 1)))
    b.graph.output(b.conv(b.neg(x), w))
    after = canonicalize(b.graph, check=True)
    assert kit.operations(after) == {"conv": 2, "mul": 1, "neg": 1}
