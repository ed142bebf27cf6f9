"""Whole quantized models: nothing is left in floating point that need not be, and the result is ONNX Runtime's.

The models come from ONNX Runtime's quantizer (QDQ and QOperator), from PyTorch (``data/``: fake quantization through
the older exporter; torchao's PT2E, X86InductorQuantizer, through the newer), and from TFLite files by tf2onnx.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")

sys.path.insert(0, str(Path(__file__).parents[2]))
import models  # noqa: E402
from nervure.compiler.interpret import interpret  # noqa: E402
from nervure.compiler.ir import Graph  # noqa: E402
from nervure.compiler.passes import canonicalize  # noqa: E402
from nervure.frontends.onnx import load  # noqa: E402

HERE = Path(__file__).parent
VIEWS = {"reshape", "transpose", "slice", "identity"}
Arrays = dict[str, np.ndarray]


def floats(graph: Graph) -> Counter[str]:
    """Operations with a floating-point result; views of such a result are not counted."""
    ops = (graph.node(k) for k in graph)
    return Counter(
        n.op for n in ops if n.op not in ("const", "input", *VIEWS) and any(t.dtype == "float32" for t in n.types)
    )


# -- what ONNX Runtime's quantizer makes -------------------------------------------------------------------------------

PER_CHANNEL = {"activation": "QUInt8", "weight": "QInt8", "per_channel": True}
FORMATS: dict[str, dict[str, Any]] = {
    "QDQ uint8, by channel": {"format": "QDQ", **PER_CHANNEL},
    "QDQ int8, reduced range": {"format": "QDQ", "activation": "QInt8", "weight": "QInt8", "reduce_range": True},
    "QOperator uint8, by channel": {"format": "QOperator", **PER_CHANNEL},
    "QOperator uint8 weights": {"format": "QOperator", "activation": "QUInt8", "weight": "QUInt8"},
    "QDQ int16": {"format": "QDQ", "activation": "QInt16", "weight": "QInt8", "per_channel": True},
}


class Net:
    """A float model under construction: x [1,3,16,16], seeded weights."""

    def __init__(self, kit: SimpleNamespace) -> None:
        self.kit, self.nodes, self.consts, self.rng = kit, [], {}, np.random.default_rng(5)
        self.dims = {"x": 3}

    def add(self, op: str, *inputs: str, channels: int | None = None, **attrs: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(self.kit.node(op, list(inputs), [out], name=f"n{len(self.nodes)}", **attrs))
        self.dims[out] = channels if channels is not None else self.dims.get(inputs[0], 0)
        return out

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.consts)}"
        self.consts[name] = array
        return name

    def weights(self, *shape: int) -> str:
        return self.const((self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    def conv(self, x: str, out: int, k: int = 3, *, depthwise: bool = False, stride: int = 1) -> str:
        c = self.dims[x]
        w = self.weights(out, 1 if depthwise else c, k, k)
        b = self.const(self.rng.normal(size=out).astype(np.float32) * 0.1)
        attrs = {"pads": [k // 2] * 4, "strides": [stride] * 2, "group": c if depthwise else 1}
        return self.add("Conv", x, w, b, channels=out, **attrs)

    def model(self, y: str) -> Any:
        x = {"x": np.zeros((1, 3, 16, 16), np.float32)}
        return onnx.shape_inference.infer_shapes(self.kit.build(self.nodes, x, (y,), self.consts, opset=17))


def mobile(kit: SimpleNamespace) -> Any:
    """Hard swish, squeeze and excitation, residual, classifier."""
    net = Net(kit)
    x = net.add("HardSwish", net.conv("x", 8, stride=2))
    y = net.add("Relu", net.conv(x, 8, depthwise=True))
    s = net.add("Relu", net.conv(net.add("GlobalAveragePool", y), 4, 1))
    y = net.add("Mul", y, net.add("HardSigmoid", net.conv(s, 8, 1), alpha=1 / 6, beta=0.5))
    y = net.add("Add", net.conv(y, 8, 1), x)
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    return net.model(net.add("Softmax", net.add("Gemm", y, net.weights(8, 10), net.weights(10)), axis=-1))


def mixed(kit: SimpleNamespace) -> Any:
    """Branches, pools with padding, other activations, views, upsampling."""
    net = Net(kit)
    x = net.add("LeakyRelu", net.conv("x", 8), alpha=0.1)
    a = net.add("MaxPool", net.add("Sigmoid", net.conv(x, 8)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b = net.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.add("Concat", a, b, channels=16, axis=1)
    y = net.add("PRelu", net.conv(y, 16), net.const(net.rng.uniform(0.1, 0.4, (16, 1, 1)).astype(np.float32)))
    y = net.add("DepthToSpace", y, blocksize=2, channels=4)
    up = net.const(np.array([1, 1, 2, 2], np.float32))
    y = net.add(
        "Resize",
        net.conv(y, 6),
        "",
        up,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    y = net.add("Transpose", net.conv(y, 6), perm=[0, 2, 3, 1])
    return net.model(net.add("MatMul", y, net.weights(6, 5)))


def attention(kit: SimpleNamespace) -> Any:
    """One head of attention over 256 places, scores and all."""
    net = Net(kit)
    shape = net.const(np.array([1, 8, 256], np.int64))
    x = net.add("Transpose", net.add("Reshape", net.conv("x", 8), shape), perm=[0, 2, 1])
    q, k, v = (net.add("MatMul", x, net.weights(8, 8)) for _ in range(3))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1]))
    weights = net.add("Softmax", net.add("Mul", scores, net.const(np.array(0.35, np.float32))), axis=-1)
    return net.model(net.add("Add", net.add("MatMul", weights, v), x))


NETS = {"mobile": mobile, "mixed": mixed, "attention": attention}
# What is left besides the output, which is a real number (one ``dequantize``): there are no tables for 16 bits.
ALLOWED: dict[tuple[str, str], dict[str, int]] = {
    ("mobile", "QDQ int16"): {"dequantize": 4, "hard_swish": 1, "hard_sigmoid": 1, "softmax": 1},
    ("mixed", "QDQ int16"): {"dequantize": 3, "leaky_relu": 1, "sigmoid": 1},
    ("attention", "QDQ int16"): {"dequantize": 2, "softmax": 1},
}
# Steps of the output that a network may be away from ONNX Runtime, which computes parts of QDQ models in float, and
# the share of outputs. QOperator models: equal.
# (mixed: a mean that lies between two steps is rounded otherwise, once in 1,024; layers behind it spread that.
# attention: QLinearSoftmax is a step off in 0.4 % of places; unoptimized, ONNX Runtime gives what we give.)
APART = {"mobile": (0, 0.0), "mixed": (2, 0.2), "attention": (2, 0.1)}
APART_16 = {"mobile": (0, 0.0), "mixed": (3, 0.3), "attention": (2, 0.1)}


def quantize(model: Any, path: Path, how: dict[str, Any], x: Arrays | None = None) -> Any:
    """The model quantized by ONNX Runtime with ``x``, or four random inputs."""
    logging.getLogger().setLevel(logging.ERROR)
    random = np.random.default_rng(1)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        rows = iter([x] if x else [{"x": random.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.rows, None)

    onnx.save(model, path / "float.onnx")
    more = {k: how[k] for k in ("per_channel", "reduce_range") if k in how}
    kind = quantization.QuantType
    quantization.quantize_static(
        path / "float.onnx",
        path / "quantized.onnx",
        Reader(),
        quant_format=quantization.QuantFormat[how["format"]],
        activation_type=kind[how["activation"]],
        weight_type=kind[how["weight"]],
        extra_options={"UseQDQContribOps": how["activation"] == "QInt16"},
        **more,
    )
    return onnx.load(path / "quantized.onnx")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NETS)
def test_models_of_onnx_runtimes_quantizer(name: str, format: str, tmp_path: Path, onnx_kit: SimpleNamespace) -> None:
    model = quantize(NETS[name](onnx_kit), tmp_path, FORMATS[format])
    graph = load(model)
    lowered = canonicalize(graph, check=True)
    print(name, format, floats(lowered), Counter(lowered.node(k).op for k in lowered))
    assert dict(floats(lowered)) == ALLOWED.get((name, format), {"dequantize": 1}), lowered.text()
    x = {"x": np.random.default_rng(2).normal(size=(1, 3, 16, 16)).astype(np.float32)}
    (wanted,), (found,) = onnx_kit.reference(model, x), interpret(lowered, x)
    most, share = (APART_16 if "16" in format else APART)[name] if "QDQ" in format else (0, 0.0)
    assert_apart(found, wanted, most, share)
    assert_apart(interpret(graph, x)[0], wanted, most, share)


def assert_apart(found: np.ndarray, wanted: np.ndarray, most: float, share: float, step: float | None = None) -> None:
    """At most ``most`` steps of the output between any two numbers, and none in all but ``share`` of them."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    step = step or np.diff(np.unique(wanted)).min()
    apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64)) / step
    print("apart", apart.max(), (apart > 0.5).mean())
    assert apart.max() <= most + 0.01, apart.max()
    assert (apart > 0.5).mean() <= share


