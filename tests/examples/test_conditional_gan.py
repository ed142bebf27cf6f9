"""The conditional GAN: from three beginnings, a classifier of real digits reads what was asked for."""

from __future__ import annotations

import importlib
import sys

import nervure as nv
import numpy as np
import pytest
from example_runs import Load


@pytest.mark.slow
def test_the_digit_asked_for_is_made(load: Load) -> None:
    pytest.importorskip("sklearn")
    example = load("conditional_gan")
    (x, y), (x_test, y_test) = ((a.reshape(-1, 64), b) for a, b in nv.datasets.digits())
    net = example.reader(x, y)
    assert net.evaluate(x_test, y_test)[1] > 0.95
    asked = np.repeat(np.arange(10, dtype=np.int32), 64)
    noise = np.random.default_rng(9).standard_normal((640, example.NOISE), dtype=np.float32)
    spread = np.mean([x[y == digit].std(axis=0).mean() for digit in range(10)])
    for seed in range(3):
        del sys.modules["conditional_gan"]
        example = importlib.import_module("conditional_gan")
        example.generator.seed = example.discriminator.seed = seed
        losses = example.train(x, y, 150)
        made = nv.compile(example.generate, dims={"batch": 640})(noise, asked)
        accepted = (net.predict(made).argmax(axis=1) == asked).mean()
        various = np.mean([made[asked == digit].std(axis=0).mean() for digit in range(10)]) / spread
        print(f"seed {seed}: {accepted:.1%} read as asked, {various:.0%} of the variety of real digits")
        assert accepted >= 0.8 and various > 0.6  # no collapse to one picture for each
        assert losses.shape == (150, 2) and 0.5 < losses[-1, 0] < np.log(2) and losses[-1, 1] > np.log(2)
