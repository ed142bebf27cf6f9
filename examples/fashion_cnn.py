"""A convolutional network (LeCun et al. 1998) learns to tell clothes apart, from 60,000 pictures of Fashion-MNIST.

    python examples/fashion_cnn.py [epochs]

Five epochs (the default) reach more than 90 % of the test pictures. What comes out: fashion_cnn.png, pictures that it
mistakes, and what for; fashion_cnn.svg, the curves of loss and accuracy; fashion_cnn.so and its C header, the program.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import FASHION, fashion_mnist

BATCH = 64


def network():
    return nv.Sequential(
        [
            nv.Input((1, 28, 28)),
            layers.Conv2d(16, 5, padding="same", activation="relu"),
            layers.MaxPool2d(2),
            layers.Conv2d(32, 5, activation="relu"),
            layers.MaxPool2d(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ],
        name="fashion_cnn",
    )


def draw(pictures, answers, labels):
    """How often each kind is taken for which, and the surest mistakes."""
    guesses = answers.argmax(axis=1)
    figure = plt.figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    axes = left.subplots()
    counts = np.zeros((10, 10))
    np.add.at(counts, (labels, guesses), 1)
    axes.imshow(np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)), cmap="Blues")
    axes.set_xticks(range(10), FASHION, rotation=60, ha="right")
    axes.set_yticks(range(10), FASHION)
    axes.set(xlabel="taken for", title="what is taken for what")
    wrong = np.flatnonzero(guesses != labels)
    surest = wrong[np.argsort(-answers[wrong, guesses[wrong]])][:20]
    right.suptitle("its surest mistakes")
    for one, place in zip(surest, right.subplots(4, 5).flat, strict=False):
        place.imshow(pictures[one, 0], cmap="gray_r")
        place.set_title(f"{FASHION[guesses[one]]}?\n{FASHION[labels[one]]}", fontsize=8)
        place.axis("off")
    figure.savefig("fashion_cnn.png", dpi=100)


def main(epochs=5):
    (x_train, y_train), (x_test, y_test) = fashion_mnist()
    net = network()
    net.summary()

    # The learning rate is an input of the compiled step: a schedule recompiles nothing.
    rate = nv.schedules.CosineDecay(0.002, decay_steps=epochs * -(-len(x_train) // BATCH))
    net.compile(optimizer=nv.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    curves = nv.callbacks.CurvePlot("fashion_cnn.svg", title="Fashion-MNIST")
    net.fit(x_train, y_train, BATCH, epochs, validation_data=(x_test, y_test), callbacks=[curves])

    # The trained network as a program of its own: one picture at a time, no Python needed (see fashion_cnn.h).
    path = nv.compile(net).save("fashion_cnn.so")
    program = nv.load(path)
    answers = np.concatenate([program(picture[None]) for picture in x_test])
    right = answers.argmax(axis=1) == y_test
    print(f"fashion_cnn.so: {right.mean():.2%} of {len(y_test)} test pictures")
    for number, name in enumerate(FASHION):
        print(f"  {name:<10} {right[y_test == number].mean():.1%}")
    np.testing.assert_allclose(nv.run_in_c(path, x_test[:500]), answers[:500], atol=1e-5)
    print("a C program answers the same")
    draw(x_test, answers, y_test)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
