"""LSTM and GRU as quantized operators: x and y get quantizers, the weights become int8, one scale a row.

Biases and initial states stay floats here; ``passes.recurrent_integers`` turns them into the layer's own integers. The
same form in an ONNX file is what ONNX Runtime reads as a float layer between quantizers: it rounds x, y and the
weights as the integers do, but neither the hidden state nor the gates. The two differ by a step of y or two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ..ir import Graph, Value
from ..ops.recurrent_integers import GATES
from ..passes.recurrent_integers import usual
from .scheme import Scheme, affine, symmetric

RECURRENT = ("lstm", "gru", "rnn")
HOLDS = 1.0  # no hidden value is larger, but for what a GRU starts from


@dataclass(frozen=True)
class Recurrent:
    """A recurrent layer that has an integer form: its name, and the tensors that need quantizers. ``y`` is the last h
    where nothing reads y itself: either says how hidden states are stored."""

    node: int
    name: str
    x: Value
    y: Value


def recurrent_at(graph: Graph, key: int) -> Recurrent | str:
    """The layer at a node ``lstm``, ``gru`` or ``rnn``, or why it stays in float."""
    node = graph.node(key)
    x, w, r, *rest = graph.args(key)
    assert x is not None
    if node.op not in GATES:
        return f"{node.op} has no integer form"
    if not usual(node.attrs, node.op) or (node.op == "lstm" and len(rest) > 4 and rest[4] is not None):
        return "its activations, clipping, coupled gates or peepholes have no integer form"
    if graph.constant(w) is None or graph.constant(r) is None:
        return "its weights are not constants"
    if graph.type(x).dtype != "float32":
        return f"it computes in {graph.type(x).dtype}"
    return Recurrent(key, node.names[0], x, Value(key) if graph.uses(Value(key)) else Value(key, 1))


def state_scheme(low: float, high: float, dtype: str = "int8") -> Scheme:
    """The scheme of a hidden state that was seen within [low, high]: 8 bits, symmetric, at most [-1, 1]."""
    reach = min(max(abs(low), abs(high)), HOLDS) or HOLDS
    scale = np.asarray(reach / 127, np.float32)
    return Scheme("uint8", scale, 128) if dtype == "uint8" else Scheme("int8", scale)


def quantize_recurrent(
    graph: Graph,
    ranges: Mapping[str, tuple[float, float]],
    *,
    activations: str = "int8",
    bits: int = 8,
    per_row: bool = True,
    floats: Collection[str] = (),
) -> Graph:
    """A copy of a float graph whose LSTMs and GRUs stand between quantizers, but for those named in ``floats``.

    ``ranges``: the least and greatest value of a tensor by its name; a layer whose x is not there stays in float, a y
    that is not there gets [-1, 1]. Quantizers that stand at x or y already are used.
    """
    work = graph.copy()
    for key in sorted(k for op in GATES for k in graph.find(op)):
        layer = recurrent_at(work, key)
        if isinstance(layer, str) or layer.name in floats:
            continue
        source = work.tensor_name(layer.x)
        if work.node(layer.x).op != "dequantize":
            if source not in ranges:
                continue
            before = affine(*ranges[source], "uint8" if activations == "uint8" else "int8")
            work.set_arg(key, 0, _pair(work, layer.x, before))
        store_weights(work, layer, bits=bits, per_row=per_row)
        span = ranges.get(work.tensor_name(layer.y), (-HOLDS, HOLDS))
        hold_state(work, layer, state_scheme(*span, activations))
    work.prune()
    return work


def store_weights(graph: Graph, layer: Recurrent, *, bits: int = 8, per_row: bool = True) -> None:
    """Both weights of a layer become int8 in place, dequantized. ``graph`` belongs to the caller.

    An ONNX file knows scales along one axis: of two directions, rows lie one behind the other and are reshaped.
    """
    for value in graph.args(layer.node)[1:4]:
        array = graph.constant(value)
        if value is not None and array is not None and not np.isfinite(array).all():
            raise NervureError(
                f"the weights {graph.tensor_name(value)!r} hold NaN or infinity",
                where=graph.node(value).origin,
                hint="no scale follows from that: look at how the model was trained or exported",
            )
    for arg in (1, 2):
        value = graph.args(layer.node)[arg]
        array = graph.constant(value)
        assert value is not None and array is not None
        name, origin = graph.tensor_name(value), graph.node(value).origin
        flat = array.reshape(-1, array.shape[2])
        scheme = symmetric(np.abs(flat).max(axis=1 if per_row else None, keepdims=True), bits)
        q = graph.const(scheme.steps(flat), f"{name}_quantized", origin)
        scale = graph.const(scheme.scale if per_row else scheme.scale.reshape(()), f"{name}_scale", origin)
        zero = graph.const(np.zeros(graph.type(scale).dims, np.int8), f"{name}_zero_point", origin)
        back = graph.add("dequantize", q, scale, zero, origin=origin)
        graph.set_arg(layer.node, arg, graph.add("reshape", back, shape=array.shape, origin=origin))


def _pair(graph: Graph, value: Value, scheme: Scheme) -> Value:
    """``value`` quantized and dequantized."""
    name, origin = graph.tensor_name(value), graph.node(value).origin
    parameters = (
        graph.const(scheme.scale, f"{name}_scale", origin),
        graph.const(np.asarray(scheme.zero_point, scheme.dtype), f"{name}_zero_point", origin),
    )
    q = graph.add("quantize", value, *parameters, names=[f"{name}_quantized"], origin=origin, to=scheme.dtype)
    return graph.add("dequantize", q, *parameters, names=[f"{name}_dequantized"], origin=origin)


def hold_state(graph: Graph, layer: Recurrent, scheme: Scheme) -> None:
    """Whatever reads y reads it quantized and dequantized, in place."""
    users = graph.users(layer.y)
    if all(graph.node(user).op != "quantize" for user, _ in users):
        read_instead(graph, layer.y, users, _pair(graph, layer.y, scheme))


def read_instead(graph: Graph, value: Value, users: Sequence[tuple[int, int]], made: Value) -> None:
    """``users`` of ``value`` and the graph's outputs read ``made``."""
    for user, arg in users:
        graph.set_arg(user, arg, made)
    graph.outputs = [made if v == value else v for v in graph.outputs]
