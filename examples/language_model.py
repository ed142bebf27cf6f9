"""A decoder-only transformer (Radford et al. 2018) learns English letter by letter, and writes it.

    python examples/language_model.py [epochs]

It reads Python's own manual in windows of 64 characters and learns to foretell each next one; a tenth of the windows is
held out, and takes 1.8 bits a character after five epochs (the default). One set of weights serves two entry points: a
whole text at once, and one character at a time, whose keys and values stay in a cache inside the program, so that texts
may be far longer than the window. What comes out: language_model.png, held-out text coloured by its surprise;
language_model.so (1 MB) and its C header; generate, a C program (examples/c/generate.c) that writes with it.
"""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers

LENGTH, WIDTH, BATCH = 64, 64, 16
SOURCE = Path(__file__).with_name("c") / "generate.c"

embed = layers.Embedding(128, WIDTH)  # a token is a character, its number is that of ASCII
blocks = [
    layers.TransformerDecoderLayer(
        WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, activation="gelu", norm_first=True, window=LENGTH
    )
    for _ in range(3)
]
norm, head = layers.LayerNorm(), layers.Dense(128)


def logits(tokens, stateful):
    """Scores of every character to come next, behind each token: [batch, time] -> [batch, time, 128]."""
    x = embed(tokens)
    for block in blocks:
        x = block(x, stateful=stateful)
    return head(norm(x))


@nv.network
def language_model(tokens: nv.Input((LENGTH,), dtype="int32")):
    """A whole text at once: what is trained."""
    return logits(tokens, stateful=False)


@nv.network
def step(token: nv.Input(batch_shape=(1, 1), dtype="int32")):
    """One more character of a text: those before it are in the cache."""
    return {"scores": logits(token, stateful=True)}


def windows(text):
    """Nine tenths to learn from and a tenth to test, mixed by a fixed seed: int32 [n, LENGTH + 1]."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    rows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[len(rows) // 10 :], rows[: len(rows) // 10]


def write(program, prompt, count, temperature=0.0, seed=0):
    """``prompt`` and ``count`` characters more: the likeliest ones, or drawn, the hotter the more freely."""
    rng, token = np.random.default_rng(seed), np.zeros((1, 1), np.int32)
    advance = program.binding({"token": token}, entry="step")
    program.reset()
    text = prompt.encode("ascii")
    for place in range(len(prompt) + count):
        if place >= len(prompt):
            scores = advance.outputs[0][0, 0].astype(float)
            noise = rng.gumbel(size=128) * temperature  # the largest of scores / temperature + noise is a fair draw
            text += bytes([(scores + noise).argmax()])
        token[...] = text[place]
        advance()
    return text.decode("ascii")


def draw(path, tokens, surprise, written):
    """Held-out characters [lines, LENGTH] on the colour of their surprise, in bits; below, what was written."""
    plt.figure(figsize=(10, 6.2))
    shown = plt.imshow(surprise, cmap="YlOrRd", vmin=0, vmax=8, aspect="auto")
    for (line, column), code in np.ndenumerate(tokens):
        colour = "w" if surprise[line, column] > 5 else "k"
        plt.text(column, line, chr(code), ha="center", va="center", family="monospace", size=8, color=colour)
    plt.colorbar(shown, label="surprise [bits]", pad=0.02)
    plt.title("Text that it has never read, and how much each character surprised it")
    plt.xticks([])
    plt.yticks([])
    plt.xlabel("It writes:  " + written.replace("\n", " ")[:92], family="monospace", size=8, labelpad=12)
    plt.tight_layout()
    plt.savefig(path, dpi=100)


def main(epochs=5):
    train, test = windows(nv.datasets.text())
    rate = nv.schedules.CosineDecay(0.004, decay_steps=epochs * -(-len(train) // BATCH))
    cross_entropy = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    language_model.compile(optimizer=nv.optimizers.Adam(rate), loss=cross_entropy)
    held_out = (test[:, :-1], test[:, 1:])
    curves = language_model.fit(train[:, :-1], train[:, 1:], BATCH, epochs, validation_data=held_out).history
    print(f"held-out text: {curves['val_loss'][-1] / np.log(2):.2f} bits a character")

    path = nv.compile(language_model, entries=[step], name="language_model").save("language_model.so")
    program = nv.load(path)
    rows = test[:12]
    whole = np.concatenate([program(row[None, :-1]) for row in rows])
    likely = whole - np.log(np.exp(whole).sum(-1, keepdims=True))
    surprise = -np.take_along_axis(likely, rows[:, 1:, None], -1)[..., 0] / np.log(2)

    tokens = [program.run(None, {"token": rows[:1, i : i + 1]}, entry="step")[0] for i in range(LENGTH)]
    apart = np.abs(np.concatenate(tokens, 1) - whole[:1]).max()
    assert apart < 1e-4, "the cache holds something else"
    print(f"one by one with the cache: the same scores to {apart:.0e}")

    written = write(program, "The function ", 300, temperature=0.7)
    draw("language_model.png", np.maximum(rows[:, 1:], 32), surprise, written)
    print(f"drawn at temperature 0.7:\n{written}\n")
    command = nv.build_c(SOURCE, path)
    said = subprocess.run([*command, "The function ", "300"], capture_output=True, text=True, check=True).stdout
    assert said == write(program, "The function ", 300) + "\n", "the C program writes something else"
    print("the likeliest text, 300 characters: the C program's equals Python's")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
