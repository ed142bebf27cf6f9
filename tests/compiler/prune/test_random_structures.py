"""Random networks, random units taken out: what is left computes what the network with zeros in their place does."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.prune.shrink import shrink, zero
from nervure.compiler.prune.structure import find_structure
from nervure.compiler.types import TensorType

PARTS = ("conv", "residual", "concat", "grouped", "depthwise", "norm")
PARTS += ("shared", "shuffle", "gate", "pad", "split", "pool")
ENDS = ("flatten", "mean", "attention", "lstm", "gru")
UNARY = ("relu", "sigmoid", "silu", "tanh", "exp")


class Maker:
    """Grows an image network part by part."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("random")
        self.shape = (2, int(self.rng.integers(1, 4)), 4, 4)
        x = self.graph.input("x", TensorType("float32", self.shape))
        self.ends: list[Value] = [self.conv(x, self.width())]

    def width(self) -> int:
        return int(self.rng.choice([2, 4, 6, 8]))

    def weight(self, *shape: int, low: float = -0.5) -> Value:
        return self.graph.const(self.rng.uniform(low, 0.5, shape).astype(np.float32), "w")

    def conv(self, x: Value, outputs: int, group: int = 1, kernel: int = 1, w: Value | None = None) -> Value:
        channels = self.graph.type(x).dims[1]
        w = w or self.weight(outputs, channels // group, kernel, kernel)
        bias = self.weight(outputs) if self.rng.random() < 0.6 else None
        attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (kernel // 2,) * 4, "group": group}
        return self.graph.add("conv", x, w, bias, names=["layer"], **attrs)

    def unary(self, x: Value) -> Value:
        return self.graph.add(str(self.rng.choice(UNARY)), x)

    def channels(self, x: Value) -> int:
        return self.graph.type(x).dims[1]

    def part(self, name: str) -> None:
        x = self.ends[int(self.rng.integers(len(self.ends)))]
        self.ends = [*self.ends[-2:], getattr(self, f"_{name}")(x)]

    def _conv(self, x: Value) -> Value:
        return self.unary(self.conv(x, self.width(), kernel=int(self.rng.choice([1, 3]))))

    def _residual(self, x: Value) -> Value:
        return self.graph.add("add", self.conv(self.unary(self.conv(x, self.width())), self.channels(x)), x)

    def _concat(self, x: Value) -> Value:
        return self.graph.add("concat", *self.ends[-2:], x, axis=1)

    def _grouped(self, x: Value) -> Value:
        group = int(self.rng.choice([g for g in (1, 2, 3, 4) if self.channels(x) % g == 0]))
        return self.conv(x, group * int(self.rng.integers(1, 4)), group=group, kernel=3)

    def _depthwise(self, x: Value) -> Value:
        return self.conv(x, self.channels(x) * int(self.rng.integers(1, 3)), group=self.channels(x), kernel=3)

    def _norm(self, x: Value) -> Value:
        n = self.channels(x)
        if self.rng.random() < 0.3:
            groups = int(self.rng.choice([g for g in (1, 2, n) if n % g == 0]))
            return self.graph.add("group_norm", x, self.weight(n), self.weight(n), num_groups=groups, epsilon=1e-3)
        parts = [self.weight(n), self.weight(n), self.weight(n), self.weight(n, low=0.1)]
        return self.graph.add("batch_norm", x, *parts, epsilon=1e-3)

    def _shared(self, x: Value) -> Value:
        n = self.channels(x)
        w = self.weight(n, n, 1, 1)
        return self.conv(self.unary(self.conv(x, n, w=w)), n, w=w)

    def _shuffle(self, x: Value) -> Value:
        n = self.channels(x)
        group = 2 if n % 2 == 0 else 1
        x = self.graph.add("reshape", x, shape=(2, group, n // group, 4, 4))
        return self.graph.add("reshape", self.graph.add("transpose", x, perm=(0, 2, 1, 3, 4)), shape=(2, n, 4, 4))

    def _gate(self, x: Value) -> Value:
        mean = self.graph.add("reduce_mean", x, axes=(2, 3), keepdims=True)
        inner = self.graph.add("relu", self.conv(mean, self.width()))
        return self.graph.add("mul", x, self.graph.add("sigmoid", self.conv(inner, self.channels(x))))

    def _pad(self, x: Value) -> Value:
        before, after = self.rng.integers(0, 3, 2).tolist()
        return self.graph.add("pad", x, pads=(0, before, 0, 0, 0, after, 0, 0), value=float(self.rng.integers(0, 2)))

    def _split(self, x: Value) -> Value:
        n = self.channels(x)
        at, one = int(self.rng.integers(1, n)) if n > 1 else 1, (1,) * 4
        first = self.graph.add("slice", x, starts=(0, 0, 0, 0), stops=(2, at, 4, 4), steps=one)
        if at == n:
            return first
        rest = self.graph.add("slice", x, starts=(0, n - 1, 0, 0), stops=(2, at - 1, 4, 4), steps=(1, -1, 1, 1))
        order = [first, rest] if self.rng.random() < 0.5 else [rest, first]
        return self.graph.add("concat", *order, axis=1)

    def _pool(self, x: Value) -> Value:
        window = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1)}
        return self.graph.add(str(self.rng.choice(["max_pool", "avg_pool"])), x, **window)

    # -- ends ------------------------------------------------------------------------------------------------------

    def end(self, name: str) -> None:
        x = self.ends[0] if len(self.ends) == 1 else self.graph.add("concat", *self.ends, axis=1)
        made = getattr(self, f"_end_{name}")(x)
        rows = self.graph.type(made).dims
        y = self.graph.add("matmul", made, self.weight(rows[-1], 3))
        self.graph.output(y, "y")

    def _end_flatten(self, x: Value) -> Value:
        return self.graph.add("reshape", x, shape=(2, -1))

    def _end_mean(self, x: Value) -> Value:
        return self.graph.add("reduce_mean", x, axes=(2, 3))

    def _rows(self, x: Value, perm: tuple[int, ...]) -> Value:
        """Positions as steps: ``[steps, batch, channels]`` or ``[batch, steps, channels]``."""
        flat = self.graph.add("reshape", x, shape=(2, self.channels(x), 16))
        return self.graph.add("transpose", flat, perm=perm)

    def _end_attention(self, x: Value) -> Value:
        rows, heads, size = self._rows(x, (0, 2, 1)), int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4))
        parted = []
        for _ in range(3):
            made = self.graph.add("matmul", rows, self.weight(self.channels(x), heads * size))
            made = self.graph.add("add", made, self.weight(heads * size))
            made = self.graph.add("reshape", made, shape=(2, 16, heads, size))
            parted.append(self.graph.add("transpose", made, perm=(0, 2, 1, 3)))
        mixed = self.graph.add("attention", *parted, scale=0.5)
        mixed = self.graph.add("transpose", mixed, perm=(0, 2, 1, 3))
        return self.graph.add("reshape", mixed, shape=(2, 16, heads * size))

    def _recurrent(self, x: Value, op: str, gates: int) -> Value:
        rows, hidden = self._rows(x, (2, 0, 1)), int(self.rng.integers(2, 6))
        both = bool(self.rng.random() < 0.5)
        shapes = ((gates * hidden, self.channels(x)), (gates * hidden, hidden), (2 * gates * hidden,))
        weights = [self.weight(1 + both, *shape) for shape in shapes]
        y = self.graph.add(op, rows, *weights, direction="bidirectional" if both else "forward")
        return self.graph.add("reshape", self.graph.add("transpose", y, perm=(2, 0, 1, 3)), shape=(2, 16, -1))

    def _end_lstm(self, x: Value) -> Value:
        return self._recurrent(x, "lstm", 4)

    def _end_gru(self, x: Value) -> Value:
        return self._recurrent(x, "gru", 3)


