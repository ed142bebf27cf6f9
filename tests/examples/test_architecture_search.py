"""The example of a search for architectures: its helpers, the network that is to be beaten, and the figure."""

from __future__ import annotations

import models
import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data
from nervure.frontends.search import built
from nervure.frontends.search_costs import planned
from nervure.targets import get


def test_cepstra_are_cosine_transforms(load: Load) -> None:
    mel = np.random.default_rng(0).normal(size=(2, 3, 8))
    found = load("architecture_search").cepstra(mel, 4)
    assert found.shape == (2, 3, 4, 1) and found.dtype == np.float32
    for k in range(4):
        expected = sum(mel[..., n] * np.cos(np.pi * k * (2 * n + 1) / 16) for n in range(8))
        np.testing.assert_allclose(found[..., k, 0], expected, rtol=1e-5, atol=1e-5)


def test_as_written_it_is_the_architecture_of_tiny_kws01(load: Load) -> None:
    net = load("architecture_search").keyword_net
    kernels = [w.shape for n, w in (net.ready(), list(net.named_weights()))[1] if len(w.shape) > 1]
    assert kernels[-1] == (64, 10)  # ten words, where tiny_kws01 has twelve
    expected = [(64, 1, 10, 4), *[(64, 1, 3, 3), (64, 64, 1, 1)] * 4]
    assert kernels[:-1] == expected
    path = models.SHARED / "models" / "tiny_kws01.onnx"
    if path.exists():
        graph = nv.load_onnx(path)
        convs = [graph.node(graph.args(k)[1]).types[0].shape for k in graph.find("conv")]
        assert convs == expected


@pytest.mark.slow
@needs_data("spoken_digits_8k.npz")
def test_what_was_found_is_smaller_and_as_accurate(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's own search takes minutes; this is one of those that it finds, beside the one that is to be beaten,
    trained the same way."""
    example = load("architecture_search")
    monkeypatch.setenv("NERVURE_DATA", str(DATA))
    sound, y, speaker = nv.datasets.spoken_digits()
    x, test = example.cepstra(example.log_mel(sound)), example.held_out(y, speaker)
    x = (x - x[~test].mean(0)) / x[~test].std(0)
    first = {"width": 64, "kernel": (10, 4), "strides": (2, 2), "block": example.separable, "blocks": 4}
    right, costs = [], []
    for chosen in (first, {**first, "width": 56, "blocks": 3}):
        net = built(example.keyword_net, lambda name, options, chosen=chosen: options.index(chosen[name]))
        costs.append(planned(net.to_graph(), get("cortex-m4"), int8=True))
        rate = nv.schedules.CosineDecay(0.01, decay_steps=8 * 75)
        net.compile(nv.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        net.fit(x[~test], y[~test], epochs=8, verbose=0)
        right.append(net.evaluate(x[test], y[test])[1])
    assert costs[1].flash < 0.65 * costs[0].flash and costs[1].latency < 0.65 * costs[0].latency
    assert costs[1].ram < costs[0].ram < 64 * 1024
    assert right[0] > 0.98 and right[1] > right[0] - 0.01, right  # of 600 words: two standard errors
