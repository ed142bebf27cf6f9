"""Penalties of weights and outputs."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.types import type_of
from nervure.frontends.dsl.trace import Trace

R, layers = nv.regularizers, nv.layers
X = np.random.default_rng(2).normal(0, 1, (5, 4)).astype(np.float32)


def penalty(net, x=X):
    """The penalties of a network in a trace of its own."""
    with Trace(net.name, net, training=True).active() as trace:
        net.function(trace.input("x", type_of(x)))
        found = R.penalties(net, trace)
        return None if found is None else trace.run([found], [x])[0]


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("l1", 0.01 * np.abs(X).sum()),
        ("L2", 0.01 * (X**2).sum()),
        ("l1_l2", 0.01 * (np.abs(X).sum() + (X**2).sum())),
        (R.L1(0.3), 0.3 * np.abs(X).sum()),
        (R.l2(0.5), 0.5 * (X**2).sum()),
        (R.L1L2(l1=0.1, l2=0.2), 0.1 * np.abs(X).sum() + 0.2 * (X**2).sum()),
        (R.L1L2, 0.0),
        (lambda x: nv.max(nv.abs(x)), np.abs(X).max()),
    ],
)
def test_penalties_of_a_tensor(given, want):
    with Trace("penalty").active() as trace:
        (found,) = trace.run([R.get(given)(nv.constant(X))])
    assert found.shape == () and found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_penalties_of_a_network():
    net = nv.Sequential(
        [
            layers.Dense(
                3,
                "relu",
                input_dim=4,
                kernel_regularizer=R.L2(0.1),
                bias_regularizer="l1",
                bias_initializer="ones",
                activity_regularizer=R.L1(0.5),
            ),
            layers.Dense(3, bias_initializer="ones"),
            layers.Dense(2, kernel_regularizer="l1", trainable=False),
        ]
    )
    net(X)
    held = net.state_dict()
    hidden = np.maximum(X @ held["dense.weight"] + 1, 0)
    want = 0.1 * (held["dense.weight"] ** 2).sum() + 0.01 * 3 + 0.5 * np.abs(hidden).sum() / len(X)
    np.testing.assert_allclose(penalty(net), want, rtol=1e-5)


def test_a_layer_that_is_called_twice_is_penalised_once():
    shared = layers.Dense(4, kernel_regularizer=R.L2(1.0))
    net = nv.Sequential([shared, shared])
    net(X)
    np.testing.assert_allclose(penalty(net), (net.state_dict()["dense.weight"] ** 2).sum(), rtol=1e-5)


def test_penalties_hold_for_the_layers_inside():
    class Two(layers.Layer):
        def __init__(self):
            self.first, self.second = layers.Dense(4), layers.Dense(4, kernel_regularizer=R.L1(1.0))

        def call(self, x):
            return self.second(self.first(x))

    net = nv.Sequential([Two(kernel_regularizer=R.L2(1.0))])
    net(X)
    held = {name.rsplit(".", 2)[-2]: w for name, w in net.state_dict().items() if name.endswith("weight")}
    want = (held["first"] ** 2).sum() + np.abs(held["second"]).sum()
    np.testing.assert_allclose(penalty(net), want, rtol=1e-5)


def test_penalties_of_recurrent_weights_and_embeddings():
    words = np.array([[1, 2, 0], [3, 3, 1]], np.int32)
    net = nv.Sequential(
        [
            layers.Embedding(5, 4, input_length=3, embeddings_regularizer=R.L2(2.0)),
            layers.LSTM(3, kernel_regularizer=R.L1(1.0), recurrent_regularizer=R.L2(0.5)),
        ]
    )
    net(words)
    held = net.state_dict()
    want = 2 * (held["embedding.weight"] ** 2).sum() + np.abs(held["lstm.weight"]).sum()
    want += 0.5 * (held["lstm.recurrent_weight"] ** 2).sum()
    np.testing.assert_allclose(penalty(net, words), want, rtol=1e-5)


def test_keras_names_for_normalisations():
    net = nv.Sequential([layers.BatchNorm(input_shape=(4,), gamma_regularizer=R.L2(1.0), beta_regularizer=R.L2(1.0))])
    net(X)
    assert penalty(net) == 4.0  # scales start at 1, shifts at 0, running statistics are not trained


def test_without_penalties_there_is_no_term():
    net = nv.Sequential([layers.Dense(4, input_dim=4)])
    assert penalty(net) is None


def test_penalties_do_nothing_at_inference():
    plain, net = (
        nv.Sequential([layers.Dense(3, input_dim=4, **more)])
        for more in ({}, {"kernel_regularizer": "l2", "activity_regularizer": "l1"})
    )
    assert len(plain.to_graph()) == len(net.to_graph())
    np.testing.assert_array_equal(plain(X), net(X))


def test_wrong_regularizers_are_one_clear_error():
    for make in (
        lambda: layers.Dense(3, kernel_regularizer="l3"),
        lambda: R.L2(-1),
        lambda: R.L1(l2=1),
        lambda: R.get(1),
    ):
        with pytest.raises(nv.NervureError) as caught:
            make()
        assert "test_regularizers.py" in str(caught.value)
