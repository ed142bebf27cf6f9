"""Whole rows and several reductions at once on a GPU: agreement with the references."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gpu_harness
import numpy as np
import pytest
from harness import channels_last, check_region, run_region
from nervure.compiler.kernels.templates import plans
from nervure.targets import get
from test_reduce_many import layer_norm_back, moments, normal, region, softmax, softmax_back

GPU = get("cuda-sm80")


def last_axis(rank: int) -> tuple[int, ...]:
    """Channels last, for images."""
    return channels_last(rank) if rank == 4 else tuple(range(rank))


@pytest.mark.parametrize("shape", [(33, 10), (3, 5, 130), (2, 3000)])
@pytest.mark.parametrize("build", [softmax_back, layer_norm_back, softmax])
def test_rows(build: Any, shape: tuple[int, ...]) -> None:
    arrays = [normal(*shape), normal(*shape, seed=1)]
    if build is not softmax_back:
        arrays.append(normal(shape[-1], seed=2))
    check_region(region(arrays, build, machine=GPU), arrays, template="cuda_rows", atol=1e-4)


def test_rows_that_are_read_anew() -> None:
    arrays = [normal(1, 30000), normal(1, 30000, seed=1)]
    check_region(region(arrays, softmax_back, machine=GPU), arrays, template="cuda_rows", atol=1e-4)


@pytest.mark.parametrize("batch_last", [False, True])
def test_rows_in_columns(batch_last: bool) -> None:
    arrays = [normal(3, 20, 6, 5), normal(3, 20, 6, 5, seed=1)]

    def build(x: Any, g: Any) -> list[Any]:
        near = x - x.mean((2, 3), True)
        inverse = ((near * near).mean((2, 3), True) + 1e-5).op("rsqrt")
        y = near * inverse
        return [inverse * (g - g.mean((2, 3), True) - y * (g * y).mean((2, 3), True)), (g * y).sum((2, 3), True)]

    order = (lambda r: (*range(1, r), 0)) if batch_last else channels_last
    check_region(region(arrays, build, order, GPU), arrays, template="cuda_rows", atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 16, 5, 7), (8, 6, 32, 32), (3, 37, 9, 2)])
@pytest.mark.parametrize("last", [False, True], ids=["rows", "last"])
def test_statistics_of_channels(shape: tuple[int, ...], last: bool) -> None:
    arrays = [normal(*shape), normal(*shape, seed=1), normal(1, shape[1], 1, 1, seed=2)]
    made = region(arrays, moments((0, 2, 3)), last_axis if last else None, GPU)
    check_region(made, arrays, template="cuda_reduce", atol=5e-3)


def test_few_long_columns_are_cut_in_parts() -> None:
    arrays = [normal(64, 8, 32, 32), normal(64, 8, 32, 32, seed=1), normal(1, 8, 1, 1, seed=2)]
    made = region(arrays, moments((0, 2, 3)), last_axis, GPU)
    (plan,) = plans(made)
    assert len(plan.phases) == 2 and plan.phases[0].tasks > 50
    check_region(made, arrays, atol=5e-3)


def test_the_place_of_an_operand_may_be_taken() -> None:
    arrays = [normal(6, 40), normal(6, 40, seed=1)]
    (plan,) = plans(region(arrays, softmax_back, machine=GPU))
    assert {(0, 0), (1, 0)} <= set(plan.inplace)


@pytest.mark.parametrize("shape", [(131, 10), (7, 50), (3, 3000)])
def test_results_over_operands(shape: tuple[int, ...]) -> None:
    """A result in the place of an operand: what a row's threads read, and those that have no row, is read before."""
    arrays = [normal(*shape), normal(*shape, seed=1)]
    made = region(arrays, softmax_back, machine=GPU)
    (plan,) = plans(made)
    (wanted,) = run_region(made, arrays, plan=plan)
    (draft,) = plan.phases
    for taken in (0, 1):
        held = [SimpleNamespace(raw=a.copy().view(np.uint8).reshape(-1), start=0) for a in arrays]
        places = [[(a.index if a.kind == "in" else taken, 0) for a in draft.args]]
        gpu_harness.run(plan.phases, GPU, held, places, range(taken, taken + 1))
        found = held[taken].raw.view(np.float32).reshape(shape)
        np.testing.assert_array_equal(found, wanted)
