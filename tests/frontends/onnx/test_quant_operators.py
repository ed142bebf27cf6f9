"""Quantized operators in one piece (QOperator): each beside ONNX Runtime, in integers; and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.errors import NervureError
from nervure.frontends.onnx import load

MS = "com.microsoft"
RNG = np.random.default_rng(11)
Arrays = dict[str, np.ndarray]
VIEWS = {"reshape", "transpose", "slice", "concat", "identity"}


def integers(dtype: str, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype, endpoint=True)


def steps(name: str, scale: float | Sequence[float], zero: int, dtype: str) -> Arrays:
    """A scale and a zero point as constants NAME_s and NAME_z."""
    each = np.asarray(scale, np.float32)
    return {f"{name}_s": each, f"{name}_z": np.full(each.shape, zero, dtype)}


def floats(graph: Graph) -> Counter[str]:
    """Operations with a floating-point result."""
    return Counter(
        graph.node(k).op
        for k in graph
        if graph.node(k).op not in ("const", "input", *VIEWS) and any(t.dtype == "float32" for t in graph.node(k).types)
    )


class Form:
    """One node with its constants and inputs, and how far from ONNX Runtime it may be."""

    def __init__(
        self,
        op: str,
        inputs: str,
        x: Mapping[str, np.ndarray],
        consts: Arrays,
        *,
        apart: int = 0,
        domain: str = MS,
        **attrs: Any,
    ):
        self.op, self.inputs, self.x, self.consts, self.apart = op, inputs.replace("-", "").split(","), x, consts, apart
        self.domain, self.attrs = domain, attrs

    def model(self, kit: SimpleNamespace) -> Any:
        node = kit.node(self.op, [i.strip() for i in self.inputs], ["y"], domain=self.domain, **self.attrs)
        model = kit.build([node], self.x, consts=self.consts)
        model.opset_import.append(kit.helper.make_opsetid(MS, 1))
        return model


def conv_form(x: str, w: str, channels: bool, bias: bool, **attrs: Any) -> Form:
    scales = [0.011, 0.02, 0.007, 0.03, 0.01, 0.013] if channels else 0.013
    consts = {
        **steps("x", 0.04, 7, x),
        "w": integers(w, 6, 3, 3, 3),
        **steps("w", scales, 0 if w == "int8" else 131, w),
    }
    consts |= {**steps("y", 0.6, 9, x), "b": RNG.integers(-3000, 3000, 6).astype(np.int32)}
    names = "x,x_s,x_z,w,w_s,w_z,y_s,y_z" + (",b" if bias else "")
    return Form("QLinearConv", names, {"x": integers(x, 2, 3, 8, 9)}, consts, domain="", **attrs)


def matmul_form(kind: str, w: str, scale: Any, depth: int = 20) -> Form:
    consts = {
        **steps("x", 0.04, 7, kind),
        "w": integers(w, depth, 5),
        **steps("w", scale, 0 if w == "int8" else 120, w),
    }
    consts |= steps("y", 0.5, 3, kind)
    return Form("QLinearMatMul", "x,x_s,x_z,w,w_s,w_z,y_s,y_z", {"x": integers(kind, 4, depth)}, consts, domain="")


def unary(
    op: str, kind: str = "uint8", y: Arrays | None = None, shape: Sequence[int] = (2, 5, 6, 8), **attrs: Any
) -> Form:
    apart = attrs.pop("apart", 0)
    consts = {
        **steps("x", 0.05, 100 if kind == "uint8" else -9, kind),
        **(y or steps("y", 0.043, 90 if kind == "uint8" else 3, kind)),
    }
    return Form(op, "x,x_s,x_z,y_s,y_z", {"x": integers(kind, *shape)}, consts, apart=apart, **attrs)


def binary(op: str, kind: str, scale: float, other: Sequence[int] = (3, 40)) -> Form:
    middle = 128 if kind == "uint8" else 3
    consts = {
        **steps("a", 0.031, middle, kind),
        **steps("b", 0.052, middle - 7, kind),
        **steps("y", scale, middle + 2, kind),
    }
    x = {"a": integers(kind, 3, 40), "b": integers(kind, *other)}
    return Form(op, "a,a_s,a_z,b,b_s,b_z,y_s,y_z", x, consts, apart=1)


def gemm(bias: bool, real: bool, **attrs: Any) -> Form:
    a, b = (5, 12), (12, 7)
    a, b = a[::-1] if attrs.get("transA") else a, b[::-1] if attrs.get("transB") else b
    scales = RNG.uniform(0.01, 0.03, 7)
    consts = {**steps("a", 0.04, 9, "uint8"), "b": integers("int8", *b), **steps("b", scales, 0, "int8")}
    consts |= {"c": RNG.integers(-3000, 3000, 7).astype(np.int32), **steps("y", 0.5, 99, "uint8")}
    names = "a,a_s,a_z,b,b_s,b_z," + ("c" if bias else "") + ("" if real else ",y_s,y_z")
    return Form("QGemm", names, {"a": integers("uint8", *a)}, consts, **attrs)


def concat(kind: str) -> Form:
    consts = {**steps("y", 0.05, 4, kind), **steps("a", 0.03, 9, kind), **steps("b", 0.05, 4, kind)}
    x = {"a": integers(kind, 2, 3, 4), "b": integers(kind, 2, 5, 4)}
    return Form("QLinearConcat", "y_s,y_z,a,a_s,a_z,b,b_s,b_z", x, consts, axis=1)


FORMS = {
    "conv uint8": conv_form("uint8", "int8", True, True, pads=[1, 1, 1, 1]),
    "conv int8": conv_form("int8", "int8", True, False, strides=[2, 1]),
    "conv uint8 weights": conv_form("uint8", "uint8", False, True, auto_pad="SAME_UPPER"),
    "matmul": matmul_form("uint8", "int8", 0.02),
    "matmul int8": matmul_form("int8", "int8", [0.01, 0.02, 0.03, 0.015, 0.007]),
    "matmul uint8 weights": matmul_form("uint8", "uint8", 0.02),
    "gemm": gemm(True, False, transB=1),
    "gemm A": gemm(False, False, transA=1, alpha=0.5),
    "average pool": unary("QLinearAveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "average pool, last": unary("QLinearAveragePool", shape=(1, 8, 8, 5), kernel_shape=[3, 3], channels_last=1),
    "global average pool": unary("QLinearGlobalAveragePool", channels_last=0),
    "global average pool, last": unary("QLinearGlobalAveragePool", "int8", shape=(2, 6, 7, 5), channels_last=1),
    "leaky relu": unary("QLinearLeakyRelu", "int8", alpha=0.2),
    "sigmoid": unary("QLinearSigmoid", y=steps("y", 1 / 256, 0, "uint8")),
    "softmax": unary("QLinearSoftmax", "int8", steps("y", 1 / 256, -128, "int8"), (6, 10), axis=-1, opset=13, apart=1),
    "softmax of old": unary(
        "QLinearSoftmax", "uint8", steps("y", 1 / 256, 0, "uint8"), (2, 3, 4), axis=1, opset=11, apart=1
    ),
    "add uint8": binary("QLinearAdd", "uint8", 0.06),
    "add int8, broadcast": binary("QLinearAdd", "int8", 0.06, (40,)),
    "mul": binary("QLinearMul", "int8", 0.07),
    "concat uint8": concat("uint8"),
    "concat int8": concat("int8"),
}


@pytest.mark.parametrize("name", FORMS)
def test_as_onnx_runtime_in_integers(name: str, onnx_kit: SimpleNamespace) -> None:
    form = FORMS[name]
    model = form.model(onnx_kit)
    graph = load(model)
    graph.check()
    lowered = canonicalize(graph, check=True)
    assert not floats(lowered), lowered.text()
    (wanted,), (found,) = onnx_kit.reference(model, form.x), interpret(lowered, form.x)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    apart = np.abs(found.astype(int) - wanted.astype(int))
    assert apart.max() <= form.apart, (apart.max(), (apart > 0).mean())
    assert (apart > 0).mean() <= 0.02, "more than ties are apart"
    assert len(np.unique(found)) > 4, "a test that sees nothing"
    direct = np.abs(interpret(graph, form.x)[0].astype(int) - wanted.astype(int))
    assert direct.max() <= 1, "as the graph says it"


# -- integers in, real numbers out -------------------------------------------------------------------------------------


def _dynamic(zero: bool, bias: bool) -> Form:
    consts = {
        "b": integers("uint8" if zero else "int8", 12, 7),
        "b_s": np.float32(0.02),
        "bias": RNG.normal(size=7).astype(np.float32),
    }
    consts |= {"b_z": np.array(119, np.uint8)} if zero else {}
    names = f"a,b,b_s,{'b_z' if zero else ''},{'bias' if bias else ''}"
    return Form("DynamicQuantizeMatMul", names, {"a": RNG.normal(size=(3, 12)).astype(np.float32)}, consts)


def _to_float(rows: bool) -> Form:
    consts = {
        **steps("a", 0.04, 9, "uint8"),
        "b": integers("int8", 12, 7),
        **steps("b", RNG.uniform(0.01, 0.03, 7), 0, "int8"),
    }
    consts["bias"] = RNG.normal(size=7).astype(np.float32)
    return Form("MatMulIntegerToFloat", "a,b,a_s,b_s,a_z,b_z,bias", {"a": integers("uint8", 5, 12)}, consts)


def _attention(mask: bool, **attrs: Any) -> Form:
    consts = {**steps("x", 0.03, 120, "uint8"), "w": integers("int8", 16, 48), **steps("w", 0.01, 0, "int8")}
    consts["b"] = RNG.normal(size=48).astype(np.float32)
    x = {"x": integers("uint8", 2, 6, 16)}
    if mask:
        x["m"] = (np.arange(6) < np.array([[6], [4]])).astype(np.int32)
    return Form("QAttention", f"x,w,b,x_s,w_s,{'m' if mask else ''},x_z,w_z", x, consts, num_heads=4, **attrs)


REAL = {
    "gemm": gemm(True, True),
    "product to float": _to_float(False),
    "dynamic": _dynamic(False, True),
    "dynamic uint8": _dynamic(True, False),
    "attention": _attention(False),
    "attention, mask": _attention(True),
    "attention, causal": _attention(False, unidirectional=1),
}


@pytest.mark.parametrize("name", REAL)
def test_results_that_are_real_numbers(name: str, onnx_kit: SimpleNamespace) -> None:
    form = REAL[name]
    model = form.model(onnx_kit)
    lowered = canonicalize(load(model), check=True)
    assert any(lowered.node(k).op == "matmul_integer" for k in lowered)
    for found, wanted in zip(interpret(lowered, form.x), onnx_kit.reference(model, form.x), strict=True):
        onnx_kit.assert_close(found, wanted, 1e-3 if "attention" in name else 1e-5)


@pytest.mark.parametrize("points", ["none", "constant", "given", "rows"])
@pytest.mark.parametrize("op", ["MatMulInteger", "ConvInteger"])
def test_integer_products(op: str, points: str, onnx_kit: SimpleNamespace) -> None:
    """Zero points that are absent, constants, inputs, one for each row and column; weights constant and not."""
    conv = op == "ConvInteger"
    if conv and points == "rows":
        pytest.skip("ConvInteger has one zero point for x")
    x, w = (
        (integers("uint8", 1, 2, 6, 7), integers("uint8", 3, 2, 3, 3))
        if conv
        else (integers("uint8", 4, 9), integers("uint8", 9, 5))
    )
    many = (4, 5) if points == "rows" else (1, 1)
    zeros = {"a": integers("uint8", many[0]), "b": integers("uint8", many[1])}
    zeros = zeros if points == "rows" else {k: v.reshape(()) for k, v in zeros.items()}
    attrs = {"pads": [1, 0, 1, 2]} if conv else {}
    for fixed in (True, False):
        inputs, consts = {"x": x}, {}
        (consts if fixed else inputs)["w"] = w
        names = ["x", "w"]
        if points != "none":
            names += ["a", "b"]
            (inputs if points == "given" else consts).update(zeros)
        model = onnx_kit.build([onnx_kit.node(op, names, ["y"], **attrs)], inputs, consts=consts)
        lowered = canonicalize(load(model), check=True)
        assert not floats(lowered)
        if points == "rows":  # ONNX Runtime wants one zero point for all rows
            wanted = (x.astype(np.int32) - zeros["a"][:, None]) @ (w.astype(np.int32) - zeros["b"])
        else:
            (wanted,) = onnx_kit.reference(model, inputs)
        np.testing.assert_array_equal(interpret(lowered, inputs)[0], wanted)


def test_dynamic_lstm_is_near_the_float_one(onnx_kit: SimpleNamespace) -> None:
    """ONNX Runtime quantizes x and h at each step: what is left of that is small."""
    size, width, length = 8, 6, 5
    real = [RNG.normal(size=(1, d, 4 * size)).astype(np.float32) * 0.3 for d in (width, size)]
    consts: Arrays = {"bias": RNG.normal(size=(1, 8 * size)).astype(np.float32) * 0.1}
    for name, w in zip("wr", real, strict=True):
        consts |= {f"{name}_s": np.abs(w).max(axis=(1, 2)) / np.float32(127), f"{name}_z": np.zeros(1, np.int8)}
        consts[name] = np.rint(w / consts[f"{name}_s"]).astype(np.int8)
    x = {"x": RNG.normal(size=(length, 1, width)).astype(np.float32)}
    form = Form("DynamicQuantizeLSTM", "x,w,r,bias,,,,,w_s,w_z,r_s,r_z", x, consts, hidden_size=size)
    model = form.model(onnx_kit)
    found, wanted = interpret(canonicalize(load(model)), x)[0], onnx_kit.reference(model, x)[0]
    assert np.abs(found - wanted).max() < 0.02
    assert np.abs(wanted).max() > 0.1


# -- malformed ---------------------------------------------------------------------------------------------------------


def _qdq(kit: SimpleNamespace, scale: Any, zero: Any, *, axis: int = 1, op: str = "QuantizeLinear") -> Any:
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32) if op == "QuantizeLinear" else integers("int8", 2, 3, 4)
    consts = {"s": np.asarray(scale, np.float32), "z": zero}
    return kit.build([kit.node(op, ["x", "s", "z"], ["y"], axis=axis)], {"x": x}, consts=consts)


WRONG: dict[str, tuple[Any, Any, str]] = {
    "zero scale": (0.0, np.int8(0), "positive and finite"),
    "negative scale": (-0.5, np.int8(0), "positive and finite"),
    "NaN scale": (np.nan, np.int8(0), "it is nan"),
    "infinite scale": (np.inf, np.int8(0), "positive and finite"),
    "one of three scales": ([0.1, 0.0, 0.2], np.zeros(3, np.int8), "element 1 is 0.0"),
    "too many scales": ([0.1] * 5, np.zeros(5, np.int8), "5 elements for 3 channels"),
    "too few scales": ([0.1] * 2, np.zeros(2, np.int8), "2 elements for 3 channels"),
    "more zero points than scales": (0.1, np.zeros(4, np.int8), "4 elements for 3 channels"),
}


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
@pytest.mark.parametrize("name", WRONG)
def test_malformed_parameters(name: str, op: str, onnx_kit: SimpleNamespace) -> None:
    scale, zero, why = WRONG[name]
    with pytest.raises(NervureError, match=why):
        load(_qdq(onnx_kit, scale, np.asarray(zero), op=op))


def test_zero_points_of_another_type(onnx_kit: SimpleNamespace) -> None:
    with pytest.raises(NervureError, match="the zero point is uint8 and the quantized tensor int8"):
        load(_qdq(onnx_kit, 0.1, np.asarray(3, np.uint8), op="DequantizeLinear"))
    with pytest.raises(NervureError, match=r"zero point.*float32|to: expected"):
        load(_qdq(onnx_kit, 0.1, np.asarray(3, np.float32)))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_malformed_scales_in_one_piece(scale: float, onnx_kit: SimpleNamespace) -> None:
    form = conv_form("uint8", "int8", False, True)
    form.consts["w_s"] = np.asarray(scale, np.float32)
    with pytest.raises(NervureError, match="positive and finite"):
        load(form.model(onnx_kit))


def test_an_axis_that_is_not_there(onnx_kit: SimpleNamespace) -> None:
    with pytest.raises(NervureError, match="axis 3 does not exist"):
        load(_qdq(onnx_kit, [0.1] * 3, np.zeros(3, np.int8), axis=3))
