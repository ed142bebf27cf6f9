"""Accuracy of the vector functions against float64 numpy over all exponents, in units of the last place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from harness import machines, region_of, run_region
from nervure.compiler.ops import OPS

# operator -> (units of the last place, absolute error that is forgiven besides, range of x)
LIMITS = {
    "exp": (2, 0, None),
    "expm1": (2, 0, None),
    "log": (2, 0, None),
    "log1p": (2, 0, None),
    "sqrt": (0.51, 0, None),
    "rsqrt": (1.5, 0, None),
    "reciprocal": (0.51, 0, None),
    "sin": (2, 6e-8, 1e5),
    "cos": (2, 6e-8, 1e5),
    "tan": (4, 6e-8, 1e4),
    "asin": (3, 0, None),
    "acos": (3, 0, None),
    "atan": (3, 0, None),
    "sinh": (3, 0, None),
    "cosh": (3, 0, None),
    "tanh": (5, 0, None),
    "asinh": (3, 0, None),
    "acosh": (3, 0, None),
    "atanh": (3, 0, None),
    "erf": (5, 0, None),
    "sigmoid": (2.5, 1e-37, None),
    "silu": (3, 1e-36, None),
    "softplus": (3, 1e-37, None),
    "gelu": (3, 1e-6, None),
    "elu": (2, 0, None),
    "floor": (0, 0, None),
    "ceil": (0, 0, None),
    "round": (0, 0, None),
}


def sweep(count: int = 1 << 17) -> np.ndarray:
    """Seeded float32 numbers: random bits (all exponents, infinities, NaN, denormals), a dense part near 0, borders."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    borders = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0**-126,
        2.0**-149,
        2.0**23 + 1,
        88.7228,
        -87.34,
    ]
    borders += [3.4028235e38, 0.99999994, 1.0000001, -0.99999994, math.pi, math.pi / 2]
    near = [rng.uniform(-s, s, count // 4) for s in (1.0, 10.0, 110.0)]
    return np.concatenate([bits, *near, borders]).astype(np.float32)


def units(have: np.ndarray, want: np.ndarray, forgiven: float) -> float:
    """The largest error in units of the last place of the float32 result; infinities and NaN must agree."""
    rounded = want.astype(np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(np.isnan(have), np.isnan(rounded))
        bound = np.abs(np.where(np.isfinite(rounded), rounded, np.float32(3.4028235e38)))
        step = np.spacing(bound).astype(np.float64)
        error = np.where(
            have == rounded, 0.0, np.abs(have.astype(np.float64) - np.clip(want, -3.5e38, 3.5e38)) - forgiven
        )
        error = np.where(np.isnan(rounded), 0.0, error)
    return float(np.max(error / step))


pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow to infinity is part of the sweeps


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("name", sorted(LIMITS))
def test_units_in_the_last_place(name, machine):
    limit, forgiven, widest = LIMITS[name]
    x = sweep()
    x = x if widest is None else x[np.abs(x) < widest]
    region, arrays = region_of(name, [x], {}, machine=machine)
    (have,) = run_region(region, arrays)
    want = OPS[name].reference(x.astype(np.float64), **{k: v for k, v in OPS[name].attrs.items()})
    error = units(have, want, forgiven)
    print(f"{name}: {error:.2f} ulp")
    assert error <= limit


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("name", ["floor", "ceil", "round", "exp", "fmod"])
def test_without_rounding_instructions(name, lanes):
    x = sweep(1 << 12)
    x = x[np.isfinite(x) & (x != 0)]
    region, arrays = region_of(
        name,
        [x, x[::-1].copy()] if name == "fmod" else [x],
        {},
        machine=replace(machines()[0], name="plain", lanes=lanes, features=()),
    )
    (have,) = run_region(region, arrays)
    if name == "fmod":
        kept = np.abs(x / x[::-1]) < 1e6
        np.testing.assert_allclose(have[kept], np.fmod(x, x[::-1])[kept], rtol=1e-6)
        return
    with np.errstate(all="ignore"):
        want = OPS[name].reference(x.astype(np.float64))
    assert units(have, want, 0.0) <= (2 if name == "exp" else 0)


def test_pow():
    rng = np.random.default_rng(2)
    a = np.concatenate([np.exp(rng.uniform(-80, 80, 40000)), rng.integers(-9, 10, 4000)]).astype(np.float32)
    b = np.concatenate([rng.uniform(-3, 3, 40000), rng.integers(-5, 6, 4000)]).astype(np.float32)
    special = np.array([0, -0.0, 1, -1, 2, -2, 0.5, np.inf, -np.inf, np.nan, 3, -3, 2.5], np.float32)
    first, second = (v.reshape(-1) for v in np.meshgrid(special, special))
    a, b = np.concatenate([a, first]), np.concatenate([b, second])
    region, arrays = region_of("pow", [a, b], {})
    (have,) = run_region(region, arrays)
    with np.errstate(all="ignore"):
        want = np.power(a.astype(np.float64), b.astype(np.float64))
    assert units(have, want, 0.0) <= 1.0


@pytest.mark.parametrize("exponent", [-0.5, 0.5, 1.0, 2.0, 3.0, -1.0, -2.0, 7.0])
def test_pow_by_a_number(exponent):
    x = sweep(1 << 12)
    x = x[x > 0] if exponent in (0.5, -0.5) else x
    region, arrays = region_of(
        "neg", [x], {}, epilogue=lambda g, y: g.add("pow", g.add("neg", y), g.const(np.float32(exponent)))
    )
    (have,) = run_region(region, arrays)
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), exponent)
    assert units(have, want, 1e-44) <= 4.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "log1p", "gelu", "silu", "round"])
def test_other_floats(name, dtype):
    import ml_dtypes  # noqa: F401

    x = np.linspace(-4, 4, 333).astype(np.dtype(dtype))
    region, arrays = region_of(name, [x], {})
    (have,) = run_region(region, arrays)
    want = OPS[name].reference(x, **dict(OPS[name].attrs))
    tolerance = {"float16": 2e-3, "bfloat16": 1.6e-2, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(have.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)
