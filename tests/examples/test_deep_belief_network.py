"""The deep belief network's example: its figures, and how its steps are fed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nervure as nv
import numpy as np
import pytest
from example_runs import Load, numbers, run


def test_batches_are_drawn_from_the_data_and_the_rate_falls(load: Load) -> None:
    example, seen = load("deep_belief_network"), []

    def binding(fed: dict[str, np.ndarray], entry: str):
        assert entry == "fine_tune"
        return lambda: seen.append({name: array.copy() for name, array in fed.items()})

    x, y = np.arange(80, dtype=np.float32)[:, None] * np.ones(64, np.float32), np.arange(80, dtype=np.int32)
    example.learn(SimpleNamespace(binding=binding), "fine_tune", 8, 0.5, np.random.default_rng(0), x=x, y=y)
    assert [float(s["rate"]) for s in seen] == [0.5 * (1 - t / 8) for t in range(8)]
    assert all((s["x"][:, 0] == s["y"]).all() and s["x"].shape == (50, 64) for s in seen)
    assert (np.bincount(np.concatenate([s["y"] for s in seen])) == 5).all()  # 8 x 50 is five times all 80


def test_first_weights(load: Load) -> None:
    shapes = {"weight": np.zeros((64, 256), np.float32), "bias": np.zeros(256, np.float32)}
    found = load("deep_belief_network").glorot(shapes, np.random.default_rng(0))
    limit = np.sqrt(6 / (64 + 256))
    assert limit * 0.99 < np.abs(found["weight"]).max() <= limit and abs(found["weight"].mean()) < 0.01 * limit
    assert not found["bias"].any() and found["weight"].dtype == np.float32


@pytest.mark.slow
def test_deep_belief_network(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    said = run("deep_belief_network", tmp_path)
    few, alone = numbers(said, r"([\d.]+)%(?= of the held-out digits,| without dreams)")
    (every,) = numbers(said, r"all labels: ([\d.]+)%")
    assert every >= 96 and few > alone + 3
    assert "Python and a C program name 360 digits alike" in said

    path, x = tmp_path / "deep_belief_network.so", np.random.default_rng(0).random((6, 50, 64), np.float32)
    session, rates = nv.load(path), np.full(6, 0.1, np.float32)
    expected = [session.run(None, {"x": a, "rate": rates[0]}, entry="dream_1")[0] for a in x]
    np.testing.assert_allclose(nv.run_in_c(path, x, rates, entry="dream_1"), expected, rtol=1e-3)  # it dreams in C too
