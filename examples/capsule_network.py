"""A capsule network names clothes and shows what its numbers mean (Sabour et al. 2017).

    python examples/capsule_network.py [epochs]

A capsule is a vector: its length says whether a garment is there, its direction what it looks like. Lower capsules vote
for higher ones and are heard where they agree; the margin loss wants the right vector long and all others short, and a
decoder has to draw the picture from the right one alone. Four epochs (the default) name 90.2 % of the pictures that
were held out. What comes out: capsule_network.png, what becomes of a drawing when a number of its capsule is moved;
capsule_network.so and its C header, which classify (`infer`) and draw (`draw`).
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import FASHION, fashion_mnist
from rich.progress import track

BATCH, DIM = 64, 12  # pictures of a step, numbers of a capsule

capsules = nv.Sequential(
    [
        nv.Input((1, 28, 28)),
        layers.Conv2d(24, 5, strides=2, activation="relu"),
        layers.PrimaryCapsule(6, 8, 5, strides=2),  # 6 capsules of 8 numbers at each of 4 x 4 places
        layers.Capsule(10, DIM, iterations=3),  # one for each kind of garment
    ],
    name="capsules",
)
drawn = [layers.Dense(192, activation="relu"), layers.Dense(784, activation="sigmoid"), layers.Reshape((1, 28, 28))]
decoder = nv.Sequential([nv.Input((10, DIM)), layers.Flatten(), *drawn], name="decoder")
adam, margin, length = nv.optimizers.Adam(), nv.losses.MarginLoss(), layers.Length()


@nv.network
def draw(vectors: nv.Input((10, DIM)), kind: nv.Input((), "int32")):
    """The picture that the capsule of one kind stands for; the others are not looked at."""
    return decoder(vectors * nv.one_hot(kind, 10)[:, :, None])


@nv.network
def classify(picture: nv.Input((1, 28, 28))):
    """How much of each kind there is (0..1), and the capsules themselves."""
    vectors = capsules(picture)
    return {"lengths": length(vectors), "vectors": vectors}


@nv.network
def learn(picture: nv.Input((1, 28, 28)), kind: nv.Input((), "int32"), rate: nv.Input(batch_shape=())):
    """One step: the margin loss, and 0.0005 of the squared error of the drawing."""
    vectors = capsules(picture)
    loss = nv.mean(margin(kind, length(vectors)))
    error = nv.mean(nv.square(draw(vectors, kind) - picture))
    nv.minimize(loss + 0.0005 * 784 * error, [capsules, decoder], adam, rate)
    return {"loss": loss, "error": error}


def train(x, y, epochs):
    """Trains ``capsules`` and ``decoder``."""
    rng = np.random.default_rng(0)
    model = nv.compile(classify, steps=[learn], dims={"batch": BATCH}, name="capsule_network")
    feeds = model.session.host_arrays("learn")  # the step reads them in place
    step = model.session.binding(feeds, entry="learn")
    for epoch in range(epochs):
        feeds["rate"][...] = 0.003 * (1 - epoch / epochs)
        order, seen = rng.permutation(len(x)), []
        for start in track(range(0, len(x) - BATCH + 1, BATCH), f"epoch {epoch + 1}/{epochs}"):
            chosen = order[start : start + BATCH]
            feeds["picture"][:], feeds["kind"][:] = x[chosen], y[chosen]
            step()
            seen.append([float(value) for value in step.outputs])
        print("  margin loss {:.4f}, error of the drawings {:.4f}".format(*np.mean(seen, axis=0)))
    model.pull()


def moved(program, vectors, kind):
    """Drawings with one number moved, for the two numbers that change them most: [2, 11, 28, 28]."""
    rows = np.empty((DIM, 11, 28, 28), np.float32)
    for number, place in np.ndindex(rows.shape[:2]):
        feeds = {"vectors": vectors.copy(), "kind": np.array([kind], np.int32)}
        feeds["vectors"][:, kind, number] += 0.06 * (place - 5)
        rows[number, place] = program.run(None, feeds, entry="draw")[0][0, 0]
    return rows[np.argsort(-rows.std(axis=1).mean(axis=(1, 2)))[:2]]


def picture(program, x, lengths, vectors):
    """A figure: for each kind the surest picture, its drawing, and drawings with a number moved."""
    figure, axes = plt.subplots(5, 2, figsize=(12, 6.3), layout="constrained")
    for kind, axis in enumerate(axes.flat):
        sure = lengths[:, kind].argmax()
        rows = moved(program, vectors[sure][None], kind)
        left = np.stack([x[sure, 0], rows[0, 5]])[:, None]
        rows = np.concatenate([left, np.zeros((2, 1, 28, 28)), rows], axis=1)
        axis.imshow(rows.transpose(0, 2, 1, 3).reshape(56, -1), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(FASHION[kind], fontsize=10)
        axis.axis("off")
    figure.suptitle("Left: a picture and its drawing. Right: two numbers of its capsule, moved from -0.3 to 0.3")
    figure.savefig("capsule_network.png", dpi=85)


def main(epochs=4):
    (x_train, y_train), (x, y) = fashion_mnist()
    train(x_train, y_train, epochs)
    path = nv.compile(classify, entries=[draw], name="capsule_network").save("capsule_network.so")
    program = nv.load(path)
    outputs = [program.run(None, {"picture": one[None]}) for one in track(x, "held out")]
    lengths, vectors = (np.concatenate(each) for each in zip(*outputs, strict=True))
    print(f"accuracy on held-out clothes: {(lengths.argmax(axis=1) == y).mean():.1%}")
    for in_c, in_python in zip(nv.run_in_c(path, x[:20]), (lengths, vectors), strict=True):
        np.testing.assert_allclose(in_c, in_python[:20], atol=1e-5)
    print(f"{path}: a C program finds the same capsules in 20 pictures")
    picture(program, x, lengths, vectors)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
