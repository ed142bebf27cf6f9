"""The exporter: every operator of the table, whole graphs, names, stored tensors, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from nervure.compiler.interpret import interpret  # noqa: E402
from nervure.compiler.ir import Graph  # noqa: E402
from nervure.compiler.ops import OPS, integers, recurrent_integers, weights  # noqa: E402
from nervure.compiler.ops.record import Case  # noqa: E402
from nervure.compiler.ops.sampling import sample_inputs  # noqa: E402
from nervure.compiler.types import TensorType, type_of  # noqa: E402
from nervure.errors import NervureError  # noqa: E402
from nervure.frontends.onnx import exporter, load, save, to_model  # noqa: E402

F32 = TensorType("float32", (2, 3))
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2

# Cases whose exported model is right and that ONNX Runtime cannot run or sees otherwise.
NOT_IN_ORT = {
    "bfloat16": "its Python interface takes no bfloat16",
    "grid_sample cubic 3-D": "it has no kernel",
    "clip of NaN": "its vector code gives a bound, ONNX leaves it open",
}


def _skipped(name: str, case: Case, arrays: tuple) -> bool:
    types = [type_of(a) for a in arrays if a is not None]
    if "bfloat16" in [*(t.dtype for t in types), case.attrs.get("to")]:
        return True
    if name == "grid_sample" and case.attrs["mode"] == "cubic" and types[0].rank == 5:
        return True
    return name == "clip" and any(
        t.dtype.startswith("float") and np.isnan(a).any() for t, a in zip(types, arrays, strict=True)
    )


# What only a training step is made of: a model is exported before it is differentiated.
TRAINING = {"conv_grad_weight", "max_pool_grad", "random_bits"}
TRAINING |= {f"{kind}_scan{end}" for kind in ("lstm", "gru", "rnn") for end in ("", "_grad")}
# What passes make of a quantized graph: a model is exported before that.
INTEGERS = {op.name for family in (integers, recurrent_integers, weights) for op in family.OPS}


def _cases() -> Iterator[tuple[str, int]]:
    for op in OPS.values():
        if op.name not in TRAINING | INTEGERS and op.cases is not None and op.reference is not None:
            yield from ((op.name, i) for i, _ in enumerate(op.cases()))


def _graph_of(name: str, index: int) -> tuple[Graph, dict[str, np.ndarray], Case, tuple]:
    case = list(OPS[name].cases())[index]
    arrays = sample_inputs(case, index)
    graph = Graph("case")
    args = [None if a is None else graph.input(f"x{k}", type_of(a)) for k, a in enumerate(arrays)]
    value = graph.add(name, *args, origin=("case",), **case.attrs)
    for k, output in enumerate(graph.values(value.node)):
        graph.output(output, f"y{k}")
    return graph, {f"x{k}": a for k, a in enumerate(arrays) if a is not None}, case, arrays


@pytest.mark.parametrize("name", sorted({n for n, _ in _cases()}))
def test_operator_round_trip(name: str, onnx_kit: SimpleNamespace) -> None:
    """ONNX Runtime and the re-imported graph compute what the graph computes."""
    for _, index in [c for c in _cases() if c[0] == name]:
        graph, feeds, case, arrays = _graph_of(name, index)
        wanted = interpret(graph, feeds)
        model = to_model(graph)
        onnx.checker.check_model(model, full_check=not model.functions)
        half = any(t.dtype == "float16" for v in graph.outputs for t in [graph.type(v)])
        tolerance = 4e-3 if half else 2e-5
        if not _skipped(name, case, arrays):
            for found, want in zip(onnx_kit.reference(model, feeds), wanted, strict=True):
                onnx_kit.assert_close(found, want, tolerance)
        again = load(model.SerializeToString())
        again.check()
        for found, want in zip(interpret(again, feeds), wanted, strict=True):
            onnx_kit.assert_close(
                found.astype(want.dtype), want, max(tolerance, 1e-2 if "bfloat16" in str(want.dtype) else 0)
            )


def test_every_operator_has_an_onnx_form() -> None:
    from nervure.compiler.ir import STORED
    from nervure.frontends.onnx.export_rules import EXPORT

    assert set(OPS) - set(STORED) - {"fused"} - TRAINING - INTEGERS == set(EXPORT) - {"conv_integer", "matmul_integer"}


def test_a_model_survives_the_round_trip(onnx_kit: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    node = onnx_kit.node
    consts = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32)}
    nodes = [
        node("Conv", ["x", "w", "b"], ["conv out"], pads=[1, 1, 1, 1]),
        node("Relu", ["conv out"], ["relu:0"]),
        node("GlobalAveragePool", ["relu:0"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("Softmax", ["flat"], ["prob"]),
    ]
    feeds = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    model = onnx_kit.build(nodes, feeds, ["prob", "relu:0"], consts)
    written = to_model(load(model))
    for a, b in zip(onnx_kit.reference(written, feeds), onnx_kit.reference(model, feeds), strict=True):
        onnx_kit.assert_close(a, b, 1e-6)
    assert {o for n in written.graph.node for o in n.output} >= {o for n in nodes for o in n.output}
    assert {t.name for t in written.graph.initializer} >= {"w", "b"}
    assert to_model(load(written)).SerializeToString() == written.SerializeToString()


def test_outputs_that_are_inputs_constants_or_twins(onnx_kit: SimpleNamespace) -> None:
    graph = Graph("odd")
    x = graph.input("x", F32)
    y = graph.add("relu", x, names=["twin"])
    graph.output(x, "same")
    graph.output(graph.const(X, "stored"), "fixed")
    graph.output(y, "first")
    graph.output(y, "second")
    graph.output(graph.add("neg", y, names=["first"]), "last")  # its own name is the one of another output
    found = onnx_kit.reference(to_model(graph), {"x": X})
    for a, b in zip(found, interpret(graph, {"x": X}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_param_and_state_become_defaults_and_next_values(onnx_kit: SimpleNamespace) -> None:
    graph = Graph("counter")
    x, weight = graph.input("x", F32), graph.param(X, "weight")
    total = graph.state(np.zeros((2, 3), np.float32), "total")
    new = graph.add("add", total, graph.add("mul", x, weight), names=["sum"])
    graph.bind(total, new)
    graph.output(new, "y")
    model = to_model(graph)
    assert [i.name for i in model.graph.input] == ["x", "total"]
    assert [o.name for o in model.graph.output] == ["y", "total.next"]
    first, kept = onnx_kit.reference(model, {"x": X})
    np.testing.assert_array_equal(first, X * X)
    second, _ = onnx_kit.reference(model, {"x": X, "total": kept})
    np.testing.assert_array_equal(second, 2 * X * X)


def test_fused_operations_are_written_out(onnx_kit: SimpleNamespace) -> None:
    body = Graph("body")
    a = body.input("a", F32)
    half = body.add("mul", a, body.const(np.float32(0.5)), names=["half"])
    body.output(body.add("relu", half), "r")
    body.output(half)
    graph = Graph("outer")
    x = graph.input("x", F32)
    fused = graph.add("fused", x, body=body, names=["r", "h"])
    again = graph.add("fused", fused, body=body)
    for value in (*graph.values(fused.node), *graph.values(again.node)):
        graph.output(value)
    for a, b in zip(onnx_kit.reference(to_model(graph), {"x": X}), interpret(graph, {"x": X}), strict=True):
        np.testing.assert_array_equal(a, b)


def _relu() -> Graph:
    graph = Graph("relu")
    weight = graph.const(np.arange(3000, dtype=np.float32).reshape(1000, 3), "weight")
    x = graph.input("x", F32)
    graph.output(graph.add("relu", graph.add("matmul", weight, graph.add("transpose", x, perm=(1, 0)))), "y")
    return graph


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    save(_relu(), tmp_path / "a.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    with pytest.raises(NervureError, match="cannot be written"):
        save(_relu(), tmp_path / "no folder" / "a.onnx")
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(NervureError, match="cannot be written"):
        save(_relu(), tmp_path / "taken.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "taken.onnx"]


def test_weights_beyond_the_limit_go_to_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(exporter, "EXTERNAL_BYTES", 1000)
    save(_relu(), tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    (found,) = ort.InferenceSession(tmp_path / "big.onnx").run(None, {"x": X})
    (wanted,) = interpret(load(tmp_path / "big.onnx"), {"x": X})
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert to_model(_relu()).SerializeToString(deterministic=True) == to_model(_relu()).SerializeToString(
        deterministic=True
    )


def test_names_at_the_face_of_the_package(tmp_path: Path) -> None:
    import nervure as nv

    nv.save_onnx(_relu(), tmp_path / "a.onnx")
    assert nv.load_onnx(tmp_path / "a.onnx").output_names == ["y"]
