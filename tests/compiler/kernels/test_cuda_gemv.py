"""Matrix products with few rows on a GPU: agreement with the op table's references, and their machine code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from cuda_images import MACHINES, counted, needs_compiler, plan_of
from harness import check_region, region_of
from nervure.compiler.kernels.templates import plans
from nervure.targets import get
from test_cuda_matmul import TOLERANCE, flipped, numbers, residual, straight

GPU = get("cuda-sm80")


def agree(a: Sequence[int], b: Sequence[int], dtype: str = "float32", **options: Any) -> None:
    region, given = region_of("matmul", [numbers(a, dtype), numbers(b, dtype, 1)], {}, machine=GPU, **options)
    relative = min(1e-5, TOLERANCE[dtype]) if dtype in ("float32", "float64") else TOLERANCE[dtype]
    check_region(region, given, template="cuda_gemv", rtol=relative, atol=2 * relative * a[-1] ** 0.5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 512, 100), (1, 515, 7), (3, 510, 101), (8, 96, 33)])
def test_packed_weights(rows: int, depth: int, columns: int, dtype: str) -> None:
    agree((rows, depth), (depth, columns), dtype, consts=[1], epilogue=residual((columns,), dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_matrices_of_run_time(dtype: str) -> None:
    agree((1, 300), (300, 128), dtype)
    agree((5, 77), (77, 64), dtype)
    agree((2, 304), (304, 130), dtype, order=flipped, output_order=straight)


def test_few_columns() -> None:
    agree((300, 256), (256, 2))
    agree((300, 256), (256,), epilogue=residual((300,)))
    agree((4, 64, 256), (4, 256, 1), "float16")


def test_batches_and_vectors() -> None:
    agree((256,), (256, 300))
    agree((128,), (128,))
    agree((4, 1, 256), (4, 256, 64))
    agree((4, 2, 256), (4, 256, 64), consts=[1])
    agree((2, 3, 1, 64), (3, 64, 20), "float16", consts=[1])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 512, 100), (3, 500, 33)])
def test_integers(rows: int, depth: int, columns: int, dtype: str) -> None:
    for zero in (0, 5):
        arrays = [numbers((rows, depth), dtype), numbers((depth, columns), "int8", 1)]
        attrs = {"zero_point": zero, "b_zero_point": 0}
        region, given = region_of("matmul_integer", arrays, attrs, machine=GPU, consts=[1])
        check_region(region, given, template="cuda_gemv")


def test_few_rows_are_served_by_it() -> None:
    """Batch 1 of a wide layer is bound by its weights, which tensor cores do not help."""
    region, _ = region_of("matmul", [numbers((1, 1024), "float16"), numbers((1024, 1000), "float16")], {}, machine=GPU)
    assert plans(region)[0].template == "cuda_gemv"
    region, _ = region_of("matmul", [numbers((9, 64), "float16"), numbers((64, 64), "float16")], {}, machine=GPU)
    assert all(p.template != "cuda_gemv" for p in plans(region))


@needs_compiler
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_machine_code(machine: str, dtype: str) -> None:
    integer = dtype == "int8"
    attrs = {"zero_point": 5, "b_zero_point": 0} if integer else {}
    for rows in (1, 8):
        arrays = [numbers((rows, 1024), dtype), numbers((1024, 1000), dtype)]
        op = "matmul_integer" if integer else "matmul"
        region, _ = region_of(op, arrays, attrs, machine=get(machine), consts=[1])
        found = counted(region, "cuda_gemv")
        assert found["dp4a" if integer else "fma.rn.f32"] >= rows * 4
        assert found["shfl.sync"] == 5 * rows * plan_of(region, "cuda_gemv").phases[0].spec.config["lines"]
