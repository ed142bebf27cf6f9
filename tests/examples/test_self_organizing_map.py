"""The self-organizing map's example: its errors beside MiniSom's, and its hexagons."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import Load, numbers, run


def test_hexagons_touch_and_do_not_overlap(load: Load) -> None:
    from matplotlib.figure import Figure

    example = load("self_organizing_map")
    cells = [p.vertices[:6] for p in example.hexagons(Figure().subplots()).get_paths()]
    assert len(cells) == example.ROWS * example.COLUMNS
    rounded = [{tuple(v) for v in np.round(cell, 6) + 0.0} for cell in cells]
    neighbors = example.som.neighbors
    for a in (0, 20, 21, 100):
        for b in range(len(cells)):
            shared = len(rounded[a] & rounded[b])
            assert shared == (6 if a == b else 2 if neighbors[a, b] else 0)


@pytest.mark.slow
def test_self_organizing_map_beside_minisom(load: Load, tmp_path: Path) -> None:
    """The same digits in the same order, first weights and schedules: errors that are not above MiniSom's."""
    pytest.importorskip("sklearn")
    minisom = pytest.importorskip("minisom")
    said = run("self_organizing_map", tmp_path)
    (quantization,), (topographic,) = (
        numbers(said, r"quantization error ([\d.]+)"),
        numbers(said, r"topographic error ([\d.]+)"),
    )
    assert "Python and a C program find the same places for 1797 digits" in said

    example = load("self_organizing_map")
    (a, _), (b, _) = example.digits()
    x, rng = np.concatenate([a, b]).reshape(-1, 64).astype(np.float64), np.random.default_rng(0)
    rows, columns, steps = example.ROWS, example.COLUMNS, 20_000
    theirs = minisom.MiniSom(columns, rows, 64, sigma=4.0, learning_rate=0.5, topology="hexagonal")
    first = x[rng.integers(0, len(x), rows * columns)].reshape(rows, columns, 64)
    theirs._weights = first.transpose(1, 0, 2).copy()
    theirs.train(x[rng.integers(0, len(x), steps)], steps)
    peer = theirs.quantization_error(x), theirs.topographic_error(x)
    print(f"MiniSom: quantization error {peer[0]:.6f}, topographic error {peer[1]:.6f}")
    assert quantization <= peer[0] + 1e-4 and topographic <= peer[1] + 1e-4  # the digits that are printed

    path, shown = tmp_path / "self_organizing_map.so", x[:200].astype(np.float32)[:, None]
    session, rates, radii = nv.load(path), *np.linspace([0.5, 3], [0.1, 1], 200).astype(np.float32).T
    feeds = [{"x": a, "rate": r, "radius": d} for a, r, d in zip(shown, rates, radii, strict=True)]
    expected = np.concatenate([session.run(None, feed, entry="learn")[0] for feed in feeds])
    assert (nv.run_in_c(path, shown, rates, radii, entry="learn") == expected).mean() > 0.98  # it learns in C too
