"""Random training graphs full of reductions: fused they are sound and compute the same, compiled too."""

from __future__ import annotations

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.ops.gradient import Sym
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.fuse import fuse
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.types import TensorType
from nervure.runtime.session import load

SHAPE = (4, 3, 5)


class Maker:
    """Tensors of full shape, of one value a row and of one a channel, combined at random; later ones more often."""

    def __init__(self, seed: int) -> None:
        self.rng, self.graph = np.random.default_rng(seed), Graph(f"random{seed}")
        self.full = [self._input(f"x{i}", *SHAPE) for i in range(3)]
        self.rows = [self._input("row", *SHAPE[:2], 1)]
        self.channels = [self._input(f"c{i}", SHAPE[1]) for i in range(2)]

    def _input(self, name: str, *shape: int) -> Sym:
        return Sym(self.graph, self.graph.input(name, TensorType("float32", shape)), ("test",))

    def pick(self, some: list[Sym]) -> Sym:
        return some[-1 - min(int(self.rng.exponential(3)), len(some) - 1)]

    def combine(self, a: Sym, b: Sym) -> Sym:
        return (
            lambda: a + b,
            lambda: a - b,
            lambda: a * b,
            lambda: (a > b).where(a, b * 0.5),
            lambda: a.op("tanh") + b,
            lambda: a.op("relu"),
        )[self.rng.integers(6)]()

    def step(self) -> None:
        kind, x = self.rng.integers(8), self.pick(self.full)
        fold = str(self.rng.choice(["reduce_sum", "reduce_mean", "reduce_max"]))
        if kind <= 1:
            self.full.append(self.combine(x, self.pick(self.full)))
        elif kind == 2:
            self.full.append(self.combine(x, self.pick(self.rows)))
        elif kind == 3:
            self.full.append(self.combine(x, self.pick(self.channels).reshape((SHAPE[1], 1))))
        elif kind == 4:
            self.rows.append(x.op(fold, axes=(2,), keepdims=True))
        elif kind == 5:
            self.channels.append(x.op(fold, axes=(0, 2), keepdims=False) * 0.1)
        elif kind == 6:
            self.channels.append(self.combine(self.pick(self.channels), self.pick(self.channels)))
        else:
            self.rows.append(self.combine(self.pick(self.rows), self.pick(self.rows)))

    def finish(self) -> Graph:
        for i in range(3):
            param = Sym(self.graph, self.graph.param(np.ones(SHAPE[1], np.float32), f"p{i}"), ("test",))
            self.graph.bind(param.value, (param - self.pick(self.channels) * 0.1).value)
        for i, some in enumerate((self.full, self.channels, self.rows, self.full)):
            self.graph.output(self.pick(some).value, f"y{i}")
        return self.graph


def random_graph(seed: int) -> Graph:
    maker = Maker(seed)
    for _ in range(10 + seed % 40):
        maker.step()
    return maker.finish()


def results(graph: Graph, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs, then next values."""
    whole = graph.copy()
    whole.outputs = [*graph.outputs, *(graph.bindings[k] for k in sorted(graph.bindings))]
    whole.output_names = [f"y{i}" for i in range(len(whole.outputs))]
    whole.bindings = {}
    with np.errstate(all="ignore"):
        return interpret(whole, feeds)


def inputs(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(graph.node(n).types[0].dims).astype(np.float32) for n in graph.inputs]


def agree(have: list[np.ndarray], want: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(have, want, strict=True):
        scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_fused(first):
    for seed in range(first, first + 20):
        graph = canonicalize(random_graph(seed))
        fused = fuse(graph)
        fused.check()
        agree(results(fused, inputs(graph)), results(graph, inputs(graph)), 1e-4)


@pytest.mark.slow
def test_compiled(tmp_path):
    for graph in map(random_graph, range(8)):
        path = tmp_path / f"{graph.name}.so"
        compile_entries([EntryGraph(graph)], targets.get("host"), path, Options(check=True))
        session = load(path, threads=2)
        names = [graph.node(n).names[0] for n in graph.inputs]
        have = session.run(None, dict(zip(names, inputs(graph), strict=True)))
        after = session.params()
        have = [*have, *(after[graph.node(k).names[0]] for k in sorted(graph.bindings))]
        agree(have, results(graph, inputs(graph)), 2e-3)
