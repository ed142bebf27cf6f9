"""Small data sets to learn with (``nv.datasets``): real where they are found, else a generated stand-in, and it is said
which.

Files are looked for in the folder that the environment variable NERVURE_DATA names, else in ``../shared/data`` beside
the checkout: ``fashion_mnist.npz`` (x_train, y_train, x_test, y_test; Zalando Research, MIT licence),
``cifar10_subset.npz`` (the same names; Krizhevsky 2009), ``spoken_digits_8k.npz`` (x, y, speaker; the Free Spoken Digit
Dataset at 8 kHz, CC BY-SA 4.0) and ``kws_500.npz`` (x, y; MLPerf Tiny's cepstra of Speech Commands, CC BY 4.0). Digits
and tables come with scikit-learn, letters with matplotlib's fonts, the text with Python itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FASHION = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Arrays = tuple[np.ndarray, np.ndarray]

__all__ = [
    "CIFAR10",
    "FASHION",
    "breast_cancer",
    "cifar10",
    "diabetes",
    "digits",
    "fashion_mnist",
    "iris",
    "keywords",
    "letters",
    "spoken_digits",
    "text",
    "wine",
]


def fashion_mnist() -> tuple[Arrays, Arrays]:
    """(pictures, labels) for training and for testing: float32 [n, 1, 28, 28] in 0..1 and int32 [n], ten classes."""
    data = _find("fashion_mnist.npz") or _blobs()
    return _pictures(data, "train"), _pictures(data, "test")


def cifar10() -> tuple[Arrays, Arrays]:
    """(pictures, labels) for training and for testing: float32 [n, 3, 32, 32] in 0..1 and int32 [n], ten classes."""
    data = _find("cifar10_subset.npz") or _blobs(size=32, colours=3)
    return _pictures(data, "train"), _pictures(data, "test")


def digits() -> tuple[Arrays, Arrays]:
    """Handwritten digits (Alpaydin and Kaynak 1998): float32 [n, 1, 8, 8] in 0..1 and int32 [n], four fifths (1,437) to
    learn from and a fifth (360) to test, mixed by a fixed seed."""
    found = _sklearn("load_digits")
    if found is None:
        data = _blobs(1437, 360, size=8)
        return _pictures(data, "train"), _pictures(data, "test")
    x, y = (found[0].reshape(-1, 1, 8, 8) / 16).astype(np.float32), found[1].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    cut = len(x) * 4 // 5
    return (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])


def iris() -> Arrays:
    """150 flowers of three kinds: float32 [150, 4] in cm and int32 [150] (Fisher 1936)."""
    return _table("load_iris", 150, 4, 3)


def wine() -> Arrays:
    """178 wines of three growers: float32 [178, 13] and int32 [178]."""
    return _table("load_wine", 178, 13, 3)


def breast_cancer() -> Arrays:
    """569 samples of tissue, malignant (0) or benign (1): float32 [569, 30] and int32 [569]."""
    return _table("load_breast_cancer", 569, 30, 2)


def diabetes() -> Arrays:
    """442 patients: float32 [442, 10], and how the illness went on, float32 [442] (Efron et al. 2004)."""
    return _table("load_diabetes", 442, 10, 0)


def spoken_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One second of sound each, float32 [n, 8000] in -1..1; the digit, int32 [n]; the speaker's name [n]."""
    data = _find("spoken_digits_8k.npz") or _melodies()
    return data["x"].astype(np.float32) / 32768, data["y"].astype(np.int32), data["speaker"]


def keywords() -> Arrays:
    """Cepstra of one-second recordings, float32 [500, 49, 10, 1], and which of 12 words each is, int32 [500]."""
    data = _find("kws_500.npz")
    if data is None:
        return _words()
    return (data["x"][..., None].astype(np.float32) - 83) * np.float32(0.5847029), data["y"].astype(np.int32)


