"""A small transformer that guesses the next word, trained here: real text, an embedding table, true float weights.

The text is Python's own documentation of its statements (``pydoc_data.topics``, part of every Python).
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import nervure as nv
import numpy as np
from nervure import layers
from nervure.compiler.ir import Graph

WORDS, LENGTH, WIDTH, BLOCKS = 2048, 32, 128, 2
BATCH, STEPS = 16, 400


@cache
def text() -> np.ndarray:
    """The documentation as numbers of words: the commonest ones, 0 for every other."""
    from pydoc_data.topics import topics

    found = re.findall(r"\w+|[^\w\s]", " ".join(topics[k] for k in sorted(topics)).lower())
    common = [w for w, _ in sorted(Counter(found).items(), key=lambda p: (-p[1], p[0]))[: WORDS - 1]]
    numbers = {w: i + 1 for i, w in enumerate(common)}
    return np.array([numbers.get(w, 0) for w in found], np.int32)


def windows(count: int, part: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of text and the words that follow each of their words. The last tenth of the text is the test's."""
    whole = text()
    cut = len(whole) * 9 // 10
    own = whole[:cut] if part == "train" else whole[cut:]
    at = np.random.default_rng(seed).integers(0, len(own) - LENGTH - 1, count)
    pieces = np.stack([own[i : i + LENGTH + 1] for i in at])
    return pieces[:, :-1], pieces[:, 1:]


@nv.network(seed=3)
def network(tokens: nv.Input((LENGTH,), dtype="int32")):  # type: ignore[no-untyped-def, valid-type]
    x = layers.PositionEmbedding(LENGTH)(layers.Embedding(WORDS, WIDTH)(tokens))
    for _ in range(BLOCKS):
        block = layers.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", norm_first=True)
        x = block(x, is_causal=True)
    return layers.Dense(WORDS, name="next")(layers.LayerNorm(WIDTH)(x))


def trained(steps: int = STEPS) -> tuple[Graph, float]:
    """The graph with trained weights (one piece of text at a time), and the loss of the last steps."""
    x, y = windows(BATCH * steps, "train")
    rate = nv.schedules.CosineDecay(0.003, decay_steps=steps)
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=nv.optimizers.Adam(rate), loss=loss)
    history = network.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, shuffle=False)
    return network.to_graph({"batch": 1}), float(history.history["loss"][-1])
