"""Gradients of products, convolutions, pools, norms and attention over many shapes, and gradients of gradients:
against central differences of the reference interpreter in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.types import TensorType

STEP = 1e-6
Shapes = Sequence[tuple[int, ...]]


def _inner(graph: Graph, y: Value, weight: Value) -> Value:
    product = graph.add("mul", y, weight)
    return graph.add("reduce_sum", product, axes=tuple(range(graph.type(y).rank)))


def _run(graph: Graph, outputs: Sequence[Value], feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    work = graph.copy()
    work.outputs, work.output_names = list(outputs), [f"y{i}" for i in range(len(outputs))]
    return interpret(work, feeds)


def _check(
    build: Callable[..., Value], shapes: Shapes, *, order: int = 1, training: bool = False, spread: float = 1.0
) -> tuple[Graph, list[Value]]:
    """Every element's gradient of sum(w * build(inputs)); with ``order`` 2 that of a weighted sum of the gradients."""
    rng = np.random.default_rng(len(shapes))
    graph = Graph("g")
    inputs = [graph.input(f"x{i}", TensorType("float64", s)) for i, s in enumerate(shapes)]
    feeds = [rng.uniform(-spread, spread, s) for s in shapes]

    def weighted(values: Sequence[Value]) -> Value:
        total = None
        for value in values:
            weight = graph.const(rng.uniform(0.5, 1.5, graph.type(value).dims))
            term = _inner(graph, value, weight)
            total = term if total is None else graph.add("add", total, term)
        assert total is not None
        return total

    loss = weighted([build(graph, *inputs)])
    if training:
        training_form(graph, loss, inputs)
    for _ in range(order - 1):
        loss = weighted(gradients(graph, loss, inputs))
    found = gradients(graph, loss, inputs)
    for slot, got in enumerate(_run(graph, found, feeds)):
        expected = np.zeros_like(feeds[slot])
        for at in np.ndindex(*expected.shape):
            sides = []
            for sign in (1, -1):
                moved = [f.copy() for f in feeds]
                moved[slot][at] += sign * STEP
                sides.append(float(_run(graph, [loss], moved)[0]))
            expected[at] = (sides[0] - sides[1]) / (2 * STEP)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * max(1.0, float(np.abs(expected).max())))
    return graph, found


def _op(name: str, **attrs: Any) -> Callable[..., Value]:
    return lambda graph, *xs: graph.add(name, *xs, **attrs)


# -- products ------------------------------------------------------------------------------------------------------

_LEFT = [(3,), (2, 3), (1, 3), (2, 1, 3), (2, 2, 3), (1, 2, 3), (2, 1, 2, 3)]
_RIGHT = [(3,), (3, 2), (3, 1), (2, 3, 2), (1, 3, 2), (2, 1, 3, 2)]


