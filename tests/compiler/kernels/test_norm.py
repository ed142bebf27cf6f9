"""Layer, RMS, group and instance norm, with work before and after, in any memory order."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, sample


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name, case", cases("layer_norm", "rms_norm", "group_norm"))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("length", [1, 5, 64, 100, 256, 300, 768])
def test_lengths(length, machine):
    x, scale, bias = normal(19, length), normal(length, seed=1), normal(length, seed=2)
    for name, given in (("layer_norm", [x, scale, bias]), ("rms_norm", [x, scale])):
        region, arrays = region_of(name, given, {"axis": 1, "epsilon": 1e-5}, machine=machine)
        check_region(region, arrays)


@pytest.mark.parametrize("length", [48, 320])
def test_residual_before_and_activation_after(length):
    x, residual, scale = normal(3, 7, length), normal(3, 7, length, seed=3), normal(length, seed=1)
    region, arrays = region_of(
        "layer_norm",
        [x, scale, scale],
        {"axis": 2, "epsilon": 1e-6},
        prologue=lambda g, v: g.add("add", v, extra_input(g, residual)),
        epilogue=lambda g, y: g.add("gelu", y),
    )
    check_region(region, arrays)


@pytest.mark.parametrize("order", [channels_last, None], ids=["channels last", "channels first"])
@pytest.mark.parametrize("groups", [1, 4, 12, 48])
def test_groups(groups, order):
    x, scale, bias = normal(2, 48, 5, 7), normal(48, seed=1), normal(48, seed=2)
    for given in ([x, scale, bias], [x, None, bias], [x]):
        chosen = (lambda rank: order(rank) if rank == 4 else range(rank)) if order else None
        region, arrays = region_of("group_norm", given, {"num_groups": groups, "epsilon": 1e-5}, order=chosen)
        check_region(region, arrays)


def test_a_large_mean_costs_no_digits():
    x = (normal(8, 400) * 0.01 + 100).astype(np.float32)
    region, arrays = region_of("layer_norm", [x], {"axis": 1, "epsilon": 1e-12})
    check_region(region, arrays, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype):
    for length in (40, 500):
        x, scale = normal(3, length).astype(dtype), normal(length, seed=1).astype(dtype)
        region, arrays = region_of("layer_norm", [x, scale, scale], {"axis": 1, "epsilon": 1e-5})
        check_region(region, arrays)
