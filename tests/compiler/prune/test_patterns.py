"""Patterns: cells, groups and edges, against what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nervure.compiler.prune.patterns import UNSTRUCTURED, Pattern, from_matrix, parse, to_matrix, vector_block
from nervure.errors import NervureError
from nervure.targets import get


def _scores(k: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((k, n)) + 0.01


@pytest.mark.parametrize("text", ["unstructured", "block:1x16", "block:4x16", "2:4", "1:4", "2:4x16"])
def test_a_pattern_is_read_as_it_is_written(text: str) -> None:
    assert str(parse(text, get("x86-64-v4"))) == text


def test_blocks_are_as_wide_as_the_machine() -> None:
    assert str(parse("block", get("x86-64-v3"))) == "block:1x8"
    assert str(vector_block(get("rpi4"), "int8")) == "block:4x4"
    assert str(parse("2:4v", get("x86-64-v4"))) == "2:4x16"


@pytest.mark.parametrize("text", ["3:2", "block:0x4", "blocks", ":4", "2:0x1"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(NervureError, match="pattern"):
        parse(text, get("x86-64-v4"))


@given(
    taps=st.integers(1, 3),
    channels=st.integers(1, 13),
    n=st.integers(1, 40),
    rows=st.integers(1, 5),
    columns=st.integers(1, 17),
    sparsity=st.floats(0, 0.99),
)
def test_cells_live_and_die_together(
    taps: int, channels: int, n: int, rows: int, columns: int, sparsity: float
) -> None:
    pattern = Pattern(rows, columns)
    scores = _scores(taps * channels, n)
    mask = pattern.mask(scores, channels, sparsity)
    kept = mask.sum() / mask.size
    assert kept >= 1 - sparsity - 1e-9 and kept <= 1 - sparsity + rows * columns / mask.size + 1e-9
    lowest = np.inf
    highest = 0.0
    for tap in range(taps):
        for i in range(0, channels, rows):
            for j in range(0, n, columns):
                at = np.s_[tap * channels + i : tap * channels + min(i + rows, channels), j : j + columns]
                cell, mean = mask[at], scores[at].mean()
                assert cell.all() or not cell.any()
                if cell.all():
                    lowest = min(lowest, mean)
                else:
                    highest = max(highest, mean)
    assert lowest >= highest - 1e-12


@given(
    taps=st.integers(1, 3),
    channels=st.integers(1, 13),
    n=st.integers(1, 20),
    columns=st.integers(1, 6),
    group=st.integers(1, 6),
    data=st.data(),
)
def test_n_of_m(taps: int, channels: int, n: int, columns: int, group: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, group))
    pattern = Pattern(1, columns, keep, group)
    scores = _scores(taps * channels, n)
    mask = pattern.mask(scores, channels)
    assert pattern.fits(mask * scores, channels)
    for tap in range(taps):
        part = mask[tap * channels : (tap + 1) * channels]
        for i in range(0, channels, group):
            rows = part[i : i + group]
            assert (rows.sum(axis=0) == -(-keep * len(rows) // group)).all()
    if keep < group <= channels:
        assert not pattern.fits(scores, channels)


def test_a_convolution_is_a_matrix_tap_after_tap() -> None:
    weights = np.random.default_rng(0).random((5, 3, 2, 4)).astype(np.float32)
    matrix = to_matrix(weights, "conv")
    assert matrix.shape == (24, 5) and matrix[(1 * 4 + 2) * 3 + 1, 4] == weights[4, 1, 1, 2]
    assert np.array_equal(from_matrix(matrix, weights.shape, "conv"), weights)


def test_the_strongest_weights_stay() -> None:
    scores = np.arange(20.0).reshape(4, 5)
    assert np.array_equal(UNSTRUCTURED.mask(scores, 4, 0.75), scores >= 15)
