"""Two networks learn to understand spoken digits: a recurrent one (GRU) and a convolutional one (DS-CNN).

    python examples/spoken_digits.py [epochs]

Held out for the test: the first fifth of every speaker's recordings of every digit, 600 of 3,000. The networks know the
six speakers' voices, but have never heard these recordings. Both reach more than 95 % of them in sixteen epochs (the
default). What comes out: spoken_digits.png, what the networks hear; for each of them its curves as .svg and the program
as .so with its C header.
"""

import sys

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import spoken_digits

WINDOW, HOP, BANDS = 256, 160, 40  # samples, samples (20 ms at 8 kHz), bands of the mel scale
BATCH = 32


def log_mel(sound, rate=8000):
    """The loudness in each band of the mel scale over time: [n, samples] -> [n, frames, BANDS]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW, axis=1)[:, ::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), BANDS + 2)  # edges at equal distances, in mel ...
    edges = 700 * (10 ** (mel / 2595) - 1)  # ... and in Hz
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hz = np.fft.rfftfreq(WINDOW, 1 / rate)
    triangles = np.clip(np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)), 0, None)
    return np.log(power @ triangles.T + 1e-3).astype(np.float32)


def held_out(y, speaker):
    """Which recordings are for the test: the first fifth of every digit by every speaker."""
    test = np.zeros(len(y), bool)
    for who in np.unique(speaker):
        for digit in range(10):
            found = np.flatnonzero((speaker == who) & (y == digit))
            test[found[: len(found) // 5]] = True
    return test


def gru(frames):
    """Reads frame by frame, from left to right and from right to left."""
    return nv.Sequential(
        [
            nv.Input((frames, BANDS)),
            layers.GRU(64, bidirectional=True, return_sequences=True),
            layers.GlobalAveragePooling1D(data_format="channels_last"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ],
        name="spoken_gru",
    )


def ds_cnn(frames):
    """Depthwise separable convolutions (Zhang et al. 2017) over the picture of time and pitch."""
    net = nv.Sequential([nv.Input((frames, BANDS)), layers.Reshape((1, frames, BANDS))], name="spoken_ds_cnn")
    for block in range(4):
        if block == 0:
            net.add(layers.Conv2d(64, (10, 4), strides=2, padding="same", use_bias=False))
        else:
            net.add(layers.SeparableConv2d(64, 3, padding="same", use_bias=False))
        net.add(layers.BatchNorm())
        net.add(layers.ReLU())
    net.add(layers.GlobalAvgPool2d())
    net.add(layers.Dropout(0.3))
    net.add(layers.Dense(10, activation="softmax"))
    return net


def draw(x, y):
    """One recording of each digit as the networks hear it."""
    figure, places = plt.subplots(2, 5, figsize=(12, 4.8), sharex=True, sharey=True, layout="constrained")
    for digit, place in enumerate(places.flat):
        place.imshow(x[np.flatnonzero(y == digit)[0]].T, origin="lower", aspect="auto", cmap="magma")
        place.set_title(f"“{digit}”")
    figure.supxlabel("time (frames of 20 ms)")
    figure.supylabel("pitch (bands of the mel scale)")
    figure.savefig("spoken_digits.png", dpi=100)


def main(epochs=16):
    sound, y, speaker = spoken_digits()
    x, test = log_mel(sound), held_out(y, speaker)
    x = (x - x[~test].mean()) / x[~test].std()
    draw(x[test], y[test])
    print(f"{(~test).sum()} recordings to learn from, {test.sum()} held out, {len(np.unique(speaker))} speakers")
    for net in (gru(x.shape[1]), ds_cnn(x.shape[1])):
        rate = nv.schedules.CosineDecay(0.004, decay_steps=epochs * -(-(~test).sum() // BATCH))
        net.compile(optimizer=nv.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        curves = nv.callbacks.CurvePlot(f"{net.name}.svg", title=net.name)
        print(net.name)
        net.fit(x[~test], y[~test], BATCH, epochs, validation_data=(x[test], y[test]), callbacks=[curves])

        compiled = nv.compile(net)
        program = nv.load(path := compiled.save(f"{net.name}.so"))
        answers = np.concatenate([program(one[None]) for one in x[test]])
        np.testing.assert_allclose(nv.run_in_c(path, x[test]), answers, atol=1e-5)
        guesses = answers.argmax(axis=1)
        right, size = (guesses == y[test]).mean(), compiled.report.artifact_bytes / 1024
        print(f"{net.name}.so, {size:.0f} KB: {right:.2%} of the recordings that were held out")
        print("a C program hears the same")
        for who in np.unique(speaker):
            own = speaker[test] == who
            print(f"  {who:<12} {(guesses == y[test])[own].mean():.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
