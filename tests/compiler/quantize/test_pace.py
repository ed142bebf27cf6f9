"""Which layers are faster in integers: times per layer, and the tuning record that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.quantize.pace import Pace, paces, read_record, write_record
from nervure.compiler.quantize.place import insert, sites
from nervure.compiler.quantize.scheme import affine, symmetric
from nervure.compiler.quantize.settings import Settings
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

HOST = targets.host()


def _pair() -> tuple[Graph, Graph, tuple[object, ...]]:
    """Two convolutions, in float and with quantizers."""
    rng = np.random.default_rng(0)
    graph = Graph("pair")
    value = graph.input("x", TensorType("float32", (1, 16, 12, 12)))
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    for name in ("first", "second"):
        weight = graph.const(rng.normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32), f"{name}_w")
        value = graph.add("conv", value, weight, names=[name], origin=(f"node {name}",), **window)
    graph.output(value)
    plain = canonicalize(graph)
    found = sites(plain, Settings(outputs=True))
    schemes = {a.name: affine(-3, 3, a.dtype) for a in found.activations}
    for layer in found.layers:
        weight = plain.constant(plain.args(layer.node)[1])
        assert weight is not None
        schemes[layer.weight] = symmetric(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), 8)
    return plain, insert(plain, schemes), found.layers


@pytest.mark.parametrize("measured", [False, True])
def test_every_layer_has_both_times(measured: bool) -> None:
    plain, quantized, layers = _pair()
    found = paces(plain, quantized, layers, HOST, measured=measured)
    assert [p.layer for p in found] == ["first", "second"]
    assert all(0 < t < 1e5 for p in found for t in (p.float_us, p.integer_us))


def test_estimates_do_not_change() -> None:
    plain, quantized, layers = _pair()
    assert paces(plain, quantized, layers, HOST, measured=False) == paces(
        plain, quantized, layers, HOST, measured=False
    )


def test_a_layer_must_gain_something() -> None:
    assert Pace("a", 10.0, 10.0).slower and Pace("a", 10.0, 12.0).slower
    assert not Pace("a", 10.0, 5.0).slower


def test_a_record_gives_back_what_was_measured(tmp_path: Path) -> None:
    path, found = tmp_path / "tuning.json", (Pace("a", 10.25, 4.5), Pace("b", 3.0, 4.0))
    write_record(path, HOST, found)
    first = path.read_bytes()
    assert read_record(path, HOST, ["b", "a", "c"]) == found
    write_record(path, HOST, reversed(found))
    assert path.read_bytes() == first and str(tmp_path).encode() not in first


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read"),
        ("[1, 2]", "cannot be read"),
        ('{"format": 99, "layers": {}, "machine": {}}', "cannot be read"),
        ('{"format": 1, "layers": {"a": {"float_us": NaN, "integer_us": 1}}, "machine": {}}', "cannot be read"),
        ('{"format": 1, "layers": {}, "machine": {"lanes": 1}}', "another machine"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(content)
    with pytest.raises(NervureError, match=complaint):
        read_record(path, HOST, ["a"])


def test_a_record_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    write_record(path, HOST, [Pace("a", 1.0, 2.0)])
    assert json.loads(path.read_text())["layers"] == {"a": {"float_us": 1.0, "integer_us": 2.0}}
    with pytest.raises(NervureError, match="another network"):
        read_record(path, HOST, ["b"])
    with pytest.raises(NervureError, match="cannot be read"):
        read_record(tmp_path / "absent.json", HOST, ["a"])
