"""Tables of 256 entries on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import check_region, region_of
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


def build(source, target, shape=(7, 48)):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, shape).astype("uint8").view(source)
    table = rng.integers(-100, 100, 256).astype(target)
    return region_of("lookup", [x, table], {}, consts=(1,), machine=MACHINE)


@pytest.mark.parametrize("source", ["int8", "uint8"])
@pytest.mark.parametrize("target", ["int8", "uint8", "float32"])
def test_entries(source, target):
    region, arrays = build(source, target)
    assert [p.template for p in plans(region)] == ["cuda_lookup"]
    check_region(region, arrays)


@needs_compiler
def test_no_local_memory():
    counted(build("int8", "int8")[0], "cuda_lookup")
