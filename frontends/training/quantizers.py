"""What a graph with ``quantize`` and ``dequantize`` has to train: weights that are quantized, and scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...compiler.ir import Graph, Value
from ...compiler.ops import OPS, Kind
from ...compiler.ops.selection import step_bounds
from ...compiler.quantize.place import origin_of
from ...compiler.types import is_float

THROUGH = ("relu", "clip", "identity")  # between a product and its quantization: they become bounds
# What has an integer form with scales of any kind (``compiler.passes.integers``); of the rest a table is made, or a
# softmax's, and a table is made once: its scales stay as they are.
FORMS = ("avg_pool", "reduce_mean", "concat", "conv", "matmul", "dequantize", "max_pool")
# The inputs of operators that are weights, quantized or left in float.
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "quantize": (0,),
    "conv": (1, 2),
    "conv_transpose": (1, 2),
    "matmul": (0, 1),
    "gather": (0,),
    **dict.fromkeys(("lstm", "gru", "rnn"), (1, 2, 3)),
    **dict.fromkeys(("layer_norm", "group_norm", "rms_norm"), (1, 2)),
}
MOVES = ("reshape", "transpose", "slice", "expand", "gather", "tile", "copy", "pad")


@dataclass(frozen=True)
class Quantizer:
    """One ``quantize``: the tensor that it quantizes, how, and how many elements share a scale (of one sample)."""

    name: str
    scale: np.ndarray
    weight: bool
    sharing: int
    most: int  # steps between zero and the farther bound


class Quantizers:
    """The quantizers of a graph whose scales are constants. A scale that several of them have is one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.of: dict[Value, Quantizer] = {}  # scale -> the first quantizer that has it
        for key in graph.find("quantize"):
            scale = graph.args(key)[1]
            if scale is not None and graph.constant(scale) is not None and scale not in self.of:
                self.of[scale] = _quantizer(graph, key, scale)
        self.fixed = self._fixed()

    def scales(self) -> Iterator[tuple[Value, Quantizer]]:
        """Every scale that can be learned."""
        for scale, quantizer in self.of.items():
            if scale not in self.fixed:
                yield scale, quantizer

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """The weights by name, in the order of their use; scales of normalisations and biases are some."""
        graph = self.graph
        for key in graph.order():
            for index, value in enumerate(graph.args(key)):
                array = graph.constant(value)
                if array is not None and value is not None and self._trains(key, index):
                    yield graph.tensor_name(value), array

    def _trains(self, key: int, index: int) -> bool:
        graph, node = self.graph, self.graph.node(key)
        value = graph.args(key)[index]
        assert value is not None
        if not is_float(graph.type(value).dtype):
            return False
        if index in WEIGHTS.get(node.op, ()):
            return True
        return node.op == "add" and self._behind_product(graph.args(key)[1 - index], value)

    def _behind_product(self, other: Value | None, bias: Value) -> bool:
        """Whether an addend lies behind a matmul, one number for each column."""
        graph = self.graph
        if other is None or graph.node(other).op != "matmul" or graph.uses(other) != 1:
            return False
        return graph.type(bias).size == graph.type(other).dims[-1] == graph.type(bias).dims[-1]

    def _fixed(self) -> set[Value]:
        """The scales on both sides of tables and softmax."""
        graph = self.graph
        fixed: set[Value] = set()
        for key in graph.find("quantize"):
            value, scale = graph.args(key)[:2]
            assert value is not None and scale is not None
            source = self._bounded(value)
            if graph.node(source).op in (*FORMS, *MOVES, "input", "const") or self._pair(source):
                continue
            starts = self._starts(source)
            if starts is not None:
                fixed |= {scale, *starts}
        return fixed

    def _bounded(self, value: Value) -> Value:
        """What relu and clip are applied to."""
        while self.graph.node(value).op in THROUGH:
            inner = self.graph.args(value.node)[0]
            assert inner is not None
            value = inner
        return value

    def _pair(self, value: Value) -> bool:
        """Whether two quantized tensors are added or multiplied, or a product gets its bias."""
        graph = self.graph
        if graph.node(value).op not in ("add", "sub", "mul"):
            return False
        ops = [graph.node(a).op for a in graph.args(value.node) if a is not None]
        return ops == ["dequantize"] * 2 or "matmul" in ops or "conv" in ops

    def _starts(self, value: Value) -> set[Value] | None:
        """The scales of what an elementwise function (or a softmax) is computed from; None where it is none."""
        graph = self.graph
        stack, found, seen = [value], set[Value](), set[int]()
        while stack:
            v = stack.pop()
            node = graph.node(v)
            if node.op == "dequantize":
                scale = graph.args(v.node)[1]
                found |= {scale} if scale is not None else set()
            elif OPS[node.op].kind is Kind.ELEMENTWISE or node.op in ("softmax", *MOVES):
                if v.node not in seen:
                    seen.add(v.node)
                    stack += [a for a in graph.args(v.node) if a is not None]
            elif node.op != "const":
                return None
        return found


