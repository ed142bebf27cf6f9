"""Losses of numbers. See ``losses``."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ..dsl import elementwise as e
from ..dsl import nn
from ..dsl.tensor import Tensor
from .samples import EPSILON, Loss, aligned, positive


class MeanSquaredError(Loss):
    """(y_true - y_pred)², averaged over a sample. Equal shapes [batch, ...]."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return e.square(p - t)


class MeanAbsoluteError(Loss):
    """|y_true - y_pred|, averaged over a sample. Equal shapes [batch, ...]."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return e.abs(p - t)


class MeanAbsolutePercentageError(Loss):
    """100 |y_true - y_pred| / |y_true|, averaged over a sample. Equal shapes [batch, ...]."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return 100.0 * e.abs((t - p) / e.maximum(e.abs(t), EPSILON))


class MeanSquaredLogarithmicError(Loss):
    """(log(1 + y_true) - log(1 + y_pred))² of numbers from 0 on, averaged over a sample. Equal shapes."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return e.square(e.log1p(e.maximum(p, EPSILON)) - e.log1p(e.maximum(t, EPSILON)))


class Huber(Loss):
    """Half the squared error up to ``delta``, linear from there on (Huber 1964). Equal shapes [batch, ...]."""

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = positive(self.name, "delta", delta)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        error = e.abs(p - t)
        inner = e.minimum(error, self.delta)
        return inner * (error - 0.5 * inner)


class SmoothL1Loss(Huber):
    """Huber's loss over ``beta`` (PyTorch)."""

    ALIASES: ClassVar = {"beta": "delta"}
    name = "smooth_l1"

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        return super().call(y_true, y_pred) / self.delta


class LogCosh(Loss):
    """log(cosh(y_pred - y_true)), averaged over a sample, without overflow. Equal shapes [batch, ...]."""

    name = "log_cosh"

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        error = p - t
        return error + nn.softplus(-2.0 * error) - math.log(2.0)


class Poisson(Loss):
    """y_pred - y_true log(y_pred): counts y_true, rates y_pred (or their logarithms: ``from_logs``). Equal shapes."""

    ALIASES: ClassVar = {"log_input": "from_logs"}

    def __init__(self, from_logs: bool = False) -> None:
        self.from_logs = from_logs

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return e.exp(p) - t * p if self.from_logs else p - t * e.log(p + EPSILON)


class PoissonNLLLoss(Poisson):
    """Poisson's loss of the logarithms of rates (PyTorch)."""

    name = "poisson"

    def __init__(self, from_logs: bool = True) -> None:
        super().__init__(from_logs)
