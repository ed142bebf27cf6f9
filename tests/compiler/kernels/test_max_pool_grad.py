"""The gradient of max_pool against the reference, in every memory order."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, sample

ON = pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
ORDERS = {"rows": range, "channels last": channels_last, "batch last": lambda rank: (*range(1, rank), 0)}
WINDOWS = [  # x, kernel, strides, pads, dilations
    ((16, 6, 28, 28), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((32, 20, 11, 13), (2, 3), (2, 3), (0, 1, 0, 1), (1, 1)),
    ((16, 24, 17, 16), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((16, 18, 9, 9), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    ((1, 17, 30, 30), (13, 13), (1, 1), (6, 6, 6, 6), (1, 1)),
    ((16, 8, 20), (4,), (3,), (2, 1), (2,)),
]


def build(window, machine, order, **options):
    x, kernel, strides, pads, dilations = window
    rank = len(kernel)
    rng = np.random.default_rng(0)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = [(x[2 + a] + pads[a] + pads[rank + a] - spans[a]) // strides[a] + 1 for a in range(rank)]
    values = rng.integers(-4, 5, x).astype(np.float32)  # with many ties
    arrays = [values, rng.standard_normal((*x[:2], *out), np.float32)]
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "ceil_mode": False}
    return region_of("max_pool_grad", arrays, attrs, machine=machine, order=order, **options)


@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
@pytest.mark.parametrize(("op", "case"), cases("max_pool_grad"))
def test_cases(op, case, order):
    region, arrays = region_of(op, sample(case), {"ceil_mode": False, **case.attrs}, order=order)
    check_region(region, arrays)


@ON
@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows(window, order, machine):
    check_region(*build(window, machine, order))


@ON
@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[2]], ids=str)
def test_mask_after_it(window, machine):
    """The gradient of the relu before the pool, in the same kernel."""
    values = np.random.default_rng(1).standard_normal(window[0], np.float32)

    def epilogue(g, y):
        return g.add(
            "where", g.add("greater", extra_input(g, values), g.const(np.float32(0))), y, g.const(np.float32(0))
        )

    check_region(*build(window, machine, ORDERS["batch last"], epilogue=epilogue))


def test_nan_and_infinity():
    """What comes first wins until something is larger: nothing is larger than NaN, -inf may be all there is."""
    x = np.full((1, 16, 2, 4), -np.inf, np.float32)
    x[:, :, 0, 2], x[:, :, 1, 2] = np.nan, 5.0
    g = np.arange(32, dtype=np.float32).reshape(1, 16, 1, 2)
    attrs = {"kernel_shape": (2, 2), "strides": (2, 2), "pads": (0,) * 4, "dilations": (1, 1), "ceil_mode": False}
    region, arrays = region_of("max_pool_grad", [x, g], attrs, order=channels_last)
    check_region(region, arrays)
