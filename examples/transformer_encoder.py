"""A small transformer that reads a sentence of token numbers: a network as a plain Python function.

python examples/transformer_encoder.py
"""

import nervure as nv
import numpy as np
from nervure import layers

WORDS, LENGTH, WIDTH = 1000, 32, 64


@nv.network(seed=7)
def encoder(tokens: nv.Input((LENGTH,), dtype="int32")):
    """Class probabilities and a vector of length one for each sentence; token 0 is padding."""
    is_word = tokens != 0
    x = layers.Embedding(WORDS, WIDTH)(tokens) * WIDTH**0.5
    x = layers.PositionalEncoding()(x)
    for _ in range(2):
        block = layers.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=128, activation="gelu")
        x = block(x, mask=is_word[:, None, None, :])

    # The mean over the words, without the padding: operators and numpy's functions work on tensors.
    weight = is_word.astype("float32")[:, :, None]
    vector = nv.sum(x * weight, axis=1) / nv.maximum(nv.sum(weight, axis=1), 1.0)
    classes = layers.Dense(5, activation="softmax", name="classes")(vector)
    return {"classes": classes, "vector": nv.normalize(vector)}


encoder.summary()
compiled = nv.compile(encoder, target="host")

sentence = np.zeros((1, LENGTH), np.int32)
sentence[0, :6] = [12, 7, 256, 33, 801, 2]
classes, vector = compiled(sentence)
print("probabilities:", classes.round(3))

expected = encoder(sentence)  # by the reference interpreter
assert np.abs(classes - expected["classes"]).max() < 1e-4
assert np.abs(vector - expected["vector"]).max() < 1e-4

print("saved:", compiled.save("encoder.so"), f"{compiled.report.arena_bytes:,} bytes of RAM")
