"""Continual learning: what the springs and the scores are, and how much is forgotten."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


def test_known_tasks_leave_two_answers(load: Load) -> None:
    example = load("continual_learning")

    @nv.network
    def both(x: nv.Input(batch_shape=(3, 784)), kind: nv.Input(batch_shape=(3,), dtype="int32")):
        return nv.softmax(example.scores(x, kind, 1.0)), example.scores(x, kind, 0.0)

    x, kind = np.random.default_rng(0).random((3, 784), np.float32), np.array([0, 5, 9], np.int32)
    chances, plain = both(x, kind)
    np.testing.assert_allclose(plain, example.net(x), atol=1e-5)
    for row, k in zip(chances, kind, strict=True):
        assert set(np.flatnonzero(row)) == {k // 2 * 2, k // 2 * 2 + 1}


def test_springs_hold_the_weights_that_matter(load: Load) -> None:
    """The Fisher diagonal of the last layer's bias is that of the formula, (p - 1[c])² of classes drawn by p, and a
    strong spring at those weights keeps them."""
    example = load("continual_learning")
    model = nv.compile(example.net, steps=[example.learn, example.measure, example.rehearse])
    session, rng = model.session, np.random.default_rng(1)
    x, known = rng.random((1, 784), np.float32), np.float32(0)
    scores = model(x)[0].astype(np.float64)
    p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    feeds = {"picture": x, "kind": np.zeros(1, np.int32), "known": known}
    for _ in range(2000):
        session.run(None, feeds, entry="measure")
    states = session.states()
    expected = p * (1 - p) * 2000 / example.MEASURED  # the mean of (p - 1[c])²
    np.testing.assert_allclose(states["fisher.5"], expected, rtol=0.25)
    np.testing.assert_array_equal(states["anchor.4"], session.params()["net.dense_2.weight"])

    before = session.params()
    batch = {"picture": np.repeat(x, 32, 0), "kind": np.full(32, 3, np.int32), "known": known}
    moved = {}
    for spring in (0, 30):
        session.set_params(before)
        for _ in range(5):
            session.run(None, batch | {"spring": np.float32(spring)}, entry="learn")
        moved[spring] = np.abs(session.params()["net.dense_2.bias"] - before["net.dense_2.bias"]).sum()
    assert moved[30] < 0.5 * moved[0]


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_at_most_half_is_forgotten(tmp_path: Path) -> None:
    said = run("continual_learning", tmp_path, data=DATA)
    naive, springs, memory = numbers(said, r"one of two clothes, .*: ([\d.]+) points")
    assert naive > 5 and springs <= naive / 2 and memory <= naive / 2
    naive, springs, memory = numbers(said, r"one of ten clothes, .*: ([\d.]+) points")
    assert naive > 90 and memory <= naive / 2
    assert springs > 90  # elastic weights are known to fail there
