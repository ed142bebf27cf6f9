"""Depthwise convolution of four outputs at once by Helium, bit for bit against the references, in QEMU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helium_cases import Layer, check, layer_region, planned
from nervure import targets
from nervure.compiler.kernels.templates import plans


def layer(channels: int, size: tuple[int, int], kernel: tuple[int, int] = (3, 3), **more: object) -> Layer:
    pads = tuple(k // 2 for k in (*kernel, *kernel))
    return replace(Layer((1, channels, *size), (channels, 1, *kernel), pads=pads, group=channels, zero=-9), **more)


USUAL = [
    layer(16, (6, 5), zero=-128),
    layer(8, (5, 6), low=-100, high=90),
    layer(64, (3, 3), extreme=True),
]
OTHERS = [
    layer(64, (25, 5), zero=-128, extreme=True),
    layer(8, (48, 48), zero=-128),
    layer(16, (2, 2)),
    layer(24, (7, 8), to="uint8", low=5),
    layer(16, (7, 7), pads=(0, 0, 0, 0)),
    layer(16, (8, 7), pads=(2, 1, 0, 1)),
    layer(16, (8, 7), pads=(0, 2, 2, 0)),
    layer(16, (6, 7), (2, 3)),
    layer(16, (6, 7), (3, 2), pads=(1, 0, 1, 1)),
    layer(16, (6, 7), (1, 1), pads=(0, 0, 0, 0)),
    layer(16, (6, 7), (1, 3)),
    layer(16, (6, 7), (3, 1)),
    layer(16, (1, 9), (3, 3), pads=(2, 1, 2, 1)),
    layer(48, (9, 4), bias=False, tensor=True, most=0.01),
    replace(layer(16, (6, 7)), x=(3, 16, 6, 7)),
    layer(16, (12, 12), strides=(2, 2), pads=(0, 0, 1, 1), zero=-128),
    layer(16, (11, 13), strides=(2, 2), extreme=True),
    layer(24, (9, 8), strides=(2, 2)),
    layer(16, (13, 20), (2, 3), strides=(3, 3)),
    replace(layer(16, (12, 14), strides=(2, 2)), x=(2, 16, 12, 14)),
    layer(27, (6, 6), strides=(2, 2), pads=(0, 0, 1, 1)),
    layer(5, (7, 4), strides=(2, 2)),
    layer(107, (6, 6), zero=-128),
    layer(7, (9, 3), zero=4),
    replace(layer(3, (8, 8)), x=(3, 3, 8, 8)),
    layer(19, (5, 3), (1, 1), strides=(3, 3), pads=(0, 0, 0, 0)),
]


@pytest.mark.emulator
def test_usual_layers() -> None:
    check(USUAL, "helium_windows")


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("part", range(3))
def test_layers(part: int) -> None:
    check(OTHERS[part::3], "helium_windows")


@pytest.mark.slow
@pytest.mark.emulator
def test_random_layers() -> None:
    rng, layers = np.random.default_rng(11), []
    for _ in range(16):
        kernel = [int(n) for n in rng.integers(1, 4, 2)]
        size = [int(k + rng.integers(1, 9)) for k in kernel]
        pads = tuple(int(p) for p in (*rng.integers(0, kernel), *rng.integers(0, kernel)))
        made = layer(int(rng.integers(16, 65)), (size[0], size[1]), (kernel[0], kernel[1]), pads=pads)
        layers.append(replace(made, zero=int(rng.integers(-128, 128)), extreme=bool(rng.random() < 0.3)))
    check(layers, "helium_windows")


def test_the_cheapest_where_it_fits() -> None:
    for each in (*USUAL[:2], layer(16, (16, 16), strides=(2, 2))):
        assert plans(layer_region(each, 0)[0])[0].template == "helium_windows"


@pytest.mark.parametrize("other", [{"strides": (2, 1)}, {"dilations": (2, 2)}, {"residual": True}, {"dtype": "uint8"}])
def test_other_layers_are_left_to_others(other: dict[str, object]) -> None:
    region, _ = layer_region(layer(16, (9, 9), **other), 0)
    assert all(p.template != "helium_windows" for p in plans(region))


def test_layers_of_other_shapes_share_a_kernel() -> None:
    alike = [layer(16, (12, 12)), layer(23, (17, 6)), layer(64, (8, 10), zero=5)]
    assert len({planned(layer_region(each, 0)[0], "helium_windows").phases[0].spec.name for each in alike}) == 1


def test_other_machines_have_no_such_plan() -> None:
    region, _ = layer_region(USUAL[0], 0)
    for name in ("cortex-m33", "x86-64-v3", "rpi4"):
        assert all(p.template != "helium_windows" for p in plans(replace(region, machine=targets.get(name))))
