"""Gathers on a GPU: rows in wide accesses, indices of any integer type, negative ones and ones out of range."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import check_region, region_of, run_region
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


def table(rows=30, width=24, dtype="float32"):
    return (np.random.default_rng(0).standard_normal((rows, width)) * 50).astype(dtype)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize(("width", "dtype"), [(24, "float32"), (7, "float32"), (32, "int8"), (16, "float16")])
def test_embedding(width, dtype, index):
    at = np.array([[0, 3, -1], [29, -30, 7]], index)
    region, arrays = region_of("gather", [table(width=width, dtype=dtype), at], {"axis": 0}, machine=MACHINE)
    assert [p.template for p in plans(region)] == ["cuda_gather"]
    check_region(region, arrays)


def test_out_of_range_is_clamped():
    at = np.array([2**40, -(2**40), 31], "int64")
    region, arrays = region_of("gather", [table(), at], {"axis": 0}, machine=MACHINE)
    (have,) = run_region(region, arrays)
    np.testing.assert_array_equal(have, table()[[29, 0, 29]])


def test_inner_axes_and_views():
    at = np.array([1, 5, -2], "int64")
    check_region(*region_of("gather", [table(), at], {"axis": 1}, pad=3, machine=MACHINE))
    rows = np.random.default_rng(1).integers(-30, 30, (4, 24))
    check_region(*region_of("gather_elements", [table(), rows], {"axis": 0}, machine=MACHINE))
    check_region(*region_of("gather_nd", [table(), np.array([[3], [-4]])], {"batch_dims": 0}, machine=MACHINE))


@needs_compiler
def test_no_local_memory():
    region, _ = region_of("gather", [table(), np.array([1, 2])], {"axis": 0}, machine=MACHINE)
    counted(region, "cuda_gather")
