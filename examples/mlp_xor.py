"""The smallest network that matters: a multilayer perceptron learns XOR and becomes a native library.

    python examples/mlp_xor.py

As in the textbooks that use Keras; what is nervure's own comes at the end.
"""

import nervure as nv
import numpy as np
from nervure import Sequential
from nervure.layers import Dense

x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
y = np.array([[0], [1], [1], [0]], np.float32)

model = Sequential(name="xor")
model.add(Dense(8, input_dim=2, activation="relu"))
model.add(Dense(1, activation="sigmoid"))
model.compile(loss="binary_crossentropy", optimizer=nv.optimizers.Adam(0.02), metrics=["accuracy"])
model.summary()

history = model.fit(x, y, epochs=500, batch_size=4, verbose=0)
loss, accuracy = model.evaluate(x, y)
print(f"loss {history.history['loss'][0]:.3f} -> {loss:.3f}, accuracy {accuracy:.0%}")
for (a, b), found in zip(x, model.predict(x), strict=True):
    print(f"{a:.0f} xor {b:.0f} = {found[0]:.3f}")

# The trained network as a library: Python needs numpy to run it, C (see xor.h) nothing.
compiled = nv.compile(model, target="host")
path = compiled.save("xor.so")
print(f"{path}: {compiled.report.artifact_bytes:,} bytes, {compiled.report.arena_bytes} bytes of RAM")
program = nv.load(path)
assert [round(float(program(row[None])[0, 0])) for row in x] == [0, 1, 1, 0]
