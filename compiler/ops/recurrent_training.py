"""Recurrent layers in the form that is cheap to differentiate, and the gradient rules of what they become: a matrix
product for all that x gives the gates, and a scan (``recurrent_scans``) over the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import gradient
from .cells import positions
from .gradient import Sym

# -- gradient rules of the scans ------------------------------------------------------------------------------------


def _cut(x: Sym, axis: int, start: int, stop: int) -> Sym:
    """``x[start:stop]`` along one axis."""
    starts, stops = [0] * x.rank, list(x.shape)
    starts[axis], stops[axis] = start, stop
    return x.op("slice", starts=tuple(starts), stops=tuple(stops), steps=(1,) * x.rank)


def _joined(parts: Sequence[Sym], axis: int) -> Sym:
    return parts[0] if len(parts) == 1 else parts[0].op("concat", *parts[1:], axis=axis)


def _pairs(gates: Sym, states: Sym, initial: Sym | None, direction: str) -> Iterator[list[tuple[Sym, Sym]]]:
    """For each direction, (gates, states before them) [N,B,.]: all steps but the first one, and the first one."""
    directions, steps = gates.shape[:2]
    for d in range(directions):
        first, *_ = positions(direction, d, steps)
        later, earlier = (1, 0) if first == 0 else (0, 1)
        mine, own = (_cut(s, 0, d, d + 1).reshape(s.shape[1:]) for s in (gates, states))
        found = []
        if steps > 1:
            found.append((_cut(mine, 0, later, later + steps - 1), _cut(own, 0, earlier, earlier + steps - 1)))
        if initial is not None:
            found.append((_cut(mine, 0, first, first + 1), _cut(initial, 0, d, d + 1)))
        yield found


def _weights(gates: Sym, states: Sym, initial: Sym | None, direction: str) -> Sym:
    """The gradient of the weights that ``states`` before each step were multiplied by: [D,G,H]."""
    width, hidden = gates.shape[3], states.shape[3]
    found = []
    for pairs in _pairs(gates, states, initial, direction):
        parts = [g.reshape((-1, width)).swap() @ s.reshape((-1, hidden)) for g, s in pairs]
        found.append(sum(parts[1:], parts[0]) if parts else gates.constant(0).expand((width, hidden)))
    return _joined([f.reshape((1, width, hidden)) for f in found], 0)


def _arriving(c: gradient.Call) -> list[Sym | None]:
    """The gradients of a scan's outputs, None where nothing reads them."""
    return [g if used else None for g, used in zip(c.gs, c.used, strict=True)]


def lstm_scan_gradient(c: gradient.Call) -> list[Sym | None]:
    """By ``lstm_scan_grad``; the weights' gradient is a product over all steps but the first, and one of the first."""
    r, lengths, h0, c0, p = c.input(1), *(c.optional(i) for i in (2, 3, 4, 5))
    h, cells, gates = c.ys[:3]
    fed, dh0, dc0 = r.ops("lstm_scan_grad", cells, gates, lengths, c0, p, *_arriving(c), **c.attrs)
    peepholes = None if p is None else _peepholes(fed, cells, c0, c.attrs["direction"])
    return [fed, _weights(fed, h, h0, c.attrs["direction"]), None, dh0, dc0, peepholes]


def _peepholes(fed: Sym, cells: Sym, c0: Sym | None, direction: str) -> Sym:
    """Input and forget gates look at the cell before, the output gate at the one after."""
    directions, _, _, hidden = cells.shape
    output = (_cut(fed, 3, hidden, 2 * hidden) * cells).sum((1, 2))
    sums = []
    for pairs in _pairs(fed, cells, c0, direction):
        both = []
        for gate in (0, 2):
            parts = [(_cut(g, 2, gate * hidden, (gate + 1) * hidden) * s).sum((0, 1)) for g, s in pairs]
            both.append(sum(parts[1:], parts[0]) if parts else fed.constant(0).expand((hidden,)))
        sums.append([b.reshape((1, hidden)) for b in both])
    to_input, to_forget = (_joined([s[j] for s in sums], 0) for j in range(2))
    return _joined([to_input, output.reshape((directions, hidden)), to_forget], 1)


