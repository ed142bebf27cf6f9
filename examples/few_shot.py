"""A prototypical network (Snell et al. 2017) learns a letter from one example, without training.

    python examples/few_shot.py [episodes]

An episode is one step: of 20 letters one example each makes a prototype, its place in the network's space, and five
more pictures of each are to lie nearest to their own. Seen are Latin, Greek and Cyrillic letters. Asked are Armenian
and Georgian ones, five at a time with one example each: 86.4 ± 1.0 % of the answers are right over 300 episodes, where
the nearest pixels give 31.0 ± 0.8 %. What comes out: few_shot.png, some of these episodes; few_shot.so and its C
header, a program that learns a class from its examples and tells pictures apart.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from rich.progress import track

WAYS, SHOTS, QUERIES = 20, 1, 5  # of an episode: letters, examples of each, questions to each
SLOTS, ASKED = 5, 10  # classes that the device can learn; questions to each in a test
PICTURE = (1, 28, 28)


def block(channels):
    return [layers.Conv2d(channels, 3, padding="same"), layers.BatchNorm(), layers.ReLU(), layers.MaxPool2d(2)]


embed = nv.Sequential([nv.Input(PICTURE), *block(32), *block(32), *block(32), layers.Flatten(), layers.Dense(64)])
cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
prototypes = nv.Variable(np.zeros((SLOTS, 64)), trainable=False, name="prototypes")
examples = nv.Variable(np.zeros(SLOTS), trainable=False, name="examples")  # how many each is the mean of


@nv.network
def episode(
    support: nv.Input(batch_shape=(WAYS * SHOTS, *PICTURE)),
    query: nv.Input(batch_shape=(WAYS * QUERIES, *PICTURE)),
    rate: nv.Input(batch_shape=()),
):
    """One step: both hold the same letters in the same order, so that the classes are 0, 1, 2, ..."""
    places = embed(nv.concat([support, query]))
    means = nv.mean(nv.reshape(places[: WAYS * SHOTS], (WAYS, SHOTS, -1)), axis=1)
    scores = -nv.cdist(places[WAYS * SHOTS :], means, "sqeuclidean") / 8
    loss = nv.mean(cross_entropy(nv.repeat(nv.arange(WAYS), QUERIES, 0), scores))
    nv.minimize(loss, embed, "adam", rate)
    return {"loss": loss}


@nv.network
def meet(picture: nv.Input(PICTURE), slot: nv.Input((), "int32")):
    """The distance of a picture to each class's prototype. With a slot that is a class's (-1 is none's) it is one more
    example of it first: a prototype is the mean of its examples."""
    here, place = nv.cast(nv.arange(SLOTS) == slot, "float32"), embed(picture)
    count = nv.assign(examples, examples + here)
    share = nv.reshape(here / nv.maximum(count, 1), (SLOTS, 1))
    means = nv.assign(prototypes, prototypes + share * (place - prototypes))
    return nv.where(count > 0, nv.cdist(place, means), np.inf)


def some(rng, x, y, ways, each):
    """An episode: pictures of as many letters, [ways, each, 1, 28, 28]."""
    letters = rng.choice(np.unique(y), ways, replace=False)
    return np.stack([x[rng.choice(np.flatnonzero(y == letter), each, replace=False)] for letter in letters])


def nearest(support, query):
    """Of each query [classes, n, ...] the nearest support [classes, ...]: [classes, n]."""
    a, b = query.reshape(*query.shape[:2], 1, -1), support.reshape(len(support), -1)
    return np.linalg.norm(a - b, axis=3).argmin(axis=2)


def interval(right):
    """Mean and 95 % confidence, in percent."""
    return f"{100 * np.mean(right):.1f}% ± {196 * np.std(right) / len(right) ** 0.5:.1f}"


def draw(episodes):
    """Some episodes: the example, and what was asked, framed by whether the answer was right."""
    figure, axes = plt.subplots(5, 4 * 7, figsize=(13, 3.6))
    [axis.axis("off") for axis in axes.flat]
    for e, (pictures, found) in enumerate(episodes[:4]):
        for way in range(5):
            for i in range(6):
                axis, right = axes[way, 7 * e + i], i == 0 or found[way, i - 1] == way
                axis.imshow(pictures[way, i, 0], cmap="gray_r" if i else "Blues")
                axis.add_patch(plt.Rectangle((-0.5, -0.5), 28, 28, fill=False, lw=3, ec="none" if right else "tab:red"))
    figure.suptitle("four episodes: one example of a new letter (blue), then five questions (red: mistaken)")
    figure.savefig("few_shot.png", dpi=100, bbox_inches="tight")


def main(episodes=600):
    x, y, alphabet = nv.datasets.letters()
    new = np.isin(alphabet, ["Armenian", "Georgian"])
    model, rng = nv.compile(embed, steps=[episode]), np.random.default_rng(0)
    for i in track(range(episodes), "episodes"):
        pictures = some(rng, x[~new], y[~new], WAYS, SHOTS + QUERIES)
        support, query = (p.reshape(-1, *PICTURE) for p in np.split(pictures, [SHOTS], axis=1))
        feeds = {"support": support, "query": query, "rate": np.float32(0.002 * (1 - i / episodes))}
        model.session.run(None, feeds, entry="episode")
    model.pull()

    path = nv.compile(meet, name="few_shot").save("few_shot.so")
    device, classes = nv.load(path), np.arange(SLOTS, dtype=np.int32)
    by_network, by_pixels, shown = [], [], []
    slots = np.concatenate([classes, np.full(SLOTS * ASKED, -1, np.int32)])
    for _ in track(range(300), "new letters"):
        pictures = some(rng, x[new], y[new], SLOTS, 1 + ASKED)
        told = np.concatenate([pictures[:, 0], pictures[:, 1:].reshape(-1, *PICTURE)])
        device.reset()  # forgets the letters of before
        calls = [{"picture": told[i : i + 1], "slot": slots[i : i + 1]} for i in range(len(told))]
        distances = np.concatenate([device.run(None, call)[0] for call in calls])
        found = distances[SLOTS:].argmin(axis=1).reshape(SLOTS, ASKED)
        by_pixels.append(np.mean(nearest(pictures[:, 0], pictures[:, 1:]) == classes[:, None]))
        by_network.append(np.mean(found == classes[:, None]))
        shown.append((pictures, found))
    print(f"5 new letters, one example each, by prototypes: {interval(by_network)} right")
    print(f"5 new letters, one example each, by the nearest pixels: {interval(by_pixels)} right")
    draw(shown)
    np.testing.assert_allclose(nv.run_in_c(path, told, slots), distances, atol=1e-3)
    print(f"{path}: in C it learns the last five letters too, and answers as in Python")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
