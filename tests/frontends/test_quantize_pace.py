"""The faster one wins: layers that integers do not speed up stay in float, by a record or by the cost model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.ir import Graph
from nervure.compiler.quantize.pace import Pace, write_record
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

SAMPLES = np.random.default_rng(0).normal(size=(12, 8, 10, 10)).astype(np.float32)
QUICK: dict[str, Any] = {"method": "minmax", "bias_correction": False, "latency": False}


def _net() -> Graph:
    rng = np.random.default_rng(1)
    graph = Graph("net")
    value = graph.input("x", TensorType("float32", (1, 8, 10, 10)))
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    for name in ("first", "second", "third"):
        weight = graph.const(rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32), f"{name}_w")
        value = graph.add("conv", value, weight, names=[name], origin=(f"node {name}",), **window)
    graph.output(value, "y")
    return graph


def _formats(made: Any) -> dict[str, str]:
    return {row["name"]: row["format"] for row in made.report.layers}


def _record(path: Path, **integer_us: float) -> Path:
    write_record(path, targets.host(), [Pace(name, 10.0, us) for name, us in integer_us.items()])
    return path


def test_a_record_decides(tmp_path: Path) -> None:
    record = _record(tmp_path / "tuning.json", first=4.0, second=12.0, third=5.0)
    made = nv.quantize(_net(), SAMPLES, tune=record, **QUICK)
    assert _formats(made) == {"first": "int8", "second": "float", "third": "int8"}
    (row,) = (r for r in made.report.layers if r["name"] == "second")
    assert (row["float_us"], row["integer_us"]) == (10.0, 12.0) and "12.0 us" in row["why"]
    assert any("second" in note and "stay in float" in note for note in made.report.notes)


def test_size_takes_them_all(tmp_path: Path) -> None:
    record = _record(tmp_path / "tuning.json", first=4.0, second=12.0, third=5.0)
    made = nv.quantize(_net(), SAMPLES, tune=record, optimize="size", **QUICK)
    assert set(_formats(made).values()) == {"int8"}


def test_a_record_is_measured_once_and_then_read(tmp_path: Path) -> None:
    record = tmp_path / "tuning.json"
    first = nv.quantize(_net(), SAMPLES, tune=record, **QUICK)
    held = record.read_bytes()
    assert sorted(json.loads(held)["layers"]) == ["first", "second", "third"]
    second = nv.quantize(_net(), SAMPLES, tune=record, **QUICK)
    assert record.read_bytes() == held and _formats(first) == _formats(second)


def test_without_a_record_the_cost_model_decides() -> None:
    """The layers' estimates stand in the report; what it left in float is estimated slower in integers."""
    made = nv.quantize(_net(), SAMPLES, **QUICK)
    for row in made.report.layers:
        assert row["float_us"] > 0 and row["integer_us"] > 0
        if row["format"] == "float":
            assert row["integer_us"] > 0.97 * row["float_us"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimize": "fast"}, "unknown"),
        ({"tune": "record.txt"}, "JSON"),
        ({"tune": "absent/record.json"}, "no such folder"),
        ({"tune": "record.json", "target": "rpi4"}, "cannot be timed|rpi4"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NervureError, match=complaint):
        nv.quantize(_net(), SAMPLES, **QUICK, **options)
    assert not list(tmp_path.iterdir())
