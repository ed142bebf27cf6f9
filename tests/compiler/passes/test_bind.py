"""Binding of named dimensions."""

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.passes.bind import bind_dimensions, named_dimensions
from nervure.compiler.types import TensorType
from nervure.errors import NervureError


def network():
    """A dense layer over [batch, time, 4], its last step sliced off and flattened."""
    graph = Graph("net")
    x = graph.input("x", TensorType("float32", ("batch", "time", 4)), ["net.py:1"])
    w = graph.const(np.arange(12, dtype=np.float32).reshape(4, 3), "w")
    y = graph.add("matmul", x, w, names=["y"])
    cut = {"starts": (0, 0, 1), "stops": ("batch", "time", 3), "steps": (1, 1, 1)}
    flat = graph.add("reshape", graph.add("slice", y, **cut), shape=("batch", "time", -1), origin=["net.py:4"])
    wide = graph.add("expand", graph.const(np.float32([1, 2])), shape=("batch", "time", 2))
    graph.output(graph.add("add", flat, wide, names=["z"]))
    return graph


def test_all_types_and_shape_attributes_are_bound():
    graph = network()
    before = graph.text()
    bound = bind_dimensions(graph, {"batch": 2, "time": 5})
    bound.check()
    assert all(bound.type(v).static for key in bound for v in bound.values(key))
    assert bound.type(bound.outputs[0]).shape == (2, 5, 2)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = (x @ weights)[:, :, 1:] + np.float32([1, 2])
    np.testing.assert_allclose(interpret(bound, [x])[0], expected, rtol=1e-5)
    assert graph.text() == before


def test_several_bindings_share_the_constants():
    graph = network()
    one, two = (bind_dimensions(graph, {"batch": n, "time": 3}) for n in (1, 8))
    assert one.node(one.find("const")[0]).array is two.node(two.find("const")[0]).array
    assert (one.type(one.outputs[0]).shape[0], two.type(two.outputs[0]).shape[0]) == (1, 8)


def test_bodies_are_bound_too():
    graph = Graph()
    x = graph.input("x", TensorType("float32", ("n", 4)))
    body = Graph("body")
    body.output(body.add("reshape", body.input("a", TensorType("float32", ("n", 4))), shape=(-1, 2, 2)))
    graph.output(graph.add("fused", x, body=body))
    bound = bind_dimensions(graph, {"n": 6})
    bound.check()
    assert bound.type(bound.outputs[0]).shape == (6, 2, 2)
    assert not body.type(body.outputs[0]).static


def test_a_graph_without_names_stays_as_it_is():
    graph = Graph()
    graph.output(graph.add("neg", graph.input("x", TensorType("float32", (2,)))))
    assert bind_dimensions(graph, {}).text() == graph.text() and named_dimensions(graph) == {}


def test_unbound_dimensions_are_named_with_their_places():
    with pytest.raises(NervureError) as caught:
        bind_dimensions(network(), {"time": 5})
    assert str(caught.value).startswith("dimension 'batch' not bound\n  at: input 'x', axis 0\n")
    with pytest.raises(NervureError, match="dimensions 'batch', 'time' not bound") as caught:
        bind_dimensions(network(), {})
    assert "batch=1, time=1" in str(caught.value)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"batch": 2, "time": 5, "Time": 1}, r"no dimension is named 'Time'\n  why: .*: batch, time"),
        ({"batch": 0, "time": 5}, "'batch' must be a whole number from 1 on, got 0"),
        ({"batch": 2, "time": "5"}, "'time' must be a whole number"),
        ({"batch": True, "time": 5}, "got True"),
    ],
)
def test_wrong_bindings_are_told(bindings, message):
    with pytest.raises(NervureError, match=message):
        bind_dimensions(network(), bindings)


def test_a_size_that_does_not_fit_names_the_operator_and_its_origin():
    graph = Graph()
    x = graph.input("x", TensorType("float32", ("n", 3)))
    last = graph.add("gather", x, graph.const(np.array([5])), axis=0, names=["last"], origin=["net.py:7"])
    graph.output(last)
    assert bind_dimensions(graph, {"n": 6}).type(last).shape == (1, 3)
    with pytest.raises(NervureError) as caught:
        bind_dimensions(graph, {"n": 4})
    assert str(caught.value) == (
        "the network does not work with n=4\n  at: net.py:7\n"
        "  why: gather 'last': index 5 is out of range for an axis of 4 elements"
    )
