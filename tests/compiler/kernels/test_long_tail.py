"""Templates of the long tail against the op table's references: every sample case, dense and in other memory orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, sample
from nervure.compiler.kernels.templates import plans

MOVES = ("concat", "pad", "tile", "gather", "gather_elements", "gather_nd", "one_hot")
WINDOWS = ("max_pool", "avg_pool", "resize", "conv_transpose")


def reverse(rank):
    return tuple(reversed(range(rank)))


def last_channels(rank):
    return channels_last(rank) if rank > 2 else tuple(range(rank))


def draw(shape, dtype="float32", seed=0):
    """Random values that every element type holds exactly."""
    import ml_dtypes  # noqa: F401  (gives numpy bfloat16)

    whole = np.random.default_rng(seed).integers(0 if dtype.startswith(("u", "b")) else -9, 10, shape)
    return (whole % 2 if dtype == "bool" else whole).astype(np.dtype(dtype))


ORDERS = {"dense": (None, 0), "channels_last": (last_channels, 3), "reversed": (reverse, 1)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("op", "case"), cases(*MOVES, *WINDOWS))
def test_cases(op, case, order):
    chosen, pad = ORDERS[order]
    region, arrays = region_of(op, sample(case), case.attrs, order=chosen, pad=pad)
    check_region(region, arrays)


# -- transposition -------------------------------------------------------------------------------------------------

SHAPES = [(1, 24, 5, 7), (2, 19, 16, 16), (3, 64, 1, 50)]


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", ["float32", "bool", "int64", "float16", "int8", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_copy_to_another_memory_order(shape, dtype, machine):
    x = draw(shape, dtype)
    region, arrays = region_of("copy", [x], {}, output_order=last_channels, machine=machine)
    check_region(region, arrays)
    back, arrays = region_of("copy", [x], {}, order=last_channels, output_order=range, machine=machine)
    check_region(back, arrays)


def test_transposes_are_tiled():
    region, _ = region_of("copy", [draw(SHAPES[1])], {}, output_order=last_channels)
    assert "transpose" in {p.template for p in plans(region)}


@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise_work_across_memory_orders(shape):
    """A transposed input, one in the output's order and a broadcast vector, in one body."""
    x, y = draw(shape), draw(shape, seed=1)
    bias = draw((shape[1], 1, 1), seed=2)

    def work(g, value):
        summed = g.add("add", g.add("tanh", value), extra_input(g, y))
        return g.add("relu", g.add("mul", summed, extra_input(g, bias)))

    region, arrays = region_of("copy", [x], {}, epilogue=work, output_order=last_channels)
    inputs = (region.inputs[0], replace(region.inputs[1], strides=region.outputs[0].strides), region.inputs[2])
    check_region(replace(region, inputs=inputs), arrays)


def test_transposed_slices():
    x = draw((40, 3, 50))

    def cut(g, value):
        part = g.add("slice", value, starts=(2, 2, 3), stops=(36, -1, 45), steps=(1, -1, 2))
        return g.add("transpose", part, perm=(2, 1, 0))

    region, arrays = region_of("copy", [x], {}, epilogue=cut)
    check_region(region, arrays)


# -- transposed convolution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("op", "case"), cases("conv_transpose"))
def test_conv_transpose_with_constant_weights(op, case, order, machine):
    chosen, pad = ORDERS[order]
    region, arrays = region_of(op, sample(case), case.attrs, order=chosen, pad=pad, consts=(1,), machine=machine)
    check_region(region, arrays)


@pytest.mark.parametrize("channels", [(40, 70), (17, 16), (64, 9), (8, 130)])
def test_conv_transpose_channel_blocks(channels):
    x, w = draw((2, channels[0], 9, 21)), draw((*channels, 4, 4), seed=1)
    attrs = {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "output_padding": (0, 0)}
    residual = draw((2, channels[1], 18, 42), seed=2)

    def after(g, y):
        return g.add("relu", g.add("add", y, extra_input(g, residual)))

    region, arrays = region_of("conv_transpose", [x, w], attrs, order=last_channels, consts=(1,), epilogue=after)
    assert len(plans(region)) == 2
    check_region(region, arrays)
