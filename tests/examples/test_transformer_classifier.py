"""The transformer encoder that hears digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


@pytest.mark.slow
@needs_data("spoken_digits_8k.npz")
def test_it_hears_digits(tmp_path: Path) -> None:
    said = run("transformer_classifier", tmp_path, data=DATA)
    (right,) = numbers(said, r"recordings: ([\d.]+)%")
    assert right >= 97  # 99.5 was measured
    assert "a C program gives the same scores" in said


def test_what_counts_is_shared_out(load: Load) -> None:
    """The weights of the moments are a distribution, and the scores are those of the moments' mean by them."""
    example = load("transformer_classifier")
    sound = np.random.default_rng(0).standard_normal((2, example.FRAMES, example.BANDS)).astype(np.float32)
    weight = example.attended(sound)
    assert weight.shape == (2, example.FRAMES) and weight.min() > 0
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-5)
    changed = sound.copy()
    changed[:, 10] += 3
    assert np.abs(example.transformer_classifier(changed) - example.transformer_classifier(sound)).max() > 1e-4
