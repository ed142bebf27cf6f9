"""First stages in patches: the same graph, computed tile by tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes.patches import all_stages, patched, tilings
from nervure.compiler.types import TensorType


def window(kernel: int, stride: int, pad: tuple[int, int], rank: int = 2) -> dict[str, tuple[int, ...]]:
    return {"strides": (stride,) * rank, "pads": (pad[0],) * rank + (pad[1],) * rank, "dilations": (1,) * rank}


class Chain:
    """A random chain of convolutions, pools and elementwise work, with or without residual sums."""

    def __init__(self, seed: int, rank: int, integer: bool) -> None:
        self.random, self.rank, self.integer = np.random.default_rng(seed), rank, integer
        self.graph = Graph("chain")
        shape = (1, 2, *(int(self.random.integers(9, 16)) for _ in range(rank)))
        self.dtype = "int8" if integer else "float32"
        self.at = self.graph.input("x", TensorType(self.dtype, shape))

    def const(self, shape: tuple[int, ...], dtype: str | None = None) -> Value:
        if (dtype or self.dtype) == "int8":
            return self.graph.const(self.random.integers(-9, 9, shape).astype(np.int8))
        return self.graph.const(self.random.standard_normal(shape).astype(dtype or self.dtype))

    def conv(self, kernel: int, stride: int, pad: tuple[int, int], columns: int, depthwise: bool) -> None:
        graph, channels = self.graph, self.graph.type(self.at).dims[1]
        columns = channels if depthwise else columns
        w = self.const((columns, 1 if depthwise else channels, *(kernel,) * self.rank))
        attrs = window(kernel, stride, pad, self.rank) | {"group": channels if depthwise else 1}
        if self.integer:
            total = graph.add("conv_integer", self.at, w, zero_point=3, **attrs)
            scale = graph.const(self.random.uniform(0.001, 0.1, (1, columns, *(1,) * self.rank)).astype(np.float32))
            self.at = graph.add("requantize", total, scale, zero_point=-5, to="int8")
        else:
            self.at = graph.add("relu", graph.add("conv", self.at, w, **attrs))

    def pool(self, kernel: int, stride: int, pad: tuple[int, int]) -> None:
        attrs = window(kernel, stride, pad, self.rank)
        kind = "max_pool" if self.integer or self.random.integers(2) else "avg_pool"
        self.at = self.graph.add(kind, self.at, kernel_shape=(kernel,) * self.rank, **attrs)

    def residual(self) -> None:
        before = self.at
        self.conv(3, 1, (1, 1), self.graph.type(before).dims[1], False)
        if not self.integer:
            self.at = self.graph.add("add", self.at, before)
        else:
            self.at = self.graph.add("maximum", self.at, before)

    def finish(self) -> Graph:
        flat = int(np.prod(self.graph.type(self.at).dims))
        self.graph.output(self.graph.add("reshape", self.at, shape=(1, flat)), "y")
        return self.graph


def random_chain(seed: int, rank: int, integer: bool) -> Graph:
    chain = Chain(seed, rank, integer)
    pick = np.random.default_rng(seed + 1)
    for _ in range(int(pick.integers(1, 5))):
        if min(chain.graph.type(chain.at).dims[2:]) < 4:
            break
        kind, stride = int(pick.integers(5)), int(pick.integers(1, 3))
        pad = (int(pick.integers(2)), int(pick.integers(2)))
        if kind == 0:
            chain.pool(int(pick.integers(2, 4)), stride, pad)
        elif kind == 1:
            chain.residual()
        else:
            chain.conv(int(pick.integers(1, 4)), stride, pad, int(pick.integers(1, 5)), kind == 2)
    chain.conv(1, 1, (0, 0), 3, False)
    return chain.finish()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.booleans())
def test_patches_compute_the_same(seed: int, rank: int, integer: bool) -> None:
    graph = random_chain(seed, rank, integer)
    found = tilings(graph)
    x = np.random.default_rng(seed).integers(-20, 20, graph.type(Value(graph.inputs[0])).dims)
    given_x = x.astype(np.int8 if integer else np.float32)
    (wanted,) = interpret(graph, [given_x])
    for tiling in [found[i] for i in np.random.default_rng(seed).permutation(len(found))[:3]]:
        other = patched(tiling)
        other.check()
        (got,) = interpret(other, [given_x])
        if integer:
            assert np.array_equal(got, wanted), tiling.name
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_every_chain_has_stages_up_to_its_end() -> None:
    graph = random_chain(4, 2, True)
    stages = all_stages(graph)
    assert stages and all(s.sources == (Value(graph.inputs[0]),) for s in stages)
    assert [s.windows for s in stages] == sorted(s.windows for s in stages)


def test_work_that_is_repeated_is_counted() -> None:
    chain = Chain(0, 2, True)
    chain.conv(3, 1, (1, 1), 4, False)
    chain.conv(3, 1, (1, 1), 4, False)
    graph = chain.finish()
    lines = graph.type(Value(graph.inputs[0])).dims[2]
    two = next(t for t in tilings(graph) if (t.lines, t.columns) == (2, 1) and t.stages.windows == 2)
    first = graph.find("conv_integer")[0]
    other = patched(two)
    made = [other.node(n).types[0].dims[2] for n in other.find("conv_integer")]
    assert sum(made) == 2 * lines + 2  # each half computes a line of the first stage for the other one, too
    assert two.flops > 0 and two.kinds == 2 and first in graph


@pytest.mark.parametrize("kind", ["param", "output", "global"])
def test_what_cannot_be_cut_stays_whole(kind: str) -> None:
    chain = Chain(1, 2, False)
    if kind == "param":
        w = chain.graph.param(np.zeros((2, 2, 1, 1), np.float32), "w")
        chain.at = chain.graph.add("conv", chain.at, w, **window(1, 1, (0, 0)))
    elif kind == "global":
        chain.at = chain.graph.add("softmax", chain.at, axis=-1)
    else:
        chain.conv(3, 1, (1, 1), 4, False)
        chain.graph.output(chain.at)
        chain.at = chain.graph.add("relu", chain.at)
    assert tilings(chain.finish()) == []