# -- what PyTorch exports ----------------------------------------------------------------------------------------------

TORCH = {
    "torch_fake_quantize": {"dequantize": 1},
    # its quantizer leaves hard_swish and the residual addition behind a convolution to the convolution's kernel
    "torch_pt2e_x86": {"dequantize": 4, "hard_swish": 1, "add": 1},
}


@pytest.mark.parametrize("name", TORCH)
def test_models_of_pytorch(name: str) -> None:
    import onnxruntime

    path = HERE / "data" / f"{name}.onnx"
    graph = load(path)
    lowered = canonicalize(graph, check=True)
    assert dict(floats(lowered)) == TORCH[name]
    options = onnxruntime.SessionOptions()  # its optimizer makes a QLinearAdd of one that it then refuses
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (wanted,), (found,) = session.run(None, {"x": x}), interpret(lowered, [x])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.01 * np.abs(wanted).max())


# -- the shared models -------------------------------------------------------------------------------------------------

# Steps of the output between ONNX Runtime and us on random input. The last is computed in float there wherever a clip
# is no bound of the quantized type: single roundings, which 52 layers on noise then enlarge.
CONVERTED = {
    "tiny_ad01_int8": 0,
    "tiny_ic01_int8": 0,
    "tiny_kws01_int8": 0,
    "tiny_vww01_int8": 0,
    "coral_mobilenet_v1_0.25_128_quant": 6,  # halves of its average pool go away from zero, as in LiteRT
    "tvqat_mobilenet_v2_nchw_quant": 12,
}


