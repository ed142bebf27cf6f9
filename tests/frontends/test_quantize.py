"""``nv.quantize``: what it writes and reports, accuracy control on the artifact, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import nervure as nv
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nervure import NervureError
from nervure.compiler.ir import Value
from nervure.compiler.types import TensorType
from nervure.frontends import accuracy
from nervure.frontends.calibration import labelled
from quantize_nets import convnet, labelled_pictures, pictures

ort.set_default_logger_severity(4)
QUIET = {"latency": False, "method": "mse"}


@pytest.fixture(scope="module")
def wound() -> tuple[nv.Graph, np.ndarray, np.ndarray]:
    net = convnet(wounded=True)
    return net, *labelled_pictures(net, 100, seed=2)


def test_a_network_is_quantized_and_written(tmp_path: Path) -> None:
    net = convnet()
    x, y = labelled_pictures(net, 96, seed=3)
    done = nv.quantize(net, x, tmp_path / "q.onnx", labelled=(x, y), method="mse")
    report = done.report
    assert done.path == tmp_path / "q.onnx" and [r["name"] for r in report.layers][:3] == ["conv1", "conv2", "conv3"]
    assert all(r["format"] == "int8" for r in report.layers)
    assert report.accuracy is not None and report.accuracy["float"] == 1.0 and report.accuracy["quantized"] > 0.9
    assert report.outputs[0]["sqnr_db"] > 25 and report.samples == 96 and report.compared == 64
    assert report.size["quantized"]["onnx"] < report.size["float"]["onnx"]
    assert report.ram["quantized"] < report.ram["float"]
    assert report.latency is not None and report.latency["float"] > 0 and len(report.latency["rounds"]["float"]) == 7
    json.dumps(report.as_dict(), allow_nan=False)

    ops = {n.op_type for n in onnx.load(done.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= ops
    session = ort.InferenceSession(done.path)
    theirs = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    ours = np.concatenate([done.model(row[None]) for row in x])
    assert np.square(theirs - ours).sum() < 1e-3 * np.square(ours).sum()


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        nv.quantize(convnet(), pictures(24), tmp_path / name, **QUIET)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
def test_control_repairs_a_wounded_network(wound) -> None:
    net, x, y = wound
    broken = nv.quantize(net, x[:64], labelled=(x, y), per_channel=False, equalize=False, **QUIET)
    assert broken.report.accuracy["drop"] > 0.2, "the wound is none"

    done = nv.quantize(
        net, x[:64], labelled=(x, y), per_channel=False, equalize=False, max_drop="2%", promote="float", **QUIET
    )
    control = done.report.control
    assert control["met"] and control["promoted"] == {"conv2": "float"} and done.report.accuracy["drop"] <= 0.02
    ranked = {r["name"]: r["damage"] for r in done.report.layers if "damage" in r}
    assert max(ranked, key=ranked.__getitem__) == "conv2" and ranked["conv2"] > 0.5
    assert next(r for r in done.report.layers if r["name"] == "conv2")["format"] == "float"
    assert ("--float", "conv2") in done.report.repair
    # on the artifact, by another way than the report's
    again = nv.compile(done.graph)
    assert np.mean([again(row[None]).argmax() == label for row, label in zip(x, y, strict=True)]) >= 0.98


@pytest.mark.slow
def test_control_by_noise_alone_and_by_a_function(wound) -> None:
    net, x, y = wound
    done = nv.quantize(net, x[:48], per_channel=False, equalize=False, max_sqnr_loss="15dB", **QUIET)
    assert done.report.control["met"] and "conv2" in done.report.control["promoted"]
    assert done.report.outputs[0]["sqnr_db"] >= 15
    asked = []

    def evaluate(model) -> float:
        asked.append(model)
        return float(np.mean([model(row[None]).argmax() == k for row, k in zip(x[:50], y, strict=False)]))

    by_function = nv.quantize(net, x[:48], per_channel=False, equalize=False, evaluate=evaluate, max_drop=0.05, **QUIET)
    assert by_function.report.control["met"] and len(asked) >= 3 and by_function.report.accuracy["metric"] == "evaluate"


@pytest.mark.slow
def test_16_bit_activations_do_not_mend_weights(wound) -> None:
    net, x, y = wound
    with pytest.raises(NervureError, match=r"cannot be met(?s:.*)it would take 1 layers in float: --float conv2"):
        nv.quantize(
            net, x[:32], labelled=(x, y), per_channel=False, equalize=False, max_drop="2%", promote="int16", **QUIET
        )


def test_nothing_is_promoted_where_nothing_is_wrong() -> None:
    net, x = convnet(), pictures()
    done = nv.quantize(net, x, max_sqnr_loss="1%", **QUIET)
    assert done.report.control == {**done.report.control, "met": True, "promoted": {}} and done.report.repair == ()


def test_what_the_user_names_stays_in_float() -> None:
    done = nv.quantize(convnet(), pictures(16), float_patterns="conv[12]", **QUIET)
    formats = {r["name"]: r["format"] for r in done.report.layers}
    assert formats["conv1"] == formats["conv2"] == "float" and formats["conv3"] == "int8"
    with pytest.raises(NervureError, match=r"matches nothing(?s:.*)'conv1'"):
        nv.quantize(convnet(), pictures(16), float_patterns="konv1", **QUIET)
    with pytest.raises(NervureError, match="no setting 'float_pattern'"):
        nv.quantize(convnet(), pictures(16), float_pattern="conv1")


# -- documented answers to odd networks and data ---------------------------------------------------------------------


def test_a_channel_of_zeros_gets_the_scale_of_others() -> None:
    done = nv.quantize(convnet(zero_channel=True), pictures(), **QUIET)
    row = next(r for r in done.report.layers if r["name"] == "conv2")
    assert row["weights"]["zero_channels"] == 1 and done.report.outputs[0]["sqnr_db"] > 20
    named = [(done.graph.node(k).names[0], done.graph.node(k)) for k in done.graph]
    scales = [node.array for name, node in named if "conv2.w" in name and name.endswith("_scale")]
    assert scales and np.isfinite(scales[0]).all() and (scales[0] > 1e-6).all()


def test_a_constant_tensor() -> None:
    done = nv.quantize(convnet(), np.zeros((8, 3, 12, 12), np.float32), **QUIET)
    assert np.isfinite(done.model(np.zeros((1, 3, 12, 12), np.float32))).all()
    assert all(r["noise"] < 0.01 for r in done.report.outputs)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_samples_that_are_not_finite(value: float, said: str) -> None:
    x = pictures(8)
    x[3, 0, 0, 0] = value
    with pytest.raises(NervureError, match=said):
        nv.quantize(convnet(), x, **QUIET)


def test_activations_that_overflow() -> None:
    x = pictures(4)
    x[2] = 3e38
    with pytest.raises(NervureError, match=r"NaN|infinity|infinite"):
        nv.quantize(overflowing(), x, **QUIET)


def overflowing() -> nv.Graph:
    g = convnet()
    g.outputs, g.output_names = [], []
    pool = next(k for k in g if g.node(k).names[0] == "conv1")
    g.output(Value(pool), "y")
    g.prune()
    return g


def test_what_is_refused(tmp_path: Path) -> None:
    net, x = convnet(), pictures(8)
    for options, said in [
        ({"out": tmp_path / "q.so"}, "ONNX file"),
        ({"max_drop": "1%"}, "needs something to measure"),
        ({"max_drop": "much", "labelled": (x, np.zeros(8, int))}, "no part of a whole"),
        ({"max_sqnr_loss": "-3dB"}, "no part of a whole"),
        ({"promote": "int4"}, "promote 'int4'"),
        ({"mode": "magic"}, "mode 'magic'"),
        ({"evaluate": len, "labelled": (x, np.zeros(8, int))}, "both given"),
        ({"evaluate": lambda model: "good"}, "must return one number"),
        ({"labelled": (x, np.full(8, 10))}, "label 10 is no class of the 10"),
        ({"labelled": (x, np.zeros(7, int))}, "8 and 7"),
        ({"activations": "int3"}, "int3"),
    ]:
        with pytest.raises(NervureError, match=said):
            nv.quantize(net, x, **QUIET, **options)
    with pytest.raises(NervureError, match="needs calibration data"):
        nv.quantize(net)
    with pytest.raises(NervureError, match="no such folder"):
        nv.quantize(net, x, tmp_path / "absent" / "q.onnx", **QUIET)
    assert not list(tmp_path.iterdir())


# -- accuracy by itself ------------------------------------------------------------------------------------------------


def test_noise_and_agreement() -> None:
    y = [[np.array([[1.0, 2.0]])], [np.array([[3.0, 4.0]])]]
    assert accuracy.noise(y, y) == [0.0] and accuracy.agreement(y, y) == 1.0
    off = [[a[0] * 1.1] for a in y]
    assert accuracy.noise(off, y) == pytest.approx([0.01])
    assert accuracy.noise([[np.full((1, 2), np.nan)]] * 2, y) == [np.inf]
    assert accuracy.noise([[np.zeros((1, 3))]] * 2, y) == [np.inf]
    ints = [[np.array([1, 2, 3, 4])]]
    assert accuracy.noise([[np.array([1, 2, 3, 5])]], ints) == [0.25] and accuracy.agreement(ints, ints) is None
    flipped = [[a[0][:, ::-1]] for a in y]
    assert accuracy.agreement(flipped, y) == 0.0


@pytest.mark.parametrize(
    ("text", "value"), [("0.5%", 0.005), (0.005, 0.005), ("1", 1.0), ("20dB", 0.01), ("10 db", 0.1)]
)
def test_budgets(text: object, value: float) -> None:
    assert accuracy.parse_noise(text) == pytest.approx(value)
    if "d" not in str(text):
        assert accuracy.parse_drop(text) == pytest.approx(value)


def test_labels_of_other_kinds() -> None:
    types = {"x": TensorType("float32", (1, 2))}

    class Model:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def outputs(self, samples: object) -> list[list[np.ndarray]]:
            return [[v[None]] for v in self.values]

    x = np.zeros((4, 2), np.float32)
    binary = accuracy.of_labels(labelled((x, np.array([0, 1, 1, 0])), types))
    assert binary.score(Model(np.array([[0.1], [0.9], [0.4], [0.2]]))) == 0.75  # probabilities
    assert binary.score(Model(np.array([[-3.0], [2.0], [0.4], [-0.2]]))) == 1.0  # scores
    numbers = accuracy.of_labels(labelled((x, np.array([1.0, 2.0, 3.0, 4.0])), types))
    assert numbers.metric == "r2" and numbers.score(Model(np.array([[1.0], [2.0], [3.0], [4.0]]))) == 1.0
    assert numbers.score(Model(np.full((4, 1), 2.5))) == pytest.approx(0.0)
    with pytest.raises(NervureError, match="4 numbers"):
        numbers.score(Model(np.zeros((4, 3))))
