"""The vision transformer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


@pytest.mark.slow
@needs_data("fashion_mnist.npz")
def test_it_knows_clothes(tmp_path: Path) -> None:
    said = run("vision_transformer", tmp_path, data=DATA)
    (right,) = numbers(said, r"pictures: ([\d.]+)%")
    assert right >= 82  # 84.3 was measured
    assert "a C program gives the same scores" in said


def test_where_it_looks_is_a_part_of_all_looks(load: Load) -> None:
    example = load("vision_transformer")
    picture = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
    seen = example.look(picture)
    assert seen.shape == (2, 7, 7) and seen.min() > 0
    assert (seen.sum((1, 2)) < 1).all()  # the class token looks at itself too
    assert example.vision_transformer(picture).shape == (2, 10)


def test_it_can_tell_where_a_patch_lies(load: Load) -> None:
    """The same patches elsewhere are another picture: positions are added to them."""
    example = load("vision_transformer")
    picture = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    moved = np.roll(picture, example.PATCH, axis=3)
    apart = np.abs(example.vision_transformer(moved) - example.vision_transformer(picture)).max()
    example.position.weight.assign(np.zeros(example.position.weight.shape))
    blind = np.abs(example.vision_transformer(moved) - example.vision_transformer(picture)).max()
    assert blind < 1e-5 and apart > 1e-3
