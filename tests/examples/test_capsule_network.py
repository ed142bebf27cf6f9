"""The capsule network: its accuracy on Fashion-MNIST, and what its picture shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_capsules_name_clothes(tmp_path: Path) -> None:
    said = run("capsule_network", tmp_path, data=DATA)
    (accuracy,) = numbers(said, r"accuracy on held-out clothes: ([\d.]+)%")
    assert accuracy >= 89


def test_the_two_numbers_that_matter_most_are_moved(load: Load) -> None:
    example = load("capsule_network")
    asked = []

    class Program:
        def run(self, _: None, feeds: dict[str, Any], entry: str) -> list[np.ndarray]:
            asked.append((entry, feeds["kind"].item()))
            one = feeds["vectors"][0, 4]
            drawn = 0.1 * one[0] + 3 * one[7] * np.eye(28) + 2 * one[2]
            return [np.broadcast_to(drawn, (1, 1, 28, 28))]

    rows = example.moved(Program(), np.zeros((1, 10, example.DIM), np.float32), 4)
    shifts = np.linspace(-0.3, 0.3, 11)
    np.testing.assert_allclose(rows[0, :, 1, 2], 2 * shifts, atol=1e-6)  # everywhere
    np.testing.assert_allclose(rows[1, :, 2, 2], 3 * shifts, atol=1e-6)  # on the diagonal alone
    assert set(asked) == {("draw", 4)}
