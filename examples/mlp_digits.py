"""A multilayer perceptron reads handwritten digits, in the few lines of the textbooks that use Keras.

    python examples/mlp_digits.py [epochs]

Backpropagation through a hidden layer (Rumelhart et al. 1986) on the 1,797 digits of 8 x 8 pixels that come with
scikit-learn; a fifth is held out. Forty epochs (the default) name 99.2 % of those. What comes out: mlp_digits.png, the
hardest digits and what some of the hidden neurons look for; mlp_digits.so and its C header, the network as a program.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import Sequential
from nervure.datasets import digits
from nervure.layers import Dense, Dropout


def draw(x, y, answers, weights):
    """The digits that it is least sure of; below, the weights of the hidden neurons that are used most."""
    hardest = answers[np.arange(len(y)), y].argsort()
    strongest = np.linalg.norm(weights, axis=0).argsort()[::-1]
    figure, axes = plt.subplots(4, 8, figsize=(10, 6), layout="constrained")
    for place, i in zip(axes[:2].flat, hardest, strict=False):
        place.imshow(x[i].reshape(8, 8), cmap="gray_r")
        right, said = answers[i, y[i]], answers[i].argmax()
        title = f"{y[i]}: {right:.0%}" if said == y[i] else f"{y[i]}, taken for {said}"
        place.set_title(title, size=11, color="black" if said == y[i] else "tab:red")
    for place, neuron in zip(axes[2:].flat, strongest, strict=False):
        bound = np.abs(weights[:, neuron]).max()
        place.imshow(weights[:, neuron].reshape(8, 8), cmap="RdBu_r", vmin=-bound, vmax=bound)
    for place in axes.flat:
        place.axis("off")
    figure.suptitle(f"The hardest of {len(y)} digits, and what hidden neurons look for (red) and avoid (blue)")
    figure.savefig("mlp_digits.png", dpi=100)


def main(epochs=40):
    (x, y), (x_test, y_test) = digits()
    x, x_test = x.reshape(-1, 64), x_test.reshape(-1, 64)

    model = Sequential(name="mlp_digits")
    model.add(Dense(96, input_dim=64, activation="relu"))
    model.add(Dropout(0.2))
    model.add(Dense(10, activation="softmax"))
    model.compile(loss="sparse_categorical_crossentropy", optimizer=nv.optimizers.Adam(0.003), metrics=["accuracy"])
    model.summary()
    model.fit(x, y, epochs=epochs, batch_size=32, validation_data=(x_test, y_test))
    loss, accuracy = model.evaluate(x_test, y_test)
    print(f"accuracy on held-out digits: {accuracy:.1%}, loss {loss:.3f}")

    # The trained network as a library: Python needs numpy to run it, C (see mlp_digits.h) nothing.
    program = nv.load(path := nv.compile(model).save("mlp_digits.so"))
    answers = np.concatenate([program(one[None]) for one in x_test])
    np.testing.assert_allclose(answers, model.predict(x_test), atol=1e-5)
    np.testing.assert_allclose(nv.run_in_c(path, x_test), answers, atol=1e-6)
    print(f"{path}: {(answers.argmax(axis=1) == y_test).mean():.1%}, and a C program answers the same")
    draw(x_test, y_test, answers, model.get_weights()[0])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
