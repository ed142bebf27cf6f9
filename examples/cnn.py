"""A convolutional network for pictures of 28 by 28 pixels, compiled and timed.

    python examples/cnn.py

Its weights are random, this is about the program around them; fashion_cnn.py trains such a network.
"""

import time

import nervure as nv
import numpy as np
from nervure import layers

net = nv.Sequential(
    [
        layers.Conv2d(32, 3, padding="same", use_bias=False, input_shape=(1, 28, 28)),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.DepthwiseConv2d(3, padding="same", activation="relu"),
        layers.Conv2d(64, 1, activation="relu"),
        layers.MaxPool2d(2),
        layers.GlobalAvgPool2d(),
        layers.Dropout(0.2),
        layers.Dense(10, activation="softmax"),
    ],
    name="cnn",
)
net.summary()

compiled = nv.compile(net, target="host")
picture = np.random.default_rng(0).random((1, 1, 28, 28), dtype=np.float32)

# Calling the network itself runs the reference interpreter: slow, and the truth that the program is held against.
difference = np.abs(compiled(picture) - net(picture)).max()
print(f"largest difference from the reference: {difference:.1e}")
assert difference < 1e-5

started = time.perf_counter()
for _ in range(1000):
    compiled(picture)
print(f"{(time.perf_counter() - started) * 1000:.0f} microseconds a picture")

report = compiled.report
print(f"weights {report.weights_bytes:,}, code {report.code_bytes:,}, RAM {report.arena_bytes:,} bytes")
print("saved:", compiled.save("cnn.so"))
