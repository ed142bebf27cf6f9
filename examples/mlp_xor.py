"""The smallest network that matters: a multilayer perceptron learns XOR (Rumelhart et al. 1986).

    python examples/mlp_xor.py [epochs]

As in the textbooks that use Keras; what is nervure's own comes at the end. What comes out: mlp_xor.png, what the
network answers everywhere on the square; mlp_xor.so and its C header, the network as a program.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import Sequential
from nervure.layers import Dense

x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
y = np.array([[0], [1], [1], [0]], np.float32)


def draw(model):
    side = np.linspace(-0.25, 1.25, 121, dtype=np.float32)
    answers = model.predict(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)).reshape(121, 121)
    figure, axes = plt.subplots(figsize=(7, 5.5), layout="constrained")
    surface = axes.contourf(side, side, answers, np.linspace(0, 1, 21), cmap="RdBu_r")
    axes.contour(side, side, answers, [0.5], colors="white", linewidths=2)
    axes.scatter(*x.T, c=y[:, 0], cmap="RdBu_r", s=220, edgecolors="white", linewidths=2, zorder=3)
    figure.colorbar(surface, ticks=[0, 0.5, 1], label="answer")
    axes.set(title="XOR, learned by eight hidden neurons", xlabel="a", ylabel="b", aspect="equal")
    figure.savefig("mlp_xor.png", dpi=120)


def main(epochs=500):
    model = Sequential(name="mlp_xor")
    model.add(Dense(8, input_dim=2, activation="relu"))
    model.add(Dense(1, activation="sigmoid"))
    model.compile(loss="binary_crossentropy", optimizer=nv.optimizers.Adam(0.02), metrics=["accuracy"])
    model.summary()

    history = model.fit(x, y, epochs=epochs, batch_size=4, verbose=0)
    loss, accuracy = model.evaluate(x, y)
    print(f"loss {history.history['loss'][0]:.3f} -> {loss:.3f}, accuracy {accuracy:.0%}")
    for (a, b), found in zip(x, model.predict(x), strict=True):
        print(f"{a:.0f} xor {b:.0f} = {found[0]:.3f}")
    draw(model)

    # The trained network as a library: Python needs numpy to run it, C (see mlp_xor.h) nothing.
    compiled = nv.compile(model, target="host")
    path = compiled.save("mlp_xor.so")
    print(f"{path}: {compiled.report.artifact_bytes:,} bytes, {compiled.report.arena_bytes} bytes of RAM")
    program = nv.load(path)
    answers = np.concatenate([program(row[None]) for row in x])
    np.testing.assert_allclose(nv.run_in_c(path, x), answers, atol=1e-6)
    print("a C program answers the same")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
