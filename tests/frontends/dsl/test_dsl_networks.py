"""Networks and Sequential: naming, weights, retraces, summaries, nesting, custom layers, compiling."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.interpret import interpret

L = nv.layers
RNG = np.random.default_rng(5)


def consts(graph):
    return {graph.node(k).names[0]: graph.node(k).array for k in graph.find("const")}


@nv.network
def classifier(x: nv.Input((6,))):
    h = L.Dense(4, "relu")(x)
    return L.Dense(3)(h)


def test_a_function_becomes_a_graph_with_named_tensors_and_origins():
    graph = classifier.to_graph({"batch": 2})
    graph.check()
    (x,) = graph.inputs
    assert str(graph.node(x).types[0]) == "f32[2,6]"
    assert graph.node(x).names == ("x",)
    assert graph.output_names == ["output"]
    assert set(consts(graph)) == {"dense.weight", "dense.bias", "dense_1.weight", "dense_1.bias"}
    (relu,) = graph.find("relu")
    (origin,) = graph.node(relu).origin
    assert origin.startswith("test_dsl_networks.py:") and origin.endswith(" (dense)")


def test_the_batch_is_one_unless_bound_and_other_dimensions_are_asked_for():
    assert classifier.to_graph().type(classifier.to_graph().outputs[0]).shape == (1, 3)
    assert classifier.to_graph({}, symbolic=True).outputs
    graph = classifier.to_graph(symbolic=True)
    assert graph.type(graph.outputs[0]).shape == ("batch", 3)
    net = nv.network(lambda x: x + 1, name="f", x=nv.Input(("time", 4)))
    with pytest.raises(nv.NervureError, match="not bound: 'time'"):
        net.to_graph()
    assert net.to_graph({"time": 7}).node(net.to_graph({"time": 7}).inputs[0]).types[0].shape == (1, 7, 4)
    with pytest.raises(nv.NervureError, match="no dimension 'width'"):
        net.to_graph({"width": 7})
    with pytest.raises(nv.NervureError, match="whole number"):
        net.to_graph({"time": 0})


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (nv.Input((784,)), ("batch", 784)),
        (nv.Input(784), ("batch", 784)),
        (nv.Input(("batch", 784)), ("batch", 784)),
        (nv.Input((None, 40)), ("batch", "dim1", 40)),
        (nv.Input(("time", 40)), ("batch", "time", 40)),
        (nv.Input((3,), batch_size=8), (8, 3)),
        (nv.Input(batch_shape=(1, 3, 224, 224)), (1, 3, 224, 224)),
        (nv.Input(batch_shape=(None, 3)), ("batch", 3)),
        (nv.Input(()), ("batch",)),
    ],
)
def test_input_shapes(spec, shape):
    assert spec.shape == shape


def test_inputs_by_annotation_default_and_argument():
    @nv.network(seed=3, c=nv.Input((2,), "int32"))
    def mixed(a: nv.Input((2,)), c, b=nv.Input((2,)), scale=2.0):  # noqa: B008
        return {"sum": (a + b) * scale, "pair": [a, c]}

    assert list(mixed.inputs) == ["a", "c", "b"]
    graph = mixed.to_graph()
    assert graph.output_names == ["sum", "pair_0", "pair_1"]
    one = np.ones((1, 2), np.float32)
    found = mixed(one, one.astype(np.int32), one, scale=10.0)
    np.testing.assert_array_equal(found["sum"], 20 * one)
    assert found["pair"][1].dtype == np.int32


def test_every_retrace_has_the_same_weights():
    first, second = consts(classifier.to_graph({"batch": 1})), consts(classifier.to_graph({"batch": 8}))
    assert first.keys() == second.keys()
    assert all(first[k] is second[k] or np.shares_memory(first[k], second[k]) for k in first)
    classifier.load_state_dict({k: RNG.standard_normal(v.shape) for k, v in classifier.state_dict().items()})
    state = classifier.state_dict()
    x = RNG.standard_normal((5, 6)).astype(np.float32)
    want = (
        np.maximum(x @ state["dense.weight"] + state["dense.bias"], 0) @ state["dense_1.weight"] + state["dense_1.bias"]
    )
    np.testing.assert_allclose(classifier(x), want, rtol=1e-5)
    np.testing.assert_allclose(interpret(classifier.to_graph({"batch": 5}), [x])[0], want, rtol=1e-5)


def test_layers_with_parts_that_are_made_in_the_body_keep_their_weights():
    @nv.network
    def net(x: nv.Input((4, 6))):
        return L.TransformerEncoderLayer(6, 2, 8)(L.MultiHeadAttention(3)(x))

    net.load_state_dict({k: RNG.standard_normal(v.shape) for k, v in net.state_dict().items()})
    state, graph = net.state_dict(), net.to_graph({"batch": 3})
    assert set(state) == set(consts(graph)) & set(state) and len(state) == 24
    for name, array in consts(graph).items():
        if name in state:
            np.testing.assert_array_equal(array, state[name])


def test_layers_made_outside_of_the_function_are_shared_where_they_are_called_twice():
    dense = L.Dense(6, name="shared")

    @nv.network
    def twice(x: nv.Input((6,))):
        return dense(nv.relu(dense(x)))

    assert set(consts(twice.to_graph())) == {"shared.weight", "shared.bias"}
    assert twice.count_params() == 42
    assert dense.weights[0] is twice.weights[0]
    dense.weights[1].assign(np.ones(6))
    assert twice.state_dict()["shared.bias"].tolist() == [1] * 6


def test_seeds_and_names_decide_the_weights():
    def build(**options):
        return nv.Sequential([L.Dense(4, input_dim=3), L.Dense(4)], **options).state_dict()

    base, again = build(), build()
    assert all((base[k] == again[k]).all() for k in base)
    assert (base["dense.weight"][:3] != base["dense_1.weight"][:3]).any()
    for other in (build(seed=1), build(name="other")):
        assert (base["dense.weight"] != other["dense.weight"]).all()
    given = nv.Sequential([L.Dense(2, input_dim=2, weights=[np.eye(2), [1, 2]])])
    np.testing.assert_array_equal(given(np.array([[3.0, 4.0]])), [[4, 6]])


def test_networks_in_networks():
    encoder = nv.Sequential([L.Dense(5, "tanh", input_dim=6), L.Dense(2)], name="encoder")

    @nv.network
    def pair(a: nv.Input((6,)), b: nv.Input((6,))):
        return nv.norm(encoder(a) - encoder(b), axis=1)

    graph = pair.to_graph()
    assert set(consts(graph)) == {
        "encoder.dense.weight",
        "encoder.dense.bias",
        "encoder.dense_1.weight",
        "encoder.dense_1.bias",
    }
    assert set(pair.state_dict()) == set(consts(graph))
    a, b = RNG.standard_normal((2, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(pair(a, b), np.linalg.norm(encoder(a) - encoder(b), axis=1), rtol=1e-5)

    outer = nv.Sequential([encoder, L.Dense(1)])
    assert outer(a).shape == (3, 1)
    assert set(outer.state_dict()) == {*(f"encoder.{n}" for n in encoder.state_dict()), "dense.weight", "dense.bias"}


class Scale(L.Layer):
    """A layer as a user writes it, without calling the base's ``__init__``."""

    def __init__(self, start):
        self.start = start

    def build(self, shape):
        self.factor = self.add_weight("factor", (shape[-1],), self.start)

    def call(self, x, twice=False):
        return x * self.factor * (2 if twice else 1)


