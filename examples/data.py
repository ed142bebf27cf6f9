"""The data of the examples: real where they are found, else a generated stand-in, and it is said which.

They are looked for in the folder that the environment variable NERVURE_DATA names, else in ``../shared/data`` beside
the checkout: ``fashion_mnist.npz`` (x_train, y_train, x_test, y_test; Zalando Research, MIT licence) and
``spoken_digits_8k.npz`` (x, y, speaker; the Free Spoken Digit Dataset at 8 kHz, CC BY-SA 4.0).
"""

import os
from pathlib import Path

import numpy as np

FASHION = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _find(name):
    """The arrays of a file, or None."""
    folder = os.environ.get("NERVURE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(folder) / name
    if not path.exists():
        print(f"{name} is not in {folder}: a generated stand-in takes its place, figures mean nothing")
        return None
    with np.load(path) as file:
        return dict(file)


def fashion_mnist():
    """(pictures, labels) for training and for testing: float32 [n, 1, 28, 28] in 0..1 and int32 [n]."""
    data = _find("fashion_mnist.npz") or _blobs()
    return tuple(
        (data[f"x_{part}"][:, None].astype(np.float32) / 255, data[f"y_{part}"].astype(np.int32))
        for part in ("train", "test")
    )


def spoken_digits():
    """One second of sound each, float32 [n, 8000] in -1..1; the digit, int32 [n]; the speaker's name [n]."""
    data = _find("spoken_digits_8k.npz") or _melodies()
    return data["x"].astype(np.float32) / 32768, data["y"].astype(np.int32), data["speaker"]


def _blobs(train=2000, test=500):
    """Ten soft shapes, shifted at random and noisy."""
    rng = np.random.default_rng(0)
    grid = np.mgrid[0:28, 0:28]
    centres, widths = rng.uniform(8, 20, (10, 3, 2)), rng.uniform(2, 5, (10, 3))

    def pictures(count):
        y = rng.integers(0, 10, count)
        moved = centres[y] + rng.uniform(-2, 2, (count, 1, 2))
        square = ((grid[None, None] - moved[..., None, None]) ** 2).sum(axis=2)
        x = np.exp(-square / (2 * widths[y] ** 2)[..., None, None]).max(axis=1)
        return np.clip(255 * x + rng.normal(0, 20, x.shape), 0, 255).astype(np.uint8), y

    (x_train, y_train), (x_test, y_test) = pictures(train), pictures(test)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _melodies(speakers=6, each=10):
    """Ten melodies of three notes; every speaker has another pitch."""
    rng = np.random.default_rng(0)
    notes = rng.uniform(300, 1500, (10, 3))
    y = np.tile(np.repeat(np.arange(10), each), speakers)
    who = np.repeat(np.arange(speakers), 10 * each)
    pitch = notes[y] * (1 + 0.02 * who + rng.normal(0, 0.01, len(y)))[:, None]
    phase = 2 * np.pi * np.cumsum(np.repeat(pitch, [2600, 2600, 2800], axis=1), axis=1) / 8000
    x = 8000 * np.sin(phase) * rng.uniform(0.3, 1, len(y))[:, None] + rng.normal(0, 300, phase.shape)
    return {"x": x.astype(np.int16), "y": y, "speaker": np.array([f"speaker {i}" for i in who])}
