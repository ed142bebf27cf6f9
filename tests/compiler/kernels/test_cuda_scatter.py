"""Scatters on a GPU: places that are met twice, owners of remainders, slices in wide accesses."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import check_region, region_of
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")
RNG = np.random.default_rng(0)
REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


def numbers(*shape):
    return RNG.standard_normal(shape).astype("float32")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_elements(reduction, axis):
    indices = RNG.integers(-6, 6, (9, 6) if axis == 0 else (6, 11))  # many places are met again
    arrays = [numbers(6, 6), indices, numbers(*indices.shape)]
    attrs = {"axis": axis, "reduction": reduction}
    region, given = region_of("scatter_elements", arrays, attrs, machine=MACHINE)
    (plan,) = plans(region)
    assert plan.template == "cuda_scatter" and plan.phases[1].spec.config["owners"] > 1
    check_region(region, given, rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows(reduction):
    indices = RNG.integers(-5, 5, (13, 1))
    arrays = [numbers(5, 24), indices, numbers(13, 24)]
    check_region(*region_of("scatter_nd", arrays, {"reduction": reduction}, machine=MACHINE), rtol=1e-5)


def test_points_and_one_slice():
    points = np.stack([RNG.integers(0, 4, 17), RNG.integers(-5, 5, 17)], 1)
    arrays = [numbers(4, 5), points, numbers(17)]
    check_region(*region_of("scatter_nd", arrays, {"reduction": "add"}, machine=MACHINE), rtol=1e-5)
    arrays = [numbers(4, 5), np.array([2]), numbers(5)]
    check_region(*region_of("scatter_nd", arrays, {"reduction": "none"}, machine=MACHINE))


@needs_compiler
def test_no_local_memory():
    arrays = [numbers(50, 64), RNG.integers(0, 50, (30, 1)), numbers(30, 64)]
    region, _ = region_of("scatter_nd", arrays, {"reduction": "add"}, machine=MACHINE)
    counted(region, "cuda_scatter")
