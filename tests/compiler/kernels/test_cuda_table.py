"""Every sample case of the op table on a GPU, the real one or the played one, against the references.

A few cases of each operator are fast tests, the rest slow ones. Kernels of neighbours are compiled together.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import gpu_harness
import numpy as np
import pytest
from harness import check_region, machines, region_of, sample
from nervure.compiler.kernels.spec import Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS
from nervure.targets import get

GPU = get("cuda-sm80")
TOGETHER = 24  # cases whose kernels are compiled at once
EVERY = 8  # of an operator's cases is a fast test


def _fast(number: int) -> bool:
    return number % EVERY == 0


def _numbered(fast: bool) -> list[tuple[str, int]]:
    """Cases by operator and number that a CPU has kernels for, too."""
    return [
        (name, i)
        for name in sorted(OPS)
        for i, _ in enumerate(OPS[name].cases() if OPS[name].cases else ())
        if _fast(i) == fast
    ]


FAST, SLOW = _numbered(True), _numbered(False)
ROWS = [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in FAST]
ROWS += [pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=pytest.mark.slow) for row in SLOW]


def _case(name: str, number: int) -> Any:
    return list(OPS[name].cases())[number]  # type: ignore[misc]


def _region(name: str, number: int, dtype: str = "float32", **options: Any) -> tuple[Region, list[np.ndarray]]:
    case = _case(name, number)
    arrays = [a if a is None or a.dtype != np.float32 else a.astype(np.dtype(dtype)) for a in sample(case)]
    return region_of(name, arrays, case.attrs, **options)


@cache
def _prepare(first: int, fast: bool) -> None:
    """Compiles what the cases from ``first`` on need."""
    drafts = []
    for name, number in (FAST if fast else SLOW)[first : first + TOGETHER]:
        region, _ = _region(name, number, machine=GPU, exact=True)
        drafts += [draft for plan in plans(region) for draft in plan.phases]
    gpu_harness.prepare(drafts, GPU)


@pytest.mark.parametrize(("name", "number"), ROWS)
def test_case(name: str, number: int) -> None:
    fast = _fast(number)
    region, arrays = _region(name, number, machine=GPU, exact=True)
    if not plans(region):
        here, _ = _region(name, number, machine=machines()[0])
        assert not plans(here), "the CPU has a kernel for it, the GPU has none"
        pytest.skip("never a kernel of its own")
    at = (FAST if fast else SLOW).index((name, number))
    _prepare(at - at % TOGETHER, fast)
    check_region(region, arrays)
