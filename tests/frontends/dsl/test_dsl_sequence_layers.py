"""Dense, recurrent, attention and shape layers against their formulas in numpy, and the published parameter counts."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest

L = nv.layers
RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 5, 6)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def close(found, want):
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)


def lstm(x, w, r, b):
    """Keras's formula, gates i o f c; hidden states [batch, time, units]."""
    h = c = np.zeros((x.shape[0], r.shape[1]))
    states = []
    for step in range(x.shape[1]):
        i, o, f, g = np.split(x[:, step] @ w.T + h @ r.T + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states, 1), h, c


def gru(x, w, r, b, reset_after):
    """Keras's formula, gates z r h."""
    h = np.zeros((x.shape[0], r.shape[1]))
    units = r.shape[1]
    bx, bh = (b[: 3 * units], b[3 * units :]) if reset_after else (b, np.zeros(3 * units))
    for step in range(x.shape[1]):
        z, t, n = np.split(x[:, step] @ w.T + bx, 3, axis=1)
        gates = h @ r[: 2 * units].T + bh[: 2 * units]
        z, t = sigmoid(z + gates[:, :units]), sigmoid(t + gates[:, units:])
        own = r[2 * units :].T
        n = np.tanh(n + (t * (h @ own + bh[2 * units :]) if reset_after else (t * h) @ own))
        h = z * h + (1 - z) * n
    return h


def shaken(layer, *inputs):
    layer(*inputs)
    layer.set_weights([RNG.standard_normal(w.shape) * 0.5 for w in layer.weights])
    return layer.state_dict()


def test_lstm_follows_keras():
    layer = L.LSTM(4, return_sequences=True, return_state=True)
    w = shaken(layer, X)
    ys, h, c = lstm(X, *(w[n][0] for n in ("weight", "recurrent_weight", "bias")))
    for found, want in zip(layer(X), (ys, h, c), strict=True):
        close(found, want)
    last = L.LSTM(4, weights=w)
    close(last(X), h)


def test_lstm_in_both_directions_and_two_layers():
    layer = L.LSTM(4, num_layers=2, bidirectional=True, return_sequences=True)
    w = shaken(layer, X)

    def both(x, end):
        parts = [[w[n + end][d] for n in ("weight", "recurrent_weight", "bias")] for d in (0, 1)]
        back = lstm(x[:, ::-1], *parts[1])
        ahead = lstm(x, *parts[0])
        return np.concatenate([ahead[0], back[0][:, ::-1]], 2), np.concatenate([ahead[1], back[1]], 1)

    ys, h = both(both(X, "")[0], "_l1")
    close(layer(X), ys)
    close(L.LSTM(4, num_layers=2, bidirectional=True, weights=w)(X), h)


def test_backwards_and_time_major():
    layer = L.LSTM(3, go_backwards=True, return_sequences=True)
    w = shaken(layer, X)
    ys, _, _ = lstm(X[:, ::-1], *(w[n][0] for n in ("weight", "recurrent_weight", "bias")))
    close(layer(X), ys)
    turned = L.LSTM(3, go_backwards=True, return_sequences=True, batch_first=False, weights=w)
    close(turned(X.swapaxes(0, 1)), ys.swapaxes(0, 1))


def test_an_initial_state_continues_a_sequence():
    layer = L.LSTM(3, return_state=True)
    whole = layer(X)
    _, h, c = layer(X[:, :2])
    for found, want in zip(layer(X[:, 2:], [h, c]), whole, strict=True):
        close(found, want)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_follows_keras(reset_after):
    layer = L.GRU(4, reset_after=reset_after)
    w = shaken(layer, X)
    close(layer(X), gru(X, *(w[n][0] for n in ("weight", "recurrent_weight", "bias")), reset_after))


def test_simple_rnn():
    layer = L.SimpleRNN(4, activation="relu")
    w = shaken(layer, X)
    h = np.zeros((2, 4))
    for step in range(5):
        h = np.maximum(X[:, step] @ w["weight"][0].T + h @ w["recurrent_weight"][0].T + w["bias"][0], 0)
    close(layer(X), h)


