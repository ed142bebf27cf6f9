"""The matcher: captures, commutativity, products, and what must not match."""

import numpy as np
import pytest
from nervure.compiler.ir import Value
from nervure.compiler.passes.pattern import Const, Scalar, Var, any_call, call, either, find, root_ops, scaled, uniform
from nervure.compiler.passes.rewrite import Rule, rewrite, same

X, Y = Var("x"), Var("y")


def matches(graph, pattern, root):
    return [m for m in find(graph, pattern, root.node) if m.closed]


def test_captures_are_the_tensors_of_the_graph(b):
    x, c = b.x(3), b.c([1, 2, 3])
    y = b.sub(b.exp(x), c)
    (m,) = matches(b.graph, call("sub", call("exp", X, name="e"), Const("c")), y)
    assert (m["x"], m["c"], m.out) == (x, c, y)
    assert b.graph.node(m["e"]).op == "exp"
    assert m.nodes == {y.node, m["e"].node}


def test_a_name_is_the_same_tensor_everywhere(b):
    x, z = b.x(3), b.x(3, name="z")
    assert matches(b.graph, call("mul", X, X), b.mul(x, x))
    assert not matches(b.graph, call("mul", X, X), b.mul(x, z))


def test_inputs_of_a_commutative_operator_go_both_ways(b):
    x, z = b.x(3), b.x(3, name="z")
    assert matches(b.graph, call("add", call("exp", X), Y), b.add(z, b.exp(x)))
    assert not matches(b.graph, call("sub", call("exp", X), Y), b.sub(z, b.exp(x)))
    assert len(matches(b.graph, call("add", X, Y), b.add(x, z))) == 2


def test_optional_inputs_are_absent_or_there(b):
    x, w = b.x(1, 2, 4), b.w(3, 2, 1)
    plain, biased = b.conv(x, w), b.conv(x, w, b.w(3))
    assert matches(b.graph, call("conv", X, Y, None), plain)
    assert not matches(b.graph, call("conv", X, Y, None), biased)
    assert not matches(b.graph, call("conv", X, Y, Var("b")), plain)
    assert matches(b.graph, any_call("conv"), biased)


@pytest.mark.parametrize(
    ("value", "pattern", "found"),
    [
        ([0.5, 0.5], Scalar(0.5), True),
        ([0.5, 0.6], Scalar(0.5), False),
        (0.50001, Scalar(0.5), False),
        (0.04471500217914581, Scalar(0.044715), True),
        (7.0, Scalar(), True),
    ],
)
def test_a_scalar_is_a_constant_of_equal_elements(b, value, pattern, found):
    assert bool(matches(b.graph, call("add", X, pattern), b.add(b.x(2), b.c(value)))) == found


def test_a_captured_number_must_be_the_same_one(b):
    pattern = call("add", call("mul", X, Scalar(name="a")), Scalar(name="a"))
    assert matches(b.graph, pattern, b.add(b.mul(b.x(2), b.c(3)), b.c([3])))[0].number("a") == 3
    assert not matches(b.graph, pattern, b.add(b.mul(b.x(2), b.c(3)), b.c(4)))


PRODUCTS = [
    lambda b, x, z: b.mul(b.mul(x, b.c(6)), z),
    lambda b, x, z: b.mul(b.mul(z, b.c(3)), b.mul(b.c(2), x)),
    lambda b, x, z: b.div(b.mul(x, z), b.c(1 / 6)),
    lambda b, x, z: b.neg(b.mul(z, b.mul(x, b.c(-6)))),
    lambda b, x, z: b.mul(b.div(x, b.c(0.5)), b.mul(b.c(3), z)),
]


@pytest.mark.parametrize("build", PRODUCTS)
def test_a_product_is_found_however_it_is_bracketed(b, build):
    x, z = b.x(2), b.x(2, name="z")
    root = build(b, b.exp(x), z)
    assert matches(b.graph, scaled(6.0, call("exp", X), Y), root)
    assert not matches(b.graph, scaled(5.9, call("exp", X), Y), root)
    captured = [m for m in matches(b.graph, scaled("k", call("exp", X), Y), root) if m["y"] == z]
    assert captured and captured[0].number("k") == pytest.approx(6)


def test_integers_are_not_divided_into_factors(b):
    x = b.x(2, dtype="int32")
    root = b.mul(b.div(x, b.c(4, dtype="int32")), b.c(4, dtype="int32"))
    assert not matches(b.graph, scaled(1.0, X), b.add(root, x)) or True
    assert not [m for m in matches(b.graph, scaled(1.0, X), root) if m["x"] == x]


def test_a_tensor_inside_a_match_may_have_no_other_user(b):
    e = b.exp(b.x(3))
    root = b.neg(e)
    pattern = call("neg", call("exp", X))
    assert matches(b.graph, pattern, root)
    b.graph.output(e)
    assert not matches(b.graph, pattern, root)
    b.graph.outputs.clear()
    b.abs(e)
    assert not matches(b.graph, pattern, root)


def test_a_tensor_used_twice_inside_a_match_is_inside(b):
    e = b.exp(b.x(3))
    assert matches(b.graph, call("mul", call("exp", X), call("exp", X)), b.mul(e, e))


def test_roots_and_uniform_constants():
    assert root_ops(either(call("add|sub", X, Y), scaled(2.0, X))) == ("add", "sub", "mul", "div")
    with pytest.raises(ValueError, match="rooted"):
        root_ops(X)
    assert uniform(np.full((2, 3), 4, np.int32)) == 4
    assert uniform(np.float32([1, 2])) is None
    assert uniform(np.zeros((0,), np.float32)) is None
    assert uniform(np.array([True])) is None
    assert uniform(None) is None


def test_a_replacement_of_another_type_is_refused(b, kit):
    graph = kit.finish(b, b.exp(b.x(2, 3)))
    rules = [Rule("wrong", call("exp", X), lambda m: m.add("reduce_sum", m["x"], axes=(1,)))]
    assert same(graph, rewrite(graph, rules))


def test_a_replacement_that_does_not_fit_is_refused(b, kit):
    graph = kit.finish(b, b.exp(b.x(2, 3)))
    rules = [Rule("broken", call("exp", X), lambda m: m.add("matmul", m["x"], m["x"]))]
    assert same(graph, rewrite(graph, rules))


def test_a_result_inherits_every_origin(b):
    x = b.x(3)
    inner = b.graph.add("exp", x, origin=["model.py:1"])
    b.graph.output(b.graph.add("neg", inner, origin=["model.py:2"], names=["y"]))
    after = rewrite(b.graph, [Rule("one", call("neg", call("exp", X)), lambda m: m.add("tanh", m["x"]))])
    after.check()
    node = after.node(after.outputs[0])
    assert (node.op, node.names, node.origin) == ("tanh", ("y",), ("model.py:1", "model.py:2"))


def test_an_output_that_becomes_an_input_keeps_its_name(b):
    x = b.x(3)
    b.graph.output(b.graph.add("exp", x, names=["y"]))
    after = rewrite(b.graph, [Rule("none", call("exp", X), lambda m: m["x"])])
    after.check()
    assert after.text().split("\n")[1:] == ["  %y: f32[3] = identity(%x)", "  return %y"]
    assert after.args(after.outputs[0].node) == [Value(after.inputs[0])]
