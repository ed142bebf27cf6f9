"""Transfer learning, as the example does it: on what the repository holds, and with ImageNet weights of MobileNetV2
where they lie beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_runs import DATA, EXAMPLES, Load, needs_data, numbers, run

MODEL = EXAMPLES.resolve().parents[1] / "shared" / "models" / "mnv2_imagenet_tv.onnx"


def test_as_many_pictures_of_each_class(load: Load, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (900, 32, 32, 3)).astype(np.uint8), np.arange(900) % 3
    np.savez(tmp_path / "some.npz", x_train=x, y_train=y, x_test=x[:90], y_test=y[:90])
    example = load("transfer_learning")
    example.PICTURES = 600
    found, labels, test, answers = example.pictures(tmp_path / "some.npz")
    assert np.bincount(labels).tolist() == [200, 200, 200] and found.dtype == np.float32
    np.testing.assert_array_equal(found[:5], x[:5])
    assert sorted(map(float, test.sum(axis=(1, 2, 3)))) == sorted(map(float, x[:90].sum(axis=(1, 2, 3))))
    where = {float(p.sum()): int(label) for p, label in zip(x[:90], y[:90], strict=True)}
    assert [where[float(p.sum())] for p in test] == answers.tolist()


def check(said: str, folder: Path) -> list[float]:
    """Accuracy in percent, with the body frozen and after unfreezing."""
    (memory,) = numbers(said, r"all weights [\d.]+ MB: ([\d.]+) %")
    (difference,) = numbers(said, r"ONNX Runtime: ([\d.e+-]+)")
    assert memory <= 15 and difference < 1e-4
    assert (folder / "transfer.onnx").stat().st_size > 100_000
    return numbers(said, r"test accuracy ([\d.]+) %")


@pytest.mark.slow
@needs_data("cifar10_subset.npz")
def test_a_small_mobilenet_learns_cifar(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    frozen, unfrozen = check(run("transfer_learning", tmp_path, 4, data=DATA), tmp_path)
    assert frozen > 60 and unfrozen > 60


@pytest.mark.slow
@needs_data("cifar10_subset.npz")
@pytest.mark.skipif(not MODEL.exists(), reason="no MobileNetV2 beside the project")
def test_mobilenet_v2_learns_cifar(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = run("transfer_learning", tmp_path, 10, MODEL, DATA / "cifar10_subset.npz", data=DATA, timeout=1500)
    frozen, unfrozen = check(said, tmp_path)
    assert frozen > 75 and unfrozen > 75
