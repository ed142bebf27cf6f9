"""Lists of weights that are zero for whole vectors of outputs: against the reference, and chosen where they pay."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from harness import channels_last, check_region, extra_input, machines, region_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import model
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.kernels import c99, worker
from nervure.compiler.kernels.templates import plans
from nervure.compiler.kernels.templates._sparse import DENSE, alive_columns, compact, sampled_density, sparse_matrix
from nervure.compiler.kernels.templates._tile import vectors
from nervure.compiler.library import run_elsewhere
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.prune.layers import layers, prepare
from nervure.compiler.prune.patterns import from_matrix, parse
from nervure.compiler.types import type_of
from nervure.errors import MissingTool
from nervure.frontends.onnx import load_onnx
from nervure.runtime.session import load

BOTH = pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)


def cells(rng, k, n, width, density):
    """Weights ``[K, N]`` that are alive in cells of ``width`` columns."""
    alive = np.repeat(rng.random((k, -(-n // width))) < density, width, axis=1)[:, :n]
    return (rng.standard_normal((k, n), np.float32) * alive / np.float32(k**0.5)).astype(np.float32)


def product(a, columns, width, density, seed=0, **options):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(a, np.float32), cells(rng, a[-1], columns, width, density)]
    return region_of("matmul", arrays, {}, consts=(1,), **options)


def convolution(x, outputs, kernel, width, density, *, strides=None, pads=None, dilations=None, seed=0, **options):
    rng = np.random.default_rng(seed)
    spatial, channels = len(kernel), x[1]
    matrix = cells(rng, channels * int(np.prod(kernel)), outputs, width, density)
    arrays = [
        rng.standard_normal(x, np.float32),
        from_matrix(matrix, (outputs, channels, *kernel), "conv"),
        rng.standard_normal(outputs, np.float32),
    ]
    attrs = {
        "strides": strides or (1,) * spatial,
        "pads": pads or (0,) * 2 * spatial,
        "dilations": dilations or (1,) * spatial,
        "group": 1,
    }
    order = options.pop("order", lambda rank: channels_last(rank) if rank == len(x) else range(rank))
    return region_of("conv", arrays, attrs, consts=(1, 2), order=order, **options)


def proposed(region):
    return [p for p in plans(region) if p.template == "sparse_blocks"]


# -- results ---------------------------------------------------------------------------------------------------------

PRODUCTS = [((1, 64), 64), ((3, 70), 33), ((16, 128), 48), ((50, 31), 100), ((2, 3, 9, 40), 72), ((64,), 33)]


@BOTH
@pytest.mark.parametrize("density", [0, 0.15, 0.6])
@pytest.mark.parametrize("a, columns", PRODUCTS, ids=str)
def test_products(a, columns, density, machine):
    check_region(*product(a, columns, 16, density, machine=machine), template="sparse_blocks")


CONVOLUTIONS = [
    ((1, 16, 9, 9), 40, (3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 20, 13, 30), 24, (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 8, 7, 7), 32, (5, 3), {"pads": (2, 1, 2, 1)}),
    ((1, 16, 24, 40), 16, (3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((1, 12, 5, 4), 16, (5, 5), {"pads": (4, 4, 4, 4)}),
    ((2, 32, 14, 14), 48, (1, 1), {}),
    ((1, 32, 15, 15), 20, (1, 1), {"strides": (2, 2)}),
    ((1, 12, 6, 5), 24, (1, 1), {"pads": (0, 0, 1, 1)}),
    ((2, 8, 20), 40, (5,), {"pads": (2, 2)}),
    ((1, 4, 5, 6, 7), 24, (3, 3, 3), {"pads": (1,) * 6}),
    ((1, 4, 6, 5, 5), 24, (3, 1, 1), {"pads": (1, 0, 0, 1, 0, 0)}),
]


@BOTH
@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("x, outputs, kernel, more", CONVOLUTIONS, ids=str)
def test_convolutions(x, outputs, kernel, more, density, machine):
    check_region(*convolution(x, outputs, kernel, 16, density, machine=machine, **more), template="sparse_blocks")


def test_weights_that_are_all_zero_leave_the_bias():
    check_region(*convolution((1, 8, 6, 6), 16, (3, 3), 16, 0, pads=(1,) * 4), template="sparse_blocks")


def test_groups_with_everything_beside_groups_with_nothing():
    region, arrays = product((5, 64), 96, 16, 0.3)
    weights = arrays[1]
    weights[:, :32] = 1
    weights[:, 32:64] = 0
    region = replace(region, inputs=(region.inputs[0], replace(region.inputs[1], const=weights)))
    check_region(region, arrays, template="sparse_blocks")


def test_planes_and_padded_rows():
    more = {"pads": (1,) * 4, "order": range, "output_order": range}
    check_region(*convolution((1, 8, 12, 12), 16, (3, 3), 16, 0.4, **more), template="sparse_blocks")
    check_region(*product((40, 33), 50, 16, 0.4, pad=7), template="sparse_blocks")


def test_places_beyond_two_bytes():
    region, arrays = convolution((1, 3, 260, 250), 16, (3, 3), 16, 0.4, order=range, output_order=range)
    (plan,) = proposed(region)
    assert plan.phases[0].spec.config["lists"]["dtype"] == "int32"
    check_region(region, arrays, template="sparse_blocks")


def test_epilogue_with_residual_and_runtime_bias():
    rng = np.random.default_rng(1)
    residual = rng.standard_normal((2, 24, 8, 8), np.float32)
    more = {"pads": (1,) * 4, "epilogue": lambda g, y: g.add("relu", g.add("add", y, extra_input(g, residual)))}
    check_region(*convolution((2, 16, 8, 8), 24, (3, 3), 16, 0.3, **more), template="sparse_blocks")
    bias = rng.standard_normal(48, np.float32)
    region, arrays = product((7, 64), 48, 16, 0.3, epilogue=lambda g, y: g.add("add", y, extra_input(g, bias)))
    check_region(region, arrays, template="sparse_blocks")


def test_an_epilogue_that_differs_by_batch_keeps_it_apart():
    scale = np.random.default_rng(1).standard_normal((2, 1, 1, 1), np.float32)
    region, arrays = product((2, 3, 9, 40), 72, 16, 0.3, epilogue=lambda g, y: g.add("mul", y, extra_input(g, scale)))
    assert proposed(region)[0].phases[0].spec.config["outer"]
    check_region(region, arrays, template="sparse_blocks")


@pytest.mark.parametrize("columns", [77, 19, 15])
def test_unpadded_columns(columns):
    region, arrays = product((9, 40), columns, 4, 0.2, small=True)
    check_region(region, arrays, template="sparse_blocks")
    assert proposed(region)[0].phases[0].spec.config["columns"]["rests"]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 17)),
    channels=st.sampled_from([3, 8, 17]),
    outputs=st.sampled_from([8, 16, 40]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    density=st.sampled_from([0.0, 0.05, 0.3, 0.8]),
    seed=st.integers(0, 99),
)
def test_any_convolution(size, channels, outputs, kernel, strides, pads, density, seed):
    x = (1, channels, *size)
    region, arrays = convolution(x, outputs, kernel, 8, density, strides=strides, pads=pads, seed=seed)
    if proposed(region):
        check_region(region, arrays, template="sparse_blocks")
    elif (matrix := sparse_matrix(region)) is not None:
        assert alive_columns(matrix, vectors(outputs, region.machine.lanes)[0]).mean() > DENSE


def elsewhere():
    """A network of a strided, a padded, a pointwise convolution and a product, its weights in blocks."""
    rng = np.random.default_rng(3)
    graph = Graph("blocks")
    image = rng.standard_normal((1, 8, 12, 12), np.float32)
    value = graph.input("x", type_of(image))
    for i, (c, o, kernel, stride) in enumerate([(8, 24, 3, 1), (24, 40, 3, 2), (40, 32, 1, 1)]):
        weights = from_matrix(cells(rng, c * kernel**2, o, 8, 0.3), (o, c, kernel, kernel), "conv")
        bias = graph.const(rng.standard_normal(o, np.float32), f"b{i}")
        pads = (kernel // 2,) * 4
        attrs = {"strides": (stride,) * 2, "pads": pads, "dilations": (1, 1), "group": 1}
        value = graph.add("relu", graph.add("conv", value, graph.const(weights, f"w{i}"), bias, **attrs))
    value = graph.add("reshape", value, shape=(1, 32 * 36))
    value = graph.add("matmul", value, graph.const(cells(rng, 32 * 36, 48, 8, 0.2), "w"))
    graph.output(value)
    return graph, {"x": image}


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ["rpi4", "armv7"])
def test_under_emulators(target, tmp_path):
    graph, feeds = elsewhere()
    machine = targets.get(target)
    artifact = compile_entries([EntryGraph(graph)], machine, tmp_path / "n.so", Options(check=True))
    try:
        (have,) = run_elsewhere(artifact, machine, feeds)
    except MissingTool as missing:
        pytest.skip(str(missing))
    (want,) = interpret(graph, list(feeds.values()))
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc (apt-get install gcc)")
def test_one_lane_and_portable_c(tmp_path):
    machine = replace(machines()[0], name="one lane", lanes=1, registers=16, features=())
    region, arrays = product((5, 40), 24, 4, 0.3, machine=machine)
    check_region(region, arrays, template="sparse_blocks")
    (draft,) = proposed(region)[0].phases
    function, _ = worker.build(draft.spec.template, dict(draft.spec.config), draft.spec.name, machine.record())
    (tmp_path / "k.c").write_text(c99.unit([function]))
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-c", "k.c"], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_a_real_network(tmp_path):
    """The wide layers of the shipped MobileNet in 2:4 shared by the outputs of a vector: lists, half the file, and
    the results of the same network interpreted."""
    path, feeds = model("shipped")
    machine = targets.host()
    whole = prepare(load_onnx(path))
    thin, masked = whole.copy(), 0
    for layer in layers(whole):
        if layer.group == 1 and layer.channels >= machine.lanes:
            node = whole.args(layer.node)[1].node
            matrix = layer.matrix(whole.node(node).array)
            mask = parse("2:4v", machine).mask(np.abs(matrix), layer.channels)
            thin.set_node(node, attrs={"value": layer.array(matrix * mask).astype(np.float32)})
            masked += 1
    program, _ = plan_program([EntryGraph(thin)], machine, Options())
    assert sum("lists" in step.detail for step in program.entries[0].steps) >= 0.9 * masked
    sizes = []
    for name, graph in (("whole", whole), ("thin", thin)):
        compile_entries([EntryGraph(graph)], machine, tmp_path / f"{name}.so")
        sizes.append((tmp_path / f"{name}.so").stat().st_size)
    assert sizes[1] < 0.65 * sizes[0]
    (have,) = load(tmp_path / "thin.so", threads=1).run(None, feeds)
    (want,) = interpret(thin, [feeds[thin.node(n).names[0]] for n in thin.inputs])
    np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-5)


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern, density", [("2:4x16", 0.5), ("1:4x16", 0.25), ("2:8x16", 0.25)])
def test_bytes_shrink_with_the_weights(pattern, density):
    machine = machines()[0]
    weights = np.random.default_rng(0).standard_normal((256, 512), np.float32)
    weights *= parse(pattern, machine).mask(np.abs(weights), 256)
    x = np.ones((4, 256), np.float32)
    region, _ = region_of("matmul", [x, weights], {}, consts=(1,), machine=machine)
    best = plans(region)[0]
    assert best.template == "sparse_blocks"
    kept = sum(c.nbytes for c in best.consts) / weights.nbytes
    assert density <= kept <= density * (1 + 2 / machine.vector_bytes) + 0.01


def test_equal_shapes_share_a_kernel():
    names = {proposed(product((8, 128), 128, 16, 0.25, seed=s)[0])[0].phases[0].spec.name for s in range(3)}
    assert len(names) == 1


def test_neighbouring_vectors_share_their_list_where_their_zeros_are_the_same():
    machine = targets.get("x86-64-v3")
    for width, shared in ((8, 1), (16, 2)):
        region, _ = product((64, 256), 256, width, 0.25, machine=machine)
        assert proposed(region)[0].phases[0].spec.config["columns"]["nv"] == shared


def test_compact_places():
    small, unit = compact(np.array([0, 64, 1 << 20]))
    assert (small.dtype, unit, small.tolist()) == (np.uint16, 64, [0, 1, 1 << 14])
    wide, unit = compact(np.array([0, 3, 1 << 20]))
    assert (wide.dtype, unit) == (np.int32, 1)
    assert compact(np.zeros(0, np.int64))[1] == 1


# -- what is chosen --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("rows", [1, 16, 128])
@pytest.mark.parametrize("density, gain", [(0.25, 2.0), (0.1, 3.5)])
def test_sparse_products_are_expected_to_pay(rows, density, gain, machine):
    dense = plans(product((rows, 768), 3072, 16, 1, machine=machine)[0])
    sparse = plans(product((rows, 768), 3072, 16, density, machine=machine)[0])
    assert sparse[0].template == "sparse_blocks" and all(p.template != "sparse_blocks" for p in dense)
    assert dense[0].cost / sparse[0].cost >= gain


@BOTH
def test_what_does_not_pay_is_not_chosen(machine):
    """Against Winograd half of the weights are too many; against a direct convolution they are not."""
    options = {"pads": (1,) * 4, "machine": machine}
    half = plans(convolution((1, 64, 56, 56), 64, (3, 3), 16, 0.5, **options)[0])
    assert half[0].template == "winograd" and any(p.template == "sparse_blocks" for p in half)
    tenth = plans(convolution((1, 64, 56, 56), 64, (3, 3), 16, 0.1, **options)[0])
    assert tenth[0].template == "sparse_blocks"
    strided = plans(convolution((1, 64, 56, 56), 64, (3, 3), 16, 0.5, strides=(2, 2), **options)[0])
    assert strided[0].template == "sparse_blocks"


def test_scattered_zeros_do_not_make_lists():
    """One weight in four anywhere leaves no vector of 16 outputs out, or nearly none."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((256, 256), np.float32) * (rng.random((256, 256)) < 0.25)
    region, _ = region_of("matmul", [np.ones((16, 256), np.float32), weights.astype(np.float32)], {}, consts=(1,))
    assert plans(region)[0].template != "sparse_blocks"


def test_dense_weights_are_known_by_a_sample():
    rng = np.random.default_rng(0)
    large = rng.standard_normal((3000, 3333), np.float32)
    start = time.perf_counter()
    assert sampled_density(large) == 1.0
    assert time.perf_counter() - start < 0.05  # looked at in part: all of it would take longer than that in a loop
    large[:, :1700] = 0
    assert 0.4 < sampled_density(large) < 0.6
    assert 0.4 < sampled_density(np.asfortranarray(large)) < 0.6
    assert sampled_density(large[:64, 1650:1750]) == pytest.approx(0.5)
