"""A vision transformer (Dosovitskiy et al. 2021) reads a picture like a sentence, patch by patch.

    python examples/vision_transformer.py [epochs]

Pictures of clothes (Fashion-MNIST) are cut into 49 patches of 4 x 4 pixels; where each lay, the network has to find out
by itself. It names 84 % of the held-out ones in five epochs (the default), with a third of the data. A second entry
point of the program shows where it looks. What comes out: vision_transformer.png, ten pictures and the patches that its
class token looks at, in the background too; vision_transformer.so and its C header.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import FASHION, fashion_mnist

PATCH, SIDE, WIDTH, BATCH = 4, 7, 48, 64

patches = layers.PatchEmbedding(PATCH, WIDTH, class_token=True)
position = layers.PositionEmbedding(1 + SIDE * SIDE, "normal")
blocks = [
    layers.TransformerEncoderLayer(
        WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.0, activation="gelu", norm_first=True
    )
    for _ in range(3)
]
norm, head = layers.LayerNorm(), layers.Dense(10)


def read(picture):
    """The row of the class token after the last block, and how much it looked at each patch in each block."""
    x, looks = position(patches(picture)), []
    for block in blocks:
        x, scores = block(x, return_attention_scores=True)
        looks.append(nv.mean(scores[:, :, 0, 1:], axis=1))
    return x[:, 0], looks


@nv.network
def vision_transformer(picture: nv.Input((1, 28, 28))):
    """Scores of ten classes."""
    x = position(patches(picture))
    for block in blocks:
        x = block(x)
    return head(norm(x[:, 0]))


@nv.network
def look(picture: nv.Input((1, 28, 28))):
    """Which patches a decision was made of: [batch, SIDE, SIDE], of all blocks together."""
    _, looks = read(picture)
    return nv.reshape(nv.mean(nv.stack(looks), axis=0), -1, SIDE, SIDE)


def draw(path, pictures, names, looks):
    """Each picture, and beside it only what was looked at."""
    figure, axes = plt.subplots(4, 5, figsize=(9, 7.6), layout="constrained")
    for i, (picture, name, seen) in enumerate(zip(pictures, names, looks, strict=True)):
        above, below = axes[2 * (i // 5) : 2 * (i // 5) + 2, i % 5]
        above.imshow(picture[0], cmap="gray_r")
        above.set_title(name, size=10)
        below.imshow(picture[0], cmap="gray_r", alpha=0.35)
        below.imshow(seen, cmap="inferno", alpha=0.7, extent=(-0.5, 27.5, 27.5, -0.5), interpolation="bicubic")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle("What it takes each for, and where it looks")
    figure.savefig(path, dpi=100)


def main(epochs=5):
    (x, y), (x_test, y_test) = fashion_mnist()
    x, y = x[::3], y[::3]  # of each class a third: enough for a minute
    rate = nv.schedules.CosineDecay(0.003, decay_steps=epochs * -(-len(x) // BATCH))
    cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    vision_transformer.compile(optimizer=nv.optimizers.Adam(rate), loss=cross_entropy, metrics=["accuracy"])
    vision_transformer.fit(x, y, BATCH, epochs)

    path = nv.compile(vision_transformer, entries=[look]).save("vision_transformer.so")
    program = nv.load(path)
    scores = np.concatenate([program(picture[None]) for picture in x_test])
    print(f"accuracy on held-out pictures: {(scores.argmax(1) == y_test).mean():.1%}")
    np.testing.assert_allclose(nv.run_in_c(path, x_test[:200]), scores[:200], atol=1e-4)
    print("a C program gives the same scores")

    shown = x_test[np.linspace(3, len(x_test) - 4, 10).astype(int)]
    guesses = [FASHION[program(picture[None]).argmax()] for picture in shown]
    looks = [program.run(None, {"picture": picture[None]}, entry="look")[0][0] for picture in shown]
    draw("vision_transformer.png", shown, guesses, looks)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