def letters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """24 pictures each of 236 letters, float32 [n, 1, 28, 28] in 0..1; the letter, int32 [n], in order; its alphabet
    [n]: Latin, Greek, Cyrillic, Armenian or Georgian. Fonts' letters, turned, slanted, stretched and shifted at random.
    """
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: a generated stand-in takes its place, figures mean nothing")
        found = _blobs(3000, 1, classes=75)
        order = np.argsort(found["y_train"], kind="stable")
        x, y = found["x_train"][order], found["y_train"][order].astype(np.int32)
        alphabet = np.array(["Latin", "Greek", "Cyrillic", "Armenian", "Georgian"])[y // 15]
    else:
        from .letters import drawn

        x, y, alphabet = drawn(Path(matplotlib.get_data_path()) / "fonts" / "ttf")
    return x[:, None].astype(np.float32) / 255, y, alphabet


def text() -> str:
    """Some 460,000 characters (of Python 3.11) of English prose: Python's own manual, as ``help()`` shows it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # a Python without its manual
        print("Python's manual is not installed: a generated stand-in takes its place, figures mean nothing")
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 9))) for _ in range(400)]
        return " ".join(rng.choice(words, 100_000, p=_zipf(400)))
    return "\n".join(topics[name] for name in sorted(topics))


# -- where they are, and what stands in for them ---------------------------------------------------------------------


def _find(name: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file, or None."""
    folder = os.environ.get("NERVURE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(folder) / name
    if not path.exists():
        print(f"{name} is not in {folder}: a generated stand-in takes its place, figures mean nothing")
        return None
    with np.load(path) as file:
        return dict(file)


def _sklearn(loader: str) -> Any:
    """What one of scikit-learn's loaders gives, or None."""
    try:
        from sklearn import datasets
    except ImportError:
        print("scikit-learn is not installed: a generated stand-in takes its place, figures mean nothing")
        return None
    load: Callable[..., Any] = getattr(datasets, loader)
    return load(return_X_y=True)


def _table(loader: str, count: int, features: int, classes: int) -> Arrays:
    """``classes`` of 0: numbers are to be predicted."""
    x, y = _sklearn(loader) or _clouds(count, features, classes)
    return np.asarray(x, np.float32), np.asarray(y, np.int32 if classes else np.float32)


def _pictures(data: dict[str, np.ndarray], part: str) -> Arrays:
    x = data[f"x_{part}"].astype(np.float32) / 255
    return (x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2).copy()), data[f"y_{part}"].astype(np.int32)


def _zipf(count: int) -> np.ndarray:
    weights: np.ndarray = 1 / np.arange(1, count + 1)
    return np.asarray(weights / weights.sum())


def _clouds(count: int, features: int, classes: int) -> Arrays:
    """A cloud of points for each class; without classes a smooth function of the points."""
    rng = np.random.default_rng(0)
    y = np.sort(rng.integers(0, max(classes, 1), count))
    x = rng.normal(size=(max(classes, 1), features))[y] * 2 + rng.normal(size=(count, features))
    return x, y if classes else np.sin(x[:, 0]) + x[:, 1:].mean(axis=1) + 0.1 * rng.normal(size=count)


def _words() -> Arrays:
    rng = np.random.default_rng(0)
    y = np.arange(500, dtype=np.int32) % 12
    spoken = 3 * rng.standard_normal((12, 49, 10, 1)) + 4 * rng.standard_normal((12, 1, 10, 1))
    noise = 6 * rng.standard_normal((500, 49, 10, 1))
    return (spoken[y] + noise).astype(np.float32), y


def _blobs(
    train: int = 2000, test: int = 500, size: int = 28, colours: int = 1, classes: int = 10
) -> dict[str, np.ndarray]:
    """Soft shapes, shifted at random and noisy."""
    rng = np.random.default_rng(0)
    grid = np.mgrid[0:size, 0:size]
    centres, widths = rng.uniform(8, 20, (classes, 3, 2)) * size / 28, rng.uniform(2, 5, (classes, 3)) * size / 28
    tints = rng.uniform(0.3, 1, (classes, colours))

    def pictures(count: int) -> Arrays:
        y = rng.integers(0, classes, count)
        moved = centres[y] + rng.uniform(-2, 2, (count, 1, 2)) * size / 28
        square = ((grid[None, None] - moved[..., None, None]) ** 2).sum(axis=2)
        x = np.exp(-square / (2 * widths[y] ** 2)[..., None, None]).max(axis=1)
        x = x if colours == 1 else x[..., None] * tints[y][:, None, None]
        return np.clip(255 * x + rng.normal(0, 20, x.shape), 0, 255).astype(np.uint8), y

    (x_train, y_train), (x_test, y_test) = pictures(train), pictures(test)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _melodies(speakers: int = 6, each: int = 10) -> dict[str, np.ndarray]:
    """Ten melodies of three notes; every speaker has another pitch."""
    rng = np.random.default_rng(0)
    notes = rng.uniform(300, 1500, (10, 3))
    y = np.tile(np.repeat(np.arange(10), each), speakers)
    who = np.repeat(np.arange(speakers), 10 * each)
    pitch = notes[y] * (1 + 0.02 * who + rng.normal(0, 0.01, len(y)))[:, None]
    phase = 2 * np.pi * np.cumsum(np.repeat(pitch, [2600, 2600, 2800], axis=1), axis=1) / 8000
    x = 8000 * np.sin(phase) * rng.uniform(0.3, 1, len(y))[:, None] + rng.normal(0, 300, phase.shape)
    return {"x": x.astype(np.int16), "y": y, "speaker": np.array([f"speaker {i}" for i in who])}
