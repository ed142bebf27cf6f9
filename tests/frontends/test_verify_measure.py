"""The measure itself: it sees a small wrong score beside a large right box, and forgives nothing in integers."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import onnx
import pytest
from nervure.frontends.verify import random_inputs, root_mean_square, slice_error, verify
from nervure.runtime.artifact import Port

F32 = np.float32


def test_a_large_value_does_not_hide_a_small_one() -> None:
    boxes = np.array([[[640.0, 0.5], [320.0, 0.25]]], F32)
    wrong = boxes.copy()
    wrong[0, 1, 1] = 0.3
    assert slice_error(boxes, boxes) == 0
    assert 0.05 < slice_error(wrong, boxes) < 0.11


def test_integers_shapes_types_and_wild_values() -> None:
    a = np.array([1, 2, 3])
    assert slice_error(a, a) == 0
    assert slice_error(a + np.array([0, 0, 1]), a) == float("inf")
    assert slice_error(a.astype(F32), a) == float("inf")
    assert slice_error(np.zeros(3, F32), np.zeros(4, F32)) == float("inf")
    wild = np.array([1.0, np.nan, np.inf], F32)
    assert slice_error(wild, wild) == 0
    assert slice_error(np.array([1.0, np.nan, 5.0], F32), wild) == float("inf")
    assert slice_error(np.array([np.nan, np.nan, np.inf], F32), wild) == float("inf")
    assert slice_error(np.float32(1.0), np.float32(1.0)) == 0
    assert slice_error(np.zeros(3, F32), np.zeros(3, F32)) == 0
    assert slice_error(np.full(3, 1e-9, F32), np.zeros(3, F32)) == float("inf")


QUANTIZED = sorted((Path(__file__).parent / "onnx" / "data").glob("torch_*.onnx"))


@pytest.mark.parametrize("path", QUANTIZED, ids=lambda p: p.stem)
def test_a_quantized_model_is_held_to_the_integer_reference(path: Path, tmp_path: Path) -> None:
    """ONNX Runtime computes part of such a model in float: it is only told how far that is."""
    artifact = nv.compile(path, out=tmp_path / "m.so").artifact
    sets = {"seed 1": random_inputs(artifact.entries[0].inputs, 1)}
    (check,) = verify(artifact, path, sets)
    assert check.against == "the integer reference" and check.holds(1e-3)
    assert check.apart is not None and check.apart < 0.1
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda i: int(np.prod(i.dims)))
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array((array / 2).astype(array.dtype), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    assert not verify(artifact, tmp_path / "other.onnx", sets)[0].holds(1e-3)


def test_root_mean_square() -> None:
    ref = np.array([3.0, 4.0])
    assert root_mean_square(ref, ref) == 0
    assert root_mean_square(ref + np.array([0.3, 0.4]), ref) == pytest.approx(0.1)
    assert root_mean_square(np.zeros(3), ref) == root_mean_square(np.array([np.nan, 1]), ref) == np.inf


def test_random_inputs_of_8_bits_take_all_values() -> None:
    ports = [Port("a", "int8", (100, 100)), Port("b", "uint8", (100, 100)), Port("c", "int64", (100, 100))]
    found = random_inputs(ports, 1)
    assert [(v.dtype.name, v.min(), v.max()) for v in found.values()] == [
        ("int8", -128, 127),
        ("uint8", 0, 255),
        ("int64", 0, 7),
    ]
