"""Data sets: shapes, types, stand-ins."""

from __future__ import annotations

import sys
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure.frontends.datasets import _blobs


def test_stand_ins_say_so_and_are_always_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NERVURE_DATA", str(tmp_path))
    data = nv.datasets
    (x, y), (x_test, y_test) = data.fashion_mnist()
    assert "stand-in" in capsys.readouterr().out
    assert x.shape == (2000, 1, 28, 28) and x_test.shape == (500, 1, 28, 28) and x.dtype == np.float32
    assert set(y) == set(y_test) == set(range(10)) and x.min() >= 0 and x.max() <= 1
    np.testing.assert_array_equal(_blobs(9, 1)["x_train"], _blobs(9, 1)["x_train"])
    sound, digits, speaker = data.spoken_digits()
    assert sound.shape == (600, 8000) and np.abs(sound).max() <= 1 and len(np.unique(speaker)) == 6
    assert (np.bincount(digits) == 60).all()


def test_data_are_taken_from_the_folder_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = np.full((3, 28, 28), 51, np.uint8)
    np.savez(tmp_path / "fashion_mnist.npz", x_train=x, y_train=[1, 2, 3], x_test=x[:1], y_test=[4])
    monkeypatch.setenv("NERVURE_DATA", str(tmp_path))
    (found, y), (_, y_test) = nv.datasets.fashion_mnist()
    np.testing.assert_allclose(found, 0.2, rtol=1e-6)
    assert y.tolist() == [1, 2, 3] and y_test.tolist() == [4]


@pytest.mark.parametrize("standing_in", [False, True])
def test_each_has_the_shape_that_it_says(standing_in: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if standing_in:
        monkeypatch.setenv("NERVURE_DATA", str(tmp_path))
        monkeypatch.setitem(sys.modules, "sklearn", None)
    else:
        pytest.importorskip("sklearn")
    (x, y), (x_test, y_test) = nv.datasets.digits()
    assert x.shape == (1437, 1, 8, 8) and x_test.shape == (360, 1, 8, 8) and 0 <= x.min() < x.max() <= 1
    assert len(y) == 1437 and len(y_test) == 360 and set(y) == set(range(10)) and x.dtype == np.float32
    (x, y), _ = nv.datasets.cifar10()
    assert x.shape[1:] == (3, 32, 32) and x.max() <= 1 and y.dtype == np.int32
    for name, shape, classes in (("iris", (150, 4), 3), ("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2)):
        x, y = getattr(nv.datasets, name)()
        assert x.shape == shape and x.dtype == np.float32 and set(y) == set(range(classes)) and y.dtype == np.int32
    x, y = nv.datasets.diabetes()
    assert x.shape == (442, 10) and y.shape == (442,) and y.dtype == np.float32
    x, y = nv.datasets.keywords()
    assert x.shape == (500, 49, 10, 1) and x.dtype == np.float32 and set(y) == set(range(12))


def test_the_text_is_long_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(nv.datasets.text()) > 100_000
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert len(nv.datasets.text()) > 100_000 and nv.datasets.text() == nv.datasets.text()
