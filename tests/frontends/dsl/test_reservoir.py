"""The reservoir: a fair sample of all that came, the same rows of each thing, in the compiled program."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest


def stored(capacity: int, batch: int) -> nv.Model:
    memory = nv.layers.Reservoir(capacity, [nv.Input((2,), "uint8"), nv.Input((), "int32")])

    @nv.network
    def remember(x: nv.Input(batch_shape=(batch, 2), dtype="uint8"), number: nv.Input((), "int32")):
        return memory(x, number)

    @nv.network
    def recall():
        x, number = memory.sample(4000)
        return {"x": x, "number": number}

    return nv.compile(remember, entries=[recall], dims={"batch": batch})


def feed(model: nv.Model, first: int, end: int, batch: int) -> None:
    for start in range(first, end, batch):
        number = np.arange(start, start + batch, dtype=np.int32)
        seen = model(np.stack([number % 251, number % 7], 1).astype(np.uint8), number)
        assert seen == start + batch


def test_all_is_kept_until_it_is_full_and_rows_stay_together() -> None:
    model = stored(20, 5)
    empty, numbers = model.session.run(None, {}, entry="recall")
    assert not empty.any() and not numbers.any()
    feed(model, 0, 10, 5)
    _, numbers = model.session.run(None, {}, entry="recall")
    assert set(numbers.tolist()) == set(range(10))
    feed(model, 10, 300, 5)
    x, numbers = model.session.run(None, {}, entry="recall")
    np.testing.assert_array_equal(x, np.stack([numbers % 251, numbers % 7], 1))
    held = np.unique(numbers)
    assert len(held) == 20
    often = np.bincount(np.searchsorted(held, numbers))
    assert abs(often / 200 - 1).max() < 0.35  # each of the 20 as often as the others: 200 of 4000, give or take 14


def test_early_and_late_rows_have_the_same_chance() -> None:
    """40 memories of 50 rows from 500: of each tenth of the rows about a tenth is held."""
    model = stored(50, 10)
    held = []
    for _ in range(40):  # seen goes on from 0, the random numbers go on too
        states = model.session.states()
        model.session.set_states(states | {name: states[name] * 0 for name in states if name.endswith("seen")})
        feed(model, 0, 500, 10)
        held += [a[:50] for name, a in model.session.states().items() if name.endswith("row_1")]
    parts = np.bincount(np.concatenate(held) // 50, minlength=10) / (40 * 50)
    assert len(parts) == 10 and abs(parts - 0.1).max() < 0.025  # its deviation is 0.0067


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(nv.NervureError, match=r"an nv\.Input for each thing"):
        nv.layers.Reservoir(5, [])
    with pytest.raises(nv.NervureError, match="capacity"):
        nv.layers.Reservoir(0, nv.Input((2,)))
    memory = nv.layers.Reservoir(5, nv.Input((2,)))
    for wrong, match in ((nv.Input((3,)), r"float32\[1, ...\] of rows \[2\]"), (nv.Input((2,), "int32"), "float32")):
        with pytest.raises(nv.NervureError, match=match):
            nv.compile(nv.network(lambda x: memory(x), name="net", x=wrong))
    with pytest.raises(nv.NervureError, match="expected 1 tensors"):
        nv.compile(nv.network(lambda x: memory(x, x), name="net", x=nv.Input((2,))))
