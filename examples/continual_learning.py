"""Elastic weights (Kirkpatrick et al. 2017) and a memory keep what was learned from fading.

    python examples/continual_learning.py [epochs]

Fashion-MNIST comes in five tasks of two clothes each. Elastic weights (EWC) measure how much weights matter (Fisher's
information, the entry point `measure`) and hold it by a spring. A memory of 500 pictures, a fair sample, is a state of
the program: `rehearse` learns new pictures together with old ones. Where a picture's task is known, naive training
forgets 9.0 points of accuracy, EWC 1.7, the memory 0.1; asked for one of all ten clothes 98.9, 98.9 (EWC cannot do
that) and 26.5. What comes out: continual_learning.png; continual_learning.so and its C header, which learn on.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from rich.progress import track

BATCH, RATE, SPRING, MEASURED = 32, 0.05, 100.0, 300  # Fisher's information is measured on 300 pictures
PICTURES, KINDS = nv.Input(batch_shape=(BATCH, 784)), nv.Input(batch_shape=(BATCH,), dtype="int32")
NUMBER = nv.Input(batch_shape=())

net = nv.Sequential([layers.Dense(128, "relu", input_dim=784), layers.Dense(128, "relu"), layers.Dense(10)], name="net")
cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
fisher = [nv.Variable(np.zeros(w.shape), trainable=False, name=f"fisher.{i}") for i, w in enumerate(net.weights)]
anchors = [nv.Variable(np.zeros(w.shape), trainable=False, name=f"anchor.{i}") for i, w in enumerate(net.weights)]
memory = layers.Reservoir(500, [nv.Input((784,), "uint8"), nv.Input((), "int32")])


def scores(pictures, kinds, known):
    """The net's scores; with ``known`` 1 those of the other tasks' clothes are out of the question."""
    own = nv.equal(nv.arange(10) // 2, nv.expand_dims(kinds // 2, 1))
    return net(pictures) - 1e9 * known * nv.cast(nv.logical_not(own), "float32")


@nv.network
def learn(picture: PICTURES, kind: KINDS, known: NUMBER, spring: NUMBER):
    """One step; a spring of 0 is naive training."""
    loss = nv.mean(cross_entropy(kind, scores(picture, kind, known)))
    moved = zip(fisher, net.weights, anchors, strict=True)
    pull = sum(nv.sum(matters * nv.square(weight - anchor)) for matters, weight, anchor in moved)
    nv.minimize(loss + spring / 2 * pull, net, "sgd", RATE)
    return {"loss": loss}


@nv.network
def measure(picture: nv.Input(batch_shape=(1, 784)), kind: nv.Input(batch_shape=(1,), dtype="int32"), known: NUMBER):
    """Fisher's information, one picture's part: its squared gradients for an answer of the net. The springs move on."""
    logits = scores(picture, kind, known)
    grads = nv.grad(nv.mean(cross_entropy(nv.random.categorical(logits), logits)), net.weights)
    for matters, grad, anchor, weight in zip(fisher, grads, anchors, net.weights, strict=True):
        nv.assign(matters, matters + nv.square(grad) / MEASURED)
        nv.assign(anchor, weight)
    return nv.sum(logits)


@nv.network
def rehearse(picture: PICTURES, kind: KINDS, known: NUMBER):
    """One step on new pictures and as many that are remembered; then the new ones are, or are not, by chance."""
    old, old_kind = memory.sample(BATCH)
    both, kinds = nv.concat([picture, nv.cast(old, "float32") / 255]), nv.concat([kind, old_kind])
    counts = nv.concat([nv.ones(BATCH), nv.ones(BATCH) * (memory.seen > 0)])  # at first there is nothing to remember
    loss = nv.mean(cross_entropy(kinds, scores(both, kinds, known)) * counts)
    nv.minimize(loss, net, "sgd", 2 * RATE)
    memory(nv.cast(nv.round(picture * 255), "uint8"), kind)
    return {"loss": loss}


def one_after_another(session, way, known, data, epochs):
    """Accuracy on each task (columns) after each task (rows)."""
    ((x, y), (x_test, y_test)), accuracy, rng = data, np.full((5, 5), np.nan), np.random.default_rng(0)
    entry, given = ("rehearse", {}) if way == "memory" else ("learn", {"spring": np.float32(SPRING * (way == "EWC"))})
    for task in track(range(5), f"{way}, the task {'is' if known else 'is not'} known"):
        own = np.flatnonzero(y // 2 == task)
        order = np.concatenate([rng.permutation(own) for _ in range(epochs)])
        for some in np.split(order, range(BATCH, len(order), BATCH))[: len(order) // BATCH]:
            session.run(None, {"picture": x[some], "kind": y[some], "known": np.float32(known)} | given, entry=entry)
        for some in order[:MEASURED, None] if way == "EWC" else ():
            session.run(None, {"picture": x[some], "kind": y[some], "known": np.float32(known)}, entry="measure")
        logits = np.concatenate([session.run(None, {"input": part})[0] for part in x_test.reshape(-1, 500, 784)])
        logits[known * (np.arange(10) // 2 != y_test[:, None] // 2) == 1] = -np.inf  # out of the question
        right = logits.argmax(axis=1) == y_test
        accuracy[task, : task + 1] = [np.mean(right[y_test // 2 == k]) for k in range(task + 1)]
    return accuracy


def draw(found):
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 7), layout="constrained")
    for axis, ((way, known), accuracy) in zip(axes.flat, found.items(), strict=True):
        axis.imshow(accuracy, cmap="YlGn", vmin=0, vmax=1, extent=(0.5, 5.5, 5.5, 0.5))
        for after, task in zip(*np.tril_indices(5), strict=True):
            share = accuracy[after, task]
            axis.text(task + 1, after + 1, f"{share:.0%}", ha="center", va="center", color="wk"[int(share < 0.7)])
        axis.set_title(f"{way}, asked for one of {'its task' if known else 'all ten'}")
    figure.suptitle("accuracy on each task (columns) after each task (rows)")
    figure.savefig("continual_learning.png", dpi=100)


def main(epochs=1):
    data = [(x.reshape(-1, 784), y) for x, y in nv.datasets.fashion_mnist()]
    steps, found = [learn, measure, rehearse], {}
    model = nv.compile(net, steps=steps, dims={"batch": 500})
    start = model.session.params()
    for known, question in ((1, "one of two clothes"), (0, "one of ten clothes")):
        for way in ("naive", "EWC", "memory"):
            model.session.set_params(start)
            model.session.reset()
            accuracy = found[way, known] = one_after_another(model.session, way, known, data, epochs)
            lost = np.nanmax(accuracy, axis=0)[:-1] - accuracy[-1, :-1]  # Chaudhry et al. 2018
            print(f"{question}, {way}: {100 * lost.mean():.1f} points forgotten")
    draw(found)

    model.pull()  # the last one, with its memory: it can go on learning wherever it is
    path = nv.compile(net, steps=steps, name="continual_learning").save("continual_learning.so")
    program, known = nv.load(path), np.zeros(20, np.float32)
    x, y = (a[: 20 * BATCH].reshape(20, BATCH, *a.shape[1:]) for a in data[0])
    feeds = [{"picture": a, "kind": b, "known": c} for a, b, c in zip(x, y, known, strict=True)]
    losses = [program.run(None, feed, entry="rehearse")[0] for feed in feeds]
    np.testing.assert_allclose(nv.run_in_c(path, x, y, known, entry="rehearse"), losses, rtol=1e-4)
    print(f"{path} remembers {program.states()['reservoir.seen']} pictures, and learns on in C as in Python")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
