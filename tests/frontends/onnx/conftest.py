"""Helpers for the ONNX tests: small models in a line, and the comparison with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nervure.compiler.interpret import interpret
from nervure.frontends.onnx import load
from onnx import helper, numpy_helper

ort.set_default_logger_severity(4)

Arrays = Mapping[str, np.ndarray]


def build(
    nodes: Sequence[Any],
    inputs: Arrays,
    outputs: Sequence[str] = ("y",),
    consts: Arrays | None = None,
    opset: int = 21,
    dims: Mapping[str, Sequence[int | str]] | None = None,
    functions: Sequence[Any] = (),
) -> Any:
    """A model of these nodes; ``dims`` declares symbolic shapes, output types are left to be inferred."""

    def info(name: str, array: np.ndarray) -> Any:
        shape = list((dims or {}).get(name, array.shape))
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

    graph = helper.make_graph(
        list(nodes),
        "net",
        [info(n, a) for n, a in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (consts or {}).items()],
    )
    domains = {f.domain for f in functions}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in sorted(domains))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def reference(model: Any, feeds: Arrays) -> list[np.ndarray]:
    return list(ort.InferenceSession(model.SerializeToString()).run(None, dict(feeds)))


def imported(model: Any, feeds: Arrays, **options: Any) -> list[np.ndarray]:
    """The imported graph's outputs; those of bounded length are cut to their count."""
    graph = load(model, **options)
    graph.check()
    results = interpret(graph, feeds)
    for index, (count, axis) in graph.meta.get("counts", {}).items():
        results[index] = np.take(results[index], range(int(results[count])), axis=axis)
    return results[: len(model.graph.output)]


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.kind in "biu":
        np.testing.assert_array_equal(found, wanted)
    else:
        scale = float(np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0.0)) or 1.0
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * scale)


def agree(model: Any, feeds: Arrays, tolerance: float = 1e-4, **options: Any) -> None:
    """Imports the model and holds every output against ONNX Runtime's."""
    for found, wanted in zip(imported(model, feeds, **options), reference(model, feeds), strict=True):
        assert_close(found, wanted, tolerance)


@pytest.fixture(scope="session")
def onnx_kit() -> SimpleNamespace:
    """``build``, ``agree``, ``imported``, ``reference``, ``assert_close`` and onnx's ``helper``."""
    return SimpleNamespace(
        build=build,
        agree=agree,
        imported=imported,
        reference=reference,
        assert_close=assert_close,
        node=helper.make_node,
        helper=helper,
    )