@pytest.mark.parametrize(("a", "b"), list(itertools.product(_LEFT, _RIGHT)), ids=str)
def test_matmul_of_all_ranks(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    _check(_op("matmul"), [a, b])


def test_matmul_twice() -> None:
    _check(_op("matmul"), [(2, 2, 3), (3, 2)], order=2)
    _check(_op("matmul"), [(3,), (2, 3, 2)], order=2)


def test_a_batch_times_a_matrix_makes_one_product_for_the_matrix() -> None:
    graph, (_, to_w) = _check(_op("matmul"), [(2, 3, 4), (4, 2)])
    work = graph.copy()
    work.outputs, work.output_names = [to_w], ["dw"]
    work.prune()
    ops = [work.node(k).op for k in work.order()]
    assert ops.count("matmul") == 1
    assert "reduce_sum" not in ops


# -- convolutions ----------------------------------------------------------------------------------------------------


def _conv(rank: int, **given: Any) -> dict[str, Any]:
    return {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1, **given}


CONVS: list[tuple[Shapes, dict[str, Any]]] = [
    ([(2, 2, 5, 4), (3, 2, 3, 2), (3,)], _conv(2)),
    ([(1, 2, 6, 7), (2, 2, 3, 3)], _conv(2, strides=(2, 3), pads=(1, 2, 0, 1))),  # rows that no window reaches
    ([(1, 2, 7, 6), (2, 2, 2, 3)], _conv(2, strides=(2, 2), dilations=(3, 2), pads=(1, 1, 2, 0))),
    ([(1, 4, 4, 4), (6, 2, 3, 3), (6,)], _conv(2, group=2, pads=(1, 1, 1, 1))),
    ([(2, 3, 5, 5), (3, 1, 3, 3)], _conv(2, group=3, strides=(2, 2), pads=(1, 1, 1, 1))),
    ([(1, 3, 4, 4), (2, 3, 1, 1)], _conv(2, strides=(3, 3))),
    ([(1, 1, 3, 3), (1, 1, 1, 1)], _conv(2, pads=(2, 1, 1, 2))),  # positions that are padding alone
    ([(2, 2, 9), (2, 2, 3), (2,)], _conv(1, strides=(2,), dilations=(2,), pads=(1, 2))),
    ([(1, 4, 6), (2, 2, 2)], _conv(1, group=2, strides=(4,))),
    ([(1, 2, 3, 4, 3), (2, 1, 2, 2, 2), (2,)], _conv(3, group=2, strides=(1, 2, 1), pads=(0, 1, 0, 1, 0, 1))),
    ([(1, 1, 3, 3, 4), (2, 1, 2, 1, 2)], _conv(3, dilations=(2, 1, 2))),
]


@pytest.mark.parametrize(("shapes", "attrs"), CONVS, ids=lambda v: str(v) if isinstance(v, list) else "")
def test_conv(shapes: Shapes, attrs: dict[str, Any]) -> None:
    _check(_op("conv", **attrs), shapes)


@pytest.mark.parametrize("number", [0, 1, 3, 7])
def test_conv_twice(number: int) -> None:
    shapes, attrs = CONVS[number]
    _check(_op("conv", **attrs), shapes[:2], order=2)


TRANSPOSED: list[tuple[Shapes, dict[str, Any]]] = [
    ([(2, 2, 3, 2), (2, 3, 3, 2), (3,)], _conv(2, output_padding=(0, 0))),
    ([(1, 2, 3, 3), (2, 2, 3, 3)], _conv(2, strides=(2, 3), pads=(1, 0, 0, 1), output_padding=(1, 2))),
    ([(1, 4, 2, 3), (4, 2, 2, 2), (4,)], _conv(2, group=2, strides=(2, 2), output_padding=(0, 1))),
    ([(1, 2, 3, 3), (2, 1, 2, 2), (1,)], _conv(2, strides=(2, 1), dilations=(3, 4), output_padding=(2, 3))),
    (
        [(1, 2, 3, 3), (2, 1, 3, 2)],
        _conv(2, strides=(2, 1), pads=(1, 0, 1, 2), dilations=(3, 4), output_padding=(2, 3)),
    ),
    ([(2, 3, 4), (3, 1, 4)], _conv(1, group=3, strides=(2,), pads=(1, 1), output_padding=(0,))),
    ([(1, 1, 2, 2, 2), (1, 2, 2, 1, 2), (2,)], _conv(3, strides=(1, 2, 1), output_padding=(0, 1, 0))),
]


@pytest.mark.parametrize(("shapes", "attrs"), TRANSPOSED, ids=lambda v: str(v) if isinstance(v, list) else "")
def test_conv_transpose(shapes: Shapes, attrs: dict[str, Any]) -> None:
    _check(_op("conv_transpose", **attrs), shapes)


def test_conv_transpose_twice() -> None:
    _check(_op("conv_transpose", **TRANSPOSED[1][1]), TRANSPOSED[1][0], order=2)


# -- pools -----------------------------------------------------------------------------------------------------------


def _pool(rank: int, **given: Any) -> dict[str, Any]:
    return {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "ceil_mode": False, **given}


POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 4, 6), _pool(2, kernel_shape=(2, 3), strides=(2, 3))),  # tiles
    ((1, 2, 5, 7), _pool(2, kernel_shape=(2, 3), strides=(2, 3))),  # tiles and a rest
    ((1, 2, 6, 5), _pool(2, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))),
    ((1, 1, 5, 6), _pool(2, kernel_shape=(3, 2), strides=(2, 3), ceil_mode=True)),
    ((2, 1, 6, 6), _pool(2, kernel_shape=(3, 3), strides=(3, 3), pads=(1, 1, 1, 1), ceil_mode=True)),
    ((1, 1, 8, 7), _pool(2, kernel_shape=(3, 2), dilations=(2, 3))),
    ((1, 2, 9), _pool(1, kernel_shape=(4,), strides=(3,), pads=(2, 1))),
    ((1, 1, 4, 3, 5), _pool(3, kernel_shape=(2, 3, 2), strides=(2, 1, 2), pads=(0, 1, 1, 0, 1, 0))),
]