def gru_scan_gradient(c: gradient.Call) -> list[Sym | None]:
    """By ``gru_scan_grad``."""
    r, lengths, h0, b = c.input(1), *(c.optional(i) for i in (2, 3, 4))
    h, gates, extras, direction = c.ys[0], c.ys[1], c.ys[2], c.attrs["direction"]
    fed, dh0, *rest = r.ops("gru_scan_grad", h, gates, extras, lengths, h0, *_arriving(c), **c.attrs)
    directions, hidden = h.shape[0], h.shape[3]
    both = _weights(_cut(fed, 3, 0, 2 * hidden), h, h0, direction)
    if rest:  # of the candidate's product, before the reset
        own = _weights(rest[0], h, h0, direction)
    else:
        new = _cut(fed, 3, 2 * hidden, 3 * hidden)
        own = new.reshape((directions, -1, hidden)).swap() @ extras.reshape((directions, -1, hidden))
    bias = rest[0].sum((1, 2)) if b is not None else None
    return [fed, _joined([both, own], 1), None, dh0, bias]


def rnn_scan_gradient(c: gradient.Call) -> list[Sym | None]:
    """By ``rnn_scan_grad``."""
    r, lengths, h0 = c.input(1), c.optional(2), c.optional(3)
    fed, dh0 = r.ops("rnn_scan_grad", c.y, lengths, *_arriving(c), **c.attrs)
    return [fed, _weights(fed, c.y, h0, c.attrs["direction"]), None, dh0]


# -- layers as scans -------------------------------------------------------------------------------------------------


def _fed(c: gradient.Call, bias: Sym | None) -> Sym:
    """What x gives the gates, all steps in one product, plus ``bias`` [D,G]."""
    (steps, batch, features), w = c.x.shape, c.input(1)
    fed = c.x.reshape((1, steps * batch, features)) @ w.swap()
    if bias is not None:
        fed = fed + bias.reshape((bias.shape[0], 1, bias.shape[1]))
    return fed.reshape((w.shape[0], steps, batch, w.shape[1]))


def _biases(c: gradient.Call) -> tuple[Sym, Sym] | None:
    """The bias beside x and the one beside h."""
    b = c.optional(3)
    if b is None:
        return None
    half = b.shape[1] // 2
    return _cut(b, 1, 0, half), _cut(b, 1, half, 2 * half)


def _scan_attrs(c: gradient.Call, *names: str) -> dict[str, Any]:
    return {n: c.attrs[n] for n in ("direction", "activations", "clip", *names)}


def _shown(h: Sym, lengths: Sym | None) -> Sym:
    """The layer's output [T,D,B,H]: the states, 0 behind a sequence's end."""
    if lengths is not None:
        steps, batch = h.shape[1:3]
        position = h.constant(np.arange(steps).reshape(1, steps, 1, 1), lengths.dtype)
        h = (position < lengths.reshape((1, 1, batch, 1))).where(h, 0)
    return h.transpose((1, 0, 2, 3))


def lstm_training(c: gradient.Call) -> list[Sym]:
    """An ``lstm`` as a matrix product and a scan that keeps its gates."""
    attrs, biases = _scan_attrs(c, "input_forget"), _biases(c)
    lengths = c.optional(4)
    fed = _fed(c, None if biases is None else biases[0] + biases[1])
    h, _, _, hn, cn = fed.ops("lstm_scan", c.input(2), lengths, c.optional(5), c.optional(6), c.optional(7), **attrs)
    return [_shown(h, lengths), hn, cn]


def gru_training(c: gradient.Call) -> list[Sym]:
    """A ``gru`` as a matrix product and a scan that keeps its gates."""
    attrs, biases = _scan_attrs(c, "linear_before_reset"), _biases(c)
    lengths, bias, own = c.optional(4), None, None
    if biases is not None and attrs["linear_before_reset"]:
        two = c.input(2).shape[2] * 2
        own = _cut(biases[1], 1, two, biases[1].shape[1])
        bias = _joined(
            [_cut(biases[0], 1, 0, two) + _cut(biases[1], 1, 0, two), _cut(biases[0], 1, two, two // 2 * 3)], 1
        )
    elif biases is not None:
        bias = biases[0] + biases[1]
    h, _, _, hn = _fed(c, bias).ops("gru_scan", c.input(2), lengths, c.optional(5), own, **attrs)
    return [_shown(h, lengths), hn]


def rnn_training(c: gradient.Call) -> list[Sym]:
    """An ``rnn`` as a matrix product and a scan."""
    attrs, biases = _scan_attrs(c), _biases(c)
    lengths = c.optional(4)
    fed = _fed(c, None if biases is None else biases[0] + biases[1])
    h, hn = fed.ops("rnn_scan", c.input(2), lengths, c.optional(5), **attrs)
    return [_shown(h, lengths), hn]
