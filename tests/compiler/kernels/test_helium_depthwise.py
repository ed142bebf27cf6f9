"""Depthwise convolution of bytes by Helium, bit for bit against the references, in QEMU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helium_cases import GAP, Layer, check, layer_region
from hypothesis import given
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.kernels.templates import plans
from nervure.compiler.kernels.templates.helium_depthwise import sums_that_fit


def layer(channels: int, size: tuple[int, int], kernel: tuple[int, int] = (3, 3), **more: object) -> Layer:
    pads = tuple(k // 2 for k in (*kernel, *kernel))
    return replace(Layer((1, channels, *size), (channels, 1, *kernel), pads=pads, group=channels, zero=-9), **more)


USUAL = [
    layer(16, (5, 5)),
    layer(8, (6, 9), zero=-128),
    layer(24, (6, 6), strides=(2, 2), pads=(0, 0, 1, 1)),
]
OTHERS = [
    layer(64, (25, 5), zero=-128, extreme=True),
    layer(16, (12, 11), low=-100, high=90),
    layer(32, (7, 7), strides=(2, 2)),
    layer(8, (9, 9), strides=(2, 2)),
    layer(4, (9, 13), dtype="uint8", zero=200, to="uint8"),
    layer(5, (9, 13), dtype="uint8", zero=0),
    layer(3, (5, 5), extreme=True),
    layer(2, (4, 9), to="uint8", low=5),
    layer(47, (6, 7), bias=False),
    layer(16, (11, 12), (5, 5)),
    layer(16, (15, 14), (5, 5), strides=(2, 2)),
    layer(16, (9, 9), (7, 7)),
    layer(16, (12, 13), pads=(2, 3, 2, 3), dilations=(2, 3)),
    layer(16, (20, 9), (3, 5), strides=(3, 2), dilations=(1, 2)),
    layer(16, (1, 30), (1, 5)),
    layer(16, (30, 1), (7, 1)),
    layer(16, (9, 9), (1, 1)),
    layer(16, (11, 10), (2, 2), strides=(3, 3), pads=(0, 0, 1, 1)),
    layer(16, (10, 4), (10, 4), strides=(2, 1), pads=(4, 1, 5, 2)),
    layer(16, (6, 7), tensor=True, most=0.25),
    layer(16, (6, 7), tensor=True, most=0.005, residual=True),
    layer(8, (6, 7), residual=True),
    layer(16, (6, 7), pad=GAP),
    layer(8, (6, 7), pad=GAP),
    layer(256, (3, 3)),
    replace(layer(16, (6, 7)), x=(3, 16, 6, 7)),
    Layer((1, 20, 40), (20, 1, 5), (1,), (4, 4), (2,), 20),
]


@pytest.mark.emulator
def test_usual_layers() -> None:
    check(USUAL, "helium_depthwise")


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("part", range(4))
def test_layers(part: int) -> None:
    check(OTHERS[part::4], "helium_depthwise")


def test_it_is_the_cheapest_where_it_fits() -> None:
    found = [
        plans(layer_region(each, 0)[0])[0].template
        for each in (layer(24, (9, 9), strides=(2, 1)), layer(16, (9, 9), (5, 5)))
    ]
    assert found == ["helium_depthwise"] * 2


def test_other_machines_have_no_such_plan() -> None:
    region, _ = layer_region(USUAL[0], 0)
    for name in ("cortex-m7", "x86-64-v3", "rpi4"):
        assert all(p.template != "helium_depthwise" for p in plans(replace(region, machine=targets.get(name))))


@given(st.lists(st.lists(st.integers(-128, 127), min_size=9, max_size=9), min_size=1, max_size=4))
def test_sums_fit_whatever_the_bytes(rows: list[list[int]]) -> None:
    weights = np.array(rows)
    first = 0
    for count in sums_that_fit(weights):
        part = weights[:, first : first + count]
        for x in (np.where(part > 0, 127, -128), np.where(part > 0, -128, 127)):
            assert np.abs((part * x).sum(axis=1) + 0.5).max() < 32768.5
        first += count
    assert first == weights.shape[1]


def test_small_weights_are_added_all_at_once() -> None:
    assert sums_that_fit(np.full((3, 9), 28)) == [9]
    assert sums_that_fit(np.full((3, 9), 127)) == [2, 2, 2, 2, 1]
    assert sums_that_fit(np.full((3, 4), -128)) == [1, 1, 1, 1]
