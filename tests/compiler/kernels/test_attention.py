"""Attention: shapes, strided heads, masks, causality, cap, epilogue."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, check_region, extra_input, machines, region_of, sample


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name, case", cases("attention"))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize(
    "heads, queries, length, depth, width", [(12, 64, 64, 64, 64), (2, 130, 77, 24, 40), (3, 17, 300, 33, 31)]
)
def test_shapes_and_memory_orders(heads, queries, length, depth, width, machine):
    q, k, v = (
        normal(1, heads, queries, depth),
        normal(1, heads, length, depth, seed=1),
        normal(1, heads, length, width, seed=2),
    )
    for order in (None, lambda rank: (0, 2, 1, 3)):  # rows of a projection [B,S,H,E]
        for causal in (False, True):
            attrs = {"scale": depth**-0.5, "causal": causal}
            region, arrays = region_of("attention", [q, k, v], attrs, order=order, machine=machine)
            check_region(region, arrays)


def test_keys_as_columns():
    q, k, v = normal(2, 20, 16), normal(2, 35, 16, seed=1), normal(2, 35, 16, seed=2)
    region, arrays = region_of("attention", [q, k, v], {"scale": 0.25}, order=lambda rank: (0, 2, 1))
    check_region(region, arrays)


@pytest.mark.parametrize("shape", [(2, 3, 40, 50), (40, 50), (2, 1, 1, 50), (2, 1, 40, 1), (50,)])
def test_masks(shape):
    q, k, v = normal(2, 3, 40, 16), normal(2, 3, 50, 16, seed=1), normal(2, 3, 50, 16, seed=2)
    mask = np.where(normal(*shape, seed=3) > 0.5, -np.inf, 0).astype(np.float32)
    for given in (mask, mask == 0):
        region, arrays = region_of("attention", [q, k, v, given], {"scale": 0.25, "softcap": 3.0})
        check_region(region, arrays)


def test_epilogue_and_half():
    q = normal(3, 30, 32)
    gain = normal(3, 1, 32, seed=5)
    region, arrays = region_of(
        "attention", [q, q, q], {"scale": 0.2}, epilogue=lambda g, y: g.add("mul", y, extra_input(g, gain))
    )
    check_region(region, arrays)
    half = q.astype(np.float16)
    region, arrays = region_of("attention", [half, half, half], {"scale": 0.2})
    check_region(region, arrays)
