"""Capsules: groups of neurons whose vector says what something looks like, and whose length whether it is there at all
(Sabour, Frosst and Hinton 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import nn
from .. import shaping as s
from ..elementwise import maximum, sqrt, square
from ..initializers import initial
from ..linalg import matmul
from ..promote import as_float, as_tensor
from ..reduce import sum
from ..tensor import Tensor
from ..trace import fail
from .base import Layer, expect_rank, whole
from .conv import Conv2d


class PrimaryCapsule(Layer):
    """The first capsules of a network, made by a convolution: ``channels`` capsules of ``dim`` numbers for each of its
    places. [batch, features, height, width] -> [batch, channels * places, dim], squashed.

    ``options`` are those of the child ``conv``, a ``Conv2d``: strides, padding, ...
    """

    def __init__(self, channels: int, dim: int, kernel_size: Any, **options: Any) -> None:
        self.dim = whole(dim, "dim")
        self.conv = Conv2d(whole(channels, "channels") * self.dim, kernel_size, **options)

    def call(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        batch, features, *places = y.shape if not self.conv.channels_last else (*y.shape[:1], y.shape[3], *y.shape[1:3])
        channels, count = features // self.dim, int(np.prod(places))
        if self.conv.channels_last:
            return nn.squash(s.reshape(y, (batch, count * channels, self.dim)))
        grouped = s.reshape(y, (batch, channels, self.dim, count))
        return nn.squash(s.reshape(s.transpose(grouped, (0, 1, 3, 2)), (batch, channels * count, self.dim)))


class Capsule(Layer):
    """Capsules that lower ones are routed to by agreement: [batch, inputs, size] -> [batch, capsules, dim].

    Every input predicts every capsule's vector by a matrix of its own, ``weight`` [inputs, size, capsules * dim]. A
    capsule is the squashed sum of its predictions; ``iterations`` times in all the sum is taken again, each time with
    more weight for the predictions that pointed the way it came out. The rounds are unrolled, and gradients go through
    all of them.
    """

    def __init__(
        self, capsules: int, dim: int, iterations: int = 3, *, kernel_initializer: Any = "glorot_uniform"
    ) -> None:
        self.capsules, self.dim = whole(capsules, "capsules"), whole(dim, "dim")
        self.iterations, self.kernel_initializer = whole(iterations, "iterations"), kernel_initializer

    def build(self, shape: Any) -> None:
        if len(shape) != 3:
            raise fail(f"expected capsules [batch, inputs, size], got {list(shape)}")
        self.weight = self.add_weight("weight", (*shape[1:], self.capsules * self.dim), self._matrices)

    def _matrices(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Each input's matrix by the initializer, as if it were alone."""
        return np.stack([initial(self.kernel_initializer, shape[1:], rng) for _ in range(shape[0])])

    def call(self, x: Tensor) -> Tensor:
        expect_rank(x, 3, "batch, inputs, size")
        x = as_float(x)
        batch, inputs, size = x.shape
        if (inputs, size) != self.weight.shape[:2]:
            raise fail(f"expected [batch, {self.weight.shape[0]}, {self.weight.shape[1]}], got {list(x.shape)}")
        predicted = matmul(s.transpose(x, (1, 0, 2)), as_tensor(self.weight, x.dtype))
        votes = s.reshape(predicted, (inputs, batch, self.capsules, self.dim))
        return route(votes, self.iterations)


def route(votes: Tensor, iterations: int) -> Tensor:
    """Routing by agreement: votes [inputs, batch, capsules, dim] -> capsules [batch, capsules, dim]."""
    found = nn.squash(sum(votes, 0) / votes.shape[2])  # at first every vote counts alike
    agreement: Any = 0
    for _ in range(iterations - 1):
        agreement = agreement + sum(votes * found, -1, keepdims=True)
        found = nn.squash(sum(nn.softmax(agreement, 2) * votes, 0))
    return found


class Length(Layer):
    """How long vectors are: [..., dim] -> [...]. Of a vector that is 0 the gradient is 0."""

    def call(self, x: Tensor) -> Tensor:
        return sqrt(maximum(sum(square(as_float(x)), -1), 1e-24))


__all__ = ["Capsule", "Length", "PrimaryCapsule"]
