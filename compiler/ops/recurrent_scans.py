"""The steps of recurrent layers in training, and their backward passes: what x gives the gates is one matrix product
outside, a scan over the steps keeps what its backward pass needs, and the backward scan gives the gradients of the
gates before their activations, from which those of all weights follow by matrix products and sums outside.

Tensors have the direction first: ``fed`` (W x + bias) [D,T,B,G*H], states [D,T,B,H] after each step. At steps behind a
sequence's length the states stay as they are, and gates are 0. Gates and weights are stacked in ONNX's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import Dim, TensorType
from .cells import DEFAULTS, DIRECTIONS, Activation, activation, check_activations, chosen, derivative, positions
from .numeric import quiet, widen
from .record import Call, Cost, Kind, Op, OpError
from .recurrent_cases import GATES, GRAD_INPUTS, backward_cases, forward_cases
from .recurrent_training import gru_scan_gradient, lstm_scan_gradient, rnn_scan_gradient
from .shapes import FLOATS, count, known, optional, require_dtype, require_rank, require_same_dtype, require_shape

Array = np.ndarray

# -- inference ---------------------------------------------------------------------------------------------------


def _operands(call: Call, layer: str, r_at: int) -> tuple[int, int, int]:
    """Checks r and the attributes; gives the directions, the gates and the hidden size."""
    directions = DIRECTIONS.get(call.attrs["direction"])
    if directions is None:
        raise OpError(f"direction: expected one of {', '.join(DIRECTIONS)}; got {call.attrs['direction']!r}")
    check_activations(call.attrs["activations"], directions * len(DEFAULTS[layer]))
    r, gates = call.type(r_at), GATES[layer]
    require_dtype(r, FLOATS, "r")
    require_rank(r, 3, 3, "r")
    hidden = known(r.shape[2], "hidden size")
    require_shape(r, (directions, gates * hidden, hidden), "r")
    return directions, gates, hidden


def _check(call: Call, shapes: Mapping[int, tuple[str, tuple[Dim, ...]]], lengths: int, batch: Dim) -> None:
    """Refuses inputs that are not of r's element type and the shape said; ``lengths`` is [B] of integers."""
    for index, (name, shape) in sorted(shapes.items()):
        given = optional(call, index)
        if given is not None:
            require_same_dtype(call.type(0), given, ("r", name))
            require_shape(given, shape, name)
    found = optional(call, lengths)
    if found is not None:
        require_dtype(found, ("int32", "int64"), "lengths")
        require_shape(found, (batch,), "lengths")


def _scan(layer: str) -> Callable[[Call], Sequence[TensorType]]:
    """Inference of a forward scan."""

    def infer(call: Call) -> Sequence[TensorType]:
        directions, gates, hidden = _operands(call, layer, 1)
        fed = call.type(0)
        require_rank(fed, 4, 4, "fed")
        _, steps, batch, _ = fed.shape
        state: tuple[Dim, ...] = (directions, batch, hidden)
        expected: dict[int, tuple[str, tuple[Dim, ...]]] = {
            0: ("fed", (directions, steps, batch, gates * hidden)),
            3: ("h0", state),
        }
        if layer == "lstm":
            expected |= {4: ("c0", state), 5: ("p", (directions, 3 * hidden))}
        if layer == "gru":
            expected |= {4: ("b", (directions, hidden))}
            if optional(call, 4) is not None and not call.attrs["linear_before_reset"]:
                raise OpError("b: only where linear_before_reset is true; else it is part of fed")
        _check(call, expected, 2, batch)
        final, states = fed.with_shape(state), fed.with_shape((directions, steps, batch, hidden))
        if layer == "lstm":
            return states, states, fed, final, final
        return (states, fed, states, final) if layer == "gru" else (states, final)

    return infer


def _scan_grad(layer: str) -> Callable[[Call], Sequence[TensorType]]:
    """Inference of a backward scan."""

    def infer(call: Call) -> Sequence[TensorType]:
        directions, gates, hidden = _operands(call, layer, 0)
        states = call.type(1)
        require_rank(states, 4, 4, "c" if layer == "lstm" else "h")
        _, steps, batch, _ = states.shape
        final: tuple[Dim, ...] = (directions, batch, hidden)
        every = (directions, steps, batch, hidden)
        saved = (directions, steps, batch, gates * hidden)
        if layer == "lstm":
            shapes = [every, saved, None, final, (directions, 3 * hidden), every, every, saved, final, final]
        elif layer == "gru":
            shapes = [every, saved, every, None, final, every, saved, every, final]
        else:
            shapes = [every, None, every, final]
        names = [n.rstrip("?") for n in GRAD_INPUTS[layer][1:]]
        lengths = names.index("lengths") + 1
        _check(call, {i + 1: (names[i], s) for i, s in enumerate(shapes) if s is not None}, lengths, batch)
        fed, initial = states.with_shape((directions, steps, batch, gates * hidden)), states.with_shape(final)
        if layer == "lstm":
            return fed, initial, initial
        return (fed, initial, states) if layer == "gru" and call.attrs["linear_before_reset"] else (fed, initial)

    return infer


