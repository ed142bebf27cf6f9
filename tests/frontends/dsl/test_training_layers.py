"""Layers that do something else while a network is trained: batch norm, dropout and noise."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.passes import canonicalize
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.frontends.dsl.trace import Trace

RUNNING = 1e-6  # the momentum is a float32


def _step(
    layer: Callable[..., Any], x: np.ndarray, g: np.ndarray | None = None, *, real: int | None = None, **state: Any
) -> SimpleNamespace:
    """One call of a layer in training, with the gradient ``g`` of its output: y, dx, gradients and next states by name.

    ``real``: how many of the first samples are no padding."""
    trace = Trace("net", training=True)
    feeds = {"x": x}
    with trace.active():
        given = trace.input("x", TensorType(x.dtype.name, x.shape))
        if real is not None:
            trace.sample_mask = trace.input("mask", TensorType("bool", (len(x),)))
            feeds["mask"] = np.arange(len(x)) < real
        y = layer(given)
    graph = trace.graph
    params = {w.name: v for w, v in trace.weights() if graph.node(v).op == "param"}
    outputs = {"y": y.value}
    if g is not None:
        product = graph.add("mul", y.value, graph.const(g))
        loss = graph.add("reduce_sum", product, axes=tuple(range(y.ndim)))
        wrt = {"x": given.value, **params}
        training_form(graph, loss, list(wrt.values()))
        outputs |= {f"d{n}": v for n, v in zip(wrt, gradients(graph, loss, list(wrt.values())), strict=True)}
    for name, value in outputs.items():
        graph.output(value, name)
    values: dict[str, Any] = dict(state)
    found = interpret(canonicalize(graph, check=True), feeds, values)
    return SimpleNamespace(**dict(zip(outputs, found, strict=True)), state=values, graph=graph)


def _data(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * 3 + 1, rng.standard_normal(shape)


# -- batch norm ------------------------------------------------------------------------------------------------------

SHAPES = [(6, 3), (4, 3, 5), (4, 3, 5, 2), (2, 2, 3, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_pytorchs(shape: tuple[int, ...], affine: bool) -> None:
    torch = pytest.importorskip("torch")
    kinds = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    theirs = kinds[len(shape)](shape[1], momentum=0.3, affine=affine).double()
    ours = nv.layers.BatchNorm(momentum=0.3, affine=affine)
    x, g = _data(*shape)
    given = torch.tensor(x, requires_grad=True)
    y = theirs(given)
    y.backward(torch.tensor(g))
    found = _step(ours, x, g)
    np.testing.assert_allclose(found.y, y.detach().numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.dx, given.grad.numpy(), rtol=1e-8, atol=1e-10)
    if affine:
        np.testing.assert_allclose(found.dweight, theirs.weight.grad.numpy(), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.dbias, theirs.bias.grad.numpy(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(_running(found, "mean"), theirs.running_mean.numpy(), rtol=RUNNING)
    np.testing.assert_allclose(_running(found, "var"), theirs.running_var.numpy(), rtol=RUNNING)


def _running(found: SimpleNamespace, name: str) -> np.ndarray:
    return next(v for k, v in found.state.items() if k.endswith(f"running_{name}"))


def _expected(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + epsilon), mean, var


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_by_its_formula(shape: tuple[int, ...]) -> None:
    x, _ = _data(*shape)
    y, mean, var = _expected(x, 1e-5)
    found = _step(nv.layers.BatchNorm(), x)
    n = x.size // shape[1]
    np.testing.assert_allclose(found.y, y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(_running(found, "mean"), 0.1 * mean, rtol=RUNNING)
    np.testing.assert_allclose(_running(found, "var"), 0.9 + 0.1 * var * n / (n - 1), rtol=RUNNING)


def test_batch_normalization_is_keras_one() -> None:
    """Epsilon 1e-3, momentum 0.99 of the old value, the running variance biased."""
    x, _ = _data(4, 3, 5, 2)
    y, mean, var = _expected(x, 1e-3)
    found = _step(nv.layers.BatchNormalization(), x)
    np.testing.assert_allclose(found.y, y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(_running(found, "mean"), 0.01 * mean, rtol=RUNNING)
    np.testing.assert_allclose(_running(found, "var"), 0.99 + 0.01 * var, rtol=RUNNING)


def test_batch_norm_of_the_last_axis() -> None:
    x, g = _data(4, 5, 2, 3)
    last = _step(nv.layers.BatchNorm(axis=-1), x, g)
    first = _step(nv.layers.BatchNorm(), x.transpose(0, 3, 1, 2), g.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(last.y.transpose(0, 3, 1, 2), first.y, rtol=1e-12)
    np.testing.assert_allclose(last.dx.transpose(0, 3, 1, 2), first.dx, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(_running(last, "var"), _running(first, "var"), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cls", [nv.layers.BatchNorm, nv.layers.BatchNormalization])
def test_padded_samples_do_not_count(shape: tuple[int, ...], cls: Any) -> None:
    """Statistics, outputs and gradients of the real samples are those of the batch without the padding."""
    x, g = _data(*shape)
    real = shape[0] - 1
    padded = x.copy()
    padded[real:] = 1e6
    zeroed = g.copy()
    zeroed[real:] = 0  # the loss does not read a padded sample
    found, alone = _step(cls(), padded, zeroed, real=real), _step(cls(), x[:real], g[:real])
    np.testing.assert_allclose(found.y[:real], alone.y, rtol=1e-9)
    np.testing.assert_allclose(found.dx[:real], alone.dx, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.dweight, alone.dweight, rtol=1e-8, atol=1e-10)
    for name in ("mean", "var"):
        np.testing.assert_allclose(_running(found, name), _running(alone, name), rtol=RUNNING)


def test_the_padding_of_a_folded_batch_does_not_count() -> None:
    """[batch * time, features]: each sample's flag stands for all of its rows."""

    def folded(x: Any) -> Any:
        return nv.layers.BatchNorm()(nv.reshape(x, (12, 2)))

    x, _ = _data(4, 3, 2)
    x[3] = 1e6
    found, alone = _step(folded, x, real=3), _step(nv.layers.BatchNorm(), x[:3].reshape(9, 2))
    np.testing.assert_allclose(found.y[:9], alone.y, rtol=1e-9)


