"""Elementwise work on quantized tensors, bit for bit against the references, at every width of vector."""

from __future__ import annotations

import numpy as np
import pytest
from harness import channels_last, check_region, machines, region_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.ops.integers import add_multiplier, exp_table

BOUNDS = {"int8": (-128, 127), "uint8": (0, 255)}
THOROUGH = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
machine_of = pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)


def integers(shape, dtype, seed=0):
    low, high = BOUNDS.get(dtype, (-(2**31), 2**31 - 1))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(low, high, shape, endpoint=True)
    return (drawn if dtype != "int32" else drawn >> rng.integers(0, 31, shape)).astype(dtype)


def requantized(shape, source, multiplier, machine, consts=(1,), **attrs):
    attrs = {"x_zero_point": 0, "zero_point": 0, "low": None, "high": None, "to": "int8", **attrs}
    region, arrays = region_of(
        "requantize", [integers(shape, source), multiplier], attrs, consts=consts, machine=machine
    )
    check_region(region, arrays)


@machine_of
@pytest.mark.parametrize(("to", "zero"), [("int8", -128), ("int8", 7), ("uint8", 0), ("uint8", 200)])
@pytest.mark.parametrize("consts", [(1,), ()], ids=["known", "learned"])
def test_sums_of_any_size(to, zero, consts, machine):
    requantized((3, 333), "int32", np.float32(3e-8), machine, consts, to=to, zero_point=zero)


@machine_of
def test_multipliers_that_overflow_an_int32_are_clipped_first(machine):
    requantized((200,), "int32", np.float32(3e4), machine, to="uint8", zero_point=3)
    requantized((200,), "int32", np.float32(0.9), machine, to="int8", zero_point=-128)


@machine_of
def test_halves_go_to_even(machine):
    x = np.arange(-300, 300, dtype=np.int32)
    attrs = {"x_zero_point": 0, "low": None, "high": None, "to": "int8"}
    for zero in (0, 1):
        region, arrays = region_of("requantize", [x, np.float32(0.5)], {**attrs, "zero_point": zero}, machine=machine)
        check_region(region, arrays)


@machine_of
@pytest.mark.parametrize("order", [range, channels_last], ids=["planes", "channels last"])
def test_a_multiplier_for_each_channel(order, machine):
    x, each = integers((1, 40, 5, 7), "int32"), np.geomspace(1e-9, 1e-6, 40).astype(np.float32).reshape(40, 1, 1)
    attrs = {"x_zero_point": 0, "zero_point": 11, "low": 11, "high": 100, "to": "uint8"}
    order_of = lambda rank: order(rank) if rank == 4 else range(rank)  # noqa: E731
    region, arrays = region_of("requantize", [x, each], attrs, consts=(1,), order=order_of, machine=machine)
    check_region(region, arrays)


@machine_of
def test_a_residual(machine):
    attrs = {"a_zero_point": 3, "b_zero_point": -7, "zero_point": -128, "low": -128, "high": 100, "to": "int8"}
    arrays = [integers((700,), "int8"), integers((700,), "int8", 1), add_multiplier(0.7), add_multiplier(31.9)]
    region, given_arrays = region_of("add_integer", arrays, attrs, consts=(2, 3), machine=machine)
    check_region(region, given_arrays)


@machine_of
@pytest.mark.parametrize("to", ["int8", "uint8"])
def test_floats_to_steps(to, machine):
    x = np.concatenate([np.linspace(-40, 40, 331), [1e30, -1e30, 0.05]]).astype(np.float32)
    zero = np.array(5, to)
    region, arrays = region_of("quantize", [x, np.float32(0.1), zero], {"to": to}, consts=(1, 2), machine=machine)
    check_region(region, arrays)


@pytest.mark.slow
@THOROUGH
@given(st.data())
def test_any_requantization(data):
    to, source = data.draw(st.sampled_from(["int8", "uint8"])), data.draw(st.sampled_from(["int8", "uint8", "int32"]))
    low, high = BOUNDS[to]
    zero = data.draw(st.integers(low, high))
    bounds = sorted(data.draw(st.lists(st.integers(low, high), min_size=2, max_size=2)))
    x_zero = data.draw(st.integers(*BOUNDS[source])) if source in BOUNDS else 0
    rank = data.draw(st.integers(1, 3))
    shape = data.draw(st.tuples(*[st.integers(1, 40)] * rank))
    scale = np.float32(2.0 ** data.draw(st.floats(-30, 6)))
    each = scale * np.linspace(1, 2, shape[-1], dtype=np.float32) if data.draw(st.booleans()) else scale
    machine = data.draw(st.sampled_from(machines()))
    consts = data.draw(st.sampled_from([(1,), ()]))
    attrs = {"to": to, "zero_point": zero, "low": bounds[0], "high": bounds[1], "x_zero_point": x_zero}
    requantized(shape, source, np.asarray(each), machine, consts, **attrs)


@pytest.mark.slow
@THOROUGH
@given(st.data())
def test_any_residual(data):
    source, to = data.draw(st.sampled_from(["int8", "uint8"])), data.draw(st.sampled_from(["int8", "uint8"]))
    a_zero, b_zero = (data.draw(st.integers(*BOUNDS[source])) for _ in range(2))
    zero = data.draw(st.integers(*BOUNDS[to]))
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 150)))
    ratios = [add_multiplier(data.draw(st.floats(-32, 32))) for _ in range(2)]
    other = shape[-1:] if data.draw(st.booleans()) else shape
    attrs = {"a_zero_point": a_zero, "b_zero_point": b_zero, "zero_point": zero, "low": None, "high": None, "to": to}
    region, arrays = region_of(
        "add_integer",
        [integers(shape, source), integers(other, source, 1), *ratios],
        attrs,
        consts=data.draw(st.sampled_from([(2, 3), ()])),
        machine=data.draw(st.sampled_from(machines())),
    )
    check_region(region, arrays)


@machine_of
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_softmax_along_rows_and_columns(dtype, machine):
    attrs = {"zero_point": -128, "low": None, "high": None, "to": "int8"}
    for shape, axis in (((5, 197), 1), ((3, 64), -1), ((70, 9), 0), ((2, 7), 1)):
        inputs = [integers(shape, dtype), exp_table(0.06, shape[axis]), np.float32(256)]
        region, arrays = region_of("softmax_integer", inputs, {**attrs, "axis": axis}, consts=(1, 2), machine=machine)
        check_region(region, arrays)


@machine_of
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_tables(dtype, machine):
    for count in (7, 64, 333):
        arrays = [integers((3, count), dtype), integers((256,), "int8", 1)]
        region, given_arrays = region_of("lookup", arrays, {}, consts=(1,), machine=machine)
        check_region(region, given_arrays)
