"""``nv.spiking``: what networks of spiking neurons are written with beside ``nv.layers.Leaky``: codes that make spikes
of numbers, and steps with a surrogate gradient. Names and figures are those of snnTorch (Eshraghian et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import random
from .elementwise import abs, arctan, cast, equal, greater, greater_equal, logical_and, round, straight_through
from .promote import as_float
from .shaping import arange, broadcast_to, expand_dims, reshape
from .tensor import Tensor
from .trace import fail, public

__all__ = ["atan", "fast_sigmoid", "latency", "rate"]

Surrogate = Callable[[Any], Tensor]


def fast_sigmoid(slope: float = 25.0) -> Surrogate:
    """The step x > 0 (float: 0 or 1), trained as x / (1 + slope |x|): SuperSpike (Zenke and Ganguli 2018)."""

    def step(x: Any) -> Tensor:
        given = as_float(x)
        return straight_through(cast(greater(given, 0), given.dtype), given / (abs(given) * slope + 1.0))

    return step


def atan(alpha: float = 2.0) -> Surrogate:
    """The step x > 0 (float: 0 or 1), trained as arctan(pi alpha x / 2) / pi (Fang et al. 2021)."""

    def step(x: Any) -> Tensor:
        given = as_float(x)
        smooth = arctan(given * (math.pi / 2 * alpha)) * (1 / math.pi)
        return straight_through(cast(greater(given, 0), given.dtype), smooth)

    return step


@public
def rate(x: Any, steps: int) -> Tensor:
    """Rate code: numbers [batch, ...] in 0..1 as spikes [batch, steps, ...], float32 0 or 1. At every step an element
    spikes with the probability that it is, other ones at every call (``nv.random``)."""
    given, steps = as_float(x), _steps(steps)
    shape = (given.shape[0], steps, *given.shape[1:])
    return random.bernoulli(broadcast_to(expand_dims(given, 1), shape))


@public
def latency(x: Any, steps: int, threshold: float = 0.01) -> Tensor:
    """Latency code: numbers [batch, ...] in 0..1 as spikes [batch, steps, ...], float32 0 or 1. An element spikes once,
    the larger the earlier: 1 at once, ``threshold`` at the last step, what is smaller never. (The linear code of
    Thorpe's time to first spike; snnTorch's ``latency`` with ``normalize``, ``linear`` and ``clip``.)"""
    given, steps = as_float(x), _steps(steps)
    when = expand_dims(round((1 - given) * (steps - 1)), 1)
    time = reshape(cast(arange(steps), given.dtype), (1, steps, *[1] * (given.ndim - 1)))
    return cast(logical_and(equal(when, time), expand_dims(greater_equal(given, threshold), 1)), "float32")


def _steps(steps: Any) -> int:
    if not hasattr(steps, "__index__") or steps < 1:
        raise fail(f"steps: expected a whole number of at least 1, got {steps!r}")
    return int(steps)
