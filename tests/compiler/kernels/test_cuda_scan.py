"""Running sums and products on a GPU: agreement with the references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import cases, check_region, region_of, sample
from nervure.targets import get

GPU = get("cuda-sm80")


@pytest.mark.parametrize(("op", "case"), cases("cumsum", "cumprod"))
def test_cases(op: str, case: Any) -> None:
    region, arrays = region_of(op, sample(case), case.attrs, machine=GPU)
    check_region(region, arrays, template="cuda_scan")


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [101, 1300])
def test_rows_longer_than_a_warp(length: int, exclusive: bool, reverse: bool) -> None:
    x = np.random.default_rng(1).integers(-9, 9, (5, length)).astype(np.int64)
    attrs = {"axis": 1, "exclusive": exclusive, "reverse": reverse}
    region, arrays = region_of("cumsum", [x], attrs, machine=GPU)
    check_region(region, arrays, template="cuda_scan")


def test_columns() -> None:
    x = np.random.default_rng(1).standard_normal((30, 70)).astype(np.float32)
    region, arrays = region_of("cumsum", [x], {"axis": 0}, machine=GPU)
    check_region(region, arrays, template="cuda_scan")
