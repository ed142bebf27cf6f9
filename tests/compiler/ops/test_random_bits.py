"""Threefry's published answers, and that its words look random."""

from __future__ import annotations

import numpy as np
import pytest
from nervure.compiler.ops import OPS
from nervure.compiler.ops.numeric import threefry

ALL = 0xFFFFFFFF
# key, counter and first word by rounds: the known answers of the Random123 library, which the paper's authors publish
ANSWERS = [
    ((0, 0), (0, 0), {13: 0x9D1C5EC6, 20: 0x6B200159}),
    ((ALL, ALL), (ALL, ALL), {13: 0xFD36D048, 20: 0x1CB996FC}),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), {13: 0xBA3E4725, 20: 0xC4923A9C}),
]


@pytest.mark.parametrize(("key", "counter", "answers"), ANSWERS)
def test_known_answers(key: tuple[int, int], counter: tuple[int, int], answers: dict[int, int]) -> None:
    words = [np.array([c], np.uint32) for c in counter]
    with np.errstate(over="ignore"):
        assert {r: int(threefry(np.array(key, np.uint32), *words, rounds=r)[0]) for r in answers} == answers


def _bits(seed: int, counter: int, shape: tuple[int, ...]) -> np.ndarray:
    reference = OPS["random_bits"].reference
    assert reference is not None
    return np.asarray(reference(np.array([seed, counter], np.uint32), shape=shape))


def test_an_element_depends_on_its_place_alone() -> None:
    whole = _bits(3, 5, (1000,))
    np.testing.assert_array_equal(_bits(3, 5, (10, 20)), whole[:200].reshape(10, 20))


def test_bits_are_fair_and_independent() -> None:
    count = 40_000
    bits = np.unpackbits(_bits(1, 2, (count,)).view(np.uint8).reshape(count, 4), axis=1).astype(np.float64)
    limit = 5 / np.sqrt(count)  # five standard deviations, of a mean of fair signs
    signs = 2 * bits - 1
    assert np.abs(signs.mean(axis=0)).max() < limit
    correlation = signs.T @ signs / count - np.eye(32)
    assert np.abs(correlation).max() < limit
    assert np.abs((signs[1:] * signs[:-1]).mean(axis=0)).max() < limit


@pytest.mark.parametrize("other", [(1, 3), (2, 2)])
def test_neighbouring_keys_have_nothing_in_common(other: tuple[int, int]) -> None:
    differing = np.unpackbits((_bits(1, 2, (4000,)) ^ _bits(*other, (4000,))).view(np.uint8))
    assert abs(differing.mean() - 0.5) < 5 * 0.5 / np.sqrt(differing.size)
