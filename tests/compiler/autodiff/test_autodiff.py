"""The reverse pass itself: what is shared, unused, refused, and differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

Loss = Callable[..., float]


def f64(*shape: int) -> TensorType:
    return TensorType("float64", shape)


def total(graph: Graph, value: Value) -> Value:
    return graph.add("reduce_sum", value, axes=tuple(range(graph.type(value).rank)))


def run(graph: Graph, outputs: Sequence[Value], feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    work = graph.copy()
    for i, value in enumerate(outputs):
        work.output(value, f"y{i}")
    work.prune()
    return interpret(work, feeds)


def by_differences(loss: Loss, feeds: Sequence[np.ndarray], slot: int, step: float = 1e-5) -> np.ndarray:
    """The gradient of ``loss(*feeds)`` for one of them, element by element."""
    grad = np.zeros_like(feeds[slot])
    for place in np.ndindex(grad.shape):
        sides = []
        for sign in (1, -1):
            moved = [f.copy() for f in feeds]
            moved[slot][place] += sign * step
            sides.append(loss(*moved))
        grad[place] = (sides[0] - sides[1]) / (2 * step)
    return grad


# -- what gradients() promises -----------------------------------------------------------------------------------


def test_a_value_that_is_used_often_has_the_sum() -> None:
    graph = Graph()
    x = graph.input("x", f64(3))
    y = graph.add("exp", x)
    loss = total(graph, graph.add("add", graph.add("mul", y, y), graph.add("mul", y, x)))
    feed = np.array([0.3, -1.2, 0.9])
    (grad,) = run(graph, gradients(graph, loss, [x]), [feed])
    np.testing.assert_allclose(grad, 2 * np.exp(2 * feed) + np.exp(feed) * (1 + feed), rtol=1e-12)


def test_both_inputs_may_be_one_value() -> None:
    graph = Graph()
    x = graph.input("x", f64(2, 2))
    loss = total(graph, graph.add("matmul", x, x))
    feed = np.array([[1.0, 2.0], [3.0, 5.0]])
    (grad,) = run(graph, gradients(graph, loss, [x]), [feed])
    ones = np.ones((2, 2))
    np.testing.assert_allclose(grad, ones @ feed.T + feed.T @ ones, rtol=1e-12)


def test_what_the_loss_does_not_read_has_zeros() -> None:
    graph = Graph()
    x, unused = graph.input("x", f64(3)), graph.input("unused", f64(2, 4))
    loss = total(graph, graph.add("floor", graph.add("mul", x, x)))
    grads = run(graph, gradients(graph, loss, [x, unused]), [np.ones(3), np.ones((2, 4))])
    for grad, shape in zip(grads, ((3,), (2, 4)), strict=True):
        np.testing.assert_array_equal(grad, np.zeros(shape))


def test_the_loss_itself_and_a_seed() -> None:
    graph = Graph()
    x, seed = graph.input("x", f64(3)), graph.input("seed", f64(3))
    y = graph.add("tanh", x)
    feeds = [np.array([0.1, 0.2, -2.0]), np.array([1.0, -3.0, 0.5])]
    at_x, at_y = run(graph, gradients(graph, y, [x, y], seed), feeds)
    np.testing.assert_allclose(at_x, feeds[1] * (1 - np.tanh(feeds[0]) ** 2), rtol=1e-12)
    np.testing.assert_array_equal(at_y, feeds[1])


def test_an_output_that_nothing_reads_brings_no_gradient() -> None:
    graph = Graph()
    x = graph.input("x", f64(5))
    values = graph.add("topk", x, k=2, axis=0)
    loss = total(graph, graph.add("mul", values, values))
    (grad,) = run(graph, gradients(graph, loss, [x]), [np.array([3.0, -1.0, 7.0, 2.0, 0.0])])
    np.testing.assert_array_equal(grad, [6.0, 0.0, 14.0, 0.0, 0.0])


def test_broadcast_inputs_have_sums() -> None:
    graph = Graph()
    a, b, c = graph.input("a", f64(2, 3, 4)), graph.input("b", f64(3, 1)), graph.input("c", f64())
    loss = total(graph, graph.add("mul", graph.add("mul", a, b), c))
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(s) for s in ((2, 3, 4), (3, 1), ())]
    at_b, at_c = run(graph, gradients(graph, loss, [b, c]), feeds)
    np.testing.assert_allclose(at_b, feeds[2] * feeds[0].sum(axis=(0, 2))[:, None], rtol=1e-12)
    np.testing.assert_allclose(at_c, (feeds[0] * feeds[1]).sum(), rtol=1e-12)


def test_only_what_is_asked_for_is_differentiated() -> None:
    """A frozen weight costs no operation, even where its gradient would be the dearest."""
    graph = Graph()
    x, w = graph.input("x", f64(8, 4)), graph.input("w", f64(4, 3))
    bias = graph.input("bias", f64(3))
    loss = total(graph, graph.add("tanh", graph.add("add", graph.add("matmul", x, w), bias)))
    (grad,) = gradients(graph, loss, [bias])
    graph.output(grad)
    graph.prune()
    assert len(graph.find("matmul")) == 1  # the forward one


# -- what it refuses -------------------------------------------------------------------------------------------------


def test_operators_without_a_gradient_are_named() -> None:
    graph, body = Graph(), Graph("body")
    x = graph.input("x", f64(4))
    body.output(body.add("tanh", body.input("x", f64(4))))
    odd = graph.add("fused", x, origin=("net.py:12 odd",), body=body)
    with pytest.raises(NervureError, match="no gradient goes through fused") as caught:
        gradients(graph, total(graph, odd), [x])
    assert caught.value.where == ("net.py:12 odd",)
    assert caught.value.hint


def test_whole_numbers_and_conditions_stop_a_gradient() -> None:
    graph = Graph()
    x = graph.input("x", f64(4))
    found = graph.add("argmax", x, axis=0)
    above = graph.add("greater", x, graph.const(np.array(0.0)))
    picked = graph.add("gather", x, found, axis=0)
    loss = graph.add("add", picked, total(graph, graph.add("where", above, x, graph.const(np.array(0.0)))))
    (grad,) = run(graph, gradients(graph, loss, [x]), [np.array([-1.0, 3.0, 2.0, -5.0])])
    np.testing.assert_array_equal(grad, [0.0, 2.0, 1.0, 0.0])


def test_stop_gradient_stops() -> None:
    graph = Graph()
    x = graph.input("x", f64(3))
    loss = total(graph, graph.add("mul", x, graph.add("stop_gradient", graph.add("exp", x))))
    feed = np.array([0.5, -0.5, 2.0])
    (grad,) = run(graph, gradients(graph, loss, [x]), [feed])
    np.testing.assert_allclose(grad, np.exp(feed), rtol=1e-12)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    graph = Graph()
    x, slope = graph.input("x", f64(4)), graph.input("slope", f64())
    rounded, smooth = graph.add("round", x), graph.add("tanh", graph.add("mul", x, slope))
    y = graph.add("straight_through", rounded, smooth)
    feeds = [np.array([0.3, -0.7, 1.6, 2.4]), np.array(1.5)]
    loss = total(graph, graph.add("mul", y, y))
    value, at_x, at_slope = run(graph, [y, *gradients(graph, loss, [x, slope])], feeds)
    np.testing.assert_array_equal(value, np.round(feeds[0]))
    bend = 2 * value * (1 - np.tanh(1.5 * feeds[0]) ** 2)
    np.testing.assert_allclose(at_x, 1.5 * bend, rtol=1e-12)
    np.testing.assert_allclose(at_slope, (feeds[0] * bend).sum(), rtol=1e-12)


def test_at_inference_nothing_is_left_of_a_straight_through() -> None:
    graph = Graph()
    x = graph.input("x", f64(4))
    graph.output(graph.add("straight_through", graph.add("round", x), graph.add("tanh", x)), "y")
    simple = canonicalize(graph)
    assert [simple.node(k).op for k in simple.order()] == ["input", "round"]


# -- at kinks and borders --------------------------------------------------------------------------------------------


def gradient_of(op: str, feeds: Sequence[np.ndarray], slot: int = 0, **attrs: object) -> np.ndarray:
    graph = Graph()
    xs = [graph.input(f"x{i}", f64(*feed.shape)) for i, feed in enumerate(feeds)]
    return run(graph, gradients(graph, total(graph, graph.add(op, *xs, **attrs)), [xs[slot]]), feeds)[0]


def test_equals_share() -> None:
    x = np.array([[2.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(gradient_of("reduce_max", [x], axes=(1,)), [[0, 0.5, 0.5], [1 / 3] * 3])
    pair = [np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])]
    np.testing.assert_array_equal(gradient_of("maximum", pair), [0, 0.5, 1])
    np.testing.assert_array_equal(gradient_of("minimum", pair, 1), [0, 0.5, 1])


@pytest.mark.parametrize("zeros", [(), (1,), (1, 3)])
def test_products_through_zeros(zeros: tuple[int, ...]) -> None:
    x = np.array([2.0, -3.0, 0.5, 4.0])
    x[list(zeros)] = 0
    others = [np.prod(np.delete(x, i)) for i in range(4)]
    np.testing.assert_allclose(gradient_of("reduce_prod", [x], axes=(0,)), others)
    running = by_differences(lambda v: float(np.cumprod(v).sum()), [x], 0)
    np.testing.assert_allclose(gradient_of("cumprod", [x], axis=0), running, atol=1e-8)


def test_powers_of_zero_and_of_negative_numbers() -> None:
    x = np.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(gradient_of("pow", [x, np.full(3, 2.0)]), [-4, 0, 6])
    np.testing.assert_array_equal(gradient_of("pow", [x, np.zeros(3)]), [0, 0, 0])
    np.testing.assert_array_equal(gradient_of("pow", [np.zeros(2), np.array([1.0, 2.0])], 1), [0, 0])


@pytest.mark.parametrize(("op", "attrs"), [("relu", {}), ("clip", {"low": 0.0, "high": 6.0})])
def test_flat_sides_count_at_a_kink(op: str, attrs: dict[str, float]) -> None:
    np.testing.assert_array_equal(gradient_of(op, [np.array([-1.0, 0.0, 1.0])], **attrs), [0, 0, 1])


def test_the_last_of_several_updates_has_the_gradient() -> None:
    graph = Graph()
    x, updates = graph.input("x", f64(4)), graph.input("updates", f64(3))
    written = graph.add("scatter_elements", x, graph.const(np.array([2, 0, 2])), updates, axis=0)
    weights = graph.const(np.array([1.0, 2.0, 3.0, 4.0]))
    grads = gradients(graph, total(graph, graph.add("mul", written, weights)), [x, updates])
    at_x, at_updates = run(graph, grads, [np.zeros(4), np.ones(3)])
    np.testing.assert_array_equal(at_x, [0, 2, 0, 4])
    np.testing.assert_array_equal(at_updates, [0, 1, 3])


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_grid_sample_on_the_pixels_themselves(mode: str) -> None:
    """An identity grid lies on pixels, where the slope to the next one counts."""
    image = np.array([[[[1.0, 4.0, 9.0, 16.0, 25.0]] * 5]])
    steps = np.linspace(-1, 1, 5)
    grid = np.stack(np.meshgrid(steps, steps), axis=-1)[None]
    graph = Graph()
    x, places = graph.input("x", f64(1, 1, 5, 5)), graph.input("places", f64(1, 5, 5, 2))
    loss = total(graph, graph.add("grid_sample", x, places, mode=mode, align_corners=True))
    training_form(graph, loss, [places])
    (grad,) = run(graph, gradients(graph, loss, [places]), [image, grid])
    slopes = {"linear": 7.0, "cubic": 0.5 * 1.5 * (16 - 4)}[mode]  # Keys' kernel, a = -3/4: -a times the far difference
    np.testing.assert_allclose(grad[0, 2, 2, 0], slopes * 2, rtol=1e-12)  # a pixel is half a unit of the grid


# -- quantization: the straight-through estimator --------------------------------------------------------------------


def fake_quantized(graph: Graph, x: Value, scale: Value, zero: Value) -> Value:
    codes = graph.add("quantize", x, scale, zero, to="int8")
    return graph.add("dequantize", codes, scale, zero, to="float64")


def test_rounding_is_passed_and_clipping_is_not() -> None:
    graph = Graph()
    x, scale = graph.input("x", f64(5)), graph.input("scale", f64())
    zero = graph.const(np.array(10, np.int8))
    loss = total(graph, fake_quantized(graph, x, scale, zero))
    feed, size = np.array([0.26, -0.31, 40.0, -40.0, 11.7]), 0.1
    at_x, at_scale = run(graph, gradients(graph, loss, [x, scale]), [feed, np.array(size)])
    np.testing.assert_allclose(at_x, [1, 1, 0, 0, 1])
    inside = np.array([3 - 2.6, -3 + 3.1, 117 - 117.0])  # steps less the real quotient
    np.testing.assert_allclose(at_scale, inside.sum() + (127 - 10) + (-128 - 10), rtol=1e-9)


# -- gradients of gradients ------------------------------------------------------------------------------------------


def _mlp(graph: Graph, x: Value, w: Value, v: Value) -> Value:
    hidden = graph.add("tanh", graph.add("matmul", x, w))
    out = graph.add("softplus", graph.add("matmul", hidden, v))
    return graph.add("reduce_mean", graph.add("mul", out, out), axes=(0, 1))


def test_second_order_of_an_mlp() -> None:
    """The gradient of <gradient, direction> is the Hessian times the direction."""
    shapes = ((5, 3), (3, 4), (4, 2))
    rng = np.random.default_rng(3)
    feeds, direction = [rng.standard_normal(s) for s in shapes], rng.standard_normal((3, 4))
    graph = Graph()
    x, w, v = (graph.input(n, f64(*s)) for n, s in zip("xwv", shapes, strict=True))
    (at_w,) = gradients(graph, _mlp(graph, x, w, v), [w])
    along = total(graph, graph.add("mul", at_w, graph.const(direction)))
    second = run(graph, gradients(graph, along, [x, w, v]), feeds)

    def slope(*arrays: np.ndarray) -> float:
        return float(run(graph, [along], arrays)[0])

    for i, found in enumerate(second):
        np.testing.assert_allclose(found, by_differences(slope, feeds, i), rtol=1e-6, atol=1e-8)


def test_gradient_penalty_through_a_convolution() -> None:
    """As of a critic whose gradient with respect to its input is held to length 1 (Gulrajani et al. 2017)."""
    rng = np.random.default_rng(5)
    feeds = [rng.standard_normal((2, 2, 5, 5)), rng.standard_normal((3, 2, 3, 3))]
    graph = Graph()
    x, w = graph.input("x", f64(2, 2, 5, 5)), graph.input("w", f64(3, 2, 3, 3))
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    score = total(graph, graph.add("silu", graph.add("conv", x, w, **attrs)))
    (at_x,) = gradients(graph, score, [x])
    penalty = total(graph, graph.add("mul", at_x, at_x))

    def value(*arrays: np.ndarray) -> float:
        return float(run(graph, [penalty], arrays)[0])

    (found,) = run(graph, gradients(graph, penalty, [w]), feeds)
    np.testing.assert_allclose(found, by_differences(value, feeds, 1), rtol=1e-6, atol=1e-7)
