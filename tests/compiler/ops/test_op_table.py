"""Every record of the op table on every one of its cases: complete, its types right, its reference right.

The oracle of a reference is a one-node ONNX model in ONNX Runtime, in onnx's own evaluator where ONNX Runtime lacks the
type, and exact Python arithmetic where ONNX has no such operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from nervure.compiler.ops import (
    OPS,
    image,
    indexing,
    infer,
    integers,
    movement,
    recurrent_integers,
    recurrent_scans,
    weights,
)
from nervure.compiler.ops.record import Call, Case, Kind, Op, fill_attrs
from nervure.compiler.ops.sampling import sample_inputs
from nervure.compiler.types import type_of

Array = np.ndarray
TABLE = {name: op for name, op in OPS.items() if op.kind is not Kind.STORED and name != "fused"}
# float64 is held to what ONNX's float32 attributes leave; exact oracles hold it tighter
TOLERANCE = {"float16": 4e-3, "bfloat16": 2e-2, "float32": 2e-5, "float64": 1e-6}
EXACT = {**TOLERANCE, "float32": 1e-7, "float64": 1e-14}


class Sample(NamedTuple):
    op: Op
    case: Case
    arrays: tuple[Array | None, ...]
    attrs: dict[str, Any]

    def references(self) -> tuple[Array, ...]:
        assert self.op.reference is not None
        found = self.op.reference(*self.arrays, **self.attrs)
        return found if isinstance(found, tuple) else (found,)


def samples(name: str) -> list[Sample]:
    op = OPS[name]
    assert op.cases is not None
    return [Sample(op, c, sample_inputs(c, i), fill_attrs(op, c.attrs)) for i, c in enumerate(op.cases())]


# -- records -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TABLE))
def test_record_is_complete(name: str) -> None:
    op = OPS[name]
    assert op.doc.endswith((".", ")."))
    assert "\n" not in op.doc
    assert op.reference is not None
    assert op.cases is not None and len(list(op.cases())) >= 2
    assert all(0 <= i < max(1, len(op.inputs)) for i in op.inplace)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_inferred_types_are_those_of_the_reference(name: str) -> None:
    for sample in samples(name):
        types = [None if a is None else type_of(a) for a in sample.arrays]
        inferred, filled = infer(name, types, sample.case.attrs, sample.arrays)
        found = sample.references()
        assert all(isinstance(a, np.ndarray) for a in found), sample.case
        assert list(inferred) == [type_of(a) for a in found], sample.case
        if sample.op.cost is not None:
            assert sample.op.cost(Call(tuple(types), filled, sample.arrays)).flops >= 0


@pytest.mark.parametrize("name", sorted(n for n in TABLE if OPS[n].commutative))
def test_commutative_operators_commute(name: str) -> None:
    for sample in samples(name):
        a, b = sample.arrays
        np.testing.assert_array_equal(OPS[name].reference(a, b), OPS[name].reference(b, a))


def test_samples_follow_the_seed_and_the_range() -> None:
    from nervure.compiler.ops.sampling import f32, t

    fixed = np.arange(3)
    case = Case((f32(500), t("int8", 500), t("uint8", 500), t("bool", 500), None, fixed), low=-5.0, high=3.0)
    first, again, other = sample_inputs(case, 1), sample_inputs(case, 1), sample_inputs(case, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert first[4] is None and first[5] is fixed
    assert -5 <= first[0].min() < -4 and 2 < first[0].max() < 3
    assert (first[1].min(), first[1].max()) == (-5, 3)
    assert (first[2].min(), first[2].max()) == (0, 3)
    assert 0 < first[3].sum() < 500


# -- references against ONNX -------------------------------------------------------------------------------------


class Node(NamedTuple):
    """A one-node ONNX model that means the same as a sample."""

    op_type: str
    arrays: tuple[Array | None, ...]
    attrs: Mapping[str, Any] = MappingProxyType({})
    opset: int = 20
    lead: int = 0  # axes of extent 1 that the model has in front of ours


Oracle = Callable[[Sample], "Node | Array | None"]


def _same(op_type: str, opset: int = 20, drop: tuple[str, ...] = (), **renames: str) -> Oracle:
    """The same inputs; attributes under their ONNX names, bools as ints, None left out."""

    def node(s: Sample) -> Node:
        kept = {renames.get(k, k): v for k, v in s.attrs.items() if v is not None and k not in drop}
        return Node(op_type, s.arrays, {k: int(v) if isinstance(v, bool) else v for k, v in kept.items()}, opset)

    return node


def _exact(function: Callable[..., float]) -> Oracle:
    """Python arithmetic, element by element, in the precision of Python's own numbers."""

    def compute(s: Sample) -> Array:
        given = [a if a.dtype.kind in "iub" else a.astype(np.float64) for a in s.arrays if a is not None]
        wide = np.frompyfunc(lambda *xs: function(*(x.item() if hasattr(x, "item") else x for x in xs)), len(given), 1)
        return np.asarray(wide(*[a.astype(object) for a in given]))

    return compute


