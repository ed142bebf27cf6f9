"""Kernels of narrow weights: unpacking is exact, products as close as float ones, over shapes, groups and targets."""

from __future__ import annotations

import numpy as np
import pytest
from harness import channels_last, extra_input, machines, region_of, run_region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops import OPS
from nervure.compiler.ops.numeric import numpy_dtype
from nervure.compiler.ops.weights import sample_weights, widened

MACHINES = machines()


def _held(scale: np.ndarray) -> np.ndarray:
    return scale.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("depth", "columns", "block"), [(64, 40, (0, 32)), (37, 19, (0, 16)), (33, 8, None)])
def test_unpacking_is_exact(machine, bits, zero, depth, columns, block):
    """Rows of the unit matrix read every weight as it is: streamed one at a time, and unpacked to a panel."""
    w, scale, points = sample_weights((depth, columns), bits, block, axis=1, zero=zero, seed=depth)
    scale = _held(scale)
    expected = widened(w, scale, points, block)
    for x in (np.eye(depth, dtype=np.float32), np.eye(1, depth, depth // 2, dtype=np.float32)):
        arrays = [x, w, None, scale, points]
        region, given = region_of("matmul_narrow", arrays, {"block": block}, consts=[1, 3, 4], machine=machine)
        (y,) = run_region(region, given)
        np.testing.assert_array_equal(y, x @ expected)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_random_products(machine):
    rng = np.random.default_rng(5)
    for _ in range(12):
        rows, depth, columns = (int(v) for v in (rng.integers(1, 20), rng.integers(2, 150), rng.integers(1, 90)))
        block = (0, int(rng.choice([8, 32, 64, 128])))
        bits, zero = int(rng.choice([4, 8])), bool(rng.integers(2))
        w, scale, points = sample_weights((depth, columns), bits, block, zero=zero, seed=int(rng.integers(999)))
        x = rng.normal(size=(rows, depth)).astype(np.float32)
        bias = rng.normal(size=columns).astype(np.float32)
        arrays = [x, w, None, scale, points]
        region, given = region_of(
            "matmul_narrow",
            arrays,
            {"block": block},
            consts=[1, 3, 4],
            machine=machine,
            epilogue=lambda g, y, b=bias: g.add("relu", g.add("add", y, extra_input(g, b))),
        )
        (y,) = run_region(region, given)
        expected = np.maximum(x @ widened(w, scale, points, block) + bias, 0)
        np.testing.assert_allclose(y, expected, 2e-5, 2e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("planes", [False, True])
def test_convolutions_in_any_layout(planes):
    """Blocks of channels, whichever of channels and taps is walked innermost."""
    x = np.random.default_rng(0).normal(size=(1, 24, 9, 8)).astype(np.float32)
    w, scale, _ = sample_weights((18, 24, 3, 3), 4, (1, 16))
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1, "block": (1, 16)}
    region, given = region_of(
        "conv_narrow",
        [x, w, None, scale],
        attrs,
        consts=[1, 3],
        order=None if planes else lambda rank: channels_last(rank),
    )
    (y,) = run_region(region, given)
    expected = OPS["conv_narrow"].reference(x, w, None, scale, **attrs)
    np.testing.assert_allclose(y, expected, 1e-5, 1e-5 * float(np.abs(expected).max()))


def test_bytes_are_those_of_the_codes():
    """4 bits a weight, and 16 for each scale that float16 holds."""
    w, scale, _ = sample_weights((256, 64), 4, (0, 32))
    x = np.zeros((1, 256), np.float32)
    for held, size in ((_held(scale), 2), (scale, 4)):
        region, _ = region_of("matmul_narrow", [x, w, None, held], {"block": (0, 32)}, consts=[1, 3])
        (plan,) = plans(region)
        assert sum(c.nbytes for c in plan.consts) == 256 * 64 // 2 + 8 * 64 * size
    region, _ = region_of("matmul_narrow", [x, w.astype(np.float16)], {}, consts=[1])
    assert sum(c.nbytes for c in plans(region)[0].consts) == 256 * 64 * 2


def test_few_rows_are_streamed_and_many_unpacked():
    w, scale, _ = sample_weights((64, 64), 4, (0, 32))
    details = []
    for rows in (1, 64):
        x = np.zeros((rows, 64), np.float32)
        region, _ = region_of("matmul_narrow", [x, w, None, scale], {"block": (0, 32)}, consts=[1, 3])
        details.append(plans(region)[0].detail)
    assert "streamed" in details[0] and "unpacked" in details[1]


def test_weights_known_only_at_run_time_have_no_kernel():
    w, scale, _ = sample_weights((64, 64), 4, (0, 32))
    region, _ = region_of("matmul_narrow", [np.zeros((1, 64), np.float32), w, None, scale], {"block": (0, 32)})
    assert plans(region) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_widened_exactly(dtype):
    """Every exponent, subnormal numbers and infinity too."""
    bits = np.arange(0, 1 << 15, 61, dtype=np.uint16)
    w = bits.view(numpy_dtype(dtype))[:532].reshape(4, -1)
    w = np.where(np.isfinite(w.astype(np.float32)), w, np.zeros((), w.dtype))
    region, given = region_of("matmul_narrow", [np.eye(4, dtype=np.float32), w], {}, consts=[1])
    (y,) = run_region(region, given)
    np.testing.assert_array_equal(y, w.astype(np.float32))
    rows = np.array([3, 0, -1], np.int64)
    region, given = region_of("gather_narrow", [w, rows], {}, consts=[0])
    np.testing.assert_array_equal(run_region(region, given)[0], w[rows].astype(np.float32))


@pytest.mark.parametrize("bits", [4, 8])
def test_gathered_rows_are_exact(bits):
    rng = np.random.default_rng(bits)
    for width, block in ((64, (1, 32)), (45, (1, 32)), (31, (1, 8)), (17, None)):
        w, scale, points = sample_weights((13, width), bits, block, zero=bool(width % 2), seed=width)
        rows = rng.integers(-13, 13, (3, 2))
        region, given = region_of("gather_narrow", [w, rows, scale, points], {"block": block}, consts=[0, 2, 3])
        (y,) = run_region(region, given)
        np.testing.assert_array_equal(y, widened(w, scale, points, block)[rows])
