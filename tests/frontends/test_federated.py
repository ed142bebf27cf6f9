"""Federated learning: what is averaged, what is refused, what noise is added; and Flower's parts, where it is there."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import federated
from nervure.federated import Averaging, Client, Refused, Update, epsilon, pack, unpack

START = {"w": np.zeros((3, 4), np.float32), "b": np.ones(4, np.float32), "seen": np.array(7, np.int32)}
needs_flower = pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")


def moved(by: float, **other: Any) -> dict[str, np.ndarray]:
    """The first weights, the floats moved, and some replaced."""
    return {n: a + a.dtype.type(by if a.dtype.kind == "f" else 0) for n, a in START.items()} | other


def test_safetensors_there_and_back() -> None:
    back = unpack(pack(START))
    assert back.keys() == START.keys()
    assert all(a.dtype == START[n].dtype and (a == START[n]).all() for n, a in back.items())
    assert (unpack(pack({"t": np.arange(6.0).reshape(2, 3).T}))["t"] == np.arange(6.0).reshape(2, 3).T).all()


def test_the_mean_is_weighted_by_samples_and_its_order_changes_nothing() -> None:
    updates = [Update(i, pack(moved(by)), samples) for i, (by, samples) in enumerate([(1, 10), (2, 30), (4, 60)])]
    found = []
    for order in (updates, updates[::-1]):
        averaging = Averaging(START)
        done = averaging.aggregate(order)
        assert done.accepted == (0, 1, 2) and not done.refused and done.number == 1
        found.append(averaging.weights)
        np.testing.assert_allclose(averaging.weights["w"], np.full((3, 4), 0.1 + 0.6 + 2.4), rtol=1e-6)
        assert averaging.weights["b"].dtype == np.float32 and averaging.weights["seen"] == 7
    assert all((found[0][n] == found[1][n]).all() for n in START)
    assert (START["w"] == 0).all()  # what was given stays as it is


def test_claimed_samples_count_only_so_far() -> None:
    averaging = Averaging(START, max_samples=10)
    averaging.aggregate([Update("a", pack(moved(1)), 10), Update("b", pack(moved(3)), 10**12)])
    np.testing.assert_allclose(averaging.weights["w"], np.full((3, 4), 2), rtol=1e-6)


class Harm:
    """Unpickled, it would be noticed."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise SystemExit('unpickled')",)


