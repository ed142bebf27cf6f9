"""Dynamic quantization: exact products of steps that are made while the network runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.interpret import interpret, interpret_all
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.quantize.dynamic import quantize_dynamic
from nervure.compiler.quantize.settings import Settings
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.runtime.session import load
from recurrent_nets import network


def products(*shape: int, columns: int = 7, seed: int = 0) -> tuple[Graph, np.ndarray]:
    """Two matmuls of one input, one with a bias, and rows of very different size."""
    rng = np.random.default_rng(seed)
    graph = Graph("products")
    x = graph.input("x", TensorType("float32", shape))
    for name in ("p", "q"):
        w = graph.const(rng.standard_normal((shape[-1], columns)).astype(np.float32), f"{name}.weight")
        y = graph.add("matmul", x, w, names=[name])
        if name == "q":
            y = graph.add("add", y, graph.const(rng.standard_normal(columns).astype(np.float32), "q.bias"))
        graph.output(y, f"out_{name}")
    size = np.exp(rng.uniform(-6, 6, (*shape[:-1], 1)))
    return graph, (rng.standard_normal(shape) * size).astype(np.float32)


def by_hand(x: np.ndarray, w: np.ndarray, per_row: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sums of steps, and the real product."""
    reach = np.abs(x).max(axis=-1, keepdims=True) if per_row else np.abs(x).max()
    scale = (np.maximum(reach, np.float32(1e-30)) * np.float32(1 / 127)).astype(np.float32)
    each = np.abs(w).max(axis=0) / 127
    steps = [np.clip(np.rint(v / s), -128, 127).astype(np.int64) for v, s in ((x, scale), (w, each.astype(np.float32)))]
    sums = steps[0] @ steps[1]
    return sums, sums.astype(np.float32) * scale * each.astype(np.float32)


@pytest.mark.parametrize("per_row", [True, False], ids=["rows", "tensor"])
def test_the_sums_are_exact(per_row: bool) -> None:
    graph, x = products(5, 33)
    made = quantize_dynamic(graph, per_row=per_row)
    assert len(made.products) == 2 and len(made.graph.find("quantize")) == 1
    made.graph.check()
    every = interpret_all(made.graph, [x])
    for key, name in zip(made.graph.find("matmul_integer"), ("p", "q"), strict=True):
        w = graph.constant(graph.args(graph.find("matmul")[0 if name == "p" else 1])[1])
        sums, real = by_hand(x, w, per_row)
        np.testing.assert_array_equal(every[made.graph.node(key).names[0]], sums)
        np.testing.assert_allclose(every[name], real, rtol=1e-6)


def test_a_scale_for_each_row_keeps_small_rows() -> None:
    graph, x = products(40, 64)
    exact = interpret(graph, [x])[0]
    rows, whole = (interpret(quantize_dynamic(graph, per_row=p).graph, [x])[0] for p in (True, False))

    def worst(y: np.ndarray) -> float:
        return float((np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)).max())

    assert worst(rows) < 0.03 < 0.5 < worst(whole)


def test_rows_of_zeros_nan_and_infinity() -> None:
    """Zeros give zeros; NaN and infinity show up in their own row and nowhere else."""
    graph, x = products(4, 16)
    plain = interpret(quantize_dynamic(graph).graph, [x])[0]
    x = x.copy()
    x[0], x[1, 3], x[2, 5] = 0.0, np.nan, np.inf
    y = interpret(quantize_dynamic(graph).graph, [x])[0]
    assert (y[0] == 0).all() and not np.isfinite(y[1:3]).any()
    np.testing.assert_array_equal(y[3], plain[3])


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_recurrent_layers(op: str) -> None:
    graph, x = network(op)
    made = quantize_dynamic(graph)
    assert [m.name for m in made.recurrences] == ["cell"] and len(made.products) == 1
    lowered = canonicalize(made.graph, check=True)
    assert lowered.find(f"{op}_integer") and not lowered.find(op)
    got, wanted = (np.stack([interpret(g, [one[None]])[0] for one in x]) for g in (lowered, graph))
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    for wild in (np.nan, np.inf):
        broken = x[:1].copy()
        broken[0, 3, 2] = wild
        assert not np.isfinite(interpret(lowered, [broken])[0]).any()


