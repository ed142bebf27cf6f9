"""Federated averaging (McMahan et al. 2017): eight clients learn digits together, and a ninth who lies is refused.

    python examples/federated.py [rounds]

The clients' data stay where they are, and are uneven: each has some kinds of digits more often than others. Flower (the
package flwr) carries weights to them and back. The ninth sends what is not finite, of a wrong shape, too long or too
large: it is left out, and the rounds go on. In 40 rounds (the default) the clients reach 99.4 % of the held-out digits,
training on all data in one place reaches 99.2 %. A second run shortens updates and adds noise, to hide who took part:
98.9 %. What comes out: federated.png; federated.so and its C header, what was learned as a program.
"""

import logging
import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import federated, layers
from nervure.datasets import digits
from rich.progress import track

CLIENTS, SPREAD, BATCH, EPOCHS = 8, 0.5, 16, 2  # clients, how even their data are (Dirichlet), passes in each round

conv, dense = layers.Conv2d(16, 3, padding="same", activation="relu"), layers.Dense(64, "relu")
net = nv.Sequential([nv.Input((1, 8, 8)), conv, layers.MaxPool2d(2), layers.Flatten(), dense, layers.Dense(10)])
loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
training = nv.Training(loss, nv.optimizers.SGD(0.1), ["accuracy"], batch=BATCH, weighted=True)


class Liar(federated.Client):
    """Does harm, in another way each round."""

    def update(self, blob):
        trained, samples, went = super().update(blob)
        weights, name = federated.unpack(trained), "dense.weight"
        lies = (
            {name: np.nan * weights[name]},
            {name: weights[name].T},
            {"x": np.ones(99_999)},
            {name: 999 * weights[name]},
        )
        return federated.pack(weights | lies[self.rounds % 4]), samples, went


def parts(y):
    """Which samples each client has: of every digit, shares from a Dirichlet distribution."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(CLIENTS, SPREAD), 10)
    owner = np.array([rng.choice(CLIENTS, p=shares[digit]) for digit in y])
    return [np.flatnonzero(owner == client) for client in range(CLIENTS)]


def trainer(session, rounds, samples, seed=0):
    """Whose steps grow smaller from round to round."""
    steps = rounds * EPOCHS * -(-samples // BATCH)
    rate = nv.schedules.CosineDecay(0.15, decay_steps=steps, alpha=0.25)
    return nv.Trainer(session.clone(), learning_rate=rate, seed=seed)


def together(session, averaging, train, test, rounds, name):
    """Federated training: the accuracy on test data after each round."""
    (x, y), curve, judge = train, [], nv.Trainer(session.clone())
    clients = []
    for i, rows in enumerate([*parts(y), parts(y)[0]]):
        kind = federated.Client if i < CLIENTS else Liar
        clients.append(kind(trainer(session, rounds, len(rows), seed=i), x[rows], y[rows], epochs=EPOCHS))
    grid = federated.LocalGrid([federated.client_app(client) for client in clients])
    for log in ("flwr", "nervure.federated"):
        logging.getLogger(log).setLevel(logging.ERROR)  # who is refused is printed in the end
    strategy = federated.Strategy(averaging)
    for _ in track(range(rounds), name):
        strategy.start(grid, strategy.first(), num_rounds=1)
        judge.set_weights(averaging.weights)
        curve.append(judge.evaluate(*test, return_dict=True)["accuracy"])
    return curve


def draw(curves, central, y):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for name, curve in curves.items():
        left.plot(range(1, len(curve) + 1), 100 * np.array(curve), label=f"{name}: {curve[-1]:.1%}")
    left.axhline(100 * central, ls="--", color="grey", label=f"in one place: {central:.1%}")
    left.set(xlabel="round", ylabel="held-out digits recognised (%)", ylim=(50, 100.5), title="Learning together")
    left.legend(loc="lower right")
    counts, base = np.array([np.bincount(y[rows], minlength=10) for rows in parts(y)]), np.zeros(CLIENTS)
    for digit, colour in enumerate(plt.cm.tab10.colors):
        right.bar(range(1, CLIENTS + 1), counts[:, digit], bottom=base, color=colour, label=str(digit))
        base += counts[:, digit]
    right.set(xlabel="client", ylabel="samples", title="What each client has")
    right.legend(title="digit", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig("federated.png", dpi=100)


def main(rounds=40):
    train, test = digits()
    session = nv.compile(net, training=training).session
    alone = trainer(session, rounds, len(train[1]))
    alone.fit(*train, epochs=EPOCHS * rounds, verbose=0)
    central = alone.evaluate(*test, return_dict=True)["accuracy"]
    print(f"in one place: {central:.1%} of the held-out digits")

    curves, start = {}, nv.Trainer(session).weights()
    plain = federated.Averaging(start, max_norm=10)
    private = federated.Averaging(start, max_norm=10, clip=1.0, noise=0.05)
    for name, averaging in {"eight clients": plain, "with clipping and noise": private}.items():
        curves[name] = together(session, averaging, train, test, rounds, name)
        print(f"{name}: {curves[name][-1]:.1%} of the held-out digits")
    print(
        f"noise of {private.noise} hides little among {CLIENTS} clients: epsilon {private.epsilon():,.0f} at delta 1e-5"
    )
    for done in plain.rounds[:4]:
        print(f"round {done.number}: {len(done.accepted)} averaged, refused: {', '.join(done.refused.values())}")
    print(f"{sum(len(done.refused) for done in plain.rounds)} updates refused in {rounds} rounds")
    draw(curves, central, train[1])

    net.load_state_dict(plain.weights)
    path = nv.compile(net, name="federated").save("federated.so")
    program = nv.load(path)
    answers = np.concatenate([program(picture[None]) for picture in test[0]])
    np.testing.assert_allclose(nv.run_in_c(path, test[0]), answers, rtol=1e-5, atol=1e-5)
    print(f"{path} in C answers as in Python: {(answers.argmax(axis=1) == test[1]).mean():.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
