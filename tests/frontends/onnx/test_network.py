"""Imported networks: weights by name, batches, cutting, training, and the way back to ONNX.

Oracles: ONNX Runtime for what is computed, numpy for what a step must do to the weights.
"""

from __future__ import annotations

from typing import Any

import nervure as nv
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nervure.compiler.ir import Graph
from nervure.frontends.training.step import Training, training_entries
from onnx import helper, numpy_helper

ort.set_default_logger_severity(4)
RNG = np.random.default_rng(11)


def f32(*shape: int, scale: float = 0.3) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def node(op: str, inputs: list[str], outputs: list[str], **attrs: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=f"{outputs[0]}_node", **attrs)


def model(
    nodes: list[Any],
    stored: dict[str, np.ndarray],
    x: list[int | str],
    outputs: dict[str, list[int | str]],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, x)],
        [helper.make_tensor_value_info(n, 1, d) for n, d in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def picture_net(batch: int | str = 1, ratio: float = 0.5) -> onnx.ModelProto:
    """conv, batch norm, relu, dropout, a reshape for one sample, gemm with a transposed matrix."""
    stored = {
        "conv.weight": f32(4, 1, 3, 3),
        "conv.bias": f32(4),
        "bn.weight": 1 + f32(4),
        "bn.bias": f32(4),
        "bn.running_mean": f32(4),
        "bn.running_var": 1 + np.abs(f32(4)),
        "fc.weight": f32(3, 64),
        "fc.bias": f32(3),
        "ratio": np.float32(ratio),
        "shape": np.array([1, -1] if batch == 1 else [-1, 64]),
    }
    nodes = [
        node("Conv", ["x", "conv.weight", "conv.bias"], ["c"]),
        node("BatchNormalization", ["c", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"], ["b"]),
        node("Relu", ["b"], ["r"]),
        node("Dropout", ["r", "ratio"], ["d"]),
        node("Reshape", ["d", "shape"], ["f"]),
        node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    return model(nodes, stored, [batch, 1, 6, 6], {"y": [batch, 3]})


def reference(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """ONNX Runtime, sample by sample, for a file that was exported for one."""
    session = ort.InferenceSession(proto.SerializeToString())
    rows = [session.run(None, {session.get_inputs()[0].name: x[i : i + 1]}) for i in range(len(x))]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def step_graph(net: Any, **options: Any) -> Graph:
    entries, _ = training_entries(net, Training(**options))
    return next(e.graph for e in entries if e.function == "train_step")


# -- weights and batches -----------------------------------------------------------------------------------------------


def test_weights_keep_their_names_and_settings_are_none():
    net = nv.load_network(picture_net())
    names = ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    assert list(net.state_dict()) == [*names, "fc.weight", "fc.bias"]
    kinds = {name: weight.trainable for name, weight in net.named_weights()}
    assert [n for n, trained in kinds.items() if not trained] == ["bn.running_mean", "bn.running_var"]


@pytest.mark.parametrize("batch", [1, "N"])
def test_any_batch(batch):
    proto = picture_net(batch)
    net = nv.load_network(proto)
    x = f32(5, 1, 6, 6, scale=1.0)
    assert net.inputs["x"].shape == ("batch", 1, 6, 6)
    np.testing.assert_allclose(net(x), reference(proto, x)[0], rtol=1e-4, atol=1e-5)


def test_a_batch_that_cannot_change_stays():
    table = {"w": f32(2, 8), "shape": np.array([4, 4])}
    nodes = [node("MatMul", ["w", "x"], ["h"]), node("Reshape", ["h", "shape"], ["y"])]
    net = nv.load_network(model(nodes, table, [8, 8], {"y": [4, 4]}))  # axis 0 is contracted: no batch
    assert net.inputs["x"].shape == (8, 8)


def test_scalars_masks_and_settings_are_no_weights():
    stored = {
        "w": f32(6, 6),
        "mask": np.triu(np.full((6, 6), -np.inf, np.float32), 1),
        "half": np.float32(0.5),
        "low": np.float32(0),
        "high": np.float32(6),
        "mean": f32(1, 3, 1),
        "unit": f32(6, 1),
        "unit_bias": f32(1),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Add", ["a", "mask"], ["b"]),
        node("Softmax", ["b"], ["c"]),
        node("Mul", ["c", "half"], ["d"]),
        node("Clip", ["d", "low", "high"], ["e"]),
        node("MatMul", ["e", "unit"], ["g"]),
        node("Add", ["g", "unit_bias"], ["y"]),
    ]
    net = nv.load_network(model(nodes, stored, ["N", 6, 6], {"y": ["N", 6, 1]}))
    assert sorted(net.state_dict()) == ["unit", "unit_bias", "w"]


def test_weights_of_constant_nodes_and_shared_ones():
    """Exporters write weights as constants and store equal ones once, behind Identity or not."""
    ones = np.ones(4, np.float32)
    stored = {"w": f32(4, 4, 1), "one": ones, "zero": 0 * ones}
    held = numpy_helper.from_array(f32(4, 4, 1), "held")
    nodes = [
        helper.make_node("Constant", [], ["w2"], value=held),
        helper.make_node("Identity", ["one"], ["bn2.weight"]),
        node("Conv", ["x", "w"], ["a"]),
        node("BatchNormalization", ["a", "one", "zero", "zero", "one"], ["b"]),
        node("Conv", ["b", "w2"], ["c"]),
        node("BatchNormalization", ["c", "bn2.weight", "zero", "zero", "one"], ["y"]),
    ]
    proto = model(nodes, stored, ["N", 4, 5], {"y": ["N", 4, 5]})
    net = nv.load_network(proto)
    names = dict(net.named_weights())
    assert {"w", "w2", "bn2.weight"} <= set(names) and len(names) == 10  # nothing is shared
    assert sum(not w.trainable for w in names.values()) == 4
    x = f32(2, 4, 5)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(net(x), expected, rtol=1e-4, atol=1e-5)


# -- what a step does --------------------------------------------------------------------------------------------------


def test_names_are_kept_in_the_step():
    graph = step_graph(nv.load_network(picture_net()), loss=nv.losses.CrossEntropyLoss(), batch=8)
    stored = {graph.node(k).names[0]: graph.node(k).op for k in graph if graph.node(k).op in ("param", "state")}
    assert stored["conv.weight"] == stored["fc.bias"] == "param"
    assert stored["bn.running_mean"] == stored["bn.running_var"] == "state"
    assert "generator" in stored  # dropout


def test_a_step_moves_weights_and_statistics():
    """The last layer's gradient and the running mean by numpy; ratio 0 leaves dropout out."""
    proto = picture_net(ratio=0.0)
    net = nv.load_network(proto)
    old = net.state_dict()
    x, y = f32(16, 1, 6, 6, scale=1.0), RNG.integers(0, 3, 16)
    net.compile(nv.optimizers.SGD(0.5), nv.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.train_on_batch(x, y)
    new = net.state_dict()

    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], (3, 3), (1, 2))
    conv = np.einsum("nhwij,oij->nohw", windows, old["conv.weight"][:, 0]) + old["conv.bias"][:, None, None]
    mean, var = conv.mean((0, 2, 3)), conv.var((0, 2, 3))
    count = conv[:, 0].size
    np.testing.assert_allclose(new["bn.running_mean"], 0.9 * old["bn.running_mean"] + 0.1 * mean, rtol=1e-4, atol=1e-6)
    seen = var * count / (count - 1)
    np.testing.assert_allclose(new["bn.running_var"], 0.9 * old["bn.running_var"] + 0.1 * seen, rtol=1e-4)
    shaped = [a[:, None, None] for a in (mean, np.sqrt(var + 1e-5), old["bn.weight"], old["bn.bias"])]
    features = np.maximum((conv - shaped[0]) / shaped[1] * shaped[2] + shaped[3], 0).reshape(16, -1)
    scores = features @ old["fc.weight"].T + old["fc.bias"]
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / 16
    np.testing.assert_allclose(new["fc.weight"], old["fc.weight"] - 0.5 * error.T @ features, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(new["fc.bias"], old["fc.bias"] - 0.5 * error.sum(0), rtol=1e-3, atol=1e-5)
    assert not np.allclose(new["conv.weight"], old["conv.weight"])


def test_frozen_parts_are_constants():
    net = nv.load_network(picture_net())
    net.freeze("conv.*", "bn.*")
    graph = step_graph(net, loss="mse", batch=4)
    assert sorted(graph.node(k).names[0] for k in graph.find("param")) == ["fc.bias", "fc.weight"]
    assert not graph.find("conv_grad_weight")
    assert {graph.node(k).names[0] for k in graph.find("state")} == {"generator"}  # the statistics stay
    with pytest.raises(nv.NervureError, match="no weight is named 'cnov") as error:
        net.freeze("cnov.weight")
    assert "conv.weight" in str(error.value)


def test_a_transposed_matrix_is_not_copied():
    """Gemm's transB is read as it lies, forwards and backwards."""
    net = nv.load_network(picture_net("N"))
    net.compile("adam", nv.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.train_on_batch(f32(8, 1, 6, 6), RNG.integers(0, 3, 8))
    steps = net._trained()._last.artifact.entry("train_step").steps
    assert not [s for s in steps if s["op"] == "transpose"]


# -- cutting -----------------------------------------------------------------------------------------------------------


def test_cut_at_tensors_and_nodes():
    net = nv.load_network(picture_net())
    assert list(net.tensors()) == ["c", "b", "r", "d", "f", "y"]
    assert str(net.tensors("f")["f"]) == "f32[batch,64]"
    body = net.cut("f_node")
    assert body.outputs == ["f"] and "fc.weight" not in body.state_dict()
    assert body.weights[0] is net.weights[0]  # the same weights
    x = f32(2, 1, 6, 6)
    assert body(x).shape == (2, 64)
    both = net.cut(["r", "y"])(x)
    np.testing.assert_allclose(both["y"], net(x), rtol=1e-5)
    tail = net.cut(inputs="f")
    np.testing.assert_allclose(tail(body(x)), net(x), rtol=1e-5)


def test_cut_tells_what_there_is():
    net = nv.load_network(picture_net())
    with pytest.raises(nv.NervureError, match="no tensor is named 'f_nod'") as error:
        net.cut("f_nod")
    assert "f_node" in str(error.value)
    with pytest.raises(nv.NervureError, match="6 tensors fit"):
        net.cut("?")
    with pytest.raises(nv.NervureError, match="which is cut away"):
        net.cut(["c", "y"], inputs="f")


def test_another_picture_size():
    proto = model(
        [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"])],
        {"w": f32(5, 3, 3, 3)},
        [1, 3, 32, 32],
        {"y": [1, 5]},
    )
    net = nv.load_network(proto, shapes={"x": (None, 3, 12, 16)})
    assert net.inputs["x"].shape == ("batch", 3, 12, 16)
    assert net(f32(3, 3, 12, 16)).shape == (3, 5)
    session = ort.InferenceSession(net.to_model().SerializeToString())
    assert session.get_inputs()[0].shape == ["batch", 3, 12, 16]


# -- inside of other networks, and out again ---------------------------------------------------------------------------


def test_in_sequential_and_functions():
    body = nv.load_network(picture_net(), outputs="f", name="body")
    net = nv.Sequential([body, nv.layers.Dense(2)])
    x = f32(3, 1, 6, 6)
    assert net(x).shape == (3, 2)
    assert {"body.conv.weight", "dense.weight"} <= set(net.state_dict())

    @nv.network
    def twins(a: nv.Input((1, 6, 6)), b: nv.Input((1, 6, 6))):
        return nv.sum(nv.square(body(a) - body(b)), -1)

    np.testing.assert_allclose(twins(x, x + 1), ((body(x) - body(x + 1)) ** 2).sum(-1), rtol=1e-4)
    assert len(twins.weights) == 6  # once


def test_trained_and_written_again(tmp_path):
    """The file differs in its weights alone; ONNX Runtime computes what the network does."""
    proto = picture_net()
    net = nv.load_network(proto)
    net.compile("adam", nv.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = f32(24, 1, 6, 6, scale=1.0), RNG.integers(0, 3, 24)
    net.fit(x, y, batch_size=8, epochs=2, verbose=0)
    nv.save_onnx(net, tmp_path / "trained.onnx")
    again = onnx.load(tmp_path / "trained.onnx")
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in proto.graph.node]
    names = {t.name for t in again.graph.initializer}
    assert set(net.state_dict()) <= names
    np.testing.assert_allclose(reference(again, x)[0], net.predict(x), rtol=1e-4, atol=1e-5)
    assert np.abs(reference(proto, x)[0] - net.predict(x)).max() > 0.01  # it learned something
    back = nv.load_network(tmp_path / "trained.onnx")
    assert list(back.state_dict()) == list(net.state_dict())


def test_mixed_network_is_written(tmp_path):
    body = nv.load_network(picture_net(), outputs="f", name="body")
    net = nv.Sequential([body, nv.layers.Dense(2, "softmax")])
    net.compile("adam", "sparse_categorical_crossentropy")
    x, y = f32(16, 1, 6, 6, scale=1.0), RNG.integers(0, 2, 16)
    net.fit(x, y, batch_size=8, epochs=1, verbose=0)
    nv.save_onnx(net, tmp_path / "mixed.onnx")
    proto = onnx.load(tmp_path / "mixed.onnx")
    assert "BatchNormalization" in {n.op_type for n in proto.graph.node}
    assert {"body.conv.weight", "dense.weight", "body.bn.running_mean"} <= {t.name for t in proto.graph.initializer}
    np.testing.assert_allclose(reference(proto, x)[0], net.predict(x), rtol=1e-4, atol=1e-5)


def test_several_outputs_are_a_dictionary():
    stored = {"w": f32(4, 3), "v": f32(4, 2)}
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["x", "v"], ["b.1"])]
    proto = model(nodes, stored, ["N", 4], {"a": ["N", 3], "b.1": ["N", 2]})
    net = nv.load_network(proto)
    assert {n: v.shape for n, v in net(f32(2, 4)).items()} == {"a": (2, 3), "b.1": (2, 2)}
    assert nv.compile(net).get_outputs()[1].name == "b.1"


def test_what_is_not_supported_is_said_at_once():
    proto = model([node("Bernoulli", ["x"], ["y"])], {}, ["N", 4], {"y": ["N", 4]})
    with pytest.raises(nv.NervureError, match="Bernoulli"):
        nv.load_network(proto)
    with pytest.raises(nv.NervureError, match="no input 'z'"):
        nv.load_network(picture_net(), shapes={"z": (1, 2)})
    with pytest.raises(nv.NervureError, match="nothing to train"):
        frozen = nv.load_network(picture_net())
        frozen.freeze()
        step_graph(frozen, loss="mse")


def test_the_plan_is_what_the_step_needs():
    net = nv.load_network(picture_net())
    net.compile("adam", nv.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.train_on_batch(f32(8, 1, 6, 6), RNG.integers(0, 3, 8))
    compiled = net._trained()._last.artifact.entry("train_step").arena_bytes(1)
    training = Training(nv.losses.SparseCategoricalCrossentropy(from_logits=True), "adam", batch=8)
    assert nv.plan(net, training=training)["train_step"] == compiled
