"""Weights with zeros anywhere, rows in the lanes: against the reference, and chosen where they pay."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from harness import channels_last, check_region, extra_input, machines, region_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.templates import _sparse_rows_pack, plans, sparse_rows
from nervure.compiler.kernels.templates._sparse_rows_pack import Cut
from nervure.compiler.library import run_elsewhere
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.prune.patterns import from_matrix
from nervure.compiler.types import type_of
from nervure.errors import MissingTool

BOTH = pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)


def scattered(rng, k, n, density):
    """Weights ``[K, N]`` of which single ones are alive; one output has none, one has all."""
    alive = rng.random((k, n)) < density
    if n > 2 and density:
        alive[:, 0], alive[:, n // 2] = False, True
    return (rng.standard_normal((k, n), np.float32) * alive / np.float32(k**0.5)).astype(np.float32)


def product(a, columns, density, seed=0, matrix=scattered, **options):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(a, np.float32), matrix(rng, a[-1], columns, density)]
    return region_of("matmul", arrays, {}, consts=(1,), **options)


def convolution(x, outputs, kernel, density, seed=0, matrix=scattered, bias=True, **options):
    rng = np.random.default_rng(seed)
    spatial, channels = len(kernel), x[1]
    weights = matrix(rng, channels * int(np.prod(kernel)), outputs, density)
    arrays = [
        rng.standard_normal(x, np.float32),
        from_matrix(weights, (outputs, channels, *kernel), "conv"),
        rng.standard_normal(outputs, np.float32) if bias else None,
    ]
    attrs = {
        "strides": options.pop("strides", (1,) * spatial),
        "pads": options.pop("pads", (0,) * 2 * spatial),
        "dilations": options.pop("dilations", (1,) * spatial),
        "group": 1,
    }
    order = options.pop("order", lambda rank: channels_last(rank) if rank == len(x) else range(rank))
    return region_of("conv", arrays, attrs, consts=(1, 2) if bias else (1,), order=order, **options)


def check(region, arrays):
    check_region(region, arrays, template="sparse_rows")


# -- results ---------------------------------------------------------------------------------------------------------

PRODUCTS = [((1, 64), 64), ((3, 70), 33), ((16, 128), 48), ((50, 31), 100), ((2, 3, 9, 40), 72), ((5, 16), 1)]


@BOTH
@pytest.mark.parametrize("density", [0, 0.1, 0.6])
@pytest.mark.parametrize("a, columns", PRODUCTS, ids=str)
def test_products(a, columns, density, machine):
    check(*product(a, columns, density, machine=machine))


def test_a_vector_is_one_row():
    check(*product((64,), 33, 0.2))


CONVOLUTIONS = [
    ((1, 16, 9, 9), 40, (3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 20, 13, 30), 24, (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 8, 7, 7), 33, (5, 3), {"pads": (2, 1, 2, 1)}),
    ((1, 16, 24, 40), 16, (3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((1, 12, 5, 4), 16, (5, 5), {"pads": (4, 4, 4, 4)}),
    ((2, 32, 14, 14), 48, (1, 1), {"bias": False}),
    ((1, 40, 9, 8), 7, (1, 1), {"strides": (2, 2)}),
    ((2, 24, 50), 20, (5,), {"pads": (2, 2), "strides": (2,)}),
    ((1, 3, 12, 12), 8, (3, 3), {"pads": (1, 1, 1, 1), "order": range}),
]


@BOTH
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolutions(shape, machine):
    x, outputs, kernel, options = shape
    check(*convolution(x, outputs, kernel, 0.2, machine=machine, **options))


def test_padded_rows_and_channel_slices():
    check(*product((40, 33), 50, 0.2, pad=7))
    check(*convolution((1, 18, 9, 9), 24, (3, 3), 0.2, pads=(1, 1, 1, 1), pad=5))


@pytest.mark.parametrize("long", [False, True], ids=["written out", "rolled"])
def test_epilogues(long):
    rng = np.random.default_rng(1)
    bias, residual = rng.standard_normal(24, np.float32), rng.standard_normal((2, 24, 9, 9), np.float32)

    def epilogue(g, y):
        y = g.add("relu", g.add("add", y, extra_input(g, bias.reshape(24, 1, 1))))
        y = g.add("add", y, extra_input(g, residual))
        return g.add("tanh", g.add("mul", g.add("abs", y), y)) if long else y

    check(*convolution((2, 16, 9, 9), 24, (3, 3), 0.2, pads=(1, 1, 1, 1), epilogue=epilogue))


def test_an_output_whose_lines_do_not_join_is_addressed_by_coordinates():
    region, arrays = convolution((1, 16, 6, 6), 24, (3, 3), 0.2, pads=(1, 1, 1, 1))
    (out,) = region.outputs
    strides = (*out.strides[:2], out.strides[2] + 48, out.strides[3])
    region = replace(region, outputs=(replace(out, strides=strides),))
    check(region, arrays)


CUTS = [Cut(48, 32, 4), Cut(16, 64, 1), Cut(96, 48, 3), Cut(32, 320, 2)]


@pytest.mark.parametrize("rows", [16, 5, 77])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_cut_gives_the_same(cut, rows, monkeypatch):
    def choose(machine, problem, count, epilogue, *room):
        tiles = sparse_rows.kinds(problem.rows, machine.lanes, 2)
        return sparse_rows._timed(machine, problem, tiles, replace(cut, block=min(cut.block, 300)), count, epilogue)

    monkeypatch.setattr(sparse_rows, "choose", choose)
    check(*product((rows, 300), 96, 0.1))
    if cut.block == 64:  # two taps of 32 channels
        check(*convolution((1, 32, 9, 7), 48, (3, 3), 0.1, pads=(1, 1, 1, 1)))


def test_what_is_kept_is_the_matrix():
    matrix = scattered(np.random.default_rng(0), 70, 50, 0.2)
    for cut in CUTS:
        found = _sparse_rows_pack.pack(matrix, cut)
        back = np.zeros((70, 200), np.float32)
        starts = found.starts.reshape(-1, -(-70 // cut.block), 3)
        for n, blocks in enumerate(starts):
            for block, (head, at, groups) in enumerate(blocks):
                for h in found.heads[head : head + groups * (cut.together + 1)].reshape(groups, -1):
                    for _ in range(h[0]):
                        for i in range(cut.together):
                            column = n * cut.chunk + h[1 + i] if h[1 + i] < cut.chunk else 199
                            back[block * cut.block + found.index[at], column] += found.weights[at]
                            at += 1
        np.testing.assert_array_equal(back[:, :50], matrix)


@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_shapes(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    density, seed = data.draw(st.sampled_from([0.02, 0.1, 0.5])), draw(0, 99)
    if data.draw(st.booleans()):
        check(*product((draw(1, 3), draw(1, 60), draw(1, 90)), draw(1, 70), density, seed))
    else:
        kernel = (draw(1, 3), draw(1, 3))
        size = [draw(k, 12) for k in kernel]
        pads = tuple(draw(0, 2) for _ in range(4))
        strides = (draw(1, 2), draw(1, 2))
        x = (draw(1, 2), draw(1, 40), *size)
        check(*convolution(x, draw(1, 40), kernel, density, seed, pads=pads, strides=strides))


# -- choice ----------------------------------------------------------------------------------------------------------


def test_nine_zeros_of_ten_are_left_out_and_a_dense_layer_is_not_looked_at():
    region, _ = product((16, 768), 3072, 0.1)
    best = plans(region)[0]
    assert best.template == "sparse_rows"
    assert sum(c.nbytes for c in best.consts) <= 0.16 * 768 * 3072 * 4
    dense, _ = product((16, 768), 3072, 1.0, matrix=lambda rng, k, n, d: rng.standard_normal((k, n), np.float32))
    start = time.perf_counter()
    assert sparse_rows.plan(dense) == []
    assert time.perf_counter() - start < 5e-3
    half, _ = product((16, 768), 3072, 0.7)
    assert plans(half)[0].template != "sparse_rows"


def test_the_cost_falls_with_the_zeros():
    costs = [sparse_rows.plan(product((64, 256), 256, d)[0])[0].cost for d in (0.05, 0.1, 0.3, 0.6)]
    assert costs == sorted(costs)


@pytest.mark.slow
def test_the_library_shrinks_with_the_weights(tmp_path):
    sizes = []
    for density in (1.0, 0.1):
        g = Graph("layer")
        rng = np.random.default_rng(0)
        x = rng.standard_normal((16, 768)).astype(np.float32)
        w = scattered(rng, 768, 3072, density)
        g.output(g.add("matmul", g.input("x", type_of(x)), g.const(w)))
        path = tmp_path / f"{density}.so"
        compile_entries([EntryGraph(g, "infer")], targets.host(), path, Options())
        sizes.append(path.stat().st_size)
    assert sizes[1] <= 0.2 * sizes[0]


# -- elsewhere -------------------------------------------------------------------------------------------------------


def chain(seed: int) -> tuple[Graph, np.ndarray]:
    """A convolution with borders, one of a tap, and a product, nine weights of ten zero."""
    rng = np.random.default_rng(seed)
    g = Graph("chain")
    x = rng.standard_normal((1, 24, 12, 11)).astype(np.float32)
    y = g.input("x", type_of(x))
    for outputs, kernel in ((40, 3), (70, 1)):
        channels = g.type(y).dims[1]
        w = from_matrix(scattered(rng, channels * kernel**2, outputs, 0.1), (outputs, channels, kernel, kernel), "conv")
        bias = g.const(rng.standard_normal(outputs).astype(np.float32))
        window = {"strides": (1, 1), "pads": (kernel // 2,) * 4, "dilations": (1, 1), "group": 1}
        y = g.add("relu", g.add("conv", y, g.const(w), bias, **window))
    y = g.add("reshape", g.add("transpose", y, perm=(0, 2, 3, 1)), shape=(132, 70))
    g.output(g.add("matmul", y, g.const(scattered(rng, 70, 50, 0.1))))
    return g, x


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ["rpi4", "armv7"])
def test_on_arm(target, tmp_path):
    graph, x = chain(0)
    machine = targets.get(target)
    entry = EntryGraph(graph, "chain")
    program, _ = plan_program([entry], machine, Options())
    assert sum("sparse rows" in s.detail for e in program.entries for s in e.steps) == 3
    artifact = compile_entries([entry], machine, tmp_path / "chain.so", Options(check=True))
    try:
        (got,) = run_elsewhere(artifact, machine, {"x": x}, entry="chain")
    except MissingTool as missing:
        pytest.skip(str(missing))
    np.testing.assert_allclose(got, interpret(graph, [x])[0], rtol=1e-4, atol=1e-5)