class Block(L.Layer):
    def __init__(self, units, depth=2):
        super().__init__()
        self.dense = [L.Dense(units, "relu") for _ in range(depth)]
        self.scale = Scale(3.0)

    def call(self, x):
        for layer in self.dense:
            x = layer(x)
        return self.scale(x, twice=True)


def test_layers_of_ones_own():
    net = nv.Sequential([Block(4, name="stem", input_shape=(6,)), Scale("ones"), lambda x: x[:, :2]])
    names = [
        "stem.dense.0.weight",
        "stem.dense.0.bias",
        "stem.dense.1.weight",
        "stem.dense.1.bias",
        "stem.scale.factor",
    ]
    assert list(net.state_dict()) == [*names, "scale.factor"]
    state = net.state_dict()
    x = RNG.standard_normal((3, 6)).astype(np.float32)
    want = x
    for i in (0, 1):
        want = np.maximum(want @ state[f"stem.dense.{i}.weight"] + state[f"stem.dense.{i}.bias"], 0)
    np.testing.assert_allclose(net(x), 6 * want[:, :2], rtol=1e-5)
    np.testing.assert_array_equal(Scale(2.0, weights={"factor": [5.0]})(np.ones((1, 1))), [[5.0]])


def test_sequential_as_in_keras_textbooks():
    model = nv.Sequential()
    model.add(L.Dense(8, input_dim=2, activation="relu"))
    model.add(L.Dense(1, activation="sigmoid"))
    assert model.count_params() == 33
    assert [layer.kind for layer in model.layers] == ["Dense", "Dense"]
    assert model(np.zeros((4, 2))).tolist() == [[0.5]] * 4
    removed = model.pop()
    assert removed.units == 1 and len(model) == 1
    assert model.get_layer("dense") is model[0]


