"""A self-organizing map (Kohonen 1982) lays 1,797 handwritten digits out on a sheet of hexagons, without their labels.

    python examples/self_organizing_map.py [steps]

At every step one digit is shown; the unit most like it and its neighbours on the sheet become a little more like it.
Rate and radius shrink from step to step: they are inputs of the compiled step. After 20,000 steps (the default) a digit
is 1.358 away from its unit on average (quantization error), and of 3.9 % of the digits the two best units are no
neighbours (topographic error): what MiniSom comes to with the same digits in the same order. What comes out:
self_organizing_map.png, what the units have become, and the U-matrix: how far each is from its neighbours;
self_organizing_map.so and its C header, which tell a digit's place and can go on learning.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.patheffects import withStroke
from nervure import layers
from nervure.datasets import digits
from rich.progress import track

ROWS, COLUMNS, PIXELS = 13, 17, 64

som = layers.SelfOrganizingMap(ROWS, COLUMNS, topology="hexagonal", neighborhood="gaussian")


@nv.network
def place(x: nv.Input((PIXELS,))):
    """Which unit is most like each digit."""
    return som.winner(x)


@nv.network
def learn(x: nv.Input(batch_shape=(1, PIXELS)), rate: nv.Input(batch_shape=()), radius: nv.Input(batch_shape=())):
    """Kohonen's rule for one digit."""
    return som.learn(x, rate, radius)


@nv.network
def judge(x: nv.Input((PIXELS,))):
    """How good the map is, and how far each unit is from its neighbours."""
    errors = {"quantization": som.quantization_error(x), "topographic": som.topographic_error(x)}
    return {**errors, "u_matrix": som.u_matrix()}


def train(session, x, order, rates, radii):
    """Shows the digits in the given order; the compiled step reads these arrays in place."""
    one, rate, radius = np.zeros((1, PIXELS), np.float32), np.zeros((), np.float32), np.zeros((), np.float32)
    step = session.binding({"x": one, "rate": rate, "radius": radius}, entry="learn")
    for t, i in enumerate(track(order, "the map unfolds")):
        one[...], rate[...], radius[...] = x[i], rates(t), radii(t)
        step()


def hexagons(axes, **options):
    """A cell for each unit of the map."""
    corners = np.pi / 6 + np.pi / 3 * np.arange(6)
    cell = np.stack([np.cos(corners), np.sin(corners)], axis=1) / np.sqrt(3)
    cells = axes.add_collection(PolyCollection(som.positions[:, None] + cell, **options))
    axes.set(xlim=(-0.8, COLUMNS + 0.3), ylim=(ROWS * 0.866 - 0.1, -0.9), aspect="equal")
    axes.axis("off")
    return cells


def picture(units, apart, places, labels):
    """The units as digits, and the U-matrix with the label that most of a unit's digits have."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.2), layout="constrained")
    for (x, y), unit in zip(som.positions, units.reshape(-1, 8, 8), strict=True):
        left.imshow(unit, cmap="gray_r", extent=(x - 0.36, x + 0.36, y + 0.36, y - 0.36), vmin=0, vmax=1)
    hexagons(left, facecolors="none", edgecolors="#cccccc")
    left.set_title("What each unit has become")
    cells = hexagons(right, array=apart.ravel(), cmap="bone_r", edgecolors="face")
    for unit in np.unique(places):
        label = np.bincount(labels[places == unit]).argmax()
        text = right.text(*som.positions[unit], label, c=f"C{label}", ha="center", va="center", weight="bold", size=12)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    right.set_title("U-matrix, and the digits that come to each unit")
    figure.colorbar(cells, ax=right, shrink=0.8, label="distance from neighbours")
    figure.savefig("self_organizing_map.png", dpi=80)


def main(steps=20_000):
    (a, first), (b, second) = digits()
    x, labels = np.concatenate([a, b]).reshape(-1, PIXELS), np.concatenate([first, second])
    rng = np.random.default_rng(0)
    model = nv.compile(place, steps=[learn], entries=[judge], dims={"batch": len(x)}, name="self_organizing_map")
    session = model.session
    session.set_params({"self_organizing_map.weight": x[rng.integers(0, len(x), ROWS * COLUMNS)]})
    rates, radii = (nv.schedules.InverseTimeDecay(start, steps / 2, decay_rate=1) for start in (0.5, 4.0))
    train(session, x, rng.integers(0, len(x), steps), rates, radii)
    quantization, topographic, apart = session.run(None, {"x": x}, entry="judge")
    print(f"quantization error {float(quantization):.4f}, topographic error {float(topographic):.4f}")
    places = model(x)
    picture(session.params()["self_organizing_map.weight"], apart, places, labels)

    model.pull()
    path = nv.compile(place, steps=[learn], name="self_organizing_map").save("self_organizing_map.so")
    program, by_c = nv.load(path), nv.run_in_c(path, x)
    assert np.array_equal(by_c, [program(one[None])[0] for one in x]) and np.mean(by_c == places) > 0.999
    print(f"{path}: Python and a C program find the same places for {len(x)} digits")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
