"""The example of a search for architectures: its helpers, the network that is to be beaten, and the figure."""

from __future__ import annotations

from pathlib import Path

import models
import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, needs_data, numbers, run


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
def test_a_smaller_network_is_found(tmp_path: Path) -> None:
    """Fewer candidates than the example's own, which takes minutes."""
    said = run("architecture_search", tmp_path, 6, data=DATA)
    first, small = numbers(said, r": ([\d.]+)% of the test words")
    rams, flashes = numbers(said, r"([\d.]+) KB RAM"), numbers(said, r"([\d.]+) KB flash")
    assert max(rams) <= 64 and flashes[1] <= flashes[0]
    assert first > 90 and small > first - 1.5
    assert "a C program agree on 20 words" in said
