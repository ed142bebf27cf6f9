"""Schemes, ranges of activations and of weights, settings, samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nervure.compiler.quantize.observe import Extent, Histogram
from nervure.compiler.quantize.ranges import activation_range, percentile, search, squared_error, weight_scheme
from nervure.compiler.quantize.samples import feeds
from nervure.compiler.quantize.scheme import affine, symmetric
from nervure.compiler.quantize.settings import METHODS, Settings, matching
from nervure.errors import NervureError
from quantized_nets import pictures, separable

FINITE = st.floats(-1e6, 1e6, width=32)


def histogram(x: np.ndarray, bins: int = 2048) -> Histogram:
    found = Histogram(min(float(x.min()), 0.0), max(float(x.max()), 0.0), np.zeros(bins, np.int64), np.zeros(bins))
    found.add(x)
    return found


@given(FINITE, FINITE, st.sampled_from(["int8", "uint8", "int16"]))
def test_an_activation_is_at_most_half_a_step_off_and_zero_is_exact(a: float, b: float, dtype: str) -> None:
    scheme = affine(min(a, b), max(a, b), dtype)
    x = np.array([a, b, 0.0, (a + b) / 2], np.float32)
    assert scheme.rounded(np.zeros(1, np.float32))[0] == 0
    slack = 1.01 if min(a, b) * max(a, b) >= 0 or dtype == "int16" else 2.01  # the zero point is rounded too
    assert (np.abs(scheme.rounded(x) - x) <= slack * scheme.scale / 2 + 1e-6 * np.abs(x)).all()
    assert np.isfinite(scheme.scale) and scheme.scale > 0


def test_constant_and_zero_tensors() -> None:
    zero = affine(0.0, 0.0, "int8")
    assert (float(zero.scale), zero.zero_point) == (1.0, 0)
    for value in (0.37, -12.5, 1e-12):
        x = np.full(3, value, np.float32)
        assert np.allclose(affine(value, value, "int8").rounded(x), x, rtol=1e-6)


def test_zero_channels_get_the_mean_scale_of_the_others() -> None:
    w = np.array([[0.0, 0.0], [1.27, -0.5], [2.54, 1.0]], np.float32)
    for method in ("minmax", "mse"):
        scheme = weight_scheme(w, 0, Settings(weight_method=method))
        scale = scheme.scale.reshape(-1)
        assert scale[0] == pytest.approx(scale[1:].mean()) and not scheme.steps(w)[0].any()
    assert float(symmetric(np.zeros((2, 1)), 8).scale[0, 0]) == 1.0


def test_weights_on_a_grid_are_kept_exactly() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.001, 1, (6, 1)).astype(np.float32)
    q = rng.integers(-127, 128, (6, 40))
    q[:, 0] = 127
    w = (q * scale).astype(np.float32)
    assert (weight_scheme(w, 0, Settings()).steps(w) == q).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mean_square_ranges_of_weights_are_never_worse(bits: int) -> None:
    w = np.random.default_rng(1).standard_t(3, (8, 5, 3, 3)).astype(np.float32)
    plain, fitted = (weight_scheme(w, 0, Settings(weight_bits=bits, weight_method=m)) for m in ("minmax", "mse"))
    errors = [np.square(s.rounded(w) - w).sum(axis=(1, 2, 3)) for s in (plain, fitted)]
    assert (errors[1] <= errors[0] * 1.0001).all() and (bits == 8 or errors[1].sum() < 0.9 * errors[0].sum())
    assert fitted.steps(w).min() >= -(2 ** (bits - 1)) and fitted.steps(w).max() <= 2 ** (bits - 1) - 1
    assert weight_scheme(w, 0, Settings(per_channel=False)).scale.shape == ()


def test_each_method_on_a_long_tail() -> None:
    x = np.random.default_rng(2).normal(0, 1, 200_000).astype(np.float32)
    x[0] = 40.0
    seen, counted = Extent(), histogram(x)
    for part in np.split(x, 10):
        seen.add(part, 0.0)
    high = {m: activation_range(seen, counted, "int8", Settings(method=m))[1] for m in METHODS if m != "auto"}
    assert high["minmax"] == 40.0 and high["average"] == pytest.approx(np.mean([p.max() for p in np.split(x, 10)]))
    assert high["percentile"] == pytest.approx(np.quantile(x, 1 - 0.0001 / 2), abs=0.05)
    assert 3 < high["mse"] < 36 and 1 < high["entropy"] <= 40


def test_percentile_of_one_sided_values_leaves_zero() -> None:
    x = np.maximum(np.random.default_rng(3).normal(0, 1, 100_000), 0).astype(np.float32)
    low, high = percentile(histogram(x), 99.0)
    assert low == 0.0 and high == pytest.approx(np.quantile(x, 0.99), abs=0.01)


def test_the_search_is_as_good_as_a_fine_grid() -> None:
    x = np.random.default_rng(4).laplace(0, 1, 100_000).astype(np.float32)
    counted = histogram(x)
    found = squared_error(counted, affine(*search(counted, "int8", squared_error), "int8"))
    grid = [
        squared_error(counted, affine(counted.low * a, counted.high * b, "int8"))
        for a in np.linspace(0.1, 1, 40)
        for b in np.linspace(0.1, 1, 40)
    ]
    assert found <= min(grid) * 1.02


def test_settings_and_patterns() -> None:
    for bad in ({"weight_bits": 9}, {"method": "best"}, {"percentile": 101}, {"activations": "int4"}, {"smooth": 2.0}):
        with pytest.raises(NervureError, match=next(iter(bad))):
            Settings(**bad)  # type: ignore[arg-type]
    assert all(f.metadata["doc"] for f in Settings.__dataclass_fields__.values())
    assert matching(["a*", "w[0]"], ["ab", "ac", "w[0]", "b"]) == {"ab", "ac", "w[0]"}
    with pytest.raises(NervureError, match="closest: 'layer3'"):
        matching(["leyer3"], ["layer3"])


@pytest.mark.parametrize(
    ("given_samples", "text"),
    [
        ({}, "missing: x"),
        ({"x": pictures(), "z": pictures()}, "unknown: z"),
        ({"x": pictures()[:, :2]}, "shape"),
        ({"x": pictures(0)}, "no calibration samples"),
        ({"x": np.full((2, 3, 8, 8), np.nan, np.float32)}, "sample 0, input 'x': NaN"),
        ({"x": np.array(["a"])}, "shape|elements"),
        ([], "no calibration samples"),
        ([{"x": pictures(1), "y": 3}], "unknown: y"),
    ],
)
def test_samples_that_do_not_fit(given_samples: object, text: str) -> None:
    with pytest.raises(NervureError, match=text):
        feeds(separable(), given_samples)  # type: ignore[arg-type]


def test_samples_in_each_form() -> None:
    x = pictures(5)
    for form in ({"x": x}, {"x": x[:, None]}, [{"x": part[None]} for part in x], {"x": x.astype(np.float64)}):
        calls = feeds(separable(), form)  # type: ignore[arg-type]
        assert len(calls) == 5 and all(np.array_equal(c["x"][0], part) for c, part in zip(calls, x, strict=True))


def test_the_zeros_of_a_relu_do_not_decide_by_divergence() -> None:
    """Half of the values are exactly 0: the range is that of the others, of which hardly any is clipped."""
    values = np.maximum(np.random.default_rng(0).normal(size=200_000), 0).astype(np.float32)
    held = Histogram(0.0, float(values.max()), np.zeros(2048), np.zeros(2048))
    held.add(values)
    _, high = activation_range(Extent(), held, "int8", Settings(method="entropy"))
    assert 2.5 < high <= values.max()
