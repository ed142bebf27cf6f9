"""A GAN (Goodfellow et al. 2014) invents clothes: its two training steps lie in one program.

    python examples/gan.py [epochs]

The generator makes pictures of random numbers, the discriminator tells them from real ones, and each learns from the
other. What comes out: gan.png, 80 invented pictures; gan_growing.png, how ten of them came about, epoch by epoch;
gan.svg, both losses; gan.so and its C header, the generator as a program.
"""

import sys

import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import fashion_mnist
from PIL import Image
from rich.progress import track

BATCH, NOISE = 64, 64

generator = nv.Sequential(
    [
        nv.Input((NOISE,)),
        layers.Dense(48 * 7 * 7, use_bias=False),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.Reshape((48, 7, 7)),
        layers.Upsample(2),
        layers.Conv2d(32, 3, padding="same", use_bias=False),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.Upsample(2),
        layers.Conv2d(1, 5, padding="same", activation="tanh"),
    ],
    name="generator",
)
discriminator = nv.Sequential(
    [
        nv.Input((1, 28, 28)),
        layers.Conv2d(24, 5, strides=2, padding="same"),
        layers.LeakyReLU(0.2),
        layers.Conv2d(48, 5, strides=2, padding="same"),
        layers.LeakyReLU(0.2),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(1),
    ],
    name="discriminator",
)
cross_entropy = nv.losses.BinaryCrossentropy(from_logits=True)
adam = nv.optimizers.Adam(beta_1=0.5)


@nv.network
def train_discriminator(real: nv.Input((1, 28, 28)), noise: nv.Input((NOISE,)), rate: nv.Input(batch_shape=())):
    """One step of the discriminator: real pictures are to be 0.9 (1 would make it too sure), made ones 0."""
    score, made = discriminator(real), discriminator(nv.stop_gradient(generator(noise)))
    loss = nv.mean(cross_entropy(0.9 * nv.ones_like(score), score) + cross_entropy(nv.zeros_like(made), made)) / 2
    nv.minimize(loss, discriminator, adam, rate)
    return {"loss": loss}


@nv.network
def train_generator(noise: nv.Input((NOISE,)), rate: nv.Input(batch_shape=())):
    """One step of the generator: the discriminator is to take its pictures for real ones."""
    made = discriminator(generator(noise))
    loss = nv.mean(cross_entropy(nv.ones_like(made), made))
    nv.minimize(loss, generator, adam, rate)
    return {"loss": loss}


def grid(pictures, columns):
    """Pictures [n, 1, 28, 28] in -1..1 side by side, twice as large."""
    rows = pictures.reshape(-1, columns, 28, 28).transpose(0, 2, 1, 3).reshape(-1, columns * 28)
    image = Image.fromarray(((rows + 1) * 127.5).round().astype(np.uint8))
    return image.resize((2 * image.width, 2 * image.height))


def main(epochs=5):
    rng = np.random.default_rng(0)
    real = 2 * fashion_mnist()[0][0] - 1
    model = nv.compile(generator, steps=[train_discriminator, train_generator], dims={"batch": BATCH}, name="gan")
    session = model.session

    # The steps read these arrays in place and write their loss: nothing is allocated in the loop.
    pictures, noise = np.zeros((BATCH, 1, 28, 28), np.float32), np.zeros((BATCH, NOISE), np.float32)
    rate = np.zeros((), np.float32)
    discriminate = session.binding({"real": pictures, "noise": noise, "rate": rate}, entry="train_discriminator")
    generate = session.binding({"noise": noise, "rate": rate}, entry="train_generator")

    fixed = rng.standard_normal((BATCH, NOISE), dtype=np.float32)
    history, growing = {"discriminator": [], "generator": []}, []
    for epoch in range(epochs):
        rate[...] = 0.001 * (1 - epoch / epochs)
        order, losses = rng.permutation(len(real)), []
        for start in track(range(0, len(real) - BATCH + 1, BATCH), f"epoch {epoch + 1}/{epochs}"):
            pictures[...] = real[order[start : start + BATCH]]
            rng.standard_normal(out=noise, dtype=np.float32)
            discriminate()
            generate()
            losses.append((discriminate.outputs[0].item(), generate.outputs[0].item()))
        for curve, loss in zip(history.values(), np.mean(losses, axis=0).tolist(), strict=True):
            curve.append(loss)
        print("  loss:", ", ".join(f"{name} {curve[-1]:.3f}" for name, curve in history.items()))
        growing.append(model(fixed)[:10])

    nv.callbacks.save_curves("gan.svg", history, title="Losses of a GAN")
    grid(np.concatenate(growing), columns=10).save("gan_growing.png")

    # The trained generator as a program of its own, for one picture at a time.
    model.pull()
    path = nv.compile(generator).save("gan.so")
    program, noise = nv.load(path), rng.standard_normal((80, NOISE), dtype=np.float32)
    invented = np.concatenate([program(z[None]) for z in noise])
    np.testing.assert_allclose(nv.run_in_c(path, noise), invented, atol=1e-5)
    grid(invented, columns=16).save("gan.png")
    print(f"gan.png: 80 pictures by {path}; a C program makes the same")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
