"""What a user's mistake looks like: the layer, the line, expected and got."""

from __future__ import annotations

import inspect

import nervure as nv
import numpy as np
import pytest

L = nv.layers
HERE = "test_dsl_errors.py"


class Layered(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)


def line(function, marker):
    """The number of the line of ``function`` that holds the marker."""
    lines, start = inspect.getsourcelines(function)
    return next(start + i for i, text in enumerate(lines) if marker in text)


def error(function):
    with pytest.raises(nv.NervureError) as caught:
        function()
    return caught.value


def test_an_operator_names_its_line_and_both_shapes():
    def body(a: nv.Input((3,)), b: nv.Input((4,))):
        c = a * 2
        return c + b  # here

    found = error(lambda: nv.network(body).to_graph())
    assert found.what.startswith("operator add: expected shapes that broadcast together; got [1,3] and [1,4]")
    assert found.where[0].endswith(f"{HERE}:{line(body, '# here')}")


def test_a_layer_in_a_function_names_itself_and_the_line_of_its_call():
    def body(x: nv.Input((3, 8))):
        dense = L.Dense(4)
        dense(x[:, :, :6])
        return dense(x)  # here

    found = error(lambda: nv.network(body).to_graph())
    assert found.what == "layer 'dense' (Dense): expected 6 features on the last axis, got [1, 3, 8]"
    assert found.where[0].endswith(f"{HERE}:{line(body, '# here')} (dense)")


def test_a_layer_in_a_sequential_names_the_line_where_it_was_made():
    def make():
        return nv.Sequential(
            [
                L.Dense(4, input_dim=3),
                L.Conv2d(8, 3),  # here
            ]
        )

    found = error(lambda: make().to_graph())
    assert found.what.startswith("layer 'conv2d' (Conv2d): expected an input [batch, channels, height, width]")
    assert found.what.endswith("got [1, 4]")
    assert found.where[0].endswith(f"{HERE}:{line(make, '# here')} (conv2d)")


def test_a_mistake_inside_of_a_users_layer_names_the_line_inside():
    class Broken(L.Layer):
        def call(self, x):
            return x.reshape(-1, 7)  # here

    found = error(lambda: nv.Sequential([L.Dense(4, input_dim=3), Broken(name="odd")]).to_graph())
    assert found.what.startswith("layer 'odd' (Broken): cannot reshape f32[1,4] to [-1,7]")
    assert found.where[0].endswith(f"{HERE}:{line(Broken, '# here')} (odd)")