def _shift(direction: str) -> Oracle:
    def node(s: Sample) -> Node | Array:
        a, b = s.arrays
        if a.dtype.kind == "u":
            return Node("BitShift", s.arrays, {"direction": direction})
        wide = [int(x) << int(y) if direction == "LEFT" else int(x) >> int(y) for x, y in np.broadcast(a, b)]
        return np.array(wide, np.int64).reshape(np.broadcast_shapes(a.shape, b.shape)).astype(a.dtype)

    return node


def _mod(s: Sample) -> Node | Array:
    a, b = s.arrays
    if a.dtype.kind in "iu":
        return Node("Mod", s.arrays)
    return np.asarray(np.frompyfunc(lambda x, y: float(x) % float(y), 2, 1)(a.astype(object), b.astype(object)))


def _power(s: Sample) -> Node | Array:
    a, b = s.arrays
    if a.dtype.kind in "iu":
        return np.asarray(np.frompyfunc(lambda x, y: int(int(x) ** int(y)), 2, 1)(a, b))
    return Node("Pow", s.arrays)


def _clip(s: Sample) -> Node:
    x = s.arrays[0]
    # No bound of a float is an infinite one: ONNX Runtime's default would turn infinities into the largest number.
    free = (-np.inf, np.inf) if x.dtype.kind == "f" else (None, None)
    given = [f if s.attrs[k] is None else s.attrs[k] for k, f in zip(("low", "high"), free, strict=True)]
    return Node("Clip", (x, *(None if g is None else np.array(g, x.dtype) for g in given)))


def _quantized(op_type: str) -> Oracle:
    def node(s: Sample) -> Node | Array:
        x, scale, zero = (*s.arrays, None)[:3]
        to = np.dtype(s.attrs["to"])
        if s.attrs.get("low") is not None:
            steps = np.rint(x / scale) + (0 if zero is None else zero.astype(np.float64))
            return np.clip(steps, s.attrs["low"], s.attrs["high"]).astype(to)
        if zero is None:
            zero = np.zeros(scale.shape, to if op_type == "QuantizeLinear" else x.dtype)
        if s.attrs.get("block"):
            axis, size = s.attrs["block"]
            return Node(op_type, (x, scale, zero), {"axis": axis, "block_size": size}, 21)
        attrs = {"axis": x.ndim - scale.ndim} if scale.ndim else {}
        return Node(
            op_type,
            (x, scale.reshape(-1) if scale.ndim else scale, zero.reshape(scale.size) if scale.ndim else zero),
            attrs,
            21,
        )

    return node


def _cast(s: Sample) -> Node:
    return Node(
        "Cast", s.arrays, {"to": onnx.TensorProto.DataType.Value(_PROTO.get(s.attrs["to"], s.attrs["to"].upper()))}
    )


_PROTO = {"float32": "FLOAT", "float64": "DOUBLE"}


def _iota(s: Sample) -> Array:
    made = np.empty(s.attrs["shape"])
    for at in np.ndindex(*made.shape):
        made[at] = at[s.attrs["axis"]]
    return made


def _trilu(s: Sample) -> Node:
    return Node("Trilu", (s.arrays[0], np.array(s.attrs["k"], np.int64)), {"upper": int(s.attrs["upper"])})


def _reduction(op_type: str) -> Oracle:
    def node(s: Sample) -> Node:
        axes = np.array(s.attrs["axes"], np.int64)
        attrs = {"keepdims": int(s.attrs["keepdims"]), "noop_with_empty_axes": 1}
        return Node(op_type, (s.arrays[0], axes), attrs)

    return node


def _running(s: Sample) -> Node:
    flags = {k: int(s.attrs[k]) for k in ("exclusive", "reverse")}
    return Node("CumSum", (s.arrays[0], np.array(s.attrs["axis"], np.int64)), flags)


