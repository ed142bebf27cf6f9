"""A deep belief network (Hinton, Osindero, Teh 2006) learns digits from all pictures, and their names from 50 of them.

    python examples/deep_belief_network.py [epochs]

Three restricted Boltzmann machines, each over the one below, first learn to dream up digits, by contrastive divergence
and without labels. Stacked they are a network of three layers, which fine-tuning trains to name digits. From all 1,437
labels it gets 98.9 % of the held-out digits right; from five labels a digit 86.7 % (the mean of five draws), where the
same network without dreams gets 80.1 %. What comes out: deep_belief_network.png, what the first machine's units look
for, and both accuracies; deep_belief_network.so and its C header, with all steps, so that a device can dream too.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import digits
from rich.progress import track

PIXELS, UNITS, BATCH, DRAWS, EACH = 64, 256, 50, 5, 5
PICTURES = nv.Input(batch_shape=(BATCH, PIXELS))

machines = [layers.RBM(UNITS, name=f"rbm_{i}") for i in (1, 2, 3)]
network = nv.Sequential([nv.Input((PIXELS,)), *machines, layers.Dense(10, name="names")], name="deep_belief_network")
cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
momentum = nv.optimizers.SGD(momentum=0.9, weight_decay=2e-4)


def dreaming(depth):
    """The step of one machine: what it is given becomes likelier than what it makes of it (CD-1)."""

    def dream(x: PICTURES, rate: nv.Input(batch_shape=())):
        for below in machines[:depth]:
            x = below(x)
        machine, x = machines[depth], nv.stop_gradient(x)
        dreamt = nv.stop_gradient(machine.gibbs(x))
        loss = nv.mean(machine.free_energy(x)) - nv.mean(machine.free_energy(dreamt))
        nv.minimize(loss, machine, momentum, rate)
        return nv.mean(nv.square(x - dreamt))

    return nv.network(dream, name=f"dream_{depth + 1}")


@nv.network
def fine_tune(x: PICTURES, y: nv.Input(batch_shape=(BATCH,), dtype="int32"), rate: nv.Input(batch_shape=())):
    """The whole stack learns names."""
    loss = nv.mean(cross_entropy(y, network(x)))
    nv.minimize(loss, network, "adam", rate)
    return loss


STEPS = [dreaming(0), dreaming(1), dreaming(2), fine_tune]


def learn(session, entry, count, rate, rng, **data):
    """So many steps on batches drawn from the data, which the compiled step reads in place; the rate falls to 0."""
    fed = {name: np.zeros((BATCH, *array.shape[1:]), array.dtype) for name, array in data.items()}
    fed["rate"] = np.zeros((), np.float32)
    step, total = session.binding(fed, entry=entry), len(data["x"])
    order = np.concatenate([rng.permutation(total) for _ in range(count * BATCH // total + 1)])
    for t, batch in enumerate(order[: count * BATCH].reshape(count, BATCH)):
        fed["rate"][...] = rate * (1 - t / count)
        for name, array in data.items():
            fed[name][...] = array[batch]
        step()


def glorot(params, rng):
    """First weights (Glorot and Bengio 2010)."""
    limits = {name: np.sqrt(6 / sum(a.shape)) * (a.ndim == 2) for name, a in params.items()}
    return {name: rng.uniform(-limits[name], limits[name], a.shape).astype(np.float32) for name, a in params.items()}


def picture(weight, scores):
    """What the first machine's units look for, and what five labels a digit are worth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), width_ratios=(1.25, 1), layout="constrained")
    strongest = weight.T[np.argsort(-np.abs(weight).sum(axis=0))[:88]].reshape(8, 11, 8, 8)
    tiles = np.pad(strongest, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan).transpose(0, 2, 1, 3)
    left.imshow(tiles.reshape(8 * 9, 11 * 9), cmap="RdBu_r", vmin=-1.5, vmax=1.5)
    left.set(title="What units of the first machine look for", xticks=(), yticks=())
    ways = ("from labels alone", "after dreaming")
    bars = right.bar(ways, scores.mean(axis=0), color=("#aaaaaa", "crimson"), width=0.6)
    right.bar_label(bars, fmt="%.1f %%", label_type="center", color="white", weight="bold", size=16)
    right.plot(ways, scores.T, "o-", color="#333333", lw=0.8, ms=4)
    right.set(title=f"Held-out digits right, from {EACH} labels a digit", ylim=(0, 100), ylabel="%")
    figure.savefig("deep_belief_network.png", dpi=100)


def main(epochs=50):
    (x, y), (x_test, y_test) = ((x.reshape(len(x), -1), y) for x, y in digits())
    model = nv.compile(network, steps=STEPS, dims={"batch": len(x_test)})
    session, scores = model.session, np.zeros((DRAWS, 2))

    def named(params, x, y, count, rate):
        """Fine-tunes these weights, the optimizer fresh; the part of held-out digits that are right, in %."""
        session.reset()
        session.set_params(params)
        learn(session, "fine_tune", count, rate, rng, x=x, y=y)
        return 100 * np.mean(model(x_test).argmax(axis=1) == y_test)

    for draw in track(range(DRAWS), f"{DRAWS} draws of {10 * EACH} labels"):
        rng = np.random.default_rng(draw)
        few = np.concatenate([rng.permutation(np.flatnonzero(y == name))[:EACH] for name in range(10)])
        first = glorot(session.params(), rng)
        scores[draw, 0] = named(first, x[few], y[few], 4 * epochs, 0.003)
        session.reset()
        session.set_params(first)
        for i in (1, 2, 3):
            learn(session, f"dream_{i}", epochs * len(x) // BATCH, 0.1, rng, x=x)
        dreamt = session.params()
        scores[draw, 1] = named(dreamt, x[few], y[few], 4 * epochs, 0.003)
    alone, after = scores.mean(axis=0)
    print(f"{EACH} labels a digit: {after:.1f}% of the held-out digits, {alone:.1f}% without dreams")
    print(f"all labels: {named(dreamt, x, y, 30 * epochs, 0.002):.1f}% of the held-out digits")

    model.pull()
    picture(dreamt["rbm_1.weight"], scores)
    path = nv.compile(network, steps=STEPS, dims={"batch": len(x_test)}).save("deep_belief_network.so")
    assert np.allclose(nv.run_in_c(path, x_test), model(x_test), atol=1e-4)
    print(f"{path}: Python and a C program name {len(x_test)} digits alike")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
