"""Recurrent layers with ONNX's semantics: x [T,B,I], weights for each direction with the gates stacked (lstm: input,
output, forget, cell; gru: update, reset, hidden), the two biases of each gate side by side.

With ``lengths`` a sequence stops early: its state stays as it is from there on and its outputs are 0. A reverse pass
starts at each sequence's own last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import Dim, TensorType
from .cells import DEFAULTS, DIRECTIONS, Activation, activation, check_activations, chosen
from .channels import RECURRENT
from .numeric import quiet, widen
from .record import Call, Case, Cost, Kind, Op, OpError
from .recurrent_training import gru_training, lstm_training, rnn_training
from .sampling import f32
from .shapes import FLOATS, count, known, optional, require_dtype, require_rank, require_same_dtype, require_shape

States = tuple[np.ndarray, ...]
# direction, what x gives the gates, states, recurrent weights [H,G*H] and their bias -> the next states
Cell = Callable[[int, np.ndarray, States, np.ndarray, np.ndarray], States]

_INPUTS = ("x", "w", "r", "b?", "lengths?", "h0?")


# -- inference ---------------------------------------------------------------------------------------------------


def _infer(call: Call, layer: str, gates: int) -> tuple[TensorType, TensorType]:
    """Checks what the three layers share; gives the types of y and of a final state."""
    x, w, r = call.type(0), call.type(1), call.type(2)
    directions = DIRECTIONS.get(call.attrs["direction"])
    if directions is None:
        raise OpError(f"direction: expected one of {', '.join(DIRECTIONS)}; got {call.attrs['direction']!r}")
    check_activations(call.attrs["activations"], directions * len(DEFAULTS[layer]))
    require_dtype(x, FLOATS, "x")
    for given, name in ((x, "x"), (w, "w"), (r, "r")):
        require_rank(given, 3, 3, name)
        require_same_dtype(x, given, ("x", name))
    hidden = known(r.shape[2], "hidden size")
    steps, batch, features = x.shape
    require_shape(w, (directions, gates * hidden, features), "w")
    require_shape(r, (directions, gates * hidden, hidden), "r")
    _check_optional(call, 3, (directions, 2 * gates * hidden), "b")
    state = x.with_shape((directions, batch, hidden))
    _check_optional(call, 5, state.shape, "h0")
    lengths = optional(call, 4)
    if lengths is not None:
        require_dtype(lengths, ("int32", "int64"), "lengths")
        require_shape(lengths, (batch,), "lengths")
    return x.with_shape((steps, *state.shape)), state


def _check_optional(call: Call, index: int, shape: tuple[Dim, ...], name: str) -> None:
    given = optional(call, index)
    if given is not None:
        require_same_dtype(call.type(0), given, ("x", name))
        require_shape(given, shape, name)


def _lstm_infer(call: Call) -> Sequence[TensorType]:
    y, state = _infer(call, "lstm", 4)
    _check_optional(call, 6, state.shape, "c0")
    _check_optional(call, 7, (state.shape[0], 3 * known(state.shape[2], "hidden size")), "p")
    return y, state, state


def _cost(gates: int) -> Callable[[Call], Cost]:
    def cost(call: Call) -> Cost:
        x, w, r = call.type(0), call.type(1), call.type(2)
        rows = count(x.shape[:2])
        return Cost(rows * (2.0 * count(w.shape) + 2.0 * count(r.shape) + 12.0 * gates * count(r.shape) / r.dims[1]))

    return cost


# -- references --------------------------------------------------------------------------------------------------


def _activations(given: Sequence[str] | None, layer: str, direction: int, clip: float | None) -> list[Activation]:
    """The functions of one direction; ``clip`` bounds what they are applied to."""
    return [activation(n, clip) for n in chosen(given, layer, direction)]


def _walk(
    operands: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None],
    initial: Sequence[np.ndarray | None],
    direction: str,
    cell: Cell,
) -> tuple[np.ndarray, ...]:
    """Walks the steps of x, w, r, b, lengths; returns y and the final states. The first state is the output."""
    x, w, r, b, lengths = operands
    (steps, batch, _), (directions, _, hidden) = x.shape, r.shape
    bias = np.zeros((directions, 2, w.shape[1])) if b is None else widen(b).reshape(directions, 2, -1)
    y = np.zeros((steps, directions, batch, hidden))
    finals = []
    for d in range(directions):
        fed = np.matmul(widen(x), widen(w[d]).T) + bias[d, 0]
        states: States = tuple(np.zeros((batch, hidden)) if s is None else widen(s[d]) for s in initial)
        backward = direction == "reverse" or d == 1
        for step in reversed(range(steps)) if backward else range(steps):
            alive = np.full((batch, 1), True) if lengths is None else (step < lengths)[:, None]
            new = cell(d, fed[step], states, widen(r[d]).T, bias[d, 1])
            states = tuple(np.where(alive, n, s) for n, s in zip(new, states, strict=True))
            y[step, d] = np.where(alive, new[0], 0.0)
        finals.append(states)
    return tuple(a.astype(x.dtype) for a in (y, *(np.stack(s) for s in zip(*finals, strict=True))))


def _lstm(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    h0: np.ndarray | None = None,
    c0: np.ndarray | None = None,
    p: np.ndarray | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
    input_forget: bool,
) -> tuple[np.ndarray, ...]:
    hidden = r.shape[2]
    peepholes = np.zeros((r.shape[0], 3, hidden)) if p is None else widen(p).reshape(-1, 3, hidden)

    def cell(d: int, fed: np.ndarray, states: States, recurrence: np.ndarray, bias: np.ndarray) -> States:
        f, g, h = _activations(activations, "lstm", d, clip)
        (before, memory), (to_i, to_o, to_f) = states, peepholes[d]
        i, o, forget, c = np.split(fed + before @ recurrence + bias, 4, axis=1)
        i = f(i + to_i * memory)
        forget = 1.0 - i if input_forget else f(forget + to_f * memory)
        memory = forget * memory + i * g(c)
        return f(o + to_o * memory) * h(memory), memory

    return _walk((x, w, r, b, lengths), (h0, c0), direction, cell)


def _gru(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    h0: np.ndarray | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
    linear_before_reset: bool,
) -> tuple[np.ndarray, ...]:
    hidden = r.shape[2]

    def cell(d: int, fed: np.ndarray, states: States, recurrence: np.ndarray, bias: np.ndarray) -> States:
        f, g = _activations(activations, "gru", d, clip)
        (before,) = states
        gates, candidate = np.split(fed, [2 * hidden], axis=1)
        update, reset = np.split(f(gates + before @ recurrence[:, : 2 * hidden] + bias[: 2 * hidden]), 2, axis=1)
        own, own_bias = recurrence[:, 2 * hidden :], bias[2 * hidden :]
        fold = reset * (before @ own + own_bias) if linear_before_reset else (reset * before) @ own + own_bias
        return ((1.0 - update) * g(candidate + fold) + update * before,)

    return _walk((x, w, r, b, lengths), (h0,), direction, cell)


def _rnn(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    h0: np.ndarray | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
) -> tuple[np.ndarray, ...]:
    def cell(d: int, fed: np.ndarray, states: States, recurrence: np.ndarray, bias: np.ndarray) -> States:
        (f,) = _activations(activations, "rnn", d, clip)
        return (f(fed + states[0] @ recurrence + bias),)

    return _walk((x, w, r, b, lengths), (h0,), direction, cell)


# -- cases -------------------------------------------------------------------------------------------------------


def _case(
    gates: int, states: int, attrs: Mapping[str, Any], given: str = "b", size: Sequence[int] = (5, 2, 3, 4)
) -> Case:
    """``given`` names the optional inputs: b(ias), l(engths), h0 and c0 (s), p(eepholes)."""
    steps, batch, features, hidden = size
    d = DIRECTIONS[str(attrs.get("direction", "forward"))]
    inputs: list[TensorType | np.ndarray | None] = [f32(steps, batch, features)]
    inputs += [f32(d, gates * hidden, features), f32(d, gates * hidden, hidden)]
    inputs.append(f32(d, 2 * gates * hidden) if "b" in given else None)
    inputs.append(np.arange(steps, steps - batch, -1).clip(1).astype(np.int32) if "l" in given else None)
    inputs += [f32(d, batch, hidden) if "s" in given else None] * states
    if "p" in given:
        inputs.append(f32(d, 3 * hidden))
    while inputs[-1] is None:
        inputs.pop()
    return Case(tuple(inputs), attrs, low=-1.0, high=1.0, note=given)


def _shared_cases(gates: int, states: int) -> Iterable[Case]:
    for direction in DIRECTIONS:
        yield _case(gates, states, {"direction": direction})
        yield _case(gates, states, {"direction": direction}, "bls", (6, 3, 4, 5))
    yield _case(gates, states, {}, "")
    yield _case(gates, states, {}, "s", (1, 1, 8, 16))
    yield _case(gates, states, {"clip": 0.3}, "b")
    yield _case(gates, states, {}, "b", (20, 1, 16, 32))


def _lstm_cases() -> Iterable[Case]:
    yield from _shared_cases(4, 2)
    yield _case(4, 2, {}, "bsp")
    yield _case(4, 2, {"input_forget": True})
    yield _case(4, 2, {"activations": ("HardSigmoid", "Softsign", "Relu")})
    yield _case(4, 2, {"direction": "bidirectional", "activations": ("Sigmoid", "Tanh", "Tanh") * 2}, "blsp")


def _gru_cases() -> Iterable[Case]:
    yield from _shared_cases(3, 1)
    for direction in DIRECTIONS:
        yield _case(3, 1, {"direction": direction, "linear_before_reset": True}, "bls")
    yield _case(3, 1, {"activations": ("HardSigmoid", "Softsign")})


def _rnn_cases() -> Iterable[Case]:
    yield from _shared_cases(1, 1)
    yield _case(1, 1, {"activations": ("Relu",)})
    yield _case(1, 1, {"direction": "bidirectional", "activations": ("Relu", "Sigmoid")}, "bls")


_COMMON: dict[str, Any] = {"direction": "forward", "activations": None, "clip": None}

OPS = (
    Op(
        "lstm",
        Kind.OPAQUE,
        _lstm_infer,
        quiet(_lstm),
        "Long short-term memory: y [T,D,B,H], last h and c [D,B,H] (ONNX LSTM, gates i o f c, peepholes i o f).",
        inputs=(*_INPUTS, "c0?", "p?"),
        attrs={**_COMMON, "input_forget": False},
        cost=_cost(4),
        cases=_lstm_cases,
        training=lstm_training,
        channels=RECURRENT,
    ),
    Op(
        "gru",
        Kind.OPAQUE,
        lambda call: _infer(call, "gru", 3),
        quiet(_gru),
        "Gated recurrent unit: y [T,D,B,H] and the last h [D,B,H] (ONNX GRU, gates z r h).",
        inputs=_INPUTS,
        attrs={**_COMMON, "linear_before_reset": False},
        cost=_cost(3),
        cases=_gru_cases,
        training=gru_training,
        channels=RECURRENT,
    ),
    Op(
        "rnn",
        Kind.OPAQUE,
        lambda call: _infer(call, "rnn", 1),
        quiet(_rnn),
        "Elman's recurrent layer: y [T,D,B,H] and the last h [D,B,H] (ONNX RNN).",
        inputs=_INPUTS,
        attrs=_COMMON,
        cost=_cost(1),
        cases=_rnn_cases,
        training=rnn_training,
        channels=RECURRENT,
    ),
)
