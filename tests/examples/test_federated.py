"""Federated learning, whole: as good as training in one place, whatever one client sends."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from example_runs import DATA, Load, numbers, run


def test_every_sample_has_one_owner_and_owners_differ(load: Load) -> None:
    example = load("federated")
    y = np.random.default_rng(1).integers(0, 10, 1400)
    parts = example.parts(y)
    assert len(parts) == 8 and sorted(np.concatenate(parts)) == list(range(1400))
    shares = np.array([np.bincount(y[rows], minlength=10) / len(rows) for rows in parts])
    assert shares.max() > 0.3 and shares.min() < 0.01  # even ones would have a tenth of each


@pytest.mark.slow
@pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")
def test_together_they_learn_as_much_as_in_one_place(tmp_path: Path) -> None:
    said = run("federated", tmp_path, data=DATA)
    central, together, private = numbers(said, r": ([\d.]+)% of the held-out digits")
    assert central > 97 and together >= central - 1 and private >= central - 3
    assert numbers(said, r"round \d: (\d) averaged") == [8] * 4 and "40 updates refused in 40 rounds" in said
    for why in ("is not finite", "not float32[256, 64]", "bytes, more than", "its norm is"):
        assert why in said
    assert {p.name for p in tmp_path.iterdir()} >= {"federated.png", "federated.so", "federated.h"}
