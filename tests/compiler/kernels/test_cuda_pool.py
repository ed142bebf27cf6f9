"""Pools on a GPU: borders, strides, dilations, channels in wide accesses, integers bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import cases, channels_last, check_region, region_of, sample
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")
SHAPES = [  # x, kernel, strides, pads, dilations
    ((2, 16, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((1, 5, 8, 8), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((1, 8, 12, 12), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    ((1, 24, 8, 8), (8, 8), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((2, 4, 20), (3,), (2,), (1, 0), (1,)),
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


def build(op, shape, dtype="float32", **more):
    x, kernel, strides, pads, dilations = shape
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "ceil_mode": False}
    array = (np.random.default_rng(0).standard_normal(x) * 40).astype(dtype)
    order = more.pop("order", channels_last)
    return region_of(op, [array], {**attrs, **more}, order=lambda r: order(r), machine=MACHINE)


def check(region, arrays, template="cuda_pool"):
    assert [p.template for p in plans(region)] == [template]
    check_region(region, arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", [channels_last, range])
def test_max(shape, order):
    check(*build("max_pool", shape, indices=False, order=order))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding", [False, True])
def test_average(shape, padding):
    check(*build("avg_pool", shape, count_include_pad=padding))


def test_integers_and_places():
    check(*build("max_pool", SHAPES[0], "int8", indices=False))
    check(*build("max_pool", SHAPES[0], indices=True))


@pytest.mark.parametrize(("op", "case"), cases("sum_pool_integer"))
def test_sums(op, case):
    check(*region_of(op, sample(case), case.attrs, order=channels_last, machine=MACHINE))


@needs_compiler
@pytest.mark.parametrize(("op", "more"), [("max_pool", {"indices": False}), ("avg_pool", {"count_include_pad": False})])
def test_no_local_memory(op, more):
    counted(build(op, SHAPES[0], **more)[0], "cuda_pool")