def _running_product(s: Sample) -> Array:
    """Element by element from the definition."""
    x, axis = np.moveaxis(s.arrays[0], s.attrs["axis"], 0), s.attrs["axis"]
    made = np.empty(x.shape)
    for i in range(len(x)):
        near = [
            j
            for j in range(len(x))
            if (j > i if s.attrs["reverse"] else j < i) or (j == i and not s.attrs["exclusive"])
        ]
        made[i] = math.prod((x[j].astype(np.float64) for j in near), start=np.ones(x.shape[1:]))
    return np.moveaxis(made, 0, axis)


def _layer_norm(s: Sample) -> Node:
    x = s.arrays[0]
    tail = x.shape[s.attrs["axis"] % x.ndim :]
    scale, bias = (*s.arrays[1:], None, None)[:2]
    scale = np.broadcast_to(np.ones(tail, x.dtype) if scale is None else scale, tail)
    given = (scale,) if bias is None else (scale, np.broadcast_to(bias, tail))
    return Node("LayerNormalization", (x, *(np.ascontiguousarray(g) for g in given)), dict(s.attrs))


def _rms_norm(s: Sample) -> Node:
    x = s.arrays[0]
    tail = x.shape[s.attrs["axis"] % x.ndim :]
    scale = np.ones(tail, x.dtype) if len(s.arrays) < 2 else s.arrays[1]
    return Node("RMSNormalization", (x, np.ascontiguousarray(np.broadcast_to(scale, tail))), dict(s.attrs), 23)


def _group_norm(s: Sample) -> Node:
    x, scale, bias = (*s.arrays, None, None)[:3]
    channels = x.shape[1]
    scale = np.ones(channels, x.dtype) if scale is None else scale
    bias = np.zeros(channels, x.dtype) if bias is None else bias
    return Node("GroupNormalization", (x, scale, bias), dict(s.attrs), 21)


def _attention(s: Sample) -> Node:
    q, k, v, mask = (*s.arrays, None)[:4]
    lead = 4 - q.ndim
    q, k, v = (a.reshape((1,) * lead + a.shape) for a in (q, k, v))
    if mask is not None:  # ONNX Runtime broadcasts no mask along the queries or keys
        mask = np.ascontiguousarray(np.broadcast_to(mask, (*mask.shape[:-2], q.shape[2], k.shape[2])))
    attrs = {"scale": s.attrs["scale"], "is_causal": int(s.attrs["causal"]), "softcap": s.attrs["softcap"]}
    return Node("Attention", (q, k, v) if mask is None else (q, k, v, mask), attrs, 24, lead)


def _recurrent(op_type: str) -> Oracle:
    def node(s: Sample) -> Node:
        attrs = {k: int(v) if isinstance(v, bool) else v for k, v in s.attrs.items() if v is not None}
        return Node(op_type, s.arrays, {**attrs, "hidden_size": s.arrays[2].shape[2]})

    return node


def _max_pool(s: Sample) -> Node:
    made = _same("MaxPool", 12, drop=("indices",))(s)
    assert isinstance(made, Node)
    return made


