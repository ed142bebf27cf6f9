"""Quantized graphs as ONNX: what comes back is the same integers, and ONNX Runtime runs it with its integer kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from nervure.compiler.interpret import interpret  # noqa: E402
from nervure.compiler.ir import Graph, Value  # noqa: E402
from nervure.compiler.passes import canonicalize  # noqa: E402
from nervure.compiler.types import TensorType  # noqa: E402
from nervure.frontends.onnx import load, to_model  # noqa: E402

F32 = "float32"
WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
POOL = {"kernel_shape": (2, 2), "strides": (2, 2), "pads": (0,) * 4, "dilations": (1, 1)}


class Net:
    """A float graph with quantizers: x [1,4,8,8], a quantizer behind what it makes."""

    def __init__(self, to: str = "int8", low: int | None = None, high: int | None = None) -> None:
        self.graph, self.rng = Graph("quantized"), np.random.default_rng(3)
        self.to, self.bounds = to, {"low": low, "high": high}
        self.x = self.graph.input("x", TensorType(F32, (1, 4, 8, 8)))

    def q(self, value: Value, scale: float = 0.05, zero: int = 3) -> Value:
        """A quantizer and the real number behind it."""
        held = self.graph.const(np.float32(scale))
        point = self.graph.const(np.asarray(0 if self.to == "int16" else zero, self.to))
        steps = self.graph.add("quantize", value, held, point, to=self.to, **self.bounds)
        return self.graph.add("dequantize", steps, held, point)

    def weights(self, *shape: int, axis: int = 0) -> Value:
        wide = [shape[a] if a == axis else 1 for a in range(len(shape))]
        codes = self.graph.const(self.rng.integers(-127, 128, shape).astype(np.int8))
        scales = self.graph.const(self.rng.uniform(0.002, 0.006, wide).astype(np.float32))
        return self.graph.add("dequantize", codes, scales)

    def conv(self, x: Value, scale: float, out: int = 4, k: int = 3, bias: bool = True) -> Value:
        w = self.weights(out, self.graph.type(x).dims[1], k, k)
        args = [x, w]
        if bias:
            each = self.graph.constant(self.graph.args(w.node)[1])
            assert each is not None
            held = self.graph.const((each.reshape(-1) * np.float32(scale)).astype(np.float32))
            codes = self.graph.const(self.rng.integers(-2000, 2000, out).astype(np.int32))
            args.append(self.graph.add("dequantize", codes, held))
        return self.graph.add("conv", *args, **{**WINDOW, "pads": (k // 2,) * 4})

    def done(self, value: Value) -> Graph:
        self.graph.output(value, "y")
        return self.graph


def _layers(n: Net) -> Graph:
    x = n.q(n.x)
    y = n.q(n.graph.add("relu", n.conv(x, 0.05)), 0.07, -128 if n.to == "int8" else 0)
    y = n.q(n.conv(y, 0.07, k=1), 0.06)
    y = n.q(n.graph.add("add", y, x), 0.08)
    y = n.q(n.graph.add("concat", n.graph.add("max_pool", y, **POOL), n.q(n.graph.add("avg_pool", x, **POOL)), axis=1))
    y = n.q(n.graph.add("reduce_mean", y, axes=(2, 3), keepdims=True), 0.02)
    y = n.graph.add("matmul", n.graph.add("reshape", y, shape=(1, 8)), n.weights(8, 5, axis=1))
    return n.done(n.q(n.graph.add("add", y, n.graph.const(n.rng.normal(size=5).astype(np.float32))), 0.03))


def _functions(n: Net) -> Graph:
    x = n.q(n.x)
    y = n.q(n.graph.add("sigmoid", n.q(n.conv(x, 0.05), 0.08)), 1 / 256, -128 if n.to == "int8" else 0)
    y = n.q(n.graph.add("mul", y, n.q(n.graph.add("leaky_relu", x, alpha=0.125), 0.04)), 0.03)
    y = n.graph.add("transpose", n.graph.add("reshape", y, shape=(1, 8, 32)), perm=(0, 2, 1))
    return n.done(n.q(n.graph.add("softmax", y, axis=-1), 1 / 256, -128 if n.to == "int8" else 0))


GRAPHS: dict[str, tuple[Callable[[Net], Graph], dict[str, Any]]] = {
    "layers int8": (_layers, {}),
    "layers uint8": (_layers, {"to": "uint8"}),
    "layers int16": (_layers, {"to": "int16"}),
    "layers of 4 bits": (_layers, {"low": -8, "high": 7}),
    "functions int8": (_functions, {}),
    "functions uint8": (_functions, {"to": "uint8"}),
}
# ONNX Runtime's kernels of each graph (QLinearConv, ...) where it has them; then the share of outputs that differ and
# by how many steps.
KERNELS = {
    "layers uint8": "QLinearConv QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QGemm",
    "functions uint8": "QLinearConv QLinearSigmoid QLinearLeakyRelu QLinearMul QLinearSoftmax",
    "layers int8": "QLinearConv QGemm",  # on x86 it has most of the others for uint8 alone
}
APART = {"layers uint8": (0.2, 1), "functions int8": (0.03, 1), "functions uint8": (0.01, 1)}


def kernels(model: Any, path: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(path / "optimized.onnx").graph.node)


def ops(graph: Graph) -> Counter[str]:
    return Counter(graph.node(k).op for k in graph if graph.node(k).op not in ("const", "identity"))


@pytest.mark.parametrize("name", GRAPHS)
def test_round_trip_and_onnx_runtime(name: str, tmp_path: Path, onnx_kit: SimpleNamespace) -> None:
    make, how = GRAPHS[name]
    graph = make(Net(**how))
    model = to_model(graph)
    onnx.checker.check_model(model, full_check=True)
    lowered, again = canonicalize(graph, check=True), canonicalize(load(model), check=True)
    assert ops(lowered) == ops(again)
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    (ours,), (back,) = interpret(lowered, [x]), interpret(again, [x])
    np.testing.assert_array_equal(ours, back)
    (theirs,) = onnx_kit.reference(model, {"x": x})
    step = graph.constant(graph.args(graph.outputs[0].node)[1])
    steps = np.abs(ours - theirs) / step
    share, most = APART.get(name, (0.0, 0))
    print(f"{name}: {100 * (steps > 0.5).mean():.2f} % of the outputs apart, by {steps.max():.2f} steps")
    assert (steps > 0.5).mean() <= share
    assert steps.max() <= most + 0.01
    found = kernels(model, tmp_path)
    assert not Counter(KERNELS.get(name, "").split()) - found, found
    assert model.opset_import[0].version == (21 if "16" in name else 20)


# -- int4 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_blocks(bits: int, zero: bool, onnx_kit: SimpleNamespace) -> None:
    graph, rng, most = Graph("blocks"), np.random.default_rng(0), 1 << (bits - 1)
    codes = rng.integers(-most, most, (64, 10)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (2, 10)).astype(np.float32)
    points = [graph.const(rng.integers(-3, 3, (2, 10)).astype(np.int8))] if zero else []
    x = graph.input("x", TensorType(F32, (3, 64)))
    w = graph.add("dequantize", graph.const(codes, "w"), graph.const(scales), *points, block=(0, 32))
    graph.output(graph.add("matmul", x, w), "y")
    model = to_model(graph)
    (node,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear")
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert stored[node.input[0]] == (onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8)
    feeds = {"x": rng.normal(size=(3, 64)).astype(np.float32)}
    (wanted,) = interpret(graph, feeds)
    options = onnxruntime.SessionOptions()  # optimized, it multiplies 8-bit activations
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    onnx_kit.assert_close(session.run(None, feeds)[0], wanted)
    onnx_kit.assert_close(interpret(canonicalize(load(model)), feeds)[0], wanted)


# -- integer products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_integer_products_come_back(weights: str, onnx_kit: SimpleNamespace) -> None:
    """ConvInteger and MatMulInteger, weights with zero points among them (16 bits in between)."""
    rng = np.random.default_rng(0)
    info = np.iinfo(weights)
    x = rng.integers(0, 255, (1, 3, 6, 6)).astype(np.uint8)
    consts = {
        "w": rng.integers(info.min, info.max, (4, 3, 3, 3), dtype=weights),
        "m": rng.integers(info.min, info.max, (24, 5), dtype=weights),
        "x_z": np.array(7, np.uint8),
        "w_z": np.array(0 if weights == "int8" else 9, weights),
        "shape": np.array([6, 24], np.int64),
    }
    nodes = [
        onnx_kit.node("ConvInteger", ["x", "w", "x_z", "w_z"], ["c"], pads=[1, 1, 1, 1]),
        onnx_kit.node("Reshape", ["x", "shape"], ["r"]),
        onnx_kit.node("MatMulInteger", ["r", "m", "x_z", "w_z"], ["y"]),
    ]
    consts["shape"] = np.array([-1, 24], np.int64)
    x = rng.integers(0, 255, (2, 3, 8, 8)).astype(np.uint8)
    model = onnx_kit.build(nodes, {"x": x}, ("c", "y"), consts)
    wanted = onnx_kit.reference(model, {"x": x})
    written = to_model(load(model))
    for found in (onnx_kit.reference(written, {"x": x}), interpret(canonicalize(load(written)), {"x": x})):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
