"""Convolutions as implicit matrix products on GPUs against the references, on a GPU that this CPU plays."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, region_of, sample
from nervure.compiler.kernels.templates import plans
from test_cuda_conv_simt import MACHINE, SHAPES, build

NAME = "cuda_conv"
MORE = [
    ((1, 64, 6, 6), (40, 64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 64, 5, 5), (96, 32, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
    ((3, 48, 5, 5), (72, 48, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 33, 9, 9), (65, 33, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
]
LOOSE = {"float16": 4e-3, "bfloat16": 4e-2}


def check(region, arrays, loose=2e-5):
    check_region(region, arrays, template=NAME, rtol=loose, atol=loose)


@pytest.mark.parametrize("shape", [*SHAPES, *MORE], ids=str)
def test_shapes(shape):
    check(*build(shape))


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 4)], ids=str)
def test_exact(shape):
    check(*build(shape, exact=True), 1e-5)


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 4)], ids=str)
def test_rounded_factors(shape):
    check(*build(shape, fast=True), 4e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], MORE[1], MORE[2]], ids=str)
def test_types(shape, dtype):
    check(*build(shape, dtype=dtype), LOOSE.get(dtype, 1e-6))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [*(SHAPES[i] for i in (0, 1, 4, 7)), *MORE[1:]], ids=str)
def test_integers_with_a_zero_point(shape, dtype):
    check(*build(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 2, 4)], ids=str)
def test_planes(shape):
    check(*build(shape, order=range))
    check(*build(shape, order=range, output_order=channels_last))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 4)], ids=str)
def test_weights_known_at_run_time(shape, dtype):
    region, arrays = build(shape, dtype=dtype, consts=())
    check(region, arrays, LOOSE.get(dtype, 2e-5))
    first = next(p for p in plans(region) if p.template == NAME).phases[0]
    assert first.prepares


def test_epilogue_and_a_wider_buffer():
    rng = np.random.default_rng(1)
    residual, slope = rng.standard_normal((1, 32, 7, 9), np.float32), rng.standard_normal((32, 1, 1), np.float32)

    def epilogue(g, y):
        y = g.add("mul", y, extra_input(g, slope))
        return g.add("clip", g.add("add", y, extra_input(g, residual)), low=0.0, high=6.0)

    check(*build(SHAPES[0], epilogue=epilogue, pad=3))
    check(*build(SHAPES[0], epilogue=epilogue))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_few_points_are_summed_in_parts(dtype):
    shape = ((1, 256, 4, 4), (24, 256, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    region, arrays = build(shape, dtype=dtype)
    assert len(next(p for p in plans(region) if p.template == NAME).phases) == 2
    check(region, arrays)


@pytest.mark.parametrize("op, case", cases("conv", "conv_integer"))
def test_sample_cases(op, case):
    arrays = sample(case)
    region, given = region_of(op, arrays, case.attrs, consts=range(1, len(arrays)), machine=MACHINE, exact=True)
    if any(p.template == NAME for p in plans(region)):
        check(region, given, 1e-5)
