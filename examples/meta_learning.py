"""Reptile (Nichol et al. 2018) learns a start from which few steps suffice for unseen letters.

    python examples/meta_learning.py [tasks]

A task is five letters. The weights learn it in eight steps (`learn`); then the start moves a little towards where they
came to (`settle`), and they go back to it (`restart`). No gradient runs through the steps: slow weights are variables
beside the fast ones. Seen are Latin, Greek and Cyrillic letters. Of five Armenian or Georgian ones 20 steps on one
example each teach to name 67.8 ± 1.8 % of the pictures, over 200 tasks; from untrained weights 33.1 ± 1.4 %, by the
nearest pixels 30.2 ± 1.4 %. What comes out: meta_learning.png, how accuracy grows; meta_learning.so and its C header,
a program that learns new letters.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from few_shot import interval, nearest, some
from nervure import layers
from rich.progress import track

WAYS, INNER, STEPS, ASKED = 5, 8, 20, 5  # letters; steps of a task, of a test; questions to each letter
PICTURE, LETTERS = (1, 28, 28), np.arange(WAYS, dtype=np.int32)


def block(channels):
    return [layers.Conv2d(channels, 3, padding="same"), layers.GroupNorm(4), layers.ReLU(), layers.MaxPool2d(2)]


net = nv.Sequential([nv.Input(PICTURE), *block(32), *block(32), *block(32), layers.Flatten(), layers.Dense(WAYS)])
slow = [nv.Variable(weight.numpy(), name=f"slow.{i}") for i, weight in enumerate(net.weights)]
cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)


@nv.network
def learn(picture: nv.Input(batch_shape=(WAYS, *PICTURE)), letter: nv.Input(batch_shape=(WAYS,), dtype="int32")):
    """One step of a task, on one picture of each letter."""
    loss = nv.mean(cross_entropy(letter, net(picture)))
    nv.minimize(loss, net, nv.optimizers.SGD(0.2))
    return {"loss": loss}


@nv.network
def settle(rate: nv.Input(batch_shape=())):
    """One step for all tasks: the slow weights are to be near to what the fast ones have learned."""
    away = sum(nv.sum(nv.square(s - nv.stop_gradient(w))) for s, w in zip(slow, net.weights, strict=True)) / 2
    nv.minimize(away, slow, "adam", rate)
    return {"away": away}


@nv.network
def restart():
    """The fast weights go back to the slow ones."""
    return [nv.assign(weight, s) for s, weight in zip(slow, net.weights, strict=True)][-1]


def curve(session, pictures):
    """Accuracy before and after each of the steps on the first picture of each letter, asked for the others."""
    asked = pictures[:, 1:].reshape(-1, *PICTURE)
    session.run(None, {}, entry="restart")
    found = []
    for step in range(STEPS + 1):
        if step:
            session.run(None, {"picture": pictures[:, 0], "letter": LETTERS}, entry="learn")
        found.append(session.run(None, {"input": asked})[0].argmax(axis=1) == LETTERS.repeat(ASKED))
    return np.mean(found, axis=1)


def draw(curves, pixels):
    figure, axes = plt.subplots(figsize=(9, 5.4), layout="constrained")
    for name, right in curves.items():
        middle, about = 100 * right.mean(axis=0), 196 * right.std(axis=0) / len(right) ** 0.5
        axes.plot(middle, label=name)
        axes.fill_between(range(STEPS + 1), middle - about, middle + about, alpha=0.3)
    axes.axhline(100 * np.mean(pixels), color="gray", ls="--", label="the nearest pixels")
    axes.set(title="five new letters, one example of each", xlabel="steps", ylabel="right answers (%)", xlim=(0, STEPS))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig("meta_learning.png", dpi=100)


def main(tasks=1500):
    x, y, alphabet = nv.datasets.letters()
    new, rng = np.isin(alphabet, ["Armenian", "Georgian"]), np.random.default_rng(0)
    tests = [some(rng, x[new], y[new], WAYS, 1 + ASKED) for _ in range(200)]
    model = nv.compile(net, steps=[learn, settle, restart], dims={"batch": WAYS * ASKED}, name="meta_learning")
    session = model.session
    curves = {"untrained weights": np.array([curve(session, test) for test in track(tests, "untrained")])}
    for task in track(range(tasks), "tasks"):
        session.run(None, {}, entry="restart")
        pictures = some(rng, x[~new], y[~new], WAYS, INNER)
        for i in range(INNER):
            session.run(None, {"picture": pictures[:, i], "letter": LETTERS}, entry="learn")
        session.run(None, {"rate": np.float32(0.003 * (1 - task / tasks))}, entry="settle")
    curves["Reptile"] = np.array([curve(session, test) for test in track(tests, "new letters")])
    pixels = [np.mean(nearest(test[:, 0], test[:, 1:]) == LETTERS[:, None]) for test in tests]
    for name, right in {**{name: found[:, -1] for name, found in curves.items()}, "the nearest pixels": pixels}.items():
        print(f"5 new letters, one example each, by {name}: {interval(right)} right")
    draw(curves, pixels)

    session.run(None, {}, entry="restart")
    model.pull()
    path = nv.compile(net, steps=[learn, settle, restart], name="meta_learning").save("meta_learning.so")
    program, examples = nv.load(path), {"picture": tests[0][:, 0], "letter": LETTERS}
    losses = [program.run(None, examples, entry="learn")[0] for _ in range(STEPS)]
    in_c = nv.run_in_c(path, *(np.stack([a] * STEPS) for a in examples.values()), entry="learn")
    np.testing.assert_allclose(in_c, losses, rtol=1e-3, atol=1e-5)
    print(f"{path}: in C five new letters are learned as in Python, the loss goes from {in_c[0]:.2f} to {in_c[-1]:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