@pytest.mark.parametrize(("shape", "attrs"), POOLS, ids=lambda v: str(v) if isinstance(v, tuple) else "")
def test_pools(shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    _check(_op("max_pool", **attrs), [shape])
    for include in (False, True):
        _check(_op("avg_pool", **attrs, count_include_pad=include), [shape])


def test_pools_twice() -> None:
    def squared(name: str) -> Callable[..., Value]:
        def build(graph: Graph, x: Value) -> Value:
            y = graph.add(name, x, **POOLS[2][1])
            return graph.add("mul", y, y)

        return build

    _check(squared("max_pool"), [(1, 1, 5, 5)], order=2)
    _check(squared("avg_pool"), [(1, 1, 5, 5)], order=2)


def test_the_first_of_equal_elements_gets_the_gradient() -> None:
    graph = Graph("g")
    x = graph.input("x", TensorType("float64", (1, 1, 2, 4)))
    y = graph.add("max_pool", x, **_pool(2, kernel_shape=(2, 2), strides=(2, 2)))
    (grad,) = gradients(graph, _inner(graph, y, graph.const(np.array([[[[3.0, 5.0]]]]))), [x])
    (found,) = _run(graph, [grad], [np.array([[[[1.0, 1, 0, 2], [1, 1, 2, 2]]]])])
    np.testing.assert_array_equal(found, [[[[3, 0, 0, 5], [0, 0, 0, 0]]]])


# -- normalisations and attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(op: str, axis: int) -> None:
    _check(_op(op, axis=axis), [(2, 3, 4)], spread=3.0)
    _check(_op(op, axis=axis), [(2, 2, 3)], order=2)


@pytest.mark.parametrize("shapes", [[(2, 3, 4)], [(2, 3, 4), (4,)], [(2, 3, 4), (3, 4), (4,)], [(3, 4), (1,), (4,)]])
def test_layer_and_rms_norm(shapes: Shapes) -> None:
    axis = 1 if len(shapes[0]) == 3 else -1
    _check(_op("layer_norm", axis=axis, epsilon=1e-3), shapes)
    _check(_op("rms_norm", axis=axis, epsilon=1e-3), shapes[:2])


def test_layer_norm_twice() -> None:
    _check(_op("layer_norm", axis=-1, epsilon=1e-2), [(2, 4), (4,)], order=2)


def test_batch_norm_with_given_statistics() -> None:
    def build(graph: Graph, x: Value, scale: Value, bias: Value, mean: Value, var: Value) -> Value:
        positive = graph.add("exp", var)
        return graph.add("batch_norm", x, scale, bias, mean, positive, epsilon=1e-3)

    _check(build, [(2, 3, 2, 2), (3,), (3,), (3,), (3,)])
    _check(build, [(4, 2), (2,), (2,), (2,), (2,)], order=2)


MASKS: list[Any] = [
    None,
    np.array([[True, False, True], [False, True, True]]),
    np.array([[False, False, False], [False, True, True]]),  # the first query sees nothing
    np.array([[0.5, -np.inf, 1], [-0.25, 0.5, 0]]),
    np.array([[-np.inf, -np.inf, -np.inf], [0, 0.5, -np.inf]]),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=["none", "bool", "blind", "added", "blind added"])
def test_attention(mask: Any, causal: bool, softcap: float, training: bool) -> None:
    def build(graph: Graph, q: Value, k: Value, v: Value) -> Value:
        given = [] if mask is None else [graph.const(mask)]
        return graph.add("attention", q, k, v, *given, scale=0.7, causal=causal, softcap=softcap)

    _check(build, [(2, 2, 3), (2, 3, 3), (2, 3, 2)], training=training, spread=2.0)


def test_attention_to_its_mask() -> None:
    for training in (False, True):
        build = _op("attention", scale=0.7, causal=True, softcap=1.5)
        _check(build, [(2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 2), (2, 1, 1, 3)], training=training)


def test_attention_keeps_its_probabilities() -> None:
    """The training form computes them once: forward and backward have five products in all."""
    graph, found = _check(_op("attention", scale=0.5), [(3, 2), (4, 2), (4, 3)], training=True)
    graph.outputs, graph.output_names = found, ["dq", "dk", "dv"]
    graph.prune()
    ops = [n.op for n in map(canonicalize(graph).node, canonicalize(graph).order())]
    assert ops.count("softmax") == 1
    assert ops.count("matmul") == 5


@pytest.mark.parametrize("op", ["stop_gradient", "identity"])
def test_stop_gradient(op: str) -> None:
    graph = Graph("g")
    x = graph.input("x", TensorType("float64", (3,)))
    y = graph.add("mul", x, graph.add(op, x))
    (grad,) = gradients(graph, _inner(graph, y, graph.const(np.ones(3))), [x])
    feed = np.array([1.0, 2, 3])
    np.testing.assert_array_equal(_run(graph, [grad], [feed])[0], feed * (2 if op == "identity" else 1))
