"""Initial weights: Keras's initializers by Keras's names, from a seed and the weight's own name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .trace import fail

Initializer = Callable[[Sequence[int], np.random.Generator], np.ndarray]


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Numbers of inputs and outputs of one unit: [in, out] of a matrix, [out, in, kernel...] of a convolution."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    if len(shape) == 2:
        return shape[0], shape[1]
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def _scaled(mode: str, scale: float, uniform: bool) -> Initializer:
    def initializer(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        fan_in, fan_out = fans(shape)
        variance = scale / max(1.0, {"in": fan_in, "avg": (fan_in + fan_out) / 2}[mode])
        if uniform:
            limit = math.sqrt(3.0 * variance)
            return rng.uniform(-limit, limit, shape)
        return _truncated(shape, rng) * (math.sqrt(variance) / 0.87962566103423978)

    return initializer


def _truncated(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal numbers within two standard deviations."""
    found = rng.standard_normal(shape)
    while (outside := np.abs(found) > 2).any():
        found[outside] = rng.standard_normal(int(outside.sum()))
    return found


def _orthogonal(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Orthonormal rows or columns (Saxe et al. 2014); leading axes hold independent matrices."""
    rows, columns = shape[-2:]
    made = []
    for _ in range(math.prod(shape[:-2])):
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.sign(np.diag(r))
        made.append(q if rows >= columns else q.T)
    return np.stack(made).reshape(shape)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": lambda shape, rng: np.zeros(shape),
    "ones": lambda shape, rng: np.ones(shape),
    "glorot_uniform": _scaled("avg", 1.0, True),
    "glorot_normal": _scaled("avg", 1.0, False),
    "he_uniform": _scaled("in", 2.0, True),
    "he_normal": _scaled("in", 2.0, False),
    "lecun_uniform": _scaled("in", 1.0, True),
    "lecun_normal": _scaled("in", 1.0, False),
    "uniform": lambda shape, rng: rng.uniform(-0.05, 0.05, shape),
    "random_uniform": lambda shape, rng: rng.uniform(-0.05, 0.05, shape),
    "normal": lambda shape, rng: rng.normal(0.0, 0.05, shape),
    "random_normal": lambda shape, rng: rng.normal(0.0, 0.05, shape),
    "truncated_normal": lambda shape, rng: 0.05 * _truncated(shape, rng),
    "orthogonal": _orthogonal,
}


def initial(given: Any, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The values of a new weight: by an initializer's name, a number, an array, or ``function(shape, rng)``."""
    if isinstance(given, str):
        if given not in INITIALIZERS:
            raise fail(f"initializer {given!r} is unknown", hint=f"use one of: {', '.join(sorted(INITIALIZERS))}")
        return INITIALIZERS[given](shape, rng)
    if callable(given):
        values = np.asarray(given(shape, rng))
    else:
        values = np.asarray(given)
        values = np.broadcast_to(values, shape) if values.ndim == 0 else values
    if values.shape != tuple(shape):
        raise fail(f"initial values: expected shape {list(shape)}, got {list(values.shape)}")
    return values
