"""``nv.streaming`` and ``stateful=True``: what is read in parts is what is read whole."""

from __future__ import annotations

from typing import Any

import nervure as nv
import numpy as np
import pytest

layers = nv.layers
FRAMES, FEATURES = 12, 5
CELLS = {"rnn": layers.RNN, "lstm": layers.LSTM, "gru": layers.GRU}
X = np.random.default_rng(0).standard_normal((2, FRAMES, FEATURES)).astype(np.float32)


def recurrent(kind: str, **options: Any) -> nv.Network:
    first = CELLS[kind](7, return_sequences=True, num_layers=2)
    return nv.Sequential([nv.Input((FRAMES, FEATURES)), first, CELLS[kind](6, **options), layers.Dense(3)], name=kind)


def parts(x: np.ndarray, frames: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(x[:, i : i + frames]) for i in range(0, x.shape[1], frames)]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(("frames", "sequences"), [(1, False), (4, True)])
def test_a_stream_ends_with_the_answer_of_the_whole(kind: str, frames: int, sequences: bool) -> None:
    """And begins anew after ``reset()``; the weights are those of the network, not copies."""
    net = recurrent(kind, return_sequences=sequences)
    stream = nv.streaming(net, frames)
    for one, other in zip(net.weights, stream.weights, strict=True):
        assert one is other
    weights = {n: a + 0.05 for n, a in net.state_dict().items()}
    net.load_state_dict(weights)
    whole, model = nv.compile(net, dims={"batch": 2})(X), nv.compile(stream, dims={"batch": 2})
    for _ in range(2):
        found = [model(part) for part in parts(X, frames)]
        np.testing.assert_allclose(np.concatenate(found, 1) if sequences else found[-1], whole, atol=1e-5)
        model.reset()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "aarch64"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_stream_in_c(kind: str, target: str, tmp_path) -> None:
    net = recurrent(kind)
    path = nv.compile(nv.streaming(net), target).save(tmp_path / f"{kind}.so")
    found = nv.run_in_c(path, X[0][:, None])  # a frame each call
    here = nv.compile(nv.streaming(net))
    np.testing.assert_allclose(found, [here(frame)[0] for frame in parts(X[:1], 1)], atol=1e-5)
    np.testing.assert_allclose(found[-1], net(X[:1])[0], atol=1e-5)


def test_one_artifact_holds_both() -> None:
    net = recurrent("gru")
    model = nv.compile(net, entries={"stream": nv.streaming(net, 3)})
    for part in parts(X[:1], 3):
        (found,) = model.session.run(None, {"input": part}, entry="stream")
    np.testing.assert_allclose(found, model(X[:1]), atol=1e-5)
    assert set(model.session.states()) == {"gru.h", "gru.h_l1", "gru_1.h"}
    assert set(net.state_dict()) == {n for n in net.state_dict() if "weight" in n or "bias" in n}


@pytest.mark.parametrize("pool", [layers.GlobalAvgPool1d, layers.GlobalMaxPool1d])
def test_convolutions_and_pools_over_time(pool: Any) -> None:
    net = nv.Sequential(
        [
            nv.Input((FRAMES, FEATURES)),
            layers.Conv1d(6, 3, padding="causal", dilation_rate=2, activation="relu", data_format="channels_last"),
            layers.Conv1d(4, 2, padding="causal", data_format="channels_last"),
            pool(data_format="channels_last"),
            layers.Dense(2),
        ]
    )
    model = nv.compile(nv.streaming(net, 2))
    found = [model(part) for part in parts(X[:1], 2)][-1]
    np.testing.assert_allclose(found, nv.compile(net)(X[:1]), atol=1e-5)


def test_a_causal_convolution_is_a_loop() -> None:
    layer = layers.Conv1d(2, 3, padding="causal", dilation_rate=2, data_format="channels_last")
    found = layer(X[:1])[0]
    w = layer.weights[0].numpy()
    for t in range(FRAMES):
        back = [X[0, t - 2 * (2 - k)] if t - 2 * (2 - k) >= 0 else np.zeros(FEATURES) for k in range(3)]
        np.testing.assert_allclose(found[t], sum(w[:, :, k] @ back[k] for k in range(3)), atol=1e-5)


def test_a_layer_called_twice_remembers_twice() -> None:
    cell = layers.LSTM(4)

    @nv.network
    def both(a: nv.Input((FRAMES, FEATURES)), b: nv.Input((FRAMES, FEATURES))):
        return cell(a) - cell(b)

    model = nv.compile(nv.streaming(both))
    for a, b in zip(parts(X[:1], 1), parts(X[1:], 1), strict=True):
        found = model(a, b)
    np.testing.assert_allclose(found, both(X[:1], X[1:]), atol=1e-5)
    assert np.abs(found).max() > 0.01


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layers.GRU(4, bidirectional=True), "no end to begin from"),
        (layers.Conv1d(4, 3, padding="same", data_format="channels_last"), "differ from the whole"),
        (lambda x: nv.mean(x, 1), "differ from the whole"),
        (layers.Flatten(), "cannot be read as a stream"),
    ],
)
def test_what_is_no_stream_is_refused(layer: Any, why: str) -> None:
    net = nv.Sequential([nv.Input((FRAMES, FEATURES)), layer, layers.Dense(2)])
    with pytest.raises(nv.NervureError, match=why):
        nv.streaming(net)


def test_stateful_goes_on_from_batch_to_batch_also_in_training() -> None:
    """Keras's stateful=True: the second half after the first; ``reset_states`` forgets."""
    net = nv.Sequential([layers.LSTM(6, stateful=True, batch_input_shape=(2, 6, FEATURES)), layers.Dense(3)])
    plain = nv.Sequential([nv.Input((FRAMES, FEATURES)), layers.LSTM(6), layers.Dense(3)])
    plain.ready()
    net.ready()
    plain.load_state_dict(net.state_dict())
    net.compile(nv.optimizers.SGD(0.0), "mse")
    y = np.zeros((2, 3), np.float32)
    for _ in range(2):
        net.fit(X[:, :6], y, epochs=1, verbose=0)
        np.testing.assert_allclose(net.predict(X[:, 6:]), plain(X), atol=1e-5)
        assert np.abs(net.predict(X[:, 6:]) - plain(X)).max() > 1e-3
        net.reset_states()
