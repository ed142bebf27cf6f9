"""The static memory plan: lifetimes, in-place reuse, and an offset for every buffer in one arena.

Offsets are found greedily under several orders and the tightest plan is taken; the lower bound beside it is the largest
sum of logical bytes that are alive at one step, inputs and outputs included, which no plan of these steps can beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
    return _most_alive(spans, [s.nbytes for s in spans])


def place(spans: Sequence[Span], align: int = ALIGN) -> tuple[list[int], int]:
    """An offset for each span and the size of the arena. Deterministic."""
    sizes = [_round(s.nbytes, align) for s in spans]
    floor, meets = _most_alive(spans, sizes), _meetings(spans)
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
        offsets, top = _greedy(meets, sizes, order)
        if best is None or top < best[0]:
            best = (top, offsets)
        if top == floor:
            break
    assert best is not None
    random = np.random.default_rng(0)
    order = list(orders[0])
    for _ in range(_ATTEMPTS if best[0] > floor and 2 < len(spans) <= 400 else 0):
        trial = list(order)
        i, j = (int(v) for v in random.integers(0, len(trial), 2))
        trial[i], trial[j] = trial[j], trial[i]
        offsets, top = _greedy(meets, sizes, trial)
        if top <= best[0]:
            best, order = (top, offsets), trial
        if top == floor:
            break
    return best[1], best[0]


def _round(nbytes: int, align: int) -> int:
    return (nbytes + align - 1) // align * align


def _most_alive(spans: Sequence[Span], sizes: Sequence[int]) -> int:
    """The largest sum of the sizes of spans that are alive at one step."""
    change: dict[int, int] = {}
    for span, size in zip(spans, sizes, strict=True):
        change[span.first] = change.get(span.first, 0) + size
        change[span.last + 1] = change.get(span.last + 1, 0) - size
    return max(accumulate(change[t] for t in sorted(change)), default=0)


def _meetings(spans: Sequence[Span]) -> list[list[int]]:
    """For each span the others that are alive with it at some step."""
    first, last = np.array([s.first for s in spans]), np.array([s.last for s in spans])
    return [
        [int(j) for j in np.flatnonzero((first <= span.last) & (last >= span.first)) if j != i]
        for i, span in enumerate(spans)
    ]


def _greedy(meets: Sequence[Sequence[int]], sizes: Sequence[int], order: Sequence[int]) -> tuple[list[int], int]:
    """Each span, in that order, into the tightest gap that is free during its life."""
    offsets = [-1] * len(sizes)
    top = 0
    for i in order:
        busy = sorted((offsets[j], offsets[j] + sizes[j]) for j in meets[i] if offsets[j] >= 0)
        best_gap, best_at, cursor = None, 0, 0
        for low, high in busy:
            gap = low - cursor
            if gap >= sizes[i] and (best_gap is None or gap < best_gap):
                best_gap, best_at = gap, cursor
            cursor = max(cursor, high)
        offsets[i] = best_at if best_gap is not None else cursor
        top = max(top, offsets[i] + sizes[i])
    return offsets, top
