"""A trained network becomes half as large and nearly twice as fast, and says what that cost.

    python examples/pruning.py [epochs]

A small network with batch norms and residual sums learns Fashion-MNIST. Then channels are taken out until half of the
multiply-adds are left, the smallest ones, each with all that hangs on it. What is left is trained a little further, and
learns from the dense network, too. A second time, zeros take the place of weights, a vector at a time, which the
compiled kernels leave out. What comes out: channels.onnx and block.onnx, networks for any tool; pruned.so and its C
header, the program.
"""

import sys

import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import fashion_mnist

EPOCHS, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 6, 64
MORE = max(1, EPOCHS // 3)  # epochs after pruning
(x_train, y_train), (x_test, y_test) = fashion_mnist()
some = np.random.default_rng(0).permutation(len(x_train))[:20000]  # a third of the pictures: this is an example
x_train, y_train = x_train[some], y_train[some]


def unit(x, channels, stride=1):
    x = layers.Conv2d(channels, 3, strides=stride, padding=1, use_bias=False)(x)
    return layers.BatchNorm()(x)


@nv.network
def fashion_residual(x: nv.Input((1, 28, 28))):
    x = nv.relu(unit(x, 16, stride=2))
    x = nv.relu(x + unit(nv.relu(unit(x, 32)), 16))
    x = nv.relu(unit(x, 64, stride=2))
    x = nv.relu(x + unit(nv.relu(unit(x, 64)), 64))
    return layers.Dense(10)(nv.mean(x, (2, 3)))


rate = nv.schedules.CosineDecay(0.003, decay_steps=EPOCHS * -(-len(x_train) // BATCH))
loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
fashion_residual.compile(nv.optimizers.Adam(rate), loss, metrics=["accuracy"])
fashion_residual.fit(x_train, y_train, BATCH, EPOCHS)

how = {"data": (x_train, y_train), "test": (x_test, y_test), "epochs": MORE, "batch_size": BATCH, "distill": True}
found = {
    "channels": nv.prune(fashion_residual, "channels.onnx", macs="0.5x", criterion="l2", **how),
    "block": nv.prune(fashion_residual, "block.onnx", structure="block", sparsity=0.75, **how),
}
for name, made in found.items():
    report = made.report
    dense, pruned = report.totals["dense"], report.totals["pruned"]
    print(f"{name}: {pruned['macs'] / dense['macs']:.0%} of the multiply-adds", end=", ")
    print(f"{pruned['library'] / dense['library']:.0%} of the bytes, {report.latency['ratio']:.0%} of the time")
    right = report.accuracy
    print(f"  accuracy {right['dense']:.2%}, {right['pruned']:.2%} when pruned, {right['tuned']:.2%} when trained on")
    for row in report.layers:
        print(f"  {row['name']:<14} {row['kept']:>4.0%} of its weights, {row['us']['dense']:6.1f} us before, ", end="")
        print("gone" if row["us"]["pruned"] is None else f"{row['us']['pruned']:6.1f} after")
    for note in report.notes:
        print(" ", note)

model = found["channels"].model
program = nv.load(model.save("pruned.so"))
guesses = np.array([program(picture[None])[0].argmax() for picture in x_test])
print(f"pruned.so, {model.report.artifact_bytes / 1024:.0f} KB: {(guesses == y_test).mean():.2%} of the test pictures")
