"""Self-organizing maps: the grid, both learning rules and the errors, compiled, against plain numpy and MiniSom."""

from __future__ import annotations

from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers

ROWS, COLUMNS, FEATURES, SAMPLES = 5, 6, 3, 40  # with an odd number of rows MiniSom shifts the same ones
KINDS = [(t, n) for t in ("rectangular", "hexagonal") for n in ("gaussian", "bubble")]
RNG = np.random.default_rng(0)
DATA, FIRST = RNG.random((SAMPLES, FEATURES), np.float32), RNG.random((ROWS * COLUMNS, FEATURES), np.float32)


def schedules(t: int) -> dict[str, np.float32]:
    """Rate and radius at sample t: MiniSom's ``asymptotic_decay``."""
    return {"rate": np.float32(0.5 / (1 + t / (SAMPLES / 2))), "radius": np.float32(1.7 / (1 + t / (SAMPLES / 2)))}


def maps() -> dict[str, layers.SelfOrganizingMap]:
    return {"_".join(k): layers.SelfOrganizingMap(ROWS, COLUMNS, *k, FIRST, name="_".join(k)) for k in KINDS}


@pytest.fixture(scope="module")
def session() -> Any:
    """One artifact with a map of each kind; its entry points learn and judge all four."""
    soms, number = maps().values(), nv.Input(batch_shape=())

    @nv.network
    def place(x: nv.Input(batch_shape=DATA.shape)):
        return {som.name: som.winner(x) for som in soms}

    @nv.network
    def learn(x: nv.Input(batch_shape=(2, FEATURES)), rate: number, radius: number):
        return {som.name: som.learn(x, rate, radius) for som in soms}

    @nv.network
    def learn_all(x: nv.Input(batch_shape=DATA.shape), radius: number):
        return {som.name: som.learn_all(x, radius) for som in soms}

    @nv.network
    def judge(x: nv.Input(batch_shape=DATA.shape)):
        return {s.name: (s(x), s.quantization_error(x), s.topographic_error(x), s.u_matrix()) for s in soms}

    return nv.compile(place, steps=[learn, learn_all], entries=[judge]).session


@pytest.fixture
def fresh(session: Any) -> Any:
    session.set_params({name: FIRST for name in session.params()})
    return session


def grid(topology: str) -> np.ndarray:
    """Positions by hand."""
    at = [(c, r) for r in range(ROWS) for c in range(COLUMNS)]
    if topology == "hexagonal":
        at = [(c + 0.5 * (r % 2), r * np.sqrt(0.75)) for c, r in at]
    return np.array(at, np.float64)


def nearness(kind: tuple[str, str], winner: int, radius: float) -> np.ndarray:
    apart = np.linalg.norm(grid(kind[0]) - grid(kind[0])[winner], axis=1)
    return np.exp(-(apart**2) / (2 * radius**2)) if kind[1] == "gaussian" else (apart <= radius + 1e-6).astype(float)


def cube(unit: int) -> np.ndarray:
    """A hexagon's three coordinates; the greatest difference of two is the number of steps between them."""
    row, column = divmod(unit, COLUMNS)
    q = column - (row - row % 2) // 2
    return np.array([q, row, -q - row])