def _cost(layer: str, r_at: int) -> Callable[[Call], Cost]:
    def cost(call: Call) -> Cost:
        r, states = call.type(r_at), call.type(1 - r_at)
        return Cost(count(states.shape[1:3]) * (2.0 * count(r.shape) + 24.0 * count(r.shape) / r.dims[2]))

    return cost


# -- references --------------------------------------------------------------------------------------------------


def _functions(
    given: Sequence[str] | None, layer: str, direction: int, clip: float | None
) -> tuple[list[Activation], list[Activation]]:
    """The activations of one direction, and their derivatives in terms of their values."""
    names = chosen(given, layer, direction)
    return [activation(n, clip) for n in names], [derivative(n, clip) for n in names]


def _alive(lengths: Array | None, step: int, batch: int) -> Array:
    return np.full((batch, 1), True) if lengths is None else (step < lengths)[:, None]


def _initial(given: Array | None, d: int, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape) if given is None else widen(given[d])


def _all(dtype: Any, *arrays: Array) -> tuple[Array, ...]:
    return tuple(a.astype(dtype) for a in arrays)


def _lstm_scan(
    fed: Array,
    r: Array,
    lengths: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    p: Array | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
    input_forget: bool,
) -> tuple[Array, ...]:
    (directions, steps, batch, width), hidden = fed.shape, r.shape[2]
    hs, cs = np.zeros((2, directions, steps, batch, hidden))
    gates = np.zeros((directions, steps, batch, width))
    hn, cn = np.zeros((2, directions, batch, hidden))
    for d in range(directions):
        (f, g, h_of), _ = _functions(activations, "lstm", d, clip)
        to_i, to_o, to_f = _initial(p, d, (3 * hidden,)).reshape(3, hidden)
        h, c = _initial(h0, d, (batch, hidden)), _initial(c0, d, (batch, hidden))
        for t in positions(direction, d, steps):
            alive = _alive(lengths, t, batch)
            i, o, forget, new = np.split(widen(fed[d, t]) + h @ widen(r[d]).T, 4, axis=1)
            i, new = f(i + to_i * c), g(new)
            forget = 1.0 - i if input_forget else f(forget + to_f * c)
            c = np.where(alive, forget * c + i * new, c)
            o = f(o + to_o * c)
            h = np.where(alive, o * h_of(c), h)
            gates[d, t] = np.where(alive, np.concatenate([i, o, forget, new], axis=1), 0.0)
            hs[d, t], cs[d, t] = h, c
        hn[d], cn[d] = h, c
    return _all(fed.dtype, hs, cs, gates, hn, cn)


def _lstm_scan_grad(
    r: Array,
    c: Array,
    gates: Array,
    lengths: Array | None = None,
    c0: Array | None = None,
    p: Array | None = None,
    gh: Array | None = None,
    gc: Array | None = None,
    ggates: Array | None = None,
    ghn: Array | None = None,
    gcn: Array | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
    input_forget: bool,
) -> tuple[Array, ...]:
    directions, steps, batch, hidden = c.shape
    fed = np.zeros(gates.shape)
    dh0, dc0 = np.zeros((2, directions, batch, hidden))
    for d in range(directions):
        (_, _, h_of), (df, dg, dh_of) = _functions(activations, "lstm", d, clip)
        to_i, to_o, to_f = _initial(p, d, (3 * hidden,)).reshape(3, hidden)
        dh, dc = _initial(ghn, d, (batch, hidden)), _initial(gcn, d, (batch, hidden))
        order = positions(direction, d, steps)
        for at in reversed(range(steps)):
            t, alive = order[at], _alive(lengths, order[at], batch)
            before = widen(c[d, order[at - 1]]) if at else _initial(c0, d, (batch, hidden))
            i, o, forget, new = np.split(widen(gates[d, t]), 4, axis=1)
            gi, go, gf, gn = np.split(np.zeros(gates.shape[2:]) if ggates is None else widen(ggates[d, t]), 4, axis=1)
            dh = dh + (0.0 if gh is None else widen(gh[d, t]))
            dc = dc + (0.0 if gc is None else widen(gc[d, t]))
            shown = h_of(widen(c[d, t]))
            do = (dh * shown + go) * df(o)
            within = dc + dh * o * dh_of(shown) + do * to_o
            to_forget, dn = within * before + gf, (within * i + gn) * dg(new)
            di = (within * new + gi - (to_forget if input_forget else 0.0)) * df(i)
            dforget = 0.0 * di if input_forget else to_forget * df(forget)
            fed[d, t] = np.where(alive, np.concatenate([di, do, dforget, dn], axis=1), 0.0)
            dc = np.where(alive, within * forget + di * to_i + dforget * to_f, dc)
            dh = np.where(alive, fed[d, t] @ widen(r[d]), dh)
        dh0[d], dc0[d] = dh, dc
    return _all(c.dtype, fed, dh0, dc0)


