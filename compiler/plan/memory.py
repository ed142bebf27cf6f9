"""The static memory plan: lifetimes, in-place reuse, and an offset for every buffer in one arena.

Offsets are found greedily under several orders and the tightest plan is taken; the lower bound beside it is the largest
sum of logical bytes that are alive at one step, inputs and outputs included, which no plan of these steps can beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..program import ALIGN

_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class Span:
    """A buffer's bytes and the first and last step that need it (both counted)."""

    nbytes: int
    first: int
    last: int


def lower_bound(spans: Sequence[Span]) -> int:
    """The largest number of bytes alive at one step."""
    steps = sorted({s.first for s in spans})
    return max((sum(s.nbytes for s in spans if s.first <= t <= s.last) for t in steps), default=0)


def place(spans: Sequence[Span], align: int = ALIGN) -> tuple[list[int], int]:
    """An offset for each span and the size of the arena. Deterministic."""
    sizes = [_round(s.nbytes, align) for s in spans]
    floor = max(
        (sum(n for s, n in zip(spans, sizes, strict=True) if s.first <= t <= s.last) for t in {s.first for s in spans}),
        default=0,
    )
    indices = range(len(spans))
    orders = [
        sorted(indices, key=lambda i: (-sizes[i], spans[i].first, i)),
        sorted(indices, key=lambda i: (spans[i].first, -sizes[i], i)),
        sorted(indices, key=lambda i: (-(spans[i].last - spans[i].first + 1) * sizes[i], i)),
        sorted(indices, key=lambda i: (spans[i].first - spans[i].last, -sizes[i], i)),
        sorted(indices, key=lambda i: (-spans[i].last, -sizes[i], i)),
    ]
    best: tuple[int, list[int]] | None = None
    for order in orders:
        offsets, top = _greedy(spans, sizes, order)
        if best is None or top < best[0]:
            best = (top, offsets)
    assert best is not None
    random = np.random.default_rng(0)
    order = list(orders[0])
    for _ in range(_ATTEMPTS if best[0] > floor and 2 < len(spans) <= 400 else 0):
        trial = list(order)
        i, j = (int(v) for v in random.integers(0, len(trial), 2))
        trial[i], trial[j] = trial[j], trial[i]
        offsets, top = _greedy(spans, sizes, trial)
        if top <= best[0]:
            best, order = (top, offsets), trial
        if top == floor:
            break
    return best[1], best[0]


def _round(nbytes: int, align: int) -> int:
    return (nbytes + align - 1) // align * align


def _greedy(spans: Sequence[Span], sizes: Sequence[int], order: Sequence[int]) -> tuple[list[int], int]:
    """Each span, in that order, into the tightest gap that is free during its life."""
    offsets = [0] * len(spans)
    placed: list[int] = []
    top = 0
    for i in order:
        busy = sorted(
            (offsets[j], offsets[j] + sizes[j])
            for j in placed
            if spans[j].first <= spans[i].last and spans[i].first <= spans[j].last
        )
        best_gap, best_at, cursor = None, 0, 0
        for low, high in busy:
            gap = low - cursor
            if gap >= sizes[i] and (best_gap is None or gap < best_gap):
                best_gap, best_at = gap, cursor
            cursor = max(cursor, high)
        offsets[i] = best_at if best_gap is not None else cursor
        top = max(top, offsets[i] + sizes[i])
        placed.append(i)
    return offsets, top
