"""A search finds an architecture for spoken words in 64 KB of a Cortex-M4 (Zoph and Le 2017).

    python examples/architecture_search.py [candidates]

The space is an ordinary network in which nv.choice stands in place of numbers and layers; what stands first everywhere
is MLPerf Tiny's DS-CNN (tiny_kws01). RAM, flash and cycles are planned for the target before anything is trained, in
int8. Words: spoken digits as 49x10 cepstra, DS-CNN's input (500 keywords are too few to tell networks apart). Of 12
candidates (the default, some minutes) the most accurate hears 99.6 % of the test words, DS-CNN 99.1 %; the smallest
that heard as many validation words takes half the flash and cycles, and hears 98.6 %; 0.5 % are three words. What
comes out: architecture_search.png; keyword_net.so and its C header, the smallest.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import spoken_digits
from rich.progress import Progress
from spoken_digits import held_out, log_mel


def cepstra(log_mel, count=10):
    """The first coefficients of a cosine transform of each frame: [n, frames, bands] -> [n, frames, count, 1]."""
    bands = np.arange(log_mel.shape[-1]) + 0.5
    waves = np.cos(np.pi / len(bands) * np.arange(count)[:, None] * bands)
    return (log_mel @ waves.T)[..., None].astype(np.float32)


def convolved(x, convolution):
    return layers.ReLU()(layers.BatchNorm()(convolution(x)))


def separable(x, width):
    x = convolved(x, layers.DepthwiseConv2d(3, padding="same", use_bias=False))
    return convolved(x, layers.Conv2d(width, 1, use_bias=False))


def residual(x, width):
    return x + separable(x, width)


@nv.network
def keyword_net(x: nv.Input((49, 10, 1))):
    """DS-CNN (Zhang et al. 2017), and what could stand in its place."""
    width = nv.choice("width", [64, 32, 40, 48, 56, 96])
    kernel, strides = nv.choice("kernel", [(10, 4), (5, 3), (3, 3)]), nv.choice("strides", [(2, 2), (2, 1), (1, 1)])
    first = layers.Conv2d(width, kernel, strides=strides, padding="same", use_bias=False)
    x = convolved(layers.Reshape((1, 49, 10))(x), first)
    block = nv.choice("block", [separable, residual])
    for _ in range(nv.choice("blocks", [4, 2, 3, 5, 6])):
        x = block(x, width)
    x = layers.Dropout(0.1)(layers.GlobalAvgPool2d()(x))
    return layers.Dense(10, activation="softmax")(x)


def draw(found, marked, path):
    """Every trained candidate over what it costs; those that no cheaper one beats lie on the line."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    scales = {
        "flash": (1024, "flash for weights, int8 (KB)"),
        "latency": (1e6, "cycles of a run, estimated (millions)"),
    }
    for axis, (cost, (unit, label)) in zip(axes, scales.items(), strict=True):
        rows = sorted(found.trained, key=lambda c: c.value(cost))
        at, right, ram = zip(*[(c.value(cost) / unit, 100 * c.score, c.costs.ram / 1024) for c in rows], strict=True)
        axis.step(at, np.maximum.accumulate(right), where="post", color="gray", zorder=0)
        dots = axis.scatter(at, right, s=90, c=ram, vmin=0, vmax=64, cmap="viridis_r", edgecolors="black")
        line = {"textcoords": "offset points", "ha": "center", "arrowprops": {"arrowstyle": "-"}}
        for (name, c), offset in zip(marked.items(), ((80, -20), (-40, -100), (80, -150)), strict=True):
            axis.annotate(name, (c.value(cost) / unit, 100 * c.score), offset, **line)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on the validation words (%)")
    figure.colorbar(dots, label="RAM (KB)")
    figure.suptitle("Architectures for spoken words on a Cortex-M4")
    figure.savefig(path)


def main(trials=12):
    epochs, seeds = min(8, trials), range(2 if trials > 4 else 1)
    sound, y, speaker = spoken_digits()
    x = cepstra(log_mel(sound))
    test = held_out(y, speaker)
    validation = np.zeros(len(y), bool)
    validation[np.flatnonzero(~test)[held_out(y[~test], speaker[~test])]] = True
    train = ~test & ~validation
    x = (x - x[train].mean(0)) / x[train].std(0)
    print(f"{train.sum()} recordings to learn from, {validation.sum()} to choose by, {test.sum()} for the test")

    def adam(recordings):
        return nv.optimizers.Adam(nv.schedules.CosineDecay(0.01, decay_steps=epochs * -(-recordings // 32)))

    learned, chosen_by = (x[train], y[train]), (x[validation], y[validation])
    how = {"trials": trials, "epochs": epochs, "optimizer": adam(train.sum())}
    with Progress() as progress:
        task = progress.add_task("searching", total=trials)
        how["progress"] = lambda candidate: progress.advance(task)
        found = nv.search(keyword_net, learned, chosen_by, target="cortex-m4", limits={"ram": 64 << 10}, **how)
    print(found.table())
    first = found.candidates[0]
    small = min((c for c in found.trained if c.score >= first.score), key=lambda c: c.costs.flash)
    chosen = {"DS-CNN": first, "the most accurate": found.best, "the smallest as accurate": small}
    draw(found, chosen, "architecture_search.png")

    for name, candidate in chosen.items():
        right = []
        for seed in seeds:  # trained anew, the same way, and judged by recordings that no choice has seen
            net = candidate.build(seed)
            net.compile(adam((~test).sum()), "sparse_categorical_crossentropy", metrics=["accuracy"], seed=seed)
            net.fit(x[~test], y[~test], epochs=epochs, verbose=0)
            right.append(net.evaluate(x[test], y[test])[1])
        ram, flash, cycles = (candidate.value(cost) for cost in ("ram", "flash", "latency"))
        sizes = f"{ram / 1024:.1f} KB RAM, {flash / 1024:.1f} KB flash, {cycles / 1e6:.2f} M cycles"
        print(f"{name}: {np.mean(right):.2%} of the test words (from {min(right):.2%} on), {sizes}")

    path = nv.compile(net, name="keyword_net").save("keyword_net.so")
    program, words = nv.load(path), x[test][:20]
    np.testing.assert_allclose(nv.run_in_c(path, words), np.concatenate([program(w[None]) for w in words]), 1e-4, 1e-6)
    print(f"{path}: Python and a C program agree on {len(words)} words")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
