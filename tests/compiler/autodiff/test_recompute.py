"""Recomputation: the same step in less memory."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.autodiff.recompute import choices
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.frontends.training.step import training_entries

BATCH = 16


def _network() -> nv.Network:
    layers = [nv.Input((3, 8, 8))]
    for width in (16, 16, 32, 32):
        layers += [nv.layers.Conv2D(width, 3, padding="same", use_bias=False), nv.layers.BatchNorm(), nv.layers.ReLU()]
    layers += [nv.layers.Dropout(0.3), nv.layers.GlobalAveragePooling2D(), nv.layers.Dense(3)]
    return nv.Sequential(layers, name="deep")


def _step() -> Graph:
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    entries, _ = training_entries(_network(), nv.Training(loss, "adam", batch=BATCH))
    return canonicalize(next(e.graph for e in entries if e.function == "train_step"))


def _feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "input": rng.standard_normal((BATCH, 3, 8, 8)).astype(np.float32),
        "y": rng.integers(0, 3, BATCH).astype(np.int32),
        "learning_rate": np.float32(0.01),
    }


def _planned(graph: Graph, ram: int | None = None) -> tuple[int, list[dict[str, object]]]:
    program, _ = plan_program([EntryGraph(graph, "train_step")], targets.get("host"), Options(max_ram=ram))
    tried = program.meta.get("recompute", {}).get("train_step", [])
    return program.arena_bytes(program.entries[0]), tried


def test_every_choice_computes_the_very_same_step() -> None:
    step, feeds = _step(), _feeds()
    expected: dict[str, np.ndarray] = {}
    loss = interpret(step, feeds, expected)
    found = choices(step)
    assert len(found) >= 4
    for choice in found:
        choice.graph.check()
        state: dict[str, np.ndarray] = {}
        np.testing.assert_array_equal(interpret(choice.graph, feeds, state)[0], loss[0], choice.name)
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value, f"{choice.name}: {name}")


def test_max_ram_takes_the_first_choice_that_fits_and_tells_the_trade() -> None:
    step = _step()
    needed, tried = _planned(step)
    assert not tried
    limit = int(needed * 0.8)
    arena, tried = _planned(step, limit)
    assert arena <= limit
    assert tried[0] == {"name": "everything kept", "arena_bytes": needed, "flops": 0.0}
    assert tried[-1]["arena_bytes"] == arena and tried[-1]["flops"] > 0  # type: ignore[operator]
    assert all(row["arena_bytes"] > limit for row in tried[:-1])  # type: ignore[operator]
    again, _ = _planned(step, limit)
    assert again == arena


def test_what_can_never_fit_says_what_would() -> None:
    with pytest.raises(nv.NervureError, match="train_step needs") as error:
        _planned(_step(), 10_000)
    assert "freeze" in str(error.value)


def test_an_inference_graph_has_nothing_to_recompute() -> None:
    assert choices(canonicalize(_network().to_graph())) == []


@pytest.mark.slow
def test_a_tight_artifact_trains_as_a_wide_one() -> None:
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    training = nv.Training(loss, "adam", batch=BATCH)
    wide = nv.compile(_network(), training=training)
    limit = int(wide.artifact.entry("train_step").arena_bytes() * 0.8)
    tight = nv.compile(_network(), training=training, max_ram=limit)
    assert tight.artifact.entry("train_step").arena_bytes() <= limit
    for _ in range(4):
        losses = [m.session.run(None, _feeds(), entry="train_step")[0] for m in (wide, tight)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, others = wide.session.params(), tight.session.params()
    for name, value in ours.items():
        np.testing.assert_allclose(others[name], value, atol=2e-4, err_msg=name)