REFUSED = {
    "nan": (pack(moved(1, w=np.full((3, 4), np.nan, np.float32))), 1, "'w' is not finite"),
    "infinite": (pack(moved(1, b=np.array([0, 0, np.inf, 0], np.float32))), 1, "'b' is not finite"),
    "shape": (pack(moved(1, w=np.zeros((4, 3), np.float32))), 1, r"'w' is float32\[4, 3\], not float32\[3, 4\]"),
    "one number, which would broadcast": (pack(moved(1, w=np.zeros((), np.float32))), 1, r"'w' is float32\[\]"),
    "type": (pack(moved(1, w=np.zeros((3, 4)))), 1, r"'w' is float64\[3, 4\], not float32"),
    "missing": (pack({n: a for n, a in START.items() if n != "b"}), 1, "'b' is missing"),
    "more": (pack(moved(1, more=np.zeros(2, np.float32))), 1, "'more' is not one of the weights"),
    "oversized": (pack(moved(1, w=np.zeros((3, 4000), np.float32))), 1, "bytes, more than"),
    "far away": (pack(moved(100)), 1, "its norm is 400, more than 50"),
    "cut": (pack(START)[:-5], 1, "no safetensors"),
    "a header that promises much": (b"\xff" * 8 + b"{}", 1, "no safetensors"),
    "nothing": (b"", 1, "no safetensors"),
    "a pickle": (pickle.dumps(Harm()), 1, "no safetensors"),
    "no samples": (pack(moved(1)), 0, "0 samples"),
    "more samples than there can be": (pack(moved(1)), 10**400, "1000.* samples"),
    "owed samples": (pack(moved(1)), -5, "-5 samples"),
    "part of a sample": (pack(moved(1)), 0.5, "0.5 samples"),
    "no number of samples": (pack(moved(1)), math.nan, "nan samples"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_malformed_update_is_refused_and_the_round_goes_on(what: str, caplog: pytest.LogCaptureFixture) -> None:
    blob, samples, why = REFUSED[what]
    averaging = Averaging(START, max_norm=50)
    with pytest.raises(Refused, match=why):
        averaging.check(Update("liar", blob, samples))
    with caplog.at_level(logging.WARNING, "nervure.federated"):
        done = averaging.aggregate([Update("liar", blob, samples), Update("honest", pack(moved(1)))])
    assert done.accepted == ("honest",) and list(done.refused) == ["liar"] and averaging.rounds == [done]
    np.testing.assert_array_equal(averaging.weights["w"], np.ones((3, 4), np.float32))
    assert "round 1: the update of client liar is refused" in caplog.text


def test_a_client_counts_once_and_too_few_change_nothing() -> None:
    averaging = Averaging(START, least=2)
    done = averaging.aggregate([Update("a", pack(moved(1))), Update("a", pack(moved(5)))])
    assert done.accepted == ("a",) and "second" in done.refused["a"]
    assert (averaging.weights["w"] == 0).all()
    averaging.aggregate([])
    assert len(averaging.rounds) == 2 and (averaging.weights["w"] == 0).all()
    averaging.aggregate([Update("a", pack(moved(1))), Update("b", pack(moved(1)))])
    assert (averaging.weights["w"] == 1).all()


def test_clipping_shortens_long_updates_only() -> None:
    averaging = Averaging(START, clip=2.0)
    done = averaging.aggregate([Update("short", pack(moved(0.25))), Update("long", pack(moved(-5)))])
    assert done.norms == pytest.approx({"short": 1.0, "long": 20.0})
    np.testing.assert_allclose(averaging.weights["w"], np.full((3, 4), (0.25 - 0.5) / 2), rtol=1e-6)


def test_noise_is_that_of_the_clip_over_the_clients_and_follows_from_the_seed() -> None:
    start = {"w": np.zeros(100_000, np.float32)}
    updates = [Update(i, pack(start), 1 + 99 * i) for i in range(4)]  # samples do not matter then

    def noise(seed: int | None) -> np.ndarray:
        averaging = Averaging(start, clip=3.0, noise=0.8, seed=seed)
        averaging.aggregate(updates)
        return averaging.weights["w"]

    found = noise(1)
    assert found.std() == pytest.approx(0.8 * 3 / 4, rel=0.02) and abs(found.mean()) < 0.01
    assert (noise(1) == found).all() and (noise(2) != found).any()
    assert (noise(None) != noise(None)).any()
    far = {"w": np.full(100_000, 1.0, np.float32)}
    averaging = Averaging(start, clip=3.0, noise=1e-9)
    averaging.aggregate([Update(0, pack(far), 1000), Update(1, pack(start), 1)])
    assert np.linalg.norm(averaging.weights["w"]) == pytest.approx(1.5, rel=1e-3)  # none moves it beyond clip / clients


def test_what_noise_costs_in_privacy() -> None:
    """Above the exact privacy of the Gaussian mechanism (Balle and Wang 2018, theorem 8), and not far."""

    def spent(eps: float, sigma: float) -> float:
        def phi(t: float) -> float:
            return 0.5 * math.erfc(-t / math.sqrt(2))

        return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)

    for noise, rounds in ((1.0, 1), (4.0, 10), (20.0, 400)):
        together = noise / math.sqrt(rounds)  # as good as one round with that noise
        found = epsilon(noise, rounds, 1e-5)
        assert spent(found, together) <= 1e-5 < spent(0.6 * found, together)
    assert epsilon(0, 3) == math.inf and epsilon(0, 0) == 0
    averaging = Averaging(START, clip=1.0, noise=2.0)
    averaging.aggregate([Update(0, pack(START))])
    assert averaging.epsilon() == epsilon(2.0, 1)


def test_weights_of_other_kinds_are_refused_beforehand() -> None:
    with pytest.raises(nv.NervureError, match="'w' is complex64"):
        Averaging({"w": np.zeros(3, np.complex64)})


@pytest.mark.parametrize(
    ("options", "why"),
    [({"noise": 1.0}, "noise needs clip"), ({"clip": -1.0}, "clip is -1"), ({"max_norm": math.nan}, "max_norm is nan")],
)
def test_settings_that_make_no_sense(options: dict[str, float], why: str) -> None:
    with pytest.raises(nv.NervureError, match=why):
        Averaging(START, **options)


# -- clients -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> Iterator[nv.Session]:
    net = nv.Sequential([nv.layers.Dense(8, "tanh", input_dim=4), nv.layers.Dense(3)], name="small")
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    training = nv.Training(loss, nv.optimizers.Adam(0.02), ["accuracy"], batch=8, weighted=True)
    yield nv.compile(net, training=training).session


def fleet(session: nv.Session) -> tuple[list[Client], np.ndarray, np.ndarray]:
    """Three clients: each has little of one of the three kinds."""
    x = np.random.default_rng(0).standard_normal((240, 4)).astype(np.float32)
    y = (x[:, :3]).argmax(axis=1).astype(np.int32)
    owner = np.where(np.arange(240) % 8 == 0, y, (y + 1 + np.arange(240) % 2) % 3)
    rows = [np.flatnonzero(owner == i) for i in range(3)]
    return [Client(nv.Trainer(session.clone(), seed=i), x[r], y[r], epochs=2) for i, r in enumerate(rows)], x, y


def test_clients_learn_together_and_again_alike(session: nv.Session) -> None:
    found = []
    for _ in range(2):
        clients, x, y = fleet(session)
        averaging = Averaging(nv.Trainer(session.clone()).weights())
        for _ in range(10):
            blob = pack(averaging.weights)
            updates = [Update(i, *client.update(blob)[:2]) for i, client in enumerate(clients)]
            assert [u.samples for u in updates] == [len(client.y) for client in clients]
            averaging.aggregate(updates)
        judge = nv.Trainer(session.clone())
        judge.set_weights(averaging.weights)
        assert judge.evaluate(x, y, return_dict=True)["accuracy"] > 0.9
        found.append(averaging.weights)
    assert all((found[0][n] == found[1][n]).all() for n in found[0])


def test_a_round_starts_with_a_fresh_optimizer(session: nv.Session) -> None:
    (client, *_), _, _ = fleet(session)
    blob = pack(client.trainer.weights())
    client.update(blob)
    moments = {n: a for n, a in client.trainer.session.states().items() if n.endswith("/m")}
    assert moments and all(np.abs(a).max() > 0 for a in moments.values())
    client.x, client.epochs = np.zeros_like(client.x), 1
    client.update(blob)
    after = client.trainer.session.states()["optimizer/dense.weight/m"]
    assert (after == 0).all()  # of inputs that are 0 the first layer's gradient is 0, and nothing of before is left


@needs_flower
def test_flower_carries_weights_and_goes_on_without_who_fails_or_lies(session: nv.Session) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    clients, _, _ = fleet(session)

    class Liar(Client):
        def update(self, blob: bytes) -> tuple[bytes, int, dict[str, float]]:
            trained, samples, went = super().update(blob)
            return pack({n: a * np.nan for n, a in unpack(trained).items()}), samples, went

    class Broken(Client):
        def update(self, blob: bytes) -> tuple[bytes, int, dict[str, float]]:
            raise RuntimeError("out of battery")

    others = [kind(nv.Trainer(session.clone()), clients[0].x, clients[0].y) for kind in (Liar, Broken)]
    averaging, by_hand = (Averaging(nv.Trainer(session.clone()).weights()) for _ in range(2))
    apps = [federated.client_app(client) for client in [*clients, *others]]
    strategy, grid = federated.Strategy(averaging), federated.LocalGrid(apps)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    result = strategy.start(grid, strategy.first(), num_rounds=3)
    assert [(r.accepted, list(r.refused)) for r in averaging.rounds] == [((1, 2, 3), [4])] * 3
    assert dict(result.train_metrics_clientapp[3]) == {"accepted": 3, "refused": 1}
    again, _, _ = fleet(session)
    for _ in range(3):
        blob = pack(by_hand.weights)
        by_hand.aggregate([Update(i, *client.update(blob)[:2]) for i, client in enumerate(again)])
    assert all((averaging.weights[n] == by_hand.weights[n]).all() for n in by_hand.weights)


@needs_flower
def test_replies_without_weights_are_refused() -> None:
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    def answering(content: RecordDict) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Any) -> Message:
            return Message(content, reply_to=message)

        return app

    numpys = ArrayRecord({"weights": Array(START["w"])})
    contents = [
        RecordDict(),
        RecordDict({"arrays": numpys, "metrics": MetricRecord({"num-examples": 3})}),
        RecordDict({"metrics": MetricRecord({"num-examples": 3})}),
    ]
    averaging = Averaging(START)
    strategy, grid = federated.Strategy(averaging), federated.LocalGrid([answering(c) for c in contents])
    strategy.start(grid, strategy.first(), num_rounds=1)
    assert sorted(averaging.rounds[0].refused) == [1, 2, 3] and (averaging.weights["w"] == 0).all()


@pytest.mark.skipif(find_spec("flwr") is not None, reason="flwr is installed")
def test_without_flower_the_error_names_the_extra() -> None:
    with pytest.raises(nv.NervureError, match=r"nervure\[federated\]"):
        _ = federated.LocalGrid
