"""Small random graphs: views, elementwise work, contractions and reductions in every mixture.

Values stay of moderate size and nothing jumps, so that float32 results can be compared through many operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from nervure.compiler.ir import Graph, Value
from nervure.compiler.types import TensorType

UNARY = ("neg", "abs", "tanh", "sigmoid", "relu", "silu", "erf", "sin", "cos", "atan", "gelu", "hard_swish", "softplus")
BINARY = ("add", "sub", "minimum", "maximum")
REDUCTIONS = ("reduce_mean", "reduce_max", "reduce_min")
LARGEST = 4096  # elements


class Maker:
    """Makes one graph; every method returns a new tensor or None where the operation does not fit."""

    def __init__(self, seed: int, nodes: int = 12) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(f"random_{seed}")
        for i in range(self.pick((1, 1, 2, 3))):
            self.graph.input(f"x{i}", TensorType("float32", self._shape()))
        self.values = [Value(n) for n in self.graph.inputs]
        while len(self.values) < nodes:
            made = self.pick(OPERATIONS)(self, self._value())
            if made is not None and 0 < self.graph.type(made).size <= LARGEST:
                self.values.append(made)
        self._outputs()

    def pick(self, choices):  # type: ignore[no-untyped-def]
        return choices[int(self.rng.integers(len(choices)))]

    def _shape(self) -> tuple[int, ...]:
        rank = self.pick((2, 3, 4, 4))
        sizes = (1, 2, 3, 4, 5, 7, 8, 16) if rank > 2 else (1, 3, 8, 17, 32)
        return tuple(int(self.pick(sizes)) for _ in range(rank))

    def _value(self) -> Value:
        """Mostly one of the last ones, so that graphs are deep."""
        recent = self.values[-3:] if self.rng.random() < 0.7 else self.values
        return self.pick(recent)  # type: ignore[no-any-return]

    def _outputs(self) -> None:
        used = {a for n in self.graph for a in self.graph.args(n)}
        ends = [v for v in self.values if v not in used and self.graph.node(v).op != "input"]
        chosen = dict.fromkeys([*ends, self.values[-1], self.pick(self.values)])
        for value in chosen:
            self.graph.output(value)

    def dims(self, value: Value) -> tuple[int, ...]:
        return self.graph.type(value).dims

    def const(self, *shape: int, scale: float = 1.0) -> Value:
        return self.graph.const((self.rng.uniform(-1, 1, shape) * scale).astype(np.float32))

    # -- operations ------------------------------------------------------------------------------------------------

    def unary(self, x: Value) -> Value:
        return self.graph.add(self.pick(UNARY), x)

    def binary(self, x: Value) -> Value:
        """With a constant that is broadcast, or with another tensor where one fits."""
        shape = self.dims(x)
        fitting = [v for v in self.values if self._fits(self.dims(v), shape)]
        other = self.pick(fitting) if self.rng.random() < 0.6 else None
        if other is None:
            kept = [d if self.rng.random() < 0.6 else 1 for d in shape]
            other = self.const(*kept[int(self.rng.integers(0, len(kept) + 1)) :])
        pair = (x, other) if self.rng.random() < 0.5 else (other, x)
        if self.rng.random() < 0.3:  # products of bounded factors
            return self.graph.add("mul", self.graph.add("tanh", pair[0]), pair[1])
        return self.graph.add(self.pick(BINARY), *pair)

    @staticmethod
    def _fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(p == q or 1 in (p, q) for p, q in zip(a[::-1], b[::-1], strict=False))

    def choice(self, x: Value) -> Value:
        mask = self.graph.add("less", x, self.const(1, scale=0.7))
        return self.graph.add("where", mask, self.graph.add("neg", x), self.graph.add("cos", x))

    def reshape(self, x: Value) -> Value | None:
        size = math.prod(self.dims(x))
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        first = self.pick(divisors)
        second = self.pick([d for d in divisors if (size // first) % d == 0])
        return self.graph.add("reshape", x, shape=(first, second, size // first // second))

    def transpose(self, x: Value) -> Value:
        rank = len(self.dims(x))
        return self.graph.add("transpose", x, perm=tuple(int(i) for i in self.rng.permutation(rank)))

    def cut(self, x: Value) -> Value:
        starts, stops, steps = [], [], []
        for d in self.dims(x):
            step = self.pick((1, 1, 1, 2, -1))
            a, b = sorted(int(v) for v in self.rng.integers(0, d + 1, 2))
            a, b = (0, d) if a == b else (a, b)
            starts.append(a if step > 0 else b - 1)
            stops.append(b if step > 0 else a - 1)
            steps.append(step)
        return self.graph.add("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))

    def expand(self, x: Value) -> Value:
        shape = tuple(self.pick((2, 3)) if d == 1 else d for d in self.dims(x))
        return self.graph.add("expand", x, shape=(self.pick((1, 2)), *shape)[-5:] if len(shape) < 5 else shape)

    def concat(self, x: Value) -> Value:
        axis = int(self.rng.integers(len(self.dims(x))))
        others = [v for v in self.values if self._beside(self.dims(v), self.dims(x), axis)]
        parts = [x, *(self.pick(others) for _ in range(self.pick((1, 2))))]
        return self.graph.add("concat", *(parts[i] for i in self.rng.permutation(len(parts))), axis=axis)

    @staticmethod
    def _beside(a: tuple[int, ...], b: tuple[int, ...], axis: int) -> bool:
        return len(a) == len(b) and all(p == q for i, (p, q) in enumerate(zip(a, b, strict=True)) if i != axis)

    def reduce(self, x: Value) -> Value | None:
        rank = len(self.dims(x))
        axes = tuple(sorted({int(a) for a in self.rng.integers(0, rank, self.pick((1, 2)))}))
        keep = bool(self.rng.random() < 0.6) or len(axes) == rank
        return self.graph.add(self.pick(REDUCTIONS), x, axes=axes, keepdims=keep)

    def normalise(self, x: Value) -> Value:
        axis = len(self.dims(x)) - 1
        if self.rng.random() < 0.5:
            return self.graph.add("softmax", x, axis=int(self.rng.integers(axis + 1)))
        width = self.dims(x)[axis]
        return self.graph.add("layer_norm", x, self.const(width), self.const(width), axis=axis, epsilon=0.05)

    def product(self, x: Value) -> Value | None:
        shape = self.dims(x)
        if len(shape) < 2:
            return None
        depth, columns = shape[-1], int(self.pick((1, 3, 8, 17)))
        if self.rng.random() < 0.3:
            back = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
            return self.graph.add("tanh", self.graph.add("matmul", x, self.graph.add("transpose", x, perm=back)))
        y = self.graph.add("matmul", x, self.const(depth, columns, scale=1 / math.sqrt(depth)))
        return self.graph.add("add", y, self.const(columns)) if self.rng.random() < 0.5 else y

    def conv(self, x: Value) -> Value | None:
        shape = self.dims(x)
        if len(shape) != 4:
            return None
        channels, size = shape[1], int(self.pick((1, 3)))
        wide = bool(self.rng.random() < 0.4)  # depthwise
        outer = channels if wide else int(self.pick((1, 4, 8)))
        weight = self.const(outer, 1 if wide else channels, size, size, scale=1 / (size * math.sqrt(channels)))
        bias = self.const(outer) if self.rng.random() < 0.5 else None
        window = {"strides": (self.pick((1, 2)),) * 2, "pads": (size // 2,) * 4, "dilations": (1, 1)}
        return self.graph.add("conv", x, weight, bias, group=channels if wide else 1, **window)

    def pool(self, x: Value) -> Value | None:
        shape = self.dims(x)
        if len(shape) != 4 or min(shape[2:]) < 2:
            return None
        window = {"kernel_shape": (2, 2), "strides": (self.pick((1, 2)),) * 2, "pads": (0,) * 4, "dilations": (1, 1)}
        return self.graph.add(self.pick(("max_pool", "avg_pool")), x, **window)

    def pad(self, x: Value) -> Value:
        pads = tuple(int(p) for p in self.rng.integers(0, 3, 2 * len(self.dims(x))))
        return self.graph.add("pad", x, pads=pads, value=0.25)

    def gather(self, x: Value) -> Value:
        axis = int(self.rng.integers(len(self.dims(x))))
        index = self.rng.integers(0, self.dims(x)[axis], self.pick((1, 2, 4)))
        return self.graph.add("gather", x, self.graph.const(index.astype(np.int64)), axis=axis)

    def sums(self, x: Value) -> Value:
        axis = int(self.rng.integers(len(self.dims(x))))
        return self.graph.add("tanh", self.graph.add("cumsum", x, axis=axis))


OPERATIONS: tuple[Callable[[Maker, Value], Value | None], ...] = (
    *(Maker.unary,) * 4,
    *(Maker.binary,) * 4,
    *(Maker.reshape, Maker.transpose) * 2,
    *(Maker.cut, Maker.expand, Maker.concat, Maker.concat, Maker.reduce, Maker.normalise, Maker.product, Maker.choice),
    *(Maker.conv, Maker.conv, Maker.pool, Maker.pad, Maker.gather, Maker.sums),
)


def random_graph(seed: int, nodes: int = 12) -> Graph:
    return Maker(seed, nodes).graph
