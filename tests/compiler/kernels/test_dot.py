"""Integer convolutions and matrix products by folding instructions, bit for bit as the op table says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.kernels.templates import plans
from nervure.compiler.kernels.templates._dot_plan import cover, kit
from nervure.targets import MACHINES, x86

SYSTEMS = [m for m in MACHINES.values() if m.system == "linux"]  # others have templates of their own

SHAPES = [  # x, w, strides, pads, dilations, group
    ((1, 16, 14, 14), (32, 16, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 3, 33, 31), (24, 3, 3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    ((1, 3, 20, 45), (16, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((1, 48, 9, 11), (10, 48, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 20, 12, 10), (144, 20, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((1, 16, 30, 40), (16, 16, 3, 3), (1, 1), (5, 5, 5, 5), (5, 5), 1),
    ((1, 24, 7, 1), (96, 24, 3, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 12, 10, 9), (21, 4, 3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 3),
    ((1, 8, 5, 5), (7, 8, 5, 5), (1, 1), (4, 4, 4, 4), (1, 1), 1),
    ((1, 1, 49, 10), (64, 1, 10, 4), (2, 2), (4, 1, 5, 1), (1, 1), 1),
    ((1, 8, 200), (16, 8, 3), (1,), (64, 64), (64,), 1),
    ((1, 10, 5, 6, 7), (12, 10, 3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    ((1, 40, 1, 1), (10, 40, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 3, 9, 9), (8, 3, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 30, 8, 8), (60, 10, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 3),
    ((1, 4, 11, 11), (6, 2, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    ((2, 5, 6, 7), (9, 5, 2, 3), (1, 1), (0, 0, 0, 0), (2, 1), 1),
    ((1, 128, 7, 7), (300, 128, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]
ACTIVATIONS = {"uint8": (0, 255), "int8": (-128, 127)}


def requantized(channels: int, rank: int, to: str = "int8"):
    """An epilogue that takes sums to 8 bits with a multiplier for each channel."""
    each = np.random.default_rng(3).uniform(1e-4, 4e-3, (channels, *[1] * rank)).astype(np.float32)
    bounds = {"x_zero_point": 0, "zero_point": 7, "low": None, "high": None, "to": to}
    return lambda g, y: g.add("requantize", y, extra_input(g, each), **bounds)


def conv(shape, machine, dtype="uint8", *, zero=3, weights=(-127, 127), seed=0, **options):
    x, w, strides, pads, dilations, group = shape
    rng = np.random.default_rng(seed)
    low, high = ACTIVATIONS[dtype]
    kind = np.int8 if weights[0] >= -128 and weights[1] <= 127 else np.int16
    arrays = [
        rng.integers(low, high, x, endpoint=True).astype(dtype),
        rng.integers(*weights, w, endpoint=True).astype(kind),
        rng.integers(-(1 << 14), 1 << 14, w[0]).astype(np.int32),
    ]
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "zero_point": zero}
    options = {"order": channels_last, **options}
    order = options.pop("order")
    return region_of(
        "conv_integer",
        arrays,
        attrs,
        order=lambda rank: order(rank) if rank == len(x) else range(rank),
        consts=(1, 2),
        machine=machine,
        **options,
    )


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(shape, dtype, machine):
    epilogue = requantized(shape[1][0], len(shape[0]) - 2, dtype)
    check_region(
        *conv(shape, machine, dtype, zero=-7 if dtype == "int8" else 130, epilogue=epilogue), template="dot_conv"
    )


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 2, 7, 10, 11, 13)], ids=str)
def test_reads_planes_writes_sums_channels_last(shape, machine):
    check_region(*conv(shape, machine, order=range, output_order=channels_last), template="dot_conv")


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4], SHAPES[7]], ids=str)
def test_weights_that_are_computed_are_left_to_others(shape):
    """As while a network is trained."""
    region, arrays = conv(shape, machines()[0], "int8", epilogue=requantized(shape[1][0], 2))
    region = replace(region, inputs=tuple(replace(o, const=None) for o in region.inputs))
    assert all(p.template != "dot_conv" for p in plans(region))
    check_region(region, arrays)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4], SHAPES[7]], ids=str)
@pytest.mark.parametrize("weights", [(-200, 40), (-10, 245), (-255, 0)], ids=str)
def test_weights_that_an_offset_brings_to_8_bits(shape, weights, machine):
    """As those of asymmetric uint8 weights, from which the importer has taken the zero point."""
    region, arrays = conv(shape, machine, "int8", weights=weights, zero=-128)
    check_region(region, arrays, template="dot_conv")


def test_weights_that_span_more_are_left_to_others():
    region, arrays = conv(SHAPES[0], machines()[0], weights=(-255, 255))
    assert all(p.template != "dot_conv" for p in plans(region))
    check_region(region, arrays)


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
def test_channels_of_a_wider_buffer_and_a_residual(machine):
    """Pixels lie apart, and the residual may share the result's buffer."""
    shape = SHAPES[0]
    residual = np.random.default_rng(1).integers(0, 256, (1, 32, 14, 14)).astype(np.uint8)
    weights = [np.asarray(v, np.int32) for v in (70000, 40000)]

    def epilogue(g, y):
        steps = requantized(32, 2, "uint8")(g, y)
        bounds = {"a_zero_point": 1, "b_zero_point": 2, "zero_point": 9, "low": 9, "high": None, "to": "uint8"}
        return g.add("add_integer", steps, extra_input(g, residual), *(extra_input(g, v) for v in weights), **bounds)

    region, arrays = conv(shape, machine, epilogue=epilogue, pad=5)
    check_region(region, arrays, template="dot_conv")
    assert (4, 0) in next(p for p in plans(region) if p.template == "dot_conv").inplace


