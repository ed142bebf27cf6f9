"""Offsets: buffers that are alive together lie apart, unless a step may write over what it has read."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.plan.memory import Leads, Span, lower_bound, place


def conflicts(spans: list[Span], offsets: list[int], leads: Leads) -> list[tuple[int, int]]:
    """Every pair that lies where it must not, found by looking at all of them."""
    found = []
    for i, a in enumerate(spans):
        for j in range(i + 1, len(spans)):
            b = spans[j]
            meet = a.first <= b.last and b.first <= a.last
            apart = offsets[i] + a.nbytes <= offsets[j] or offsets[j] + b.nbytes <= offsets[i]
            before = (i, j) in leads and offsets[j] <= offsets[i] - leads[i, j]
            after = (j, i) in leads and offsets[i] <= offsets[j] - leads[j, i]
            if meet and not apart and not before and not after:
                found.append((i, j))
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Span], dict[tuple[int, int], int]]:
    spans = []
    for _ in range(draw(st.integers(1, 14))):
        first = draw(st.integers(0, 6))
        spans.append(Span(draw(st.integers(1, 300)), first, first + draw(st.integers(0, 4))))
    leads = {}
    for i, a in enumerate(spans):
        for o, b in enumerate(spans):
            if a.first < b.first <= a.last and draw(st.booleans()):
                leads[i, o] = draw(st.integers(-80, 300))
    return spans, leads


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([1, 8, 64]))
def test_no_two_live_buffers_meet_unless_permitted(case: tuple[list[Span], dict[tuple[int, int], int]], align: int):
    spans, leads = case
    offsets, size = place(spans, align, leads)
    assert not conflicts(spans, offsets, leads)
    assert all(o >= 0 and o % align == 0 for o in offsets)
    assert max(o + s.nbytes for o, s in zip(offsets, spans, strict=True)) <= size
    assert lower_bound(spans, leads) <= size <= sum(s.nbytes + align for s in spans)


def test_the_same_spans_give_the_same_offsets() -> None:
    spans = [Span(30 + 7 * t % 50, t, t + 1 + t % 3) for t in range(20)]
    leads = {(t, t + 1): 8 for t in range(19)}
    assert place(spans, 8, leads) == place(spans, 8, leads)


def test_a_larger_result_may_begin_before_what_it_is_computed_from() -> None:
    spans = [Span(100, 0, 1), Span(200, 1, 2)]
    assert place(spans, 8)[1] == 304
    offsets, size = place(spans, 8, {(0, 1): 100})
    assert offsets == [104, 0] and size == 208  # 100 is rounded up
    assert lower_bound(spans, {(0, 1): 100}) == 200


def test_a_result_may_start_inside_what_is_read_far_ahead_of_it() -> None:
    offsets, size = place([Span(200, 0, 1), Span(100, 1, 2)], 8, {(0, 1): -50})
    assert offsets[1] <= offsets[0] + 50 and size == 200


def test_a_chain_of_overlaps_goes_down_step_by_step() -> None:
    spans = [Span(80, t, t + 1) for t in range(4)]
    leads = {(t, t + 1): 8 for t in range(3)}
    assert place(spans, 8, leads) == ([24, 16, 8, 0], 104)
    assert place(spans, 8)[1] == 160


def test_without_leads_the_bound_is_the_largest_live_set() -> None:
    assert lower_bound([Span(10, 0, 1), Span(20, 1, 2), Span(5, 2, 3)]) == 30
    assert lower_bound([]) == 0
