"""Folds and positions of extrema on a GPU: agreement with the op table's references, on the GPU that the CPU plays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import cases, check_region, region_of, sample
from nervure.compiler.kernels.spec import Region
from nervure.compiler.ops.reductions import FOLDS
from nervure.targets import get

GPU = get("cuda-sm80")


def made(op: str, arrays: Any, attrs: Any, **options: Any) -> tuple[Region, list[np.ndarray]]:
    return region_of(op, arrays, attrs, machine=GPU, **options)


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("op", "case"), cases(*FOLDS, "argmax", "argmin"))
def test_cases(op: str, case: Any) -> None:
    region, arrays = made(op, sample(case), case.attrs)
    check_region(region, arrays, template="cuda_reduce")


@pytest.mark.parametrize("shape", [(1, 5000), (3, 1), (7, 33), (2, 1023), (129, 17), (2, 40000)])
def test_rows_of_any_length(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    for op in ("reduce_sum", "argmax"):
        attrs: dict[str, Any] = {"axis": 1} if op == "argmax" else {"axes": (1,)}
        region, arrays = made(op, [x], attrs)
        check_region(region, arrays, template="cuda_reduce", atol=1e-3)


@pytest.mark.parametrize("shape", [(5000, 1), (1, 3), (33, 7), (1023, 40), (3000, 65)])
def test_columns_of_any_length(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    for op in ("reduce_max", "reduce_mean", "argmin"):
        attrs: dict[str, Any] = {"axis": 0} if op == "argmin" else {"axes": (0,)}
        region, arrays = made(op, [x], attrs)
        check_region(region, arrays, template="cuda_reduce")
