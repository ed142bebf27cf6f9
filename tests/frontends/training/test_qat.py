"""Quantization-aware training: what the training program computes is what the finished model computes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers as L
from nervure.compiler.interpret import interpret
from nervure.compiler.passes import canonicalize

BATCH = 16
SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
SHAPE = (3, 10, 10)


def plain() -> nv.Network:
    """Convolutions with batch norms, relu and relu6, a depthwise one, pools, dense layers with and without a bias."""
    return nv.Sequential(
        [
            nv.Input(SHAPE),
            L.Conv2d(8, 3, padding="same", use_bias=False),
            L.BatchNorm(),
            L.ReLU(),
            L.MaxPool2d(2),
            L.SeparableConv2d(12, 3, padding="same", use_bias=False),
            L.BatchNorm(),
            L.ReLU6(),
            L.AvgPool2d(2, strides=1),
            L.GlobalAvgPool2d(),
            L.Dense(16, activation="relu"),
            L.Dense(8, use_bias=False),
            L.Dense(4),
        ],
        name="plain",
    )


def branches() -> nv.Network:
    """A residual addition, a concat, a difference, a product with a gate, a sum with a mean."""

    @nv.network
    def net(x: nv.Input(SHAPE)):
        a = nv.relu(L.Conv2d(8, 3, padding="same", name="a")(x))
        b = L.Conv2d(8, 1, name="b")(a)
        y = nv.relu(a + b)
        gate = L.Conv2d(8, 1, name="gate")(L.GlobalAvgPool2d(keepdims=True)(y))
        y = y * nv.relu6(gate)
        y = nv.concat([y, a - b, L.Conv2d(4, 3, padding="same", name="c")(y)], axis=1)
        y = nv.relu(L.Conv2d(8, 3, strides=2, name="d")(y))
        return L.Dense(4, name="head")(L.Flatten()(y))

    return net


def tables() -> nv.Network:
    """Functions that become tables, and a softmax."""

    @nv.network
    def net(x: nv.Input(SHAPE)):
        y = L.Conv2d(8, 3, activation="hard_swish", name="a")(x)
        y = L.Conv2d(8, 3, activation="sigmoid", name="b")(y)
        y = L.Conv2d(8, 1, activation="gelu", name="c")(y)
        y = nv.softmax(L.Conv2d(8, 1, name="d")(y), axis=1)
        y = nv.tanh(L.Conv2d(8, 3, name="e")(y))
        return L.Dense(4, name="head")(L.Flatten()(y))

    return net


NETS: dict[str, Callable[[], nv.Network]] = {"plain": plain, "branches": branches, "tables": tables}


def samples(count: int, shape: Sequence[int] = SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *shape)).astype(np.float32), rng.integers(0, 4, count).astype(np.int32)


def shaken(net: Any, by: float, seed: int = 1) -> None:
    """Every weight moved by up to a share of the largest, as training would have done; statistics stay positive."""
    rng = np.random.default_rng(seed)
    state = net.state_dict()
    for name, array in state.items():
        size = (
            1.0 if name.endswith(".scale") and isinstance(net, nv.QuantizedNetwork) else max(np.abs(array).max(), 0.1)
        )
        moved = array + rng.uniform(-by, by, array.shape) * size
        state[name] = np.abs(moved) + 0.1 if name.endswith("var") else moved
    net.load_state_dict(state)


@cache
def floating(name: str) -> nv.Network:
    net = NETS[name]()
    shaken(net, 0.3)
    return net


def quantized(name: str, **options: Any) -> Any:
    net = nv.quantize_aware(floating(name), samples(32)[0], samples=32, **options)
    shaken(net, 0.2)
    return net


def in_batches(run: Callable[[np.ndarray], np.ndarray], x: np.ndarray, size: int = BATCH) -> np.ndarray:
    return np.concatenate([run(x[i : i + size]) for i in range(0, len(x), size)])


def as_trained(net: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The forward pass of the training program: of ``infer``, and of the step itself, on the weights as they are."""

    @nv.network
    def step(x: nv.Input(x.shape[1:]), y: nv.Input((), dtype="int32")):  # type: ignore[valid-type]
        logits = net(x)
        nv.minimize(nv.mean(SCE(y, logits)), net, "sgd", 0.0)
        return {"logits": logits}

    session = nv.compile(net, steps=[step], dims={"batch": BATCH}).session
    y = np.zeros(BATCH, np.int32)
    (port,) = (i.name for i in session.artifact.entry("infer").inputs)
    inferred = in_batches(lambda part: session.run(None, {port: part})[0], x)
    stepped = in_batches(lambda part: session.run(None, {"x": part, "y": y}, entry="step")[0], x)
    return inferred, stepped


