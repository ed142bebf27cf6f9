"""Sums over segments: rows that belong together, wherever they lie. What graph networks gather messages with; names and
arguments are those of ``jax.ops``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import emit, exp, maximum, stop_gradient, where
from .index import _indices, take
from .promote import as_float, as_tensor
from .shaping import expand_dims, reshape
from .tensor import Tensor
from .trace import fail, public

__all__ = ["segment_max", "segment_mean", "segment_softmax", "segment_sum"]


def _scatter(x: Any, segment_ids: Any, num_segments: int, start: float, reduction: str) -> Tensor:
    """Rows folded into the rows of their numbers, which hold ``start`` at first."""
    given, ids = as_tensor(x), _indices(segment_ids)
    if ids.ndim != 1 or not given.ndim or given.shape[0] != ids.shape[0]:
        raise fail(f"segment_ids must have a number for each row of {given.type}, got {ids.type}")
    base = as_tensor(np.full((num_segments, *[1] * (given.ndim - 1)), start), given.dtype)
    wide = emit("expand", base, shape=(num_segments, *given.shape[1:]))
    return emit("scatter_nd", wide, expand_dims(ids, 1), given, reduction=reduction)


@public
def segment_sum(x: Any, segment_ids: Any, num_segments: int) -> Tensor:
    """The sums of rows: x [rows, ...] whose row i belongs to segment ``segment_ids[i]`` (from the end where negative)
    makes [num_segments, ...]. Segments without rows are 0."""
    return _scatter(x, segment_ids, num_segments, 0.0, "add")


@public
def segment_mean(x: Any, segment_ids: Any, num_segments: int) -> Tensor:
    """``segment_sum`` over the number of rows of each segment."""
    given = as_float(x)
    total = segment_sum(given, segment_ids, num_segments)
    return total / maximum(_counts(given, segment_ids, num_segments), 1.0)


@public
def segment_max(x: Any, segment_ids: Any, num_segments: int) -> Tensor:
    """The largest elements of each segment's rows; segments without rows are 0."""
    given = as_float(x)
    most = _scatter(given, segment_ids, num_segments, -np.inf, "max")
    return where(_counts(given, segment_ids, num_segments) > 0, most, 0.0)


@public
def segment_softmax(x: Any, segment_ids: Any, num_segments: int) -> Tensor:
    """exp(x) [rows, ...] over its sum in each row's segment, without overflow."""
    given = as_float(x)
    most = _scatter(stop_gradient(given), segment_ids, num_segments, -np.inf, "max")
    raised = exp(given - take(most, segment_ids, 0))
    return raised / take(segment_sum(raised, segment_ids, num_segments), segment_ids, 0)


def _counts(x: Tensor, segment_ids: Any, num_segments: int) -> Tensor:
    """The number of rows of each segment, as [num_segments, 1, ...]."""
    ones = as_tensor(np.ones(x.shape[0]), x.dtype)
    return reshape(segment_sum(ones, segment_ids, num_segments), (num_segments, *[1] * (x.ndim - 1)))
