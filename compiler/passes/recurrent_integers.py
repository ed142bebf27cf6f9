"""Recurrent layers between ``dequantize`` and ``quantize`` become ``lstm_integer`` and ``gru_integer``.

A layer is one where x and both weights are dequantized from 8 bits, the weights stored, without a zero point and with
one scale or one for each row; its activations are the usual ones; and something quantizes y or the last h: that is how
the hidden state is stored from step to step. Whatever else reads results gets them dequantized.

Unlike the rules of ``integers`` this one is not exact: in the quantized graph, as in ONNX Runtime, the state and the
gates are floats. What the integers compute is defined in ``ops.recurrent_integers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import Graph, Value
from ..ops.cells import DEFAULTS, DIRECTIONS
from ..ops.integers import NARROW
from ..ops.recurrent_integers import CELL_BITS, GATE_BITS, UNIT_BITS

LAYERS = ("lstm", "gru")


def lower_recurrent(graph: Graph) -> Graph:
    """A copy of ``graph`` whose quantized recurrent layers compute with integers; ``graph`` itself if it has none."""
    found = [key for op in LAYERS for key in graph.find(op)] if graph.find("dequantize") else []
    work: Graph | None = None
    for key in found:
        layer = _layer(work or graph, key)
        if layer is not None:
            work = work or graph.copy()
            _lower(work, key, layer)
    if work is None:
        return graph
    work.prune()
    return work


@dataclass(frozen=True)
class _Steps:
    q: Value
    scale: Value
    zero: int


@dataclass(frozen=True)
class _Layer:
    x: _Steps
    w: _Steps
    r: _Steps
    state: Value  # the ``quantize`` whose steps the hidden state is stored in


def usual(attrs: Any, op: str) -> bool:
    """Whether a layer computes what the integer forms do: sigmoid and tanh, no clipping, no coupled gates."""
    names = attrs["activations"]
    plain = names is None or tuple(names) == DEFAULTS[op] * DIRECTIONS[attrs["direction"]]
    return plain and attrs["clip"] is None and not attrs.get("input_forget", False)


def _layer(graph: Graph, key: int) -> _Layer | None:
    node = graph.node(key)
    x, w, r, *rest = graph.args(key)
    peepholes = node.op == "lstm" and len(rest) > 4 and rest[4] is not None
    if peepholes or not usual(node.attrs, node.op) or graph.type(Value(key)).dtype != "float32":
        return None
    steps, weights, own = _steps(graph, x), _weights(graph, w), _weights(graph, r)
    state = _state(graph, key)
    if steps is None or weights is None or own is None or state is None:
        return None
    return _Layer(steps, weights, own, state)


def _dequantized(graph: Graph, value: Value | None) -> bool:
    if value is None or graph.node(value).op != "dequantize" or graph.type(value).dtype != "float32":
        return False
    return graph.node(value).attrs.get("block") is None


def _steps(graph: Graph, value: Value | None) -> _Steps | None:
    """An 8-bit tensor with one scale that ``value`` is dequantized from."""
    if not _dequantized(graph, value):
        return None
    q, scale, *zero = graph.args(value.node)  # type: ignore[union-attr]
    assert q is not None and scale is not None
    point = _zero(graph, zero[0] if zero else None)
    plain = graph.type(scale).size == 1 and graph.type(scale).dtype == "float32"
    return _Steps(q, scale, point) if plain and point is not None and graph.type(q).dtype in NARROW else None


def _zero(graph: Graph, value: Value | None) -> int | None:
    array = np.zeros(1) if value is None else graph.constant(value)
    return int(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _weights(graph: Graph, value: Value | None) -> _Steps | None:
    """int8 weights without a zero point, with one scale or one for each row."""
    if not _dequantized(graph, value):
        return None
    q, scale, *zero = graph.args(value.node)  # type: ignore[union-attr]
    assert q is not None and scale is not None
    zeros = np.zeros(1) if not zero or zero[0] is None else graph.constant(zero[0])
    full = (1,) * (3 - graph.type(scale).rank) + tuple(graph.type(scale).shape)
    stored = graph.type(q).dtype == "int8" and graph.type(scale).dtype == "float32"
    return _Steps(q, scale, 0) if stored and zeros is not None and not zeros.any() and full[2] == 1 else None


def _state(graph: Graph, key: int) -> Value | None:
    """The first ``quantize`` behind y, or else behind the last h, to 8 bits with one scale."""
    for index in (0, 1):
        for user, arg in graph.users(Value(key, index)):
            node = graph.node(user)
            if node.op != "quantize" or arg != 0 or node.attrs["to"] not in NARROW:
                continue
            _, scale, *zero = graph.args(user)
            known = _zero(graph, zero[0] if zero else None) is not None and node.attrs["low"] is node.attrs["high"]
            if scale is not None and graph.type(scale).size == 1 and graph.type(scale).dtype == "float32" and known:
                return Value(user)
    return None


def _lower(graph: Graph, key: int, layer: _Layer) -> None:
    node = graph.node(key)
    _, _, _, *rest = graph.args(key)
    b, lengths, h0, c0 = [*rest, *[None] * 4][:4]
    _, scale, *zero = graph.args(layer.state.node)
    to = graph.node(layer.state).attrs["to"]
    make = _Builder(graph, key)
    h_scale = make.scalar(scale)
    point = make.const(np.asarray(_zero(graph, zero[0] if zero else None), to), "zero_point")
    unit, cell, step = (make.const(np.float32(2.0**-bits), f"2^-{bits}") for bits in (UNIT_BITS, CELL_BITS, GATE_BITS))
    multipliers = [
        make.add("mul", make.rows(weights.scale), make.add("div", make.scalar(s), step))
        for weights, s in ((layer.w, layer.x.scale), (layer.r, scale))
    ]
    options = [None if b is None else make.add("quantize", b, step, to="int32"), lengths]
    if h0 is not None:
        h0 = (
            make.add("quantize", h0, h_scale, point, to=to)
            if node.op == "lstm"
            else make.add("quantize", h0, unit, to="int16")
        )
    options.append(h0)
    if node.op == "lstm":
        options.append(None if c0 is None else make.add("quantize", c0, cell, to="int16"))
    attrs = {"direction": node.attrs["direction"], "x_zero_point": layer.x.zero, "to": to}
    if node.op == "gru":
        attrs["linear_before_reset"] = node.attrs["linear_before_reset"]
    made = make.add(
        f"{node.op}_integer",
        *(layer.x.q, layer.w.q, layer.r.q, *multipliers, make.add("div", unit, h_scale)),
        *options,
        zero_point=int(graph.node(point).array),
        **attrs,
    )
    results = (
        [(h_scale, point), (h_scale, point), (cell, None)] if node.op == "lstm" else [(h_scale, point), (unit, None)]
    )
    for index, parameters in enumerate(results):
        if graph.uses(Value(key, index)):
            back = make.add("dequantize", Value(made.node, index), *parameters)
            graph.replace(Value(key, index), back)


class _Builder:
    """Adds operations of a replacement, whose origin is the layer's."""

    def __init__(self, graph: Graph, key: int) -> None:
        self.graph, self.name, self.origin = graph, graph.node(key).names[0], graph.node(key).origin

    def add(self, op: str, *args: Value | None, **attrs: Any) -> Value:
        return self.graph.add(op, *args, origin=self.origin, **attrs)

    def const(self, array: Any, what: str) -> Value:
        return self.graph.const(array, f"{self.name}.{what}", self.origin)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        return value if self.graph.type(value).shape == tuple(shape) else self.add("reshape", value, shape=tuple(shape))

    def scalar(self, value: Value | None) -> Value:
        assert value is not None
        return self.reshaped(value, ())

    def rows(self, scale: Value) -> Value:
        """The scale of weights as a number, or as [directions or 1, rows or 1]."""
        dims = self.graph.type(scale).dims
        full = (1,) * (3 - len(dims)) + tuple(dims)
        return self.scalar(scale) if self.graph.type(scale).size == 1 else self.reshaped(scale, full[:2])
