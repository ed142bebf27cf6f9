"""Direct convolution for GPUs against the references, on a GPU that this CPU plays."""

from __future__ import annotations

import numpy as np
import pytest
from harness import _numpy, cases, channels_last, check_region, extra_input, region_of, sample
from nervure.compiler.kernels.templates import plans
from nervure.targets import get

MACHINE = get("cuda-sm80")
NAME = "cuda_conv_simt"
SHAPES = [  # x, w, strides, pads, dilations, group
    ((1, 16, 7, 9), (32, 16, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 3, 17, 15), (24, 3, 3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    ((2, 20, 6, 5), (14, 20, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((1, 8, 9, 12), (8, 8, 3, 3), (1, 1), (5, 5, 5, 5), (5, 5), 1),
    ((1, 12, 10, 9), (21, 4, 3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 3),
    ((1, 32, 8, 8), (32, 4, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 8),
    ((1, 1, 49, 10), (16, 1, 10, 4), (2, 2), (4, 1, 5, 1), (1, 1), 1),
    ((1, 8, 50), (16, 8, 3), (1,), (16, 16), (16,), 1),
    ((1, 10, 3, 4, 5), (12, 10, 3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    ((1, 40, 1, 1), (10, 40, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


def build(shape, *, dtype="float32", consts=(1, 2), order=channels_last, machine=MACHINE, **options):
    """``dtype``'s integers of 8 and 16 bits make a ``conv_integer``."""
    x, w, strides, pads, dilations, group = shape
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, w, (w[0],))]
    arrays[1] /= np.sqrt(np.prod(w[1:]))
    op, attrs = "conv", {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    if dtype in ("int8", "uint8", "int16"):
        op, attrs["zero_point"] = "conv_integer", 9
        types = ("int16", "int8", "int64") if dtype == "int16" else ("int8", "int8", "int32")
        arrays = [(a * 99).clip(-128, 127).astype(t) for a, t in zip(arrays, types, strict=True)]
        arrays[0] = arrays[0].view(dtype)
    else:
        arrays = [(a * 9 if dtype.startswith("int") else a).astype(_numpy(dtype)) for a in arrays]
    return region_of(
        op,
        arrays,
        attrs,
        order=lambda rank: order(rank) if rank == len(x) else range(rank),
        consts=consts,
        machine=machine,
        **options,
    )


def check(region, arrays):
    check_region(region, arrays, template=NAME)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    check(*build(shape))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "int64"])
def test_types(dtype):
    check(*build(SHAPES[1], dtype=dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 4)], ids=str)
def test_integers_with_a_zero_point(shape, dtype):
    check(*build(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 4, 8)], ids=str)
def test_planes(shape):
    check(*build(shape, order=range))
    check(*build(shape, order=range, output_order=channels_last))


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 4)], ids=str)
def test_weights_known_at_run_time(shape):
    check(*build(shape, consts=()))


def test_epilogue_and_a_wider_buffer():
    rng = np.random.default_rng(1)
    residual, slope = rng.standard_normal((1, 32, 7, 9), np.float32), rng.standard_normal((32, 1, 1), np.float32)

    def epilogue(g, y):
        y = g.add("mul", y, extra_input(g, slope))
        return g.add("clip", g.add("add", y, extra_input(g, residual)), low=0.0, high=6.0)

    check(*build(SHAPES[0], epilogue=epilogue, pad=3))


@pytest.mark.parametrize("op, case", cases("conv", "conv_integer"))
def test_sample_cases(op, case):
    arrays = sample(case)
    region, given = region_of(op, arrays, case.attrs, consts=range(1, len(arrays)), machine=MACHINE)
    if any(p.template == "cuda_depthwise" for p in plans(region)):
        check_region(region, given, template="cuda_depthwise")
    else:
        check(region, given)
