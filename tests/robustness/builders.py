"""ONNX models made in a few lines: small ones of every kind, and graphs of a thousand nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Net:
    """Writes nodes one after the other; every method returns the name of its result."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, name: str, *shape: int, kind: int = onnx.TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random(self, *shape: int, scale: float | None = None) -> str:
        spread = scale if scale is not None else 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.const((self.rng.standard_normal(shape) * spread).astype(np.float32))

    def op(self, kind: str, *args: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"t{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(args), names, name=f"{kind}_{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def model(self, *outputs: str, opset: int = 17, name: str = "net") -> onnx.ModelProto:
        ends = [onnx.ValueInfoProto(name=n) for n in outputs]
        graph = helper.make_graph(self.nodes, name, self.inputs, ends, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    # -- blocks ----------------------------------------------------------------------------------------------------

    def conv(self, x: str, inner: int, outer: int, size: int = 3, group: int = 1, stride: int = 1) -> str:
        """Convolution, batch norm, ReLU: three nodes."""
        pad = [size // 2] * 4
        y = self.op(
            "Conv", x, self.random(outer, inner // group, size, size), group=group, pads=pad, strides=[stride] * 2
        )
        ones = np.ones(outer, np.float32)
        scale, shift, mean = (self.random(outer, scale=0.2) for _ in range(3))
        y = self.op("BatchNormalization", y, scale, shift, mean, self.const(ones))
        return self.op("Relu", y)

    def linear(self, x: str, inner: int, outer: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.random(inner, outer)), self.random(outer, scale=0.1))

    def layer_norm(self, x: str, width: int) -> str:
        """As exporters write it out: nine nodes."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.const(np.float32(2))), axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.const(np.float32(1e-5))))
        scaled = self.op("Mul", self.op("Div", centred, root), self.const(np.full(width, 1.1, np.float32)))
        return self.op("Add", scaled, self.random(width, scale=0.1))

    def gelu(self, x: str) -> str:
        inner = self.op("Erf", self.op("Div", x, self.const(np.float32(2**0.5))))
        product = self.op("Mul", x, self.op("Add", inner, self.const(np.float32(1))))
        return self.op("Mul", product, self.const(np.float32(0.5)))

    def attention(self, x: str, tokens: int, width: int, heads: int) -> str:
        """Multi-head attention as exporters write it out."""
        split = self.const(np.array([1, tokens, heads, width // heads]))
        parts = [self.op("Reshape", self.linear(x, width, width), split) for _ in range(3)]
        q, v = (self.op("Transpose", parts[i], perm=[0, 2, 1, 3]) for i in (0, 2))
        k = self.op("Transpose", parts[1], perm=[0, 2, 3, 1])
        scores = self.op("Div", self.op("MatMul", q, k), self.const(np.float32((width // heads) ** 0.5)))
        mixed = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, self.const(np.array([1, tokens, width]))), width, width)

    def encoder(self, x: str, tokens: int, width: int, heads: int) -> str:
        """One layer of a transformer: 50 nodes or so."""
        x = self.op("Add", x, self.attention(self.layer_norm(x, width), tokens, width, heads))
        y = self.gelu(self.linear(self.layer_norm(x, width), width, 2 * width))
        return self.op("Add", x, self.linear(y, 2 * width, width))


def convolutional(blocks: int = 2, seed: int = 0) -> onnx.ModelProto:
    """Inverted residual blocks with squeeze and excitation: about 20 nodes each."""
    net = Net(seed)
    x = net.conv(net.input("x", 1, 3, 16, 16), 3, 16, stride=2)
    for _ in range(blocks):
        y = net.conv(net.conv(x, 16, 32, 1), 32, 32, group=32)
        gate = net.op("GlobalAveragePool", y)
        gate = net.op("Relu", net.op("Conv", gate, net.random(8, 32, 1, 1)))
        y = net.op("Mul", y, net.op("HardSigmoid", net.op("Conv", gate, net.random(32, 8, 1, 1))))
        y = net.op("Conv", y, net.random(16, 32, 1, 1))
        x = net.op("Add", x, y)
        left, right = net.op("Split", x, net.const(np.array([8, 8])), outputs=2, axis=1)
        x = net.op("Concat", net.op("Sigmoid", left), net.op("Tanh", right), axis=1)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.op("Softmax", net.op("Gemm", x, net.random(10, 16), transB=1), axis=-1))


def transformer(layers: int = 1, seed: int = 0, tokens: int = 12, width: int = 32) -> onnx.ModelProto:
    net = Net(seed)
    x = net.input("x", 1, tokens, width)
    for _ in range(layers):
        x = net.encoder(x, tokens, width, 4)
    return net.model(net.linear(net.layer_norm(x, width), width, 8))


def recurrent(kind: str = "LSTM", layers: int = 1, seed: int = 0) -> onnx.ModelProto:
    net, gates, hidden = Net(seed), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 24
    x, inner = net.input("x", 9, 2, 16), 16
    for _ in range(layers):
        weights = [net.random(2, gates * hidden, n) for n in (inner, hidden)]
        y = net.op(
            kind,
            x,
            *weights,
            net.random(2, 2 * gates * hidden, scale=0.1),
            direction="bidirectional",
            hidden_size=hidden,
        )
        x, inner = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.const(np.array([9, 2, 48]))), 48
    return net.model(x)


def dense(seed: int = 0) -> onnx.ModelProto:
    """Matrix products, a reduction, an index and an integer output."""
    net = Net(seed)
    y = net.op("Tanh", net.linear(net.input("x", 4, 20), 20, 40))
    z = net.op("MatMul", y, net.op("Transpose", y, perm=[1, 0]))
    return net.model(z, net.op("ArgMax", z, axis=1, keepdims=0), net.op("ReduceLogSumExp", y, axes=[1]))


SMALL = {"conv": convolutional, "attention": transformer, "lstm": recurrent, "dense": dense}


def feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def reference(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
    """ONNX Runtime's answer."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    return ort.InferenceSession(model.SerializeToString()).run(None, given)
