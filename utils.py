"""``from nervure.utils import to_categorical``: what Keras's users put before ``fit``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import NervureError

__all__ = ["to_categorical"]


def to_categorical(x: Any, num_classes: int | None = None) -> np.ndarray:
    """Class numbers of any shape as rows that are 1 at the class and 0 elsewhere: float32 [..., num_classes], by
    default as many as the largest number asks for. A last axis of one element is taken off (Keras).

    Not needed for training: ``sparse_categorical_crossentropy`` takes the numbers themselves. ``NervureError``: a
    number below 0 or beyond ``num_classes``, numbers that are not whole.
    """
    numbers = np.asarray(x)
    if numbers.ndim > 1 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    whole = numbers.astype(np.int64)
    if (whole != numbers).any():
        raise NervureError("class numbers must be whole")
    classes = int(whole.max(initial=-1)) + 1 if num_classes is None else num_classes
    if whole.size and not 0 <= whole.min() <= whole.max() < classes:
        raise NervureError(f"class numbers lie from {whole.min()} to {whole.max()}", why=f"there are {classes} classes")
    return np.eye(classes, dtype=np.float32)[whole]
