"""Weights with a pattern for each output, outputs in the lanes: against the reference, and chosen where they pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import check_region, extra_input, machines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.kernels.templates import plans, sparse_lanes
from nervure.compiler.prune.patterns import Pattern
from test_sparse_rows import convolution, product, scattered

BOTH = pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
PERMUTES = targets.host().instruction("permute") is not None
needs = pytest.mark.skipif(not PERMUTES, reason="this machine has no permutation of a vector's lanes")


def n_of_m(pattern, channels=None):
    """A maker of matrices with that pattern for each output, in groups along the channels."""

    def make(rng, k, n, density):
        weights = rng.standard_normal((k, n), np.float32) / np.float32(k**0.5)
        return (weights * pattern.mask(np.abs(weights), channels or k)).astype(np.float32)

    return make


def two_of_four(channels=None):
    return n_of_m(Pattern(1, 1, 2, 4), channels)


def check(region, arrays):
    check_region(region, arrays, template="sparse_lanes")


PRODUCTS = [((1, 64), 64), ((3, 70), 33), ((16, 128), 48), ((50, 31), 100), ((2, 3, 9, 40), 72), ((5, 16), 1)]


@needs
@BOTH
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("a, columns", PRODUCTS, ids=str)
def test_products(a, columns, keep, machine):
    check(*product(a, columns, 1, matrix=n_of_m(Pattern(1, 1, keep, 4)), machine=machine))


CONVOLUTIONS = [
    ((1, 16, 9, 9), 40, (3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 20, 13, 30), 24, (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 16, 24, 40), 16, (3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((1, 40, 5, 4), 16, (5, 5), {"pads": (4, 4, 4, 4)}),
    ((2, 32, 14, 14), 48, (1, 1), {"bias": False}),
    ((1, 44, 9, 8), 7, (1, 1), {"strides": (2, 2)}),
    ((2, 24, 50), 20, (5,), {"pads": (2, 2), "strides": (2,)}),
]


@needs
@BOTH
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolutions(shape, machine):
    x, outputs, kernel, options = shape
    check(*convolution(x, outputs, kernel, 1, matrix=two_of_four(x[1]), machine=machine, **options))


@needs
def test_epilogue_and_residual():
    rng = np.random.default_rng(1)
    residual = rng.standard_normal((2, 24, 9, 9), np.float32)

    def epilogue(g, y):
        return g.add("add", g.add("relu", y), extra_input(g, residual))

    x = (2, 32, 9, 9)
    check(*convolution(x, 24, (1, 1), 1, matrix=two_of_four(), epilogue=epilogue, pad=5))


@needs
@pytest.mark.parametrize("density", [0.02, 0.2, 0.45])
def test_lists_may_be_of_any_length(density):
    region, arrays = product((9, 83), 40, density, matrix=scattered_evenly)
    check(region, arrays)


def scattered_evenly(rng, k, n, density):
    return (scattered(rng, k, n, 0) + rng.standard_normal((k, n)) * (rng.random((k, n)) < density)).astype(np.float32)


def test_what_is_kept_is_the_matrix():
    rng = np.random.default_rng(0)
    for lanes, channels, size in ((16, 40, 4), (8, 20, 8), (16, 32, 8)):
        matrix = two_of_four(channels)(rng, 2 * channels, 10, 1)
        form = replace(sparse_lanes.windows_of(matrix, channels, lanes), bits=size)
        kept = sparse_lanes.packed(matrix, form).reshape(2, form.rows, 10)
        back = np.zeros((2, channels, 10), np.float32)
        for tap in range(2):
            at = 0
            sizes = [(i * lanes, form.slots) for i in range(form.full)] + (
                [(form.last, form.rest)] if form.rest else []
            )
            for first, slots in sizes:
                each = 32 // size
                words = -(-slots // each)
                bits = np.ascontiguousarray(kept[tap, at : at + words]).view(np.uint32)
                for s in range(slots):
                    place = first + ((bits[s // each] >> np.uint32(size * (s % each))) & np.uint32(15)).astype(int)
                    back[tap, place, range(10)] += kept[tap, at + words + s]
                at += words + slots
        np.testing.assert_array_equal(back.reshape(2 * channels, 10), matrix)


@needs
@given(st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_shapes(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    keep, group = data.draw(st.sampled_from([(1, 4), (2, 4), (1, 8), (3, 8)]))
    pattern, seed = Pattern(1, 1, keep, group), draw(0, 99)
    if data.draw(st.booleans()):
        check(*product((draw(1, 60), draw(16, 90)), draw(1, 70), 1, seed, matrix=n_of_m(pattern)))
    else:
        x = (draw(1, 2), draw(16, 50), draw(3, 12), draw(3, 12))
        maker = n_of_m(pattern, x[1])
        pads = tuple(draw(0, 2) for _ in range(4))
        check(*convolution(x, draw(1, 40), (draw(1, 3), draw(1, 3)), 1, seed, matrix=maker, pads=pads))


# -- choice ----------------------------------------------------------------------------------------------------------


@needs
def test_two_of_four_is_cheaper_than_dense_and_hardly_more_than_half():
    region, _ = convolution((1, 96, 14, 14), 576, (1, 1), 1, matrix=two_of_four())
    best = plans(region)[0]
    if targets.host().lanes == 16:
        assert best.template == "sparse_lanes"
        assert sum(c.nbytes for c in best.consts) <= 0.64 * 96 * 576 * 4
    one, _ = product((1, 768), 512, 1, matrix=two_of_four())
    assert sum(c.nbytes for c in sparse_lanes.plan(one)[0].consts) <= 0.57 * 768 * 512 * 4 or targets.host().lanes < 16


def test_there_is_no_plan_without_permutations_or_for_dense_weights():
    for name in ("rpi4", "armv7"):
        assert sparse_lanes.plan(product((4, 64), 64, 1, matrix=two_of_four(), machine=targets.get(name))[0]) == []
    assert sparse_lanes.plan(product((4, 64), 64, 1, matrix=lambda r, k, n, d: np.ones((k, n), np.float32))[0]) == []
