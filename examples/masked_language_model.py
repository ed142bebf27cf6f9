"""A masked language model (Devlin et al. 2019) fills the gaps of a text by looking at both sides.

    python examples/masked_language_model.py [epochs]

Of each line of 64 characters of Python's manual a fifth is hidden, and an encoder, without any label, learns what stood
there: half of the gaps in lines that are held out, after eight epochs (the default). On the way it finds out what
characters have in common, vowels above all. What comes out: masked_language_model.png, the characters where their
embeddings lie, and gaps that it fills; masked_language_model.so and its C header.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from rich.progress import track

LENGTH, WIDTH, BATCH, GAPS = 64, 64, 16, 0.2
GAP, SEEN = 127, -1  # a character that no text has; what is no gap is no target

embed = layers.Embedding(128, WIDTH)


@nv.network
def masked_language_model(tokens: nv.Input((LENGTH,), dtype="int32")):
    """Scores of what stands in each place: [batch, LENGTH] -> [batch, LENGTH, 128]."""
    x = layers.PositionEmbedding(LENGTH)(embed(tokens))
    for _ in range(3):
        x = layers.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, activation="gelu", norm_first=True
        )(x)
    return layers.Dense(128)(layers.LayerNorm()(x))


cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=SEEN)
adam = nv.optimizers.Adam()


@nv.network
def learn(tokens: nv.Input((LENGTH,), dtype="int32"), rate: nv.Input(batch_shape=())):
    """Makes gaps, other ones at every step, and learns to fill them."""
    gap = nv.random.bernoulli(GAPS, tokens.shape) > 0
    scores = masked_language_model(nv.where(gap, GAP, tokens))
    loss = nv.mean(cross_entropy(nv.where(gap, tokens, SEEN), scores))
    nv.minimize(loss, masked_language_model, adam, rate)
    return {"loss": loss}


def lines(text):
    """Nine tenths to learn from and a tenth to test, mixed by a fixed seed: int32 [n, LENGTH], ASCII codes."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    rows = codes[: len(codes) // LENGTH * LENGTH].reshape(-1, LENGTH)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[len(rows) // 10 :], rows[: len(rows) // 10]


def readable(codes):
    """Codes as text, gaps as underscores."""
    return "".join("_" if code == GAP else " " if code < 32 else chr(code) for code in codes)


def draw(path, codes, vectors, examples):
    """Characters at the two main axes of their embeddings; below, gaps and what was put into them."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, _, axes = np.linalg.svd(unit - unit.mean(0))
    x, y = axes[:2] @ (unit - unit.mean(0)).T
    kinds = {"vowels": "aeiouy", "consonants": "bcdfghjklmnpqrstvwxz", "digits": "0123456789"}
    plt.figure(figsize=(10, 7))
    for code, a, b in zip(codes, x, y, strict=True):
        kind = next((i for i, letters in enumerate(kinds.values()) if chr(code) in letters), 3 + (chr(code).isupper()))
        plt.text(a, b, "␣" if code == 32 else chr(code), color=f"C{kind}", size=15, ha="center", va="center")
    for i, name in enumerate([*kinds, "punctuation", "capitals"]):
        plt.plot([], [], "o", color=f"C{i}", label=name)
    plt.xlim(x.min() * 1.1, x.max() * 1.1)
    plt.ylim(y.min() * 1.1, y.max() * 1.1)
    plt.xticks([])
    plt.yticks([])
    plt.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)
    plt.title("What filling gaps has taught about characters: their embeddings, seen along two axes")
    plt.figtext(0.5, 0.01, "\n".join(examples), family="monospace", size=9, ha="center")
    plt.tight_layout(rect=(0, 0.08, 1, 1))
    plt.savefig(path, dpi=100)


def main(epochs=8):
    train, test = lines(nv.datasets.text())
    model = nv.compile(masked_language_model, steps=[learn], dims={"batch": BATCH})
    tokens, rate = np.zeros((BATCH, LENGTH), np.int32), np.zeros((), np.float32)
    advance = model.session.binding({"tokens": tokens, "rate": rate}, entry="learn")
    count = len(train) // BATCH
    rates = nv.schedules.CosineDecay(0.004, decay_steps=epochs * count)
    for epoch in range(epochs):
        order, losses = np.random.default_rng(epoch).permutation(len(train)), []
        for i in track(range(count), f"epoch {epoch + 1}/{epochs}"):
            tokens[...] = train[order[i * BATCH : (i + 1) * BATCH]]
            rate[...] = rates(epoch * count + i)
            advance()
            losses.append(advance.outputs[0].item())
        print(f"  loss: {np.mean(losses):.3f}")
    model.pull()

    path = nv.compile(masked_language_model).save("masked_language_model.so")
    program = nv.load(path)
    gap = np.random.default_rng(1).random(test.shape) < GAPS
    given = np.where(gap, GAP, test).astype(np.int32)
    scores = np.concatenate([program(line[None]) for line in given])
    likely = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    surprise = -np.take_along_axis(likely, test[..., None], -1)[..., 0][gap].mean() / np.log(2)
    filled = np.where(gap, scores.argmax(-1), test)
    often = (test[gap] == np.bincount(train.ravel()).argmax()).mean()
    right = (filled == test)[gap].mean()
    print(f"held-out gaps filled rightly: {right:.1%} (always with a blank: {often:.1%}), {surprise:.2f} bits each")
    np.testing.assert_allclose(nv.run_in_c(path, given[:20]), scores[:20], atol=1e-4)
    print("a C program fills them the same way")

    examples = [readable(row[i]) for i in range(2) for row in (given, filled)]
    print("\n".join(examples))
    codes = [code for code in range(32, 127) if (train == code).sum() > 300]
    draw("masked_language_model.png", codes, embed.weight.numpy()[codes], examples[:2])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
