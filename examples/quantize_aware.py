"""A convolutional network with weights of 4 bits and activations of 8, trained to be that small.

    python examples/quantize_aware.py [epochs]

A network of LeNet's class learns Fashion-MNIST in floating point, is quantized, and is trained a little further as it
is quantized: the weights move until their rounded values are good ones, and so do the scales. What the training
computes is what the finished program computes, bit for bit. What comes out: quantized.onnx, a QDQ file that other tools
run too; quantized.so and its C header, the program.
"""

import sys

import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import fashion_mnist

EPOCHS, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 5, 64
MORE = max(1, EPOCHS // 3)  # epochs of the quantized network
(x_train, y_train), (x_test, y_test) = fashion_mnist()


def learn(net, rate, epochs):
    steps = epochs * -(-len(x_train) // BATCH)
    optimizer = nv.optimizers.Adam(nv.schedules.CosineDecay(rate, decay_steps=steps))
    net.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = net.evaluate(x_test, y_test, BATCH)[1]
    net.fit(x_train, y_train, BATCH, epochs)
    return before, net.evaluate(x_test, y_test, BATCH)[1]


net = nv.Sequential(
    [
        nv.Input((1, 28, 28)),
        layers.Conv2d(16, 5, padding="same", use_bias=False),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Conv2d(32, 5, use_bias=False),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.3),
        layers.Dense(10, activation="softmax"),
    ],
    name="fashion_cnn",
)
_, in_float = learn(net, 0.002, EPOCHS)

# Two hundred pictures give the activations their first scales. Batch norms are folded into the weights from here on.
small = nv.quantize_aware(net, x_train[:200], weight_bits=4, activation_bits=8)
rounded, trained = learn(small, 0.0005, MORE)
print(f"float {in_float:.2%}, rounded to 4 bits {rounded:.2%}, trained with 4 bits {trained:.2%} of the test pictures")
moved = {n: np.abs(a).max() for n, a in small.state_dict().items() if n.endswith(".scale")}
print("the scale that was moved most:", max(moved, key=moved.get), f"by {max(moved.values()):.1%}")

small.export("quantized.onnx")
model = nv.compile("quantized.onnx")
program = nv.load(model.save("quantized.so"))
some = x_test[:1000]
outputs = np.concatenate([program(picture[None])[0][None] for picture in some])
same = np.array_equal(outputs, small.predict(some, BATCH))
size, whole = (nv.compile(n).report.artifact_bytes / 1024 for n in (small, net))
print(f"quantized.so: {size:.0f} KB instead of {whole:.0f}; {len(some)} outputs as in training, bit for bit: {same}")
