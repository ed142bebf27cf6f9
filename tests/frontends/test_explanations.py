"""``nv.explain``: what each explanation promises, against plain numpy; compiled, for ARM, and of an ONNX file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import explain, layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 12, 12)).astype(np.float32)
ASKED = np.array([-1, 3], np.int32)  # the predicted class, and class 3
PATCH, STRIDE = (5, 4), (3, 4)


def classifier() -> nv.Network:
    """With what the rules differ in: a batch norm with negative factors, a bias, branches, a pool, a depthwise one."""
    net = nv.Sequential([nv.Input((3, 12, 12))], name="classifier")
    net.add(layers.Conv2d(6, 3, padding="same", use_bias=False))
    net.add(layers.BatchNorm())
    net.add(layers.ReLU())
    net.add(layers.MaxPool2d(2))
    net.add(branches())
    net.add(layers.Conv2d(8, 3, strides=2, activation="relu", name="last"))
    net.add(layers.GlobalAvgPool2d())
    net.add(layers.Dense(7, activation="relu"))
    net.add(layers.Dense(5, activation="softmax"))
    for name, weight in (net.ready(), dict(net.named_weights()))[1].items():
        noise = RNG.normal(0, 0.6, weight.shape)
        weight.assign(np.abs(weight.array + noise / 3) if name.endswith("var") else weight.array + noise)
    return net


def branches() -> Any:
    @nv.network
    def residual(x: nv.Input((6, 6, 6))):
        return nv.relu(x + layers.SeparableConv2d(6, 3, padding="same")(x))

    return residual


NET = classifier()
WHYS = {
    "saliency": explain.saliency(NET),
    "integrated_gradients": explain.integrated_gradients(NET, steps=48, at_once=48),
    "occlusion": explain.occlusion(NET, patch=PATCH, stride=STRIDE, fill=0.25),
    "grad_cam": explain.grad_cam(NET, layer="last"),
    "lrp": explain.lrp(NET),
}


@pytest.fixture(scope="module")
def explained() -> dict[str, list[np.ndarray]]:
    session = nv.compile(NET, entries=WHYS, dims={"batch": 2}).session
    feed = {"input": X, "target": ASKED}
    return {name: session.run(None, feed, entry=name) for name in WHYS}


def logits(x: np.ndarray) -> np.ndarray:
    """What comes before the softmax."""
    last = NET.layers[-1]
    return np.asarray(hidden(x), np.float64) @ last.weight.array + last.bias.array


@nv.network
def hidden(x: nv.Input((3, 12, 12))):
    NET(x)
    return nv.layer_output(NET, NET.layers[-2])


def of_asked(x: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return logits(x)[np.arange(len(x)), classes]


@pytest.mark.parametrize("name", WHYS)
def test_the_class_asked_for_is_explained(name: str, explained: Any) -> None:
    relevance, target, score = explained[name]
    assert target.tolist() == [int(NET(X)[0].argmax()), 3]
    maps = name not in ("integrated_gradients", "lrp")
    assert relevance.shape == (2, 1 if maps else 3, 12, 12)
    baseline = of_asked(0 * X, target) if name == "integrated_gradients" else 0
    np.testing.assert_allclose(score, of_asked(X, target) - baseline, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WHYS)
def test_compiled_equals_interpreted(name: str, explained: Any) -> None:
    found = WHYS[name](X, ASKED)
    scale = np.abs(found["relevance"]).max()
    np.testing.assert_allclose(explained[name][0], found["relevance"], rtol=1e-3, atol=2e-5 * scale)


def test_saliency_is_the_size_of_the_gradient(explained: Any) -> None:
    relevance, target, _ = explained["saliency"]
    for row, column in ((0, 0), (5, 7), (11, 3)):
        slopes = []
        for channel in range(3):
            moved = np.zeros_like(X)
            moved[:, channel, row, column] = 2e-3
            slopes.append((of_asked(X + moved, target) - of_asked(X - moved, target)) / 4e-3)
        np.testing.assert_allclose(relevance[:, 0, row, column], np.abs(slopes).max(0), rtol=0.02, atol=2e-3)


def test_integrated_gradients_sum_to_the_difference(explained: Any) -> None:
    relevance, _, score = explained["integrated_gradients"]
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), score, rtol=0.01)


def test_integrated_gradients_of_a_linear_network_are_its_terms() -> None:
    weight = RNG.normal(size=(4, 3)).astype(np.float32)
    net = nv.Sequential([layers.Dense(3, input_dim=4, weights=[weight, np.ones(3)])])
    x, start = RNG.normal(size=(2, 1, 4)).astype(np.float32)
    found = explain.integrated_gradients(net, target=2, baseline=start[0], steps=3, at_once=2)(x)
    np.testing.assert_allclose(found["relevance"], (x - start) * weight[:, 2], rtol=1e-5)


def test_smooth_grad_is_the_mean_gradient_of_noisy_copies() -> None:
    still = explain.smooth_grad(NET, noise=0.0, samples=2)(X, ASKED)["relevance"]
    np.testing.assert_allclose(still, WHYS["saliency"](X, ASKED)["relevance"], rtol=1e-3, atol=1e-5)
    model = nv.compile(explain.smooth_grad(NET, noise=0.3, samples=3, at_once=2))
    (first, _, _), (second, target, score) = (model(X[1:], ASKED[1:]) for _ in range(2))
    assert first.shape == (1, 1, 12, 12) and not np.allclose(first, second)
    assert target == 3 and score == pytest.approx(of_asked(X[1:], target), rel=1e-4)
    model.reset()
    assert np.array_equal(model(X[1:], ASKED[1:])[0], first)


def test_occlusion_is_what_covering_takes(explained: Any) -> None:
    relevance, target, score = explained["occlusion"]
    total, seen = np.zeros((2, 12, 12)), np.zeros((12, 12))
    for row in (0, 3, 6, 7):  # patches of 5 by 4, every 3 rows and 4 columns; the last ones end where the picture does
        for column in (0, 4, 8):
            covered = X.copy()
            covered[:, :, row : row + 5, column : column + 4] = 0.25
            total[:, row : row + 5, column : column + 4] += (score - of_asked(covered, target))[:, None, None]
            seen[row : row + 5, column : column + 4] += 1
    np.testing.assert_allclose(relevance[:, 0], total / seen, rtol=1e-3, atol=1e-4)


def test_occlusion_along_one_axis() -> None:
    weight = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]], np.float32)
    net = nv.Sequential([layers.Dense(1, input_dim=5, weights=[weight, np.zeros(1)])])
    found = explain.occlusion(net, target=0, patch=1, stride=1)(np.ones((1, 5), np.float32))
    np.testing.assert_allclose(found["relevance"], weight.T, rtol=1e-5)


def test_grad_cam_weighs_channels_by_their_mean_gradient(explained: Any) -> None:
    @nv.network
    def inner(x: nv.Input((3, 12, 12))):
        NET(x)
        return nv.layer_output(NET, "last")

    maps = np.asarray(inner(X), np.float64)  # [2, 8, 2, 2]; behind them their mean, two dense layers
    relevance, target, _ = explained["grad_cam"]
    (w1, b1), (w2, _) = ([w.array.astype(np.float64) for w in (d.weight, d.bias)] for d in NET.layers[-2:])
    open_ = (maps.mean((2, 3)) @ w1 + b1 > 0) * w2[:, target].T  # [2, 7]: what a hidden unit does for the class
    weights = open_ @ w1.T / 4
    cam = np.maximum((weights[..., None, None] * maps).sum(1), 0)
    at = np.clip((np.arange(12) + 0.5) / 6 - 0.5, 0, 1)  # bilinear, from 2 places to 12
    across = np.stack([1 - at, at], 1)
    np.testing.assert_allclose(relevance[:, 0], across @ cam @ across.T, rtol=1e-3, atol=1e-5)


def test_lrp_conserves_relevance(explained: Any) -> None:
    relevance, _, score = explained["lrp"]
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), score, rtol=1e-4)


def test_lrp_of_dense_layers_is_the_epsilon_rule() -> None:
    w1, b1, w2, b2 = (RNG.normal(size=s).astype(np.float32) for s in ((4, 6), (6,), (6, 3), (3,)))
    net = nv.Sequential(
        [
            layers.Dense(6, input_dim=4, activation="relu", weights=[w1, b1]),
            layers.Dense(3, activation="softmax", weights=[w2, b2]),
        ]
    )
    x = RNG.normal(size=4)
    z1 = x @ w1 + b1
    a1 = np.maximum(z1, 0)
    z2 = a1 @ w2 + b2
    relevance = np.where(np.arange(3) == 1, z2, 0)
    for a, w, b, z in ((a1, w2, b2, z2), (x, w1, b1, z1)):  # Bach et al. 2015, with the bias shared alike
        relevance = ((a[:, None] * w + b / len(a)) / z * relevance).sum(1)
    found = explain.lrp(net, target=1)(x[None].astype(np.float32))
    np.testing.assert_allclose(found["relevance"][0], relevance, rtol=1e-3, atol=1e-5)


def test_lrp_of_a_convolution_is_z_plus() -> None:
    """One convolution behind another, on signed inputs, by loops over places; the head is the mean."""
    w1, w2 = (RNG.normal(size=s).astype(np.float32) for s in ((3, 2, 2, 2), (1, 3, 2, 2)))
    net = nv.Sequential(
        [
            nv.Input((2, 4, 4)),
            layers.Conv2d(3, 2, use_bias=False, activation="relu", weights=[w1]),
            layers.Conv2d(1, 2, use_bias=False, activation="relu", weights=[w2]),
            layers.GlobalAvgPool2d(),
        ]
    )
    x = RNG.normal(size=(2, 4, 4))

    def forward(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        size = x.shape[1] - 1
        made = [[[(x[:, i : i + 2, j : j + 2] * k).sum() for j in range(size)] for i in range(size)] for k in w]
        return np.maximum(made, 0)

    def down(x: np.ndarray, w: np.ndarray, r: np.ndarray) -> np.ndarray:
        found = np.zeros_like(x)
        for k, i, j in np.ndindex(r.shape):
            parts = np.maximum(x[:, i : i + 2, j : j + 2] * w[k], 0)
            found[:, i : i + 2, j : j + 2] += parts / max(parts.sum(), 1e-30) * r[k, i, j]
        return found

    a1 = forward(x, w1)
    a2 = forward(a1, w2)
    expected = down(x, w1, down(a1, w2, a2 / a2.size))
    found = explain.lrp(net, target=0)(x[None].astype(np.float32))
    np.testing.assert_allclose(found["score"], [a2.mean()], rtol=1e-4)
    np.testing.assert_allclose(found["relevance"][0], expected, rtol=1e-3, atol=1e-5)


def test_a_gate_gets_no_relevance() -> None:
    @nv.network
    def gated(x: nv.Input((3,)), g: nv.Input((3,))):
        return x * nv.sigmoid(g + x) + 1.0

    x, g = RNG.normal(size=(2, 1, 3)).astype(np.float32)
    found = explain.lrp(gated, target=0)(x, g)
    np.testing.assert_allclose(found["relevance"], [[found["score"][0], 0, 0]], rtol=1e-5)


def test_a_network_of_a_file_is_explained_alike(tmp_path: Path) -> None:
    nv.save_onnx(NET.to_graph(), tmp_path / "net.onnx")
    net = nv.load_network(tmp_path / "net.onnx")
    for name in ("lrp", "grad_cam"):
        found = getattr(explain, name)(net)(X[:1], ASKED[:1])["relevance"]
        wanted = getattr(explain, name)(NET)(X[:1], ASKED[:1])["relevance"]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.emulator
def test_an_arm_program_explains_alike(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64")
    path = nv.compile(NET, "aarch64", entries=WHYS, name="why").save(tmp_path / "why.so")
    for name, why in WHYS.items():
        relevance, target, score = nv.run_in_c(path, X[:1], ASKED[:1], entry=name)
        wanted = why(X[:1], ASKED[:1])
        scale = np.abs(wanted["relevance"]).max()
        np.testing.assert_allclose(relevance, wanted["relevance"], rtol=1e-3, atol=2e-5 * scale, err_msg=name)
        assert target == wanted["target"] and score == pytest.approx(wanted["score"], rel=1e-4)


def test_what_cannot_be_explained_is_said() -> None:
    with pytest.raises(nv.NervureError, match="needs a network"):
        explain.saliency("net.onnx")
    recurrent = nv.Sequential([layers.LSTM(3, input_shape=(5, 2)), layers.Dense(2)])
    with pytest.raises(nv.NervureError, match="no relevance goes through"):
        explain.lrp(recurrent).to_graph()
    assert explain.saliency(recurrent, target=0)(np.ones((1, 5, 2), np.float32))["relevance"].shape == (1, 5, 2)
    with pytest.raises(nv.NervureError, match="no layer"):
        explain.grad_cam(NET, layer="lost").to_graph()
    with pytest.raises(nv.NervureError, match="steps: expected a whole number"):
        explain.integrated_gradients(NET, steps=0)
    sequence = nv.Sequential([layers.GRU(3, input_shape=(5, 2), return_sequences=True)])
    with pytest.raises(nv.NervureError, match="does not give one tensor"):
        explain.saliency(sequence).to_graph()
