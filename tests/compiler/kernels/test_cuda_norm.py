"""Norms on a GPU: agreement with the references, in any memory order, with work before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, region_of, sample
from nervure.targets import get

GPU = get("cuda-sm80")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name, case", cases("layer_norm", "rms_norm", "group_norm"))
def test_cases(name: str, case: Any) -> None:
    region, arrays = region_of(name, sample(case), case.attrs, machine=GPU)
    check_region(region, arrays, template="cuda_norm")


@pytest.mark.parametrize("length", [1, 5, 100, 768, 40000])
def test_lengths(length: int) -> None:
    x, scale, bias = normal(3, length), normal(length, seed=1), normal(length, seed=2)
    region, arrays = region_of("layer_norm", [x, scale, bias], {"axis": 1, "epsilon": 1e-5}, machine=GPU)
    check_region(region, arrays, template="cuda_norm")


def test_residual_before_and_activation_after() -> None:
    x, residual, scale = normal(3, 7, 48), normal(3, 7, 48, seed=3), normal(48, seed=1)
    region, arrays = region_of(
        "layer_norm",
        [x, scale, scale],
        {"axis": 2, "epsilon": 1e-6},
        prologue=lambda g, v: g.add("add", v, extra_input(g, residual)),
        epilogue=lambda g, y: g.add("gelu", y),
        machine=GPU,
    )
    check_region(region, arrays, template="cuda_norm")


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("groups", [1, 4, 24])
def test_groups(groups: int, last: bool) -> None:
    x, scale, bias = normal(2, 24, 5, 7), normal(24, seed=1), normal(24, seed=2)
    order = (lambda rank: channels_last(rank) if rank == 4 else range(rank)) if last else None
    for given in ([x, scale, bias], [x, None, bias]):
        attrs = {"num_groups": groups, "epsilon": 1e-5}
        region, arrays = region_of("group_norm", given, attrs, order=order, machine=GPU)
        check_region(region, arrays, template="cuda_norm")


def test_a_large_mean_costs_no_digits() -> None:
    x = (normal(8, 400) * 0.01 + 100).astype(np.float32)
    region, arrays = region_of("layer_norm", [x], {"axis": 1, "epsilon": 1e-12}, machine=GPU)
    check_region(region, arrays, template="cuda_norm", rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype: str) -> None:
    x, scale = normal(3, 500).astype(dtype), normal(500, seed=1).astype(dtype)
    region, arrays = region_of("layer_norm", [x, scale, scale], {"axis": 1, "epsilon": 1e-5}, machine=GPU)
    check_region(region, arrays, template="cuda_norm")