def heads(x, w, name, count):
    y = x @ w[f"{name}.weight"] + w[f"{name}.bias"]
    return y.reshape(*y.shape[:2], count, -1).swapaxes(1, 2)


def attention(w, query, value, count, keep=None, prefix=""):
    w = {k.removeprefix(prefix): v for k, v in w.items()}
    q, k, v = heads(query, w, "query", count), heads(value, w, "key", count), heads(value, w, "value", count)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = scores if keep is None else np.where(keep, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2)
    return y.reshape(*query.shape[:2], -1) @ w["output.weight"] + w["output.bias"]


def test_multi_head_attention():
    memory = RNG.standard_normal((2, 7, 8)).astype(np.float32)
    layer = L.MultiHeadAttention(3, key_dim=4, value_dim=5)
    w = shaken(layer, X, memory)
    assert w["output.weight"].shape == (15, 6)
    close(layer(X, memory), attention(w, X, memory, 3))
    keep = RNG.random((2, 5, 7)) > 0.3
    keep[..., 0] = True
    close(layer(X, memory, attention_mask=keep), attention(w, X, memory, 3, keep[:, None]))
    self_attention = L.MultiHeadAttention(2)
    w = shaken(self_attention, X)
    close(self_attention(X, use_causal_mask=True), attention(w, X, X, 2, np.tri(5, dtype=bool)))


def test_weights_of_parts_can_be_given_by_name():
    weights = {"query.weight": np.eye(6), "output.bias": np.arange(6.0)}
    layer = L.MultiHeadAttention(2, weights=weights)
    layer(X)
    state = layer.state_dict()
    np.testing.assert_array_equal(state["query.weight"], np.eye(6))
    np.testing.assert_array_equal(state["output.bias"], np.arange(6))
    with pytest.raises(nv.NervureError, match=r"no weight is named 'querry\.weight'"):
        L.MultiHeadAttention(2, weights={"querry.weight": np.eye(6)})(X)


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_layer(norm_first):
    layer = L.TransformerEncoderLayer(6, 2, 16, norm_first=norm_first)
    w = shaken(layer, X)

    def feed(x):
        return np.maximum(x @ w["linear1.weight"] + w["linear1.bias"], 0) @ w["linear2.weight"] + w["linear2.bias"]

    if norm_first:
        a = norm(X, w, "norm1")
        x = X + attention(w, a, a, 2, prefix="self_attn.")
        want = x + feed(norm(x, w, "norm2"))
    else:
        x = norm(X + attention(w, X, X, 2, prefix="self_attn."), w, "norm1")
        want = norm(x + feed(x), w, "norm2")
    np.testing.assert_allclose(layer(X), want, rtol=1e-4, atol=1e-5)


# Counts as the documentations and textbooks of Keras and PyTorch state them, or by their formulas.
COUNTS = [
    (L.Dense(128), (1, 784), 100_480),
    (L.Conv2d(32, 3), (1, 1, 28, 28), 320),
    (L.Conv2d(64, 3), (1, 32, 13, 13), 18_496),
    (L.DepthwiseConv2d(3), (1, 32, 8, 8), 320),
    (L.SeparableConv2d(64, 3), (1, 32, 8, 8), 32 * 9 + 32 * 64 + 64),
    (L.ConvTranspose2d(64, 3), (1, 64, 7, 7), 36_928),
    (L.BatchNorm(), (1, 64, 8, 8), 256),
    (L.LSTM(128), (1, 10, 64), 98_816),
    (L.GRU(128), (1, 10, 64), 74_496),
    (L.SimpleRNN(32), (1, 10, 32), 2_080),
    (L.LSTM(64, bidirectional=True), (1, 10, 128), 98_816),
    (L.MultiHeadAttention(8, key_dim=64), (1, 10, 512), 1_050_624),
    (L.TransformerEncoderLayer(512, 8), (1, 4, 512), 3_152_384),
]


