"""Quantization-aware training on real data: what it costs in accuracy, and that the artifact is what was trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nervure as nv
import numpy as np
import pytest

EXAMPLES = Path(nv.__file__).parent / "examples"
DATA = Path(os.environ.get("NERVURE_DATA") or EXAMPLES.resolve().parents[1] / "shared" / "data")
EPOCHS, MORE, BATCH = 16, 6, 32


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example whose data and DS-CNN these are."""
    if not (DATA / "spoken_digits_8k.npz").exists():
        pytest.skip("no spoken_digits_8k.npz")
    monkeypatch.setenv("NERVURE_DATA", str(DATA))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    import spoken_digits

    yield spoken_digits
    for name in {"data", "spoken_digits"} & (set(sys.modules) - before):
        del sys.modules[name]


def learn(net: nv.Network, rate: float, epochs: int, train: tuple[np.ndarray, np.ndarray]) -> None:
    steps = epochs * -(-len(train[0]) // BATCH)
    optimizer = nv.optimizers.Adam(nv.schedules.CosineDecay(rate, decay_steps=steps))
    net.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    net.fit(*train, BATCH, epochs, verbose=0)


@pytest.mark.slow
def test_ds_cnn_with_weights_of_four_bits(digits: ModuleType) -> None:
    """At most a point below float. On 1,000 samples the training program, the artifact and its export give the same
    bits."""
    sound, y, speaker = digits.spoken_digits()
    x, test = digits.log_mel(sound), digits.held_out(y, speaker)
    x = ((x - x[~test].mean()) / x[~test].std()).astype(np.float32)
    net = digits.ds_cnn(x.shape[1])
    learn(net, 0.004, EPOCHS, (x[~test], y[~test]))
    small = nv.quantize_aware(net, x[~test][:200], weight_bits=4, activation_bits=8)
    small.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    rounded = small.evaluate(x[test], y[test], BATCH)[1]
    learn(small, 0.001, MORE, (x[~test], y[~test]))
    in_float, trained = (n.evaluate(x[test], y[test], BATCH)[1] for n in (net, small))
    print(f"DS-CNN: float {in_float:.2%}, rounded to 4 bits {rounded:.2%}, trained with 4 bits {trained:.2%}")
    assert in_float > 0.95 and trained >= in_float - 0.01

    some = x[:1000]
    wanted = small.predict(some, BATCH)
    model = nv.compile(small, dims={"batch": 40})
    found = np.concatenate([model(part) for part in some.reshape(25, 40, *some.shape[1:])])
    np.testing.assert_array_equal(found, wanted)
