"""Small random quantized graphs: every layer reads dequantized integers, and a quantizer stands behind it.

Types, scales and zero points differ from tensor to tensor. A scale fits the range of what it quantizes more or less,
so that values are neither all clipped nor all zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from nervure.compiler.interpret import evaluate
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType

TYPES = ("int8", "int8", "uint8", "uint8", "int16")
TABLES = ("sigmoid", "tanh", "hard_swish", "gelu", "silu", "elu")
LARGEST = 4096  # elements


class Maker:
    """Makes one graph of ``layers`` layers. ``steps`` are its quantized tensors, the inputs first."""

    def __init__(self, seed: int, layers: int = 6) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(f"quantized_{seed}")
        self.held: dict[int, np.ndarray] = {}  # node -> its value for one input
        self.feeds: list[np.ndarray] = []
        self.steps: list[Value] = []
        self.real: dict[Value, Value] = {}  # quantized -> dequantized
        for i in range(self.pick((1, 1, 2))):
            self._input(f"x{i}")
        while len(self.steps) < layers + len(self.feeds):
            made = self.pick(LAYERS)(self, self.source())
            if made is not None and 0 < self.graph.type(made).size <= LARGEST:
                self.quantized(made)
        ends = [s for s in self.steps if not any(u != self.real[s].node for u, _ in self.graph.users(self.real[s]))]
        for value in dict.fromkeys([*ends, self.steps[-1], self.pick(self.steps[len(self.feeds) :])]):
            self.graph.output(value)

    def pick(self, choices):  # type: ignore[no-untyped-def]
        return choices[int(self.rng.integers(len(choices)))]

    def add(self, op: str, *args: Value, **attrs: object) -> Value:
        value = self.graph.add(op, *args, **attrs)
        self.held[value.node] = evaluate(self.graph.node(value), [self.array(a) for a in args])[0]
        return value

    def array(self, value: Value) -> np.ndarray:
        return self.held[value.node] if value.node in self.held else self.graph.node(value).array

    def const(self, array: np.ndarray) -> Value:
        return self.graph.const(array)

    def dims(self, value: Value) -> tuple[int, ...]:
        return self.graph.type(value).dims

    def source(self) -> Value:
        """A dequantized tensor, mostly one of the last."""
        recent = self.steps[-2:] if self.rng.random() < 0.7 else self.steps
        return self.real[self.pick(recent)]

    def narrow(self, value: Value) -> bool:
        """Whether a dequantized tensor has 8 bits: there are tables for these."""
        return self.graph.type(self.graph.args(value.node)[0]).itemsize == 1  # type: ignore[arg-type]

    # -- quantizers ------------------------------------------------------------------------------------------------

    def _input(self, name: str) -> None:
        dtype = self.pick(TYPES)
        rank = self.pick((2, 4, 4, 4))
        shape = tuple(int(self.pick((1, 3, 4, 6, 8))) for _ in range(rank - 2)) if rank > 2 else (self.pick((1, 5)),)
        shape = (*shape, self.pick((5, 8)), self.pick((4, 7))) if rank > 2 else (*shape, self.pick((8, 17)))
        info = np.iinfo(dtype)
        q = self.graph.input(name, TensorType(dtype, shape))
        self.feeds.append(self.rng.integers(info.min, info.max, shape, dtype, endpoint=True))
        self.held[q.node] = self.feeds[-1]
        self._dequantized(q, float(np.exp(self.rng.uniform(-5, 0))), self._zero(dtype))

    def _zero(self, dtype: str) -> int:
        if dtype == "int16":
            return 0
        info = np.iinfo(dtype)
        return int(self.pick((0, info.min, info.max, int(self.rng.integers(info.min, info.max + 1)))))

    def _dequantized(self, q: Value, scale: float, zero: int) -> None:
        point = self.const(np.asarray(zero, self.graph.type(q).dtype))
        self.real[q] = self.add("dequantize", q, self.const(np.float32(scale)), point)
        self.steps.append(q)

    def quantized(self, value: Value) -> None:
        """A quantizer behind a layer, sometimes with relu or bounds before it."""
        bounds = self.rng.random()
        if bounds < 0.2:
            value = self.add("relu", value)
        elif bounds < 0.3:
            low = float(self.rng.uniform(-1, 0.2))
            value = self.add("clip", value, low=low, high=low + float(self.rng.uniform(0.5, 6)))
        found = self.array(value)
        dtype = self.pick(TYPES)
        info = np.iinfo(dtype)
        low, high = min(0.0, float(found.min())), max(0.0, float(found.max()))
        scale = max(high - low, 1e-3) / (info.max - info.min) * float(np.exp(self.rng.uniform(-0.7, 1.2)))
        zero = 0 if dtype == "int16" else int(np.clip(round(info.min - low / scale), info.min, info.max))
        if self.rng.random() < 0.15:
            zero = self._zero(dtype)
        point = self.const(np.asarray(zero, dtype))
        q = self.add("quantize", value, self.const(np.float32(scale)), point, to=dtype)
        self._dequantized(q, float(np.float32(scale)), zero)

    def weights(self, *shape: int, axis: int) -> Value:
        each = self.rng.random() < 0.6
        wide = [shape[a] if a == axis and each else 1 for a in range(len(shape))] if each else []
        scale = self.rng.uniform(0.2, 2, wide) / (127 * np.sqrt(np.prod(shape) / shape[axis]))
        codes = self.const(self.rng.integers(-127, 128, shape).astype(np.int8))
        return self.add("dequantize", codes, self.const(np.asarray(scale, np.float32)))


# -- layers: a dequantized tensor -> the layer's real result, or None where it does not fit ----------------------------

Layer = Callable[[Maker, Value], Value | None]


def conv(m: Maker, x: Value) -> Value | None:
    if len(m.dims(x)) != 4:
        return None
    c, size = m.dims(x)[1], m.pick((1, 1, 3))
    depthwise = m.rng.random() < 0.3
    out = c if depthwise else m.pick((1, 4, 7, 16))
    if min(m.dims(x)[2:]) < size:
        return None
    w = m.weights(out, 1 if depthwise else c, size, size, axis=0)
    bias = [m.const(m.rng.uniform(-1, 1, out).astype(np.float32))] if m.rng.random() < 0.6 else []
    pads = tuple(int(m.rng.integers(0, size)) for _ in range(4))
    attrs = {"strides": (m.pick((1, 1, 2)),) * 2, "pads": pads, "dilations": (1, 1)}
    return m.add("conv", x, w, *bias, **attrs, group=c if depthwise else 1)


def matmul(m: Maker, x: Value) -> Value | None:
    out = m.pick((1, 5, 16))
    y = m.add("matmul", x, m.weights(m.dims(x)[-1], out, axis=1))
    return m.add("add", y, m.const(m.rng.uniform(-1, 1, out).astype(np.float32))) if m.rng.random() < 0.5 else y


def product(m: Maker, x: Value) -> Value | None:
    """The matrix product of two activations."""
    rank = len(m.dims(x))
    other = m.add("transpose", x, perm=(*range(rank - 2), rank - 1, rank - 2))
    return m.add("matmul", x, other)


def pair(op: str) -> Layer:
    def make(m: Maker, x: Value) -> Value | None:
        for q in m.steps[::-1]:
            y = m.real[q]
            if y != x and m.dims(y) == m.dims(x):
                return m.add(op, x, y)
        return None

    return make


def concat(m: Maker, x: Value) -> Value | None:
    for q in m.steps[::-1]:
        y = m.real[q]
        if (
            y != x
            and len(m.dims(y)) == len(m.dims(x))
            and (*m.dims(y)[:1], *m.dims(y)[2:])
            == (
                *m.dims(x)[:1],
                *m.dims(x)[2:],
            )
        ):
            return m.add("concat", x, y, axis=1)
    return None


def pool(op: str) -> Layer:
    def make(m: Maker, x: Value) -> Value | None:
        if len(m.dims(x)) != 4 or min(m.dims(x)[2:]) < 3:
            return None
        size = m.pick((2, 3))
        pads = (size // 2,) * 4 if m.rng.random() < 0.4 else (0,) * 4
        window = {"kernel_shape": (size,) * 2, "strides": (m.pick((1, 2)),) * 2, "pads": pads, "dilations": (1, 1)}
        if op == "max_pool":
            return m.add(op, x, **window)
        return m.add(op, x, **window, count_include_pad=bool(m.rng.integers(2)))

    return make


def mean(m: Maker, x: Value) -> Value | None:
    rank = len(m.dims(x))
    axes = tuple(range(2, rank)) if rank > 2 and m.rng.random() < 0.7 else (rank - 1,)
    return m.add("reduce_mean", x, axes=axes, keepdims=True)


def table(m: Maker, x: Value) -> Value | None:
    return m.add(m.pick(TABLES), x) if m.narrow(x) else None


def prelu(m: Maker, x: Value) -> Value | None:
    if len(m.dims(x)) != 4:
        return None
    slope = m.const(m.rng.uniform(0.05, 0.6, (m.dims(x)[1], 1, 1)).astype(np.float32))
    return m.add("where", m.add("less", x, m.const(np.float32(0))), m.add("mul", x, slope), x)


def softmax(m: Maker, x: Value) -> Value | None:
    return m.add("softmax", x, axis=-1) if m.narrow(x) else None


def again(m: Maker, x: Value) -> Value | None:
    """Another scale, or another type."""
    return x


def views(m: Maker, x: Value) -> Value | None:
    dims = m.dims(x)
    kind = m.pick(("reshape", "transpose", "slice", "pad", "resize"))
    if kind == "reshape":
        return m.add("reshape", x, shape=(*dims[:1], int(np.prod(dims[1:]))) if len(dims) > 2 else (*dims, 1, 1))
    if kind == "transpose":
        return m.add("transpose", x, perm=tuple(int(a) for a in m.rng.permutation(len(dims))))
    if kind == "slice" and dims[-1] > 2:
        return m.add("slice", x, starts=(0,) * (len(dims) - 1) + (1,), stops=dims, steps=(1,) * len(dims))
    if kind == "pad":
        return m.add("pad", x, pads=(0,) * (len(dims) - 1) + (1,) + (0,) * (len(dims) - 1) + (2,))
    if kind == "resize" and len(dims) == 4:
        shape = (*dims[:2], dims[2] * 2, dims[3] * 2)
        return m.add("resize", x, shape=shape, coordinate="asymmetric", nearest="floor")
    return None


LAYERS: tuple[Layer, ...] = (
    conv,
    conv,
    conv,
    matmul,
    matmul,
    product,
    pair("add"),
    pair("add"),
    pair("sub"),
    pair("mul"),
    concat,
    pool("max_pool"),
    pool("avg_pool"),
    mean,
    table,
    table,
    prelu,
    softmax,
    again,
    views,
    views,
)


def layer_of(graph: Graph, result: Value) -> tuple[Graph, list[Value]]:
    """One layer by itself: the graph from the quantized tensors that it reads, as inputs, to ``result``; and those."""
    made, known, sources = Graph("layer"), {}, []

    def copied(value: Value) -> Value:
        if value not in known:
            node = graph.node(value)
            if node.op == "const":
                known[value] = made.const(node.array)
            elif value in sources or (value != result and node.op in ("quantize", "input")):
                sources.append(value)
                known[value] = made.input(f"x{len(sources)}", graph.type(value))
            else:
                args = [None if a is None else copied(a) for a in graph.args(value.node)]
                known[value] = made.add(node.op, *args, **node.attrs)
        return known[value]

    made.output(copied(result), "y")
    return made, sources
