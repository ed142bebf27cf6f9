"""``net.compile``, ``net.fit`` and what the entry points of a training artifact do with each other."""

from __future__ import annotations

from collections.abc import Iterator

import nervure as nv
import numpy as np
import pytest
from nervure.frontends.training.step import training_entries

L = nv.layers
SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)


def _data(samples: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 6)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)


def _net(*middle: nv.layers.Layer) -> nv.Sequential:
    return nv.Sequential([L.Dense(16, "tanh", input_dim=6, name="body"), *middle, L.Dense(2, name="head")], name="net")


def test_the_textbooks_keras_example_runs_with_its_imports_changed() -> None:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([[0], [1], [1], [0]], np.float32)
    model = nv.Sequential()
    model.add(L.Dense(8, input_dim=2, activation="tanh"))
    model.add(L.Dense(1, activation="sigmoid"))
    model.compile(loss="binary_crossentropy", optimizer=nv.optimizers.Adam(learning_rate=0.05), metrics=["accuracy"])
    history = model.fit(x, y, epochs=200, batch_size=4, verbose=0)
    assert history.history["accuracy"][-1] == 1.0 and history.history["loss"][-1] < 0.05
    np.testing.assert_array_equal(model.predict(x).round(), y)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert accuracy == 1.0 and loss < 0.05
    np.testing.assert_allclose(nv.compile(model)(x[:1]), model.predict(x[:1]), rtol=1e-5)


def test_a_padded_last_batch_weighs_as_if_it_were_alone() -> None:
    """One epoch over 40 samples in batches of 32 and 8, against steps of exactly these sizes."""
    x, y = _data(40)
    padded, exact = _net(L.BatchNorm()), _net(L.BatchNorm())
    for net in (padded, exact):
        net.compile("sgd", SCE)
    padded.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    for part in (slice(0, 32), slice(32, 40)):
        exact.train_on_batch(x[part], y[part])
    for name, value in exact.state_dict().items():
        np.testing.assert_allclose(padded.state_dict()[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_weights_per_sample_and_per_class() -> None:
    x, y = _data(64)
    twice, weighted = _net(), _net()
    for net in (twice, weighted):
        net.compile("sgd", SCE)
    twice.train_on_batch(np.concatenate([x[:32], x[:32]]), np.concatenate([y[:32], y[:32]]))
    weighted.train_on_batch(x, y, sample_weight=np.repeat([2.0, 0.0], 32))
    for name, value in twice.state_dict().items():
        np.testing.assert_allclose(weighted.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_generators_and_loaders_of_any_batch_size() -> None:
    x, y = _data(90)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, 90, 25):
            yield x[at : at + 25], y[at : at + 25]

    net = _net()
    net.compile("adam", SCE, ["accuracy"])
    assert len(net.fit(batches(), epochs=1, verbose=0).history["loss"]) == 1
    assert len(net.fit(list(batches()), epochs=2, verbose=0).history["loss"]) == 2


def test_frozen_weights_stay_and_cost_nothing() -> None:
    x, y = _data(32)
    net = _net()
    net.freeze("body")
    before = net.state_dict()
    net.compile("adam", SCE)
    net.fit(x, y, batch_size=32, epochs=2, verbose=0)
    after = net.state_dict()
    assert np.array_equal(before["body.weight"], after["body.weight"])
    assert not np.array_equal(before["head.weight"], after["head.weight"])
    entries, _ = training_entries(net, nv.Training(SCE, "adam"))
    step = next(e.graph for e in entries if e.function == "train_step")
    params = [step.node(n).names[0] for n in step.find("param")]
    assert sorted(params) == ["head.bias", "head.weight"]
    assert len(step.find("matmul")) == 3  # two forward, one for the head's gradient


def test_chosen_channels_train_as_if_the_others_gradient_were_zero() -> None:
    x, y = _data(32)
    part, whole = _net(), _net()
    part.freeze()
    part.unfreeze("body", channels=range(4, 10))
    for net in (part, whole):
        net.compile(nv.optimizers.SGD(0.1), SCE)
        net.train_on_batch(x, y)
    start, got, full = _net(), part.state_dict(), whole.state_dict()
    start.ready()
    expected = start.state_dict()
    expected["body.weight"][:, 4:10] = full["body.weight"][:, 4:10]
    expected["body.bias"][4:10] = full["body.bias"][4:10]
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_convolutions_are_trained_in_part_too() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((8, 4, 6, 6), np.float32), rng.integers(0, 3, 8)

    def made() -> nv.Sequential:
        body = [nv.Input((4, 6, 6)), L.Conv2D(6, 3, name="a"), L.DepthwiseConv2D(3, name="b"), L.Flatten()]
        return nv.Sequential([*body, L.Dense(3, name="c")], name="conv")

    part, whole = made(), made()
    part.freeze()
    part.unfreeze("a", channels=2)
    part.unfreeze("b", channels=range(3, 5))
    for net in (part, whole):
        net.compile(nv.optimizers.SGD(0.1), SCE)
        net.train_on_batch(x, y)
    got, full = part.state_dict(), whole.state_dict()
    for name, channels in (("a.weight", slice(0, 2)), ("a.bias", slice(0, 2)), ("b.weight", slice(3, 5))):
        np.testing.assert_allclose(got[name][channels], full[name][channels], rtol=1e-5, atol=1e-7, err_msg=name)
    params = {p.name: p.shape for p in part._fitting._last.session.artifact.params}
    assert params["a.weight"] == (2, 4, 3, 3) and params["b.weight"] == (2, 1, 3, 3)
    np.testing.assert_allclose(part.predict(x), part(x), rtol=1e-4, atol=1e-5)


def test_a_second_batch_size_goes_on_with_the_same_moments() -> None:
    x, y = _data(48)
    one, other = _net(), _net()
    for net in (one, other):
        net.compile(nv.optimizers.SGD(0.1, momentum=0.9), SCE)
        net.train_on_batch(x[:32], y[:32])
    one.train_on_batch(x[32:], y[32:])
    other.train_on_batch(x[32:40], y[32:40])
    states = one._fitting._last.session.states()
    assert states["optimizer/head.weight/momentum"].any()
    assert not np.array_equal(one.state_dict()["head.weight"], other.state_dict()["head.weight"])


def test_averaged_weights() -> None:
    x, y = _data(32)
    net = _net()
    net.compile(nv.optimizers.SGD(0.1, ema_momentum=0.5), SCE)
    net.ready()
    average = net.state_dict()["head.weight"]
    for _ in range(3):
        net.train_on_batch(x, y)
        average = 0.5 * average + 0.5 * net.state_dict()["head.weight"]
    np.testing.assert_allclose(net.averaged_weights()["head.weight"], average, rtol=1e-5)
    with pytest.raises(nv.NervureError, match="ema_momentum"):
        other = _net()
        other.compile("sgd", SCE)
        other.train_on_batch(x, y)
        other.averaged_weights()


def test_several_outputs_with_their_own_losses() -> None:
    @nv.network
    def two(x: nv.Input((6,))) -> dict[str, nv.Tensor]:
        h = L.Dense(8, "relu")(x)
        return {"value": L.Dense(1)(h), "kind": L.Dense(2)(h)}

    x, y = _data(32)
    two.compile("adam", {"value": "mse", "kind": SCE}, loss_weights={"value": 0.5, "kind": 2.0})
    history = two.fit(x, {"y_value": x[:, :1], "y_kind": y}, batch_size=16, epochs=3, verbose=0).history
    assert {"loss", "value_loss", "kind_loss"} <= set(history)
    parts = 0.5 * np.array(history["value_loss"]) + 2.0 * np.array(history["kind_loss"])
    np.testing.assert_allclose(history["loss"], parts, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "empty"),
        (lambda x, y: (x, y + 7), "class"),
        (lambda x, y: (x[:, :5], y), "shape"),
        (lambda x, y: (x, y[:-3]), "samples"),
        (lambda x, y: (x * np.nan, y), "loss|NaN|finite"),
    ],
)
def test_a_users_mistake_is_one_clear_error(spoil, message: str) -> None:
    net = _net()
    net.compile("sgd", SCE)
    with pytest.raises(nv.NervureError, match=message):
        net.fit(*spoil(*_data(32)), batch_size=16, epochs=1, verbose=0)


