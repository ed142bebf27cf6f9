"""The static memory plan: lifetimes, in-place reuse, and an offset for every buffer in one arena.

Offsets are found greedily under several orders and the tightest plan is taken; the lower bound beside it is the largest
sum of logical bytes that are alive at one step, inputs and outputs included, which no plan of these steps can beat.

Two buffers that are alive at one step lie apart, with one exception: where a step may write its result over what it has
read (``leads``), the result may begin a known number of bytes before the input, both alive (Blacker et al. 2021,
"Diagonal memory optimisation"). A pair then forbids an interval of starting points as any pair does, a shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ..program import ALIGN

_ATTEMPTS = 200
_MOST_ATTEMPTS = 800
_MORE_WORK = 40_000  # attempts times buffers, where some may overlap: the orders know nothing of that

Leads = Mapping[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Span:
    """A buffer's bytes and the first and last step that need it (both counted)."""

    nbytes: int
    first: int
    last: int


def lower_bound(spans: Sequence[Span], leads: Leads | None = None) -> int:
    """The largest number of bytes alive at one step, each shared byte counted once where a pair may overlap."""
    return _most_alive(spans, [s.nbytes for s in spans], leads or {})


def place(spans: Sequence[Span], align: int = ALIGN, leads: Leads | None = None) -> tuple[list[int], int]:
    """An offset for each span and the size of the arena. Deterministic.

    ``leads[i, o] = n``: span ``o`` begins while ``i`` is alive, and may start ``n`` bytes or more before it."""
    leads = leads or {}
    sizes = [_round(s.nbytes, align) for s in spans]
    floor, meets = _most_alive(spans, sizes, leads), _meetings(spans)
    forbidden = _forbidden(sizes, meets, leads)
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
        offsets, top = _greedy(forbidden, sizes, order, align)
        if best is None or top < best[0]:
            best, start = (top, offsets), order
        if top == floor:
            break
    assert best is not None
    random = np.random.default_rng(0)
    order = list(start if leads else orders[0])
    attempts = min(max(_ATTEMPTS, _MORE_WORK // len(spans)), _MOST_ATTEMPTS) if leads else _ATTEMPTS
    for _ in range(attempts if best[0] > floor and 2 < len(spans) <= 400 else 0):
        trial = list(order)
        i, j = (int(v) for v in random.integers(0, len(trial), 2))
        trial[i], trial[j] = trial[j], trial[i]
        offsets, top = _greedy(forbidden, sizes, trial, align)
        if top <= best[0]:
            best, order = (top, offsets), trial
        if top == floor:
            break
    return best[1], best[0]


def shared(nbytes: int, other: int, lead: int) -> int:
    """The most bytes that an input of ``nbytes`` and an output of ``other`` bytes with that lead have in common."""
    return max(0, min(nbytes, other, other - lead))


def _round(nbytes: int, align: int) -> int:
    return (nbytes + align - 1) // align * align


def _most_alive(spans: Sequence[Span], sizes: Sequence[int], leads: Leads) -> int:
    """The largest sum of the sizes of spans that are alive at one step, less what the pairs that meet there share."""
    change: dict[int, int] = {}
    for span, size in zip(spans, sizes, strict=True):
        change[span.first] = change.get(span.first, 0) + size
        change[span.last + 1] = change.get(span.last + 1, 0) - size
    for (i, o), lead in leads.items():
        both = shared(sizes[i], sizes[o], lead)
        change[spans[o].first] = change.get(spans[o].first, 0) - both
        end = min(spans[i].last, spans[o].last) + 1
        change[end] = change.get(end, 0) + both
    return max(accumulate(change[t] for t in sorted(change)), default=0)


def _meetings(spans: Sequence[Span]) -> list[list[int]]:
    """For each span the others that are alive with it at some step."""
    first, last = np.array([s.first for s in spans]), np.array([s.last for s in spans])
    return [
        [int(j) for j in np.flatnonzero((first <= span.last) & (last >= span.first)) if j != i]
        for i, span in enumerate(spans)
    ]


def _forbidden(sizes: Sequence[int], meets: Sequence[Sequence[int]], leads: Leads) -> list[list[tuple[int, int, int]]]:
    """``(j, below, above)`` for each span ``i``: it may not start between ``offset_j - below`` and
    ``offset_j + above``, both left out."""
    found = []
    for i, others in enumerate(meets):
        rows = []
        for j in others:
            below, above = sizes[i], sizes[j]
            if (j, i) in leads:
                below = min(below, leads[j, i])
            elif (i, j) in leads:
                above = min(above, leads[i, j])
            if below + above > 0 or sizes[i] == 0:
                rows.append((j, below, above))
        found.append(rows)
    return found


def _greedy(
    forbidden: Sequence[Sequence[tuple[int, int, int]]], sizes: Sequence[int], order: Sequence[int], align: int
) -> tuple[list[int], int]:
    """Each span, in that order, into the tightest gap that is free during its life."""
    offsets = [-1] * len(sizes)
    top = 0
    for i in order:
        busy = sorted((offsets[j] - below, offsets[j] + above) for j, below, above in forbidden[i] if offsets[j] >= 0)
        best_gap, best_at, cursor = None, 0, 0
        for low, high in busy:
            gap = low - cursor
            if gap >= 0 and (best_gap is None or gap < best_gap):
                best_gap, best_at = gap, cursor
            if high > cursor:
                cursor = -(-high // align) * align
        offsets[i] = best_at if best_gap is not None else cursor
        top = max(top, offsets[i] + sizes[i])
    return offsets, top
