"""What recurrent operators share: directions, activation functions and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .numeric import sigmoid
from .record import OpError

Activation = Callable[[np.ndarray], np.ndarray]

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
DEFAULTS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}
ACTIVATIONS: dict[str, Activation] = {  # ONNX's names, with its default parameters
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0.0),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0.0, 1.0),
    "LeakyRelu": lambda x: np.where(x < 0, 0.01 * x, x),
    "Elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0.0)), x),
    "Softsign": lambda x: x / (1.0 + np.abs(x)),
    "Softplus": lambda x: np.logaddexp(0.0, x),
}
DERIVATIVES: dict[str, Activation] = {  # in terms of the function's value
    "Sigmoid": lambda y: y * (1.0 - y),
    "Tanh": lambda y: 1.0 - y * y,
    "Relu": lambda y: np.where(y > 0, 1.0, 0.0),
    "HardSigmoid": lambda y: np.where((y > 0) & (y < 1), 0.2, 0.0),
    "LeakyRelu": lambda y: np.where(y < 0, 0.01, 1.0),
    "Elu": lambda y: np.where(y < 0, y + 1.0, 1.0),
    "Softsign": lambda y: (1.0 - np.abs(y)) ** 2,
    "Softplus": lambda y: -np.expm1(-y),
}


def check_activations(given: Sequence[str] | None, expected: int) -> None:
    """Refuses names that are not known, and a wrong number of them."""
    if given is None:
        return
    unknown = sorted(set(given) - set(ACTIVATIONS))
    if unknown:
        raise OpError(f"activations: expected some of {', '.join(ACTIVATIONS)}; got {', '.join(unknown)}")
    if len(given) != expected:
        raise OpError(f"activations: expected {expected}; got {len(given)}")


def chosen(given: Sequence[str] | None, layer: str, direction: int) -> Sequence[str]:
    """The names of the activations of one direction of ``lstm``, ``gru`` or ``rnn``."""
    defaults = DEFAULTS[layer]
    names = given if given is not None else defaults * 2
    return names[direction * len(defaults) : (direction + 1) * len(defaults)]


def activation(name: str, clip: float | None) -> Activation:
    """The function; ``clip`` bounds what it is applied to."""
    function = ACTIVATIONS[name]
    return function if clip is None else lambda x: function(np.clip(x, -clip, clip))


def bounds(name: str, clip: float) -> tuple[float, float]:
    """The values between which a clipped activation has not met its bounds, rounding aside."""
    low, high = ACTIVATIONS[name](np.array([-clip, clip])).tolist()
    margin = 1e-6 * (high - low)
    return low + margin, high - margin


def derivative(name: str, clip: float | None) -> Activation:
    """The derivative in terms of the value; 0 where ``clip`` holds the argument."""
    function = DERIVATIVES[name]
    if clip is None:
        return function
    low, high = bounds(name, clip)
    return lambda y: np.where((y > low) & (y < high), function(y), 0.0)


def positions(direction: str, d: int, steps: int) -> list[int]:
    """The positions in the sequence in the order in which they are taken."""
    backward = direction == "reverse" or d == 1
    return list(reversed(range(steps))) if backward else list(range(steps))