def test_a_layer_inside_of_a_layer_has_its_whole_path():
    layer = L.TransformerEncoderLayer(8, 2)
    found = error(lambda: layer(np.zeros((1, 4, 6))))
    assert found.what.startswith("layer 'transformer_encoder_layer' (TransformerEncoderLayer): expected 8 features")
    net = nv.Sequential([L.SeparableConv2d(6, 3, input_shape=(6, 2, 9), name="sep")])
    assert error(net.to_graph).what.startswith("layer 'sep.depthwise' (DepthwiseConv2d): the window does not fit")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.Conv2d(3, 16, 3), "Conv2d: too many positional arguments"),
        (lambda: L.Dense(), "Dense: missing a required argument: 'units'"),
        (lambda: L.Dense(-1), "Dense: units: expected a whole number of at least 1, got -1"),
        (lambda: L.Dense(2.5), "Dense: units: expected a whole number of at least 1, got 2.5"),
        (lambda: L.Dense(784, 10), "Dense: activation 10 is unknown"),
        (lambda: L.Dense(4, activation="rely"), "Dense: activation 'rely' is unknown"),
        (lambda: L.Dense(4, units_=3), "Dense: got an unexpected keyword argument 'units_'"),
        (lambda: L.LSTM(4, layers=2), "LSTM: got an unexpected keyword argument 'layers'"),
        (lambda: Layered(wrong=2), "Layered has no argument wrong"),
        (lambda: L.Conv2d(4, (3, 3, 3)), r"Conv2d: kernel_size: expected one number or 2, got \(3, 3, 3\)"),
        (lambda: L.Conv2d(4, 3, padding="some"), 'padding: expected "valid", "same" or numbers'),
        (lambda: L.Conv2d(4, 3, stride=1, strides=2), "Conv2d: strides is given twice"),
        (lambda: L.MaxPool2d(2, data_format="NHWC"), "data_format: expected"),
        (lambda: L.Dropout(1.5), r"rate: expected a number in \[0, 1\), got 1.5"),
        (lambda: L.LSTM(4, activation="gelu"), "activation 'gelu' is not one of a recurrent layer's"),
        (lambda: L.TransformerEncoderLayer(10, 3), "nhead: expected a divisor of d_model 10, got 3"),
        (lambda: nv.Sequential([L.Dense]), "Dense is a class, not a layer"),
        (lambda: nv.Sequential([L.Dense(1, name="a"), L.Dense(1, name="a")]), "two layers are named 'a'"),
        (lambda: nv.Input(), "either shape or batch_shape"),
        (lambda: nv.Input((-3,)), "a dimension is a size or a name, got -3"),
        (lambda: nv.Input((3,), dtype="float31"), "element type 'float31' is unknown"),
        (lambda: nv.network(3), "needs a function"),
    ],
)
def test_constructors_refuse_nonsense_at_the_users_line(make, message):
    with pytest.raises(nv.NervureError, match=message) as caught:
        make()
    assert HERE in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (L.GroupNorm(4), (1, 6, 3, 3), "num_groups: expected a divisor of 6 channels, got 4"),
        (L.BatchNorm(8), (1, 6, 3, 3), r"expected 8 channels on axis 1, got \[1, 6, 3, 3\]"),
        (L.LayerNorm((4, 4)), (1, 3, 4), r"expected the last axes \[4, 4\], got \[1, 3, 4\]"),
        (L.LSTM(4), (1, 6), r"expected an input \[batch, time, features\] with 3 axes, got \[1, 6\]"),
        (
            L.MaxPool2d(),
            (1, 6, 8),
            r"expected an input \[batch, channels, height, width\] with 4 axes, got \[1, 6, 8\]",
        ),
        (L.MaxPool2d(9), (1, 6, 8, 8), "the window does not fit"),
        (L.MultiHeadAttention(4), (1, 5, 6), "num_heads: expected a divisor of 6 features, got 4"),
        (L.Permute(1, 3), (1, 5, 6), r"dims: expected an order of the axes 1 to 2, got \(1, 3\)"),
        (L.Add(), (1, 5), "expected at least two tensors, got 1"),
        (L.Dense(2, weights=[np.ones((5, 2))]), (1, 5), "expected an array for 'bias' too"),
        (L.Dense(2, weights=[np.ones((2, 5)), [0, 0]]), (1, 5), r"'weight': expected shape \[5, 2\], got \[2, 5\]"),
        (L.Dense(2, weights={"kernel": 1}), (1, 5), "no weight is named 'kernel'"),
        (L.Dense(2, kernel_initializer="magic"), (1, 5), "initializer 'magic' is unknown"),
        (L.Embedding(5, 2), (1, 5), "expected integer indices, got float32"),
    ],
    ids=lambda v: v.kind if isinstance(v, L.Layer) else None,
)
def test_layers_say_what_they_expected_and_got(layer, shape, message):
    with pytest.raises(nv.NervureError, match=message) as caught:
        layer(np.zeros(shape, np.float32))
    assert f"({layer.kind})" in caught.value.what


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, "no truth value"),
        (lambda x: np.cbrt(x), "numpy's cbrt does not work on symbolic tensors"),
        (lambda x: np.fft.fft(x), "numpy's fft does not work on symbolic tensors"),
        (lambda x: np.add.reduce(x), "numpy's add.reduce does not work on symbolic tensors"),
        (lambda x: np.asarray(x), "no values while its network is traced"),
        (lambda x: x[5], "index 5 is out of range for axis 0 with size 2"),
        (lambda x: x[:, 9], "index 9 is out of range for axis 1 with size 3"),
        (lambda x: x[0, 0, 0], "too many indices: expected at most 2"),
        (lambda x: x[x > 0], "a computed mask cannot index"),
        (lambda x: x["a"], "an index must be an integer"),
        (lambda x: x[[0, 7]], "an index array reaches from 0 to 7, axis 0 has size 2"),
        (lambda x: x[::0], "slice"),
        (lambda x: x @ np.ones((4, 2)), "operator matmul: "),
        (lambda x: x.sum(axis=2), "axis 2 is out of range for a tensor of rank 2"),
        (lambda x: nv.concat([x, x[:, :2]]), "operator concat: "),
        (lambda x: nv.split(x, 2, axis=1), "expected a size that 2 divides along axis 1, got 3"),
        (lambda x: x.reshape(4), "cannot reshape"),
        (lambda x: x.astype("complex64"), "element type 'complex64' is unknown"),
        (lambda x: x + "a", "cannot be a tensor"),
        (lambda x: x.squeeze(0), "squeeze: expected size 1 along axis 0, got 2"),
        (lambda x: nv.einsum("ij,jk", x, x), "expected size 3 for 'j', got 2"),
        (lambda x: x.astype("uint8") + 300, "300 does not fit into uint8"),
        (lambda x: None, "returned None"),
        (lambda x: L.Dense(2)("x"), "expected a tensor or an array, got str"),
        (lambda x: L.Dense(2)(nv.Input((3,))), "got Input"),
        (lambda x: L.Dense(2)(x, x), "too many positional arguments"),
    ],
)
def test_bodies(body, message):
    net = nv.network(body, name="body", x=nv.Input(batch_shape=(2, 3)))
    with pytest.raises(nv.NervureError, match=message) as caught:
        net.to_graph()
    assert f"{HERE}:{inspect.getsourcelines(body)[1]}" in str(caught.value)


