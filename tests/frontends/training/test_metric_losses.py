"""Losses over a whole batch against loops in numpy: their values, and gradients against finite differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import nervure as nv
import numpy as np
import pytest

L = nv.losses
Y = np.array([0, 1, 2, 0, 1, 0, 3, 2], np.int32)  # class 3 has one sample: it has no like
X = np.random.default_rng(5).normal(0, 0.8, (len(Y), 3)).astype(np.float32)


def away(x: np.ndarray, i: int, j: int) -> float:
    return float(np.sqrt(((x[i] - x[j]) ** 2).sum()))


def partners(i: int) -> tuple[list[int], list[int]]:
    likes = [j for j in range(len(Y)) if j != i and Y[j] == Y[i]]
    return likes, [j for j in range(len(Y)) if Y[j] != Y[i]]


def contrastive(x: np.ndarray, i: int, margin: float) -> float:
    likes, others = partners(i)
    near = sum(away(x, i, j) ** 2 for j in likes) / max(len(likes), 1)
    return near + sum(max(margin - away(x, i, j), 0) ** 2 for j in others) / len(others)


def hard(x: np.ndarray, i: int, margin: float) -> float:
    likes, others = partners(i)
    if not likes:
        return 0.0
    return max(max(away(x, i, j) for j in likes) - min(away(x, i, j) for j in others) + margin, 0)


def soft(x: np.ndarray, i: int, margin: float) -> float:
    likes, others = partners(i)
    gap = max((away(x, i, j) for j in likes), default=math.nan) - min(away(x, i, j) for j in others)
    return math.log1p(math.exp(gap)) if likes else 0.0


def semi_hard(x: np.ndarray, i: int, margin: float) -> float:
    likes, others = partners(i)
    found = []
    for like in likes:
        beyond = [away(x, i, j) for j in others if away(x, i, j) > away(x, i, like)]
        far = min(beyond) if beyond else max(away(x, i, j) for j in others)
        found.append(max(away(x, i, like) - far + margin, 0))
    return sum(found) / max(len(found), 1)


CASES: dict[str, tuple[nv.losses.Loss, Callable[[np.ndarray, int, float], float], float]] = {
    "contrastive": (L.BatchContrastiveLoss(), contrastive, 1.0),
    "contrastive 2": (L.BatchContrastiveLoss(margin=2), contrastive, 2.0),
    "hard": (L.get("triplet_hard"), hard, 1.0),
    "hard 0.2": (L.TripletHardLoss(0.2), hard, 0.2),
    "soft": (L.TripletHardLoss(soft=True), soft, 0.0),
    "semi-hard": (L.get("TripletSemiHardLoss"), semi_hard, 1.0),
    "semi-hard 0.3": (L.TripletSemiHardLoss(0.3), semi_hard, 0.3),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_loops(name: str) -> None:
    loss, reference, margin = CASES[name]
    expected = [reference(X.astype(np.float64), i, margin) for i in range(len(Y))]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(loss(Y, X), expected, atol=1e-5)
    np.testing.assert_allclose(loss(Y[:, None], X), expected, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    loss, reference, margin = CASES[name]

    @nv.network
    def gradient(y: nv.Input(batch_shape=Y.shape, dtype="int32"), x: nv.Input(batch_shape=X.shape)):
        return nv.grad(nv.sum(loss(y, x)), x)

    def total(x: np.ndarray) -> float:
        return sum(reference(x, i, margin) for i in range(len(Y)))

    expected, wide = np.zeros(X.shape), X.astype(np.float64)
    for at in itertools.product(*map(range, X.shape)):
        step = np.zeros(X.shape)
        step[at] = 1e-5
        expected[at] = (total(wide + step) - total(wide - step)) / 2e-5
    np.testing.assert_allclose(gradient(Y, X), expected, atol=1e-3)


def test_a_batch_of_one_class_and_one_of_strangers_have_finite_gradients() -> None:
    for loss, _, _ in CASES.values():

        @nv.network
        def gradient(y: nv.Input(batch_shape=(4,), dtype="int32"), x: nv.Input(batch_shape=(4, 3)), loss=loss):
            return nv.grad(nv.sum(loss(y, x)), x)

        for classes in ([1, 1, 1, 1], [0, 1, 2, 3]):
            for x in (X[:4], np.ones((4, 3), np.float32)):
                assert np.isfinite(gradient(np.array(classes, np.int32), x)).all()


def test_a_network_learns_by_fit() -> None:
    """Points that lie in rings come apart by ring."""
    rng = np.random.default_rng(0)
    y = np.arange(240, dtype=np.int32) % 3
    angle = rng.uniform(0, 2 * np.pi, len(y))
    x = ((1 + y) * np.stack([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.1, (2, len(y)))).T.astype(np.float32)
    net = nv.Sequential([nv.layers.Dense(32, "relu", input_dim=2), nv.layers.Dense(32, "relu"), nv.layers.Dense(2)])
    net.compile(nv.optimizers.Adam(0.01), "triplet_semihard")
    net.fit(x, y, batch_size=60, epochs=30, verbose=0)
    found = net.predict(x)
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (y[apart.argmin(axis=1)] == y).mean() > 0.95


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(nv.NervureError, match=r"vectors \[batch, size\], got \[8, 3, 1\]"):
        L.BatchContrastiveLoss()(Y, X[:, :, None])
    with pytest.raises(nv.NervureError, match=r"class numbers \[4\] do not fit \[8, 3\]"):
        L.TripletHardLoss()(Y[:4], X)
    with pytest.raises(nv.NervureError, match="margin must be a number above 0"):
        L.TripletSemiHardLoss(margin=0)
