"""The pointwise template on every elementwise operator's sample cases."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, check_region, extra_input, machines, region_of, sample
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS, Kind

ELEMENTWISE = sorted(n for n, op in OPS.items() if op.kind is Kind.ELEMENTWISE and op.reference is not None)


@pytest.mark.parametrize("name, case", cases(*ELEMENTWISE))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    if case.attrs.get("block"):
        assert not plans(region)  # scales of blocks are spelled out by a pass before there are regions
    else:
        check_region(region, arrays)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(100_003,), (7, 11, 1301), (3, 5, 7, 9), (200, 300)])
def test_sizes_that_fill_no_vector(shape, machine):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    for pad in (0, 3):
        region, arrays = region_of(
            "tanh", [x], {}, epilogue=lambda g, v: g.add("add", v, extra_input(g, y)), pad=pad, machine=machine
        )
        check_region(region, arrays)


def test_special_numbers_pass_through():
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5] * 9, np.float32)
    for name, attrs in (
        ("relu", {}),
        ("clip", {"low": -1.0, "high": 1.0}),
        ("sign", {}),
        ("abs", {}),
        ("hard_swish", {}),
    ):
        region, arrays = region_of(name, [x], attrs)
        check_region(region, arrays)
