"""Products, convolutions, pools, normalizations, attention and recurrent layers, written as ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .export_math import Rule, plain, through
from .exporter import Call, Writer

RULES: dict[str, Rule] = {"matmul": plain("MatMul"), "softmax": plain("Softmax"), "log_softmax": plain("LogSoftmax")}


_NO_KERNEL = "float64 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64"


def _in_float(rule: Rule) -> Rule:
    return through(rule, dict.fromkeys(_NO_KERNEL.split(), "float32"))


def _window(n: Call, *more: str) -> dict[str, Any]:
    return {k: n.attrs[k] for k in ("strides", "pads", "dilations", *more)}


def _conv(w: Writer, n: Call) -> None:
    w.emit("Conv", n.inputs, n.outs, kernel_shape=n.type(1).dims[2:], **_window(n, "group"))


def _conv_transpose(w: Writer, n: Call) -> None:
    w.emit("ConvTranspose", n.inputs, n.outs, kernel_shape=n.type(1).dims[2:], **_window(n, "group", "output_padding"))


def _max_pool(w: Writer, n: Call) -> None:
    w.emit("MaxPool", n.inputs, n.outs, ceil_mode=_ceil_mode(n), **_window(n, "kernel_shape"))


def _ceil_mode(n: Call) -> int:
    """0 also where rounding up adds nothing: ONNX's own shape rule counts windows that start behind the input."""
    rank = n.type().rank - 2
    found = []
    for i in range(rank):
        extent = (n.attrs["kernel_shape"][i] - 1) * n.attrs["dilations"][i] + 1
        padded = n.type().dims[2 + i] + n.attrs["pads"][i] + n.attrs["pads"][rank + i]
        found.append((padded - extent) // n.attrs["strides"][i] + 1)
    return int(n.attrs["ceil_mode"] and tuple(found) != n.out_types[0].dims[2:])


def _avg_pool(w: Writer, n: Call) -> None:
    flags = {"ceil_mode": _ceil_mode(n), "count_include_pad": int(n.attrs["count_include_pad"])}
    window = _window(n, "kernel_shape")
    if not any(d != 1 for d in window["dilations"]):
        del window["dilations"]  # ONNX Runtime's QLinearAveragePool has none
    w.emit("AveragePool", n.inputs, n.outs, **flags, **window)


def _ones(w: Writer, n: Call, shape: tuple[int, ...]) -> str:
    return w.const(np.ones(shape), n.type().dtype)


def _layer_norm(w: Writer, n: Call) -> None:
    axis = n.attrs["axis"] % n.type().rank
    scale = n.inputs[1] if n.has(1) else _ones(w, n, n.type().dims[axis:])
    bias = n.inputs[2] if n.has(2) else ""
    w.emit("LayerNormalization", [n.inputs[0], scale, bias], n.outs, axis=axis, epsilon=float(n.attrs["epsilon"]))


def _rms_norm(w: Writer, n: Call) -> None:
    x, axis = n.inputs[0], n.attrs["axis"] % n.type().rank
    axes = w.const(range(axis, n.type().rank))
    mean = w.emit("ReduceMean", [w.emit("Mul", [x, x]), axes], keepdims=1)
    root = w.emit("Sqrt", [w.emit("Add", [mean, w.like(n.attrs["epsilon"], n.type())])])
    if n.has(1):
        w.emit("Mul", [w.emit("Div", [x, root]), n.inputs[1]], n.outs)
    else:
        w.emit("Div", [x, root], n.outs)


def _batch_norm(w: Writer, n: Call) -> None:
    w.emit("BatchNormalization", n.inputs, n.outs, epsilon=float(n.attrs["epsilon"]))


def _group_norm(w: Writer, n: Call) -> None:
    """Mean and variance over [group, everything in it], then one scale and bias a channel."""
    dims, groups, t = n.type().dims, n.attrs["num_groups"], n.type()
    rows = w.emit("Reshape", [n.inputs[0], w.const([dims[0], groups, math.prod(dims[1:]) // groups])])
    mean = w.emit("ReduceMean", [rows, w.const([2])], keepdims=1)
    centred = w.emit("Sub", [rows, mean])
    var = w.emit("ReduceMean", [w.emit("Mul", [centred, centred]), w.const([2])], keepdims=1)
    root = w.emit("Sqrt", [w.emit("Add", [var, w.like(n.attrs["epsilon"], t)])])
    whole = w.const(dims)
    parts = [n.inputs[i] if n.has(i) else "" for i in (1, 2)]
    y = w.emit("Reshape", [w.emit("Div", [centred, root]), whole], None if any(parts) else n.outs)
    channel = w.const([dims[1], *[1] * (t.rank - 2)])
    if parts[0]:
        y = w.emit("Mul", [y, w.emit("Reshape", [parts[0], channel])], None if parts[1] else n.outs)
    if parts[1]:
        w.emit("Add", [y, w.emit("Reshape", [parts[1], channel])], n.outs)


def _attention(w: Writer, n: Call) -> None:
    q, k, v = n.inputs[:3]
    t, rank, steps, keys = n.type(), n.type().rank, n.type().dims[-2], n.type(1).dims[-2]
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    scores = w.emit("MatMul", [q, w.emit("Transpose", [k], perm=swapped)])
    scores = w.emit("Mul", [scores, w.like(n.attrs["scale"], t)])
    if n.attrs["softcap"]:
        bound = w.like(n.attrs["softcap"], t)
        scores = w.emit("Mul", [w.emit("Tanh", [w.emit("Div", [scores, bound])]), bound])
    lowest = w.like(-np.inf, t)
    if n.has(3) and n.type(3).dtype == "bool":
        scores = w.emit("Where", [n.inputs[3], scores, lowest])
    elif n.has(3):
        scores = w.emit("Add", [scores, n.inputs[3]])
    if n.attrs["causal"]:
        scores = w.emit("Where", [w.const(np.tri(steps, keys), "bool"), scores, lowest])
    weights = w.emit("Softmax", [scores], axis=-1)
    if n.has(3):  # a query that may look at nothing gives zeros
        top = w.emit("ReduceMax", [scores, w.const([-1])], keepdims=1)
        weights = w.emit("Where", [w.emit("Equal", [top, lowest]), w.like(0, t), weights])
    w.emit("MatMul", [weights, v], n.outs)


def _matmul_integer(w: Writer, n: Call) -> None:
    a, b = (w.const(n.attrs[k], n.type(i).dtype) for i, k in enumerate(("zero_point", "b_zero_point")))
    sums = w.emit("MatMulInteger", [*n.inputs[:2], a, b], None if n.has(2) else n.outs)
    if n.has(2):
        w.emit("Add", [sums, n.inputs[2]], n.outs)


def _recurrent(op_type: str, **flags: str) -> Rule:
    def rule(w: Writer, n: Call) -> None:
        given = list(n.inputs)
        if n.has(4) and n.type(4).dtype != "int32":
            given[4] = w.cast(given[4], "int32")
        attrs = {theirs: int(n.attrs[ours]) for ours, theirs in flags.items()}
        attrs.update(direction=n.attrs["direction"], hidden_size=n.type(2).dims[2])
        w.emit(op_type, given, n.outs, activations=n.attrs["activations"], clip=n.attrs["clip"], **attrs)

    return rule


RULES.update(
    conv=_in_float(_conv),
    conv_transpose=_in_float(_conv_transpose),
    max_pool=_max_pool,
    avg_pool=_in_float(_avg_pool),
    layer_norm=_layer_norm,
    rms_norm=_rms_norm,
    batch_norm=_batch_norm,
    group_norm=_group_norm,
    attention=_attention,
    matmul_integer=_matmul_integer,
    lstm=_in_float(_recurrent("LSTM", input_forget="input_forget")),
    gru=_in_float(_recurrent("GRU", linear_before_reset="linear_before_reset")),
    rnn=_in_float(_recurrent("RNN")),
)