def _gru_scan(
    fed: Array,
    r: Array,
    lengths: Array | None = None,
    h0: Array | None = None,
    b: Array | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
    linear_before_reset: bool,
) -> tuple[Array, ...]:
    (directions, steps, batch, _), hidden = fed.shape, r.shape[2]
    (hs, extras), gates = np.zeros((2, directions, steps, batch, hidden)), np.zeros(fed.shape)
    hn = np.zeros((directions, batch, hidden))
    for d in range(directions):
        (f, g), _ = _functions(activations, "gru", d, clip)
        weights, bias, h = widen(r[d]).T, _initial(b, d, (hidden,)), _initial(h0, d, (batch, hidden))
        for t in positions(direction, d, steps):
            alive, given = _alive(lengths, t, batch), widen(fed[d, t])
            both = f(given[:, : 2 * hidden] + h @ weights[:, : 2 * hidden])
            update, reset = both[:, :hidden], both[:, hidden:]
            if linear_before_reset:
                extra = h @ weights[:, 2 * hidden :] + bias
                new = g(given[:, 2 * hidden :] + reset * extra)
            else:
                extra = reset * h
                new = g(given[:, 2 * hidden :] + extra @ weights[:, 2 * hidden :])
            h = np.where(alive, (1.0 - update) * new + update * h, h)
            gates[d, t] = np.where(alive, np.concatenate([update, reset, new], axis=1), 0.0)
            hs[d, t], extras[d, t] = h, np.where(alive, extra, 0.0)
        hn[d] = h
    return _all(fed.dtype, hs, gates, extras, hn)


def _gru_scan_grad(
    r: Array,
    h: Array,
    gates: Array,
    extras: Array,
    lengths: Array | None = None,
    h0: Array | None = None,
    gh: Array | None = None,
    ggates: Array | None = None,
    gextras: Array | None = None,
    ghn: Array | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
    linear_before_reset: bool,
) -> tuple[Array, ...]:
    directions, steps, batch, hidden = h.shape
    fed, dextras = np.zeros(gates.shape), np.zeros(h.shape)
    dh0 = np.zeros((directions, batch, hidden))
    for d in range(directions):
        _, (df, dg) = _functions(activations, "gru", d, clip)
        order, weights, dh = positions(direction, d, steps), widen(r[d]), _initial(ghn, d, (batch, hidden))
        own = weights[2 * hidden :]
        for at in reversed(range(steps)):
            t, alive = order[at], _alive(lengths, order[at], batch)
            before = widen(h[d, order[at - 1]]) if at else _initial(h0, d, (batch, hidden))
            update, reset, new = np.split(widen(gates[d, t]), 3, axis=1)
            gu, gr, gn = np.split(np.zeros(gates.shape[2:]) if ggates is None else widen(ggates[d, t]), 3, axis=1)
            ge = 0.0 if gextras is None else widen(gextras[d, t])
            dh = dh + (0.0 if gh is None else widen(gh[d, t]))
            dn = (dh * (1.0 - update) + gn) * dg(new)
            du = (dh * (before - new) + gu) * df(update)
            if linear_before_reset:
                dextra = dn * reset + ge
                dr, direct = (dn * widen(extras[d, t]) + gr) * df(reset), dextra @ own
            else:
                dextra = dn @ own + ge
                dr, direct = (dextra * before + gr) * df(reset), dextra * reset
            found = np.concatenate([du, dr], axis=1) @ weights[: 2 * hidden] + direct + dh * update
            fed[d, t] = np.where(alive, np.concatenate([du, dr, dn], axis=1), 0.0)
            dextras[d, t] = np.where(alive, dextra, 0.0)
            dh = np.where(alive, found, dh)
        dh0[d] = dh
    return _all(h.dtype, *((fed, dh0, dextras) if linear_before_reset else (fed, dh0)))


