"""The networks of ``bench_pruning``: their data, how they are built, trained and tuned. Peers build the same ones in
PyTorch (``pruning_peers``), so that nothing here imports ours before it is asked for our network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NERVURE_SHARED", TESTS.parent.parent / "shared")) / "data"
# expansion, channels, stride of the inverted residuals of the MobileNet-class network
INVERTED = ((4, 24, 1), (4, 24, 1), (4, 48, 2), (4, 48, 1))


@dataclass(frozen=True)
class Data:
    """Samples as they are stored; ``ready`` makes of some of them what the network takes, float32 [n, *shape]."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    mean: float
    scale: float

    def ready(self, x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32) - np.float32(self.mean)) / np.float32(self.scale)

    @property
    def test(self) -> np.ndarray:
        return self.ready(self.x_test)

    def few(self, samples: int, tests: int) -> Data:
        """Some samples of each part, evenly over all of it (some files are sorted by class)."""
        learnt, test = (np.arange(n) * len(y) // n for n, y in ((samples, self.y), (tests, self.y_test)))
        return replace(self, x=self.x[learnt], y=self.y[learnt], x_test=self.x_test[test], y_test=self.y_test[test])


@dataclass(frozen=True)
class Net:
    """How a network is trained: Adam, the rate falls as a cosine. ``shift``: pixels by which samples are moved at
    random, along the height and the width; ``flip``: half of them are mirrored."""

    name: str
    data: Callable[[], Data]
    epochs: int
    shift: tuple[int, int]
    flip: bool = False
    rate: float = 0.003
    batch: int = 64

    @property
    def tuning(self) -> int:
        """Epochs of fine-tuning after pruning: a third."""
        return max(1, self.epochs // 3)

    def ours(self) -> Any:
        """Untrained, in the DSL; it gives logits."""
        if str(TESTS) not in sys.path:
            sys.path.insert(0, str(TESTS))
        return _OURS[self.name]()

    def batches(self, data: Data, first: int = 0) -> Batches:
        return Batches(data, self.batch, self.shift, self.flip, first)


class Batches:
    """Shuffled and varied batches of an epoch; they depend on its number alone, so that two tools see the same."""

    def __init__(self, data: Data, size: int, shift: tuple[int, int], flip: bool, first: int = 0) -> None:
        self.data, self.size, self.shift, self.flip, self.first = data, size, shift, flip, first
        self.number = 0

    def set_epoch(self, epoch: int) -> None:
        self.number = epoch

    def __len__(self) -> int:
        return len(self.data.x) // self.size

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng([7, self.first + self.number])
        order = rng.permutation(len(self.data.x))[: len(self) * self.size]
        for rows in order.reshape(-1, self.size):
            yield self._varied(self.data.ready(self.data.x[rows]), rng), self.data.y[rows]

    def _varied(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n, _, height, width = x.shape
        (down, across), edge = self.shift, ((0, 0), (0, 0))
        wide = np.pad(x, (*edge, (down, down), (across, across)), mode="edge")
        top, left = rng.integers(0, 2 * down + 1, n), rng.integers(0, 2 * across + 1, n)
        rows, columns = top[:, None] + np.arange(height), left[:, None] + np.arange(width)
        if self.flip:
            mirrored = rng.random(n) < 0.5
            columns[mirrored] = columns[mirrored, ::-1]
        each = np.arange(n)[:, None, None]
        return np.ascontiguousarray(wide[each, :, rows[:, :, None], columns[:, None]].transpose(0, 3, 1, 2))


# -- data --------------------------------------------------------------------------------------------------------------


def cifar() -> Data:
    """CIFAR-10, 12,000 pictures to learn from and 2,000 to test with."""
    with np.load(DATA / "cifar10_subset.npz") as held:
        x, x_test = (held[f"x_{part}"].transpose(0, 3, 1, 2) for part in ("train", "test"))
        y, y_test = (held[f"y_{part}"].reshape(-1).astype(np.int32) for part in ("train", "test"))
    return Data(x, y, x_test, y_test, 120.0, 62.0)


def fashion() -> Data:
    """Fashion-MNIST: every other picture (the file is sorted) to learn from, 10,000 to test with."""
    with np.load(DATA / "fashion_mnist.npz") as held:
        x, x_test = held["x_train"][::2, None], held["x_test"][:, None]
        return Data(x, held["y_train"][::2].astype(np.int32), x_test, held["y_test"].astype(np.int32), 73.0, 90.0)


def digits() -> Data:
    """Spoken digits as log-mel pictures [1, 49, 40]; a fifth of every speaker's recordings of each is for the test."""
    sys.path.append(str(TESTS.parent / "examples"))
    from spoken_digits import held_out, log_mel  # type: ignore[import-not-found]

    with np.load(DATA / "spoken_digits_8k.npz") as held:
        sound, y, speaker = held["x"].astype(np.float32) / 32768, held["y"].astype(np.int32), held["speaker"]
    x, test = log_mel(sound)[:, None], held_out(y, speaker)
    learnt = x[~test]
    return Data(learnt, y[~test], x[test], y[test], float(learnt.mean()), float(learnt.std()))


# -- networks ----------------------------------------------------------------------------------------------------------


def _resnet8() -> Any:
    from training_ours import resnet8  # type: ignore[import-not-found]

    return resnet8()


def _mobilenet() -> Any:
    """Of MobileNetV2's kind, for pictures of 28 by 28."""
    import nervure as nv

    L = nv.layers

    def unit(x: Any, channels: int, size: int = 1, stride: int = 1, act: bool = True) -> Any:
        """A convolution (``channels`` 0: depthwise), its batch norm and a relu."""
        options = {"strides": stride, "padding": size // 2, "use_bias": False}
        y = L.BatchNorm()((L.Conv2d(channels, size, **options) if channels else L.DepthwiseConv2d(size, **options))(x))
        return nv.relu(y) if act else y

    @nv.network
    def mobilenet(x: nv.Input((1, 28, 28))) -> Any:  # type: ignore[valid-type]
        x = unit(unit(unit(x, 16, 3), 0, 3, 2), 24, act=False)
        for expansion, channels, stride in INVERTED:
            inputs = x.shape[1]
            y = unit(unit(unit(x, expansion * inputs), 0, 3, stride), channels, act=False)
            x = x + y if stride == 1 and inputs == channels else y
        return L.Dense(10)(nv.mean(unit(x, 192), (2, 3)))

    return mobilenet


def _dscnn() -> Any:
    import nervure as nv

    L = nv.layers
    parts = [nv.Input((1, 49, 40)), L.Conv2d(64, (10, 4), strides=2, padding=(5, 1), use_bias=False)]
    parts += [L.BatchNorm(), L.ReLU()]
    for _ in range(4):
        parts += [L.DepthwiseConv2d(3, padding=1, use_bias=False), L.BatchNorm(), L.ReLU()]
        parts += [L.Conv2d(64, 1, use_bias=False), L.BatchNorm(), L.ReLU()]
    return nv.Sequential([*parts, L.GlobalAvgPool2d(), L.Dense(10)], name="dscnn")


_OURS: dict[str, Callable[[], Any]] = {"resnet8": _resnet8, "mobilenet": _mobilenet, "dscnn": _dscnn}
NETS = {
    net.name: net
    for net in (
        Net("resnet8", cifar, 48, (4, 4), flip=True),
        Net("mobilenet", fashion, 9, (1, 1), flip=True),
        Net("dscnn", digits, 24, (4, 1)),
    )
}


# -- training ----------------------------------------------------------------------------------------------------------


def learn(
    net: Net,
    model: Any,
    data: Data,
    epochs: int,
    rate: float,
    first: int = 0,
    loss: Any = None,
    threads: int = 1,
    verbose: int = 0,
) -> None:
    """Trains a network of ours on epochs ``first`` and following."""
    import nervure as nv

    batches = net.batches(data, first)
    falling = nv.schedules.CosineDecay(rate, decay_steps=epochs * len(batches))
    loss = loss or nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(nv.optimizers.Adam(falling), loss, metrics=["accuracy"], threads=threads)
    model.fit(batches, batch_size=net.batch, epochs=epochs, verbose=verbose)


def trained(net: Net, data: Data, folder: Path, verbose: int = 0) -> Path:
    """Where the trained weights lie: ``NAME.npz``, in our order. They are trained if they are not there yet."""
    path = folder / f"{net.name}.npz"
    if not path.exists():
        model = net.ours()
        learn(net, model, data, net.epochs, net.rate, verbose=verbose)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **model.state_dict())
    return path
