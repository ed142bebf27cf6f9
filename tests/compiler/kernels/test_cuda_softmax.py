"""Softmax on a GPU: agreement with the references, on the GPU that the CPU plays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import cases, check_region, extra_input, region_of, run_region, sample
from nervure.compiler.ir import Graph, Value
from nervure.targets import get

GPU = get("cuda-sm80")


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("op", "case"), cases("softmax", "log_softmax"))
def test_cases(op: str, case: Any) -> None:
    region, arrays = region_of(op, sample(case), case.attrs, machine=GPU)
    check_region(region, arrays, template="cuda_softmax")


@pytest.mark.parametrize("shape", [(3, 1), (130, 10), (5, 77), (2, 1000), (1, 40000)])
def test_rows_of_any_length(shape: tuple[int, ...]) -> None:
    region, arrays = region_of("softmax", [normal(*shape) * 4], {"axis": -1}, machine=GPU)
    check_region(region, arrays, template="cuda_softmax", rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 70), (33, 3), (700, 33)])
def test_columns(shape: tuple[int, ...]) -> None:
    region, arrays = region_of("log_softmax", [normal(*shape)], {"axis": 0}, machine=GPU)
    check_region(region, arrays, template="cuda_softmax")


def test_work_before_and_after() -> None:
    def before(graph: Graph, x: Value) -> Value:
        return graph.add("tanh", x)

    def after(graph: Graph, y: Value) -> Value:
        return graph.add("add", y, extra_input(graph, normal(6, 37)))

    region, arrays = region_of(
        "softmax", [normal(6, 37)], {"axis": -1}, machine=GPU, prologue=before, epilogue=after, pad=3
    )
    check_region(region, arrays, template="cuda_softmax")


def test_infinities_and_nan() -> None:
    x = normal(4, 40)
    x[0, 3], x[1, 5], x[2, :] = -np.inf, np.nan, -np.inf
    region, arrays = region_of("softmax", [x], {"axis": -1}, machine=GPU)
    (y,) = run_region(region, arrays, template="cuda_softmax")
    assert y[0, 3] == 0 and abs(y[0].sum() - 1) < 1e-5
    assert np.isnan(y[1:3]).all() and np.isfinite(y[3]).all()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types(dtype: str) -> None:
    region, arrays = region_of("softmax", [normal(9, 50, dtype=dtype)], {"axis": -1}, machine=GPU, exact=True)
    check_region(region, arrays, template="cuda_softmax", rtol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((9, 45), 1), ((3, 7, 40), 1), ((1, 40000), 1)])
def test_of_integers(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(-128, 128, shape).astype(np.int8)
    table = np.rint(2.0**14 * np.exp(-np.arange(256) / 20)).astype(np.int32)
    attrs = {"axis": axis, "zero_point": -128, "low": -128, "high": 127, "to": "int8"}
    region, arrays = region_of("softmax_integer", [x, table, np.float32(256)], attrs, consts=(1, 2), machine=GPU)
    check_region(region, arrays, template="cuda_softmax_integer")
