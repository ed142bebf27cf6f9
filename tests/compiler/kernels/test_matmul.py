"""Matrix products against the reference: shapes, batches, memory orders of both operands, epilogues."""

from __future__ import annotations

import numpy as np
import pytest
from harness import cases, check_region, extra_input, machines, region_of, sample
from nervure.compiler.kernels.templates import plans

SHAPES = [
    ((1, 640), (640, 128)),
    ((1, 64), (64, 12)),
    ((128, 256), (256, 256)),
    ((1, 197, 192), (192, 576)),
    ((2, 3, 50, 24), (24, 77)),
    ((3, 19, 64), (3, 64, 197)),
    ((2, 1, 9, 30), (1, 3, 30, 10)),
    ((64,), (64, 33)),
    ((17, 64), (64,)),
    ((5, 1, 48), (48, 1000)),
]


def build(a, b, *, consts=(1,), seed=0, **options):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s, np.float32) for s in (a, b)]
    arrays[1] /= np.sqrt(a[-1])
    return region_of("matmul", arrays, {}, consts=consts, **options)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("a, b", SHAPES, ids=str)
def test_constant_b(a, b, machine):
    check_region(*build(a, b, machine=machine))


@pytest.mark.parametrize("a, b", SHAPES, ids=str)
def test_b_read_where_it_lies(a, b):
    region, arrays = build(a, b, consts=())
    check_region(region, arrays)
    assert len(plans(region)[0].phases) == 1


def swapped(rank):
    return range(rank) if rank < 2 else (*range(rank - 2), rank - 1, rank - 2)


@pytest.mark.parametrize("consts", [(), (1,)], ids=["run time", "constant"])
@pytest.mark.parametrize("a, b", SHAPES[1:7], ids=str)
def test_transposed_operands(a, b, consts):
    check_region(*build(a, b, consts=consts, order=swapped, output_order=range))


def test_bias_activation_and_residual_on_joined_batches():
    rng = np.random.default_rng(1)
    bias, residual = (rng.standard_normal(s, np.float32) for s in ((77,), (2, 3, 50, 77)))

    def epilogue(g, y):
        y = g.add("relu", g.add("add", y, extra_input(g, bias)))
        return g.add("add", y, extra_input(g, residual))

    region, arrays = build(*SHAPES[4], epilogue=epilogue)
    check_region(region, arrays)
    assert plans(region)[0].phases[0].spec.config["outer"] == []


def test_an_epilogue_that_differs_by_batch_keeps_it_apart():
    scale = np.random.default_rng(1).standard_normal((2, 1, 1, 1), np.float32)
    region, arrays = build(*SHAPES[4], epilogue=lambda g, y: g.add("mul", y, extra_input(g, scale)))
    check_region(region, arrays)


def test_padded_rows():
    check_region(*build((40, 33), (33, 50), pad=7))


@pytest.mark.parametrize("op, case", cases("matmul"))
@pytest.mark.parametrize("consts", [(), (1,)], ids=["run time", "constant"])
def test_sample_cases(op, case, consts):
    arrays = sample(case)
    check_region(*region_of(op, arrays, case.attrs, consts=consts))
