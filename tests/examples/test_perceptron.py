"""The perceptron: the neuron's number, Rosenblatt's rule against plain numpy, what converges and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_runs import DATA, Load, run

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.array([0, 1, 1, 0], np.float32)
AND = XOR[0], np.array([0, 0, 0, 1], np.float32)


def plainly(x: np.ndarray, y: np.ndarray, epochs: int) -> tuple[list[list[float]], list[int]]:
    """The weights after each epoch, and its mistakes."""
    w, b = np.zeros(2), 0.0
    ends, mistakes = [[0.0, 0.0, 0.0]], []
    for _ in range(epochs):
        wrong = 0
        for a, t in zip(x, y, strict=True):
            error = t - (a @ w + b > 0)
            w, b, wrong = w + error * a, b + error, wrong + (error != 0)
        ends.append([*w, b])
        mistakes.append(wrong)
    return ends, mistakes


@pytest.mark.parametrize(("x", "y"), [AND, XOR], ids=["and", "xor"])
def test_the_rule_is_rosenblatts(load: Load, x: np.ndarray, y: np.ndarray) -> None:
    ends, lines, mistakes = load("perceptron").Perceptron(np.zeros(2)).train(x, y, 30, "")
    expected, wrong = plainly(x, y, len(mistakes))
    assert ends == expected and mistakes == wrong and len(lines) == sum(wrong)
    if y is AND[1]:
        assert mistakes[-1] == 0
    else:  # the same weights again, so the same mistakes for ever: also in the next 500 epochs
        assert ends[-1] in ends[:-1] and min(plainly(x, y, 500)[1]) > 0


@pytest.mark.slow
def test_the_textbooks_neuron_and_irises(tmp_path: Path) -> None:
    said = run("perceptron", tmp_path, data=DATA)
    assert "0.5 x 1 - 0.2 x 0 + 0.3 x 1 = 0.8" in said  # the example compares it exactly
    assert "and 0 mistakes in epoch" in said and "100% of the flowers, and a C program answers the same" in said
