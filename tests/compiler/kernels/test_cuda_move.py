"""concat, pad, tile and reshape on a GPU, in runs of several elements, from and to views."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import channels_last, check_region, region_of
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


def numbers(*shape, dtype="float32"):
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 40).astype(dtype)


def check(op, arrays, attrs, **options):
    region, given = region_of(op, arrays, attrs, machine=MACHINE, **options)
    assert [p.template for p in plans(region)] == ["cuda_move"]
    check_region(region, given)
    return region


@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
@pytest.mark.parametrize("order", [None, channels_last])
def test_concat(dtype, order):
    arrays = [numbers(2, c, 5, 4, dtype=dtype) for c in (8, 16, 3)]
    check("concat", arrays, {"axis": 1}, order=order)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(mode):
    attrs = {"pads": (0, 1, 0, 2, 0, 2, 1, 3), "mode": mode, "value": 1.5}
    check("pad", [numbers(2, 4, 5, 8)], attrs, order=channels_last)
    check("pad", [numbers(2, 4, 5, 8)], attrs, pad=1)


def test_tile_and_reshape():
    check("tile", [numbers(2, 3, 8)], {"repeats": (2, 1, 3)})
    check("reshape", [numbers(6, 20)], {"shape": (4, 30)}, pad=2, epilogue=lambda g, y: g.add("relu", y))
    check(
        "reshape",
        [numbers(2, 12, 4, 5)],
        {"shape": (2, 48, 5)},
        order=lambda r: channels_last(r) if r == 4 else range(r),
    )


@needs_compiler
def test_no_local_memory():
    region = check("concat", [numbers(2, c, 5, 4) for c in (8, 16, 4)], {"axis": 1}, order=channels_last)
    counted(region, "cuda_move")
