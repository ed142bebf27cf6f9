"""A convolutional network of LeNet's class learns Fashion-MNIST and becomes a native program.

    python examples/fashion_cnn.py [epochs]

Five epochs (the default) reach more than 90 % of the test pictures. What comes out: fashion_cnn.svg, the curves of loss
and accuracy; fashion_cnn.so and its C header, the program.
"""

import sys

import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import FASHION, fashion_mnist

EPOCHS, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 5, 64
(x_train, y_train), (x_test, y_test) = fashion_mnist()

net = nv.Sequential(
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
net.summary()

# The learning rate is an input of the compiled step: a schedule recompiles nothing.
rate = nv.schedules.CosineDecay(0.002, decay_steps=EPOCHS * -(-len(x_train) // BATCH))
net.compile(optimizer=nv.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
curves = nv.callbacks.CurvePlot("fashion_cnn.svg", title="Fashion-MNIST")
net.fit(x_train, y_train, BATCH, EPOCHS, validation_data=(x_test, y_test), callbacks=[curves])

# The trained network as a program of its own: one picture at a time, no Python needed (see fashion_cnn.h).
nv.compile(net).save("fashion_cnn.so")
program = nv.load("fashion_cnn.so")
guesses = np.array([program(picture[None])[0].argmax() for picture in x_test])
right = guesses == y_test
print(f"fashion_cnn.so: {right.mean():.2%} of {len(y_test)} test pictures")
for number, name in enumerate(FASHION):
    print(f"  {name:<10} {right[y_test == number].mean():.1%}")
