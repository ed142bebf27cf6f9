"""Leads: with the output so far before the input, no piece of a kernel overwrites what a later one reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.kernels.spec import Operand
from nervure.compiler.kernels.templates._overlap import lead_of, window_lead
from nervure.compiler.types import TensorType


def operand(channels: int, lines: int, points: int) -> Operand:
    shape = (1, channels, lines, points)
    return Operand(TensorType("int8", shape), (lines * points * channels, 1, points * channels, channels))


def clobbers(x: Operand, y: Operand, kernel: int, stride: int, pad: int, tile: tuple[int, int], lead: int) -> bool:
    """Whether some byte is read after it has been written, with the output ``lead`` bytes before the input."""
    (_, c, h, w), (_, k, oh, ow) = x.type.dims, y.type.dims
    written: set[int] = set()
    for y0 in range(0, oh, tile[0]):
        for x0 in range(0, ow, tile[1]):
            points = [(a, b) for a in range(y0, min(y0 + tile[0], oh)) for b in range(x0, min(x0 + tile[1], ow))]
            mine = {(a * ow + b) * k - lead + j for a, b in points for j in range(k)}
            for a, b in points:
                for i in range(a * stride - pad, a * stride - pad + kernel):
                    for j in range(b * stride - pad, b * stride - pad + kernel):
                        if 0 <= i < h and 0 <= j < w:
                            at = (i * w + j) * c
                            if (written | mine) & set(range(at, at + c)):
                                return True
            written |= mine
    return False


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.tuples(st.integers(3, 7), st.integers(3, 7)),
    st.integers(1, 3),
    st.integers(1, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 8)),
)
def test_a_window_never_overwrites_what_it_still_reads(
    channels: int, columns: int, size: tuple[int, int], kernel: int, stride: int, tile: tuple[int, int]
) -> None:
    pad = kernel // 2
    out = [(n + 2 * pad - kernel) // stride + 1 for n in size]
    x, y = operand(channels, *size), operand(columns, *out)
    lead = window_lead(x, y, (stride, stride), (pad, pad), tile)
    assert lead is not None
    assert not clobbers(x, y, kernel, stride, pad, tile, lead)


def test_a_lead_is_no_larger_than_it_must_be() -> None:
    x, y = operand(2, 6, 6), operand(2, 6, 6)
    lead = window_lead(x, y, (1, 1), (1, 1), (1, 6))
    assert lead == 2 * 6 * 2  # the line that is written, and the one above it that is still read
    assert clobbers(x, y, 3, 1, 1, (1, 6), lead - 2)


def test_pieces_that_read_before_they_write_work_in_place() -> None:
    pieces = [(4 * p, 4 * p + 4) for p in range(5)]
    assert lead_of(pieces) == 4
    assert lead_of(pieces, buffered=True) == 0


@pytest.mark.parametrize("strides", [(36, 36, 6, 1), (72, 1, 12, 3)])
def test_only_tensors_channels_last_without_gaps_have_a_lead(strides: tuple[int, ...]) -> None:
    x = Operand(TensorType("int8", (1, 2, 6, 6)), strides)
    assert window_lead(x, operand(2, 6, 6), (1, 1), (1, 1), (1, 6)) is None
