"""The networks on which training is compared with PyTorch: what they are fed and how they are trained. Each is written
once in the DSL (``training_ours``) and once in PyTorch (``training_theirs``); this file imports neither."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

STAGES = ((16, 1), (32, 2), (64, 2))  # channels and stride of ResNet-8's blocks
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def inverted_blocks() -> Iterator[tuple[int, int, int, int]]:
    """Inputs, expansion, channels and stride of MobileNetV2's blocks."""
    inputs = 32
    for expansion, channels, count, stride in INVERTED:
        for i in range(count):
            yield inputs, expansion, channels, stride if i == 0 else 1
            inputs = channels


@dataclass(frozen=True)
class Net:
    """One network. The input is [batch, *shape]; ``classes`` 0: the target is the input and the loss the mean squared
    error, else cross-entropy of logits. ``frozen``: patterns of our weights that are not trained (PyTorch runs the
    child ``body`` without gradients, in evaluation mode)."""

    name: str
    shape: tuple[int, ...]
    classes: int
    batch: int = 32
    frozen: tuple[str, ...] = ()

    @property
    def images(self) -> bool:
        return len(self.shape) == 3

    def ours(self) -> Any:
        net = getattr(importlib.import_module("training_ours"), self.name)()
        net.ready()
        if self.frozen:
            net.freeze(*self.frozen)
        return net

    def theirs(self) -> Any:
        return getattr(importlib.import_module("training_theirs"), self.name)()

    def training(self, optimizer: str, batch: int | None = None) -> Any:
        """How ours is trained: ``nv.compile(net.ours(), training=...)``."""
        return importlib.import_module("training_ours").training(self, optimizer, batch or self.batch)

    def data(self, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Something to learn: a fixed picture for each class, under noise."""
        rng = np.random.default_rng(seed)
        classes = self.classes or 10
        means = np.random.default_rng(12345).standard_normal((classes, *self.shape))
        labels = rng.integers(0, classes, batch).astype(np.int32)
        x = (0.5 * means[labels] + rng.standard_normal((batch, *self.shape))).astype(np.float32)
        if self.classes:
            return x, labels
        x = 1 / (1 + np.exp(-x))
        return x, x


_ALL = (
    Net("mlp", (784,), 10),
    Net("lenet", (1, 28, 28), 10),
    Net("resnet8", (3, 32, 32), 10),
    Net("dscnn", (1, 49, 10), 12),
    Net("lstm", (50, 128), 10),
    Net("gru", (50, 128), 10),
    Net("transformer", (64, 128), 10, 16),
    Net("autoencoder", (784,), 0),
    Net("mobilenet_head", (3, 224, 224), 10, 1, ("body*",)),
)
NETS: Mapping[str, Net] = {net.name: net for net in _ALL}
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad")


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