def _conv_grad_weight(s: Sample) -> Array:
    """A convolution is linear in its weights: each one's gradient is g times the convolution by it alone."""
    x, g = (a.astype(np.float64) for a in s.arrays)  # type: ignore[union-attr]
    attrs = {k: v for k, v in s.attrs.items() if k != "kernel_shape"}
    made = np.zeros((g.shape[1], x.shape[1] // s.attrs["group"], *s.attrs["kernel_shape"]))
    for at in np.ndindex(*made.shape):
        one = np.zeros_like(made)
        one[at] = 1
        made[at] = np.sum(g * OPS["conv"].reference(x, one, **attrs))
    return made.astype(s.arrays[0].dtype)


def _max_pool_grad(s: Sample) -> Array:
    """Window by window, plainly."""
    x, g = s.arrays
    rank, window = x.ndim - 2, s.attrs
    made = np.zeros(x.shape)
    for at in np.ndindex(*g.shape):
        starts = [o * n - p for o, n, p in zip(at[2:], window["strides"], window["pads"][:rank], strict=True)]
        taps = [
            tuple(b + i * d for b, i, d in zip(starts, tap, window["dilations"], strict=True))
            for tap in np.ndindex(*window["kernel_shape"])
        ]
        inside = [p for p in taps if all(0 <= i < n for i, n in zip(p, x.shape[2:], strict=True))]
        made[(*at[:2], *max(inside, key=lambda p: x[(*at[:2], *p)]))] += g[at]
    return made.astype(x.dtype)


ORACLES: dict[str, Oracle] = {
    **{name: _same(next(iter(op.onnx))) for name, op in TABLE.items() if list(op.onnx.values()) == [{}]},
    "stop_gradient": _same("Identity"),
    "straight_through": lambda s: (
        np.zeros(np.broadcast_shapes(*(a.shape for a in s.arrays)), s.arrays[0].dtype) + s.arrays[0]
    ),
    "rsqrt": _exact(lambda x: x**-0.5),
    "log1p": _exact(math.log1p),
    "expm1": _exact(math.expm1),
    "silu": _exact(lambda x: x / (1 + math.exp(-x))),
    "isinf": _same("IsInf", positive="detect_positive", negative="detect_negative"),
    "clip": _clip,
    "pow": _power,
    "minimum": _same("Min"),
    "maximum": _same("Max"),
    "mod": _mod,
    "fmod": lambda s: Node("Mod", s.arrays, {"fmod": 1}),
    "left_shift": _shift("LEFT"),
    "right_shift": _shift("RIGHT"),
    "cast": _cast,
    "quantize": _quantized("QuantizeLinear"),
    "dequantize": _quantized("DequantizeLinear"),
    "iota": _iota,
    "trilu": _trilu,
    **{f"reduce_{n}": _reduction(f"Reduce{n.capitalize()}") for n in ("sum", "mean", "max", "min", "prod")},
    "argmax": _same("ArgMax", select_last="select_last_index"),
    "argmin": _same("ArgMin", select_last="select_last_index"),
    "cumsum": _running,
    "cumprod": _running_product,
    "conv": _same("Conv"),
    "conv_transpose": _same("ConvTranspose"),
    "conv_grad_weight": _conv_grad_weight,
    "max_pool": _max_pool,
    "max_pool_grad": _max_pool_grad,
    "avg_pool": _same("AveragePool"),
    "softmax": _same("Softmax"),
    "log_softmax": _same("LogSoftmax"),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "batch_norm": _same("BatchNormalization"),
    "group_norm": _group_norm,
    "attention": _attention,
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "rnn": _recurrent("RNN"),
}
# Tested in files of their own.
_FAMILIES = (movement, indexing, image, recurrent_integers, recurrent_scans, integers, weights)
ELSEWHERE = {op.name for family in _FAMILIES for op in family.OPS}
ELSEWHERE.add("random_bits")


def test_every_operator_has_an_oracle() -> None:
    assert sorted(set(TABLE) - set(ORACLES) - ELSEWHERE) == []


def _outputs(node: Node, count: int, half: bool, fixtures: tuple[Callable[..., list[Array]], ...]) -> list[Array]:
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    in_runtime, in_evaluator = fixtures
    arguments = (node.op_type, node.arrays, dict(node.attrs), count, node.opset)
    if half:  # ONNX Runtime's Python binding has no arrays of bfloat16
        return in_evaluator(*arguments)
    try:
        found = in_runtime(*arguments)
    except (ort.NotImplemented, ort.InvalidGraph):  # it has no kernel for the element type, or ONNX does not allow it
        found = in_evaluator(*arguments)
    return [f[(0,) * node.lead] for f in found]


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_reference_agrees_with_its_oracle(
    name: str, onnxruntime_node: Callable[..., list[Array]], onnx_reference_node: Callable[..., list[Array]]
) -> None:
    for sample in samples(name):
        found = sample.references()
        expected = ORACLES[name](sample)
        exact = not isinstance(expected, Node)
        half = any(a.dtype.name == "bfloat16" for a in (*sample.arrays, *found) if a is not None)
        oracles = (onnxruntime_node, onnx_reference_node)
        outputs = [expected] if exact else _outputs(expected, len(found), half, oracles)
        for ours, theirs in zip(found, outputs, strict=True):
            _compare(ours, np.asarray(theirs), f"{name} {sample.case}", EXACT if exact else TOLERANCE)


def _compare(ours: Array, theirs: Array, label: str, tolerances: Mapping[str, float]) -> None:
    assert theirs.shape == ours.shape, label
    tolerance = tolerances.get(ours.dtype.name)
    if tolerance is None:
        np.testing.assert_array_equal(ours, theirs, label)
        return
    wide = theirs.astype(np.float64)
    np.testing.assert_allclose(ours.astype(np.float64), wide, rtol=tolerance, atol=tolerance, err_msg=label)
