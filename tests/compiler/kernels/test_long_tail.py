"""Templates of the long tail against the op table's references: every sample case, dense and in other memory orders."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, run_region, sample
from nervure import targets
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS
from nervure.compiler.ops.record import Case

MOVES = ("concat", "pad", "tile", "gather", "gather_elements", "gather_nd", "one_hot", "reshape")
WINDOWS = ("max_pool", "avg_pool", "resize", "conv_transpose", "grid_sample", "roi_align")

CHOICES = ("scatter_elements", "scatter_nd", "topk", "nonzero", "nms")


def reverse(rank):
    return tuple(reversed(range(rank)))


def last_channels(rank):
    return channels_last(rank) if rank > 2 else tuple(range(rank))


def draw(shape, dtype="float32", seed=0):
    """Random values that every element type holds exactly."""
    import ml_dtypes  # noqa: F401  (gives numpy bfloat16)

    whole = np.random.default_rng(seed).integers(0 if dtype.startswith(("u", "b")) else -9, 10, shape)
    return (whole % 2 if dtype == "bool" else whole).astype(np.dtype(dtype))


ORDERS = {"dense": (None, 0), "channels_last": (last_channels, 3), "reversed": (reverse, 1)}


def in_orders(rows, every=4):
    """Every case dense and channels-last, every fourth one in the other orders too."""
    chosen = [(row, order) for i, row in enumerate(rows) for order in (ORDERS if i % every == 0 else list(ORDERS)[:2])]
    return [pytest.param(*row.values, order, id=f"{row.id}-{order}") for row, order in chosen]


@pytest.mark.parametrize(("op", "case", "order"), in_orders(cases(*MOVES, *WINDOWS, *CHOICES)))
def test_cases(op, case, order):
    chosen, pad = ORDERS[order]
    region, arrays = region_of(op, sample(case), case.attrs, order=chosen, pad=pad)
    check_region(region, arrays)


# -- transposition -------------------------------------------------------------------------------------------------

SHAPES = [(1, 24, 5, 7), (2, 19, 16, 16), (3, 64, 1, 50)]


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", ["float32", "bool", "int64", "float16", "int8", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_copy_to_another_memory_order(shape, dtype, machine):
    x = draw(shape, dtype)
    region, arrays = region_of("copy", [x], {}, output_order=last_channels, machine=machine)
    check_region(region, arrays)
    back, arrays = region_of("copy", [x], {}, order=last_channels, output_order=range, machine=machine)
    check_region(back, arrays)


def test_transposes_are_tiled():
    region, _ = region_of("copy", [draw(SHAPES[1])], {}, output_order=last_channels)
    assert "transpose" in {p.template for p in plans(region)}


@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise_work_across_memory_orders(shape):
    """A transposed input, one in the output's order and a broadcast vector, in one body."""
    x, y = draw(shape), draw(shape, seed=1)
    bias = draw((shape[1], 1, 1), seed=2)

    def work(g, value):
        summed = g.add("add", g.add("tanh", value), extra_input(g, y))
        return g.add("relu", g.add("mul", summed, extra_input(g, bias)))

    region, arrays = region_of("copy", [x], {}, epilogue=work, output_order=last_channels)
    inputs = (region.inputs[0], replace(region.inputs[1], strides=region.outputs[0].strides), region.inputs[2])
    check_region(replace(region, inputs=inputs), arrays)


def test_transposed_slices():
    x = draw((40, 3, 50))

    def cut(g, value):
        part = g.add("slice", value, starts=(2, 2, 3), stops=(36, -1, 45), steps=(1, -1, 2))
        return g.add("transpose", part, perm=(2, 1, 0))

    region, arrays = region_of("copy", [x], {}, epilogue=cut)
    check_region(region, arrays)


# -- transposed convolution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize(("op", "case", "order"), in_orders(cases("conv_transpose"), every=2))
def test_conv_transpose_with_constant_weights(op, case, order, machine):
    chosen, pad = ORDERS[order]
    region, arrays = region_of(op, sample(case), case.attrs, order=chosen, pad=pad, consts=(1,), machine=machine)
    check_region(region, arrays)


@pytest.mark.parametrize("channels", [(40, 70), (17, 16), (64, 9), (8, 130)])
def test_conv_transpose_channel_blocks(channels):
    x, w = draw((2, channels[0], 9, 21)), draw((*channels, 4, 4), seed=1)
    attrs = {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "output_padding": (0, 0)}
    residual = draw((2, channels[1], 18, 42), seed=2)

    def after(g, y):
        return g.add("relu", g.add("add", y, extra_input(g, residual)))

    region, arrays = region_of("conv_transpose", [x, w], attrs, order=last_channels, consts=(1,), epilogue=after)
    assert len(plans(region)) == 2
    check_region(region, arrays)


# -- selection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (65, 65), (100, 70), (1000, 64), (1, 0), (129, 128)])
@pytest.mark.parametrize("largest", [True, False])
def test_topk(n, k, largest):
    """Many ties: the order of equal ones is the order of their indices."""
    region, arrays = region_of("topk", [draw((3, n))], {"k": k, "largest": largest})
    check_region(region, arrays)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "uint32", "int32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("k", [9, 35])
def test_topk_types(dtype, k):
    x = draw((100, 5, 13), dtype)
    x[3, 1:3] = np.iinfo(dtype).max if x.dtype.kind in "iu" else -np.inf
    x[40, 2:4] = np.iinfo(dtype).min if x.dtype.kind in "iu" else np.inf
    for largest in (True, False):
        region, arrays = region_of("topk", [x], {"k": k, "axis": 0, "largest": largest})
        check_region(region, arrays)