def grown(seed: int, parts: list[str], end: str) -> tuple[Graph, np.ndarray]:
    made = Maker(seed)
    for part in parts:
        made.part(part)
    made.end(end)
    made.graph.prune()
    made.graph.check()
    return made.graph, made.rng.uniform(-1, 1, made.shape).astype(np.float32)


def chosen(graph: Graph, seed: int) -> dict[str, list[int]]:
    """Some units of every group, never all."""
    rng = np.random.default_rng(seed)
    counts = {g.name: len(g.units) for g in find_structure(graph).groups}
    return {name: sorted(rng.choice(n, int(rng.integers(0, n)), replace=False).tolist()) for name, n in counts.items()}


NETWORKS = {
    "seed": st.integers(0, 2**32 - 1),
    "parts": st.lists(st.sampled_from(PARTS), min_size=1, max_size=7),
    "end": st.sampled_from(ENDS),
}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**NETWORKS)
def test_shrunk_is_zeroed(seed: int, parts: list[str], end: str) -> None:
    _hold(seed, parts, end)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**NETWORKS)
def test_shrunk_is_zeroed_at_length(seed: int, parts: list[str], end: str) -> None:
    _hold(seed, parts, end)


def _hold(seed: int, parts: list[str], end: str) -> None:
    graph, x = grown(seed, parts, end)
    removed = chosen(graph, seed)
    less = shrink(graph, removed)
    less.check()
    (got,), (wanted,) = interpret(less, [x]), interpret(zero(graph, removed), [x])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("end", ENDS)
def test_every_kind_of_network_loses_something(end: str) -> None:
    """That the agreement above is not that of graphs in which nothing goes."""
    smaller = 0
    for seed in range(4):
        graph, _ = grown(seed, list(PARTS[seed * 3 : seed * 3 + 3]), end)
        less = shrink(graph, chosen(graph, 1))
        smaller += sum(less.node(k).array.size for k in less.find("const")) < sum(
            graph.node(k).array.size for k in graph.find("const")
        )
    assert smaller >= 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_shrunk_is_zeroed_when_compiled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph, x = grown(seed, rng.choice(PARTS, 5).tolist(), ENDS[seed % len(ENDS)])
    removed = chosen(graph, seed)
    wanted = interpret(zero(graph, removed), [x])[0]
    got = nv.compile(shrink(graph, removed))(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))
