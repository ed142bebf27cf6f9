"""``nv.random``: random tensors inside a network, at inference as in a training step.

They come from the trace's generator (``Trace.random_uniform``): other ones at every call, the same on every machine for
the same seed, which is the first number of the state ``generator`` ([seed, counter], uint32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .elementwise import cos, less, log, sqrt
from .promote import as_float, as_tensor
from .reduce import argmax
from .shaping import broadcast_to
from .tensor import Tensor
from .trace import current

__all__ = ["bernoulli", "categorical", "normal", "uniform"]


def uniform(shape: Sequence[int], low: Any = 0.0, high: Any = 1.0) -> Tensor:
    """float32 in [low, high): numbers, or tensors that broadcast to the shape."""
    drawn = current().random_uniform(tuple(shape))
    if isinstance(low, int | float) and isinstance(high, int | float) and (low, high) == (0, 1):
        return drawn
    scaled: Tensor = drawn * (as_tensor(high) - low) + low
    return scaled


def normal(shape: Sequence[int], mean: Any = 0.0, stddev: Any = 1.0) -> Tensor:
    """Normally distributed float32."""
    scaled: Tensor = standard_normal(shape) * stddev + mean
    return scaled


def standard_normal(shape: Sequence[int]) -> Tensor:
    """float32 of mean 0 and standard deviation 1 (Box and Muller 1958)."""
    radius, angle = (current().random_uniform(tuple(shape)) for _ in range(2))
    drawn: Tensor = sqrt(log(1 - radius) * -2.0) * cos(angle * (2 * math.pi))
    return drawn


def bernoulli(p: Any, shape: Sequence[int] | None = None) -> Tensor:
    """float32: 1 with the probability ``p`` (a number, or a tensor that broadcasts to the shape), else 0."""
    given = as_float(p)
    extents = tuple(given.shape if shape is None else shape)
    return as_tensor(less(current().random_uniform(extents), broadcast_to(given, extents)), "float32")


def categorical(logits: Any, axis: int = -1) -> Tensor:
    """int64: classes drawn with the probabilities ``softmax(logits)`` along an axis (by Gumbel noise, 1954)."""
    given = as_float(logits)
    noise = -log(-log(current().random_uniform(given.shape) * (1 - 2.0**-23) + 2.0**-25))
    return argmax(given + noise, axis=axis)
