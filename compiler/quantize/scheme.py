"""How one tensor's numbers are stored as integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ops import OPS
from ..ops.selection import step_bounds

LEAST_SCALE = 1e-18  # the product of two of them is still a normal float32


@dataclass(frozen=True, eq=False)
class Scheme:
    """A real number is ``(q - zero_point) scale``, q of ``dtype`` within [low, high] (None: what the type holds).

    ``scale``: float32, of shape () or one that broadcasts against the tensor.
    """

    dtype: str
    scale: np.ndarray
    zero_point: int = 0
    low: int | None = None
    high: int | None = None

    def same(self, other: Scheme) -> bool:
        """Whether both store every number alike."""
        mine, theirs = ((s.dtype, s.zero_point, s.bounds) for s in (self, other))
        return mine == theirs and np.array_equal(self.scale, other.scale)

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest step."""
        return step_bounds(self.low, self.high, self.dtype)

    @property
    def reals(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest number that can be stored."""
        low, high = self.bounds
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def steps(self, x: np.ndarray) -> np.ndarray:
        """``x`` as integers: the reference of ``quantize``."""
        zero = np.asarray(self.zero_point, self.dtype)
        result = OPS["quantize"].reference(  # type: ignore[misc]
            x, self.scale, zero, to=self.dtype, low=self.low, high=self.high
        )
        return np.asarray(result)

    def real(self, q: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for: the reference of ``dequantize``."""
        zero = np.asarray(self.zero_point, self.dtype)
        return np.asarray(OPS["dequantize"].reference(q, self.scale, zero, to="float32"))  # type: ignore[misc]

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """``x`` quantized and dequantized."""
        return self.real(self.steps(x))


def affine(low: float, high: float, dtype: str) -> Scheme:
    """The scheme of an activation whose values lie in [low, high] (0 is always added).

    int8 and uint8 are asymmetric with a whole zero point, so that 0 is exact; int16 is symmetric. A tensor of zeros
    gets scale 1 and zero point 0; a constant c gets |c| / 255 and is exact up to float32 rounding.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if high - low <= 0.0:
        return Scheme(dtype, np.asarray(1.0, np.float32))
    if dtype == "int16":
        return Scheme(dtype, np.asarray(max(max(-low, high) / 32767, LEAST_SCALE), np.float32), 0, -32767, 32767)
    least, most = step_bounds(None, None, dtype)
    scale = np.float32(max((high - low) / (most - least), LEAST_SCALE))
    zero = int(np.clip(np.rint(least - low / scale), least, most))
    return Scheme(dtype, np.asarray(scale, np.float32), zero)


def symmetric(reach: np.ndarray, bits: int) -> Scheme:
    """The scheme of weights whose magnitude is at most ``reach`` (an array that broadcasts against them).

    A channel of zeros gets the mean scale of the others (1 where all are zero). With fewer than 8 bits the least step
    is used too: [-8, 7] of 4 bits.
    """
    most = 2 ** (bits - 1) - 1
    reach = np.asarray(reach, np.float64)
    some = reach > 0
    other = reach[some].mean() if some.any() else float(most)
    scale = np.maximum(np.where(some, reach, other) / most, LEAST_SCALE)
    return Scheme("int8", scale.astype(np.float32), 0, -most - (bits < 8), most)
