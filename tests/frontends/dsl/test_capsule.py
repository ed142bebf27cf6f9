"""Capsules: routing by agreement as its plain loop in numpy, compiled, here and on ARM; gradients go through it."""

from __future__ import annotations

import shutil
from pathlib import Path

import nervure as nv
import numpy as np
import pytest

L = nv.layers
RNG = np.random.default_rng(5)
X = RNG.standard_normal((3, 12, 4)).astype(np.float32)
WEIGHT = RNG.normal(0, 0.5, (12, 4, 5 * 6)).astype(np.float32)


def squash(s: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(s)
    return s * length / (1 + length**2)


def routed(u: np.ndarray, weight: np.ndarray, capsules: int, iterations: int) -> np.ndarray:
    """Procedure 1 of Sabour, Frosst and Hinton (2017), for one sample [inputs, size], a capsule at a time."""
    inputs = len(u)
    votes = np.array([(u[i] @ weight[i].astype(np.float64)).reshape(capsules, -1) for i in range(inputs)])
    b = np.zeros((inputs, capsules))
    for _ in range(iterations):
        c = np.array([np.exp(row) / np.exp(row).sum() for row in b])
        v = np.array([squash(sum(c[i, j] * votes[i, j] for i in range(inputs))) for j in range(capsules)])
        for i in range(inputs):
            for j in range(capsules):
                b[i, j] += votes[i, j] @ v[j]
    return v


def network(iterations: int, weight: np.ndarray = WEIGHT, capsules: int = 5, batch: int = 3) -> nv.Network:
    inputs, size, width = weight.shape
    layer = L.Capsule(capsules, width // capsules, iterations, weights=[weight])
    return nv.network(lambda x: layer(x), name="capsules", x=nv.Input(batch_shape=(batch, inputs, size)))


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_routing_is_that_of_the_paper(iterations: int) -> None:
    expected = np.array([routed(x, WEIGHT, 5, iterations) for x in X.astype(np.float64)])
    for found in (network(iterations)(X), nv.compile(network(iterations))(X)):
        assert found.shape == (3, 5, 6)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert iterations == 1 or np.abs(expected - network(1)(X)).max() > 0.01


@pytest.mark.parametrize("target", ["host", pytest.param("aarch64", marks=pytest.mark.emulator)])
def test_routing_of_many_capsules_in_c(target: str, tmp_path: Path) -> None:
    """The size of the example, one picture at a time."""
    if target != "host" and shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64")
    weight = RNG.normal(0, 0.3, (96, 8, 10 * 12)).astype(np.float32)
    x = RNG.standard_normal((2, 96, 8)).astype(np.float32)
    path = nv.compile(network(3, weight, 10, batch=1), target).save(tmp_path / "capsules.so")
    expected = np.array([routed(one, weight, 10, 3) for one in x.astype(np.float64)])
    np.testing.assert_allclose(nv.run_in_c(path, x), expected, atol=1e-5)


def test_the_gradient_goes_through_the_routing() -> None:
    layer = L.Capsule(5, 6, weights=[WEIGHT])

    @nv.network
    def slope(x: nv.Input(batch_shape=X.shape)):
        return nv.grad(nv.sum(layer(x)[:, 1] * np.arange(6)), x)

    def score(x: np.ndarray) -> float:
        return float(sum((routed(one, WEIGHT, 5, 3)[1] * np.arange(6)).sum() for one in x))

    found, wide = nv.compile(slope)(X), X.astype(np.float64)
    for at in [(0, 0, 0), (1, 7, 2), (2, 11, 3)]:
        step = np.zeros_like(wide)
        step[at] = 1e-5
        assert found[at] == pytest.approx((score(wide + step) - score(wide - step)) / 2e-5, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_primary_capsules_are_groups_of_features_at_a_place(layout: str) -> None:
    layer = L.PrimaryCapsule(3, 4, 3, strides=2, data_format=layout)
    x = RNG.standard_normal((2, 5, 9, 7)).astype(np.float32)
    found = layer(x if layout == "channels_first" else x.transpose(0, 2, 3, 1))
    features = L.Conv2d(12, 3, strides=2, weights=[w.array for w in layer.conv.weights])(x)
    assert found.shape == (2, 3 * 4 * 3, 4) and features.shape == (2, 12, 4, 3)
    vectors = features.reshape(2, 3, 4, 12).transpose(0, 1, 3, 2)  # [batch, channels, places, dim]
    vectors = vectors if layout == "channels_first" else vectors.transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found, [[squash(v) for v in s] for s in vectors.reshape(2, 36, 4)], atol=1e-6)


def test_lengths_and_their_gradient_at_nothing() -> None:
    x = np.array([[[3.0, 4.0], [0.0, 0.0]]], np.float32)

    @nv.network
    def slopes(x: nv.Input(batch_shape=x.shape)):
        return nv.grad(nv.sum(L.Length()(x)), x), nv.grad(nv.sum(nv.squash(x)), x)

    np.testing.assert_allclose(L.Length()(x), [[5.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(nv.squash(x), [[[15 / 26, 20 / 26], [0, 0]]], atol=1e-6)
    length, squashed = slopes(x)
    np.testing.assert_allclose(length, [[[0.6, 0.8], [0, 0]]], atol=1e-6)
    np.testing.assert_allclose(squashed[0, 1], 0, atol=1e-9)


def test_a_network_of_capsules_learns_by_its_margin() -> None:
    """Keras's loop: which of two bars is there."""
    x = RNG.normal(0, 0.2, (96, 1, 6, 6)).astype(np.float32)
    y = np.arange(96, dtype=np.int32) % 2
    x[y == 0, :, 2] += 1
    x[y == 1, :, :, 2] += 1
    layers = [L.PrimaryCapsule(4, 4, 3, input_shape=(1, 6, 6)), L.Capsule(2, 6), L.Length()]
    net = nv.Sequential(layers)
    net.compile(optimizer=nv.optimizers.Adam(0.01), loss="margin", metrics=["sparse_categorical_accuracy"])
    net.fit(x, y, batch_size=16, epochs=6, verbose=0)
    assert net.evaluate(x, y)[1] > 0.95


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(nv.NervureError, match=r"Capsule.*expected capsules \[batch, inputs, size\]"):
        L.Capsule(5, 6)(X[0])
    layer = L.Capsule(5, 6)
    layer(X)
    with pytest.raises(nv.NervureError, match=r"expected \[batch, 12, 4\]"):
        layer(X[:, :6])
    with pytest.raises(nv.NervureError, match="iterations: expected a whole number of at least 1"):
        L.Capsule(5, 6, 0)
