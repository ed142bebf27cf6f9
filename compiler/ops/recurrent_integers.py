"""Recurrent layers on quantized tensors. The rules of their arithmetic are written here once; kernels equal them.

x and the hidden state that products take are 8-bit steps, weights int8 without a zero point. Inside:

- Sums of products are exact. What x gives a gate and what h gives it are each ``round_half_even(float32(sum) *
  multiplier)``, the multiplier leading to ``GATE_BITS`` fractional bits; then the biases (such integers) are added.
- sigmoid and tanh come from one table of tanh with linear interpolation: ``squash``. Results have ``UNIT_BITS``
  fractional bits, their largest error is 1.2e-4.
- The memory cell of an LSTM is int16 with ``CELL_BITS`` fractional bits: it holds [-16, 16). A GRU's state is int16
  with ``UNIT_BITS``; a state of 8 bits would stop moving where the update gate is nearly 1.
- A new hidden value has ``UNIT_BITS``, too; the steps that y shows and that the next step's products take are
  ``round_half_even(float32(value) * h_multiplier) + zero_point``.
- Shifts round half up. What a GRU resets behind its product (``linear_before_reset``) is clipped to (-16, 16) before.

The gates, biases, lengths and directions are those of ``lstm`` and ``gru``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .cells import DIRECTIONS
from .integers import NARROW, rescale
from .record import Call, Case, Cost, Kind, Op, OpError
from .sampling import t
from .shapes import count, known, optional, require_broadcast, require_dtype, require_rank, require_shape

GATE_BITS = 12  # fractional bits of what sigmoid and tanh are applied to
UNIT_BITS = 15  # of their results, and of hidden values
CELL_BITS = 11  # of an LSTM's memory cell
MOST_GATE = 1 << 24  # each addend of a gate is clipped to that
REACH = 1 << 16  # the table ends at tanh(8) = 1 - 2.3e-7
ONE = 1 << UNIT_BITS
GATES = {"lstm": 4, "gru": 3}

States = tuple[np.ndarray, ...]
Products = Callable[[np.ndarray], np.ndarray]  # steps of h [B,H] -> what they give the gates [B,G,H]
# what x gives the gates [B,G,H], the states, products, biases [2,G,H] -> the next states
Cell = Callable[[np.ndarray, States, Products, np.ndarray], States]


def tanh_table() -> np.ndarray:
    """int32 [256]: tanh(i / 32) in the upper half (at most 32767 / 32768), the step to the next entry in the lower."""
    points = np.minimum(np.rint(np.tanh(np.arange(257) / 32) * ONE), ONE - 1).astype(np.int32)
    return np.asarray(points[:-1] << 16 | np.diff(points), np.int32)


_TABLE = tanh_table()


def squash(x: np.ndarray, *, half: bool) -> np.ndarray:
    """tanh(x), or sigmoid(x) where ``half``, for x with GATE_BITS; sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    size = np.minimum(np.abs(x.astype(np.int64)) << (0 if half else 1), REACH - 1)
    entry, rest = _TABLE[size >> 8].astype(np.int64), size & 255
    value = (entry >> 16) + (((entry & 0xFFFF) * rest + 128) >> 8)
    signed = np.where(x < 0, -value, value)
    return np.asarray((ONE + signed) >> 1 if half else signed)


def rounded_shift(x: np.ndarray, bits: int) -> np.ndarray:
    """x / 2^bits, rounded half up."""
    return np.asarray((x + (1 << (bits - 1))) >> bits)


# -- inference ---------------------------------------------------------------------------------------------------


