"""Restricted Boltzmann machines: what they compute, draw and learn, compiled, against enumeration and plain numpy."""

from __future__ import annotations

import itertools
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers

VISIBLE, HIDDEN, BATCH = 4, 3, 6
RATE, MOMENTUM, DECAY = 0.3, 0.9, 0.02


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"weight": (VISIBLE, HIDDEN), "bias": (HIDDEN,), "visible_bias": (VISIBLE,)}
    return {name: rng.normal(0, 0.8, shape).astype(np.float32) for name, shape in shapes.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def energy(v: np.ndarray, h: np.ndarray, visible: str, w: dict[str, np.ndarray]) -> float:
    """Of one state of all units (Hinton 2010)."""
    own = -(v @ w["visible_bias"]) if visible == "bernoulli" else ((v - w["visible_bias"]) ** 2).sum() / 2
    return float(own - h @ w["bias"] - v @ w["weight"] @ h)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_free_energy_and_probabilities_by_enumeration(visible: str) -> None:
    w, rbm = weights(), layers.RBM(HIDDEN, visible, weights=weights())
    v = np.random.default_rng(1).integers(0, 2, (BATCH, VISIBLE)).astype(np.float32)
    v += 0.3 * (visible == "gaussian")
    free, up = rbm.free_energy(v), rbm(v)
    for row, found, probability in zip(v, free, up, strict=True):
        hidden = [np.array(h) for h in itertools.product((0, 1), repeat=HIDDEN)]
        likely = np.exp([-energy(row, h, visible, w) for h in hidden])
        assert found == pytest.approx(-np.log(likely.sum()), rel=1e-4)
        np.testing.assert_allclose(probability, likely @ np.array(hidden) / likely.sum(), rtol=1e-4)
    h = np.eye(HIDDEN, dtype=np.float32)
    mean = h @ w["weight"].T + w["visible_bias"]
    expected = sigmoid(mean) if visible == "bernoulli" else mean
    np.testing.assert_allclose(rbm.reconstruct(h), expected, rtol=1e-5)


def contrast(rbm: Any, v: Any, dream: Any) -> None:
    loss = nv.mean(rbm.free_energy(v)) - nv.mean(rbm.free_energy(nv.stop_gradient(dream)))
    nv.minimize(loss, rbm, nv.optimizers.SGD(momentum=MOMENTUM, weight_decay=DECAY), np.float32(RATE))


def test_contrastive_divergence_is_numpys_for_the_same_random_numbers() -> None:
    """CD-1 as Hinton (2010) writes it: hidden units drawn once, then means, for three steps with momentum and decay;
    and persistent CD, whose chain lives in a variable."""
    first = np.random.default_rng(2).random((BATCH, VISIBLE), np.float32)
    chain = nv.Variable(first, trainable=False, name="chain")
    from_data, persistent = (layers.RBM(HIDDEN, weights=weights(), name=n) for n in ("from_data", "persistent"))

    @nv.network
    def up(v: nv.Input(batch_shape=(BATCH, VISIBLE))):
        return from_data(v), persistent(v), nv.random.uniform((BATCH, HIDDEN))

    @nv.network
    def cd(v: nv.Input(batch_shape=(BATCH, VISIBLE))):
        contrast(from_data, v, from_data.gibbs(v))
        return nv.random.uniform((1,))

    @nv.network
    def pcd(v: nv.Input(batch_shape=(BATCH, VISIBLE))):
        persistent(v)
        contrast(persistent, v, nv.assign(chain, persistent.gibbs(chain)))
        return nv.random.uniform((1,))

    session = nv.compile(up, steps=[cd, pcd]).session
    v = np.random.default_rng(3).random((BATCH, VISIBLE), np.float32)
    for entry, name in (("cd", "from_data"), ("pcd", "persistent")):
        session.reset()
        numbers = []
        for _ in range(3):  # the same state of the generator gives the same numbers
            numbers.append(session.run(None, {"v": v})[2])
        session.reset()
        w = {k: a.astype(np.float64) for k, a in weights().items()}
        speed, at = {k: 0 * a for k, a in w.items()}, first.astype(np.float64)
        for drawn in numbers:
            session.run(None, {"v": v}, entry=entry)
            start = v.astype(np.float64) if name == "from_data" else at
            h = drawn < sigmoid(start @ w["weight"] + w["bias"])
            at = sigmoid(h @ w["weight"].T + w["visible_bias"])
            plus, minus = (sigmoid(s @ w["weight"] + w["bias"]) for s in (v, at))
            gradient = {
                "weight": (at.T @ minus - v.T @ plus) / BATCH,
                "bias": (minus - plus).mean(axis=0),
                "visible_bias": (at - v).mean(axis=0),
            }
            for k, g in gradient.items():
                speed[k] = MOMENTUM * speed[k] + g + DECAY * w[k]
                w[k] = w[k] - RATE * speed[k]
        params = session.params()
        for k, expected in w.items():
            np.testing.assert_allclose(params[f"{name}.{k}"], expected, atol=1e-5, err_msg=f"{entry} {k}")
        if entry == "pcd":
            np.testing.assert_allclose(session.states()["chain"], at, atol=1e-5)


def test_the_chain_draws_from_the_boltzmann_distribution() -> None:
    """How often each of the 16 visible states comes, against its probability by enumeration."""
    many, w = 40_000, weights()
    rbm, chain = layers.RBM(HIDDEN, weights=w), nv.Variable(np.zeros((many, VISIBLE)), trainable=False, name="chain")
    normal = layers.RBM(HIDDEN, "gaussian", weights=w)

    @nv.network
    def go(h: nv.Input(batch_shape=(1, HIDDEN))):
        rbm(chain), normal(chain)
        moved = nv.assign(chain, rbm.gibbs(chain, sampled=True))
        return moved, normal.sample_visible(nv.broadcast_to(h, (many, HIDDEN)))

    model = nv.compile(go)
    h = np.array([[1, 0, 1]], np.float32)
    for _ in range(20):
        states, drawn = model(h)
    assert set(np.unique(states)) == {0, 1}
    every = [np.array(s) for s in itertools.product((0, 1), repeat=VISIBLE)]
    hidden = [np.array(s) for s in itertools.product((0, 1), repeat=HIDDEN)]
    likely = np.array([sum(np.exp(-energy(v, s, "bernoulli", w)) for s in hidden) for v in every])
    often = np.bincount((states @ [8, 4, 2, 1]).astype(int), minlength=16) / many
    np.testing.assert_allclose(often, likely / likely.sum(), atol=0.01)
    np.testing.assert_allclose(drawn.mean(axis=0), (h @ w["weight"].T + w["visible_bias"])[0], atol=0.03)
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=0.03)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(nv.NervureError, match="visible: expected 'bernoulli' or 'gaussian'"):
        layers.RBM(3, visible="poisson")
    with pytest.raises(nv.NervureError, match=r"expected an input \[batch, features\]"):
        layers.RBM(3)(np.zeros((2, 3, 4), np.float32))
    rbm = layers.RBM(3)
    rbm(np.zeros((2, 4), np.float32))
    with pytest.raises(nv.NervureError, match="expected 3 hidden units"):
        rbm.reconstruct(np.zeros((2, 4), np.float32))
    with pytest.raises(nv.NervureError, match="steps: expected a whole number"):
        rbm.gibbs(np.zeros((2, 4), np.float32), steps=0)
