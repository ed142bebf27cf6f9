"""Gradual pruning: the curve, what is chosen, that it can be interrupted, and what it costs in accuracy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers as L
from nervure.compiler.prune.patterns import Pattern
from nervure.frontends.training.pruning import Matrix
from nervure.runtime.pruning import choose, cubic, masked_names

SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
Gradual = nv.callbacks.GradualPruning
BATCH = 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 8)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(np.int32)


def made() -> nv.Sequential:
    return nv.Sequential([L.Dense(32, "tanh", input_dim=8, name="body"), L.Dense(2, name="head")], name="net")


def trained(callback: Any, epochs: int = 6, net: Any = None, **options: Any) -> tuple[nv.Network, Any]:
    net = net or made()
    net.compile(nv.optimizers.Adam(0.01), SCE)
    return net, net.fit(X, Y, BATCH, epochs, verbose=0, callbacks=[callback], **options)


def zeros(net: nv.Network) -> dict[str, float]:
    return {n: float((w.array == 0).mean()) for n, w in net.named_weights() if w.array.ndim > 1}


def test_the_cubic_curve() -> None:
    """Zhu and Gupta 2017, equation 1, at its ends and in the middle: 0.9 - 0.9 / 8."""
    assert cubic(0, 10, 50, 0.9) == 0 and cubic(10, 10, 50, 0.9, 0.5) == 0.5
    assert cubic(30, 10, 50, 0.9) == pytest.approx(0.7875)
    assert cubic(50, 10, 50, 0.9) == cubic(1000, 10, 50, 0.9) == 0.9
    steps = [cubic(t, 0, 40, 0.9, 0.2) for t in range(41)]
    rises = np.diff(steps)
    assert (rises > 0).all() and (np.diff(rises) < 0).all()


def test_sparsity_rises_along_the_curve_and_reaches_its_end() -> None:
    net, history = trained(Gradual(0.875, begin=0, end=24, frequency=6))
    wanted = [cubic(6 * (e + 1), 0, 24, 0.875) for e in range(6)]
    assert history.history["sparsity"] == pytest.approx(wanted)
    assert zeros(net) == {"body.weight": 0.875, "head.weight": 0.875}
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_epochs_a_beginning_and_layers_left_out() -> None:
    callback = Gradual(0.75, begin=1, end=2.5, frequency=0.5, unit="epochs", skip="head*")
    net, history = trained(callback, 4)
    assert (callback.begin_step, callback.end_step, callback.every) == (6, 15, 3)
    assert history.history["sparsity"][0] == 0 and history.history["sparsity"][2:] == [0.75, 0.75]
    assert zeros(net) == {"body.weight": 0.75, "head.weight": 0.0}


def test_patterns_come_by_way_of_fuller_groups() -> None:
    """2:4 starts with 4:4, passes 3:4; at the end each output keeps two of four neighbours."""
    seen = []

    class Watched(Gradual):
        def prune(self, sparsity: float) -> None:
            super().prune(sparsity)
            mask = self.trainer.session.params()["body.weight.mask"]
            seen.append(int(mask.reshape(2, 4, 32).sum(1).max()))

    net, _ = trained(Watched(structure="2:4", end=20, frequency=2))
    assert seen == sorted(seen, reverse=True) and set(seen) == {4, 3, 2}
    mask = dict(net.named_weights())["body.weight"].mask
    assert (mask.reshape(2, 4, 32).sum(1) == 2).all()


def test_all_layers_together() -> None:
    net, _ = trained(Gradual(0.8, scope="global"))
    share = zeros(net)
    weights = {n: w.size for n, w in net.named_weights() if n in share}
    assert share["body.weight"] != share["head.weight"]
    assert sum(share[n] * weights[n] for n in share) / sum(weights.values()) == pytest.approx(0.8, abs=0.01)


def test_a_layer_of_small_scores_keeps_a_cell() -> None:
    views = {"a": Matrix("matmul", (4, 4)), "b": Matrix("matmul", (4, 4))}
    scores = {"a": np.ones((4, 4)), "b": np.linspace(0, 0.1, 16).reshape(4, 4)}
    found = choose(scores, views, Pattern(), 0.5, "global")
    assert found["a"].all() and found["b"].sum() == 1 and found["b"][3, 3]
    blocks = choose(scores, views, Pattern(2, 2), 0.5, "layer")
    assert blocks["b"][2:].all() and not blocks["b"][:2].any()


def test_movement_keeps_what_moves_away_from_zero() -> None:
    """The score is the sum of weight times change over plain steps, up to second order in a step."""
    net = made()
    net.ready()
    net.compile(nv.optimizers.SGD(0.01), SCE)
    callback = Gradual(0.5, begin=36, end=36, criterion="movement")
    sums: dict[str, Any] = {}
    last = {n: a.astype(np.float64) for n, a in net.state_dict().items() if n.endswith("weight")}

    class Sum(nv.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = self.trainer.session.params()
            for name in last:
                step = now[name].astype(np.float64) - last[name]
                sums[name] = sums.get(name, 0) + last[name] * step
                last[name] = now[name].astype(np.float64)

    net.fit(X, Y, BATCH, 6, verbose=0, callbacks=[Sum(), callback])
    for name, total in sums.items():
        mask = dict(net.named_weights())[name].mask
        assert mask.mean() == 0.5
        best = total.ravel() >= np.sort(total.ravel())[total.size // 2]
        assert (mask.ravel() == best).mean() > 0.95, name


def test_an_interrupted_pruning_ends_with_the_same_bits(tmp_path: Path) -> None:
    """In the middle of an epoch, between two prunings; the second process knows only the checkpoint."""

    class Killed(nv.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.trainer.step == 16:
                raise KeyboardInterrupt

    def callback() -> Any:
        return Gradual(0.8, end=28, frequency=5, criterion="movement")

    whole, history = trained(callback())
    net = made()
    net.compile(nv.optimizers.Adam(0.01), SCE)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, BATCH, 6, verbose=0, callbacks=[callback(), Killed()], checkpoint=tmp_path, checkpoint_every=7)
    again, resumed = trained(callback(), checkpoint=tmp_path, resume=True)
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array, err_msg=name)
    assert resumed.history["sparsity"] == history.history["sparsity"]


def test_a_trainer_alone_prunes_what_was_compiled_with_masks() -> None:
    net = made()
    training = nv.Training(SCE, nv.optimizers.Adam(0.01), batch=BATCH)
    plain = nv.Trainer(nv.compile(net, training=training).session)
    with pytest.raises(nv.NervureError, match="no masked weight to prune"):
        plain.fit(X, Y, epochs=1, verbose=0, callbacks=[Gradual(0.5)])
    nv.masked(net, {"body.weight": np.ones((8, 32))})
    trainer = nv.Trainer(nv.compile(net, training=training).session)
    trainer.fit(X, Y, epochs=3, verbose=0, callbacks=[Gradual(0.5)])
    assert masked_names(trainer.session) == ["body.weight"]
    assert (trainer.weights()["body.weight"] == 0).mean() == 0.5


def test_iterative_pruning_compiles_once() -> None:
    net = nv.sparsify(made(), 0.3)
    net.compile("adam", SCE)
    for sparsity in (0.3, 0.6, 0.75):
        nv.sparsify(net, sparsity)
        net.fit(X, Y, BATCH, 1, verbose=0)
        assert zeros(net)["body.weight"] == pytest.approx(sparsity, abs=0.01)
    assert len(net._fitting._trainers) == 1


def test_a_quantized_network_is_pruned_while_it_learns_from_the_float_one() -> None:
    net = made()
    net.compile("adam", SCE)
    net.fit(X, Y, BATCH, 3, verbose=0)
    small = nv.quantize_aware(net, X, samples=32)
    small.compile(nv.optimizers.Adam(0.003), nv.losses.Distillation(net, SCE))
    small.fit(X, Y, BATCH, 4, verbose=0, callbacks=[Gradual(0.75)])
    assert {n: s for n, s in zeros(small).items() if n in zeros(net)} == {"body.weight": 0.75, "head.weight": 0.75}
    graph = small.to_graph()
    integers = [graph.node(k).array for k in graph.find("const") if graph.node(k).array.dtype == np.int8]
    assert all((a == 0).mean() >= 0.75 for a in integers if a.ndim == 2)
    np.testing.assert_array_equal(nv.compile(small)(X[:1]), small.predict(X)[:1])


def test_wrong_arguments_are_one_clear_error() -> None:
    for make, said in (
        (lambda: Gradual(), "final_sparsity is None"),
        (lambda: Gradual(1.5), "between 0 and 1"),
        (lambda: Gradual(0.9, "2:4"), r"2:4 has sparsity 0\.5"),
        (lambda: Gradual(structure="2:4", scope="global"), "keeps as much of every layer"),
        (lambda: Gradual(0.5, criterion="taylor"), "magnitude, l2, movement"),
        (lambda: Gradual(0.5, initial_sparsity=0.6), "cannot go from"),
        (lambda: Gradual(0.5, "3x3"), "no sparse pattern"),
        (lambda: trained(Gradual(0.5, begin=9, end=4)), "begin, end and frequency"),
    ):
        with pytest.raises(nv.NervureError, match=said):
            make()
    with pytest.warns(UserWarning, match="ended at sparsity"):
        trained(Gradual(0.9, end=100), 1)


# -- what it costs -----------------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("NERVURE_DATA") or Path(nv.__file__).resolve().parents[1] / "shared" / "data")


def lenet() -> nv.Sequential:
    layers = [nv.Input((1, 28, 28)), L.Conv2D(6, 5, padding="same", activation="relu"), L.MaxPool2D(2)]
    layers += [L.Conv2D(16, 5, activation="relu"), L.MaxPool2D(2), L.Flatten()]
    return nv.Sequential([*layers, L.Dense(120, "relu"), L.Dense(84, "relu"), L.Dense(10)], name="lenet")


@pytest.fixture(scope="module")
def fashion() -> Any:
    """Training and test pictures, and LeNet trained on them for three epochs: its weights, its accuracy, and what it
    would be after three more."""
    path = DATA / "fashion_mnist.npz"
    if not path.exists():
        pytest.skip("no fashion_mnist.npz")
    with np.load(path) as held:
        parts = [(held[f"x_{p}"][:, None].astype(np.float32) / 255, held[f"y_{p}"].astype(np.int32)) for p in PARTS]
    net = lenet()
    dense = learn(net, parts, 3, 0.002)
    state = net.state_dict()
    return parts, state, dense, learn(net, parts, 3, 0.003)


PARTS = ("train", "test")


def learn(net: nv.Network, parts: Any, epochs: int, rate: float, *callbacks: Any) -> float:
    (x, y), test = parts
    steps = epochs * -(-len(x) // 64)
    net.compile(nv.optimizers.Adam(nv.schedules.CosineDecay(rate, decay_steps=steps)), SCE, ["accuracy"])
    net.fit(x, y, 64, epochs, verbose=0, callbacks=list(callbacks))
    return float(net.evaluate(*test, 64)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "sparsity", "drop"),
    [("unstructured", 0.8, 0.005), ("unstructured", 0.9, 0.01), ("2:4", None, 0.005), ("block:1x8", 0.75, 0.01)],
)
def test_lenet_on_fashion_mnist_loses_little(structure: str, sparsity: float | None, drop: float, fashion: Any) -> None:
    """Three epochs of gradual pruning after three dense ones, against the dense network trained on for as long."""
    parts, state, dense, beside = fashion
    net = lenet()
    net.load_state_dict(state)
    scope = "global" if sparsity else "layer"
    pruned = learn(net, parts, 3, 0.003, Gradual(sparsity, structure, scope=scope))
    arrays = [w.array for _, w in net.named_weights() if w.array.ndim > 1]
    share = sum((a == 0).sum() for a in arrays) / sum(a.size for a in arrays)
    print(f"{structure}: dense {dense:.2%}, trained on {beside:.2%}, with {share:.1%} zeros {pruned:.2%}")
    assert share == pytest.approx(sparsity or 0.5, abs=0.01)
    assert pruned >= max(dense, beside) - drop
