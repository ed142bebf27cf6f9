"""A denoising autoencoder takes the noise out of pictures that it has never seen (Vincent et al. 2008).

    python examples/denoising_autoencoder.py [epochs]

While it learns, its first layer adds other noise to a picture every time, and the clean picture is what has to come
out; at inference that layer is nothing, and noisy pictures go in. After four epochs (the default) pictures that were
held out come out at 19.1 dB (peak signal to noise) from 8.0 dB. What comes out: denoising_autoencoder.png, pictures
with noise, without it and as they were; denoising_autoencoder.so and its C header, the program.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import fashion_mnist

BATCH, LEARNING_RATE, NOISE = 64, 0.003, 0.4  # standard deviation of the noise; pixels are 0..1


def network():
    """28 x 28 pixels to 32 channels of 7 x 7 and back."""
    return nv.Sequential(
        [
            nv.Input((1, 28, 28)),
            layers.GaussianNoise(NOISE),
            layers.Conv2d(24, 5, strides=2, padding=2, activation="relu"),
            layers.Conv2d(32, 3, strides=2, padding=1, activation="relu"),
            layers.ConvTranspose2d(24, 4, strides=2, padding=1, activation="relu"),
            layers.ConvTranspose2d(1, 4, strides=2, padding=1, activation="sigmoid"),
        ],
        name="denoising_autoencoder",
    )


def noisy(x, level=NOISE):
    """Pictures with normally distributed noise, always the same."""
    return x + level * np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32)


def decibels(x, clean):
    """Peak signal to noise ratio: how far the mean squared error lies below the square of the largest value, 1."""
    return -10 * np.log10(((x - clean) ** 2).mean())


def picture(net, x, y):
    """A figure: pictures of each kind, and what is gained at other levels of noise."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained", width_ratios=(3, 1))
    shown = np.concatenate([np.flatnonzero(y == kind)[2:3] for kind in range(10)])
    rows = np.stack([noisy(x)[shown], net.predict(noisy(x)[shown]), x[shown]])[:, :, 0]
    left.imshow(rows.transpose(0, 2, 1, 3).reshape(84, -1), cmap="gray_r", vmin=0, vmax=1)
    left.set_yticks([14, 42, 70], ["with noise", "cleaned", "as it was"])
    left.set(title="Pictures that were held out", xticks=[])
    levels, few = np.arange(1, 9, dtype=np.float32) / 10, x[::10]
    right.plot(levels, [decibels(net.predict(noisy(few, level)), few) for level in levels], "o-", label="cleaned")
    right.plot(levels, [decibels(noisy(few, level), few) for level in levels], "o-", label="with noise")
    right.axvline(NOISE, color="gray", linestyle=":", label="learned with")
    right.set(title="At other levels of noise", xlabel="standard deviation", ylabel="peak signal to noise, dB")
    right.legend(loc="lower left")
    figure.savefig("denoising_autoencoder.png", dpi=85)


def main(epochs=4):
    (x_train, _), (x, y) = fashion_mnist()
    net = network()
    rate = nv.schedules.CosineDecay(LEARNING_RATE, decay_steps=epochs * -(-len(x_train) // BATCH))
    net.compile(optimizer=nv.optimizers.Adam(rate), loss="mse")
    net.fit(x_train, x_train, BATCH, epochs, validation_data=(noisy(x), x))

    path = nv.compile(net).save("denoising_autoencoder.so")
    program = nv.load(path)
    cleaned = np.concatenate([program(one[None]) for one in noisy(x)])
    print(f"held-out pictures: {decibels(noisy(x), x):.1f} dB with noise, {decibels(cleaned, x):.1f} dB cleaned")
    np.testing.assert_allclose(nv.run_in_c(path, noisy(x)[:20]), cleaned[:20], atol=1e-5)
    print(f"{path}: a C program cleans 20 pictures alike")
    picture(net, x, y)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
