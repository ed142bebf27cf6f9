"""Transposed convolution for GPUs against the references, on a GPU that this CPU plays."""

from __future__ import annotations

import numpy as np
import pytest
from harness import _numpy, cases, channels_last, check_region, region_of, sample
from nervure.compiler.kernels.templates import plans
from nervure.targets import get

MACHINE = get("cuda-sm80")
SHAPES = [  # x, w, strides, pads, dilations, group, output padding
    ((1, 32, 6, 7), (32, 24, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, (1, 1)),
    ((2, 16, 5, 5), (16, 8, 4, 4), (2, 2), (1, 1, 1, 1), (1, 1), 1, (0, 0)),
    ((1, 12, 5, 6), (12, 1, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 12, (1, 1)),
    ((1, 12, 5, 6), (12, 3, 2, 2), (3, 3), (0, 0, 0, 0), (1, 1), 4, (0, 0)),
]


def check(region, arrays, template="cuda_conv_transpose"):
    assert plans(region)[0].template == template
    check_region(region, arrays, template=template, rtol=1e-5)


@pytest.mark.parametrize("consts", [(1, 2), ()], ids=["constant", "run time"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype, consts):
    x, w, strides, pads, dilations, group, more = shape
    rng = np.random.default_rng(0)
    sizes = (x, w, (w[1] * group,))
    arrays = [(rng.standard_normal(s, np.float32) / 4).astype(_numpy(dtype)) for s in sizes]
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "output_padding": more}
    order = lambda rank: channels_last(rank) if rank == len(x) else range(rank)  # noqa: E731
    check(*region_of("conv_transpose", arrays, attrs, order=order, consts=consts, machine=MACHINE, exact=True))


@pytest.mark.parametrize("op, case", cases("conv_transpose"))
def test_sample_cases(op, case):
    arrays = sample(case)
    check(*region_of(op, arrays, case.attrs, consts=range(1, len(arrays)), machine=MACHINE, exact=True))
