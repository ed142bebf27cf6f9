"""topk on a GPU: agreement with the reference, equal keys in the order of their indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import cases, check_region, region_of, sample
from nervure.compiler.kernels.templates import plans
from nervure.targets import get

GPU = get("cuda-sm80")


@pytest.mark.parametrize(("op", "case"), cases("topk"))
def test_cases(op: str, case: Any) -> None:
    region, arrays = region_of(op, sample(case), case.attrs, machine=GPU)
    check_region(region, arrays)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("shape", "count"), [((3, 100), 7), ((2, 1000), 300), ((1, 9000), 2), ((1, 17000), 600)])
def test_rows(shape: tuple[int, int], count: int, largest: bool) -> None:
    x = np.random.default_rng(5).integers(-300, 300, shape).astype(np.float32)
    region, arrays = region_of("topk", [x], {"k": count, "axis": 1, "largest": largest}, machine=GPU)
    assert plans(region)[0].template == "cuda_topk"
    check_region(region, arrays)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float16"])
def test_types_and_columns(dtype: str) -> None:
    x = np.random.default_rng(6).integers(0, 100, (90, 3)).astype(dtype)
    region, arrays = region_of("topk", [x], {"k": 20, "axis": 0, "largest": True}, machine=GPU)
    assert plans(region)[0].template == "cuda_topk"
    check_region(region, arrays)