def test_topk_of_signed_zeros_and_sorted_rows():
    zeros = np.where(np.arange(200) % 3 == 0, -0.0, 0.0).astype(np.float32)
    rows = np.stack([zeros, np.arange(200, dtype=np.float32), -np.arange(200, dtype=np.float32)])
    for largest in (True, False):
        region, arrays = region_of("topk", [rows], {"k": 50, "largest": largest})
        check_region(region, arrays)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8", "float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_types_with_repeats(dtype, reduction):
    if dtype == "bool" and reduction != "none":
        pytest.skip("no sums of truth values")
    rng = np.random.default_rng(3)
    x, rows = draw((30, 3, 37), dtype), rng.integers(-30, 30, (50, 1)).astype(np.int32)
    region, arrays = region_of("scatter_nd", [x, rows, draw((50, 3, 37), dtype, 1)], {"reduction": reduction})
    check_region(region, arrays)
    at = rng.integers(-30, 30, (50, 3, 37))
    attrs = {"axis": 0, "reduction": reduction}
    for order in (None, reverse):
        region, arrays = region_of("scatter_elements", [x, at, draw(at.shape, dtype, 2)], attrs, order=order)
        check_region(region, arrays)


def test_nms_of_many_boxes():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 10, (2, 300, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 4, corners.shape).astype(np.float32)], axis=2)
    scores = rng.uniform(0, 1, (2, 3, 300)).astype(np.float32)
    attrs = {"max_output": 50, "iou_threshold": 0.4, "score_threshold": 0.3}
    region, arrays = region_of("nms", [boxes, scores], attrs)
    check_region(region, arrays)


# -- indices out of range, element types, tasks ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_stay_inside(dtype):
    """In range they are right; out of range nothing outside the tensor is read or written (guards, canaries)."""
    bounds = np.iinfo(dtype)
    wild = np.array([bounds.min, bounds.max, 3, 0], dtype)
    x = draw((5, 20))
    region, arrays = region_of("gather", [x, wild], {"axis": 0})
    (y,) = run_region(region, arrays)
    np.testing.assert_array_equal(y[2:], x[[3, 0]])
    assert np.isin(y, x).all()
    region, arrays = region_of("scatter_nd", [x, wild[:, None], draw((4, 20), seed=1)], {"reduction": "none"})
    run_region(region, arrays)


@pytest.mark.parametrize("dtype", ["float32", "bool", "int64", "uint8", "float16", "bfloat16"])
@pytest.mark.parametrize("order", ORDERS)
def test_moves_of_many_elements(dtype, order):
    """Large enough for tasks; every element type."""
    chosen, pad = ORDERS[order]
    x, y = draw((2, 70, 17, 19), dtype), draw((2, 33, 17, 19), dtype, 1)
    rows = np.random.default_rng(0).integers(-70, 70, (3, 40))
    for op, arrays, attrs in [
        ("concat", [x, y], {"axis": 1}),
        ("pad", [x], {"pads": (0, 0, 1, 2, 0, 3, 1, 2), "mode": "constant", "value": 1.0}),
        ("pad", [x], {"pads": (0, 0, 3, 2, 0, 0, 1, 2), "mode": "reflect"}),
        ("gather", [x, rows], {"axis": 1}),
        ("tile", [x], {"repeats": (1, 2, 1, 3)}),
    ]:
        region, arrays = region_of(op, arrays, attrs, order=chosen, pad=pad)
        check_region(region, arrays)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("order", ORDERS)
def test_pools_with_an_epilogue(op, order):
    chosen, pad = ORDERS[order]
    attrs = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    scale = draw((70, 1, 1), seed=1)

    def after(g, y):
        return g.add("relu", g.add("mul", y, extra_input(g, scale)))

    region, arrays = region_of(op, [draw((2, 70, 33, 31))], attrs, order=chosen, pad=pad, epilogue=after)
    check_region(region, arrays)


# -- reshape, other machines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes", [((6, 4), (4, 6)), ((5, 12, 7), (60, 7)), ((2, 9, 10), (15, 12)), ((64, 3), (3, 64))]
)
def test_reshapes_that_copy(shapes):
    for order in (None, reverse):
        region, arrays = region_of("reshape", [draw(shapes[0])], {"shape": shapes[1]}, order=order)
        check_region(region, arrays)


def one_of_each():
    """A small call of every operator here."""
    return [(op, next(iter(OPS[op].cases()))) for op in (*MOVES, *WINDOWS, *CHOICES)]


@pytest.mark.parametrize("name", ["rpi4", "armv7"])
def test_kernels_compile_for_arm(name, tmp_path):
    machine = targets.get(name)
    for op, case in [*one_of_each(), ("copy", Case((draw((1, 20, 5, 7)),)))]:
        order = (lambda rank: range(rank)) if op == "copy" else last_channels
        region, _ = region_of(op, sample(case), case.attrs, order=order, output_order=last_channels, machine=machine)
        for plan in plans(region):
            for draft in plan.phases:
                function, _ = worker.build(*json.loads(draft.spec.canonical), draft.spec.name, machine.record())
                write_object([function], machine.llvm, tmp_path / "k.o")


def test_machines_without_vectors():
    machine = replace(machines()[0], name="scalar", lanes=1, registers=16)
    for op, case in one_of_each():
        region, arrays = region_of(op, sample(case), case.attrs, machine=machine)
        check_region(region, arrays)
