"""The graph: building, rewriting, its rules and its text."""

import time

import networkx as nx
import numpy as np
import pytest
from nervure.compiler.check import problems
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, GraphError, Node, Value, join_origins
from nervure.compiler.ops import OpError
from nervure.compiler.types import TensorType, type_of

F32 = TensorType("float32", (2, 3))
ONES = np.ones((2, 3), np.float32)


def small():
    """y = relu(x + b), z = x + b as a second output."""
    graph = Graph("small")
    x = graph.input("x", F32, ["net.py:1"])
    b = graph.const(ONES, "b", ["net.py:2"])
    z = graph.add("add", x, b, names=["z"], origin=["net.py:3"])
    y = graph.add("relu", z, names=["y"])
    graph.output(y)
    graph.output(z, "sum")
    return graph


def value(graph, name):
    return next(v for key in graph for v in graph.values(key) if graph.tensor_name(v) == name)


def run(graph, x=ONES):
    return [a.tolist() for a in interpret(graph, {"x": x})]


# -- building and reading --------------------------------------------------------------------------------------------


def test_a_graph_says_what_was_built():
    graph = small()
    x, b, z, y = (value(graph, n) for n in "xbzy")
    graph.check()
    assert len(graph) == 4 and list(graph) == [x.node, b.node, z.node, y.node]
    assert graph.args(z.node) == [x, b] and graph.args(x.node) == []
    assert graph.users(z) == [(y.node, 0)] and graph.uses(z) == 2 and graph.uses(y) == 1
    assert graph.type(y) == F32 and graph.find("relu") == [y.node]
    assert graph.constant(b) is graph.node(b).array and graph.constant(x) is None and graph.constant(None) is None
    assert graph.output_names == ["y", "sum"]


def test_an_operation_inherits_the_origins_of_its_inputs_unless_it_has_its_own():
    graph = small()
    assert graph.node(value(graph, "z")).origin == ("net.py:3",)
    both = graph.add("add", value(graph, "y"), value(graph, "x"))
    assert graph.node(both).origin == ("net.py:3", "net.py:1")
    assert join_origins([("a", "b"), ("b", "c")]) == ("a", "b", "c")


def test_names_are_unique_and_wished_names_are_kept():
    graph = Graph()
    names = [graph.tensor_name(graph.const(ONES, "w")) for _ in range(3)]
    assert names == ["w", "w_1", "w_2"]
    top = graph.add("topk", graph.input("x", F32), names=["best", "w"], k=1)
    assert [graph.tensor_name(v) for v in graph.values(top.node)] == ["best", "w_3"]


def test_optional_inputs_in_the_middle_may_be_absent():
    graph = Graph()
    x = graph.input("x", TensorType("float32", (1, 2, 4)))
    bias = graph.const(np.zeros(4, np.float32), "bias")
    y = graph.add("layer_norm", x, None, bias, axis=-1, epsilon=1e-5)
    assert graph.args(y.node) == [x, None, bias]


def test_arrays_are_read_only_and_do_not_follow_the_caller():
    graph = Graph()
    mine = np.arange(6, dtype=">f4").reshape(2, 3).T
    held = graph.node(graph.const(mine, "c")).array
    mine[0, 0] = 99
    assert held[0, 0] == 0 and not held.flags.writeable and held.flags.c_contiguous and held.dtype.isnative
    shared = np.zeros(3)
    shared.flags.writeable = False
    assert graph.node(graph.const(shared, "d")).array is shared
    with pytest.raises(TypeError, match="complex"):
        graph.const(np.zeros(2, complex), "e")


def test_wrong_inputs_are_refused_when_the_operation_is_added():
    graph = small()
    before = graph.text()
    with pytest.raises(OpError, match="perm"):
        graph.add("transpose", value(graph, "x"), perm=(0, 2))
    with pytest.raises(OpError, match="no operator 'reluu'"):
        graph.add("reluu", value(graph, "x"))
    with pytest.raises(OpError, match="no attribute axis"):
        graph.add("relu", value(graph, "x"), axis=1)
    assert graph.text() == before


# -- rewriting -------------------------------------------------------------------------------------------------------


def test_a_copy_is_independent_and_shares_arrays():
    graph = small()
    before = graph.text()
    twin = graph.copy()
    assert twin.text() == before and twin.node(value(twin, "b")).array is graph.node(value(graph, "b")).array
    y = twin.add("neg", value(twin, "y"), names=["n"])
    twin.replace(value(twin, "z"), value(twin, "x"))
    twin.outputs[0] = y
    twin.bindings[0] = y
    twin.meta["k"] = 1
    twin.prune()
    assert graph.text() == before and not graph.bindings and not graph.meta
    assert graph.tensor_name(graph.add("neg", value(graph, "y"), names=["n"])) == "n"


