"""``nv.search`` and ``nv.choice``: what is proposed, refused, stopped, kept; what costs are planned."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers
from nervure.compiler.quantize.settings import Settings
from nervure.frontends.search import _Watch
from nervure.frontends.search_costs import Costs, planned
from nervure.frontends.search_results import Candidate, Found
from nervure.targets import get

pytest.importorskip("optuna")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 8)).astype(np.float32)
Y = X[:, :3].argmax(1).astype(np.int32)


@nv.network
def space(x: nv.Input((8,))):
    width = nv.choice("width", [16, 4, 8, 32])
    for _ in range(nv.choice("layers", [1, 2, 3])):
        x = layers.Dense(width, activation=nv.choice("activation", ["relu", "tanh"]))(x)
    return nv.softmax(nv.choice("head", [layers.Dense(3), layers.Dense(3, use_bias=False)])(x))


def by_size(net: nv.Network) -> float:
    """A stand-in for accuracy: more parameters are better."""
    return 1 - 1 / net.count_params()


def searched(**options: Any) -> Found:
    return nv.search(space, **{"score": by_size, "target": "cortex-m4", "trials": 8, **options})


# -- choices -----------------------------------------------------------------------------------------------------------


def test_outside_of_a_search_the_first_option_is_taken() -> None:
    assert nv.choice("a", ["x", "y"]) == "x"
    assert {n: a.shape for n, a in space.state_dict().items()} == {
        "dense.weight": (8, 16),
        "dense.bias": (16,),
        "dense_1.weight": (16, 3),
        "dense_1.bias": (3,),
    }
    with pytest.raises(nv.NervureError, match="no options"):
        nv.choice("a", [])


def test_the_first_candidate_is_the_network_as_it_stands() -> None:
    first = searched(trials=1).candidates[0]
    assert first.choices == {"width": 16, "layers": 1, "activation": "relu", "head": "Dense #0"}
    assert np.array_equal(first.build()(X[:1]), space(X[:1]))
    assert not np.array_equal(first.build(seed=5)(X[:1]), space(X[:1]))


def test_a_candidate_is_what_was_chosen_whenever_it_is_traced() -> None:
    found = searched(trials=6)
    assert len({tuple(c.choices.items()) for c in found.candidates}) == 6
    for c in found.candidates:
        for net in (c.net, c.build(), c.build(3)):
            kinds = [w.shape for n, w in (net.ready(), list(net.named_weights()))[1] if n.endswith("weight")]
            widths = [c.choices["width"]] * c.choices["layers"]
            assert kinds == list(itertools.pairwise([8, *widths, 3]))


def test_a_function_that_builds_a_network_is_a_space_too() -> None:
    def build() -> nv.Network:
        net = nv.Sequential([nv.Input((8,))], name="built")
        for i in range(nv.choice("layers", [2, 1])):
            net.add(layers.Dense(nv.choice(f"width {i}", [3, 6])))
        return net

    found = nv.search(build, score=by_size, trials=9)
    sizes = {c.net.count_params() for c in found.candidates}
    assert sizes == {27, 54, 27 + 12, 27 + 24, 54 + 21, 54 + 42}


# -- costs -------------------------------------------------------------------------------------------------------------


def conv_net() -> nv.Network:
    return nv.Sequential(
        [
            nv.Input((1, 20, 10)),
            layers.Conv2d(12, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNorm(),
            layers.ReLU(),
            layers.SeparableConv2d(16, 3, padding="same", activation="relu"),
            layers.GlobalAvgPool2d(),
            layers.Dense(5, activation="softmax"),
        ],
        name="conv_net",
    )


def test_planned_costs_are_those_of_the_compiled_program() -> None:
    net = conv_net()
    samples = RNG.normal(size=(8, 1, 20, 10)).astype(np.float32)
    cheap = Settings(method="minmax", equalize=False, bias_correction=False)
    small = nv.quantize(net, samples, settings=cheap, latency=False, optimize="size")
    compiled = nv.compile(small.graph, "cortex-m4").report
    costs = planned(net.to_graph(), get("cortex-m4"), int8=True)
    assert costs.ram == compiled.arena_bytes
    assert costs.flash == pytest.approx(compiled.weights_bytes, abs=16)
    plain = planned(net.to_graph(), get("host"), int8=False)
    report = nv.compile(net).report
    assert (plain.ram, plain.flash) == (report.arena_bytes, report.weights_bytes)
    assert costs.flash < plain.flash / 2 and costs.ram < plain.ram / 2 and plain.latency > 0


def test_what_does_not_fit_is_not_trained() -> None:
    judged = []
    found = searched(score=lambda net: judged.append(net) or by_size(net), limits={"flash": 600}, trials=10)
    refused = [c for c in found.candidates if c.refused]
    assert refused and len(judged) == len(found.trained) == 10 - len(refused)
    assert all(c.costs.flash > 600 and "limit is 600" in c.refused for c in refused)
    assert all(c.costs.flash <= 600 for c in found.trained)
    with pytest.raises(nv.NervureError, match="no candidate was trained"):
        _ = searched(limits={"flash": 1}, trials=2).best


def test_a_board_has_limits_of_its_own() -> None:
    found = searched(target=None, board="nucleo-l4r5zi", trials=1)
    assert set(found.limits) == {"ram", "flash"} and found.limits["ram"] > 64 << 10


def test_a_candidate_that_does_not_fit_together_is_refused() -> None:
    @nv.network
    def brittle(x: nv.Input((8,))):
        return layers.Dense(3)(nv.reshape(x, (x.shape[0], nv.choice("size", [8, 7]))))

    found = nv.search(brittle, score=by_size, trials=2)
    assert sorted(bool(c.refused) for c in found.candidates) == [False, True]
    assert "refused" in found.table()


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_same_search_gives_the_same_result(sampler: str) -> None:
    first, second = (searched(sampler=sampler, trials=7, seed=3) for _ in range(2))
    assert first.table() == second.table()


def test_a_space_is_searched_to_its_end_and_no_further() -> None:
    @nv.network
    def few(x: nv.Input((8,))):
        return layers.Dense(nv.choice("width", [3, 5]), use_bias=nv.choice("bias", [False, True]))(x)

    found = nv.search(few, score=by_size, trials=1000)
    assert len(found.candidates) == 4 and found.best.choices == {"width": 5, "bias": True}


def test_the_front_is_what_no_other_one_beats() -> None:
    found = searched(trials=12)
    for c in found.trained:
        beaten = any(
            o.score >= c.score
            and o.costs.flash <= c.costs.flash
            and o.costs.latency <= c.costs.latency
            and (o.score, o.costs) != (c.score, c.costs)
            for o in found.trained
        )
        assert beaten != (c in found.front)
    assert found.table().count("*") == len(found.front)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    study = tmp_path / "study.log"
    seen: list[Candidate] = []
    first = searched(trials=4, study=study)
    both = searched(trials=6, study=study, progress=seen.append)
    assert len(both.candidates) == 6 and len(seen) == 2
    assert [(c.choices, c.costs, c.score) for c in both.candidates[:4]] == [
        (c.choices, c.costs, c.score) for c in first.candidates
    ]


def test_candidates_are_trained_and_the_best_is_ready_to_use() -> None:
    found = nv.search(
        space,
        (X[:160], Y[:160]),
        (X[160:], Y[160:]),
        trials=3,
        epochs=12,
        optimizer=nv.optimizers.Adam(0.02),
        stop=False,
    )
    best = found.best
    assert best.score > 0.8 and len(best.history) == 12
    assert (best.net(X[160:]).argmax(1) == Y[160:]).mean() == pytest.approx(best.score)


def test_a_training_is_stopped_where_a_lighter_one_was_better_at_that_age() -> None:
    def rival(costs: Costs, *history: float) -> Candidate:
        return Candidate(0, {}, lambda: None, None, costs, history)  # type: ignore[arg-type]

    def stopped_at(others: list[Candidate]) -> int:
        watch = _Watch(Costs(100, 100, 100), others, ("accuracy", "flash", "latency"))
        watch.trainer, watch.params = SimpleNamespace(stop_training=False), {"epochs": 5}  # type: ignore[assignment]
        for epoch, accuracy in enumerate((0.2, 0.4, 0.6, 0.8, 0.9)):
            watch.on_epoch_end(epoch, {"val_accuracy": accuracy})
            if watch.stopped:
                return epoch + 1
        return 0

    assert stopped_at([rival(Costs(999, 90, 100), 0.9, 0.9, 0.9)]) == 2
    assert stopped_at([rival(Costs(10, 90, 101), 0.9, 0.9, 0.9)]) == 0  # it is slower
    assert stopped_at([rival(Costs(10, 90, 90), 0.2, 0.4, 0.7)]) == 3
    assert stopped_at([rival(Costs(10, 90, 90), 0.2, 0.4, 0.64)]) == 0  # by less than the margin


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(nv.NervureError, match="needs data"):
        nv.search(space)
    with pytest.raises(nv.NervureError, match="does not know 'speed'"):
        searched(objectives=("accuracy", "speed"))
    with pytest.raises(nv.NervureError, match="accuracy must count"):
        searched(objectives=("flash",))
    with pytest.raises(nv.NervureError, match="does not know 'memory'"):
        searched(limits={"memory": 5})
    with pytest.raises(nv.NervureError, match="sampler 'grid' is unknown"):
        searched(sampler="grid")
    with pytest.raises(nv.NervureError, match="is no space"):
        nv.search(conv_net(), score=by_size)
