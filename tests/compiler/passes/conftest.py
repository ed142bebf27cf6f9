"""Graphs in a few words, and the checks that every rewrite must pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import STORED, Graph, Value
from nervure.compiler.passes.rewrite import Rule, rewrite
from nervure.compiler.types import TensorType


class Builder:
    """``b.x(2, 3)`` an input, ``b.c([...])`` a constant, ``b.add(x, y)`` any operation by its name."""

    def __init__(self) -> None:
        self.graph = Graph("g")
        self._random = np.random.default_rng(0)

    def x(self, *shape: int, dtype: str = "float32", name: str = "x") -> Value:
        return self.graph.input(name, TensorType(dtype, shape))

    def c(self, value: Any, name: str = "c", dtype: str = "float32") -> Value:
        return self.graph.const(np.asarray(value, dtype), name)

    def w(self, *shape: int, name: str = "w", low: float = -1.0, high: float = 1.0) -> Value:
        return self.graph.const(self._random.uniform(low, high, shape).astype(np.float32), name)

    def __getattr__(self, op: str) -> Callable[..., Value]:
        return lambda *args, **attrs: self.graph.add(op.rstrip("_"), *args, **attrs)

    def conv(self, x: Value, w: Value, *bias: Value, pads: int = 0, op: str = "conv", **attrs: Any) -> Value:
        rank = self.graph.type(x).rank - 2
        given = {"strides": (1,) * rank, "pads": (pads,) * 2 * rank, "dilations": (1,) * rank, "group": 1}
        if op == "conv_transpose":
            given["output_padding"] = (0,) * rank
        return self.graph.add(op, x, w, *bias, **{**given, **attrs})

    def pool(self, op: str, x: Value, kernel: int, pads: int = 0, **attrs: Any) -> Value:
        rank = self.graph.type(x).rank - 2
        given = {"kernel_shape": (kernel,) * rank, "strides": (1,) * rank, "pads": (pads,) * 2 * rank}
        return self.graph.add(op, x, **{**given, "dilations": (1,) * rank, **attrs})

    def batch_norm(self, x: Value, channels: int) -> Value:
        parts = [self.w(channels, name=n) for n in ("scale", "bias", "mean")]
        var = self.w(channels, name="var", low=0.5, high=2.0)
        return self.graph.add("batch_norm", x, *parts, var, epsilon=1e-3)


def random_inputs(graph: Graph, seed: int = 1, low: float = -3.0, high: float = 3.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {}
    for key in graph.inputs:
        node = graph.node(key)
        dtype = np.dtype(node.types[0].dtype)
        drawn = random.uniform(low, high, node.types[0].dims)
        found[node.names[0]] = drawn > 0 if dtype.kind == "b" else drawn.astype(dtype)
    return found


def assert_same_results(before: Graph, after: Graph, rtol: float = 2e-5, **inputs: float) -> None:
    """Both graphs compute the same on random inputs: integers exactly, floats up to rounding."""
    given = random_inputs(before, **inputs)
    for name, a, b in zip(before.output_names, interpret(before, given), interpret(after, given), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind == "f":
            largest = float(np.nanmax(np.abs(np.where(np.isfinite(a), a, 0)), initial=1e-30))
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * largest, err_msg=name)
        else:
            np.testing.assert_array_equal(b, a, err_msg=name)


def body(graph: Graph) -> str:
    """The text form without the signature and without constants of more than two elements."""
    lines = [line.strip() for line in graph.text().split("\n")[1:]]
    return "\n".join(line for line in lines if " = const()" not in line or line.count(",") < 2)


def operations(graph: Graph) -> dict[str, int]:
    return dict(sorted(Counter(graph.node(k).op for k in graph if graph.node(k).op not in STORED).items()))


def apply_rules(graph: Graph, rules: Sequence[Rule], **inputs: float) -> tuple[Graph, list[str]]:
    """What the rules make of a graph, and which of them: checked, equal in its results, the argument unchanged."""
    graph.check()
    text, fired = graph.text(), []
    after = rewrite(graph, rules, fired.append)
    after.check()
    assert graph.text() == text, "a pass changed its argument"
    assert after.output_names == graph.output_names
    assert_same_results(graph, after, **inputs)
    return after, fired


def finish(b: Builder, result: Value) -> Graph:
    """The builder's graph with its one output, whose tensor is named y."""
    if b.graph.node(result).op not in STORED:
        b.graph.set_node(result.node, names=("y", *b.graph.node(result).names[1:]))
    b.graph.output(result, "y")
    return b.graph


@pytest.fixture
def b() -> Builder:
    return Builder()


@pytest.fixture
def kit() -> Any:
    """The helpers of this file, for tests that cannot import it."""
    return SimpleNamespace(
        Builder=Builder,
        random_inputs=random_inputs,
        assert_same_results=assert_same_results,
        body=body,
        operations=operations,
        finish=finish,
        apply_rules=apply_rules,
    )
