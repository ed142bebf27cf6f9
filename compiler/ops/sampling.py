"""Sample calls: short names for the types in ``Case`` and the arrays that tests and benchmarks feed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..types import TensorType, is_float
from .numeric import numpy_dtype
from .record import Case


def t(dtype: str, *shape: int) -> TensorType:
    """``t("int32", 2, 3)``: a tensor type."""
    return TensorType(dtype, shape)


def f32(*shape: int) -> TensorType:
    """A float32 tensor type."""
    return TensorType("float32", shape)


def sample_inputs(case: Case, seed: int) -> tuple[np.ndarray | None, ...]:
    """The inputs of a case: its own arrays, and seeded random ones for its types.

    Floats are uniform in ``[low, high)``, integers uniform over the integers in ``[low, high]`` that the type
    holds, bools fair. The same seed gives the same arrays.
    """
    rng = np.random.default_rng(seed)
    return tuple(_sample(given, case, rng) if isinstance(given, TensorType) else given for given in case.inputs)


def _sample(type: TensorType, case: Case, rng: np.random.Generator) -> np.ndarray:
    dtype: np.dtype[Any] = numpy_dtype(type.dtype)
    if type.dtype == "bool":
        return rng.integers(0, 2, type.dims).astype(bool)
    if is_float(type.dtype):
        return rng.uniform(case.low, case.high, type.dims).astype(dtype)
    bounds = np.iinfo(dtype)
    low, high = max(math.ceil(case.low), bounds.min), min(math.floor(case.high), bounds.max)
    return rng.integers(low, max(low, high), type.dims, dtype=dtype, endpoint=True)
