"""What the numpy references compute with: element types, exact integer rules, special functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of an element type; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def is_real(array: np.ndarray) -> bool:
    """Whether the elements are of a float type (bfloat16 has a kind of its own in numpy)."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def widen(array: np.ndarray) -> np.ndarray:
    """The array in the type that references accumulate in: float64, int64 or uint64; bool as int64."""
    if is_real(array):
        return array.astype(np.float64, copy=False)
    return array.astype(np.uint64 if array.dtype.kind == "u" else np.int64, copy=False)


def lowest(dtype: np.dtype[Any]) -> Any:
    """The identity of maximum."""
    return -np.inf if dtype.kind not in "iub" else False if dtype.kind == "b" else np.iinfo(dtype).min


def highest(dtype: np.dtype[Any]) -> Any:
    """The identity of minimum."""
    return np.inf if dtype.kind not in "iub" else True if dtype.kind == "b" else np.iinfo(dtype).max


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` without numpy's warnings: overflow, division by zero and NaN follow IEEE 754, integers wrap."""

    def silent(*arrays: Any, **attrs: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arrays, **attrs)

    return silent


def erf(x: np.ndarray) -> np.ndarray:
    """The error function in float64."""
    return np.asarray(_erf(x.astype(np.float64)), dtype=np.float64)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """The normal distribution function, exact to the last bits in its tails too."""
    return 0.5 * np.asarray(_erfc(x.astype(np.float64) * -math.sqrt(0.5)), dtype=np.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1.0 + e))


THREEFRY_TURNS = (13, 15, 26, 6, 17, 29, 16, 24)  # bits, round by round
THREEFRY_PARITY = 0x1BD11BDA


def threefry(key: np.ndarray, first: np.ndarray, second: np.ndarray, rounds: int = 13) -> np.ndarray:
    """Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the first of the two uint32
    words that the key (two words) makes of a counter (two words). 13 rounds are the fewest that pass BigCrush."""
    keys = [key[0], key[1], key[0] ^ key[1] ^ np.uint32(THREEFRY_PARITY)]
    x, y = first + keys[0], second + keys[1]
    for r in range(rounds):
        turn = np.uint32(THREEFRY_TURNS[r % 8])
        x = x + y
        y = (y << turn | y >> np.uint32(32 - turn)) ^ x
        if r % 4 == 3:
            turns = (r + 1) // 4
            x, y = x + keys[turns % 3], y + keys[(turns + 1) % 3] + np.uint32(turns)
    return np.asarray(x)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient; of integers truncated toward zero as in C (by zero: 0)."""
    if is_real(a):
        return np.asarray(np.true_divide(a, b))
    quotient = np.floor_divide(a, b)
    inexact = (quotient * b != a) & (b != 0)
    return np.asarray(quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype))


def power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a to the power b; a negative power of an integer is truncated toward zero (of 0: 0)."""
    if is_real(a):
        return np.asarray(np.power(widen(a), widen(b)))
    result = np.asarray(np.power(a, np.maximum(b, 0)))
    if a.dtype.kind == "u":
        return result
    unit = np.where(a == 1, 1, np.where(a == -1, 1 - 2 * (b & 1), 0)).astype(a.dtype)
    return np.where(b < 0, unit, result)
