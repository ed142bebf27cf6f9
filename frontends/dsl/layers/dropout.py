"""Layers that are random while a network is trained and nothing at inference. Arguments and defaults are Keras's.

The numbers come from the trace's generator (``Trace.random_uniform``): the same seed gives the same ones on every
machine, and every layer and every step has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from ..elementwise import greater_equal, where
from ..promote import as_float, as_tensor
from ..random import standard_normal
from ..tensor import Tensor
from ..trace import current, fail
from .base import Layer
from .windows import channel_axis, default_axis


class _Random(Layer):
    """Nothing at inference; ``disturb`` when a network is trained."""

    def call(self, x: Tensor) -> Tensor:
        if not (current().training and self.active()):
            return x
        return self.disturb(as_float(x))

    def active(self) -> bool:
        """Whether it changes anything at all."""
        raise NotImplementedError

    def disturb(self, x: Tensor) -> Tensor:
        """What training sees of ``x``, of its shape and type."""
        raise NotImplementedError


def fraction(rate: float) -> float:
    """A rate of dropout, checked."""
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise fail(f"rate: expected a number in [0, 1), got {rate!r}")
    return float(rate)


def _kept(shape: Sequence[int], rate: float) -> Tensor:
    """bool: False for about ``rate`` of the elements."""
    return greater_equal(current().random_uniform(shape), rate)


def dropped(x: Tensor, rate: float, shape: Sequence[int] | None = None) -> Tensor:
    """``x`` as ``Dropout`` leaves it; ``shape``, which broadcasts to that of ``x``: what is dropped at once. ``x``
    itself where no network is trained."""
    if not (current().training and rate > 0):
        return x
    kept: Tensor = where(_kept(x.shape if shape is None else shape, rate), x * (1 / (1 - rate)), 0)
    return kept


class Dropout(_Random):
    """Nothing at inference; while a network is trained, ``rate`` of the elements are 0, the others grow by
    1 / (1 - rate) (Srivastava et al. 2014)."""

    ALIASES: ClassVar = {"p": "rate"}

    def __init__(self, rate: float = 0.5) -> None:
        self.rate = fraction(rate)

    def active(self) -> bool:
        return self.rate > 0

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of what is kept or dropped, which broadcasts to that of ``x``."""
        return x.shape

    def disturb(self, x: Tensor) -> Tensor:
        return dropped(x, self.rate, self.mask_shape(x))


class SpatialDropout(Dropout):
    """Nothing at inference; whole channels are dropped while a network is trained (Tompson et al. 2015). Channels are
    axis 1 (``axis``)."""

    def __init__(self, rate: float = 0.5, *, axis: int | None = None) -> None:
        super().__init__(rate)
        self.axis = default_axis(axis)

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        kept = (0, channel_axis(self.axis, x.ndim))
        return tuple(size if i in kept else 1 for i, size in enumerate(x.shape))


class AlphaDropout(Dropout):
    """Nothing at inference; while a network is trained, ``rate`` of the elements get the value that selu gives to
    minus infinity, and all are scaled so that mean 0 and variance 1 stay (Klambauer et al. 2017)."""

    def disturb(self, x: Tensor) -> Tensor:
        low = -1.6732632423543772 * 1.0507009873554805
        gain = ((1 - self.rate) * (1 + self.rate * low**2)) ** -0.5
        kept: Tensor = where(_kept(x.shape, self.rate), x, low) * gain - gain * self.rate * low
        return kept


class GaussianDropout(Dropout):
    """Nothing at inference; while a network is trained, elements are multiplied by normal numbers of mean 1 and
    variance rate / (1 - rate) (Srivastava et al. 2014)."""

    def disturb(self, x: Tensor) -> Tensor:
        noisy: Tensor = x * (
            as_tensor(standard_normal(x.shape), x.dtype) * math.sqrt(self.rate / (1 - self.rate)) + 1.0
        )
        return noisy


class GaussianNoise(_Random):
    """Nothing at inference; noise of standard deviation ``stddev`` is added while a network is trained."""

    def __init__(self, stddev: float) -> None:
        if not isinstance(stddev, int | float) or stddev < 0:
            raise fail(f"stddev: expected a number of at least 0, got {stddev!r}")
        self.stddev = float(stddev)

    def active(self) -> bool:
        return self.stddev > 0

    def disturb(self, x: Tensor) -> Tensor:
        noisy: Tensor = x + as_tensor(standard_normal(x.shape), x.dtype) * self.stddev
        return noisy


__all__ = ["AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout"]
