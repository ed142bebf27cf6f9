"""Weights in blocks as they come in: DequantizeLinear, MatMulNBits and GatherBlockQuantized against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.passes import canonicalize
from nervure.errors import NervureError
from nervure.frontends.onnx import load
from onnx import TensorProto, helper, numpy_helper

ort = pytest.importorskip("onnxruntime")
MICROSOFT = "com.microsoft"


def _model(node: onnx.NodeProto, inputs: dict[str, tuple[int, list[int]]], stored: list[onnx.TensorProto]) -> bytes:
    ports = [helper.make_tensor_value_info(n, *t) for n, t in inputs.items()]
    graph = helper.make_graph([node], "g", ports, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _both(model: bytes, feeds: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The operators of the canonical graph, its result, ONNX Runtime's."""
    found = canonicalize(load(model, {}, {}), check=True)
    (theirs,) = ort.InferenceSession(model).run(None, feeds)
    names = [found.node(k).names[0] for k in found.inputs]
    ops = [found.node(k).op for k in found.order() if found.node(k).op not in ("input", "const")]
    return ops, interpret(found, [feeds[n] for n in names])[0], theirs


def _packed(codes: np.ndarray) -> np.ndarray:
    return (codes[..., ::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul_n_bits(bits: int, zero: bool, bias: bool) -> None:
    rng = np.random.default_rng(bits)
    rows, columns, size = 80, 12, 32
    blocks = -(-rows // size)
    codes = rng.integers(0, 1 << bits, (columns, blocks, size)).astype(np.uint8)
    points = rng.integers(0, 1 << bits, (columns, blocks + blocks % 2)).astype(np.uint8)
    stored = [
        numpy_helper.from_array(_packed(codes) if bits == 4 else codes, "B"),
        numpy_helper.from_array(rng.uniform(0.01, 0.1, columns * blocks).astype(np.float32), "scales"),
    ]
    inputs = ["x", "B", "scales", "", "", ""]
    if zero:
        held = _packed(points) if bits == 4 else points[:, :blocks]
        stored.append(numpy_helper.from_array(np.ascontiguousarray(held).reshape(-1), "zeros"))
        inputs[3] = "zeros"
    if bias:
        stored.append(numpy_helper.from_array(rng.normal(size=columns).astype(np.float32), "bias"))
        inputs[5] = "bias"
    while not inputs[-1]:
        inputs.pop()
    attrs = {"K": rows, "N": columns, "bits": bits, "block_size": size}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain=MICROSOFT, **attrs)
    x = rng.normal(size=(3, rows)).astype(np.float32)
    ops, ours, theirs = _both(_model(node, {"x": (TensorProto.FLOAT, [3, rows])}, stored), {"x": x})
    assert ops == (["matmul_narrow", "add"] if bias else ["matmul_narrow"])
    np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "UINT8"])
@pytest.mark.parametrize("zero", [False, True])
def test_gather_block_quantized(kind: str, zero: bool) -> None:
    rng = np.random.default_rng(2)
    shape, size = (10, 64), 32
    low, high = (-8, 8) if kind == "INT4" else (0, 16)
    codes, points = rng.integers(low, high, shape), rng.integers(low, high, (10, 2))

    def held(array: np.ndarray, name: str) -> onnx.TensorProto:
        if kind == "UINT8":
            return numpy_helper.from_array(_packed(array.astype(np.uint8)), name)
        return helper.make_tensor(name, getattr(TensorProto, kind), array.shape, array.reshape(-1).tolist())

    stored = [held(codes, "table"), numpy_helper.from_array(rng.uniform(0.1, 1, (10, 2)).astype(np.float32), "scales")]
    stored += [held(points, "zeros")] if zero else []
    inputs = ["table", "rows", "scales", *(["zeros"] if zero else [])]
    attrs: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": size}
    if kind == "UINT8":
        attrs["bits"] = 4
    node = helper.make_node("GatherBlockQuantized", inputs, ["y"], domain=MICROSOFT, **attrs)
    rows = np.array([[3, 0], [9, 5]], np.int64)
    model = _model(node, {"rows": (TensorProto.INT64, [2, 2])}, stored)
    ops, ours, theirs = _both(model, {"rows": rows})
    assert ops == ["gather_narrow"]
    np.testing.assert_allclose(ours, theirs, 1e-6, 1e-6)


@pytest.mark.parametrize(("axis", "size"), [(0, 16), (1, 8)])
def test_dequantize_linear_in_blocks(axis: int, size: int) -> None:
    rng = np.random.default_rng(axis)
    codes = rng.integers(-8, 8, (40, 20))
    whole = [-(-d // size) if i == axis else d for i, d in enumerate(codes.shape)]
    stored = [
        helper.make_tensor("w", TensorProto.INT4, codes.shape, codes.reshape(-1).tolist()),
        numpy_helper.from_array(rng.uniform(0.1, 1, whole).astype(np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["real"], axis=axis, block_size=size),
        helper.make_node("MatMul", ["x", "real"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 40])]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 20])
    made = helper.make_model(
        helper.make_graph(nodes, "g", ports, [y], stored), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    found = canonicalize(load(made.SerializeToString(), {}, {}), check=True)
    assert found.node(found.find("matmul_narrow")[0]).attrs["block"] == (axis, size)
    x = rng.normal(size=(2, 40)).astype(np.float32)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    (theirs,) = ort.InferenceSession(made.SerializeToString(), options).run(None, {"x": x})
    np.testing.assert_allclose(interpret(found, [x])[0], theirs, 1e-5, 1e-5 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("change", [{"K": 64}, {"block_size": 0}, {"bits": 3}, {"N": 13}])
def test_malformed_blocks_are_errors(change: dict[str, int]) -> None:
    stored = [
        numpy_helper.from_array(np.zeros((12, 3, 16), np.uint8), "B"),
        numpy_helper.from_array(np.ones(36, np.float32), "scales"),
    ]
    attrs = {"K": 80, "N": 12, "bits": 4, "block_size": 32, **change}
    node = helper.make_node("MatMulNBits", ["x", "B", "scales"], ["y"], domain=MICROSOFT, **attrs)
    with pytest.raises(NervureError):
        load(_model(node, {"x": (TensorProto.FLOAT, [3, 80])}, stored), {}, {})
