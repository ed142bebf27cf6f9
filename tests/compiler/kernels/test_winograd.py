"""Winograd convolution against the reference: all plans (both tile sizes, both forms)."""

from __future__ import annotations

import numpy as np
import pytest
from harness import channels_last, check_region, extra_input, machines, region_of, run_region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS

SHAPES = [  # x, output channels, pads (and the kernel, unless 3x3)
    ((1, 16, 32, 32), 16, (1, 1, 1, 1)),
    ((1, 64, 14, 14), 48, (1, 1, 1, 1)),
    ((2, 20, 9, 13), 24, (1, 1, 1, 1)),
    ((1, 32, 12, 10), 21, (0, 0, 0, 0)),
    ((1, 32, 7, 7), 200, (0, 1, 2, 0)),
    ((1, 13, 8, 30), 16, (2, 2, 2, 2)),
    ((1, 16, 4, 4), 16, (1, 1, 1, 1)),
    ((1, 8, 16, 16), 5, (1, 1, 1, 1)),
    ((1, 4, 9, 14), 16, (1, 1, 1, 1)),
    ((1, 24, 13, 30), 40, (0, 1, 0, 1), (1, 3)),
    ((1, 48, 34, 6), 24, (0, 0, 0, 0), (3, 1)),
    ((2, 20, 57), 33, (1, 2), (3,)),
]


def build(shape, machine=None, bias=True, constant=True, **options):
    x, columns, pads, kernel = (*shape, (3, 3))[:4]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, (columns, x[1], *kernel), (columns,))]
    arrays[1] /= np.sqrt(np.prod(kernel) * x[1])
    attrs = {"strides": (1,) * len(kernel), "pads": pads, "dilations": (1,) * len(kernel), "group": 1}
    options = {"order": lambda r: channels_last(r) if r == len(x) else range(r), **options}
    arrays = arrays if bias else arrays[:2]
    consts = range(1 if constant else 2, len(arrays))
    return region_of("conv", arrays, attrs, machine=machine, consts=consts, **options)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_plans(shape, machine):
    region, arrays = build(shape, machine)
    assert any(p.template == "winograd" for p in plans(region))
    check_region(region, arrays, template="winograd", rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[7], SHAPES[9]], ids=str)
def test_weights_known_at_run_time(shape):
    region, arrays = build(shape, constant=False)
    check_region(region, arrays, template="winograd", rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 1, 0)])
def test_transposed(pads, constant):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in ((3, 20, 9, 13), (20, 40, 3, 3))]
    arrays[1] /= np.sqrt(180)
    attrs = {"strides": (1, 1), "pads": pads, "dilations": (1, 1), "output_padding": (0, 0), "group": 1}
    region, given = region_of("conv_transpose", arrays, attrs, order=channels_last, consts=(1,) if constant else ())
    check_region(region, given, template="winograd", rtol=1e-3, atol=1e-4)


def test_errors_are_near_those_of_the_plain_sum():
    """Relative to the largest output: 1e-7 is the plain sum's, 3e-6 that of the usual points (1, 2)."""
    region, arrays = build(((2, 64, 16, 16), 64, (1, 1, 1, 1)), bias=False)
    wide = [a.astype(np.float64) for a in arrays]
    wanted = OPS["conv"].reference(*wide, **dict(region.attrs))
    for plan in plans(region):
        (have,) = run_region(region, arrays, plan=plan)
        assert np.abs(have - wanted).max() / np.abs(wanted).max() < 2e-6, plan.detail


def test_epilogue_and_no_bias_and_a_wider_buffer():
    residual = np.random.default_rng(1).standard_normal((1, 48, 14, 14), np.float32)
    region, arrays = build(
        SHAPES[1],
        bias=False,
        pad=8,
        epilogue=lambda g, y: g.add("relu", g.add("add", y, extra_input(g, residual))),
    )
    check_region(region, arrays, template="winograd", rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("option", ["exact", "small"])
def test_not_where_it_may_not(option):
    region, _ = build(SHAPES[0], **{option: True})
    assert {p.template for p in plans(region)} == {"conv"}