def _rnn_scan(
    fed: Array,
    r: Array,
    lengths: Array | None = None,
    h0: Array | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
) -> tuple[Array, ...]:
    (directions, steps, batch, hidden) = fed.shape
    hs, hn = np.zeros(fed.shape), np.zeros((directions, batch, hidden))
    for d in range(directions):
        (f,), _ = _functions(activations, "rnn", d, clip)
        h = _initial(h0, d, (batch, hidden))
        for t in positions(direction, d, steps):
            h = np.where(_alive(lengths, t, batch), f(widen(fed[d, t]) + h @ widen(r[d]).T), h)
            hs[d, t] = h
        hn[d] = h
    return _all(fed.dtype, hs, hn)


def _rnn_scan_grad(
    r: Array,
    h: Array,
    lengths: Array | None = None,
    gh: Array | None = None,
    ghn: Array | None = None,
    *,
    direction: str,
    activations: Sequence[str] | None,
    clip: float | None,
) -> tuple[Array, ...]:
    directions, steps, batch, hidden = h.shape
    fed, dh0 = np.zeros(h.shape), np.zeros((directions, batch, hidden))
    for d in range(directions):
        _, (df,) = _functions(activations, "rnn", d, clip)
        dh = _initial(ghn, d, (batch, hidden))
        for t in reversed(positions(direction, d, steps)):
            alive = _alive(lengths, t, batch)
            dh = dh + (0.0 if gh is None else widen(gh[d, t]))
            fed[d, t] = np.where(alive, dh * df(widen(h[d, t])), 0.0)
            dh = np.where(alive, fed[d, t] @ widen(r[d]), dh)
        dh0[d] = dh
    return _all(h.dtype, fed, dh0)


# -- records -----------------------------------------------------------------------------------------------------

_COMMON: dict[str, Any] = {"direction": "forward", "activations": None, "clip": None}
_LSTM = {**_COMMON, "input_forget": False}
_GRU = {**_COMMON, "linear_before_reset": False}
OPS = (
    Op(
        "lstm_scan",
        Kind.OPAQUE,
        _scan("lstm"),
        quiet(_lstm_scan),
        "The steps of an LSTM from W x + bias: h and c after each step, its gates i o f c, the last h and c.",
        inputs=("fed", "r", "lengths?", "h0?", "c0?", "p?"),
        attrs=_LSTM,
        cost=_cost("lstm", 1),
        cases=forward_cases("lstm"),
        gradient=lstm_scan_gradient,
    ),
    Op(
        "lstm_scan_grad",
        Kind.OPAQUE,
        _scan_grad("lstm"),
        quiet(_lstm_scan_grad),
        "The backward pass of lstm_scan: the gradients of W x + bias and of the initial h and c.",
        inputs=GRAD_INPUTS["lstm"],
        attrs=_LSTM,
        cost=_cost("lstm", 0),
        cases=backward_cases("lstm"),
    ),
    Op(
        "gru_scan",
        Kind.OPAQUE,
        _scan("gru"),
        quiet(_gru_scan),
        "The steps of a GRU from W x + bias: h after each step, its gates z r h, what the candidate's product gave "
        "(R h + b) or took (r * h), the last h.",
        inputs=("fed", "r", "lengths?", "h0?", "b?"),
        attrs=_GRU,
        cost=_cost("gru", 1),
        cases=forward_cases("gru"),
        gradient=gru_scan_gradient,
    ),
    Op(
        "gru_scan_grad",
        Kind.OPAQUE,
        _scan_grad("gru"),
        quiet(_gru_scan_grad),
        "The backward pass of gru_scan: the gradients of W x + bias, of the initial h and (where the reset comes after "
        "the product) of the candidate's R h + b.",
        inputs=GRAD_INPUTS["gru"],
        attrs=_GRU,
        cost=_cost("gru", 0),
        cases=backward_cases("gru"),
    ),
    Op(
        "rnn_scan",
        Kind.OPAQUE,
        _scan("rnn"),
        quiet(_rnn_scan),
        "The steps of a plain recurrent layer from W x + bias: h after each step, the last h.",
        inputs=("fed", "r", "lengths?", "h0?"),
        attrs=_COMMON,
        cost=_cost("rnn", 1),
        cases=forward_cases("rnn"),
        gradient=rnn_scan_gradient,
    ),
    Op(
        "rnn_scan_grad",
        Kind.OPAQUE,
        _scan_grad("rnn"),
        quiet(_rnn_scan_grad),
        "The backward pass of rnn_scan: the gradients of W x + bias and of the initial h.",
        inputs=GRAD_INPUTS["rnn"],
        attrs=_COMMON,
        cost=_cost("rnn", 0),
        cases=backward_cases("rnn"),
    ),
)
