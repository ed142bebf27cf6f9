"""The reference interpreter."""

import weakref

import numpy as np
import pytest
from nervure.compiler.interpret import interpret, interpret_all
from nervure.compiler.ir import Graph, Node
from nervure.compiler.ops import OPS
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

F32 = TensorType("float32", (3,))
X = np.array([1, -2, 3], np.float32)


def counter():
    """total' = total + x; y = relu(total')."""
    graph = Graph("counter")
    x, total = graph.input("x", F32), graph.state(np.zeros(3, np.float32), "total")
    grown = graph.add("add", total, x, names=["grown"])
    graph.bind(total, grown)
    graph.output(graph.add("relu", grown, names=["y"]))
    return graph


def test_inputs_go_by_name_or_in_order():
    graph = Graph()
    a, b = graph.input("a", F32), graph.input("b", F32)
    graph.output(graph.add("sub", a, b))
    graph.output(a)
    for inputs in ({"a": X, "b": 2 * X}, [X, 2 * X]):
        found = interpret(graph, inputs)
        np.testing.assert_array_equal(found, [-X, X])


def test_state_goes_from_call_to_call_and_starts_from_its_initial_value():
    graph = counter()
    state = {}
    for n in (1, 2, 3):
        (y,) = interpret(graph, [X], state)
        np.testing.assert_array_equal(y, np.maximum(n * X, 0))
        np.testing.assert_array_equal(state["total"], n * X)
    np.testing.assert_array_equal(interpret(graph, [X]), [np.maximum(X, 0)])


def test_the_next_state_does_not_share_the_callers_arrays():
    graph = Graph()
    x, last = graph.input("x", F32), graph.state(np.zeros(3, np.float32), "last")
    graph.bind(last, x)
    graph.output(last)
    state, mine = {}, X.copy()
    interpret(graph, [mine], state)
    mine[:] = 7
    np.testing.assert_array_equal(state["last"], X)


def test_interpret_all_gives_every_tensor_by_name():
    found = interpret_all(counter(), {"x": X}, {"total": X})
    assert sorted(found) == ["grown", "total", "x", "y"]
    np.testing.assert_array_equal(found["grown"], 2 * X)
    np.testing.assert_array_equal(found["total"], X)


def test_a_fused_body_and_several_outputs():
    body = Graph("body")
    x = body.input("x", F32)
    for node in (body.add("neg", x), body.add("exp", x)):
        body.output(node)
    graph = Graph()
    pair = graph.values(graph.add("fused", graph.input("x", F32), body=body).node)
    graph.output(graph.add("add", *pair))
    np.testing.assert_allclose(interpret(graph, [X]), [np.exp(X) - X], rtol=1e-6)


def test_a_body_refuses_other_inputs():
    body = Graph("body")
    body.output(body.input("x", F32))
    graph = Graph()
    with pytest.raises(Exception, match=r"takes \(f32\[3\]\), got \(f32\[2\]\)"):
        graph.add("fused", graph.input("x", TensorType("float32", (2,))), body=body)


def test_cost_of_a_body_is_the_sum_of_its_operators():
    from nervure.compiler.ops.record import Call

    body = Graph("body")
    x = body.input("x", F32)
    body.output(body.add("add", body.add("neg", x), x))
    rule = OPS["fused"].cost
    single = OPS["add"].cost(Call((F32, F32), {})).flops + OPS["neg"].cost(Call((F32,), {})).flops
    assert rule(Call((F32,), {"body": body})).flops == single > 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no value for input 'x'"),
        ([X, X], "1 inputs wanted, 2 given"),
        ({"x": X[:2]}, r"input 'x' must be f32\[3\], got float32\[2\]"),
        ({"x": X.astype(np.float64)}, r"must be f32\[3\], got float64\[3\]"),
    ],
)
def test_wrong_inputs_are_told(inputs, message):
    with pytest.raises(NervureError, match=message):
        interpret(counter(), inputs)


def test_a_state_of_the_wrong_shape_is_told():
    with pytest.raises(NervureError, match="state 'total'"):
        interpret(counter(), [X], {"total": np.zeros(4, np.float32)})


def test_a_reference_that_breaks_its_own_types_is_a_bug():
    graph = counter()
    key = graph.find("relu")[0]
    graph.set_node(key, types=(TensorType("float32", (4,)),))
    with pytest.raises(TypeError, match=r"relu %y: declared f32\[4\], computed f32\[3\]"):
        interpret(graph, [X])


def test_dead_values_are_freed_on_the_way(monkeypatch):
    """At most two intermediates of a chain are alive at a time."""
    import nervure.compiler.interpret as module

    alive, most, plain = weakref.WeakSet(), 0, module.evaluate

    class Tracked(np.ndarray):
        __hash__ = object.__hash__

    def watched(node: Node, args):
        nonlocal most
        found = tuple(a.view(Tracked) for a in plain(node, args))
        alive.update(found)
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(module, "evaluate", watched)
    graph = Graph()
    at = graph.input("x", F32)
    for _ in range(20):
        at = graph.add("sin", at)
    graph.output(at)
    interpret(graph, [X])
    assert most <= 2
