"""Transposed convolutions (the gradient of a convolution's x): weights known at run time or before, any stride."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import channels_last, check_region, dense, extra_input, machines, region_of
from nervure import targets
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.templates import plans

SHAPES = [  # x, w, strides, pads, dilations, output_padding, group
    ((4, 16, 9, 11), (16, 16, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (0, 0), 1),
    ((2, 32, 8, 8), (32, 16, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1),
    ((16, 32, 8, 8), (32, 16, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), (1, 1), 1),
    ((3, 48, 7, 6), (48, 40, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (0, 0), 1),
    ((2, 16, 10, 10), (16, 6, 5, 5), (1, 1), (0, 0, 0, 0), (1, 1), (0, 0), 1),
    ((8, 64, 25, 5), (64, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (0, 0), 64),
    ((8, 64, 12, 12), (64, 1, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 64),
    ((1, 20, 9, 7), (20, 1, 5, 5), (2, 3), (2, 0, 1, 3), (1, 1), (0, 2), 20),
    ((2, 12, 6, 5), (12, 7, 4, 3), (3, 2), (1, 0, 2, 1), (1, 1), (2, 0), 3),
    ((1, 24, 9, 9), (24, 20, 3, 3), (2, 2), (2, 2, 2, 2), (2, 2), (0, 1), 1),
    ((1, 24, 9, 9), (24, 20, 3, 3), (2, 2), (1, 1, 1, 1), (3, 3), (0, 1), 1),
    ((2, 8, 40), (8, 16, 7), (3,), (2, 3), (1,), (1,), 1),
    ((2, 40, 33), (40, 1, 5), (1,), (4, 0), (1,), (0,), 40),
    ((2, 6, 4, 5, 3), (6, 12, 3, 3, 3), (2, 1, 2), (1, 1, 1, 1, 1, 1), (1, 1, 1), (1, 0, 1), 1),
    ((2, 6, 4, 5, 3), (6, 1, 3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), (0, 1, 0), 6),
    ((1, 16, 3, 3), (16, 32, 1, 1), (1, 1), (1, 1, 1, 1), (1, 1), (0, 0), 1),
]


def build(shape, *, machine, consts=(), order=channels_last, **options):
    x, w, strides, pads, dilations, output_padding, group = shape
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, w)]
    arrays[1] /= np.sqrt(np.prod(w) / w[1])
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    attrs["output_padding"] = output_padding
    region, given = region_of("conv_transpose", arrays, attrs, order=order, consts=consts, machine=machine, **options)
    weights = region.inputs[1]
    return replace(region, inputs=(region.inputs[0], replace(weights, strides=dense(w)), *region.inputs[2:])), given


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_known_at_run_time(shape, machine):
    region, arrays = build(shape, machine=machine)
    assert len(plans(region)) > 1
    check_region(region, arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constant_weights(shape):
    check_region(*build(shape, machine=machines()[0], consts=(1,)))


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_planes(shape):
    check_region(*build(shape, machine=machines()[0], order=range))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[2], SHAPES[6]], ids=str)
def test_another_gradient_is_added(shape):
    region, _ = build(shape, machine=machines()[0])
    other = np.random.default_rng(1).standard_normal(region.anchor_type.dims, np.float32)
    region, arrays = build(
        shape, machine=machines()[0], epilogue=lambda g, y: g.add("relu", g.add("add", y, extra_input(g, other)))
    )
    check_region(region, arrays)


@pytest.mark.parametrize("name", ["aarch64", "armv7"])
def test_kernels_are_made_for_other_machines(name, tmp_path):
    machine = targets.get(name)
    for shape in (SHAPES[1], SHAPES[6]):
        region, _ = build(shape, machine=machine)
        for draft in plans(region)[0].phases:
            spec, row = draft.spec, machine.record()
            function, tasks = worker.build(spec.template, dict(spec.config), spec.name, row)
            assert tasks == draft.tasks
            write_object([function], machine.record()["llvm"], tmp_path / "k.o")
