"""A transformer encoder (Vaswani et al. 2017) tells spoken digits apart by the moments that count.

    python examples/transformer_classifier.py [epochs]

One second of sound is a sequence of 49 spectra. Encoder layers compare every moment with every other one, and a weight
for each moment, learned too, says how much it counts in the end. A fifth of what every speaker recorded of every digit
is held out; 99 % of it is heard rightly. What comes out: transformer_classifier.png, ten recordings and what counted in
each; transformer_classifier.so and its C header.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import spoken_digits
from spoken_digits import BANDS, held_out, log_mel

FRAMES, WIDTH, BATCH = 49, 64, 32

spectra = layers.Dense(WIDTH)
blocks = [
    layers.TransformerEncoderLayer(
        WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.1, activation="gelu", norm_first=True
    )
    for _ in range(2)
]
norm, importance, head = layers.LayerNorm(), layers.Dense(1), layers.Dense(10)


def listen(sound):
    """Scores of ten digits, and how much each moment counts: [batch, FRAMES, BANDS] -> [batch, 10], [batch, FRAMES]."""
    x = layers.PositionalEncoding()(spectra(sound))
    for block in blocks:
        x = block(x)
    x = norm(x)
    weight = nv.softmax(importance(x), axis=1)
    return head(nv.sum(weight * x, axis=1)), weight[:, :, 0]


@nv.network
def transformer_classifier(sound: nv.Input((FRAMES, BANDS))):
    """Scores of ten digits."""
    return listen(sound)[0]


@nv.network
def attended(sound: nv.Input((FRAMES, BANDS))):
    """How much each moment counts."""
    return listen(sound)[1]


def draw(path, sounds, digits, weights):
    """Spectra over time, and under each how much its moments count."""
    figure, axes = plt.subplots(4, 5, figsize=(10, 6.4), height_ratios=[3, 1, 3, 1], layout="constrained")
    for i, (sound, digit, weight) in enumerate(zip(sounds, digits, weights, strict=True)):
        above, below = axes[2 * (i // 5) : 2 * (i // 5) + 2, i % 5]
        above.imshow(sound.T, origin="lower", aspect="auto", cmap="magma", vmin=-2, vmax=2.5)
        above.set_title(f"heard: {digit}", size=10)
        below.fill_between(np.arange(FRAMES), weight, step="mid", color="C1")
        below.set_xlim(-0.5, FRAMES - 0.5)
        below.set_ylim(0, weights.max())
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle("One second of sound each (low tones below), and how much each moment counts")
    figure.savefig(path, dpi=100)


def main(epochs=12):
    sound, y, speaker = spoken_digits()
    x, test = log_mel(sound), held_out(y, speaker)
    x = (x - x[~test].mean()) / x[~test].std()
    rate = nv.schedules.CosineDecay(0.002, decay_steps=epochs * -(-(~test).sum() // BATCH))
    cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    transformer_classifier.compile(optimizer=nv.optimizers.Adam(rate), loss=cross_entropy, metrics=["accuracy"])
    transformer_classifier.fit(x[~test], y[~test], BATCH, epochs, validation_data=(x[test], y[test]))

    path = nv.compile(transformer_classifier, entries=[attended]).save("transformer_classifier.so")
    program = nv.load(path)
    scores = np.concatenate([program(one[None]) for one in x[test]])
    print(f"accuracy on held-out recordings: {(scores.argmax(1) == y[test]).mean():.1%}")
    np.testing.assert_allclose(nv.run_in_c(path, x[test]), scores, atol=1e-4)
    print("a C program gives the same scores")

    shown = [np.flatnonzero(test & (y == digit))[7] for digit in range(10)]
    weights = [program.run(None, {"sound": x[i : i + 1]}, entry="attended")[0][0] for i in shown]
    draw("transformer_classifier.png", x[shown], [program(x[i : i + 1]).argmax() for i in shown], np.array(weights))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
