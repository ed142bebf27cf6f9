"""The smallest network that matters: a multilayer perceptron that computes XOR, as a native library.

python examples/mlp_xor.py
"""

import nervure as nv
import numpy as np

# As in the Keras books: two inputs, a hidden layer, one output.
model = nv.Sequential(name="xor")
model.add(nv.layers.Dense(2, input_dim=2, activation="relu", name="hidden"))
model.add(nv.layers.Dense(1, activation="sigmoid", name="output"))
model.summary()

# The weights, found by hand: relu(a + b) - 2 relu(a + b - 1) is 1 where exactly one input is.
model.load_state_dict(
    {
        "hidden.weight": [[1, 1], [1, 1]],
        "hidden.bias": [0, -1],
        "output.weight": [[10], [-20]],
        "output.bias": [-5],
    }
)

# Compiled for this machine; one program for a batch of one, one for all four rows of the table.
compiled = nv.compile(model, target="host", dims={"batch": (1, 4)})
table = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
for (a, b), y in zip(table, compiled(table), strict=True):
    print(f"{a:.0f} xor {b:.0f} = {y[0]:.3f}")
assert (np.round(compiled(table)) == [[0], [1], [1], [0]]).all()

# The library stands on its own: Python needs numpy to run it, C (see xor.h) nothing.
path = compiled.save("xor.so")
print(f"{path}: {compiled.report.artifact_bytes:,} bytes, {compiled.report.arena_bytes} bytes of RAM")
assert nv.load(path)(table[1:2])[0, 0] > 0.99