def test_replace_moves_every_use_and_the_name():
    graph = small()
    z = value(graph, "z")
    other = graph.add("sub", value(graph, "x"), value(graph, "b"), names=["d"])
    state = graph.state(ONES, "s")
    graph.bind(state, z)
    graph.replace(z, other)
    assert graph.outputs[1] == other and graph.bindings[state.node] == other and graph.uses(z) == 0
    assert graph.tensor_name(other) == "z" and graph.tensor_name(z) == "d"
    assert graph.prune() == 1
    graph.check()
    assert run(graph) == [[[0.0] * 3] * 2] * 2


def test_replace_can_set_an_operation_behind_a_tensor():
    graph = small()
    z = value(graph, "z")
    behind = graph.add("neg", z)
    graph.replace(z, behind, keep_name=False)
    graph.check()
    assert graph.args(behind.node) == [z] and graph.users(behind) == [(value(graph, "y").node, 0)]
    assert run(graph) == [[[0.0] * 3] * 2, [[-2.0] * 3] * 2]


def test_replace_keeps_the_names_of_stored_tensors():
    graph = small()
    x, y = value(graph, "x"), value(graph, "y")
    graph.replace(y, x)
    assert graph.tensor_name(x) == "x" and graph.outputs[0] == x and graph.output_names[0] == "y"


def test_replace_rewires_both_uses_of_one_user():
    graph = small()
    z = value(graph, "z")
    twice = graph.add("mul", z, z)
    graph.replace(z, value(graph, "x"))
    assert graph.args(twice.node) == [value(graph, "x")] * 2


def test_replace_moves_one_output_of_several():
    graph = Graph()
    x = graph.input("x", F32)
    first, second = graph.values(graph.add("topk", x, k=1, names=["v", "i"]).node)
    user = graph.add("cast", second, to="float32")
    other = graph.add("cast", first, to="int64")
    graph.replace(second, other)
    assert graph.args(user.node) == [other] and graph.args(other.node) == [first]


def test_set_arg_rewires_one_input():
    graph = small()
    z, x = value(graph, "z"), value(graph, "x")
    graph.set_arg(z.node, 1, x)
    assert graph.args(z.node) == [x, x]
    graph.set_arg(z.node, 1, None)
    assert graph.args(z.node) == [x]


def test_remove_refuses_what_is_in_use():
    graph = small()
    with pytest.raises(GraphError, match="%z is in use"):
        graph.remove(value(graph, "z").node)
    spare = graph.input("spare", F32)
    graph.remove(spare.node)
    graph.check()


def test_prune_keeps_inputs_and_what_bindings_need():
    graph = Graph()
    x, unused = graph.input("x", F32), graph.input("unused", F32)
    state, idle = graph.state(ONES, "s"), graph.state(ONES, "idle")
    graph.bind(state, graph.add("add", state, x))
    graph.output(graph.add("neg", x))
    graph.add("exp", x)
    assert graph.prune() == 2
    assert idle.node not in graph.nx and unused.node in graph.nx and graph.find("add") and not graph.find("exp")
    graph.check()


# -- the rules, each broken once -------------------------------------------------------------------------------------


def insert(graph, op="relu", attrs=None, types=(F32,), names=("new",), origin=("here",), args=()):
    return graph.insert(Node(op, attrs or {}, types, names, origin), args)


def writable(graph):
    insert(graph, "const", {"value": np.ones((2, 3), np.float32)})


def frozen(*shape):
    array = np.ones(shape, np.float32)
    array.flags.writeable = False
    return array


BREACHES = {
    "no origin": lambda g: insert(g, origin=(), args=[value(g, "x")]),
    "2 names for 1 outputs": lambda g: insert(g, names=("p", "q"), args=[value(g, "x")]),
    "two edges into one input": lambda g: g.nx.add_edge(value(g, "b").node, value(g, "y").node, out=0, arg=0),
    "uses output 3 of const %b": lambda g: g.set_arg(value(g, "y").node, 0, Value(value(g, "b").node, 3)),
    "a stored tensor has inputs": lambda g: g.set_arg(value(g, "b").node, 0, value(g, "x")),
    "a stored tensor has 2 outputs": lambda g: insert(g, "const", {}, (F32, F32), ("p", "q")),
    "no initial value": lambda g: insert(g, "param"),
    "declared f32[2,3], holds float32[4]": lambda g: insert(g, "const", {"value": frozen(4)}),
    "its array can be written to": writable,
    "holds complex128[1]": lambda g: insert(g, "const", {"value": np.zeros(1, complex)}),
    "no such operator": lambda g: insert(g, "reluu", args=[value(g, "x")]),
    "needs perm": lambda g: insert(g, "transpose", args=[value(g, "x")]),
    "relu takes x; got 0 inputs": lambda g: insert(g),
    "attributes without their default: alpha": lambda g: insert(g, "leaky_relu", args=[value(g, "x")]),
    "declared f32[9], inferred f32[2,3]": lambda g: g.set_node(
        value(g, "y").node, types=(TensorType("float32", (9,)),)
    ),
    "two tensors are named 'z'": lambda g: g.set_node(value(g, "y").node, names=("z",)),
    "two outputs are named 'y'": lambda g: g.output(value(g, "y")),
    "the inputs of the signature": lambda g: g.inputs.clear(),
    "2 outputs, 3 names": lambda g: g.output_names.append("more"),
    "refers to Value(node=99, index=0)": lambda g: g.outputs.append(Value(99)),
    "no param or state": lambda g: g.bind(value(g, "b"), value(g, "y")),
    "is bound to a tensor of f32[2,3]": lambda g: g.bind(g.state(np.ones(4, np.float32), "s"), value(g, "y")),
    "cycle through": lambda g: g.set_arg(value(g, "z").node, 0, value(g, "y")),
}


