"""The radial basis function network's example: its figures, and what it is compared with."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import Load, numbers, run


def test_kernel_ridge_has_as_many_centres(load: Load) -> None:
    example = pytest.importorskip("sklearn") and load("rbf_network")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 10))
    y = np.sin(x[:, :1]) + 0.1 * x[:, 1:2]
    found = example.kernel_ridge(x, y, 0)
    assert found.best_estimator_[0].components_.shape == (example.UNITS, 10)
    assert found.best_params_["nystroem__gamma"] in (0.001, 0.003, 0.01, 0.03, 0.1)


@pytest.mark.slow
def test_rbf_network(tmp_path: Path) -> None:
    """On patients held out, in five folds: below scikit-learn's kernel ridge with as many centres already by k-means
    and least squares, and lower still when trained end to end. The library learns in C as it does from Python."""
    pytest.importorskip("sklearn")
    said = run("rbf_network", tmp_path)
    ridge, solved, trained = numbers(said, r"error on held-out patients ([\d.]+)")
    assert trained < solved < ridge < 60
    assert "Python and a C program answer alike for 88 patients" in said

    path, rng = tmp_path / "rbf_network.so", np.random.default_rng(0)
    x, y = rng.normal(size=(20, 1, 10)).astype(np.float32), rng.normal(size=(20, 1, 1)).astype(np.float32)
    session = nv.load(path)
    expected = [session.run(None, {"x": a, "y": b}, entry="solve")[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(nv.run_in_c(path, x, y, entry="solve"), np.concatenate(expected), atol=1e-5)
