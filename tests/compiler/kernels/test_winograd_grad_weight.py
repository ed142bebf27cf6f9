"""Gradients of 3x3 weights by Winograd's way: blocks, parts, chunks, borders, an optimizer's step at the end."""

from __future__ import annotations

import numpy as np
import pytest
from harness import check_region, machines, run_region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS
from test_conv_grad_weight import adam, build

SHAPES = [  # x, output channels, pads
    ((4, 16, 16, 16), 16, (1, 1, 1, 1)),
    ((32, 16, 8, 8), 32, (1, 1, 1, 1)),
    ((16, 64, 8, 8), 64, (1, 1, 1, 1)),
    ((3, 20, 9, 13), 48, (1, 1, 1, 1)),
    ((2, 13, 12, 10), 16, (0, 0, 0, 0)),
    ((5, 24, 7, 6), 80, (0, 1, 2, 0)),
    ((32, 32, 16, 16), 32, (1, 1, 1, 1)),
]


def region_for(shape, **options):
    x, columns, pads = shape
    return build((x, columns, (3, 3), (1, 1), pads, (1, 1), 1), **{"machine": machines()[0], **options})


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, machine):
    region, arrays = region_for(shape, machine=machine)
    check_region(region, arrays, template="winograd_grad_weight", rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[6]], ids=str)
def test_an_optimizer_step_in_the_same_kernel(shape):
    x, columns, _ = shape
    epilogue = adam((columns, x[1], 3, 3), np.random.default_rng(1))
    region, arrays = region_for(shape, epilogue=epilogue)
    check_region(region, arrays, template="winograd_grad_weight", rtol=1e-3, atol=3e-5)
    assert plans(region)[0].inplace


def test_errors_are_near_those_of_the_plain_sum():
    region, arrays = region_for(SHAPES[6])
    wanted = OPS["conv_grad_weight"].reference(*(a.astype(np.float64) for a in arrays), **dict(region.attrs))
    errors = {}
    for plan in plans(region):
        (have,) = run_region(region, arrays, plan=plan)
        errors[plan.template] = float(np.abs(have - wanted).max() / np.abs(wanted).max())
    assert errors["conv_grad_weight"] < 4e-6 and errors["winograd_grad_weight"] < 6e-6, errors


@pytest.mark.parametrize("option", ["exact", "small"])
def test_not_where_it_may_not(option):
    region, _ = region_for(SHAPES[0], **{option: True})
    assert "winograd_grad_weight" not in {p.template for p in plans(region)}