def test_a_large_mean_costs_no_digits() -> None:
    means = np.array([5e3, -2e4]).reshape(1, 2, 1, 1)
    x = (np.random.default_rng(0).standard_normal((32, 2, 4, 4)) + means).astype(np.float32)
    exact = x.astype(np.float64)
    found = _step(nv.layers.BatchNorm(), x)
    y, _, var = _expected(exact, 1e-5)
    np.testing.assert_allclose(found.y, y, atol=5e-3)
    np.testing.assert_allclose((_running(found, "var") - 0.9) / 0.1, var * 512 / 511, rtol=1e-4)


def test_one_pass_for_the_statistics_and_one_for_their_gradients() -> None:
    """Every reduction over the whole batch reads only x, or x and the output's gradient, and no other's result."""
    x, g = _data(8, 3, 4, 4)
    graph = canonicalize(_step(nv.layers.BatchNorm(), x, g).graph)
    depth: dict[int, int] = {}
    for key in graph.order():
        before = max((depth[a.node] for a in graph.args(key) if a is not None), default=0)
        sizes = [graph.type(a).size for a in graph.args(key) if a is not None]
        depth[key] = before + (graph.node(key).op.startswith("reduce") and max(sizes) == x.size)
    assert max(depth.values()) == 2


def test_a_layer_that_is_called_twice_moves_its_statistics_twice() -> None:
    layer = nv.layers.BatchNorm(momentum=0.5)
    x, _ = _data(4, 3)
    found = _step(lambda t: layer(t) + layer(t * 2.0), x)
    mean = x.mean(0)
    np.testing.assert_allclose(_running(found, "mean"), 0.5 * (0.5 * mean) + 0.5 * (2 * mean), rtol=RUNNING)


