"""An autoencoder that has seen nothing but shoes finds everything that is no shoe.

    python examples/anomaly_autoencoder.py [epochs]

The network squeezes a picture through 16 numbers and draws it again. What it was trained on comes back well, anything
else does not: the error of the drawing tells how strange a picture is. What comes out: autoencoder.png, pictures, their
drawings and where they differ; autoencoder.svg, the curves; autoencoder.so and its C header, the program.
"""

import sys

import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import FASHION, fashion_mnist
from PIL import Image

SHOES = [FASHION.index(name) for name in ("sandal", "sneaker", "ankle boot")]
BATCH, LEARNING_RATE = 64, 0.001


def network():
    """784 pixels to 16 numbers and back."""
    return nv.Sequential(
        [
            nv.Input((784,)),
            layers.Dense(128, activation="relu"),
            layers.Dense(16, name="code"),
            layers.Dense(128, activation="relu"),
            layers.Dense(784, activation="sigmoid"),
        ],
        name="autoencoder",
        seed=1,
    )


def shoes_and_all():
    """Pictures of shoes to learn from; pictures of all kinds for the test, and which of these are no shoes."""
    (x_train, y_train), (x_test, y_test) = fashion_mnist()
    shoes = x_train[np.isin(y_train, SHOES)].reshape(-1, 784)
    return shoes, x_test.reshape(-1, 784), ~np.isin(y_test, SHOES), y_test


def area_under_curve(scores, positive):
    """How often a positive has a higher score than a negative (Mann and Whitney 1947); equal ones count half."""
    ordered = np.sort(scores[~positive])
    below, upto = (np.searchsorted(ordered, scores[positive], side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(ordered))


def sheet(x, drawn):
    """A picture of three rows: what was seen, what was drawn, where they differ."""
    rows = [np.concatenate(row.reshape(-1, 28, 28), axis=1) for row in (x, drawn, np.abs(x - drawn))]
    image = Image.fromarray((255 * np.concatenate(rows)).round().astype(np.uint8))
    return image.resize((2 * image.width, 2 * image.height))


def main(epochs=10):
    shoes, x, strange, kind = shoes_and_all()
    net = network()
    net.compile(optimizer=nv.optimizers.Adam(LEARNING_RATE), loss="mse")
    curves = nv.callbacks.CurvePlot("autoencoder.svg", title="Autoencoder, shoes only")
    net.fit(shoes, shoes, BATCH, epochs, validation_data=(x[~strange], x[~strange]), callbacks=[curves])

    nv.compile(net).save("autoencoder.so")
    program = nv.load("autoencoder.so")
    drawn = np.concatenate([program(one[None]) for one in x])
    error = ((x - drawn) ** 2).mean(axis=1)
    auc = area_under_curve(error, strange)
    print(f"autoencoder.so: area under the ROC curve {auc:.4f}, {len(shoes)} pictures of shoes to learn from")
    for number, name in enumerate(FASHION):
        known = "  (a shoe)" if number in SHOES else ""
        print(f"  {name:<10} mean error {error[kind == number].mean():.4f}{known}")
    shown = np.concatenate([np.flatnonzero(kind == number)[:2] for number in range(10)])
    sheet(x[shown], drawn[shown]).save("autoencoder.png")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
