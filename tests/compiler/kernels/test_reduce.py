"""Reductions over any axes, in any memory order, with work before and after them."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, channels_last, check_region, dense, extra_input, machines, region_of, sample
from nervure.compiler.ir import Value

FOLDS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name, case", cases(*FOLDS, "argmax", "argmin"))
def test_cases(name, case):
    region, arrays = region_of(name, sample(case), case.attrs)
    check_region(region, arrays)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("axes", [(2, 3), (1,), (1, 2, 3), (0,), (3,), (0, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_max"])
def test_channels_last(name, axes, machine):
    x = normal(2, 83, 7, 9)
    for keepdims in (False, True):
        order = lambda rank: channels_last(rank) if rank == 4 else range(rank)  # noqa: E731
        region, arrays = region_of(name, [x], {"axes": axes, "keepdims": keepdims}, order=order, machine=machine)
        check_region(region, arrays, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_padded_rows_with_prologue_and_epilogue(axis):
    x, gain = normal(5, 33, 47), normal(33, 1, seed=1)
    shape = [d for a, d in enumerate(x.shape) if a != axis]
    residual = normal(*shape, seed=2)

    def before(g, v: Value) -> Value:
        return g.add("mul", g.add("exp", v), extra_input(g, gain))

    def after(g, v: Value) -> Value:
        return g.add("relu", g.add("add", v, extra_input(g, residual)))

    region, arrays = region_of("reduce_mean", [x], {"axes": (axis,)}, prologue=before, epilogue=after, pad=5)
    check_region(region, arrays)


@pytest.mark.parametrize(
    "shape, axes", [((1 << 18,), (0,)), ((3, 96, 4096), (1, 2)), ((4096, 40), (0,)), ((96, 3000), (0, 1))]
)
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_min"])
def test_large_folds_in_parts(name, shape, axes):
    region, arrays = region_of(name, [normal(*shape)], {"axes": axes}, epilogue=lambda g, y: g.add("abs", y))
    from nervure.compiler.kernels.templates import plans

    assert len(plans(region)[0].phases) == 2
    check_region(region, arrays, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("name", ["reduce_max", "reduce_min", "argmax", "argmin"])
@pytest.mark.parametrize("shape, axis", [((4, 100), 1), ((100, 20), 0)])
def test_nan_wins(name, shape, axis):
    x = normal(*shape)
    x[2, 3], x[2, 5], x[3, 3] = np.nan, np.nan, np.inf
    attrs = {"axis": axis} if name.startswith("arg") else {"axes": (axis,)}
    region, arrays = region_of(name, [x], attrs)
    check_region(region, arrays)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "float64", "float16", "bool"])
def test_types(dtype):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 2 if dtype == "bool" else 9, (5, 70)).astype(dtype)
    for name in FOLDS if dtype != "bool" else ("reduce_max", "reduce_min"):
        for axis in (0, 1):
            region, arrays = region_of(name, [x], {"axes": (axis,)})
            check_region(region, arrays)


def test_ties_take_the_first_or_the_last():
    x = np.tile(np.array([1, 5, 5, 2], np.float32), (3, 40))
    for name in ("argmax", "argmin"):
        for last in (False, True):
            for axis in (0, 1):
                region, arrays = region_of(name, [x], {"axis": axis, "select_last": last})
                check_region(region, arrays)


def test_strides_helper():
    assert dense((2, 3, 4), channels_last(3)) == (12, 1, 3)
