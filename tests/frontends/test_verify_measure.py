"""The measure itself: it sees a small wrong score beside a large right box, and forgives nothing in integers."""

from __future__ import annotations

import numpy as np
from nervure.frontends.verify import slice_error

F32 = np.float32


def test_a_large_value_does_not_hide_a_small_one() -> None:
    boxes = np.array([[[640.0, 0.5], [320.0, 0.25]]], F32)
    wrong = boxes.copy()
    wrong[0, 1, 1] = 0.3
    assert slice_error(boxes, boxes) == 0
    assert 0.05 < slice_error(wrong, boxes) < 0.11


def test_integers_shapes_types_and_wild_values() -> None:
    a = np.array([1, 2, 3])
    assert slice_error(a, a) == 0
    assert slice_error(a + np.array([0, 0, 1]), a) == float("inf")
    assert slice_error(a.astype(F32), a) == float("inf")
    assert slice_error(np.zeros(3, F32), np.zeros(4, F32)) == float("inf")
    wild = np.array([1.0, np.nan, np.inf], F32)
    assert slice_error(wild, wild) == 0
    assert slice_error(np.array([1.0, np.nan, 5.0], F32), wild) == float("inf")
    assert slice_error(np.array([np.nan, np.nan, np.inf], F32), wild) == float("inf")
    assert slice_error(np.float32(1.0), np.float32(1.0)) == 0
    assert slice_error(np.zeros(3, F32), np.zeros(3, F32)) == 0
    assert slice_error(np.full(3, 1e-9, F32), np.zeros(3, F32)) == float("inf")