def test_dimensions_without_a_number_cannot_be_computed_with():
    net = nv.network(lambda x: x.reshape(x.shape[0] * 3), name="f", x=nv.Input((3,)))
    found = error(lambda: net.to_graph(symbolic=True))
    assert found.what == "dimension 'batch' has no number yet"
    assert net.to_graph({"batch": 4}).type(net.to_graph({"batch": 4}).outputs[0]).shape == (12,)
    cut = nv.network(lambda x: x[:2], name="f", x=nv.Input((3,)))
    assert "cannot be cut" in error(lambda: cut.to_graph(symbolic=True)).what


def test_tensors_that_leave_their_trace_are_refused():
    kept = []
    nv.network(lambda x: kept.append(x) or x + 1, name="f", x=nv.Input((3,))).to_graph()
    assert "outside of its network" in error(lambda: kept[0] + 1).what
    assert "outside of its network" in error(lambda: nv.exp(kept[0])).what
    assert "outside of its network" in error(lambda: L.Dense(2)(kept[0])).what
    other = nv.network(lambda x: x + kept[0], name="g", x=nv.Input((3,)))
    assert "another trace" in error(other.to_graph).what


def test_arrays_that_do_not_fit_the_inputs():
    net = nv.network(lambda a, b: a + b, name="f", a=nv.Input((3,)), b=nv.Input((3,)))
    one = np.ones((2, 3), np.float32)
    assert "input 'b': expected shape [batch, 3], got [2, 4]" in error(lambda: net(one, np.ones((2, 4)))).what
    found = error(lambda: net(one, one[:1]))
    assert "got [1, 3]" in found.what and found.why == "batch=2"
    assert "missing a required argument: 'b'" in error(lambda: net(one)).what
    integers = nv.network(lambda a: a, name="f", a=nv.Input((3,), "int32"))
    assert "input 'a' must be int32, got float32" in error(lambda: integers(one)).what
    outer = nv.network(lambda x: net(x, x[:, :2]), name="g", x=nv.Input((3,)))
    assert "expected shape [batch, 3], got [1, 2]" in error(outer.to_graph).what


def test_layers_that_change_between_traces_are_refused():
    kinds = iter([L.Dense, L.LayerNorm])
    net = nv.network(lambda x: next(kinds)(3, name="a")(x), name="f", x=nv.Input((3,)))
    net.to_graph()
    assert "was a Dense in an earlier trace and is a LayerNorm now" in error(net.to_graph).what
    widths = iter([3, 4])
    net = nv.network(lambda x: L.Dense(next(widths))(x), name="f", x=nv.Input((3,)))
    net.to_graph()
    assert "weight 'weight' has shape [3, 3], this input needs [3, 4]" in error(net.to_graph).what