def test_what_stays_in_float() -> None:
    graph, _ = products(3, 8)
    assert quantize_dynamic(graph, Settings(float_patterns=("p",))).floats == {"p": "a float pattern names it"}
    with pytest.raises(NervureError, match="matches nothing"):
        quantize_dynamic(graph, Settings(float_patterns=("nothing*",)))
    pair = Graph("pair")
    a, b = (pair.input(n, TensorType("float32", (4, 4))) for n in "ab")
    pair.output(pair.add("matmul", a, b, names=["scores"]))
    assert quantize_dynamic(pair).floats == {"scores": "its weights are not constant"}


def test_tables() -> None:
    """A table that is looked up in is stored as int8."""
    rng = np.random.default_rng(0)
    graph = Graph("table")
    table = graph.const(rng.standard_normal((100, 48)).astype(np.float32), "table")
    rows = graph.add("gather", table, graph.input("i", TensorType("int64", (6,))), axis=0)
    graph.output(graph.add("tanh", rows), "y")
    made = quantize_dynamic(graph)
    assert made.tables == ("table",)
    lowered = canonicalize(made.graph, check=True)
    assert lowered.find("gather_narrow") and max(lowered.node(k).array.nbytes for k in lowered.find("const")) == 4800
    i = np.array([0, 99, 5, 5, 17, 50])
    apart = np.abs(interpret(lowered, [i])[0] - interpret(graph, [i])[0])
    assert 0 < apart.max() < 0.02


@pytest.mark.parametrize("name", ["p.weight", "table", "r", "b"])
def test_weights_that_are_not_finite(name: str) -> None:
    graph = network("lstm")[0] if len(name) == 1 else products(2, 4)[0]
    if name == "table":
        table = graph.const(np.ones((100, 50), np.float32), name)
        graph.output(graph.add("gather", table, graph.input("i", TensorType("int64", (2,))), axis=0))
    (key,) = [k for k in graph.find("const") if graph.node(k).names[0] == name]
    broken = graph.node(key).array.copy()
    broken.flat[1] = np.nan
    graph.set_node(key, attrs={"value": broken})
    with pytest.raises(NervureError, match="NaN or infinity"):
        quantize_dynamic(graph)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_compiled_as_interpreted(tmp_path: Path, data: st.DataObject) -> None:
    """Without a bias every operation is rounded once: the program gives the interpreter's bits."""
    rows = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=2), "rows")
    shape = (*rows, data.draw(st.integers(1, 200), "depth"))
    graph, x = products(*shape, columns=data.draw(st.integers(1, 70), "columns"), seed=data.draw(st.integers(0, 99)))
    made = quantize_dynamic(graph, per_row=data.draw(st.booleans(), "per row")).graph
    compile_entries([EntryGraph(made, "infer")], targets.host(), tmp_path / "m.so", Options())
    got = load(tmp_path / "m.so").run(None, {"x": x})
    wanted = interpret(canonicalize(made), [x])
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_allclose(got[1], wanted[1], rtol=3e-7, atol=3e-7 * float(np.abs(wanted[1]).max()))


@pytest.mark.slow
@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_numbers_that_are_not_finite_as_compiled(tmp_path: Path, wild: float) -> None:
    for number, (graph, x) in enumerate((products(4, 40), (network("gru")[0], network("gru")[1][:1]))):
        broken = x.copy()
        broken[(0, 3, 2) if number else (1, 17)] = wild
        made = quantize_dynamic(graph).graph
        compile_entries([EntryGraph(made, "infer")], targets.host(), tmp_path / f"{number}.so", Options())
        got, wanted = (
            load(tmp_path / f"{number}.so").run(None, {"x": broken})[0],
            interpret(canonicalize(made), [broken])[0],
        )
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
        assert not np.isfinite(got if number else got[1]).any()


@pytest.mark.slow
def test_onnx_runtime_runs_it(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    import nervure as nv

    for number, (graph, x) in enumerate((products(6, 40), (network("lstm")[0], network("lstm")[1][:1]))):
        made = quantize_dynamic(graph).graph
        nv.save_onnx(made, tmp_path / f"{number}.onnx")
        theirs = ort.InferenceSession(tmp_path / f"{number}.onnx").run(None, {"x": x})
        for a, b in zip(theirs, interpret(canonicalize(made), [x]), strict=True):
            tolerance = 1e-6 if number == 0 else 0.03  # its LSTM's hidden state is a float
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