def deployed(net: Any, x: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The compiled network, the compiled export, the reference interpreter."""
    model = nv.compile(net, dims={"batch": BATCH})
    net.export(folder / "net.onnx")
    exported = nv.compile(folder / "net.onnx")
    lowered = canonicalize(net.to_graph({"batch": BATCH}))
    return (
        in_batches(lambda part: model(part), x),
        in_batches(lambda part: exported(part), x, 1),
        in_batches(lambda part: interpret(lowered, [part])[0], x),
    )


def integer_share(graph: nv.Graph) -> tuple[int, int]:
    """Products in integers, and all."""
    ops = [graph.node(k).op for k in graph]
    own = sum(op in ("conv_integer", "matmul_integer") for op in ops)
    return own, own + sum(op in ("conv", "matmul") for op in ops)


FOUR, FEW, WIDE = {"weight_bits": 4}, {"weight_bits": 2, "activation_bits": 4}, {"activation_bits": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("plain", FOUR), ("plain", FEW), ("plain", WIDE), ("branches", {}), ("branches", FEW), ("tables", FOUR)],
    ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v.values())) or "8",
)
def test_training_computes_what_is_deployed(name: str, options: dict[str, int], tmp_path: Path) -> None:
    net = quantized(name, **options)
    x, _ = samples(64, seed=3)
    inferred, stepped = as_trained(net, x)
    compiled, exported, interpreted = deployed(net, x, tmp_path)
    assert np.unique(compiled).size > 20
    own, every = integer_share(canonicalize(net.to_graph({"batch": BATCH})))
    assert own == every >= 5
    np.testing.assert_array_equal(inferred, compiled)
    np.testing.assert_array_equal(stepped, compiled)
    np.testing.assert_array_equal(exported, compiled)
    np.testing.assert_array_equal(interpreted, compiled)


def dense() -> Any:
    """Small and quickly compiled."""
    net = nv.Sequential([nv.Input((6,)), L.Dense(8), L.BatchNorm(), L.ReLU(), L.Dense(4)], name="dense")
    shaken(net, 0.3)
    return nv.quantize_aware(net, samples(32, (6,))[0], weight_bits=4)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [(), ("*.weight.scale",), ("input.scale", "relu.relu.scale"), ("dense.*",)])
def test_what_is_frozen_changes_no_bit(frozen: tuple[str, ...], tmp_path: Path) -> None:
    """Constants beside learned numbers: no pass may bring them together in another order."""
    net = dense()
    shaken(net, 0.2)
    if frozen:
        net.freeze(*frozen)
    x, _ = samples(4 * BATCH, (6,), seed=3)
    inferred, stepped = as_trained(net, x)
    for found in (stepped, *deployed(net, x, tmp_path)):
        np.testing.assert_array_equal(found, inferred)


def test_weights_are_those_of_the_folded_network() -> None:
    net = dense()
    weights = {"dense.weight", "dense.bias", "dense_1.weight", "dense_1.bias"}
    scales = {"dense.weight.scale", "dense_1.weight.scale", "input.scale", "relu.relu.scale"}
    assert set(net.state_dict()) == weights | scales
    assert all(not net.state_dict()[n].any() for n in net.state_dict() if n.endswith(".scale"))


def test_training_lowers_the_loss_and_the_export_has_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 6)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32) + 2 * (x[:, 2] > 0)
    net = dense()
    net.compile(nv.optimizers.Adam(0.01), SCE, ["accuracy"])
    before = net.evaluate(x, y, BATCH)
    net.fit(x, y, BATCH, 12, verbose=0)
    after = net.evaluate(x, y, BATCH)
    assert after[0] < 0.8 * before[0] and after[1] > before[1]
    scales = {n: a for n, a in net.state_dict().items() if n.endswith(".scale")}
    assert all(np.abs(a).max() > 1e-3 for a in scales.values())
    compiled, exported, interpreted = deployed(net, x, tmp_path)
    for found in (compiled, exported, interpreted):
        np.testing.assert_array_equal(found, net.predict(x, BATCH))


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    x, y = samples(64, (6,))
    whole, parts = dense(), dense()
    for net in (whole, parts):
        net.compile("adam", SCE)
    whole.fit(x, y, BATCH, 4, verbose=0)
    parts.fit(x, y, BATCH, 2, verbose=0, checkpoint=tmp_path)
    again = dense()
    again.compile("adam", SCE)
    again.fit(x, y, BATCH, 4, verbose=0, checkpoint=tmp_path, resume=True)
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array, err_msg=name)


def test_the_float_network_may_be_trained_on() -> None:
    """What is quantized is the network as it was."""
    net = nv.Sequential([nv.Input((6,)), L.Dense(8, activation="relu"), L.Dense(4)])
    x, _ = samples(16, (6,))
    small = nv.quantize_aware(net, x)
    before = small(x[:2])
    shaken(net, 0.5)
    np.testing.assert_array_equal(small(x[:2]), before)
    np.testing.assert_array_equal(small(x)[:2], before)


def test_scales_stay_positive() -> None:
    net = dense()
    state = net.state_dict()
    for change in (-1.0, -0.9999, -5.0, 3.0):
        net.load_state_dict({n: np.full_like(a, change) if n.endswith(".scale") else a for n, a in state.items()})
        graph = net.to_graph()
        scales = [graph.constant(graph.args(k)[1]) for k in (*graph.find("quantize"), *graph.find("dequantize"))]
        assert all((s > 0).all() for s in scales if s is not None) and len(scales) >= 4
        assert np.isfinite(net(samples(4, (6,))[0])).all()


def test_scales_that_are_not_learned_stay() -> None:
    x, y = samples(32, (6,))
    float_net = nv.Sequential([nv.Input((6,)), L.Dense(8, activation="relu"), L.Dense(4)])
    net = nv.quantize_aware(float_net, x, learn_scales=False)
    before = net.state_dict()
    net.compile("adam", SCE)
    net.fit(x, y, BATCH, 1, verbose=0)
    assert all(not a.any() for n, a in net.state_dict().items() if n.endswith(".scale"))
    assert (net.state_dict()["dense.weight"] != before["dense.weight"]).any()


@pytest.mark.slow
def test_gradients_of_scales_are_scaled_as_in_lsq() -> None:
    """Esser et al. 2020, section 2.2: 1 / sqrt(N Q); our parameter is the change in parts of the calibrated scale, so
    that its gradient is divided by that scale twice."""
    x, y = samples(BATCH, (6,))
    found = []
    for scaled in (False, True):
        float_net = nv.Sequential([nv.Input((6,)), L.Dense(8, activation="relu"), L.Dense(4)], name="net")
        net = nv.quantize_aware(float_net, x, weight_bits=4, gradient_scale=scaled)
        net.compile(nv.optimizers.SGD(1.0), SCE)
        net.train_on_batch(x, y)
        found.append(net.state_dict())
    quantizers = nv.quantize_aware(float_net, x, weight_bits=4)
    first = {q.name: q.scale for _, q in quantizers._quantizers({"batch": 1}).scales()}
    for name, sharing, most in (("dense.weight", 6, 8), ("dense_1.weight", 8, 8)):
        factor = 1 / (first[name].astype(np.float64) ** 2 * np.sqrt(sharing * most))
        plain_step, scaled_step = (f[f"{name}.scale"] for f in found)
        assert np.abs(plain_step).max() > 0
        np.testing.assert_allclose(scaled_step, plain_step * factor, rtol=1e-4)


def test_an_onnx_file_is_quantized_and_trained(tmp_path: Path) -> None:
    nv.save_onnx(floating("plain"), tmp_path / "float.onnx")
    net = nv.quantize_aware(tmp_path / "float.onnx", samples(8)[0], weight_bits=4)
    own, every = integer_share(canonicalize(net.to_graph()))
    assert own == every == 6 and net.name == "float"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_bits": 9}, "weight_bits is 9"),
        ({"weight_bits": 1}, "weight_bits is 1"),
        ({"activation_bits": 12}, "activation_bits is 12"),
        ({"float_patterns": ("nothing*",)}, "nothing"),
        ({"method": "guess"}, "guess"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    float_net = nv.Sequential([nv.Input((6,)), L.Dense(4)])
    with pytest.raises(nv.NervureError, match=said):
        nv.quantize_aware(float_net, samples(8, (6,))[0], **options)


def test_calibration_that_is_not_finite_is_refused() -> None:
    float_net = nv.Sequential([nv.Input((6,)), L.Dense(4)])
    with pytest.raises(nv.NervureError, match=r"NaN|finite"):
        nv.quantize_aware(float_net, np.full((4, 6), np.nan, np.float32))
