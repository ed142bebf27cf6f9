"""Small networks that hold a kernel of each kind, for tests of GPUs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType


class _Maker:
    def __init__(self, name: str) -> None:
        self.g, self.random = Graph(name), np.random.default_rng(5)

    def w(self, *shape: int) -> Value:
        fan = max(1, int(np.prod(shape[1:])) if len(shape) > 2 else shape[0])
        return self.g.const((self.random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), "w")

    def conv(self, x: Value, outputs: int, kernel: int, stride: int = 1, group: int = 1) -> Value:
        inside = int(self.g.type(x).shape[1]) // group
        attrs = {"strides": (stride,) * 2, "pads": (kernel // 2,) * 4, "dilations": (1, 1), "group": group}
        return self.g.add("conv", x, self.w(outputs, inside, kernel, kernel), self.w(outputs), **attrs)

    def dense(self, x: Value, outputs: int) -> Value:
        product = self.g.add("matmul", x, self.w(int(self.g.type(x).shape[-1]), outputs))
        return self.g.add("add", product, self.w(outputs))


def pictures() -> Graph:
    """Convolutions (plain, depthwise, pointwise), a residual, pools, softmax."""
    m = _Maker("pictures")
    g = m.g
    x = g.add("relu", m.conv(g.input("x", TensorType("float32", (2, 3, 17, 17))), 16, 3, stride=2))
    y = g.add("clip", m.conv(x, 16, 3, group=16), low=0.0, high=6.0)
    x = g.add("add", x, m.conv(y, 16, 1))
    window = {"kernel_shape": (2, 2), "strides": (2, 2), "pads": (0, 0, 1, 1), "dilations": (1, 1)}
    x = g.add("max_pool", x, **window)
    mean = g.add("reduce_mean", g.add("silu", m.conv(x, 24, 3)), axes=(2, 3), keepdims=False)
    g.output(g.add("softmax", m.dense(mean, 10), axis=1), "y")
    return g


def words() -> Graph:
    """Embeddings, attention with a mask, norms, GELU: a block of a transformer."""
    m = _Maker("words")
    g, rows, width, heads = m.g, 12, 32, 2
    ids = g.input("ids", TensorType("int64", (1, rows)))
    seen = g.input("seen", TensorType("float32", (1, 1, 1, rows)))
    x = g.add("gather", m.w(50, width), ids, axis=0)
    shape = (1, rows, heads, width // heads)

    def head(value: Value) -> Value:
        return g.add("transpose", g.add("reshape", m.dense(value, width), shape=shape), perm=(0, 2, 1, 3))

    q, k, v = (head(x) for _ in range(3))
    hidden = g.add("mul", g.add("sub", g.const(np.float32(1)), seen), g.const(np.float32(-1e9)))
    mask = g.add("expand", hidden, shape=(1, heads, rows, rows))
    y = g.add("attention", q, k, v, mask, scale=0.25)
    y = g.add("reshape", g.add("transpose", y, perm=(0, 2, 1, 3)), shape=(1, rows, width))
    x = g.add("layer_norm", g.add("add", x, m.dense(y, width)), m.w(width), m.w(width), axis=2, epsilon=1e-5)
    x = g.add("add", x, m.dense(g.add("gelu", m.dense(x, 2 * width)), width))
    g.output(m.dense(x, 5), "y")
    return g


def integers() -> Graph:
    """A quantized network: convolutions, a residual, a dense layer; all of its arithmetic is of integers."""
    m = _Maker("integers")
    g = m.g
    zero = g.const(np.int8(0), "zero")

    def steps(value: Value, scale: float, point: int = -10) -> Value:
        at = (g.const(np.float32(scale), "scale"), g.const(np.int8(point), "point"))
        return g.add("dequantize", g.add("quantize", value, *at, to="int8"), *at)

    def weights(*shape: int) -> tuple[Value, Value]:
        codes = g.const(m.random.integers(-127, 128, shape).astype(np.int8), "w")
        each = g.const(np.float32(0.01), "scale")
        bias = g.const(m.random.integers(-900, 900, shape[:1] if len(shape) > 2 else shape[1:]).astype(np.int32), "b")
        real = g.add("dequantize", bias, g.const(np.float32(0.01 * 0.05), "scale"))
        return g.add("dequantize", codes, each, zero), real

    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    x = steps(g.input("x", TensorType("float32", (1, 3, 9, 9))), 0.05)
    x = steps(g.add("relu", g.add("conv", x, *weights(8, 3, 3, 3), **window, group=1)), 0.05, -128)
    y = steps(g.add("conv", x, *weights(8, 1, 3, 3), **window, group=8), 0.05)
    x = steps(g.add("add", x, y), 0.07)
    flat = g.add("reshape", x, shape=(1, 8 * 81))
    w, b = weights(8 * 81, 10)
    g.output(steps(g.add("add", g.add("matmul", flat, w), b), 0.3), "y")
    return g


NETS: dict[str, Callable[[], Graph]] = {"pictures": pictures, "words": words}
