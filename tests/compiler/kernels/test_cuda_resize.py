"""resize and lookup on a GPU beyond the op table's cases: channels in wide accesses, odd sizes."""

from __future__ import annotations

import pytest
from cuda_images import counted, needs_compiler
from harness import cases, channels_last, check_region, region_of, sample
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


@pytest.mark.parametrize(("op", "case"), cases("resize")[::3])
def test_channels_last(op, case):
    region, arrays = region_of(
        op, sample(case), case.attrs, order=lambda r: channels_last(r) if r > 2 else range(r), machine=MACHINE
    )
    assert [p.template for p in plans(region)] == ["cuda_resize"]
    check_region(region, arrays)


@needs_compiler
def test_no_local_memory():
    op, case = cases("resize")[0].values
    region, _ = region_of(op, sample(case), case.attrs, order=channels_last, machine=MACHINE)
    counted(region, "cuda_resize")
