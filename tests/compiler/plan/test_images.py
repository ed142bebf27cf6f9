"""Which tensors of a training step have the batch innermost, and that whole steps stay right with it."""

from __future__ import annotations

from itertools import pairwise

import nervure as nv
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.autodiff.gradients import gradients
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.library import run_elsewhere
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.fuse import fuse
from nervure.compiler.pipeline import EntryGraph, compile_entries
from nervure.compiler.plan.images import is_batch_last
from nervure.compiler.plan.layout import lay_out
from nervure.compiler.plan.strides import order_of
from nervure.compiler.types import TensorType
from nervure.errors import MissingTool
from nervure.frontends.training.step import training_entries
from nervure.runtime.session import load

L = nv.layers
PLAIN = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}


def chain(channels, batch=32, kind="param", size=8):
    """Convolutions 3x3 from one number of channels to the next."""
    rng = np.random.default_rng(0)
    graph = Graph("chain")
    x = graph.input("x", TensorType("float32", (batch, channels[0], size, size)))
    for i, (a, b) in enumerate(pairwise(channels)):
        w = rng.standard_normal((b, a, 3, 3), np.float32)
        weight = graph.const(w, f"w{i}") if kind == "const" else graph.param(w, f"w{i}")
        x = graph.add("relu", graph.add("conv", x, weight, names=[f"y{i}"], **PLAIN), names=[f"z{i}"])
    graph.output(x, "y")
    return graph


def batch_last(graph, lanes=16):
    """Names of the tensors with the batch innermost, and the number of copies."""
    layout = lay_out(fuse(canonicalize(graph)), lanes=lanes)
    found = set()
    for value, place in layout.places.items():
        type_ = layout.graph.type(value)
        made = type_.rank == 4 and layout.graph.node(value).op == "fused"
        if made and is_batch_last(order_of(type_.dims, place.strides)):
            found.add(layout.graph.tensor_name(value))
    copies = sum(layout.graph.tensor_name(v).endswith(".copy") for v in layout.places)
    return found, copies


def test_few_channels_want_images():
    assert batch_last(chain([1, 6, 16])) == ({"x.copy", "z0", "z1"}, 2)  # one of x, one to the output
    assert batch_last(chain([1, 6, 16, 12]))[0] == {"x.copy", "z0", "z1", "z2"}


def test_many_channels_want_channels():
    assert batch_last(chain([16, 32, 64]))[0] == set()


def test_a_picture_from_outside_is_not_transposed_for_many_channels():
    assert batch_last(chain([3, 16, 32]))[0] == set()


def test_between_few_and_many_there_is_one_copy():
    found, copies = batch_last(chain([1, 8, 24, 32]))
    assert found == {"x.copy", "z0", "z1"}
    assert copies == 3  # x, z1 to channels last, the output


@pytest.mark.parametrize(("batch", "kind", "lanes"), [(20, "param", 16), (32, "const", 16), (32, "param", 1)])
def test_other_graphs_stay_as_they_are(batch, kind, lanes):
    assert batch_last(chain([1, 6, 16], batch, kind), lanes)[0] == set()


NETS = {
    "lenet": lambda: [
        L.Conv2D(6, 5, padding="same", activation="relu", input_shape=(1, 12, 12)),
        L.MaxPooling2D(2),
        L.Conv2D(16, 3, activation="relu"),
        L.MaxPooling2D(2),
        L.Flatten(),
        L.Dense(10),
    ],
    "few to many": lambda: [
        L.Conv2D(4, 3, strides=2, padding="same", activation="relu", input_shape=(3, 13, 13)),
        L.Conv2D(20, 3, padding="same"),
        L.BatchNormalization(),
        L.ReLU(),
        L.Conv2D(24, 3, strides=2, activation="relu"),
        L.AveragePooling2D(2, strides=1),
        L.GlobalAveragePooling2D(),
        L.Dense(10),
    ],
    "up again": lambda: [
        L.Conv2D(5, 3, strides=2, padding="same", activation="relu", input_shape=(1, 12, 12)),
        L.Conv2DTranspose(3, 3, strides=2, padding="same", activation="tanh"),
        L.MaxPooling2D(3, strides=2, padding="same"),
        L.Flatten(),
        L.Dense(10),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
@pytest.mark.parametrize("name", NETS)
def test_a_step_against_the_interpreter(name, target, tmp_path):
    """The loss, and every param after two steps of SGD with momentum."""
    net = nv.Sequential(NETS[name]())
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    training = nv.Training(loss, nv.optimizers.SGD(learning_rate=0.1, momentum=0.9), batch=32)
    step = next(e for e in training_entries(net, training)[0] if e.function == "train_step")
    machine = targets.get(target)
    compile_entries([step], machine, tmp_path / "step.so")
    session = load(tmp_path / "step.so")
    rng = np.random.default_rng(0)
    shape = step.graph.node(step.graph.inputs[0]).types[0].dims
    feeds = [rng.standard_normal(shape, np.float32), rng.integers(0, 10, 32), np.float32(0.1)]
    feeds[1] = feeds[1].astype(step.graph.node(step.graph.inputs[1]).types[0].dtype)
    state: dict[str, np.ndarray] = {}
    for _ in range(2):
        wanted = interpret(step.graph, feeds, state)
        have = session.run(None, dict(zip([p.name for p in session.get_inputs("train_step")], feeds, strict=True)))
        np.testing.assert_allclose(have[0], wanted[0], rtol=1e-4)
    kept = {**session.params(), **session.states()}
    for key, want in state.items():
        scale = max(1e-3, np.abs(want).max())
        np.testing.assert_allclose(kept[key] / scale, want / scale, atol=2e-4, err_msg=key)


def with_gradients(name):
    """A graph whose outputs are the loss and all gradients, and arrays for its inputs."""
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    entries, _ = training_entries(nv.Sequential(NETS[name]()), nv.Training(loss, "sgd", batch=32))
    graph = next(e.graph for e in entries if e.function == "evaluate").copy()
    for number, value in enumerate(gradients(graph, graph.outputs[0], [Value(k) for k in graph.find("param")])):
        graph.output(value, f"gradient{number}")
    rng = np.random.default_rng(0)
    feeds = {}
    for key in graph.inputs:
        node = graph.node(key)
        type_ = node.types[0]
        values = rng.standard_normal(type_.dims) if type_.rank > 1 else rng.integers(0, 10, type_.dims)
        feeds[node.names[0]] = values.astype(type_.dtype)
    return graph, feeds


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [("rpi3", "lenet"), ("rpi3", "up again"), ("armv7", "lenet")])
def test_gradients_on_arm(target, name, tmp_path):
    graph, feeds = with_gradients(name)
    machine = targets.get(target)
    artifact = compile_entries([EntryGraph(graph)], machine, tmp_path / "gradients.so")
    try:
        found = run_elsewhere(artifact, machine, feeds)
    except MissingTool as missing:
        pytest.skip(str(missing))
    for have, want in zip(found, interpret(graph, feeds), strict=True):
        np.testing.assert_allclose(have, want, atol=2e-5 * max(1e-2, np.abs(want).max()))


@pytest.mark.slow
def test_the_same_bits_with_any_number_of_threads(tmp_path):
    graph, feeds = with_gradients("lenet")
    compile_entries([EntryGraph(graph)], targets.host(), tmp_path / "gradients.so")
    one, two = (load(tmp_path / "gradients.so", threads=n).run(None, feeds) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
