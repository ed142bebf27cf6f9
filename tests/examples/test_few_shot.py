"""The prototypical network: what a device keeps of its examples, and how often it is right about new letters."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import DATA, Load, numbers, run


def test_a_prototype_is_the_mean_of_its_examples(load: Load) -> None:
    example = load("few_shot")
    x = np.random.default_rng(0).random((6, *example.PICTURE), np.float32)
    model = nv.compile(example.meet)
    slots = [2, 0, 2, 2, 0]
    for picture, slot in zip(x, slots, strict=False):
        distances = model(picture[None], np.array([slot], np.int32))
    assert np.isinf(distances[0, [1, 3, 4]]).all()  # of what it has never seen
    places = example.embed(x)
    means = [places[[i for i, s in enumerate(slots) if s == slot]].mean(axis=0) for slot in (0, 2)]
    expected = [np.linalg.norm(places[5] - mean) for mean in means]
    before = model.session.states()
    asked = model(x[5:], np.array([-1], np.int32))
    np.testing.assert_allclose(asked[0, [0, 2]], expected, rtol=1e-3)
    assert all((model.session.states()[name] == before[name]).all() for name in ("prototypes", "examples"))
    model.reset()
    assert np.isinf(model(x[5:], np.array([-1], np.int32))).all()


def test_the_nearest_picture_answers(load: Load) -> None:
    rng = np.random.default_rng(0)
    support, query = rng.random((3, 1, 4, 4)), rng.random((3, 7, 1, 4, 4))
    expected = [[np.argmin([((q - s) ** 2).sum() for s in support]) for q in row] for row in query]
    np.testing.assert_array_equal(load("few_shot").nearest(support, query), expected)


@pytest.mark.slow
def test_five_new_letters_from_one_example_each(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = run("few_shot", tmp_path, data=DATA)
    (network, about), (pixels, _) = (
        numbers(said, rf"by {how}: ([\d.]+)%") + numbers(said, rf"by {how}: [\d.]+% ± ([\d.]+)")
        for how in ("prototypes", "the nearest pixels")
    )
    assert network > 80 and about < 1.5 and network > pixels + 40
