"""Direct convolution against the reference: shapes, memory orders, epilogues, weights known only at run time."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, sample
from nervure.compiler.kernels.templates import plans

SHAPES = [  # x, w, strides, pads, dilations, group
    ((1, 16, 14, 14), (32, 16, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 3, 33, 31), (24, 3, 3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    ((1, 3, 20, 45), (16, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((1, 48, 9, 11), (10, 48, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 20, 12, 10), (144, 20, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((1, 16, 30, 40), (16, 16, 3, 3), (1, 1), (5, 5, 5, 5), (5, 5), 1),
    ((1, 24, 7, 1), (96, 24, 3, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 12, 10, 9), (21, 4, 3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 3),
    ((1, 8, 5, 5), (7, 8, 5, 5), (1, 1), (4, 4, 4, 4), (1, 1), 1),
    ((1, 1, 49, 10), (64, 1, 10, 4), (2, 2), (4, 1, 5, 1), (1, 1), 1),
    ((1, 8, 200), (16, 8, 3), (1,), (64, 64), (64,), 1),
    ((1, 10, 5, 6, 7), (12, 10, 3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    ((1, 40, 1, 1), (10, 40, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 64, 56, 56), (64, 64, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 128, 7, 7), (600, 128, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


def build(shape, *, machine, consts=(1, 2), bias=True, order=channels_last, seed=0, **options):
    x, w, strides, pads, dilations, group = shape
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, w, (w[0],))]
    arrays[1] /= np.sqrt(np.prod(w[1:]))
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return region_of(
        "conv",
        arrays if bias else arrays[:2],
        attrs,
        order=lambda rank: order(rank) if rank == len(x) else range(rank),
        consts=[c for c in consts if c == 1 or bias],
        machine=machine,
        **options,
    )


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_last(shape, machine):
    check_region(*build(shape, machine=machine))


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_reads_planes_writes_channels_last(shape, machine):
    check_region(*build(shape, machine=machine, order=range, output_order=channels_last))


def test_planes_on_both_sides():
    check_region(*build(SHAPES[0], machine=machines()[0], order=range))


def test_epilogue_with_residual_and_activation():
    shape = SHAPES[0]
    residual = np.random.default_rng(1).standard_normal((1, 32, 14, 14), np.float32)

    def epilogue(g, y):
        return g.add("clip", g.add("add", y, extra_input(g, residual)), low=0.0, high=1.5)

    region, arrays = build(shape, machine=machines()[0], epilogue=epilogue)
    check_region(region, arrays)
    assert plans(region)[0].inplace == ((3, 0),)


def test_per_channel_epilogue_on_joined_rows_and_a_wider_buffer():
    slope = np.random.default_rng(1).standard_normal((10, 1, 1), np.float32)
    region, arrays = build(
        SHAPES[3], machine=machines()[0], pad=5, epilogue=lambda g, y: g.add("mul", y, extra_input(g, slope))
    )
    check_region(region, arrays)


def test_an_epilogue_that_varies_by_row_only():
    scale = np.random.default_rng(1).standard_normal((9, 1), np.float32)
    region, arrays = build(
        SHAPES[3], machine=machines()[0], epilogue=lambda g, y: g.add("mul", y, extra_input(g, scale))
    )
    check_region(region, arrays)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[7]], ids=str)
def test_weights_and_bias_known_at_run_time(shape):
    region, arrays = build(shape, machine=machines()[0], consts=())
    check_region(region, arrays)


def test_no_bias_and_small():
    region, arrays = build(SHAPES[3], machine=machines()[0], bias=False, small=True)
    check_region(region, arrays)
    assert sum(c.nbytes for c in plans(region)[0].consts) == arrays[1].nbytes


@pytest.mark.parametrize("op, case", cases("conv"))
def test_sample_cases(op, case):
    arrays = sample(case)
    region, given = region_of(op, arrays, case.attrs, consts=range(1, len(arrays)))
    check_region(region, given)
