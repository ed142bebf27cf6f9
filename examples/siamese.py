"""A siamese network (Bromley et al. 1993) tells whether two letters are the same, even unseen ones.

    python examples/siamese.py [steps]

Twins are one encoder, which learns where to put pictures on a sphere: letters that are the same near each other, others
apart. In a batch every picture meets every other. Two losses learn from the same start: the contrastive one of all
pairs (Hadsell et al. 2006), and semi-hard triplets (Schroff et al. 2015). They see Latin, Greek and Cyrillic letters.
The area under the ROC curve of pairs of Armenian and Georgian ones is 0.933, and 0.964 with triplets; 0.582 for the
pictures themselves. What comes out: siamese.png, a map of unseen letters; siamese.so and its C header with the entry
points `embed`, a picture's place, and `verify`, the distance of two pictures.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from nervure import layers
from rich.progress import track
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score

LETTERS, EACH = 24, 4  # letters of a batch, pictures of each
PICTURE, RATE = nv.Input((1, 28, 28)), nv.Input(batch_shape=())
LOSSES = {"contrastive": nv.losses.BatchContrastiveLoss(margin=1.2), "triplet": nv.losses.TripletSemiHardLoss(0.5)}


def block(channels):
    return [layers.Conv2d(channels, 3, padding="same"), layers.BatchNorm(), layers.ReLU(), layers.MaxPool2d(2)]


encoder = nv.Sequential([PICTURE, *block(32), *block(48), *block(64), layers.Flatten(), layers.Dense(64)])


@nv.network
def embed(picture: PICTURE):
    """Where a picture lies: [batch, 64], of length 1."""
    return nv.normalize(encoder(picture))


@nv.network
def verify(one: PICTURE, other: PICTURE):
    """The distance of two pictures, [batch]: 0 to 2."""
    return nv.norm(embed(one) - embed(other), axis=1)


def learning(loss):
    """The training step for a loss of a whole batch."""

    @nv.network
    def learn(picture: PICTURE, letter: nv.Input((), "int32"), rate: RATE):
        value = nv.mean(loss(letter, embed(picture)))
        nv.minimize(value, encoder, "adam", rate)
        return {"loss": value}

    return learn


def some(rng, y, count, each):
    """Indices of ``each`` pictures of ``count`` letters: [count, each]."""
    letters = rng.choice(np.unique(y), count, replace=False)
    return np.stack([rng.choice(np.flatnonzero(y == letter), each, replace=False) for letter in letters])


def pairs(rng, y, count):
    """Indices of pairs, [2, 2 * count], and whether they are of one letter: as many are as are not."""
    two = np.stack([some(rng, y, 2, 2) for _ in range(count)])  # of two letters two pictures: a b, c d
    return np.concatenate([two[:, 0], two[:, :, 1]]).T, np.repeat([True, False], count)


def draw(places, pictures, letters, distances, same):
    """A map of some letters, and how far pairs are apart."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 6), width_ratios=(1.6, 1), layout="constrained")
    at = TSNE(perplexity=15, random_state=0, init="pca").fit_transform(places)
    colours = plt.get_cmap("tab20")(letters % 20)[:, :3]
    left.scatter(*at.T, s=0)
    for place, picture, colour in zip(at, pictures, colours, strict=True):
        image = np.dstack([np.broadcast_to(colour, (28, 28, 3)), picture[0]])  # ink of the letter's colour
        left.add_artist(AnnotationBbox(OffsetImage(image, zoom=0.75), place, frameon=False))
    left.set(title="letters it has never seen, by their places", xticks=[], yticks=[])
    bins = np.linspace(0, distances.max(), 50)
    for kind, name in ((same, "the same letter"), (~same, "two letters")):
        right.hist(distances[kind], bins, alpha=0.7, label=name)
    right.legend(frameon=False)
    right.set(title="distances of pairs", xlabel="distance", yticks=[])
    figure.savefig("siamese.png", dpi=100)


def main(steps=600):
    x, y, alphabet = nv.datasets.letters()
    new = np.isin(alphabet, ["Armenian", "Georgian"])
    seen, names, unseen = x[~new], y[~new], x[new]
    (one, other), same = pairs(np.random.default_rng(1), y[new], 2000)
    print(
        f"{len(np.unique(names))} letters to learn from, {len(same)} pairs of {len(np.unique(y[new]))} others to verify"
    )
    apart = np.linalg.norm((unseen[one] - unseen[other]).reshape(len(same), -1), axis=1)
    print(f"area under the ROC curve, pictures as they are: {roc_auc_score(same, -apart):.4f}")

    start = embed.state_dict()
    for name, loss in LOSSES.items():
        embed.load_state_dict(start)
        rng = np.random.default_rng(0)
        model = nv.compile(embed, steps=[learning(loss)], dims={"batch": LETTERS * EACH})
        for step in track(range(steps), f"{name} loss"):
            chosen = some(rng, names, LETTERS, EACH).ravel()
            feeds = {"picture": seen[chosen], "letter": names[chosen], "rate": np.float32(0.002 * (1 - step / steps))}
            model.session.run(None, feeds, entry="learn")
        model.pull()
        path = nv.compile([embed, verify], name="siamese").save("siamese.so")
        program = nv.load(path)
        places = np.concatenate([program.run(None, {"picture": p[None]}, entry="embed")[0] for p in unseen])
        apart = np.linalg.norm(places[one] - places[other], axis=1)
        print(f"area under the ROC curve, {name} loss: {roc_auc_score(same, -apart):.4f}")

    shown = np.isin(y[new], np.unique(y[new])[::7])
    draw(places[shown], unseen[shown], y[new][shown], apart, same)
    in_c = nv.run_in_c(path, unseen[one[::40]], unseen[other[::40]], entry="verify")
    np.testing.assert_allclose(in_c, apart[::40], atol=1e-4)
    print(f"{path}: the distances of {len(in_c)} pairs in C are those in Python")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
