"""Random quantized graphs: they become integers entirely, compiled code computes the same bits, and ONNX Runtime the
same but for single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.interpret import interpret, interpret_all
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.runtime.session import load
from nervure.targets import get
from random_quantized import Maker, layer_of

BATCHES, GRAPHS = 4, 40
SPREAD = 1.0  # steps of a layer's result


def _floats(graph: Graph) -> list[str]:
    ops = (graph.node(k) for k in graph)
    return [n.op for n in ops if n.op not in ("const", "input") and any(t.dtype == "float32" for t in n.types)]


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_every_layer_becomes_integers(seed: int, layers: int) -> None:
    made = Maker(seed, layers)
    lowered = canonicalize(made.graph, check=True)
    assert not _floats(lowered), f"{made.graph.text()}\n{lowered.text()}"
    for found, wanted in zip(interpret(lowered, made.feeds), interpret(made.graph, made.feeds), strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)


def _layers(made: Maker) -> list[tuple[Graph, dict[str, np.ndarray], Value]]:
    """Each layer as a graph of its own, with the integers that the whole graph gives it."""
    values = interpret_all(made.graph, made.feeds)
    found = []
    for q in made.steps[len(made.feeds) :]:
        graph, sources = layer_of(made.graph, q)
        feeds = {f"x{i + 1}": values[made.graph.tensor_name(v)] for i, v in enumerate(sources)}
        found.append((graph, feeds, q))
    return found


def _session(onnxruntime: Any, model: bytes) -> Any:
    """Unoptimized where its optimizer makes something that it then refuses."""
    try:
        return onnxruntime.InferenceSession(model)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(model, options)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_each_layer_is_within_a_step_of_onnx_runtime(seed: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from nervure.frontends.onnx import to_model

    onnxruntime.set_default_logger_severity(4)
    for graph, feeds, _ in _layers(Maker(seed, 4)):
        (found,) = interpret(canonicalize(graph), feeds)
        (wanted,) = _session(onnxruntime, to_model(graph).SerializeToString()).run(None, feeds)
        apart = np.abs(found.astype(int) - wanted.astype(int))
        assert apart.max(initial=0) <= SPREAD, f"{apart.max()} steps in {(apart > 1).mean():.1%}\n{graph.text()}"


def _compared(seeds: range, layers: int, path: Path) -> list[str]:
    """What differs between compiled graphs and the interpreter."""
    made = [Maker(seed, layers + seed % 7) for seed in seeds]
    entries = [EntryGraph(m.graph, f"e{i}") for i, m in enumerate(made)]
    compile_entries(entries, get("host"), path, Options(check=True))
    session, complaints = load(path, threads=2), []
    for i, m in enumerate(made):
        feeds = {m.graph.node(n).names[0]: a for n, a in zip(m.graph.inputs, m.feeds, strict=True)}
        wanted = interpret(canonicalize(m.graph), m.feeds)
        for a, b in zip(session.run(None, feeds, entry=f"e{i}"), wanted, strict=True):
            if a.dtype != b.dtype or not np.array_equal(a, b):
                complaints.append(f"seed {seeds[i]}: {(a != b).mean():.1%} differ\n{canonicalize(m.graph).text()}")
                break
    return complaints


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_compiled_graphs_give_the_same_bits(batch: int, tmp_path: Path) -> None:
    complaints = _compared(range(1000 * batch, 1000 * batch + GRAPHS), 3, tmp_path / "random.so")
    assert not complaints, f"{len(complaints)} of {GRAPHS} differ\n" + "\n".join(complaints[:3])
