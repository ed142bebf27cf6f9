"""Constant folding, common subexpressions and dead code."""

import numpy as np
import pytest
from nervure.compiler.ir import Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.cse import eliminate_common_subexpressions
from nervure.compiler.passes.dce import eliminate_dead_code
from nervure.compiler.passes.fold import LIMIT, SMALL, fold_constants


def test_a_constant_expression_is_one_constant(b, kit):
    inner = b.mul(b.exp(b.c([0.0, 1.0])), b.c(2))
    graph = kit.finish(b, b.add(b.x(2), inner))
    after = fold_constants(graph)
    after.check()
    assert kit.body(after) == ("%mul_3: f32[2] = const() value={2,5.43656}\n%y: f32[2] = add(%x, %mul_3)\nreturn %y")
    assert set(after.node(after.args(after.outputs[0].node)[1]).origin) >= set(graph.node(inner).origin)
    kit.assert_same_results(graph, after)


def test_nothing_with_a_variable_is_folded(b, kit):
    graph = kit.finish(b, b.add(b.graph.param(np.float32([1]), "p"), b.graph.state(np.float32([2]), "s")))
    assert kit.operations(fold_constants(graph)) == {"add": 1}


def test_all_outputs_of_an_operation_are_folded(b):
    values = b.topk(b.c([3, 1, 2]), k=2, axis=0)
    x = b.x(2)
    b.graph.output(b.add(x, values))
    b.graph.output(b.add(b.cast(x, to="int64"), Value(values.node, 1)))
    after = fold_constants(b.graph)
    after.check()
    assert not after.find("topk")
    assert [after.constant(after.args(v.node)[1]).tolist() for v in after.outputs] == [[3, 2], [0, 2]]


def test_an_output_that_is_constant_keeps_its_name(b):
    b.graph.output(b.graph.add("neg", b.c([1, 2]), names=["answer"]))
    after = canonicalize(b.graph, check=True)
    assert after.output_names == ["answer"]
    node = after.node(after.outputs[0])
    assert (node.op, node.names) == ("identity", ("answer",))


@pytest.mark.parametrize(("rows", "folded"), [(LIMIT // 1024 // 4, True), (LIMIT // 1024 // 4 + 1, False)])
def test_a_constant_does_not_grow_beyond_the_limit(b, kit, rows, folded):
    outer = b.add(b.w(rows, 1), b.w(1, 1024))
    after = fold_constants(kit.finish(b, b.add(b.x(rows, 1024), outer)))
    assert kit.operations(after) == {"add": 1 if folded else 2}


def test_a_large_constant_is_folded_where_that_takes_no_more(b, kit):
    w = b.w(700, 600)
    y = b.matmul(b.x(2, 700), b.transpose(b.transpose(b.reshape(w, shape=(600, 700)), perm=(1, 0)), perm=(0, 1)))
    after = fold_constants(kit.finish(b, y))
    assert kit.operations(after) == {"matmul": 1}
    kit.assert_same_results(b.graph, after)


def test_a_large_constant_with_another_user_is_not_copied(b, kit):
    w = b.w(700, 600)
    b.graph.output(b.matmul(b.x(2, 600), b.transpose(w, perm=(1, 0))))
    b.graph.output(b.matmul(b.x(2, 700, name="z"), w))
    assert kit.operations(fold_constants(b.graph)) == {"matmul": 2, "transpose": 1}


def test_a_large_broadcast_stays_one_but_is_looked_through(b, kit):
    wide = b.expand(b.c([1.5]), shape=(SMALL,))
    total = b.reduce_sum(b.mul(wide, b.iota(shape=(SMALL,), axis=0, dtype="float32")), axes=(0,))
    graph = kit.finish(b, b.mul(b.add(b.x(SMALL), wide), total))
    after = fold_constants(graph)
    after.check()
    assert kit.operations(after) == {"add": 1, "expand": 1, "mul": 1}
    kit.assert_same_results(graph, after)


def test_a_huge_broadcast_is_never_computed(b, kit):
    graph = kit.finish(b, b.add(b.x(), b.reduce_sum(b.expand(b.c(1), shape=(10**6, 10**6)), axes=(0, 1))))
    assert kit.operations(fold_constants(graph)) == {"add": 1, "expand": 1, "reduce_sum": 1}


def test_equal_expressions_are_computed_once(b, kit):
    x, z = b.x(3), b.x(3, name="z")
    left = b.mul(b.add(x, z), b.c([1, 2, 3]))
    right = b.mul(b.c([1, 2, 3]), b.add(z, x))
    graph = kit.finish(b, b.sub(b.relu(left), b.neg(right)))
    after = eliminate_common_subexpressions(graph)
    after.check()
    assert kit.operations(after) == {"add": 1, "mul": 1, "neg": 1, "relu": 1, "sub": 1}
    assert len(after.find("const")) == 1
    kit.assert_same_results(graph, after)


DIFFERENT = {
    "order": lambda b, x, z: (b.sub(x, z), b.sub(z, x)),
    "attributes": lambda b, x, z: (b.leaky_relu(x, alpha=0.1), b.leaky_relu(x, alpha=0.2)),
    "zeros": lambda b, x, z: (b.div(x, b.c(0.0)), b.div(x, b.c(-0.0))),
    "types": lambda b, x, z: (b.cast(b.c([1]), to="float64"), b.cast(b.c([1], dtype="int32"), to="float64")),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_expressions_stay_different(b, kit, name):
    pair = DIFFERENT[name](b, b.x(3), b.x(3, name="z"))
    for value in pair:
        b.graph.output(value)
    after = eliminate_common_subexpressions(b.graph)
    assert len(set(after.outputs)) == 2
    assert kit.operations(after) == kit.operations(b.graph)


def test_two_outputs_that_are_equal_stay_two_tensors(b):
    x = b.x(3)
    for name in ("first", "second"):
        b.graph.output(b.graph.add("relu", x, names=[name]))
    after = canonicalize(b.graph, check=True)
    assert after.output_names == ["first", "second"]
    assert [after.tensor_name(v) for v in after.outputs] == ["first", "second"]
    assert [after.node(v).op for v in after.outputs] == ["relu", "identity"]


def test_parameters_and_states_are_never_merged(b):
    value = np.float32([1, 2])
    for i in range(2):
        for kind in ("param", "state"):
            b.graph.output(b.neg(getattr(b.graph, kind)(value, f"{kind}{i}")))
    after = canonicalize(b.graph, check=True)
    assert len(after.find("param")) == len(after.find("state")) == 2
    assert len(after.find("neg")) == 4


def test_dead_code_goes_and_inputs_stay(b, kit):
    x = b.x(2)
    b.x(4, name="unused")
    b.exp(b.neg(x))
    state = b.graph.state(np.float32([0, 0]), "s")
    b.graph.bind(state, b.add(state, x))
    b.graph.output(b.relu(x))
    after = eliminate_dead_code(b.graph)
    after.check()
    assert kit.operations(after) == {"add": 1, "relu": 1}
    assert len(after.inputs) == 2 and len(b.graph) == len(after) + 2
