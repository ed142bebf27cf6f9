"""The integer operators against Python's own integers and fractions, element by element from their definitions."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from nervure.compiler.ops import integers
from nervure.compiler.ops.record import Op, fill_attrs
from nervure.compiler.ops.sampling import sample_inputs

Array = np.ndarray


def _clipped(value: int, attrs: dict[str, Any]) -> int:
    info = np.iinfo(attrs["to"])
    low = max(int(info.min), attrs["low"] if attrs["low"] is not None else int(info.min))
    high = min(int(info.max), attrs["high"] if attrs["high"] is not None else int(info.max))
    return min(high, max(low, value))


def _nearest_float32(exact: Fraction) -> Fraction:
    """Round half to even on 24 significant bits (IEEE 754), by integer arithmetic."""
    if exact == 0:
        return exact
    size, shift = abs(exact), 0
    while size >= 1 << 24:
        size, shift = size / 2, shift + 1
    while size < 1 << 23:
        size, shift = size * 2, shift - 1
    held = Fraction(round(size)) * Fraction(2) ** shift
    return held if exact > 0 else -held


def _rescaled(total: int, multiplier: Fraction, attrs: dict[str, Any]) -> int:
    real = _nearest_float32(_nearest_float32(Fraction(total)) * multiplier)
    return _clipped(round(real) + attrs["zero_point"], attrs)


def _requantize(x: Array, multiplier: Array, attrs: dict[str, Any]) -> Array:
    each = np.broadcast_to(multiplier, x.shape)
    made = [
        _rescaled(int(v) - attrs["x_zero_point"], Fraction(float(m)), attrs)
        for v, m in zip(x.flat, each.flat, strict=True)
    ]
    return np.array(made).reshape(x.shape).astype(attrs["to"])


def _add(a: Array, b: Array, wa: Array, wb: Array, *rest: Any) -> Array:
    attrs, shift = rest[-1], int(rest[0]) if len(rest) > 1 else rest[-1]["shift"]
    a, b = np.broadcast_arrays(a, b)
    made = []
    for x, y in zip(a.flat, b.flat, strict=True):
        total = (int(x) - attrs["a_zero_point"]) * int(wa) + (int(y) - attrs["b_zero_point"]) * int(wb)
        half_up = Fraction(total, 1 << shift) + Fraction(1, 2)
        made.append(_clipped(half_up.numerator // half_up.denominator + attrs["zero_point"], attrs))
    return np.array(made).reshape(a.shape).astype(attrs["to"])


def _mul(a: Array, b: Array, attrs: dict[str, Any]) -> Array:
    return (a.astype(np.int64) - attrs["a_zero_point"]) * (b.astype(np.int64) - attrs["b_zero_point"])


def _lookup(x: Array, table: Array, attrs: dict[str, Any]) -> Array:
    order = sorted(range(np.iinfo(x.dtype).min, np.iinfo(x.dtype).max + 1))
    known = dict(zip(order, table.tolist(), strict=True))
    return np.array([known[int(v)] for v in x.flat]).reshape(x.shape)


def _softmax(x: Array, table: Array, multiplier: Array, attrs: dict[str, Any]) -> Array:
    rows = np.moveaxis(x, attrs["axis"], -1)
    made = np.empty(rows.shape, np.int64)
    for at in np.ndindex(*rows.shape[:-1]):
        row = [int(v) for v in rows[at]]
        parts = [int(table[max(row) - v]) for v in row]
        each = _nearest_float32(Fraction(float(multiplier)) / _nearest_float32(Fraction(sum(parts))))
        made[at] = [_rescaled(p, each, attrs) for p in parts]
    return np.moveaxis(made, -1, attrs["axis"])


def _windows(x: Array, attrs: dict[str, Any], kernel: tuple[int, ...]) -> Any:
    """``(output point, tap, input point)`` of all taps inside the input."""
    rank = x.ndim - 2
    pads, strides, dilations = attrs["pads"], attrs["strides"], attrs["dilations"]
    extents = [
        (x.shape[2 + i] + pads[i] + pads[rank + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(rank)
    ]
    for out in itertools.product(*map(range, extents)):
        for tap in np.ndindex(*kernel):
            at = tuple(
                o * s - p + k * d for o, s, p, k, d in zip(out, strides, pads[:rank], tap, dilations, strict=True)
            )
            if all(0 <= i < n for i, n in zip(at, x.shape[2:], strict=True)):
                yield out, tap, at


def _conv(x: Array, w: Array, *rest: Any) -> Array:
    *bias, attrs = rest
    group, columns = attrs["group"], w.shape[0] // attrs["group"]
    wide = x.astype(np.int64) - attrs["zero_point"]
    made: dict[tuple[int, ...], Array] = {}
    for out, tap, at in _windows(x, attrs, w.shape[2:]):
        here = wide[(slice(None), slice(None), *at)].reshape(x.shape[0], group, -1)
        taps = w[(slice(None), slice(None), *tap)].astype(np.int64).reshape(group, columns, -1)
        part = np.einsum("ngc,gkc->ngk", here, taps).reshape(x.shape[0], -1)
        made[out] = made.get(out, 0) + part
    size = [max(o[i] for o in made) + 1 for i in range(x.ndim - 2)]
    y = np.zeros((x.shape[0], w.shape[0], *size), np.int64)
    for out, value in made.items():
        y[(slice(None), slice(None), *out)] = value
    return y + (bias[0].reshape(-1, *[1] * len(size)) if bias else 0)


def _sum_pool(x: Array, attrs: dict[str, Any]) -> Array:
    rank, kernel = x.ndim - 2, tuple(attrs["kernel_shape"])
    eye = np.ones((x.shape[1], 1, *kernel), np.int64)
    return _conv(x, eye, {**attrs, "group": x.shape[1], "kernel": rank})


def _matmul(a: Array, b: Array, *rest: Any) -> Array:
    *bias, attrs = rest
    left, right = a.astype(object) - attrs["zero_point"], b.astype(object) - attrs["b_zero_point"]
    pairs = zip(left, right, strict=True) if b.ndim > 2 else ((rows, right) for rows in left.reshape(-1, *a.shape[-2:]))
    y = np.stack([rows @ columns for rows, columns in pairs]).reshape(*a.shape[:-1], b.shape[-1])
    return np.asarray(y + (bias[0].astype(object) if bias else 0))


ORACLES = {
    "conv_integer": _conv,
    "matmul_integer": _matmul,
    "sum_pool_integer": _sum_pool,
    "requantize": _requantize,
    "add_integer": _add,
    "mul_integer": _mul,
    "lookup": _lookup,
    "softmax_integer": _softmax,
}


def test_every_integer_operator_has_an_oracle() -> None:
    assert sorted(ORACLES) == sorted(op.name for op in integers.OPS)


@pytest.mark.parametrize("op", integers.OPS, ids=lambda op: op.name)
def test_reference_is_what_the_definition_says(op: Op) -> None:
    assert op.cases is not None and op.reference is not None
    for number, case in enumerate(op.cases()):
        arrays = sample_inputs(case, number)
        attrs = fill_attrs(op, case.attrs)
        found = op.reference(*arrays, **attrs)
        expected = np.asarray(ORACLES[op.name](*arrays, attrs))
        np.testing.assert_array_equal(found.astype(np.int64), expected.astype(np.int64), f"{op.name} {number}")


def test_softmax_tables_cannot_overflow() -> None:
    for length in (1, 2, 10, 1000, 1 << 20):
        assert int(integers.exp_table(0.0001, length)[0]) * length < 2**31


def test_an_add_multiplier_is_bounded_and_rounded() -> None:
    assert integers.add_multiplier(0.5) == 1 << 19
    assert 255 * int(integers.add_multiplier(1e9)) * 2 + (1 << 19) < 2**31
    for ratio in (1e-9, 0.001, 0.4999, 0.5, 1.0, 3.99, 255.0, 2047.0):
        shift = integers.add_shift(ratio)
        steps = int(integers.add_multiplier(ratio, shift))
        assert steps <= 1 << 21
        assert steps >= 1 << 20 or shift == 30
