"""An LSTM trained on whole recordings hears digits as they are spoken (Hochreiter et al. 1997).

    python examples/streaming_lstm.py [epochs]

The network is trained on whole recordings of 49 frames, 20 ms apart. `nv.streaming` reads the same network as a stream:
every call takes one frame and goes on where the last one ended, so that an answer is there while the word is spoken,
from memory for one frame. Twelve epochs (the default) name 98.5 % of the 600 recordings that were held out. What comes
out: streaming_lstm.png, how sure the network is while it listens; streaming_lstm.so and its C header, the stream as a
program; listen, a C program around it (examples/c/listen.c).
"""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nervure as nv
import numpy as np
from nervure import layers
from nervure.datasets import spoken_digits
from spoken_digits import BANDS, BATCH, held_out, log_mel

SOURCE = Path(__file__).resolve().parent / "c" / "listen.c"


def network(frames):
    """Reads from left to right; what it says is the mean of what it thought at every frame until now."""
    return nv.Sequential(
        [
            nv.Input((frames, BANDS)),
            layers.LSTM(64, return_sequences=True),
            layers.GlobalAveragePooling1D(data_format="channels_last"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ],
        name="whole",
    )


def listen(program, recording):
    """The probabilities of the digits [frames, 10] after each frame of a recording [frames, BANDS]."""
    program.reset()  # forget the last one
    return np.concatenate([program(frame[None, None]) for frame in recording])


def listen_in_c(path, recordings):
    """The same by a C program, for several recordings [n, frames, BANDS]: [n, frames, 10]."""
    count, frames, _ = recordings.shape
    command = [*nv.build_c(SOURCE, path), str(frames)]
    said = subprocess.run(command, input=recordings.tobytes(), capture_output=True, check=True).stdout
    return np.array(said.split(), np.float32).reshape(count, frames, 10)


def draw(recordings, digits, heard):
    """What was said, and how sure the network was of every digit while it heard it."""
    columns = len(digits)
    figure, axes = plt.subplots(2, columns, figsize=(10.5, 6), sharex=True, layout="constrained")
    figure.suptitle("An LSTM hears digits as they are spoken")
    seconds = np.arange(recordings.shape[1]) * 0.02
    for column, digit in enumerate(digits):
        above, below = axes[:, column]
        edges = (0, recordings.shape[1] * 0.02, 0, BANDS)
        above.imshow(recordings[column].T, origin="lower", aspect="auto", cmap="magma", extent=edges)
        above.set_title(f"somebody says {digit}")
        for other in range(10):
            style = {"color": "tab:red", "linewidth": 3} if other == digit else {"color": "0.75", "zorder": 1}
            below.plot(seconds, heard[column, :, other], **style)
        for other in {int(d) for d in heard[column].max(axis=0).argsort()[-2:]} | {int(digit)}:
            at = int(heard[column, :, other].argmax())
            below.text(seconds[at], heard[column, at, other] + 0.02, str(other), ha="center", size=11)
        below.set(xlabel="seconds", ylim=(0, 1.12), yticks=[0, 0.5, 1])
    axes[0, 0].set_ylabel("band of the mel scale")
    axes[1, 0].set_ylabel("probability of each digit")
    figure.savefig("streaming_lstm.png", dpi=100)


def main(epochs=12):
    sound, y, speaker = spoken_digits()
    x, test = log_mel(sound), held_out(y, speaker)
    x = (x - x[~test].mean()) / x[~test].std()
    net = network(x.shape[1])
    rate = nv.schedules.CosineDecay(0.006, decay_steps=epochs * -(-(~test).sum() // BATCH))
    net.compile(optimizer=nv.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    net.fit(x[~test], y[~test], BATCH, epochs, validation_data=(x[test], y[test]))

    # The same network, the same weights: one frame a call.
    stream = nv.compile(nv.streaming(net, frames=1), name="streaming_lstm")
    program = nv.load(path := stream.save("streaming_lstm.so"))
    heard = np.stack([listen(program, recording) for recording in x[test]])
    apart = np.abs(heard[:, -1] - net.predict(x[test])).max()
    print(f"{path}: {stream.report.arena_bytes / 1024:.1f} KB of RAM beside its state, a frame each call")
    print(f"accuracy on held-out recordings: {(heard[:, -1].argmax(axis=1) == y[test]).mean():.1%}")
    print(f"largest difference from the whole sequence at once: {apart:.1e}")
    sure = (heard.argmax(axis=2) == y[test][:, None])[:, ::-1].cumprod(axis=1).sum(axis=1)  # frames, from the end
    print(f"on average it knows the digit {0.02 * (x.shape[1] - sure.mean()):.2f} s after the recording begins")
    assert apart < 1e-5

    chosen = [int(np.flatnonzero(y[test] == digit)[7]) for digit in (7, 3, 6)]
    in_c = listen_in_c(path, x[test][chosen])
    np.testing.assert_allclose(in_c, heard[chosen], atol=1e-5)
    print("a C program hears the same, frame by frame")
    draw(x[test][chosen], y[test][chosen], heard[chosen])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
