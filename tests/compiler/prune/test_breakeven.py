"""The break-even density: by the cost model where it says that plans change, and measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.templates import plans
from nervure.compiler.prune.breakeven import (
    WORTH,
    Measured,
    break_even,
    measured_break_even,
    region_of,
    weights_with,
)
from nervure.compiler.prune.layers import layers, prepare
from nervure.compiler.prune.patterns import UNSTRUCTURED, Pattern, parse, to_matrix
from nervure.compiler.types import TensorType
from nervure.errors import NervureError


def network() -> Graph:
    g = Graph("net")
    rng = np.random.default_rng(0)
    window = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1}
    y = g.input("x", TensorType("float32", ("n", 64, 12, 12)))
    y = g.add("conv", y, g.const(rng.standard_normal((96, 64, 1, 1)).astype(np.float32), "point"), **window)
    y = g.add("conv", y, g.const(rng.standard_normal((64, 96, 3, 3)).astype(np.float32), "taps"), **window)
    g.output(y)
    z = g.input("z", TensorType("float32", (16, 256)))
    g.output(g.add("matmul", z, g.const(rng.standard_normal((256, 256)).astype(np.float32), "dense")))
    return prepare(g)


NETWORK = network()
LAYERS = {layer.weight: layer for layer in layers(NETWORK)}


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3", "rpi4", "armv7"])
@pytest.mark.parametrize("name", ["point", "dense"])
def test_it_pays_below_and_not_above(name, target):
    layer, machine = LAYERS[name], targets.get(target)
    found = break_even(layer, machine, UNSTRUCTURED, NETWORK)
    assert 0.05 < found < 1 and found == break_even(layer, machine, UNSTRUCTURED, NETWORK)
    region = region_of(layer, NETWORK, machine)

    def cost(density):
        weights = weights_with(UNSTRUCTURED, density, layer.shape, layer.op)
        return plans(replace(region, inputs=(region.inputs[0], replace(region.inputs[1], const=weights))))[0].cost

    assert cost(found) < WORTH * cost(1.0) <= cost(found + 1 / 32)


def test_patterns_of_wider_cells_pay_sooner():
    machine, layer = targets.get("x86-64-v4"), LAYERS["point"]
    single, wide = (break_even(layer, machine, p, NETWORK) for p in (UNSTRUCTURED, parse("block", machine)))
    assert wide > single
    of_four = break_even(layer, machine, Pattern(1, 1, 2, 4), NETWORK)
    assert of_four in (0.25, 0.5, 0.75)


def test_a_region_will_do_and_a_layer_needs_its_graph():
    machine, layer = targets.get("x86-64-v3"), LAYERS["dense"]
    region = region_of(layer, NETWORK, targets.get("rpi4"))
    assert break_even(region, machine) == break_even(layer, machine, UNSTRUCTURED, NETWORK)
    with pytest.raises(NervureError, match="which"):
        break_even(layer, machine)


def test_weights_are_drawn_as_asked():
    layer = LAYERS["taps"]
    for pattern, density in (
        (UNSTRUCTURED, 0.1),
        (parse("block:1x16", targets.host()), 0.25),
        (Pattern(1, 1, 2, 4), 0.5),
    ):
        weights = weights_with(pattern, density, layer.shape, layer.op)
        assert np.count_nonzero(weights) / weights.size == pytest.approx(density, abs=0.01)
        assert pattern.fits(to_matrix(weights, layer.op), layer.channels)
        np.testing.assert_array_equal(weights, weights_with(pattern, density, layer.shape, layer.op))


def test_the_break_even_lies_between_measured_densities():
    assert Measured(100.0, (0.1, 0.2, 0.4), (20.0, 57.0, 137.0)).break_even == pytest.approx(0.3)
    assert Measured(100.0, (0.1, 0.2), (20.0, 40.0)).break_even == 0.2
    assert Measured(100.0, (0.1, 0.2), (99.0, 140.0)).break_even == 0.0


@pytest.mark.slow
def test_measured_on_this_machine():
    found = measured_break_even(LAYERS["dense"], NETWORK, densities=(0.05, 0.3, 0.7))
    assert found.times[0] < found.dense  # most weights gone: surely faster
    assert found.times[0] < found.times[1]
    assert 0.05 <= found.break_even <= 0.7
