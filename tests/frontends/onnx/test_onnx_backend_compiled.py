"""The same node tests, compiled: each chunk of models becomes the entry points of one artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import test_onnx_backend as backend
from nervure import targets
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.errors import NervureError
from nervure.runtime.session import load

CHUNK = 60

# Tests that pass interpreted and fail compiled, with the reason.
MISSES: dict[str, str] = {}

Item = tuple[Any, backend.NervureRep, list[np.ndarray], list[np.ndarray]]


def _prepared() -> tuple[list[Item], dict[str, str]]:
    """The node tests that ONNX Runtime passes, imported; and why some were not."""
    items, missed = [], {}
    for case in backend._cases():
        inputs, outputs = ([backend._array(a) for a in side] for side in case.data_sets[0])
        feeds = {i.name: a for i, a in zip(case.model.graph.input, inputs, strict=False)}
        if backend._oracle_passes(case, feeds, outputs):
            try:
                items.append((case, backend.NervureBackend.prepare(case.model, inputs=feeds), inputs, outputs))
            except NervureError as error:
                missed[case.name] = str(error)
    return items, missed


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _problems(items: list[Item], out: Path) -> dict[str, str]:
    """What goes wrong in a chunk; a model that cannot be compiled is found by halving."""
    try:
        compile_entries([EntryGraph(rep.graph, case.name) for case, rep, _, _ in items], targets.get("host"), out)
    except (NervureError, RuntimeError) as error:
        if len(items) == 1:
            return {items[0][0].name: str(error)[:300]}
        half = len(items) // 2
        left = _problems(items[:half], out.with_name(out.stem + "a.so"))
        return left | _problems(items[half:], out.with_name(out.stem + "b.so"))
    session = load(out)
    found = {}
    for case, rep, inputs, outputs in items:

        def run(graph: Any, feeds: Any, entry: str = case.name) -> list[np.ndarray]:
            results = session.run(None, {n: _bits(a) for n, a in feeds.items()}, entry=entry)
            kinds = [graph.type(v).dtype for v in graph.outputs]
            return [r.view(_bfloat16()) if k == "bfloat16" else r for r, k in zip(results, kinds, strict=True)]

        rep.engine, rep.graph.meta = run, {k: v for k, v in rep.graph.meta.items() if k != "counts"}
        try:
            problem = backend._differs(case, rep.run(inputs), outputs)
        except (NervureError, ValueError) as error:
            problem = str(error)
        if problem:
            found[case.name] = problem
    return found


def _bfloat16() -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16


@pytest.mark.slow
def test_node_tests_compiled(tmp_path: Path) -> None:
    items, missed = _prepared()
    for i in range(0, len(items), CHUNK):
        missed |= _problems(items[i : i + CHUNK], tmp_path / f"chunk{i}.so")
    total = len(items) + len(set(missed) - {case.name for case, *_ in items})
    print(f"{total - len(missed)} of the {total} node tests that ONNX Runtime passes")
    for name, problem in sorted(missed.items()):
        print(f"  {name}: {problem}")
    assert total - len(missed) >= 0.95 * total
    assert set(missed) <= {*backend.MISSES, *MISSES}, missed
