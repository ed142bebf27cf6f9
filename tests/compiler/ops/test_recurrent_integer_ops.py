"""LSTM and GRU on 8-bit steps against an oracle of plain Python numbers, one hidden unit at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.ops import OPS, infer
from nervure.compiler.ops.record import OpError
from nervure.compiler.ops.recurrent_integers import GATE_BITS, UNIT_BITS, squash
from nervure.compiler.ops.sampling import sample_inputs, t

CASES = [
    (name, i)
    for name in ("lstm_integer", "gru_integer")
    for i, case in enumerate(OPS[name].cases())
    if case.inputs[2].shape[2] <= 16
]


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_even(x: np.float32) -> int:
    return round(Fraction(float(x)))


def curve(x: int, sigmoid: bool) -> int:
    """tanh by its chords over 1/32, in 2^-15; sigmoid by that of half the argument."""
    real = abs(Fraction(x, 4096 * (2 if sigmoid else 1)))
    real = min(real, 8 - Fraction(1, 8192))
    left = math.floor(real * 32)
    ends = [min(32767, round(math.tanh(i / 32) * 32768)) for i in (left, left + 1)]
    value = ends[0] + half_up((ends[1] - ends[0]) * (real * 32 - left))
    signed = value if x >= 0 else -value
    return (32768 + signed) // 2 if sigmoid else signed


def gate(sums: int, multiplier: np.float32) -> int:
    return max(-(2**24), min(2**24, half_even(np.float32(sums) * multiplier)))


def layer(name: str, arrays: list[np.ndarray | None], attrs: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """The whole operator, one number at a time."""
    x, w, r, mw, mr, mh, b, lengths, h0, c0 = (*arrays, *[None] * 4)[:10]
    lstm, to = name == "lstm_integer", attrs.get("to", "int8")
    (steps, batch, features), (directions, rows, hidden) = x.shape, r.shape
    mw, mr = (np.broadcast_to(m, (directions, rows)) for m in (mw, mr))
    zx, zh = attrs.get("x_zero_point", 0), attrs.get("zero_point", 0)
    low, high = np.iinfo(to).min, np.iinfo(to).max
    y = np.full((steps, directions, batch, hidden), zh, to)
    finals = np.zeros((2, directions, batch, hidden), np.int64)

    def shown(value: int) -> int:
        return max(low, min(high, half_even(np.float32(value) * mh) + zh))

    def bias(d: int, part: int, row: int) -> int:
        return 0 if b is None else max(-(2**24), min(2**24, int(b[d, part * rows + row])))

    for d in range(directions):
        backward = attrs.get("direction") == "reverse" or d == 1
        for n in range(batch):
            own = [0] * hidden if h0 is None else [int(v) for v in h0[d, n]]
            cell = [0] * hidden if c0 is None else [int(v) for v in c0[d, n]]
            if lstm and h0 is None:
                own = [zh] * hidden
            for s in reversed(range(steps)) if backward else range(steps):
                if lengths is not None and s >= lengths[n]:
                    continue
                fed = [
                    gate(sum((int(x[s, n, i]) - zx) * int(w[d, j, i]) for i in range(features)), mw[d, j])
                    for j in range(rows)
                ]
                state = own if lstm else [shown(v) for v in own]

                def product(j: int, h: list[int], d: int = d) -> int:
                    return gate(sum((h[i] - zh) * int(r[d, j, i]) for i in range(hidden)), mr[d, j])

                new = []
                if not lstm and not attrs.get("linear_before_reset"):
                    resets = [
                        curve(
                            fed[hidden + u]
                            + bias(d, 0, hidden + u)
                            + product(hidden + u, state)
                            + bias(d, 1, hidden + u),
                            True,
                        )
                        for u in range(hidden)
                    ]
                    folded = [shown(half_up(Fraction(a * v, 32768))) for a, v in zip(resets, own, strict=True)]
                for u in range(hidden):
                    sums = [
                        fed[g * hidden + u]
                        + bias(d, 0, g * hidden + u)
                        + product(g * hidden + u, state)
                        + bias(d, 1, g * hidden + u)
                        for g in range(rows // hidden)
                    ]
                    if lstm:
                        i, o, f = (curve(v, True) for v in sums[:3])
                        more = half_up(Fraction(i * curve(sums[3], False), 16))
                        cell[u] = max(-32768, min(32767, half_up(Fraction(f * cell[u] + more, 32768))))
                        new.append(shown(half_up(Fraction(o * curve(cell[u] * 2, False), 32768))))
                        continue
                    update, reset, row = curve(sums[0], True), curve(sums[1], True), 2 * hidden + u
                    if attrs.get("linear_before_reset"):
                        inner = max(-65535, min(65535, product(row, state) + bias(d, 1, row)))
                        fold = half_up(Fraction(reset * inner, 32768))
                    else:
                        fold = product(row, folded) + bias(d, 1, row)
                    candidate = curve(fed[row] + bias(d, 0, row) + fold, False)
                    new.append(half_up(Fraction((32768 - update) * candidate + update * own[u], 32768)))
                own = new
                y[s, d, n] = own if lstm else [shown(v) for v in own]
            finals[:, d, n] = own, cell
    return (y, finals[0].astype(to), finals[1].astype(np.int16)) if lstm else (y, finals[0].astype(np.int16))


@pytest.mark.parametrize("name, number", CASES)
def test_the_oracle_agrees(name: str, number: int) -> None:
    case = list(OPS[name].cases())[number]
    arrays = [None if a is None else a[:3] if i == 0 else a for i, a in enumerate(sample_inputs(case, 1))]
    graph = Graph()
    values = [None if a is None else graph.const(a) for a in arrays]
    made = graph.add(name, *values, **case.attrs)
    for value in graph.values(made.node):
        graph.output(value)
    for got, wanted in zip(interpret(graph, []), layer(name, arrays, dict(case.attrs)), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_curves_are_within_an_eighth_of_a_thousandth() -> None:
    x = np.arange(-(1 << 17), 1 << 17)
    real = x / (1 << GATE_BITS)
    one = 1 << UNIT_BITS
    assert np.abs(squash(x, half=False) / one - np.tanh(real)).max() < 1.25e-4
    assert np.abs(squash(x, half=True) / one - 1 / (1 + np.exp(-real))).max() < 1.25e-4
    assert (np.diff(squash(x, half=False)) >= 0).all() and (np.diff(squash(x, half=True)) >= 0).all()
    assert (squash(-x, half=False) == -squash(x, half=False)).all()


@pytest.mark.parametrize(
    "change, words",
    [
        ({1: t("uint8", 1, 8, 3)}, "w"),
        ({2: t("int16", 1, 8, 2)}, "r"),
        ({3: t("float32", 7)}, "w_multiplier"),
        ({5: t("float32", 1)}, "h_multiplier"),
        ({6: t("float32", 1, 16)}, "b"),
        ({8: t("int16", 1, 5, 2)}, "h0"),
    ],
)
def test_inputs_that_do_not_fit(change: dict[int, Any], words: str) -> None:
    types: list[Any] = [t("int8", 4, 5, 3), t("int8", 1, 8, 3), t("int8", 1, 8, 2), t("float32", 1, 8), t("float32")]
    types += [t("float32"), t("int32", 1, 16), None, t("int8", 1, 5, 2), t("int16", 1, 5, 2)]
    infer("lstm_integer", types, {})
    for i, given in change.items():
        types[i] = given
    with pytest.raises(OpError, match=words):
        infer("lstm_integer", types, {})
