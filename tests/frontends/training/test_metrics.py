"""Metrics against numpy; the accuracy that the shapes ask for."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.types import TensorType

M = nv.metrics
RNG = np.random.default_rng(5)
B, C = 9, 6
SCORES = RNG.normal(0, 1, (B, C)).astype(np.float32)
LABELS = np.where(RNG.uniform(size=B) > 0.4, SCORES.argmax(1), RNG.integers(0, C, B))
ONE_HOT = np.eye(C, dtype=np.float32)[LABELS]
CHANCES = RNG.uniform(0, 1, (B, C)).astype(np.float32)
BITS = np.where(RNG.uniform(size=(B, C)) > 0.3, CHANCES > 0.5, CHANCES < 0.5).astype(np.float32)
TEXT = RNG.normal(0, 1, (B, 4, C)).astype(np.float32)
WORDS = np.where(RNG.uniform(size=(B, 4)) > 0.4, TEXT.argmax(-1), RNG.integers(0, C, (B, 4)))
PIXELS = np.moveaxis(TEXT, -1, 1).copy()

RIGHT = (SCORES.argmax(1) == LABELS).astype(np.float32)
SIDES = ((CHANCES > 0.5) == BITS).mean(1)
PLACES = (SCORES[np.arange(B), LABELS][:, None] < SCORES).sum(1)
FOUND = (TEXT.argmax(-1) == WORDS).mean(1)

CASES = {
    "binary": ("binary_accuracy", BITS, CHANCES, SIDES),
    "binary threshold": (M.BinaryAccuracy(threshold=0.8), BITS, CHANCES, ((CHANCES > 0.8) == BITS).mean(1)),
    "categorical": ("categorical_accuracy", ONE_HOT, SCORES, RIGHT),
    "sparse": ("sparse_categorical_accuracy", LABELS, SCORES, RIGHT),
    "accuracy of classes": ("accuracy", LABELS, SCORES, RIGHT),
    "accuracy of a column": ("acc", LABELS[:, None].astype(np.float32), SCORES, RIGHT),
    "accuracy of one-hot": ("accuracy", ONE_HOT, SCORES, RIGHT),
    "accuracy of one output": ("accuracy", BITS[:, 0], CHANCES[:, :1], (CHANCES[:, 0] > 0.5) == BITS[:, 0]),
    "accuracy of words": ("accuracy", WORDS, TEXT, FOUND),
    "accuracy of pixels": ("accuracy", WORDS, PIXELS, FOUND),
    "top 2": (M.SparseTopKCategoricalAccuracy(k=2), LABELS, SCORES, PLACES < 2),
    "top 3 of one-hot": (M.TopKCategoricalAccuracy(3), ONE_HOT, SCORES, PLACES < 3),
    "top 5": ("sparse_top_k_categorical_accuracy", LABELS, SCORES, PLACES < 5),
    "mse": ("mse", ONE_HOT, SCORES, ((ONE_HOT - SCORES) ** 2).mean(1)),
    "mae": ("mae", ONE_HOT, SCORES, np.abs(ONE_HOT - SCORES).mean(1)),
    "squares of rmse": ("rmse", ONE_HOT, SCORES, ((ONE_HOT - SCORES) ** 2).mean(1)),
    "cosine": (
        "cosine_similarity",
        BITS + 0.5,
        SCORES,
        ((BITS + 0.5) * SCORES).sum(1) / np.linalg.norm(BITS + 0.5, axis=1) / np.linalg.norm(SCORES, axis=1),
    ),
    "function": (lambda t, p: nv.max(nv.abs(t - p), -1), ONE_HOT, SCORES, np.abs(ONE_HOT - SCORES).max(1)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_metric_is_its_formula(case):
    metric, t, p, want = CASES[case]
    found = M.get(metric)(t, p)
    assert found.dtype == np.float32 and found.shape == (B,)
    np.testing.assert_allclose(found, np.asarray(want, np.float32), rtol=1e-5, atol=1e-6)


def test_both_sides_of_the_cases_occur():
    for values in (RIGHT, SIDES, FOUND, PLACES < 2, PLACES < 3):
        assert 0 < np.mean(values) < 1


def test_labels_that_are_no_class_are_never_right():
    wrong = np.full(B, -1)
    assert not M.get("sparse_categorical_accuracy")(wrong, SCORES).any()
    assert not M.SparseTopKCategoricalAccuracy(k=C)(wrong, np.abs(SCORES)).any()


def test_metrics_keep_the_name_that_they_are_asked_for_by():
    assert M.get("acc").name == "acc" and M.get("mae").name == "mae"
    assert M.get(M.Accuracy).name == "accuracy" and M.get(nv.losses.Huber(2.0)).name == "huber"
    assert M.get("rmse").finish == "sqrt" and M.get("accuracy").finish is None
    assert M.get("sparse_categorical_accuracy").target(TensorType("float32", (4, 7))) == TensorType("int32", (4,))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: M.get("auc"), "net.predict"),
        (lambda: M.get("acuracy"), "accuracy"),
        (lambda: M.get(3), "must be a name"),
        (lambda: M.get("accuracy")(np.zeros((B, 3)), SCORES), "class numbers"),
        (lambda: M.TopKCategoricalAccuracy(k=9)(ONE_HOT, SCORES), "smaller k"),
        (lambda: M.TopKCategoricalAccuracy(k=0), "whole number"),
    ],
)
def test_wrong_metrics_are_one_clear_error(make, part):
    with pytest.raises(nv.NervureError) as caught:
        make()
    assert part in str(caught.value) and "test_metrics.py" in str(caught.value)