def shared(name: str) -> tuple[Any, Graph, Arrays]:
    """A quantized shared model of batch 1, as file and graph, and random input."""
    path = models.SHARED / "models" / "quantized" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("the shared models are not on this machine")
    model = onnx.load(path)
    free = {d.dim_param: 1 for i in model.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
    graph, random, x = load(model, free), np.random.default_rng(0), {}
    for key in graph.inputs:
        t = graph.node(key).types[0]
        whole = t.dtype != "float32"
        x[graph.node(key).names[0]] = (
            random.integers(np.iinfo(t.dtype).min, np.iinfo(t.dtype).max, t.dims, t.dtype, endpoint=True)
            if whole
            else random.standard_normal(t.dims).astype(np.float32)
        )
    return model, graph, x


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTED)
def test_models_converted_from_tflite(name: str, onnx_kit: SimpleNamespace) -> None:
    model, graph, x = shared(name)
    lowered = canonicalize(graph)
    real = lowered.type(lowered.outputs[0]).dtype == "float32"
    assert dict(floats(lowered)) == ({"dequantize": 1} if real else {})
    (wanted,), (found,) = onnx_kit.reference(model, x), interpret(lowered, x)
    assert_apart(found, wanted, CONVERTED[name], 1.0)


# Of float models that the quantizer leaves in parts in float: what it does not quantize itself, or does not put a
# quantizer behind.
QUANTIZED: dict[str, dict[str, dict[str, int]]] = {
    "tiny_kws01": {"QDQ": {"dequantize": 1}, "QOperator": {"dequantize": 1}},
    "mobilenet_v3_small": {
        "QDQ": {"dequantize": 2, "hard_swish": 1, "reduce_mean": 1},
        "QOperator": {"dequantize": 10, "hard_swish": 9, "reduce_mean": 9},
    },
    "mp_face_landmark": {
        "QDQ": {"dequantize": 2},
        "QOperator": {"dequantize": 5, "mul": 3, "where": 3, "max_pool": 3, "pad": 3},
    },
    "vit_tiny": {"QDQ": {"dequantize": 26, "layer_norm": 25}},
    "oww_embedding": {"QDQ": {"dequantize": 1}, "QOperator": {"dequantize": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), [(n, f) for n in QUANTIZED for f in QUANTIZED[n]])
def test_shared_models_of_onnx_runtimes_quantizer(name: str, format: str, tmp_path: Path) -> None:
    if models.folder() is None:
        pytest.skip("the shared models are not on this machine")
    path, x = models.model(name)
    model = quantize(onnx.load(path), tmp_path, {**FORMATS["QDQ uint8, by channel"], "format": format}, x)
    assert dict(floats(canonicalize(load(model)))) == QUANTIZED[name][format]
