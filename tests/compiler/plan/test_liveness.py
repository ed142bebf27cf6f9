"""Live bytes of each step."""

from __future__ import annotations

from nervure.compiler.plan.liveness import from_stored, live_rows, liveness, peak, stored_rows
from nervure.compiler.program import Buffer, Entry, Step

BUFFERS = (
    Buffer("x", 0, 0, 100, 0, 1),
    Buffer("y", 0, 80, 50, 1, 2),
    Buffer("tmp", 0, 200, 10, 1, 1, True),
    Buffer("z", 1, 0, 30, 2, 3),
)
ENTRY = Entry("infer", (), (), tuple(Step(n, "conv", ()) for n in "ayz"), buffers=BUFFERS)


def test_shared_bytes_count_once() -> None:
    rows = liveness(ENTRY)
    assert [(r.bytes, r.saved) for r in rows] == [(100, 0), (140, 20), (80, 0)]
    assert [b.name for b in rows[1].buffers] == ["x", "y", "tmp"]
    found = peak(rows)
    assert found is not None and (found.step, found.name) == (1, "y")


def test_an_artifact_carries_what_the_rows_are_made_of() -> None:
    steps = [{"name": s.name, "op": s.op} for s in ENTRY.steps]
    assert from_stored({"steps": steps, "buffers": stored_rows(ENTRY)}) == liveness(ENTRY)
    assert from_stored({"steps": steps}) == []


def test_nothing_is_alive_without_buffers() -> None:
    assert [r.bytes for r in live_rows([("a", "conv")], [])] == [0]
    assert peak([]) is None