def test_sequential_learns_its_shape_from_its_first_input():
    net = nv.Sequential([L.Flatten(), L.Dense(3)])
    with pytest.raises(nv.NervureError, match="not known") as error:
        net.to_graph()
    assert "input_shape=" in str(error.value)
    assert net(np.zeros((2, 4, 5))).shape == (2, 3)
    assert net.to_graph({"batch": 7}).node(0).types[0].shape == (7, 4, 5)
    built = nv.Sequential([L.Dense(3)])
    built.build((None, 4))
    assert built.count_params() == 15
    assert nv.Sequential([nv.Input((4,)), L.Dense(3)]).count_params() == 15
    words = nv.Sequential([L.Embedding(50, 8, input_length=6), L.LSTM(4), L.Dense(1)])
    assert words(np.ones((2, 6), int)).shape == (2, 1)
    assert words.to_graph().node(0).types[0].dtype == "int32"


def test_state_dictionaries_refuse_what_does_not_fit_and_change_nothing():
    net = nv.Sequential([L.Dense(2, input_dim=2)])
    before = net.state_dict()
    for state, message in [
        ({"dense.weight": before["dense.weight"]}, "missing: dense.bias"),
        ({**before, "x": 1}, "unknown: x"),
        ({"dense.bias": np.ones(2), "dense.weight": np.ones((2, 3))}, r"expected \[2, 2\], got \[2, 3\]"),
    ]:
        with pytest.raises(nv.NervureError, match=message):
            net.load_state_dict(state)
        assert all((net.state_dict()[k] == before[k]).all() for k in before)
    net.load_state_dict({"dense.bias": [7, 8]}, strict=False)
    assert net.state_dict()["dense.bias"].tolist() == [7, 8]
    net.set_weights([np.eye(2), np.zeros(2)])
    assert net(np.array([[1.0, 2.0]])).tolist() == [[1, 2]]
    with pytest.raises(nv.NervureError, match="expected 2 arrays, got 1"):
        net.set_weights([np.eye(2)])


SUMMARY = """\
Sequential: "digits"
______________________________________________________________________
Layer (type)                    Output Shape              Param #
======================================================================
input (Input)                   (batch, 1, 28, 28)        0
conv2d (Conv2d)                 (batch, 32, 26, 26)       320
batch_norm (BatchNorm)          (batch, 32, 26, 26)       128
max_pool2d (MaxPool2d)          (batch, 32, 13, 13)       0
flatten (Flatten)               (batch, 5408)             0
head (Dense)                    (batch, 10)               54,090
======================================================================
Total params: 54,538 (213.04 KB)
Trainable params: 54,474
Non-trainable params: 64
______________________________________________________________________"""


def test_summary(capsys):
    net = nv.Sequential(
        [
            L.Conv2d(32, 3, activation="relu", input_shape=(1, 28, 28)),
            L.BatchNorm(),
            L.MaxPool2d(),
            L.Flatten(),
            L.Dense(10, "softmax", name="head"),
        ],
        name="digits",
    )
    assert net.summary() is None
    assert capsys.readouterr().out == SUMMARY + "\n"


def test_a_summary_of_a_network_that_needs_its_batch():
    @nv.network
    def rows(x: nv.Input((3,))):
        shared = L.Dense(3, name="shared")
        return nv.concat([shared(x), shared(x)], axis=0)

    lines: list[str] = []
    rows.summary(print_fn=lines.append)
    assert "shared (Dense)                  (1, 3)                    12" in lines[0]
    assert "shared (Dense)                  (1, 3)                    shared" in lines[0]
    assert "Total params: 12 (48 B)" in lines[0]


def test_compiled_networks_agree_with_the_interpreter(tmp_path):
    net = nv.Sequential(
        [L.Conv2d(4, 3, padding="same", activation="relu", input_shape=(2, 6, 6)), L.Flatten(), L.Dense(3)]
    )
    x = RNG.standard_normal((8, 2, 6, 6)).astype(np.float32)
    model = nv.compile(net, dims={"batch": (1, 8)})
    np.testing.assert_allclose(model(x), net(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(x[:1]), net(x[:1]), rtol=1e-4, atol=1e-5)
    assert [p.name for p in model.get_inputs()] == ["input"]
    assert [p.name for p in model.get_outputs()] == ["output"]
    loaded = nv.load(model.save(tmp_path / "net.so"))
    np.testing.assert_array_equal(loaded(x), model(x))


def test_exported_networks_run_in_onnx_runtime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from nervure.frontends.onnx import save

    @nv.network
    def net(tokens: nv.Input((7,), "int32")):
        x = L.PositionalEncoding()(L.Embedding(20, 8)(tokens))
        x = L.TransformerEncoderLayer(8, 2, 16, activation="gelu")(x)
        sequence = L.GRU(5, bidirectional=True, return_sequences=True)(x)
        return L.Dense(3, "softmax")(sequence[:, -1]), sequence

    save(net.to_graph({"batch": 2}), str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    tokens = RNG.integers(0, 20, (2, 7)).astype(np.int32)
    for found, want in zip(net(tokens), session.run(["output_0", "output_1"], {"tokens": tokens}), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_importing_from_nervure_layers():
    from nervure.layers import Conv2D, Dense

    assert Dense is L.Dense and Conv2D is L.Conv2d
