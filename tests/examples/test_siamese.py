"""The siamese network: pairs as they should be, and the area under the curve on letters that it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_runs import DATA, Load, numbers, run

Y = np.repeat(np.arange(5, 15), 6)


def test_pairs_are_of_one_letter_and_of_two(load: Load) -> None:
    (one, other), same = load("siamese").pairs(np.random.default_rng(0), Y, 200)
    assert one.shape == other.shape == same.shape == (400,) and same.sum() == 200
    np.testing.assert_array_equal(Y[one] == Y[other], same)
    assert (one != other).all() and len(np.unique(Y[one])) == 10


def test_a_batch_has_as_many_pictures_of_each_letter(load: Load) -> None:
    chosen = load("siamese").some(np.random.default_rng(0), Y, 4, 3)
    assert chosen.shape == (4, 3) and len(np.unique(chosen)) == 12
    assert (Y[chosen] == Y[chosen[:, :1]]).all() and len(np.unique(Y[chosen[:, 0]])) == 4


@pytest.mark.slow
def test_letters_of_other_alphabets_are_verified(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = run("siamese", tmp_path, data=DATA)
    assert "132 letters to learn from, 4000 pairs of 104 others" in said
    pixels, contrastive, triplet = numbers(said, r"ROC curve, .*: ([\d.]+)")
    assert triplet >= 0.95 and contrastive > 0.9 and pixels < 0.65