def _quantizer(graph: Graph, key: int, scale: Value) -> Quantizer:
    value, _, *zero = graph.args(key)
    assert value is not None
    array, node = graph.constant(scale), graph.node(key)
    assert array is not None
    offset = graph.constant(zero[0]) if zero else None
    point = 0 if offset is None else int(offset.reshape(-1)[0])
    low, high = step_bounds(node.attrs["low"], node.attrs["high"], node.attrs["to"])
    shape = graph.type(value).dims
    weight = graph.constant(value) is not None
    sharing = math.prod(shape) // max(1, array.size) if weight else math.prod(shape[1:])
    return Quantizer(graph.tensor_name(value), array, weight, max(1, sharing), max(high - point, point - low, 1))


def integer_biases(graph: Graph) -> None:
    """The constant biases of quantized products as int32 in steps of the sums, which is what they are rounded to
    anyway. The caller owns the graph."""
    for key in graph.order():
        op = graph.node(key).op
        found = _matmul_with_bias(graph, key) if op == "add" else (key, 2) if op == "conv" else None
        if found is None or found[1] >= len(graph.args(key)):
            continue
        product, arg = found
        bias = graph.args(key)[arg]
        array, scale = graph.constant(bias), _sum_scale(graph, product)
        if bias is None or array is None or scale is None or scale.size not in (1, array.size):
            continue
        name, origin = graph.tensor_name(bias), graph.node(bias).origin
        each = np.ascontiguousarray(np.broadcast_to(scale, array.size)).reshape(array.shape)
        steps = np.asarray(OPS["quantize"].reference(array, each, to="int32"))  # type: ignore[misc]
        held = [graph.const(steps, f"{name}_quantized", origin), graph.const(each, f"{name}_scale", origin)]
        graph.set_arg(key, arg, graph.add("dequantize", *held, names=[f"{name}_dequantized"], origin=origin))
    graph.prune()


def _matmul_with_bias(graph: Graph, key: int) -> tuple[int, int] | None:
    """The matmul that an addition puts a constant behind, and which input the constant is."""
    args = graph.args(key)
    for arg, other in ((1, args[0]), (0, args[1])):
        if other is not None and graph.node(other).op == "matmul" and graph.constant(args[arg]) is not None:
            return other.node, arg
    return None


def _sum_scale(graph: Graph, product: int) -> np.ndarray | None:
    """The scale of the sums of a product of quantized tensors: float32, one number or [channels]."""
    x, w = graph.args(product)[:2]
    scales = []
    for value in (x, w):
        source = origin_of(graph, value)  # type: ignore[arg-type]
        if graph.node(source).op != "dequantize":
            return None
        scales.append(graph.constant(graph.args(source.node)[1]))
    before, weights = scales
    if before is None or weights is None or before.size != 1 or weights.dtype != np.float32:
        return None
    return np.asarray(before.reshape(()) * weights.reshape(-1), np.float32)
