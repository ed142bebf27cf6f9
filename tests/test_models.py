"""Whole models against ONNX Runtime: on this machine by default and exactly, and under the ARM emulators."""

from __future__ import annotations

from pathlib import Path

import models
import nervure as nv
import numpy as np
import onnx
import pytest
from nervure.compiler.interpret import interpret
from nervure.frontends import verify
from nervure.frontends.model import Model

SEEDS = (1, 2, 3)
# Arena over the lower bound, and packed weights over the initializers, in the build that the latency is measured on.
ARENA_LIMIT, WEIGHT_LIMIT = 1.4, 1.5


def _sets(model: Model, real: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    return {"real": real} | {f"seed {s}": verify.random_inputs(model.get_inputs(), s) for s in SEEDS}


def _worst(model: Model, path: Path, sets: dict[str, dict[str, np.ndarray]]) -> float:
    return max(check.worst for check in verify.verify(model.artifact, path, sets))


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    path, real = models.model(name)
    model = nv.compile(path, out=tmp_path / "model.so")
    assert _worst(model, path, _sets(model, real)) <= verify.TOLERANCE["default"]
    report = model.report
    assert report.arena_bytes <= ARENA_LIMIT * report.arena_lower_bound_bytes
    assert report.weights_bytes <= WEIGHT_LIMIT * report.source_weight_bytes + 4096


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_agrees_exactly_when_asked(name: str, tmp_path: Path) -> None:
    path, real = models.model(name)
    _agrees_exactly(nv.compile(path, precision="exact", out=tmp_path / "model.so"), path, real)


def _agrees_exactly(model: Model, path: Path, real: dict[str, np.ndarray]) -> None:
    for check in verify.verify(model.artifact, path, _sets(model, real)):
        if check.worst > verify.TOLERANCE["exact"]:
            assert check.worst <= verify.TOLERANCE["exact"] + _rounding_of_onnxruntime(path, check.label, model, real)


def _rounding_of_onnxruntime(path: Path, label: str, model: Model, real: dict[str, np.ndarray]) -> float:
    """How far ONNX Runtime itself is from the reference, which accumulates in float64."""
    inputs = _sets(model, real)[label]
    found = verify.reference(path, inputs)
    return max(verify.slice_error(y, r) for y, r in zip(found, interpret(nv.load_onnx(path), inputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_what_a_last_softmax_reads_agrees_too(name: str, tmp_path: Path) -> None:
    path, real = models.model(name)
    opened = _with_logits(path, tmp_path / "logits.onnx")
    if opened is None:
        pytest.skip("the model does not end in a softmax")
    model = nv.compile(opened, out=tmp_path / "model.so")
    assert _worst(model, opened, _sets(model, real)) <= verify.TOLERANCE["default"]
    _agrees_exactly(nv.compile(opened, precision="exact", out=tmp_path / "exact.so"), opened, real)


def _with_logits(path: Path, target: Path) -> Path | None:
    """The model with the input of each softmax that makes an output as one more output; None where there is none."""
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    lasts = [made[o.name] for o in model.graph.output if o.name in made]
    while any(n.op_type in ("Reshape", "Identity", "Squeeze", "Flatten") and n.input[0] in made for n in lasts):
        lasts = [made.get(n.input[0], n) if n.op_type != "Softmax" else n for n in lasts]
    wanted = sorted({n.input[0] for n in lasts if n.op_type == "Softmax"})
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in wanted)
    onnx.save(model, target)
    return target if wanted else None


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_small_weights_when_asked(name: str, tmp_path: Path) -> None:
    path, real = models.model(name)
    model = nv.compile(path, optimize="size", out=tmp_path / "model.so")
    assert model.report.weights_bytes <= 1.02 * model.report.source_weight_bytes + 4096
    assert _worst(model, path, {"real": real}) <= verify.TOLERANCE["default"]


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ["aarch64", "armv7"])
@pytest.mark.parametrize("name", models.names())
@pytest.mark.sampled(3)
def test_agrees_under_the_arm_emulator(name: str, target: str, tmp_path: Path) -> None:
    path, real = models.model(name)
    model = nv.compile(path, target=target, out=tmp_path / "model.so")
    try:
        assert _worst(model, path, {"real": real}) <= verify.TOLERANCE["default"]
    except nv.NervureError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise


def test_the_shipped_model_sees_a_cat(tmp_path: Path) -> None:
    path, real = models.model("shipped")
    model = nv.compile(path, out=tmp_path / "model.so")
    labels = (path.parent / "labels.txt").read_text().splitlines()
    best = np.argsort(-model(real["input"])[0])[:3]
    assert {labels[i] for i in best} <= {"Egyptian cat", "tabby", "tiger cat", "lynx"}
