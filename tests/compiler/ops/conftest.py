"""Oracles for single operators: a one-node ONNX model in ONNX Runtime, and onnx's own reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from nervure.compiler.ops import OPS, infer
from nervure.compiler.ops.record import Case
from nervure.compiler.types import type_of

Arrays = Sequence[np.ndarray | None]


def sample_arrays(case: Case, seed: int = 0) -> list[np.ndarray | None]:
    """The arrays of a case: given ones as they are, others drawn from its range."""
    rng = np.random.default_rng(seed)

    def draw(wanted: Any) -> np.ndarray | None:
        if wanted is None or isinstance(wanted, np.ndarray):
            return wanted
        if wanted.dtype == "bool":
            return rng.random(wanted.shape) < 0.5
        if wanted.dtype.startswith("float"):
            return rng.uniform(case.low, case.high, wanted.shape).astype(wanted.dtype)
        return rng.integers(0 if wanted.dtype.startswith("u") else -9, 9, wanted.shape).astype(wanted.dtype)

    return [draw(wanted) for wanted in case.inputs]


def run_reference(op: str, arrays: Arrays, attrs: dict[str, Any]) -> list[np.ndarray]:
    """The record's reference, held against its own inference rule."""
    types, filled = infer(op, [None if a is None else type_of(a) for a in arrays], attrs)
    result = OPS[op].reference(*arrays, **filled)
    found = [np.asarray(r) for r in (result if isinstance(result, tuple) else (result,))]
    assert [type_of(a) for a in found] == list(types)
    return found


def _model(op_type: str, arrays: Arrays, attrs: dict[str, Any], outputs: int, opset: int) -> tuple[Any, dict[str, Any]]:
    import onnx

    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    results = [f"y{i}" for i in range(outputs)]
    typed = {k: v for k, v in attrs.items() if v != ()}  # onnx cannot tell the type of an empty list
    node = onnx.helper.make_node(op_type, names, results, **typed)
    declared = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    graph = onnx.helper.make_graph([node], "one", declared, [onnx.ValueInfoProto(name=n) for n in results])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True), feeds


def run_onnxruntime(
    op_type: str, arrays: Arrays, attrs: dict[str, Any] | None = None, outputs: int = 1, opset: int = 20
) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    model, feeds = _model(op_type, arrays, attrs or {}, outputs, opset)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)  # type: ignore[no-any-return]


def run_onnx_reference(
    op_type: str, arrays: Arrays, attrs: dict[str, Any] | None = None, outputs: int = 1, opset: int = 20
) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    model, feeds = _model(op_type, arrays, attrs or {}, outputs, opset)
    return ReferenceEvaluator(model).run(None, feeds)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def arrays_of() -> Callable[..., list[np.ndarray | None]]:
    return sample_arrays


@pytest.fixture(scope="session")
def reference() -> Callable[..., list[np.ndarray]]:
    return run_reference


@pytest.fixture(scope="session")
def onnxruntime_node() -> Callable[..., list[np.ndarray]]:
    return run_onnxruntime


@pytest.fixture(scope="session")
def onnx_reference_node() -> Callable[..., list[np.ndarray]]:
    return run_onnx_reference
