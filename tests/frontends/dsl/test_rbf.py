"""Radial basis functions, k-means and recursive least squares, compiled, against plain numpy and scikit-learn."""

from __future__ import annotations

from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers

UNITS, FEATURES, SAMPLES, RIDGE = 5, 3, 40, 0.2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(SAMPLES, FEATURES)).astype(np.float32), RNG.normal(size=(SAMPLES, 2)).astype(np.float32)
CENTERS, WIDTHS = X[:UNITS] + np.float32(0.1), RNG.uniform(0.8, 1.5, UNITS).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    basis = layers.RBF(UNITS, centers_initializer=CENTERS)
    readout = layers.LeastSquares(2, ridge=RIDGE)

    @nv.network
    def net(x: nv.Input(batch_shape=X.shape)):
        hidden = basis(x)
        return hidden, readout(hidden)

    @nv.network
    def slopes(x: nv.Input(batch_shape=X.shape), outer: nv.Input(batch_shape=(SAMPLES, UNITS))):
        return tuple(nv.grad(nv.sum(basis(x) * outer), [x, basis.centers, basis.widths]))

    @nv.network
    def kmeans(x: nv.Input(batch_shape=X.shape)):
        return basis.kmeans(x)

    @nv.network
    def spread():
        return basis.spread(neighbors=2, scale=0.7)

    @nv.network
    def learn(x: nv.Input(batch_shape=(2, FEATURES)), y: nv.Input(batch_shape=(2, 2))):
        return readout.learn(basis(x), y)

    return nv.compile(net, steps=[kmeans, spread, learn, slopes])


@pytest.fixture
def session(model: Any) -> Any:
    model.reset()
    model.session.set_params(
        {"rbf.centers": CENTERS, "rbf.widths": WIDTHS, "least_squares.weight": np.zeros((6, 2), "f")}
    )
    return model.session


def gaussians(x: np.ndarray, centers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    return np.array(
        [[np.exp(-((a - c) ** 2).sum() / (2 * s**2)) for c, s in zip(centers, widths, strict=True)] for a in x]
    )


def test_what_is_computed(session: Any) -> None:
    hidden, answer = session.run(None, {"x": X})
    np.testing.assert_allclose(hidden, gaussians(X, CENTERS, WIDTHS), atol=1e-5)
    assert not answer.any()


def test_gradients_of_inputs_centres_and_widths(session: Any) -> None:
    outer = np.random.default_rng(1).normal(size=(SAMPLES, UNITS)).astype(np.float32)
    found = session.run(None, {"x": X, "outer": outer}, entry="slopes")
    given = [a.astype(np.float64) for a in (X, CENTERS, WIDTHS)]
    for i, slope in enumerate(found):
        expected = np.zeros(given[i].shape)
        for at in np.ndindex(expected.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in given]
                moved[i][at] += step
                sides.append((gaussians(*moved) * outer).sum())
            expected[at] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(slope, expected, atol=1e-4)


def test_kmeans_step_by_step_and_where_it_ends(session: Any) -> None:
    """Lloyd's iterations in numpy, one centre far from all samples staying; and scikit-learn's result."""
    cluster = pytest.importorskip("sklearn.cluster")
    first = CENTERS.astype(np.float64)
    first[4] = 100
    session.set_params({"rbf.centers": first.astype(np.float32)})
    centers = first.copy()
    for _ in range(4):
        (found,) = session.run(None, {"x": X}, entry="kmeans")
        squared = ((X[:, None] - centers) ** 2).sum(axis=2)
        assert found == pytest.approx(squared.min(axis=1).mean(), rel=1e-4)
        for unit in range(4):
            centers[unit] = X[squared.argmin(axis=1) == unit].mean(axis=0)
        np.testing.assert_allclose(session.params()["rbf.centers"], centers, atol=1e-5)
    assert (centers[4] == 100).all()

    session.set_params({"rbf.centers": CENTERS})
    for _ in range(30):
        session.run(None, {"x": X}, entry="kmeans")
    theirs = cluster.KMeans(UNITS, init=CENTERS, n_init=1, tol=0).fit(X)
    np.testing.assert_allclose(session.params()["rbf.centers"], theirs.cluster_centers_, atol=1e-5)


def test_widths_by_neighbours(session: Any) -> None:
    (found,) = session.run(None, {}, entry="spread")
    between = np.linalg.norm(CENTERS[:, None] - CENTERS[None], axis=2)
    expected = [0.7 * np.sqrt((np.sort(row)[1:3] ** 2).mean()) for row in between]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(session.params()["rbf.widths"], found)


def test_least_squares_sample_by_sample_are_ridge_regression_on_all(session: Any) -> None:
    hidden = np.concatenate([gaussians(X, CENTERS, WIDTHS), np.ones((SAMPLES, 1))], axis=1)

    def solved(count: int) -> np.ndarray:
        h = hidden[:count]
        return np.linalg.solve(h.T @ h + RIDGE * np.eye(UNITS + 1), h.T @ Y[:count])

    for t in range(0, SAMPLES, 2):
        (said,) = session.run(None, {"x": X[t : t + 2], "y": Y[t : t + 2]}, entry="learn")
        for i in (0, 1):  # of each sample what was said before it was learned
            np.testing.assert_allclose(said[i], hidden[t + i] @ solved(t + i), atol=1e-4)
    np.testing.assert_allclose(session.params()["least_squares.weight"], solved(SAMPLES), atol=1e-4)
    np.testing.assert_allclose(session.run(None, {"x": X})[1], hidden @ solved(SAMPLES), atol=1e-4)
    ridge = pytest.importorskip("sklearn.linear_model").Ridge(RIDGE, fit_intercept=False).fit(hidden, Y)
    np.testing.assert_allclose(session.params()["least_squares.weight"].T, ridge.coef_, atol=1e-4)


def test_what_is_wrong_is_said() -> None:
    for width in (0, -1, float("nan")):
        with pytest.raises(nv.NervureError, match="width: expected a number above 0"):
            layers.RBF(3, width=width)
    with pytest.raises(nv.NervureError, match="ridge: expected a number above 0"):
        layers.LeastSquares(1, ridge=0)
    with pytest.raises(nv.NervureError, match=r"expected an input \[batch, features\]"):
        layers.RBF(3)(np.zeros((2, 3, 4), np.float32))
    basis = layers.RBF(2)
    basis(np.zeros((2, 3), np.float32))
    with pytest.raises(nv.NervureError, match="2 centres have 1 neighbours, not 2"):
        basis.spread()