@pytest.mark.parametrize("message", BREACHES)
def test_each_broken_rule_is_reported(message):
    graph = small()
    BREACHES[message](graph)
    found = problems(graph)
    assert any(message in line for line in found), found
    with pytest.raises(GraphError, match="graph 'small' breaks the IR's rules"):
        graph.check()


def test_a_breach_inside_a_body_is_reported_with_its_place():
    body = small()
    outer = Graph("outer")
    x = outer.input("x", F32)
    outer.output(outer.add("fused", x, body=body, names=["f", "g"], origin=["fuse"]))
    outer.check()
    body.set_node(value(body, "y").node, origin=())
    assert problems(outer) == ["fused %f (fuse): relu %y: no origin"]


def test_all_breaches_are_reported_at_once_and_printably():
    graph = small()
    insert(graph, origin=(), names=("evil\x1b[31m\n",), args=[value(graph, "x")])
    graph.output_names.append("more")
    found = problems(graph)
    assert len(found) == 2 and all(line.isprintable() for line in found)


# -- text ------------------------------------------------------------------------------------------------------------

SMALL_TEXT = """\
graph small(%x: f32[2,3])
  %b: f32[2,3] = const() value={1,1,1,1,...}
  %z: f32[2,3] = add(%x, %b)
  %y: f32[2,3] = relu(%z)
  return %y, %z as sum"""


def test_text_is_stable():
    assert small().text() == small().text() == small().copy().text() == SMALL_TEXT


def test_text_shows_bodies_bindings_absent_inputs_and_attributes():
    graph = Graph("g")
    x = graph.input("x", F32)
    state = graph.state(np.zeros((2, 3), np.float32), "s")
    fused = graph.add("fused", x, body=small(), names=["f", "g"])
    graph.bind(state, fused)
    moved = graph.add("transpose", fused, perm=(1, 0), names=["t"])
    graph.output(graph.add("layer_norm", moved, None, graph.const(np.zeros(2, np.float32), "b"), axis=-1, epsilon=1e-5))
    text = graph.text()
    assert "  %f: f32[2,3], %g: f32[2,3] = fused(%x)\n    graph small(%x: f32[2,3])\n" in text
    assert "      return %y, %z as sum\n" in text
    assert "%t: f32[3,2] = transpose(%f) perm=[1,0]" in text
    assert "layer_norm(%t, -, %b) axis=-1 epsilon=1e-05" in text
    assert "  bind %s <- %f\n" in text


def test_text_escapes_hostile_names():
    graph = Graph("a\nb")
    graph.output(graph.input("x\x1b[2J", F32))
    assert all(line.isprintable() for line in graph.text().split("\n"))


def test_order_depends_on_the_graph_alone():
    graph = small()
    shuffled = small()
    edges = list(shuffled.nx.edges(data=True))
    shuffled.nx.remove_edges_from([e[:2] for e in edges])
    shuffled.nx.add_edges_from(reversed(edges))
    assert shuffled.order() == graph.order() and nx.is_directed_acyclic_graph(graph.nx)


# -- size ------------------------------------------------------------------------------------------------------------


def chain(count):
    graph = Graph("chain")
    at = graph.input("x", F32)
    for i in range(count // 2):
        at = graph.add(("relu", "neg", "exp")[i % 3], graph.add("add", at, graph.const(ONES)))
    graph.output(at)
    return graph


def test_a_graph_of_a_thousand_nodes_is_quick():
    begin = time.process_time()
    graph = chain(1000)
    graph.check()
    assert graph.text() == graph.copy().text()
    for key in graph.find("neg"):
        graph.replace(graph.values(key)[0], graph.args(key)[0])
    graph.prune()
    graph.check()
    assert time.process_time() - begin < 2.0


def test_unique_names_take_linear_time():
    graph = Graph()
    begin = time.process_time()
    for _ in range(20_000):
        graph.const(np.float32(0))
    assert time.process_time() - begin < 2.0


# -- types -----------------------------------------------------------------------------------------------------------


def test_tensor_types():
    named = TensorType("bfloat16", ("batch", 3))
    assert str(named) == "bf16[batch,3]" and not named.static and named.rank == 2
    with pytest.raises(ValueError, match="unbound"):
        _ = named.size
    assert (F32.size, F32.nbytes, F32.itemsize) == (6, 24, 4)
    assert type_of(np.zeros((), bool)) == TensorType("bool", ())