def _infer(call: Call, layer: str) -> tuple[TensorType, TensorType]:
    """Checks what both layers share; gives the types of y and of a state."""
    x, w, r = call.type(0), call.type(1), call.type(2)
    directions = DIRECTIONS.get(call.attrs["direction"])
    if directions is None:
        raise OpError(f"direction: expected one of {', '.join(DIRECTIONS)}; got {call.attrs['direction']!r}")
    to = call.attrs["to"]
    if to not in NARROW:
        raise OpError(f"to: expected one of {', '.join(NARROW)}; got {to!r}")
    for given, name, dtypes in ((x, "x", NARROW), (w, "w", ("int8",)), (r, "r", ("int8",))):
        require_rank(given, 3, 3, name)
        require_dtype(given, dtypes, name)
    hidden = known(r.shape[2], "hidden size")
    steps, batch, features = x.shape
    rows = GATES[layer] * hidden
    require_shape(w, (directions, rows, features), "w")
    require_shape(r, (directions, rows, hidden), "r")
    for i, name in ((3, "w_multiplier"), (4, "r_multiplier")):
        require_dtype(call.type(i), ("float32",), name)
        require_broadcast(call.type(i), (directions, rows), name)
    require_dtype(call.type(5), ("float32",), "h_multiplier")
    require_shape(call.type(5), (), "h_multiplier")
    state = TensorType(to, (directions, batch, hidden))
    _check(call, 6, "b", "int32", (directions, 2 * rows))
    lengths = optional(call, 7)
    if lengths is not None:
        require_dtype(lengths, ("int32", "int64"), "lengths")
        require_shape(lengths, (batch,), "lengths")
    _check(call, 8, "h0", to if layer == "lstm" else "int16", state.shape)
    if layer == "lstm":
        _check(call, 9, "c0", "int16", state.shape)
    return TensorType(to, (steps, *state.shape)), state


def _check(call: Call, index: int, name: str, dtype: str, shape: tuple[Any, ...]) -> None:
    given = optional(call, index)
    if given is not None:
        require_dtype(given, (dtype,), name)
        require_shape(given, shape, name)


def _lstm_infer(call: Call) -> Sequence[TensorType]:
    y, state = _infer(call, "lstm")
    return y, state, state.with_dtype("int16")


def _gru_infer(call: Call) -> Sequence[TensorType]:
    y, state = _infer(call, "gru")
    return y, state.with_dtype("int16")


def _cost(call: Call) -> Cost:
    x, w, r = call.type(0), call.type(1), call.type(2)
    return Cost(count(x.shape[:2]) * 2.0 * (count(w.shape) + count(r.shape) + 20.0 * count(r.shape[:2])))


# -- references --------------------------------------------------------------------------------------------------


