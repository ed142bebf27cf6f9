"""Depthwise convolution against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from harness import channels_last, check_region, extra_input, machines, region_of
from nervure.compiler.kernels.templates import plans

SHAPES = [  # x, kernel, strides, pads, dilations
    ((1, 32, 28, 28), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 24, 15, 17), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    ((2, 88, 3, 24), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    ((1, 21, 9, 9), (5, 5), (2, 1), (2, 2, 2, 2), (1, 1)),
    ((1, 16, 12, 40), (3, 3), (1, 1), (6, 6, 6, 6), (6, 6)),
    ((1, 40, 3, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 8, 12, 50), (1, 9), (1, 1), (0, 4, 0, 4), (1, 1)),
    ((1, 8, 300), (5,), (1,), (60, 60), (30,)),
]


def build(shape, machine, **options):
    x, kernel, strides, pads, dilations = shape
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, (x[1], 1, *kernel), (x[1],))]
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": x[1]}
    options = {"consts": (1, 2), "order": lambda r: channels_last(r) if r == len(x) else range(r), **options}
    return region_of("conv", arrays, attrs, machine=machine, **options)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_last(shape, machine):
    region, arrays = build(shape, machine)
    check_region(region, arrays, template="depthwise")
    assert plans(region)[0].template == "depthwise"


def test_epilogue_and_a_wider_buffer():
    residual = np.random.default_rng(1).standard_normal((1, 32, 28, 28), np.float32)

    def epilogue(g, y):
        return g.add("clip", g.add("add", y, extra_input(g, residual)), low=0.0, high=6.0)

    region, arrays = build(SHAPES[0], machines()[0], epilogue=epilogue, pad=16)
    check_region(region, arrays, template="depthwise")


def test_weights_known_at_run_time():
    region, arrays = build(SHAPES[1], machines()[0], consts=())
    check_region(region, arrays, template="depthwise")


def test_planes_are_left_to_the_general_template():
    region, arrays = build(SHAPES[0], machines()[0], order=range)
    assert [p.template for p in plans(region)] == ["conv"]
    check_region(region, arrays)