@pytest.mark.parametrize(("layer", "shape", "count"), COUNTS, ids=lambda v: v.kind if isinstance(v, L.Layer) else "")
def test_parameter_counts(layer, shape, count):
    layer(np.zeros(shape, np.float32))
    assert layer.count_params() == count


def test_initial_weights_are_keras_and_deterministic():
    dense = L.Dense(300)
    dense(np.zeros((1, 500), np.float32))
    kernel, bias = dense.get_weights()
    limit = np.sqrt(6 / 800)
    assert abs(kernel).max() <= limit and kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert not bias.any()
    again, other = L.Dense(300), L.Dense(300, seed=1)
    again(np.zeros((1, 500))), other(np.zeros((1, 500)))
    np.testing.assert_array_equal(again.get_weights()[0], kernel)
    assert abs(other.get_weights()[0] - kernel).max() > 0.01
    cell = L.LSTM(8)
    cell(X)
    recurrent, bias = cell.state_dict()["recurrent_weight"][0], cell.state_dict()["bias"][0]
    np.testing.assert_allclose(recurrent.T @ recurrent, np.eye(8), atol=1e-5)
    np.testing.assert_array_equal(bias, np.repeat([0, 0, 1, 0], 8))


def test_shape_layers():
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    close(L.Flatten()(x), x.reshape(2, 12))
    close(L.Reshape(2, -1)(x), x.reshape(2, 2, 6))
    close(L.Reshape((4, 3))(x), x.reshape(2, 4, 3))
    close(L.Permute((2, 1))(x), x.transpose(0, 2, 1))
    close(L.RepeatVector(3)(x[:, 0]), np.repeat(x[:, :1], 3, 1))
    close(L.Add()([x, x, x]), 3 * x)
    close(L.Subtract()(x, 2 * x), -x)
    close(L.Multiply()([x, x]), x * x)
    close(L.Average()([x, 3 * x]), 2 * x)
    close(L.Maximum()(x, -x), abs(x))
    close(L.Concat()([x, x[:, :, :1]]), np.concatenate([x, x[:, :, :1]], -1))
    close(L.Dot(normalize=True)([x[:, 0], x[:, 0]]), np.ones((2, 1)))
    close(L.Dropout(0.5)(x), x)
    close(L.Rescaling(1 / 255)(np.full((1, 2), 255, np.uint8)), np.ones((1, 2)))
    close(L.Lambda(lambda t: t * 2)(x), 2 * x)
    close(
        L.TimeDistributed(L.Dense(2, weights=[np.ones((4, 2)), np.zeros(2)]))(x), x.sum(-1, keepdims=True).repeat(2, -1)
    )
    table = L.Embedding(10, 4)
    index = np.array([[1, 9], [0, 1]])
    close(table(index), table.get_weights()[0][index])


def test_activation_layers_and_names():
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    close(L.ReLU()(x), np.maximum(x, 0))
    close(L.ReLU(6.0)(x * 9), np.clip(x * 9, 0, 6))
    close(L.LeakyReLU(0.2)(x), np.where(x < 0, 0.2 * x, x))
    close(L.PReLU()(x), np.where(x < 0, 0.25 * x, x))
    close(L.Activation("tanh")(x), np.tanh(x))
    close(L.Softmax()(x), np.exp(x) / np.exp(x).sum(1, keepdims=True))
    weights = [np.eye(3), np.zeros(3)]
    for given in ("relu", "ReLU", nv.relu, L.ReLU(), lambda t: nv.maximum(t, 0)):
        close(L.Dense(3, activation=given, weights=weights)(x), np.maximum(x, 0))


def test_position_layers():
    x = np.zeros((1, 4, 6), np.float32)
    position, i = np.arange(4)[:, None], np.arange(3)
    table = L.PositionalEncoding()(x)[0]
    np.testing.assert_allclose(table[:, 0::2], np.sin(position / 10000 ** (2 * i / 6)), atol=1e-6)
    np.testing.assert_allclose(table[:, 1::2], np.cos(position / 10000 ** (2 * i / 6)), atol=1e-6)
    learned = L.PositionEmbedding(9)
    close(learned(x)[0], learned.get_weights()[0][:4])