def _products(steps: np.ndarray, zero_point: int, weights: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """``[..., K]`` steps times ``[G H, K]`` weights, as addends of gates, int64."""
    sums = (steps.astype(np.float64) - zero_point) @ weights.astype(np.float64).T  # exact below 2^53
    real = np.rint(sums.astype(np.int32).astype(np.float32) * multiplier)
    return np.asarray(np.clip(real, -MOST_GATE, MOST_GATE), np.int64)


def _walk(
    layer: str,
    operands: Sequence[np.ndarray],
    options: Sequence[np.ndarray | None],
    attrs: Mapping[str, Any],
    cell: Cell,
    initial: Sequence[np.ndarray],
    shown: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, list[States]]:
    """Walks x with w, r and their multipliers; y and the final states. ``shown`` makes steps of the first state."""
    (x, w, r, w_multiplier, r_multiplier), (b, lengths) = operands, options
    (steps, batch, _), (directions, _, hidden), gates = x.shape, r.shape, GATES[layer]
    own = (directions, gates * hidden)
    each = [np.broadcast_to(m, own) for m in (w_multiplier, r_multiplier)]
    bias = np.zeros((directions, 2, gates, hidden), np.int64)
    if b is not None:
        bias = np.clip(b.astype(np.int64), -MOST_GATE, MOST_GATE).reshape(directions, 2, gates, hidden)
    y = np.full((steps, directions, batch, hidden), attrs["zero_point"], attrs["to"])
    finals = []
    for d in range(directions):
        fed = _products(x, attrs["x_zero_point"], w[d], each[0][d]).reshape(steps, batch, gates, hidden)
        states: States = tuple(s[d].astype(np.int64) for s in initial)

        def products(h: np.ndarray, d: int = d) -> np.ndarray:
            return _products(h, attrs["zero_point"], r[d], each[1][d]).reshape(batch, gates, hidden)

        for step in reversed(range(steps)) if attrs["direction"] == "reverse" or d == 1 else range(steps):
            alive = np.full((batch, 1), True) if lengths is None else (step < lengths)[:, None]
            new = cell(fed[step], states, products, bias[d])
            states = tuple(np.where(alive, n, s) for n, s in zip(new, states, strict=True))
            y[step, d] = np.where(alive, shown(new[0]), y[step, d])
        finals.append(states)
    return y, finals


def _steps(value: np.ndarray, multiplier: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """Hidden values with UNIT_BITS as steps."""
    return rescale(value.astype(np.int32), multiplier, attrs["zero_point"], None, None, attrs["to"])


def _lstm(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    w_multiplier: np.ndarray,
    r_multiplier: np.ndarray,
    h_multiplier: np.ndarray,
    b: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    h0: np.ndarray | None = None,
    c0: np.ndarray | None = None,
    **attrs: Any,
) -> tuple[np.ndarray, ...]:
    def cell(fed: np.ndarray, states: States, products: Products, bias: np.ndarray) -> States:
        before, memory = states
        gates = np.moveaxis(fed + products(before) + bias[0] + bias[1], 1, 0)
        i, o, f = (squash(gate, half=True) for gate in gates[:3])
        new = f * memory + rounded_shift(i * squash(gates[3], half=False), UNIT_BITS - CELL_BITS)
        memory = np.clip(rounded_shift(new, UNIT_BITS), -32768, 32767)
        value = rounded_shift(o * squash(memory << (GATE_BITS - CELL_BITS), half=False), UNIT_BITS)
        return _steps(value, h_multiplier, attrs), memory

    shape = (r.shape[0], x.shape[1], r.shape[2])
    initial = (np.full(shape, attrs["zero_point"]) if h0 is None else h0, np.zeros(shape) if c0 is None else c0)
    operands = (x, w, r, w_multiplier, r_multiplier)
    y, finals = _walk("lstm", operands, (b, lengths), attrs, cell, initial, lambda h: h)
    h, c = (np.stack(parts) for parts in zip(*finals, strict=True))
    return y, h.astype(attrs["to"]), c.astype(np.int16)


def _gru(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    w_multiplier: np.ndarray,
    r_multiplier: np.ndarray,
    h_multiplier: np.ndarray,
    b: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    h0: np.ndarray | None = None,
    **attrs: Any,
) -> tuple[np.ndarray, ...]:
    def steps(value: np.ndarray) -> np.ndarray:
        return _steps(value, h_multiplier, attrs)

    def cell(fed: np.ndarray, states: States, products: Products, bias: np.ndarray) -> States:
        (before,) = states
        own = products(steps(before)) + bias[1]
        fed = fed + bias[0]
        update, reset = (squash(fed[:, j] + own[:, j], half=True) for j in range(2))
        if attrs["linear_before_reset"]:
            fold = rounded_shift(reset * np.clip(own[:, 2], 1 - REACH, REACH - 1), UNIT_BITS)
        else:
            fold = products(steps(rounded_shift(reset * before, UNIT_BITS)))[:, 2] + bias[1, 2]
        candidate = squash(fed[:, 2] + fold, half=False)
        return (rounded_shift((ONE - update) * candidate + update * before, UNIT_BITS),)

    initial = (np.zeros((r.shape[0], x.shape[1], r.shape[2])) if h0 is None else h0,)
    operands = (x, w, r, w_multiplier, r_multiplier)
    y, finals = _walk("gru", operands, (b, lengths), attrs, cell, initial, steps)
    return y, np.stack([h for (h,) in finals]).astype(np.int16)


# -- cases -------------------------------------------------------------------------------------------------------


def _case(
    layer: str,
    attrs: Mapping[str, Any],
    given: str = "b",
    size: Sequence[int] = (5, 2, 6, 8),
    x: str = "int8",
    each: bool = True,
    fixed: bool = True,
) -> Case:
    """``given`` names optional inputs: b(ias), l(engths), s(tates). ``each``: a multiplier for each row of weights;
    ``fixed``: weights are constants."""
    steps, batch, features, hidden = size
    d, gates, to = DIRECTIONS[str(attrs.get("direction", "forward"))], GATES[layer], attrs.get("to", "int8")
    rng = np.random.default_rng(hidden + steps)
    shapes = ((d, gates * hidden, features), (d, gates * hidden, hidden))
    weights = [rng.integers(-127, 128, s).astype(np.int8) if fixed else t("int8", *s) for s in shapes]
    inputs: list[TensorType | np.ndarray | None] = [t(x, steps, batch, features), *weights]
    for s in shapes:
        span = np.float32((1 << GATE_BITS) / (3000.0 * s[2] ** 0.5))
        inputs.append((rng.uniform(0.5, 1.5, s[:2]) * span).astype(np.float32) if each else np.array(span))
    inputs.append(np.array((127 if to == "int8" else 255) / ONE * 0.9, np.float32))
    inputs.append(rng.integers(-4000, 4000, (d, 2 * gates * hidden)).astype(np.int32) if "b" in given else None)
    inputs.append(np.arange(steps, steps - batch, -1).clip(1).astype(np.int32) if "l" in given else None)
    state = t(to if layer == "lstm" else "int16", d, batch, hidden)
    inputs.append(state if "s" in given else None)
    inputs += [rng.integers(-9000, 9000, state.dims).astype(np.int16) if "s" in given else None] * (layer == "lstm")
    while inputs[-1] is None:
        inputs.pop()
    return Case(tuple(inputs), attrs, low=0 if x == "uint8" else -128, high=255 if x == "uint8" else 127, note=given)


def _cases(layer: str) -> Iterable[Case]:
    for direction in DIRECTIONS:
        yield _case(layer, {"direction": direction})
        yield _case(layer, {"direction": direction, "x_zero_point": -7}, "bls", (6, 3, 4, 5))
    yield _case(layer, {}, "", (3, 1, 7, 16), each=False)
    yield _case(layer, {"x_zero_point": 131, "zero_point": 128, "to": "uint8"}, "b", x="uint8", fixed=False)
    yield _case(layer, {"zero_point": 3, "direction": "bidirectional"}, "bls", (4, 2, 9, 12), each=False, fixed=False)
    yield _case(layer, {}, "bs", (1, 1, 8, 64))
    yield _case(layer, {}, "b", (20, 1, 40, 36))
    yield _case(layer, {"x_zero_point": 5}, "b", (9, 4, 33, 100), x="uint8")


def _gru_cases() -> Iterable[Case]:
    yield from _cases("gru")
    for case in _cases("gru"):
        yield Case(case.inputs, {**case.attrs, "linear_before_reset": True}, case.low, case.high, case.note)


_INPUTS = ("x", "w", "r", "w_multiplier", "r_multiplier", "h_multiplier", "b?", "lengths?", "h0?")
_COMMON: dict[str, Any] = {"direction": "forward", "x_zero_point": 0, "zero_point": 0, "to": "int8"}

OPS = (
    Op(
        "lstm_integer",
        Kind.OPAQUE,
        _lstm_infer,
        _lstm,
        "lstm on 8-bit steps: y [T,D,B,H] and the last h in steps, the last c [D,B,H] in 2^-11; multipliers for rows "
        "of weights lead to gates in 2^-12, h_multiplier from 2^-15 to steps of h, biases are in 2^-12.",
        inputs=(*_INPUTS, "c0?"),
        attrs=_COMMON,
        cost=_cost,
        cases=lambda: _cases("lstm"),
    ),
    Op(
        "gru_integer",
        Kind.OPAQUE,
        _gru_infer,
        _gru,
        "gru on 8-bit steps: y [T,D,B,H] in steps and the last h [D,B,H] in 2^-15; otherwise as lstm_integer.",
        inputs=_INPUTS,
        attrs={**_COMMON, "linear_before_reset": False},
        cost=_cost,
        cases=_gru_cases,
    ),
)
