"""A variational autoencoder draws a map of shoes, with those in between (Kingma and Welling 2014).

    python examples/variational_autoencoder.py [epochs]

The encoder does not give a picture one place on the map but a cloud of places, the decoder draws what lies at a place
of that cloud, and both learn from a lower bound of the picture's likelihood. They have seen nothing but shoes. In ten
epochs (the default) the bound of shoes that were held out comes to -202 nats, and by the bound alone one can tell what
is no shoe: the area under the ROC curve is 0.997. What comes out: variational_autoencoder.png, the map and where shoes
lie; variational_autoencoder.so and its C header, with the entry points `infer` (the bound), `encode` and `decode`.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from anomaly_autoencoder import SHOES, area_under_curve, shoes_and_all  # the example beside this one
from nervure import layers
from nervure.datasets import FASHION
from rich.progress import track

BATCH, LEARNING_RATE = 64, 0.002

wide = [layers.Dense(256, activation="relu"), layers.Dense(128, activation="relu")]
encoder = nv.Sequential([nv.Input((784,)), *wide, layers.Dense(4)], name="encoder")
wide = [layers.Dense(128, activation="relu"), layers.Dense(256, activation="relu")]
decoder = nv.Sequential([nv.Input((2,)), *wide, layers.Dense(784)], name="decoder")
adam, cross_entropy = nv.optimizers.Adam(), nv.losses.BinaryCrossentropy(from_logits=True)


@nv.network
def encode(picture: nv.Input((784,))):
    """The cloud that stands for a picture: its centre and the logarithm of its variance, on the map's two axes."""
    centre, log_variance = nv.split(encoder(picture), 2, axis=1)
    return {"centre": centre, "log_variance": log_variance}


@nv.network
def decode(place: nv.Input((2,))):
    """What lies at a place of the map."""
    return nv.sigmoid(decoder(place))


@nv.network
def bound(picture: nv.Input((784,))):
    """The lower bound of log p(picture), in nats, from one place drawn from its cloud."""
    centre, log_variance = encode(picture).values()
    place = centre + nv.exp(log_variance / 2) * nv.random.normal(centre.shape)  # so that gradients reach the encoder
    surprise = 784 * cross_entropy(picture, decoder(place))
    apart = (nv.square(centre) + nv.exp(log_variance) - log_variance - 1) / 2  # from the normal distribution (KL)
    return -surprise - nv.sum(apart, axis=1)


@nv.network
def learn(picture: nv.Input((784,)), rate: nv.Input(batch_shape=())):
    """One step up the bound."""
    loss = -nv.mean(bound(picture))
    nv.minimize(loss, [encoder, decoder], adam, rate)
    return {"loss": loss}


def batches(count, epochs):
    """(learning rate, which pictures) for each step."""
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        for chosen in rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH):
            yield LEARNING_RATE * (1 - epoch / epochs), chosen


def train(shoes, epochs):
    """Trains ``encoder`` and ``decoder``; returns the bound at every step."""
    model = nv.compile(bound, steps=[learn], dims={"batch": BATCH}, name="variational_autoencoder")
    feeds, bounds = model.session.host_arrays("learn"), []
    step = model.session.binding(feeds, entry="learn")  # reads them in place
    for rate, chosen in track(batches(len(shoes), epochs), "learning", len(shoes) // BATCH * epochs):
        feeds["rate"][...], feeds["picture"][:] = rate, shoes[chosen]
        step()
        bounds.append(-step.outputs[0].item())
    model.pull()
    return np.array(bounds)


def picture(program, centres, kind, side=16):
    """A figure: the map, drawn at ``side`` times ``side`` places, and where shoes lie on it."""
    axis = np.linspace(-2.4, 2.4, side, dtype=np.float32)
    places = np.stack(np.meshgrid(axis, axis[::-1]), axis=-1).reshape(-1, 1, 2)
    drawn = np.stack([program.run(None, {"place": place}, entry="decode")[0] for place in places])
    drawn = drawn.reshape(side, side, 28, 28).transpose(0, 2, 1, 3).reshape(28 * side, -1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.2), layout="constrained")
    left.imshow(drawn, cmap="gray_r", extent=(-2.55, 2.55, -2.55, 2.55))
    left.set(title="What the decoder draws at each place")
    for number in SHOES:
        right.scatter(*centres[kind == number].T, s=5, alpha=0.6, label=FASHION[number])
    right.set(title="Where the encoder puts shoes that were held out", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    right.legend(markerscale=3, loc="upper right")
    figure.savefig("variational_autoencoder.png", dpi=85)


def main(epochs=10):
    shoes, x, strange, kind = shoes_and_all()
    bounds = train(shoes, epochs)
    print(f"bound while learning: {bounds[:100].mean():.1f} nats at first, {bounds[-100:].mean():.1f} at the end")

    model = nv.compile(bound, entries=[encode, decode], name="variational_autoencoder")
    path = model.save("variational_autoencoder.so")
    program = nv.load(path)
    found = np.array([program(one[None])[0] for one in x])
    centres = np.concatenate([program.run(None, {"picture": one[None]}, entry="encode")[0] for one in x])
    drawn = np.concatenate([program.run(None, {"place": place[None]}, entry="decode")[0] for place in centres])
    error = ((drawn - x)[~strange] ** 2).mean()
    print(f"held-out shoes: bound {found[~strange].mean():.1f} nats, squared error of the drawings {error:.4f}")
    print(f"what is no shoe by the bound: area under the ROC curve {area_under_curve(-found, strange):.4f}")

    in_c = nv.run_in_c(path, x[:20])  # the same random numbers too
    np.testing.assert_allclose(in_c, found[:20], rtol=1e-4)
    np.testing.assert_allclose(nv.run_in_c(path, centres[:20], entry="decode"), drawn[:20], atol=1e-5)
    print(f"{path}: a C program comes to the same bounds and drawings")
    picture(program, centres, kind)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
