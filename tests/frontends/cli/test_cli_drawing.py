"""The layered drawing: nothing overlaps, everything runs downwards, a thousand nodes take a moment."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from nervure.frontends.cli.drawing import draw


def random_graph(count: int, seed: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(seed)
    edges = {(max(0, i - int(random.integers(1, 7))), i) for i in range(1, count)}
    edges |= {(int(random.integers(0, i)), i) for i in range(1, count) if random.random() < 0.2}
    return sorted(edges)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_do_not_overlap_and_edges_run_down(seed: int) -> None:
    edges = random_graph(80, seed)
    random = np.random.default_rng(seed)
    sizes = [(float(w), float(h)) for w, h in random.integers(20, 200, (80, 2))]
    made = draw(sizes, edges)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(made.boxes, sizes, strict=True)]
    for i, a in enumerate(boxes):
        assert a[0] >= 0 and a[2] <= made.width and a[1] >= 0 and a[3] <= made.height
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for (source, target), path in zip(edges, made.paths, strict=True):
        assert path[0][1] == boxes[source][3] and path[-1][1] == boxes[target][1]
        assert all(a[1] <= b[1] for a, b in pairwise(path))
        assert len(path) % 2 == 0


def test_a_chain_is_a_straight_line() -> None:
    made = draw([(100.0, 40.0)] * 10, [(i, i + 1) for i in range(9)])
    assert {x for x, _ in made.boxes} == {made.boxes[0][0]}


def test_two_branches_do_not_cross() -> None:
    made = draw([(100.0, 40.0)] * 6, [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5)])
    x = [b[0] for b in made.boxes]
    assert (x[1] < x[2]) == (x[3] < x[4])


def test_nothing_and_no_edges() -> None:
    assert draw([], []).boxes == []
    assert len({x for x, _ in draw([(10.0, 10.0)] * 3, []).boxes}) == 3


def test_a_thousand_nodes() -> None:
    started = time.perf_counter()
    draw([(188.0, 60.0)] * 1000, random_graph(1000, 1))
    assert time.perf_counter() - started < 10