def test_a_frozen_layer_keeps_its_statistics() -> None:
    x, g = _data(4, 3)
    found = _step(nv.layers.BatchNorm(trainable=False), x, g)
    np.testing.assert_allclose(found.y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert not found.graph.bindings


def test_inference_takes_the_running_statistics() -> None:
    x, _ = _data(4, 3)
    layer = nv.layers.BatchNorm()
    np.testing.assert_allclose(layer(x), x / np.sqrt(1 + 1e-5), rtol=1e-5)


# -- dropout and noise -----------------------------------------------------------------------------------------------

RANDOM = [
    nv.layers.Dropout(0.3),
    nv.layers.SpatialDropout(0.3),
    nv.layers.AlphaDropout(0.3),
    nv.layers.GaussianDropout(0.3),
    nv.layers.GaussianNoise(0.3),
]


@pytest.mark.parametrize("layer", RANDOM, ids=lambda v: v.kind)
def test_nothing_happens_at_inference(layer: Any) -> None:
    x = _data(4, 6)[0].astype(np.float32)
    np.testing.assert_array_equal(layer(x), x)


@pytest.mark.parametrize("layer", [nv.layers.Dropout(0.0), nv.layers.GaussianNoise(0.0)], ids=lambda v: v.kind)
def test_a_rate_of_nothing_is_nothing(layer: Any) -> None:
    x, _ = _data(3, 4)
    assert _step(layer, x).state == {}


@pytest.mark.parametrize("layer", RANDOM, ids=lambda v: v.kind)
def test_mean_and_variance_of_what_is_random(layer: Any) -> None:
    x = np.random.default_rng(0).standard_normal((500, 40, 3)).astype(np.float32)
    y = _step(layer, x).y
    variance = {"Dropout": 1 / 0.7, "SpatialDropout": 1 / 0.7, "GaussianDropout": 1 + 3 / 7, "GaussianNoise": 1.09}
    assert abs(float(y.mean())) < 0.02
    assert abs(float(y.var()) - variance.get(layer.kind, 1.0)) < 0.04
    assert not np.array_equal(y, x)


def test_dropout_drops_and_scales_and_its_gradient_too() -> None:
    x, g = _data(300, 40)
    found = _step(nv.layers.Dropout(0.25), x, g)
    kept = found.y != 0
    assert abs(kept.mean() - 0.75) < 0.02
    np.testing.assert_allclose(found.y, np.where(kept, x / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(found.dx, np.where(kept, g / 0.75, 0), rtol=1e-6)


def test_spatial_dropout_drops_whole_channels() -> None:
    x, _ = _data(50, 20, 3, 3)
    kept = _step(nv.layers.SpatialDropout(0.5), x).y != 0
    assert (kept.all((2, 3)) | (~kept).all((2, 3))).all()
    assert 0.4 < kept.mean() < 0.6
    last = _step(nv.layers.SpatialDropout(0.5, axis=-1), x).y != 0
    assert (last.all((1, 2)) | (~last).all((1, 2))).all()


def test_every_layer_and_every_step_draws_anew_and_a_seed_repeats() -> None:
    def both(x: Any) -> Any:
        drop = nv.layers.Dropout(0.5)
        return nv.stack([drop(x), drop(x)], axis=0)

    x = np.ones((20, 20))
    first = _step(both, x)
    assert not np.array_equal(*first.y)
    np.testing.assert_array_equal(_step(both, x).y, first.y)
    assert not np.array_equal(_step(both, x, generator=first.state["generator"]).y, first.y)
    assert not np.array_equal(_step(both, x, generator=np.array([7, 0], np.uint32)).y, first.y)


def test_attention_drops_probabilities() -> None:
    x = _data(2, 6, 8)[0].astype(np.float32)
    g = np.ones((2, 6, 8), np.float32)
    layer = nv.layers.MultiHeadAttention(2, dropout=0.4)
    noisy = _step(layer, x, g)
    plain = layer(x)
    assert not np.allclose(noisy.y, plain)
    layer.dropout = 1e-9
    for options in ({}, {"use_causal_mask": True}, {"attention_mask": np.tri(6, dtype=bool)[::-1].copy()}):
        thin = _step(lambda t, o=options: layer(t, **o), x, g)
        np.testing.assert_allclose(thin.y, layer(x, **options), rtol=1e-4, atol=1e-5)
        assert np.isfinite(thin.dx).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_dropout(layers: int) -> None:
    x = _data(3, 5, 4)[0].astype(np.float32)
    layer = nv.layers.LSTM(6, dropout=0.5, num_layers=layers, return_sequences=True)
    plain = layer(x)
    assert not np.allclose(_step(layer, x).y, plain)
    np.testing.assert_allclose(layer(x), plain)


def test_rates_are_checked() -> None:
    for make in (lambda: nv.layers.Dropout(1.0), lambda: nv.layers.LSTM(3, dropout=-0.1)):
        with pytest.raises(NervureError, match="rate: expected"):
            make()
