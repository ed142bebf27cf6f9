"""Depthwise convolution of 8-bit tensors, bit for bit against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import channels_last, check_region, extra_input, machines, region_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops.integers import add_multiplier

THOROUGH = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SHAPES = [  # x, kernel, strides, pads, dilations
    ((1, 64, 9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 96, 7, 10), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    ((1, 24, 15, 9), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    ((1, 144, 6, 7), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    ((1, 8, 12, 11), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 21, 9, 9), (3, 2), (2, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 16, 12, 13), (3, 3), (1, 1), (2, 3, 2, 3), (2, 3)),
    ((1, 64, 20, 6), (10, 4), (2, 1), (4, 1, 5, 2), (1, 1)),
    ((1, 40, 2, 2), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 32, 9, 1), (7, 1), (1, 1), (3, 0, 3, 0), (1, 1)),
    ((1, 12, 40), (5,), (1,), (4, 4), (2,)),
]


def build(shape, machine, *, dtype="uint8", zero=9, scaled=True, residual=False, seed=0, to=None, most=1e-2, **options):
    """A depthwise convolution and, if ``scaled``, its requantization (and the addition of a residual)."""
    x, kernel, strides, pads, dilations = shape
    rng, channels = np.random.default_rng(seed), x[1]
    info = np.iinfo(dtype)
    source = rng.integers(info.min, info.max, x, dtype=dtype, endpoint=True)
    weights = rng.integers(-128, 128, (channels, 1, *kernel)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, channels).astype(np.int32)
    each = np.geomspace(1e-4, most, channels).astype(np.float32).reshape(channels, *[1] * (len(x) - 2))
    to = to or dtype

    def epilogue(g, y):
        if not scaled:
            return y
        steps = g.add("requantize", y, extra_input(g, each), zero_point=3, low=None, high=None, to=to)
        if not residual:
            return steps
        other = rng.integers(-100, 100, g.type(y).dims).astype(np.int8)
        ratios = [extra_input(g, add_multiplier(r)) for r in (0.4, 0.7)]
        zeros = {"a_zero_point": 3, "b_zero_point": 1, "zero_point": 2, "low": None, "high": None}
        return g.add("add_integer", steps, extra_input(g, other), *ratios, **zeros, to="int8")

    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": channels, "zero_point": zero}
    order = options.pop("order", channels_last)
    region, arrays = region_of(
        "conv_integer",
        [source, weights, bias],
        attrs,
        consts=(1, 2),
        order=lambda rank: order(rank) if rank == len(x) else range(rank),
        epilogue=epilogue,
        machine=machine,
        **options,
    )
    inputs = [replace(o, const=each) if o.type.dims == each.shape else o for o in region.inputs]
    return replace(region, inputs=tuple(inputs)), arrays


def has_dots(machine):
    return any(r.kind == "dot4" and not r.saturates for r in machine.instructions)


@pytest.mark.slow
@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_last(shape, dtype, machine):
    region, arrays = build(shape, machine, dtype=dtype)
    names = {p.template for p in plans(region)}
    assert ("dot_depthwise" in names) == has_dots(machine)
    for name in ("dot_depthwise", "depthwise"):
        if name in names:
            check_region(region, arrays, template=name)


@pytest.mark.parametrize("channels", [8, 16, 24])
@pytest.mark.parametrize("known", [True, False])
def test_multipliers_that_stay_behind_the_sums(channels, known):
    """Large ones, and those that are only known at run time, are not taken into the sums."""
    shape = ((1, channels, 8, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    for machine in machines():
        region, arrays = build(shape, machine, most=0.9 if known else 1e-2)
        if not known:
            region = replace(region, inputs=(*region.inputs[:3], *(replace(o, const=None) for o in region.inputs[3:])))
        check_region(region, arrays)


def test_a_few_channels_and_many():
    for shape in (SHAPES[0], SHAPES[4]):
        region, arrays = build(shape, machines()[0], dtype="int8")
        check_region(region, arrays, template=plans(region)[0].template)


@pytest.mark.slow
@pytest.mark.parametrize("pad", [0, 24])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]], ids=str)
def test_sums_a_residual_and_wider_buffers(shape, pad):
    for options in ({"scaled": False}, {"dtype": "int8", "residual": True}):
        region, arrays = build(shape, machines()[0], pad=pad, **options)
        check_region(region, arrays)


def test_int8_wins_over_the_widened_kernel():
    machine = targets.get("host")
    if not has_dots(machine):
        pytest.skip(f"{machine.name} has no dot products")
    region, _ = build(((1, 192, 28, 28), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), machine)
    assert plans(region)[0].template == "dot_depthwise"


def test_planes_and_size_are_left_to_the_general_templates():
    for options in ({"order": range}, {"small": True}):
        region, arrays = build(SHAPES[0], machines()[0], **options)
        assert "dot_depthwise" not in {p.template for p in plans(region)}
        check_region(region, arrays)


@pytest.mark.slow
@THOROUGH
@given(st.data())
def test_any_depthwise(data):
    def pair(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(2))

    kernel, strides, dilations = pair(1, 5), pair(1, 3), pair(1, 2)
    pads = (*pair(0, 3), *pair(0, 3))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [data.draw(st.integers(max(1, r - pads[i] - pads[i + 2]), 14)) for i, r in enumerate(reach)]
    channels = data.draw(st.sampled_from([2, 3, 8, 16, 17, 32, 40, 64, 70, 130]))
    dtype = data.draw(st.sampled_from(["int8", "uint8"]))
    info = np.iinfo(dtype)
    shape = ((data.draw(st.integers(1, 2)), channels, *size), kernel, strides, pads, dilations)
    region, arrays = build(
        shape,
        data.draw(st.sampled_from(machines())),
        dtype=dtype,
        zero=data.draw(st.integers(info.min, info.max)),
        scaled=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        to=data.draw(st.sampled_from(["int8", "uint8"])) if data.draw(st.booleans()) else "int8",
        seed=data.draw(st.integers(0, 99)),
    )
    check_region(region, arrays)
