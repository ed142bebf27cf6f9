"""An autoencoder that has only seen shoes finds what is no shoe (Hinton and Salakhutdinov 2006).

    python examples/anomaly_autoencoder.py [epochs]

The network squeezes a picture through 16 numbers and draws it again. What it was trained on comes back well, anything
else does not: the error of the drawing tells how strange a picture is, with an area under the ROC curve of 0.98 after
ten epochs (the default). What comes out: anomaly_autoencoder.png, pictures, their drawings and where they differ, and
the errors of shoes and others; anomaly_autoencoder.so and its C header, the program.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import FASHION, fashion_mnist

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
        name="anomaly_autoencoder",
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


def picture(x, drawn, error, strange, kind):
    """A figure: pictures of each kind, what was drawn, where they differ; the errors of shoes and of others."""
    shown = [np.flatnonzero(kind == number)[0] for number in (*SHOES, *(n for n in range(10) if n not in SHOES))]
    rows = np.stack([x[shown], drawn[shown], np.abs(x - drawn)[shown]]).reshape(3, -1, 28, 28)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=(2.6, 1))
    left.imshow(rows.transpose(0, 2, 1, 3).reshape(84, -1), cmap="gray_r", vmin=0, vmax=1)
    left.set_yticks([14, 42, 70], ["seen", "drawn", "difference"])
    left.set_xticks(14 + 28 * np.arange(len(shown)), [FASHION[kind[i]] for i in shown], fontsize=8)
    bins = np.linspace(0, np.quantile(error, 0.99), 60)
    right.hist([error[~strange], error[strange]], bins, histtype="stepfilled", alpha=0.6, label=("shoes", "others"))
    right.set(title="Errors of the drawings", xlabel="mean squared error", yticks=[])
    right.legend()
    figure.savefig("anomaly_autoencoder.png", dpi=85)


def main(epochs=10):
    shoes, x, strange, kind = shoes_and_all()
    net = network()
    net.compile(optimizer=nv.optimizers.Adam(LEARNING_RATE), loss="mse")
    net.fit(shoes, shoes, BATCH, epochs, validation_data=(x[~strange], x[~strange]))

    path = nv.compile(net).save("anomaly_autoencoder.so")
    program = nv.load(path)
    drawn = np.concatenate([program(one[None]) for one in x])
    error = ((x - drawn) ** 2).mean(axis=1)
    auc = area_under_curve(error, strange)
    print(f"{path}: area under the ROC curve {auc:.4f}, {len(shoes)} pictures of shoes to learn from")
    for number, name in enumerate(FASHION):
        known = "  (a shoe)" if number in SHOES else ""
        print(f"  {name:<10} mean error {error[kind == number].mean():.4f}{known}")
    np.testing.assert_allclose(nv.run_in_c(path, x[:20]), drawn[:20], atol=1e-5)
    print("a C program draws the same")
    picture(x, drawn, error, strange, kind)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
