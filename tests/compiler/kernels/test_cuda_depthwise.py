"""Depthwise convolution for GPUs against the references, on a GPU that this CPU plays."""

from __future__ import annotations

import numpy as np
import pytest
from harness import _numpy, cases, channels_last, check_region, extra_input, region_of, sample
from nervure.compiler.kernels.templates import plans
from nervure.targets import get

MACHINE = get("cuda-sm80")
SHAPES = [  # x, kernel, strides, pads, dilations, multiplier
    ((1, 32, 14, 13), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 24, 11, 9), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    ((1, 21, 9, 9), (5, 5), (2, 1), (2, 2, 2, 2), (1, 1), 1),
    ((1, 16, 10, 12), (3, 3), (1, 1), (6, 6, 6, 6), (6, 6), 1),
    ((1, 8, 12, 50), (1, 9), (1, 1), (0, 4, 0, 4), (1, 1), 1),
    ((1, 8, 90), (5,), (1,), (60, 60), (30,), 1),
    ((1, 8, 16, 16), (21, 21), (1, 1), (10, 10, 10, 10), (1, 1), 1),
    ((1, 6, 3, 4, 5), (2, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 2),
    ((2, 3, 7, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    ((1, 40, 1, 1), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
]


def build(shape, *, dtype="float32", consts=(1, 2), order=channels_last, op="conv", **options):
    """``dtype``'s integers make a ``conv_integer`` with int8 weights."""
    x, kernel, strides, pads, dilations, many = shape
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, (x[1] * many, 1, *kernel), (x[1] * many,))]
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": x[1]}
    if dtype.endswith("int8"):
        op, attrs["zero_point"] = "conv_integer", 9
        arrays = [(a * 40).clip(-128, 127).astype(t) for a, t in zip(arrays, ("int8", "int8", "int32"), strict=True)]
        arrays[0] = arrays[0].view(dtype)
    else:
        arrays = [a.astype(_numpy(dtype)) for a in arrays]
    return region_of(
        op,
        arrays,
        attrs,
        order=lambda rank: order(rank) if rank == len(x) else range(rank),
        consts=consts,
        machine=options.pop("machine", MACHINE),
        **options,
    )


def check(region, arrays):
    assert [p.template for p in plans(region)] == ["cuda_depthwise"]
    check_region(region, arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    check(*build(shape))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_types(shape, dtype):
    check(*build(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 2, 8)], ids=str)
def test_integers_with_a_zero_point(shape, dtype):
    check(*build(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 7, 8)], ids=str)
def test_planes(shape):
    check(*build(shape, order=range))


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 3, 8)], ids=str)
def test_weights_known_at_run_time(shape):
    check(*build(shape, consts=()))


def test_epilogue_and_a_wider_buffer():
    rng = np.random.default_rng(1)
    residual, slope = rng.standard_normal((1, 32, 14, 13), np.float32), rng.standard_normal((32, 1, 1), np.float32)

    def epilogue(g, y):
        y = g.add("mul", y, extra_input(g, slope))
        return g.add("clip", g.add("add", y, extra_input(g, residual)), low=0.0, high=6.0)

    region, arrays = build(SHAPES[0], epilogue=epilogue, pad=16)
    check(region, arrays)
    odd, arrays = build(SHAPES[0], epilogue=epilogue, pad=3)
    check(odd, arrays)


@pytest.mark.parametrize("op, case", [p for p in cases("conv") if p.values[1].attrs["group"] > 2])
def test_sample_cases(op, case):
    arrays = sample(case)
    check(*region_of(op, arrays, case.attrs, consts=range(1, len(arrays)), machine=MACHINE))