def test_unknown_names_and_nothing_to_train() -> None:
    net = _net()
    with pytest.raises(nv.NervureError, match="loss"):
        net.compile("sgd", "mean_squared_eror")
    with pytest.raises(nv.NervureError, match="compile"):
        net.fit(*_data())
    with pytest.raises(nv.NervureError, match=r"no weight is named 'bdy'") as error:
        net.freeze("bdy")
    assert "body.weight" in str(error.value)
    net.freeze()
    net.compile("sgd", SCE)
    with pytest.raises(nv.NervureError, match="nothing to train"):
        net.fit(*_data(32), batch_size=16, verbose=0)


def test_two_steps_in_one_artifact_keep_their_moments_apart() -> None:
    generator = nv.Sequential([nv.Input((4,)), L.Dense(6)], name="generator")
    critic = nv.Sequential([nv.Input((6,)), L.Dense(1)], name="critic")

    @nv.network
    def train_critic(real: nv.Input((6,)), noise: nv.Input((4,)), rate: nv.Input(batch_shape=())):
        loss = nv.mean(critic(nv.stop_gradient(generator(noise)))) - nv.mean(critic(real))
        nv.minimize(loss, critic, "adam", rate)
        return {"loss": loss}

    @nv.network
    def train_generator(noise: nv.Input((4,)), rate: nv.Input(batch_shape=())):
        loss = -nv.mean(critic(generator(noise)))
        nv.minimize(loss, generator, "adam", rate)
        return {"loss": loss}

    model = nv.compile(generator, steps=[train_critic, train_generator], dims={"batch": 8})
    rng = np.random.default_rng(0)
    noise, real = rng.standard_normal((8, 4), np.float32), rng.standard_normal((8, 6), np.float32)
    session, rate = model.session, np.float32(0.1)
    before = session.params()
    session.run(None, {"real": real, "noise": noise, "rate": rate}, entry="train_critic")
    between = session.params()
    session.run(None, {"noise": noise, "rate": rate}, entry="train_generator")
    after = session.params()
    moved = {n for n in before if not np.array_equal(before[n], between[n])}
    assert moved == {"critic.dense.weight"}  # its bias has no gradient: it cancels
    assert {n for n in before if not np.array_equal(between[n], after[n])} == {
        "generator.dense.weight",
        "generator.dense.bias",
    }
    counts = {n: float(a) for n, a in session.states().items() if n.endswith("optimizer/step")}
    assert counts == {"train_critic/optimizer/step": 1.0, "train_generator/optimizer/step": 1.0}
    np.testing.assert_allclose(
        model(noise), noise @ after["generator.dense.weight"] + after["generator.dense.bias"], rtol=1e-5, atol=1e-6
    )


def test_a_batch_norm_learns_again_once_its_name_is_unfrozen() -> None:
    x, y = _data(32)
    net = _net(L.BatchNorm(name="norm"))
    net.freeze()
    net.unfreeze("norm")
    before = net.state_dict()
    net.compile("sgd", SCE)
    net.train_on_batch(x, y)
    after = net.state_dict()
    moved = {n for n in before if not np.array_equal(before[n], after[n])}
    assert moved == {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
