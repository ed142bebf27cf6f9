"""Equalization, bias correction, adaptive rounding and SmoothQuant on small networks."""

from __future__ import annotations

import numpy as np
from nervure.compiler.interpret import interpret, interpret_all
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.quantize.correct import add_to_bias
from nervure.compiler.quantize.equalize import Channels, apply_factors, factors, links
from nervure.compiler.quantize.place import sites
from nervure.compiler.quantize.rounding import adaptive_steps
from nervure.compiler.quantize.scheme import symmetric
from nervure.compiler.quantize.settings import Settings
from quantized_nets import pictures, separable, values


def test_equalization_computes_the_same_and_evens_channels_out() -> None:
    graph = canonicalize(separable(spread=100.0))
    found = {k.layer.name: k for k in links(graph, sites(graph, Settings()))}
    assert sorted(found) == ["conv2", "conv4"]  # a residual add reads the others
    link, x = found["conv2"], pictures(1)
    seen = Channels(np.zeros(8), np.zeros(8))
    seen.add(interpret_all(graph, {"x": x})["deep"], 1)
    factor = factors(graph, link, seen, 8)
    assert ((factor > 0) & (factor <= 1)).all() and factor.min() < 0.9
    work = graph.copy()
    apply_factors(work, link, factor)
    work.prune()
    work.check()
    assert np.allclose(interpret(work, {"x": x})[0], interpret(graph, {"x": x})[0], rtol=1e-4, atol=1e-6)
    before, after = (interpret_all(g, {"x": x})["deep"].max(axis=(0, 2, 3)) for g in (graph, work))
    assert after.max() / after[before > 0].min() < before.max() / before[before > 0].min()
    assert after.max() <= before.max() * 1.0001


def test_a_shift_of_the_bias_moves_each_channel_by_it() -> None:
    graph, x = canonicalize(separable()), pictures(1)
    for layer in sites(graph, Settings()).layers:
        work = graph.copy()
        shift = np.arange(layer.channels, dtype=np.float64)
        add_to_bias(work, layer, shift)
        work.check()
        name = layer.name
        moved = interpret_all(work, {"x": x})[name] - interpret_all(graph, {"x": x})[name]
        shape = (1, -1, 1, 1) if layer.op == "conv" else (1, -1)
        assert np.allclose(moved, np.broadcast_to(shift.reshape(shape), moved.shape), atol=1e-4)


def test_a_layer_without_a_bias_gets_one() -> None:
    g = Graph("plain")
    from nervure.compiler.types import TensorType

    x = g.input("x", TensorType("float32", (4, 6)))
    g.output(g.add("matmul", x, g.const(np.ones((6, 3), np.float32), "w")), "y")
    (layer,) = sites(g, Settings()).layers
    before = interpret(g, [np.ones((4, 6), np.float32)])[0]
    add_to_bias(g, layer, np.array([1.0, 2.0, 3.0]))
    assert np.allclose(interpret(g, [np.ones((4, 6), np.float32)])[0] - before, [1, 2, 3])
    assert values(g)


def test_adaptive_rounding_is_never_worse_and_moves_less_than_a_step() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(0, 1, (70, 70))
    x = rng.normal(0, 1, (400, 70)) @ mixed  # correlated inputs
    w = rng.normal(0, 1, (9, 70))
    scheme = symmetric(np.abs(w).max(axis=1, keepdims=True), 3)
    scale = np.broadcast_to(scheme.scale, w.shape).astype(np.float64)
    q = adaptive_steps(w, scale, x.T @ x, scheme)
    low, high = scheme.bounds
    near = np.clip(np.rint(w / scale), low, high)
    errors = [np.square(x @ (v * scale - w).T).sum(axis=0) for v in (near, q)]
    assert errors[1].sum() < 0.6 * errors[0].sum()
    assert (np.abs(q - w / scale) < 1.0001).all() and q.min() >= low and q.max() <= high
    again = adaptive_steps(w, scale, x.T @ x, scheme)
    assert np.array_equal(q, again)


def test_adaptive_rounding_leaves_pruned_weights_out() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (200, 32)) @ rng.normal(0, 1, (32, 32))
    w = rng.normal(0, 1, (8, 32)) * (rng.random((8, 32)) < 0.3)
    scheme = symmetric(np.abs(w).max(axis=1, keepdims=True), 4)
    q = adaptive_steps(w, np.broadcast_to(scheme.scale, w.shape).astype(np.float64), x.T @ x, scheme)
    assert (q[w == 0] == 0).all() and (q != 0).any()
