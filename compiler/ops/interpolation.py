"""The kernels that images are interpolated with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MODES = ("nearest", "linear", "cubic")


def triangle(distance: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - distance, 0))


def cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """The cubic convolution kernel (Keys 1981) over distances."""

    def kernel(d: np.ndarray) -> np.ndarray:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((d - 5) * d + 8) * d * a - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return kernel