@pytest.mark.parametrize("op, case", cases("conv_integer", "matmul_integer"))
@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
def test_sample_cases(op, case, machine):
    arrays = sample(case)
    region, given = region_of(op, arrays, case.attrs, consts=range(1, len(arrays)), machine=machine)
    check_region(region, given)


def product(
    a, b, machine, dtype="uint8", *, zero=5, b_zero=0, bias=True, weights=(-127, 127), epilogue=None, **options
):
    rng = np.random.default_rng(0)
    low, high = ACTIVATIONS[dtype]
    arrays = [
        rng.integers(low, high, a, endpoint=True).astype(dtype),
        rng.integers(*weights, b, endpoint=True).astype(np.uint8 if weights[1] > 127 else np.int8),
    ]
    if bias:
        arrays.append(rng.integers(-9999, 9999, b[-1]).astype(np.int32))
    attrs = {"zero_point": zero, "b_zero_point": b_zero}
    consts = range(1, len(arrays))
    return region_of("matmul_integer", arrays, attrs, consts=consts, machine=machine, epilogue=epilogue, **options)


PRODUCTS = [
    ((1, 640), (640, 128)),
    ((1, 67), (67, 10)),
    ((16, 65), (65, 40)),
    ((128, 64), (64, 64)),
    ((2, 3, 33), (33, 17)),
    ((2, 3, 12), (2, 12, 20)),
    ((7, 4), (4, 1)),
    ((3, 40, 24), (24, 96)),
]


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_product(shapes, dtype, machine):
    check_region(*product(*shapes, machine, dtype, bias=len(shapes[1]) == 2), template="dot_matmul")


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
def test_product_with_a_zero_point_on_both_sides(machine):
    check_region(*product((9, 33), (33, 70), machine, weights=(0, 255), b_zero=131), template="dot_matmul")


