"""Softmax and log softmax along any axis, rows in registers and in scratch."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, run_region, sample


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 3


@pytest.mark.parametrize("name, case", cases("softmax", "log_softmax"))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("length", [1, 2, 7, 16, 33, 128, 197, 256, 257, 1000])
@pytest.mark.parametrize("axis", [0, 1])
def test_lengths(length, axis, machine):
    x = normal(length, 21) if axis == 0 else normal(21, length)
    for name in ("softmax", "log_softmax"):
        region, arrays = region_of(name, [x], {"axis": axis}, machine=machine)
        check_region(region, arrays, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_channels_last(axis):
    region, arrays = region_of("softmax", [normal(2, 21, 6, 7)], {"axis": axis}, order=channels_last, pad=3)
    check_region(region, arrays, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [60, 600])
def test_scale_and_mask_before_and_work_after(length):
    x, mask, gain = normal(4, 9, length), normal(1, 1, length, seed=1), normal(4, 9, length, seed=2)
    mask[..., ::3] = -np.inf

    def before(g, v):
        return g.add("add", g.add("mul", v, g.const(np.float32(0.125))), extra_input(g, mask))

    region, arrays = region_of(
        "softmax",
        [x],
        {"axis": -1},
        prologue=before,
        epilogue=lambda g, y: g.add("relu", g.add("mul", y, extra_input(g, gain))),
    )
    check_region(region, arrays, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [40, 700])
def test_borders(length):
    x = normal(4, length)
    x[0, :] = -np.inf
    x[1, 3] = np.nan
    x[2, 5:] = -np.inf
    x[3, 1] = 3e38
    region, arrays = region_of("softmax", [x], {"axis": 1})
    (y,) = run_region(region, arrays)
    assert np.isnan(y[:2]).all()
    assert (y[2, 5:] == 0).all() and abs(y[2].sum() - 1) < 1e-6
    assert y[3, 1] == 1.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats(dtype):
    import ml_dtypes  # noqa: F401

    for length in (30, 500):
        region, arrays = region_of("softmax", [normal(3, length).astype(np.dtype(dtype))], {"axis": 1})
        check_region(region, arrays)
