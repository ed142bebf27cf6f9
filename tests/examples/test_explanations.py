"""The example of explanations: its helpers, and what its explanations promise of a photograph."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from example_runs import Load, run


def test_blurred_is_the_mean_of_squares_twice(load: Load) -> None:
    places = np.random.default_rng(0).random((7, 9))
    expected = places
    for _ in range(2):
        padded = np.pad(expected, 1, mode="edge")
        expected = sum(padded[i : i + 7, j : j + 9] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(load("explanations").blurred(places, 1), expected)


def test_the_cat_lies_where_it_is_said(load: Load) -> None:
    picture, place = load("explanations").scene(64)
    assert picture.shape == (1, 128, 128, 3) and picture.dtype == np.float32 and np.abs(picture).max() <= 1
    assert place.sum() == 64 * 64 and place[40, 32] and not place[39, 32]
    assert picture[0][place].std() > 0.3 > picture[0][~place].std()


@pytest.mark.slow
def test_sums_hold_and_every_explanation_finds_the_cat(tmp_path: Path) -> None:
    said = run("explanations", tmp_path)
    assert "MobileNet sees: Egyptian cat" in said
    area = int(re.search(r"takes up (\d+)%", said)[1])
    shares = {name: int(share) for name, share in re.findall(r"(\w+): (\d+)% of the relevance", said)}
    assert len(shares) == 6 and min(shares.values()) > 1.2 * area, shares
    off = {name: float(part) for name, part in re.findall(r"(\w+): sums to .*\(([+-][\d.]+)%\)", said)}
    assert set(off) == {"integrated_gradients", "lrp"} and max(map(abs, off.values())) < 1, off
    assert "a C program explains the same" in said
