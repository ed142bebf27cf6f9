"""A conditional GAN writes the digit that it is asked for (Mirza and Osindero 2014).

    python examples/conditional_gan.py [epochs]

The generator makes a picture of random numbers and a digit, the discriminator is told the digit too and tells made
pictures from real ones. Their two training steps lie in one library, over one block of parameters. A small classifier
of real digits reads 98 % of the made ones as the digit asked for (300 epochs, the default). What comes out:
conditional_gan.png, a row of pictures for each digit, and the losses; conditional_gan.so and its C header, a generator.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import digits
from rich.progress import track

BATCH, NOISE = 64, 32

generator = nv.Sequential([nv.Input((NOISE + 10,))], name="generator")
for _ in range(2):
    for layer in (layers.Dense(128, use_bias=False), layers.BatchNorm(), layers.ReLU()):
        generator.add(layer)
generator.add(layers.Dense(64, activation="sigmoid"))

discriminator = nv.Sequential([nv.Input((64 + 10,))], name="discriminator")
for _ in range(2):
    for layer in (layers.Dense(128), layers.LeakyReLU(0.2), layers.Dropout(0.3)):
        discriminator.add(layer)
discriminator.add(layers.Dense(1))

cross_entropy, adam = nv.losses.BinaryCrossentropy(from_logits=True), nv.optimizers.Adam(beta_1=0.5)


@nv.network
def generate(noise: nv.Input((NOISE,)), digit: nv.Input((), "int32")):
    """Pictures [batch, 64] of the digits asked for."""
    return generator(nv.concat([noise, nv.one_hot(digit, 10)], axis=1))


@nv.network
def judge(picture: nv.Input((64,)), digit: nv.Input((), "int32")):
    """How real each looks as that digit: a score, above 0 for real."""
    return discriminator(nv.concat([picture, nv.one_hot(digit, 10)], axis=1))


@nv.network
def train_discriminator(real: nv.Input((64,)), digit: nv.Input((), "int32"), rate: nv.Input(batch_shape=())):
    """One step of the discriminator: real pictures are to be 0.9 (1 would make it too sure), made ones 0."""
    made = nv.stop_gradient(generate(nv.random.normal((BATCH, NOISE)), digit))
    score, made = judge(real, digit), judge(made, digit)
    loss = nv.mean(cross_entropy(0.9 * nv.ones_like(score), score) + cross_entropy(nv.zeros_like(made), made)) / 2
    nv.minimize(loss, discriminator, adam, rate)
    return {"loss": loss}


@nv.network
def train_generator(digit: nv.Input((), "int32"), rate: nv.Input(batch_shape=())):
    """One step of the generator: the discriminator is to take its pictures for real ones of that digit."""
    score = judge(generate(nv.random.normal((BATCH, NOISE)), digit), digit)
    loss = nv.mean(cross_entropy(nv.ones_like(score), score))
    nv.minimize(loss, generator, adam, rate)
    return {"loss": loss}


def train(x, y, epochs):
    """Both networks in turns; returns the losses [epochs, 2] of discriminator and generator."""
    model = nv.compile(generate, steps=[train_discriminator, train_generator], dims={"batch": BATCH})
    feeds, rng, losses = model.session.host_arrays("train_discriminator"), np.random.default_rng(0), []
    shared = {name: feeds[name] for name in ("digit", "rate")}  # both steps read these arrays in place
    steps = [model.session.binding(feeds, entry="train_discriminator")]
    steps.append(model.session.binding(shared, entry="train_generator"))
    for epoch in track(range(epochs), "learning"):
        feeds["rate"][...], seen = 0.001 * (1 - epoch / epochs), []
        for chosen in rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            feeds["real"][:], feeds["digit"][:] = x[chosen], y[chosen]
            for step in steps:
                step()
            seen.append([step.outputs[0].item() for step in steps])
        losses.append(np.mean(seen, axis=0))
    model.pull()
    return np.array(losses)


def reader(x, y):
    """A small classifier of real digits."""
    net = nv.Sequential([nv.Input((64,)), layers.Dense(64, "relu"), layers.Dropout(0.3), layers.Dense(10, "softmax")])
    net.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    net.fit(x, y, batch_size=BATCH, epochs=40, verbose=0)
    return net


def picture(made, losses):
    """A figure: a row for each digit of made [10, n, 64], and the curves of both losses."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained", width_ratios=(1.2, 1))
    tiles = np.pad(made[:, :12].reshape(10, 12, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    left.imshow(tiles.transpose(0, 2, 1, 3).reshape(100, 120), cmap="gray_r", interpolation="bicubic")
    left.set(title="Twelve of each, invented", xticks=[], yticks=[])
    right.plot(losses, label=("discriminator", "generator"))
    right.set(title="Losses", xlabel="epoch", ylabel="cross-entropy")
    right.legend()
    figure.savefig("conditional_gan.png", dpi=85)


def main(epochs=300):
    (x, y), (x_test, y_test) = ((pictures.reshape(-1, 64), labels) for pictures, labels in digits())
    losses = train(x, y, epochs)

    path = nv.compile(generate, name="conditional_gan").save("conditional_gan.so")
    program, rng = nv.load(path), np.random.default_rng(1)
    noise, asked = rng.standard_normal((1000, NOISE), dtype=np.float32), np.repeat(np.arange(10, dtype=np.int32), 100)
    made = np.concatenate([program(noise[i : i + 1], asked[i : i + 1]) for i in range(1000)])
    np.testing.assert_allclose(nv.run_in_c(path, noise, asked), made, atol=1e-5)
    print(f"{path}: a C program makes the same 1000 pictures")
    net = reader(x, y)
    print(f"a classifier that reads {net.evaluate(x_test, y_test)[1]:.1%} of real digits that it has not seen")
    print(f"reads {(net.predict(made).argmax(axis=1) == asked).mean():.1%} of the made ones as the digit asked for")
    picture(made.reshape(10, 100, 64), losses)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