def test_neighbours_on_both_grids() -> None:
    for topology in ("rectangular", "hexagonal"):
        som = layers.SelfOrganizingMap(ROWS, COLUMNS, topology)
        np.testing.assert_allclose(som.positions, grid(topology))
        for a in range(ROWS * COLUMNS):
            for b in range(ROWS * COLUMNS):
                apart = max(abs(a // COLUMNS - b // COLUMNS), abs(a % COLUMNS - b % COLUMNS))
                steps = apart if topology == "rectangular" else abs(cube(a) - cube(b)).max()
                assert som.neighbors[a, b] == (steps == 1)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_kohonens_rule_sample_by_sample(kind: tuple[str, str], fresh: Any) -> None:
    name, w = "_".join(kind), FIRST.astype(np.float64)
    place = [e.name for e in fresh.artifact.entry("learn").outputs].index(name)
    for t in range(0, SAMPLES, 2):
        found = fresh.run(None, {"x": DATA[t : t + 2], **schedules(t)}, entry="learn")[place]
        for i, x in enumerate(DATA[t : t + 2]):
            winner = int(((w - x) ** 2).sum(axis=1).argmin())
            assert winner == found[i]
            rate, radius = schedules(t).values()
            w += rate * nearness(kind, winner, radius)[:, None] * (x - w)
    np.testing.assert_allclose(fresh.params()[f"{name}.weight"], w, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_batch_rule(kind: tuple[str, str], fresh: Any) -> None:
    name, w = "_".join(kind), FIRST.astype(np.float64)
    for radius in (2.0, 1.0, 0.3):  # at the last one units without samples stay
        fresh.run(None, {"x": DATA, "radius": np.float32(radius)}, entry="learn_all")
        winners = ((DATA[:, None] - w) ** 2).sum(axis=2).argmin(axis=1)
        near = np.array([nearness(kind, i, radius) for i in winners])
        total = near.sum(axis=0)
        learned = total > 1e-12
        w[learned] = (near.T @ DATA)[learned] / total[learned, None]
    np.testing.assert_allclose(fresh.params()[f"{name}.weight"], w, atol=1e-5)


@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
def test_beside_minisom(topology: str, fresh: Any) -> None:
    """The same samples, first weights and schedules: the same weights, winners, errors and U-matrix."""
    minisom = pytest.importorskip("minisom")
    theirs = minisom.MiniSom(COLUMNS, ROWS, FEATURES, sigma=1.7, learning_rate=0.5, topology=topology)
    theirs._weights = FIRST.astype(np.float64).reshape(ROWS, COLUMNS, -1).transpose(1, 0, 2).copy()
    for t in range(0, SAMPLES, 2):
        fresh.run(None, {"x": DATA[t : t + 2], **schedules(t)}, entry="learn")
        for x in DATA[t : t + 2].astype(np.float64):  # two at a time have one rate and radius
            theirs.update(x, theirs.winner(x), t, SAMPLES)
    name = f"{topology}_gaussian"
    weights = fresh.params()[f"{name}.weight"].reshape(ROWS, COLUMNS, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(weights, theirs.get_weights(), atol=1e-5)

    found = dict(
        zip(
            [p.name for p in fresh.artifact.entry("judge").outputs],
            fresh.run(None, {"x": DATA}, entry="judge"),
            strict=True,
        )
    )
    distances, quantization, topographic, apart = (found[f"{name}_{i}"] for i in range(4))
    assert quantization == pytest.approx(theirs.quantization_error(DATA), abs=1e-5)
    assert topographic == pytest.approx(theirs.topographic_error(DATA), abs=1e-6) and topographic > 0
    np.testing.assert_allclose(apart / apart.max(), theirs.distance_map(scaling="mean").T, atol=1e-4)
    expected = [theirs.activate(x).T.ravel() for x in DATA]
    np.testing.assert_allclose(distances, expected, atol=1e-3)  # |x|² + |w|² - 2xw cancels where they are near
    winners = dict(zip([p.name for p in fresh.get_outputs()], fresh.run(None, {"x": DATA}), strict=True))[name]
    assert winners.tolist() == np.argmin(expected, axis=1).tolist()


def test_what_is_wrong_is_said() -> None:
    for options, match in (
        ({"topology": "round"}, "topology: expected 'rectangular' or 'hexagonal'"),
        ({"neighborhood": "mexican"}, "neighborhood: expected 'gaussian' or 'bubble'"),
        ({"rows": 1, "columns": 1}, "at least two units"),
    ):
        with pytest.raises(nv.NervureError, match=match):
            layers.SelfOrganizingMap(**{"rows": 2, "columns": 2, **options})
    with pytest.raises(nv.NervureError, match="got none yet"):
        layers.SelfOrganizingMap(2, 2).u_matrix()
