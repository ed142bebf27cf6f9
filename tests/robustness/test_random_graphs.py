"""Random graphs: the passes keep their meaning, and compiled code computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.runtime.session import load
from nervure.targets import get
from random_graphs import random_graph

TOLERANCE = 5e-4  # of the output's largest value
BATCHES, GRAPHS = 8, 40


def _inputs(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.uniform(-1, 1, graph.node(n).types[0].dims).astype(np.float32) for n in graph.inputs]


def _differs(found: list[np.ndarray], wanted: list[np.ndarray]) -> str | None:
    for i, (y, ref) in enumerate(zip(found, wanted, strict=True)):
        if y.shape != ref.shape or y.dtype != ref.dtype:
            return f"output {i}: {y.dtype}{y.shape}, expected {ref.dtype}{ref.shape}"
        scale = max(1e-3, float(np.abs(ref).max(initial=0)))
        worst = float(np.abs(y.astype(np.float64) - ref).max(initial=0))
        if not worst <= TOLERANCE * scale:
            return f"output {i}: off by {worst:.3g} of {scale:.3g}"
    return None


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1), st.integers(3, 16))
def test_passes_keep_the_meaning(seed: int, nodes: int) -> None:
    graph = random_graph(seed, nodes)
    given_inputs = _inputs(graph)
    after = canonicalize(graph, check=True)
    complaint = _differs(interpret(after, given_inputs), interpret(graph, given_inputs))
    assert complaint is None, f"{complaint}\n{graph.text()}\n{after.text()}"


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_compiled_graphs_compute_what_the_reference_says(batch: int, tmp_path: Path) -> None:
    graphs = [random_graph(1000 * batch + i, nodes=6 + i % 16) for i in range(GRAPHS)]
    entries = [EntryGraph(g, f"e{i}") for i, g in enumerate(graphs)]
    compile_entries(entries, get("host"), tmp_path / "random.so", Options(check=True))
    session = load(tmp_path / "random.so", threads=2)
    complaints = []
    for i, graph in enumerate(graphs):
        arrays = _inputs(graph)
        feeds = {graph.node(n).names[0]: a for n, a in zip(graph.inputs, arrays, strict=True)}
        complaint = _differs(session.run(None, feeds, entry=f"e{i}"), interpret(graph, arrays))
        if complaint:
            complaints.append(f"seed {1000 * batch + i}: {complaint}\n{graph.text()}")
    assert not complaints, f"{len(complaints)} of {GRAPHS} differ\n" + "\n".join(complaints[:3])
