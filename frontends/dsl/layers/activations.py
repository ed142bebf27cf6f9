"""Activations as layers. Defaults are PyTorch's where the two differ (LeakyReLU 0.01)."""

from __future__ import annotations

import types
from typing import Any, ClassVar

from .. import nn
from ..elementwise import clip, maximum, minimum
from ..promote import as_float, as_tensor
from ..tensor import Tensor
from .base import Layer


class Activation(Layer):
    """Any activation by its name or as a function (Keras)."""

    def __init__(self, activation: Any) -> None:
        self.activation = nn.activation(activation)

    def call(self, x: Tensor) -> Tensor:
        return x if self.activation is None else self.activation(x)


class ReLU(Layer):
    """max(x, 0), at most ``max_value`` if given (Keras). ``inplace`` (PyTorch) is left to the compiler."""

    def __init__(self, max_value: float | None = None, *, inplace: bool = False) -> None:
        self.max_value = max_value

    def call(self, x: Tensor) -> Tensor:
        return nn.relu(x) if self.max_value is None else clip(as_float(x), 0.0, float(self.max_value))


class LeakyReLU(Layer):
    """x above 0, ``negative_slope`` x below (PyTorch's default 0.01; Keras's is 0.3)."""

    ALIASES: ClassVar = {"alpha": "negative_slope"}

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = float(negative_slope)

    def call(self, x: Tensor) -> Tensor:
        return nn.leaky_relu(x, self.negative_slope)


class PReLU(Layer):
    """x above 0, ``weight`` x below, a learned slope: one, or one for each channel on axis 1 (PyTorch)."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        self.num_parameters, self.init = num_parameters, init

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight("weight", (self.num_parameters,), self.init)

    def call(self, x: Tensor) -> Tensor:
        slope = as_tensor(self.weight, x.dtype)
        if self.num_parameters > 1 and x.ndim > 2:
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        return maximum(x, 0.0) + slope * minimum(x, 0.0)


class ELU(Layer):
    """x above 0, alpha (exp(x) - 1) below (Clevert et al. 2016). Any shape."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = float(alpha)

    def call(self, x: Tensor) -> Tensor:
        return nn.elu(x, self.alpha)


class GELU(Layer):
    """x times the normal distribution function of x; ``approximate="tanh"`` (or True) by tanh."""

    def __init__(self, approximate: Any = "none") -> None:
        self.approximate = approximate

    def call(self, x: Tensor) -> Tensor:
        return nn.gelu(x, self.approximate)


class Softmax(Layer):
    """exp(x) over its sum along ``axis``, the last unless given."""

    ALIASES: ClassVar = {"dim": "axis"}

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def call(self, x: Tensor) -> Tensor:
        return nn.softmax(x, self.axis)


class LogSoftmax(Softmax):
    """The logarithm of the softmax along ``axis``."""

    def call(self, x: Tensor) -> Tensor:
        return nn.log_softmax(x, self.axis)


def _plain(title: str, name: str) -> type[Layer]:
    """A layer without arguments around a function of ``nn``."""
    function = nn.ACTIVATIONS[name]

    def call(self: Layer, x: Tensor) -> Tensor:
        return function(x)

    doc = function.__doc__ or ""
    made: type[Layer] = types.new_class(title, (Layer,), exec_body=lambda space: space.update(call=call, __doc__=doc))
    made.__module__ = __name__
    return made


ReLU6 = _plain("ReLU6", "relu6")
SELU = _plain("SELU", "selu")
Sigmoid = _plain("Sigmoid", "sigmoid")
Tanh = _plain("Tanh", "tanh")
SiLU = _plain("SiLU", "silu")
Hardswish = _plain("Hardswish", "hard_swish")
Hardsigmoid = _plain("Hardsigmoid", "hard_sigmoid")
Hardtanh = _plain("Hardtanh", "hard_tanh")
Softplus = _plain("Softplus", "softplus")
Softsign = _plain("Softsign", "softsign")
Mish = _plain("Mish", "mish")

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
]
