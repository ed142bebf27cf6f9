"""``nv.Variable``, ``nv.assign``, ``nv.random`` and entry points of one's own: compiled, against plain numpy."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest


def counter() -> tuple[nv.Variable, nv.Network]:
    seen = nv.Variable(np.zeros((), np.int32), trainable=False, name="seen")

    @nv.network
    def count(x: nv.Input(batch_shape=(4,))):
        before = nv.cast(seen, "float32")
        nv.assign(seen, seen + 1)
        return nv.sum(x) * before, nv.cast(seen, "float32")

    return seen, count


def test_a_state_lives_from_call_to_call_until_reset() -> None:
    _, count = counter()
    model = nv.compile(count)
    x = np.ones(4, np.float32)
    assert [tuple(map(float, model(x))) for _ in range(3)] == [(0, 1), (4, 2), (8, 3)]
    model.reset()
    assert tuple(map(float, model(x))) == (0, 1)


def test_called_on_arrays_a_network_leaves_its_variables_alone() -> None:
    seen, count = counter()
    assert float(count(np.ones(4, np.float32))[1]) == 1 and int(seen.numpy()) == 0


def test_a_rule_that_is_no_gradient_trains_a_parameter() -> None:
    w = nv.Variable(np.array([1.0, 2.0]), name="w")

    @nv.network
    def hebb(x: nv.Input(batch_shape=(2,))):
        nv.assign(w, w + 0.5 * nv.sum(w * x) * x)
        return {"y": nv.sum(w * x)}

    @nv.network
    def use(x: nv.Input(batch_shape=(2,))):
        return nv.sum(w * x)

    model = nv.compile(use, steps=[hebb])
    x = np.array([1.0, 0.5], np.float32)
    expected = np.array([1.0, 2.0])
    for _ in range(3):
        expected = expected + 0.5 * (expected @ x) * x
        (said,) = model.session.run(None, {"x": x}, entry="hebb")
        assert float(said) == pytest.approx(expected @ x, rel=1e-6)
        assert float(model(x)) == pytest.approx(expected @ x, rel=1e-6)
    model.reset()  # a parameter is no state
    model.pull()
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(use.state_dict()["w"], expected, rtol=1e-6)


def test_minimize_trains_a_variable_beside_layers() -> None:
    centre, layer = nv.Variable(np.zeros(2), name="centre"), nv.layers.Dense(1, input_dim=2)

    @nv.network
    def step(x: nv.Input(batch_shape=(8, 2))):
        loss = nv.mean(nv.square(layer(x - centre) - 1))
        nv.minimize(loss, [centre, layer], nv.optimizers.SGD(0.1))
        return loss

    @nv.network
    def net(x: nv.Input(batch_shape=(8, 2))):
        return layer(x - centre)

    model = nv.compile(net, steps={"learn": step})
    x = np.random.default_rng(0).random((8, 2), np.float32)
    losses = [float(model.session.run(None, {"x": x}, entry="learn")[0]) for _ in range(200)]
    model.pull()
    assert losses[-1] < 0.1 * losses[0] and np.abs(centre.numpy()).max() > 0.01
    np.testing.assert_allclose(model(x), net(x), atol=1e-5)


def test_entry_points_share_a_state() -> None:
    cache = nv.Variable(np.zeros((4, 2)), trainable=False, name="cache")
    at = nv.Variable(np.zeros((), np.int32), trainable=False, name="at")

    @nv.network
    def write(x: nv.Input(batch_shape=(2,))):
        here = nv.expand_dims(nv.arange(4) == at, 1)
        nv.assign(at, at + 1)
        return nv.assign(cache, nv.where(here, x, cache))

    @nv.network
    def total():
        return nv.sum(cache, axis=0)

    model = nv.compile(total, entries=[write])
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for row in rows:
        model.session.run(None, {"x": row}, entry="write")
    np.testing.assert_array_equal(model.session.run(None, {})[0], rows.sum(axis=0))


def test_what_only_assigns_returns_nothing() -> None:
    total = nv.Variable(np.zeros(2), trainable=False, name="total")

    @nv.network
    def add(x: nv.Input(batch_shape=(2,))):
        nv.assign(total, total + x)

    @nv.network
    def twice(x: nv.Input(batch_shape=(2,))):
        add(x)
        add(x)

    @nv.network
    def read():
        return total * 1

    model = nv.compile([add, twice, read])
    x = np.array([1, 2], np.float32)
    assert [model.session.run(None, {"x": x}, entry=name) for name in ("add", "twice")] == [[], []]
    np.testing.assert_array_equal(model.session.run(None, {}, entry="read")[0], 3 * x)
    with pytest.raises(nv.NervureError, match="returned None"):
        nv.compile(nv.network(lambda x: None, name="idle", x=nv.Input((2,))))


def test_a_gradient_at_inference() -> None:
    """Dropout is off, and the gradient is that of finite differences."""
    net = nv.Sequential([nv.layers.Dense(6, "tanh", input_dim=3), nv.layers.Dropout(0.9), nv.layers.Dense(2)])

    @nv.network
    def saliency(x: nv.Input((3,))):
        return nv.grad(nv.sum(net(x)[:, 1]), x)

    model = nv.compile(net, entries=[saliency])
    assert [e.name for e in model.artifact.entries] == ["infer", "saliency"]
    x = np.random.default_rng(1).random((1, 3), np.float32)
    (found,) = model.session.run(None, {"x": x}, entry="saliency")
    steps = 1e-2 * np.eye(3, dtype=np.float32)
    expected = [(model(x + s)[0, 1] - model(x - s)[0, 1]) / 2e-2 for s in steps]
    np.testing.assert_allclose(found[0], expected, rtol=2e-2, atol=1e-3)


def test_random_numbers_have_their_distributions() -> None:
    @nv.network
    def draw(p: nv.Input(batch_shape=(3,))):
        return {
            "uniform": nv.random.uniform((20000,), 2, 4),
            "scaled": nv.mean(nv.random.uniform((20000, 3), 0, p), axis=0),
            "normal": nv.random.normal((20000,), mean=1, stddev=3),
            "bernoulli": nv.mean(nv.random.bernoulli(p, (20000, 3)), axis=0),
            "categorical": nv.random.categorical(nv.broadcast_to(nv.log(p), (20000, 3))),
        }

    model = nv.compile(draw)
    p = np.array([0.2, 0.5, 0.3], np.float32)
    uniform, scaled, normal, often, kinds = model(p)
    np.testing.assert_allclose(scaled, p / 2, atol=0.01)
    assert 2 <= uniform.min() < 2.01 and 3.99 < uniform.max() < 4
    assert abs(normal.mean() - 1) < 0.08 and abs(normal.std() - 3) < 0.06
    np.testing.assert_allclose(often, p, atol=0.015)
    np.testing.assert_allclose(np.bincount(kinds, minlength=3) / 20000, p, atol=0.015)
    again = model(p)
    assert (again[0] != uniform).any()  # other ones at every call
    model.reset()
    np.testing.assert_array_equal(model(p)[0], uniform)  # and the same again


def test_what_is_wrong_is_said() -> None:
    v = nv.Variable(np.zeros(3), name="v")
    other = nv.Variable(np.zeros(3), name="v")

    def refused(function: object, match: str) -> None:
        with pytest.raises(nv.NervureError, match=match):
            nv.compile(nv.network(function, name="net", x=nv.Input(batch_shape=(2,))))

    refused(lambda x: nv.assign(v, x), r"variable 'v' has shape \[3\], got \[2\]")
    refused(lambda x: nv.assign(x, x), "needs a variable")
    refused(lambda x: v + other, "two variables are named 'v'")
    net = nv.Sequential([nv.layers.Dense(1, input_dim=2)])
    with pytest.raises(nv.NervureError, match="two entry points are named 'b'"):
        nv.compile(net, entries=[nv.network(lambda x: net(x), name="b", x=nv.Input((2,))) for _ in range(2)])
    with pytest.raises(nv.NervureError, match="two entry points are named 'infer'"):
        nv.compile(net, steps={"infer": nv.network(lambda x: nv.assign(v, v + 1), x=nv.Input((2,)))})
    with pytest.raises(nv.NervureError, match="named 'refresh'"):
        nv.compile(net, entries={"refresh": nv.network(lambda x: net(x), x=nv.Input((2,)))})
