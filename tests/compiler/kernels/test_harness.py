"""The harness itself, on pointwise regions: it runs kernels, and it notices what it must notice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import check_region, extra_input, machines, region_of, run_region
from nervure.compiler.kernels.templates import plans


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
def test_pointwise_with_an_epilogue(machine):
    x = np.random.default_rng(0).standard_normal((2, 5, 37)).astype(np.float32)
    bias = np.linspace(-1, 1, 5, dtype=np.float32).reshape(5, 1)
    region, arrays = region_of(
        "relu", [x], {}, epilogue=lambda g, y: g.add("add", y, extra_input(g, bias)), machine=machine
    )
    check_region(region, arrays)


def test_permuted_memory():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    region, arrays = region_of("abs", [x], {}, order=lambda rank: (1, 2, 0), pad=3)
    assert region.inputs[0].strides == (1, 30, 6)
    (y,) = run_region(region, arrays)
    np.testing.assert_array_equal(y, np.abs(x))


def test_a_write_outside_fails():
    x = np.ones(8, np.float32)
    region, arrays = region_of("neg", [x], {})
    squeezed = replace(region, outputs=(replace(region.outputs[0], strides=(0,)),))
    with pytest.raises(AssertionError, match="outside its buffer"):
        run_region(squeezed, arrays, plan=plans(region)[0])
