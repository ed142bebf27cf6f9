"""Contractions of bytes by Helium, bit for bit against the references, in QEMU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helium_cases import GAP, M55, Layer, check, layer_region, planned
from nervure import targets
from nervure.compiler.kernels.templates import plans

pytestmark = pytest.mark.emulator

USUAL = [
    Layer((1, 16, 5, 6), (8, 16, 1, 1)),
    Layer((1, 16, 6, 5), (8, 16, 3, 3), pads=(1, 1, 1, 1), zero=7),
    Layer((1, 40), (40, 12), zero=4),
]
OTHERS = [
    Layer((1, 64, 5, 5), (64, 64, 1, 1), extreme=True),
    Layer((1, 70, 3, 3), (20, 70, 1, 1), zero=9),
    Layer((1, 256, 3, 3), (12, 256, 1, 1)),
    Layer((1, 8, 6, 7), (16, 8, 1, 1)),  # shorter than a step
    Layer((1, 32, 12, 13), (16, 32, 1, 1), residual=True),
    Layer((1, 16, 9, 8), (7, 16, 1, 1), zero=0),  # columns that leave a group over
    Layer((1, 16, 9, 9), (32, 16, 1, 1), strides=(2, 2)),
    Layer((2, 16, 5, 7), (8, 16, 1, 1), bias=False),
    Layer((1, 3, 12, 11), (8, 3, 3, 3), strides=(2, 2), pads=(0, 0, 1, 1), zero=-1),
    Layer((1, 1, 20, 10), (12, 1, 10, 4), strides=(2, 2), pads=(4, 1, 5, 1), zero=83),
    Layer((1, 32, 7, 7), (8, 32, 3, 3), pads=(1, 1, 1, 1), residual=True),
    Layer((1, 64, 4, 5), (8, 64, 3, 3), pads=(1, 1, 1, 1), extreme=True, most=1e-4),
    Layer((1, 24, 6, 6), (4, 24, 3, 3)),
    Layer((1, 18, 7, 6), (4, 18, 2, 3)),  # the last step begins before the bytes that are left
    Layer((1, 16, 11, 12), (4, 16, 3, 3), dilations=(2, 3), pads=(2, 3, 2, 3)),
    Layer((1, 5, 9, 9), (6, 5, 5, 5), strides=(2, 1), pads=(2, 2, 2, 2), zero=100, dtype="uint8", to="uint8"),
    Layer((2, 16, 6, 6), (8, 16, 1, 1), zero=200, dtype="uint8", to="uint8", low=9, high=250),
    Layer((1, 16, 6, 6), (8, 16, 3, 3), pads=(1, 1, 1, 1), zero=17, pad=GAP),
    Layer((1, 16, 6, 6), (8, 16, 1, 1), zero=17, pad=GAP),
    Layer((1, 12, 30), (8, 12, 5), strides=(2,), pads=(2, 2), dilations=(1,)),
    Layer((1, 16, 30), (8, 16, 1), strides=(1,), pads=(0, 0), dilations=(1,)),
    Layer((1, 16, 5, 5), (8, 16, 3, 3), pads=(2, 2, 2, 2), zero=3),
    Layer((1, 16, 2, 2), (4, 16, 3, 3), pads=(1, 1, 1, 1), zero=3),
    Layer((1, 16, 6, 6), (8, 16, 1, 1), tensor=True, most=0.5, low=-100, high=90),
    Layer((1, 4, 130, 3), (5, 4, 1, 1)),
    Layer((1, 16, 200, 1), (8, 16, 1, 1)),  # several blocks, the last with a point left over
    Layer((1, 16, 67, 3), (8, 16, 1, 1), residual=True),
    Layer((33, 70), (70, 9), zero=5),
    Layer((2, 3, 64), (64, 10), zero=-9),
    Layer((1, 640), (640, 16), extreme=True, most=1e-4),
    Layer((1, 16), (16, 3), tensor=True),
]
# Columns without weights.
PRUNED = [
    Layer((1, 32, 7, 5), (32, 32, 1, 1), zero=5, live=9),
    Layer((1, 16, 6, 5), (20, 16, 3, 3), pads=(1, 1, 1, 1), zero=7, live=6),
    Layer((1, 16, 67, 3), (64, 16, 1, 1), live=40),  # several blocks, the last with a point left over
    Layer((1, 64, 32, 32), (64, 64, 1, 1), live=50),  # work enough for a kernel of its own
]
OTHERS += [
    Layer((1, 128, 3, 3), (128, 128, 1, 1), zero=9, live=0),
    Layer((1, 64, 2, 1), (64, 64, 1, 1), zero=9, live=1, bias=False),
    Layer((2, 16, 9, 9), (32, 16, 1, 1), strides=(2, 2), live=13, low=-100, high=90, pad=GAP),
    Layer((1, 1, 20, 10), (28, 1, 10, 4), strides=(2, 2), pads=(4, 1, 5, 1), zero=83, live=12),
    Layer((2, 16, 6, 6), (36, 16, 1, 1), zero=200, dtype="uint8", to="uint8", low=9, high=250, live=17),
    Layer((1, 16, 30), (16, 16, 1), strides=(1,), pads=(0, 0), dilations=(1,), live=3, tensor=True),
    Layer((1, 32, 6, 6), (32, 32, 1, 1), residual=True, live=9),
    Layer((5, 70), (70, 32), zero=5, live=8),
    Layer((1, 64, 33, 31), (32, 64, 1, 1), zero=5),  # work enough for a kernel of its own
    Layer((1, 48, 3, 3), (3, 48, 1, 1), zero=5),
    Layer((1, 16, 13, 5), (261, 16, 1, 1), zero=5),  # more columns than a byte counts
    Layer((1, 32, 13, 10), (256, 32, 1, 1), zero=5, live=201, to="uint8"),
    Layer((1, 256, 2, 1), (8, 256, 1, 1), zero=0),
]
# 1x1 convolutions of one depth, whose points are even in number.
ALIKE = [
    Layer((1, 32, 6, 5), (8, 32, 1, 1), zero=9),
    Layer((1, 32, 12, 12), (31, 32, 1, 1), zero=-7),
    Layer((1, 32, 4, 4), (64, 32, 1, 1), live=9),
]


def test_usual_layers() -> None:
    check(USUAL, "helium_dot")


def test_columns_without_weights_are_neither_stored_nor_worked_out() -> None:
    result = check(PRUNED, "helium_dot")
    for seed, layer in enumerate(PRUNED):
        plan = planned(layer_region(layer, seed)[0], "helium_dot")
        whole = planned(layer_region(replace(layer, live=None), seed)[0], "helium_dot")
        kept = plan.consts[0].nbytes / whole.consts[0].nbytes
        assert kept == -(-(layer.live or 0) // 4) / (layer.w[0] // 4)
        assert plan.cost < whole.cost and result.instructions[plan.phases[0].spec.name] > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_layers(part: int) -> None:
    check(OTHERS[part::4], "helium_dot")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_layers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(12):
        kernel, stride = rng.integers(1, 5, 2), rng.integers(1, 4, 2)
        pads = [int(p) for p in (*rng.integers(0, kernel), *rng.integers(0, kernel))]
        channels, columns = rng.integers(1, 40), rng.integers(1, 20)
        size = [int(k + rng.integers(0, 9)) for k in kernel]
        dtype = "int8" if rng.random() < 0.7 else "uint8"
        zero = int(rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max))
        layers.append(
            Layer((int(rng.integers(1, 3)), int(channels), *size), (int(columns), int(channels), *map(int, kernel)))
        )
        given = {"strides": tuple(map(int, stride)), "pads": tuple(pads), "dtype": dtype, "zero": zero}
        live = int(rng.integers(0, columns)) if rng.random() < 0.5 else None
        layers[-1] = replace(layers[-1], **given, residual=bool(rng.random() < 0.3), live=live)
    check(layers, "helium_dot")


def test_layers_of_one_depth_share_a_kernel() -> None:
    names = {planned(layer_region(layer, 0)[0], "helium_dot").phases[0].spec.name for layer in ALIKE}
    assert len(names) == 1
    check(ALIKE, "helium_dot")


def test_it_is_the_cheapest_where_it_fits() -> None:
    for layer in USUAL:
        assert plans(layer_region(layer, 0)[0])[0].template == "helium_dot"


def test_a_step_of_64_products_takes_fourteen_instructions_or_less_for_two_points() -> None:
    layer = Layer((1, 64, 8, 8), (32, 64, 1, 1))
    region, _ = layer_region(layer, 0)
    (kernel,) = planned(region, "helium_dot").phases
    found = check([layer], "helium_dot").instructions[kernel.spec.name]
    products = 8 * 8 * 32 * 64
    assert found / 2 < 0.25 * products  # beside and over the input; epilogue and loops counted in


def test_weights_keep_their_size() -> None:
    region, _ = layer_region(Layer((1, 64, 8, 8), (32, 64, 3, 3), pads=(1, 1, 1, 1)), 0)
    assert planned(region, "helium_dot").consts[0].nbytes == 32 * 64 * 9


def test_other_machines_have_no_such_plan() -> None:
    region, _ = layer_region(USUAL[0], 0)
    for name in ("cortex-m4", "x86-64-v3", "rpi4"):
        assert all(p.template != "helium_dot" for p in plans(replace(region, machine=targets.get(name))))


@pytest.mark.parametrize("wide", [-300, 300])
def test_weights_beyond_eight_bits_are_left_to_others(wide: int) -> None:
    region, _ = layer_region(USUAL[0], 0)
    weights = region.inputs[1].const
    assert weights is not None
    broad = replace(region.inputs[1], const=weights.astype(np.int16) + wide)
    changed = replace(region, inputs=(region.inputs[0], broad, *region.inputs[2:]))
    assert all(p.template != "helium_dot" for p in plans(changed))
    assert M55.instruction("dot16") is not None
