"""Attention on a GPU: agreement with the references, on the GPU that the CPU plays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import cases, check_region, extra_input, region_of, run_region, sample
from nervure.compiler.interpret import interpret
from nervure.compiler.kernels.templates import plans
from nervure.targets import get

GPU = get("cuda-sm80")


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize(("name", "case"), cases("attention"))
def test_cases(name: str, case: Any, exact: bool) -> None:
    region, arrays = region_of(name, sample(case), case.attrs, machine=GPU, exact=exact)
    check_region(region, arrays, rtol=1e-4 if exact else 3e-3, atol=1e-5 if exact else 3e-3)


def test_one_query_against_many_keys() -> None:
    arrays = [normal(4, 1, 64), normal(4, 700, 64, seed=1), normal(4, 700, 64, seed=2)]
    region, arrays = region_of("attention", arrays, {"scale": 0.125}, machine=GPU)
    plan = next(p for p in plans(region) if len(p.phases) == 2)
    (y,) = run_region(region, arrays, plan=plan)
    scores = np.einsum("hqe,hte->hqt", arrays[0], arrays[1]) * 0.125
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ arrays[2]
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype: str) -> None:
    arrays = [normal(2, 9, 16, seed=i, dtype=dtype) for i in range(3)]
    region, arrays = region_of("attention", arrays, {"scale": 0.25}, machine=GPU)
    check_region(region, arrays)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sizes", [(70, 83, 40, 24), (17, 150, 33, 19), (5, 40, 64, 64)])
def test_tiles_of_tensor_cores(sizes: tuple[int, int, int, int], dtype: str) -> None:
    import ml_dtypes  # noqa: F401  (gives numpy bfloat16)

    queries, length, depth, width = sizes
    shapes = ((queries, depth), (length, depth), (length, width))
    arrays: list[Any] = [normal(2, *s, seed=i).astype(np.dtype(dtype)) for i, s in enumerate(shapes)]
    attrs = {"scale": depth**-0.5, "causal": queries > 64}
    region, arrays = region_of("attention", arrays, attrs, machine=GPU)
    found = [p for p in plans(region) if "mma" in p.detail]
    assert found
    loose = {"float32": 2e-3, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    for plan in found:
        (have,) = run_region(region, arrays, plan=plan)
        (want,) = interpret(region.body, arrays)
        np.testing.assert_allclose(have.astype(np.float64), want.astype(np.float64), rtol=loose, atol=loose)


def test_heads_inside_rows() -> None:
    """Heads are slices of one tensor's rows, and so is the result: [batch, position, head, e] in memory."""
    arrays = [normal(2, 3, 21, 16, seed=i) for i in range(3)]
    residual = normal(2, 3, 21, 16, seed=5)
    region, arrays = region_of(
        "attention",
        arrays,
        {"scale": 0.25},
        machine=GPU,
        order=lambda rank: (0, 2, 1, 3),
        epilogue=lambda g, y: g.add("add", y, extra_input(g, residual)),
    )
    check_region(region, arrays, rtol=3e-3, atol=3e-3)
