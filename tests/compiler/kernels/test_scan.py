"""Running sums and products."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, region_of, sample


@pytest.mark.parametrize("name, case", cases("cumsum", "cumprod"))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("order", [None, channels_last])
def test_axes_with_work_around(axis, order):
    x = np.random.default_rng(0).standard_normal((3, 37, 5, 40)).astype(np.float32)
    region, arrays = region_of(
        "cumsum",
        [x],
        {"axis": axis, "reverse": axis % 2 == 0},
        order=order,
        prologue=lambda g, v: g.add("abs", v),
        epilogue=lambda g, y: g.add("neg", y),
    )
    check_region(region, arrays, rtol=1e-4, atol=1e-4)
