"""The watch on gradients: norms in the history, and who is named when one vanishes or explodes."""

from __future__ import annotations

import warnings
from typing import Any

import nervure as nv
import numpy as np
import pytest

layers = nv.layers
X = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int32)
LOSS = nv.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(depth: int, activation: str) -> nv.Network:
    hidden = [layers.Dense(24, activation) for _ in range(depth)]
    return nv.Sequential([nv.Input((16,)), *hidden, layers.Dense(2)])


def quiet(net: nv.Network, x: np.ndarray, y: np.ndarray, **options: Any) -> dict[str, list[float]]:
    """The history of a training without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return net.fit(x, y, verbose=0, **options).history


def test_norms_are_those_of_finite_differences() -> None:
    net = nv.Sequential([nv.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)])
    x, y = X[:8, :3], X[:8, 3:4]
    net.ready()
    held = net.state_dict()

    def loss(name: str, place: tuple[int, ...], by: float) -> float:
        w = {n: a.astype(np.float64) for n, a in held.items()}
        w[name][place] += by
        h = np.tanh(x @ w["dense.weight"] + w["dense.bias"])
        return float(np.mean((h @ w["dense_1.weight"] + w["dense_1.bias"] - y) ** 2))

    net.compile(nv.optimizers.SGD(0.01), "mse")
    history = quiet(net, x, y, batch_size=8, epochs=1)
    for layer in ("dense", "dense_1"):
        names = [n for n in held if n.rpartition(".")[0] == layer]
        slopes = [(loss(n, p, 1e-5) - loss(n, p, -1e-5)) / 2e-5 for n in names for p in np.ndindex(held[n].shape)]
        assert history[f"gradient_norm/{layer}"] == [pytest.approx(np.linalg.norm(slopes), rel=1e-4)]


def test_what_is_healthy_is_left_alone(tmp_path, capsys) -> None:
    """No warning, no figures in the lines of the epochs; the picture of the curves has loss and metrics alone."""
    net = dense(3, "relu")
    net.compile("adam", LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves = nv.callbacks.CurvePlot(tmp_path / "curves.svg")
        history = net.fit(X, Y, 32, 30, verbose=2, callbacks=[curves]).history
    assert history["loss"][-1] < 0.1
    assert list(history) == ["loss", *[f"gradient_norm/dense{end}" for end in ("", "_1", "_2", "_3")]]
    assert all(len(v) == 30 and min(v) > 0 for v in history.values())
    assert "gradient" not in capsys.readouterr().out and "gradient" not in (tmp_path / "curves.svg").read_text()


def test_large_targets_are_no_explosion() -> None:
    net = nv.Sequential([nv.Input((16,)), layers.Dense(32, "relu"), layers.Dense(1)])
    net.compile("adam", "mse")
    history = quiet(net, X, 1e5 * (X.sum(axis=1, keepdims=True) + 4), batch_size=32, epochs=3)
    assert history["gradient_norm/dense"][0] > 1e5


def test_twenty_sigmoid_layers() -> None:
    net = dense(20, "sigmoid")
    net.compile("adam", LOSS)
    told = r"the gradient of layer 'dense' \(and of .*\) vanishes: .*'dense_20'.*relu"
    with pytest.warns(UserWarning, match=told) as said:
        history = net.fit(X, Y, 32, 3, verbose=0).history
    assert len(said) == 1  # of three epochs
    assert history["gradient_norm/dense"][0] < 1e-8 < 0.01 < history["gradient_norm/dense_20"][0]


def test_large_recurrent_weights_over_a_long_sequence() -> None:
    """Chaos: what differs a little at first differs by all at the end, while the loss is that of any other net."""
    recurrent = layers.RNN(64, recurrent_initializer=lambda s, rng: 0.4 * rng.standard_normal(s))
    net = nv.Sequential([nv.Input((100, 4)), recurrent, layers.Dense(1)])
    net.compile(nv.optimizers.Adam(1e-4), "mse")
    x = np.random.default_rng(1).standard_normal((64, 100, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match="the gradient of layer 'rnn' explodes: .*clipnorm"):
        net.fit(x, x[:, :, :1].sum(axis=1), 32, 1, verbose=0)


def test_a_learning_rate_far_too_high() -> None:
    """The layer is named by the warning, and where the loss is lost by the error too."""
    net = dense(3, "relu")
    net.compile(nv.optimizers.Adam(10.0), LOSS)
    with pytest.warns(UserWarning, match="the gradient of layer 'dense[_123]*' explodes: .*the loss .*e\\+"):
        net.fit(X, Y, 32, 1, verbose=0)
    net.compile(nv.optimizers.SGD(1000.0), LOSS)
    lost = pytest.raises(nv.NervureError, match=r"the gradient of layer 'dense[_123]*' had a norm of .*e\+")
    with lost, pytest.warns(UserWarning, match="the gradient of layer 'dense[_123]*' explodes: .*lower learning rate"):
        net.fit(X, Y, 32, 3, verbose=0)


def test_a_forward_pass_that_is_lost_at_once() -> None:
    net = nv.Sequential([nv.Input((16,)), layers.Dense(4, kernel_initializer=lambda s, rng: np.full(s, 1e38))])
    net.compile("sgd", "mse")
    with pytest.raises(nv.NervureError, match="the gradient of layer 'dense' is not finite"), pytest.warns(UserWarning):
        net.fit(X, X[:, :4], 32, 1, verbose=0)


def test_it_can_be_left_out_and_steps_for_devices_do_without() -> None:
    net = dense(1, "relu")
    net.compile("sgd", LOSS, gradient_norms=False)
    assert list(quiet(net, X, Y, batch_size=32, epochs=1)) == ["loss"]
    plain, watched = (
        nv.compile(net, training=nv.Training(LOSS, batch=32, gradient_norms=norms)) for norms in (False, True)
    )
    assert not plain.artifact.states
    assert {s.name for s in watched.artifact.states} == {f"gradient/{p.name}" for p in plain.artifact.params}
    history = nv.Trainer(watched.session).fit(X, Y, verbose=0).history
    assert set(history) == {"loss", "gradient_norm/dense", "gradient_norm/dense_1"}


def test_a_resumed_training_tells_the_same(tmp_path) -> None:
    """Also after a checkpoint in the middle of an epoch; a checkpoint holds no gradients."""

    def trainer() -> nv.Trainer:
        return nv.Trainer(nv.compile(dense(2, "relu"), training=training).session)

    training = nv.Training(LOSS, "adam", batch=32, gradient_norms=True)
    whole = trainer().fit(X, Y, epochs=3, verbose=0).history
    first = trainer()
    place = {"checkpoint": tmp_path / "c", "checkpoint_every": 1, "verbose": 0}

    class Killed(Exception):
        pass

    class Kill(nv.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if self.trainer.step == 11:
                raise Killed

    with pytest.raises(Killed):
        first.fit(X, Y, epochs=3, callbacks=[Kill()], **place)
    assert trainer().fit(X, Y, epochs=3, resume=True, **place).history == whole
