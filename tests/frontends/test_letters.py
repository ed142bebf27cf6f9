"""``nv.datasets.letters``: many classes, each alike and each its own."""

from __future__ import annotations

import sys

import nervure as nv
import numpy as np
import pytest


def test_letters_of_five_alphabets() -> None:
    pytest.importorskip("matplotlib")
    x, y, alphabet = nv.datasets.letters()
    assert x.shape == (len(y), 1, 28, 28) and x.dtype == np.float32 and y.dtype == np.int32
    assert x.min() == 0 and x.max() == 1
    assert (np.bincount(y) == 24).all() and len(np.unique(y)) > 200
    assert {str(a) for a in alphabet} == {"Latin", "Greek", "Cyrillic", "Armenian", "Georgian"}
    assert all(len({*alphabet[y == c]}) == 1 for c in range(0, y.max(), 20))
    ink = x.mean(axis=(1, 2, 3))
    assert ink.min() > 0.005 and ink.max() < 0.5  # no empty boxes, and no letter out of the picture
    assert len({p.tobytes() for p in x}) == len(x)  # no two pictures are the same
    means = np.stack([x[y == c].mean(axis=0).ravel() for c in np.unique(y)])
    near = np.linalg.norm(means[:, None] - means[None], axis=2) + 1e9 * np.eye(len(means))
    assert near.min() > 0.3  # no letter is there twice


def test_a_stand_in_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    x, y, alphabet = nv.datasets.letters()
    assert "a generated stand-in" in capsys.readouterr().out
    assert x.shape[1:] == (1, 28, 28) and len(np.unique(y)) == 75 and len({*alphabet}) == 5
    assert np.bincount(y).min() >= 15 and (np.diff(y) >= 0).all()
