"""Reptile: the rule of the slow weights, and how soon new letters are learned."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, numbers, run


def test_slow_weights_go_to_the_fast_ones_and_fast_ones_back(load: Load) -> None:
    example = load("meta_learning")
    model = nv.compile(example.net, steps=[example.learn, example.settle, example.restart])
    session, rng = model.session, np.random.default_rng(0)
    first = session.params()
    names = {f"slow.{i}": name for i, name in enumerate(n for n in first if not n.startswith("slow"))}
    assert names and all((first[slow] == first[fast]).all() for slow, fast in names.items())
    picture = rng.random((5, *example.PICTURE), np.float32)
    losses = [session.run(None, {"picture": picture, "letter": example.LETTERS}, entry="learn")[0] for _ in range(10)]
    assert losses[-1] < losses[0]
    learned = session.params()
    (away,) = session.run(None, {"rate": np.float32(0.001)}, entry="settle")
    expected = sum(((first[slow] - learned[fast]).astype(np.float64) ** 2).sum() for slow, fast in names.items()) / 2
    assert away == pytest.approx(expected, rel=1e-4)
    settled = session.params()
    for slow, fast in names.items():
        moved, wanted = settled[slow] - first[slow], learned[fast] - first[slow]
        far = np.abs(wanted) > 1e-4
        np.testing.assert_allclose(moved[far], 0.001 * np.sign(wanted[far]), rtol=0.02)  # Adam's first step
        assert (settled[fast] == learned[fast]).all()
    session.run(None, {}, entry="restart")
    assert all((session.params()[fast] == settled[slow]).all() for slow, fast in names.items())


@pytest.mark.slow
def test_new_letters_are_learned_in_a_few_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = run("meta_learning", tmp_path, data=DATA)
    untrained, reptile, pixels = numbers(said, r"one example each, by .*: ([\d.]+)%")
    assert reptile > 55 and reptile > pixels + 20 and reptile > untrained + 20
    assert max(numbers(said, r"% ± ([\d.]+)")) < 2.5
