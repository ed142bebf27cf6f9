"""A perceptron learns from its mistakes, and meets XOR, which it cannot learn (Rosenblatt 1958).

    python examples/perceptron.py [epochs]

First the neuron of the textbooks, z = w x + b, in numbers. Then Rosenblatt's rule, which is no gradient but a step of
its own: where the answer is wrong, the input is added to the weights or taken away. Two kinds of iris can be parted by
a line: after nine corrections there is no mistake. XOR cannot (Minsky and Papert 1969): soon the weights are those of
an earlier epoch, and so they will go round for ever. What comes out: perceptron.png, the lines after each correction;
perceptron.so and its C header, the neuron that knows the irises.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure.datasets import iris
from rich.progress import track


class Perceptron:
    """A neuron that says 0 or 1; Rosenblatt's rule is the step `learn`, which returns target - answer."""

    def __init__(self, weights, bias=0.0):
        w, b = nv.Variable(weights, name="w"), nv.Variable(bias, name="b")
        shape = nv.Input(batch_shape=w.shape)

        @nv.network
        def neuron(x: shape):
            return nv.sum(w * x) + b

        @nv.network
        def perceptron(x: shape):
            return nv.cast(neuron(x) > 0, "float32")

        @nv.network
        def learn(x: shape, target: nv.Input(batch_shape=())):
            error = target - perceptron(x)
            nv.assign(w, w + error * x)
            nv.assign(b, b + error)
            return error

        self.w, self.b, self.neuron, self.perceptron, self.learn = w, b, neuron, perceptron, learn

    def train(self, x, y, epochs, name):
        """Shows all samples again and again, until none is mistaken or an epoch ends with the weights of an earlier
        one. Returns [w..., b] at first and after each epoch, the same after each correction, and the mistakes of each
        epoch."""
        model = nv.compile(self.perceptron, steps=[self.learn])
        ends, lines, mistakes = [self.line()], [], []
        for _ in track(range(epochs), name):
            mistakes.append(0)
            for a, t in zip(x, y, strict=True):
                (error,) = model.session.run(None, {"x": a, "target": t}, entry="learn")
                if error:
                    model.pull()
                    lines.append(self.line())
                    mistakes[-1] += 1
            ends.append(self.line())
            if not mistakes[-1] or ends[-1] in ends[:-1]:
                break
        return ends, lines, mistakes

    def line(self):
        return [*self.w.numpy().tolist(), self.b.numpy().item()]


def draw(axes, x, y, lines, title):
    low, high = x.min(axis=0) - 0.5, x.max(axis=0) + 0.5
    across = np.array([low[0], high[0]])
    for i, (w1, w2, b) in enumerate(lines):
        last = {"color": "black", "linewidth": 2.5, "zorder": 2} if i == len(lines) - 1 else {"color": "0.8"}
        if w2:
            axes.plot(across, -(w1 * across + b) / w2, **last)
        elif w1:
            axes.axvline(-b / w1, **last)
    axes.scatter(*x.T, c=y, cmap="coolwarm", s=60 if len(x) > 4 else 400, edgecolors="white", zorder=3)
    axes.set(title=title, xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def main(epochs=100):
    # 1. A neuron, exactly.
    textbook = Perceptron([0.5, -0.2, 0.3])
    z = nv.compile(textbook.neuron)(np.array([1, 0, 1], np.float32))
    print(f"0.5 x 1 - 0.2 x 0 + 0.3 x 1 = {z:.1f}")
    assert z == np.float32(0.8)

    # 2. What a line can part, it learns.
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    data, kinds = iris()
    few = np.random.default_rng(0).permutation(np.flatnonzero(kinds < 2))  # setosa, versicolor
    x, y = np.ascontiguousarray(data[few][:, [0, 2]]), kinds[few].astype(np.float32)
    flowers = Perceptron(np.zeros(2))
    _, lines, mistakes = flowers.train(x, y, epochs, "iris")
    print(f"iris: {len(lines)} corrections, and {mistakes[-1]} mistakes in epoch {len(mistakes)}")
    draw(axes[0], x, y, lines, f"Two kinds of iris: after {len(lines)} corrections no mistake")
    axes[0].set(xlabel="length of the sepal (cm)", ylabel="length of the petal (cm)")

    # 3. What no line can part, it does not.
    corners, xor = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.array([0, 1, 1, 0], np.float32)
    ends, lines, mistakes = Perceptron(np.zeros(2)).train(corners, xor, epochs, "xor")
    print(
        f"xor: {mistakes[-1]} mistakes in epoch {len(mistakes)}, its weights are those of epoch {ends.index(ends[-1])}"
    )
    draw(axes[1], corners, xor, lines, "XOR: no line parts it, the weights go round for ever")
    axes[1].set(xlabel="a", ylabel="b")
    figure.savefig("perceptron.png", dpi=100)

    # The neuron that knows irises, as a program.
    program = nv.load(path := nv.compile(flowers.perceptron).save("perceptron.so"))
    answers = np.array([program(flower) for flower in x])
    assert (nv.run_in_c(path, x) == answers).all()
    print(f"{path}: {(answers == y).mean():.0%} of the flowers, and a C program answers the same")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