def test_product_whose_weights_are_not_known_is_left_to_others():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-99, 99, s).astype(np.int8) for s in ((2, 8, 12), (2, 12, 8))]
    check_region(*region_of("matmul_integer", arrays, {"zero_point": 3, "b_zero_point": -4}, machine=machines()[0]))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_drawn_convolutions(data):
    draw = data.draw
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    depth, columns = draw(st.integers(1 + (group > 1), 37)), draw(st.integers(1, 40))
    kernel = [draw(st.integers(1, 5)) for _ in range(2)]
    dilations = [draw(st.integers(1, 2)) for _ in range(2)]
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
    size = [
        draw(st.integers(max(1, (k - 1) * d + 1 - pads[i] - pads[i + 2]), 24))
        for i, (k, d) in enumerate(zip(kernel, dilations, strict=True))
    ]
    x = (draw(st.integers(1, 2)), depth * group, *size)
    w = (columns * group, depth, *kernel)
    strides = tuple(draw(st.integers(1, 3)) for _ in range(2))
    dtype = draw(st.sampled_from(sorted(ACTIVATIONS)))
    low, high = ACTIVATIONS[dtype]
    shape = (x, w, strides, pads, tuple(dilations), group)
    options = {
        "zero": draw(st.integers(low, high)),
        "order": draw(st.sampled_from([channels_last, range])),
        "pad": draw(st.sampled_from([0, 0, 3])),
        "seed": draw(st.integers(0, 99)),
    }
    if draw(st.booleans()):
        options["epilogue"] = requantized(w[0], 2, draw(st.sampled_from(sorted(ACTIVATIONS))))
    check_region(*conv(shape, draw(st.sampled_from(machines())), dtype, **options), template="dot_conv")


def test_extremes_do_not_saturate():
    """All factors at their largest: what an instruction that clips sums of pairs would get wrong."""
    for machine in machines():
        for dtype, value in (("uint8", 255), ("int8", -128)):
            shape = SHAPES[0]
            region, arrays = conv(shape, machine, dtype, zero=0)
            arrays[0][...], arrays[1][...] = value, -128
            region = replace(
                region,
                inputs=tuple(
                    o if o.const is None or i != 1 else replace(o, const=arrays[1]) for i, o in enumerate(region.inputs)
                ),
            )
            check_region(region, arrays, template="dot_conv")


@pytest.mark.parametrize("machine", [*SYSTEMS, x86.BASE], ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_every_machine_has_exact_instructions(machine, dtype):
    found = kit(machine, dtype)
    assert found is not None
    assert all(not row.saturates and row.signed == (found.signed, True) for _, row in found.rows)


@pytest.mark.parametrize("machine", [m for m in SYSTEMS if m.family == "arm"], ids=lambda m: m.name)
def test_arm_takes_its_dot_product(machine):
    region, _ = conv(SHAPES[0], machine, "int8")
    plan = next(p for p in plans(region) if p.template == "dot_conv")
    assert plan.detail.startswith("sdot" if machine.name == "rpi5" else ("smull", "vmull"))


@pytest.mark.parametrize("count", range(1, 70))
def test_columns_are_covered_by_vectors(count):
    for sizes in ((16, 8, 4), (8, 4), (4,)):
        widths, valid = cover(count, sizes)
        assert sum(valid) == count and all(0 < v <= w for v, w in zip(valid, widths, strict=True))
        assert sum(widths) - count < sizes[-1] or len(set(widths)) <= 2


def test_packed_weights_stay_small():
    for shape in (SHAPES[0], SHAPES[4], SHAPES[11]):
        region, arrays = conv(shape, machines()[0])
        plan = next(p for p in plans(region) if p.template == "dot_conv")
        assert plan.consts[0].nbytes <= 1.5 * arrays[1].nbytes


def test_tasks_of_a_large_convolution():
    region, _ = conv(((1, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1), machines()[0])
    draft = plans(region)[0].phases[-1]
    assert plans(region)[0].template == "dot_conv"
    assert draft.tasks is not None and draft.tasks >= 8
