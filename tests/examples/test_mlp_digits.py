"""The multilayer perceptron on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_runs import DATA, numbers, run


@pytest.mark.slow
def test_digits_are_read(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    said = run("mlp_digits", tmp_path, data=DATA)
    assert numbers(said, r"accuracy on held-out digits: ([\d.]+)%")[0] >= 97
    assert numbers(said, r"mlp_digits.so: ([\d.]+)%, and a C program answers the same")[0] >= 97
