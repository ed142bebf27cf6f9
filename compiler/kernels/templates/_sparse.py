"""Zeros in constant weights: whether there are enough of them, where they are, and what is kept of them.

Sparsity has no format: a planner looks at the constant of a layer. Looking costs next to nothing where it is dense,
because a sample tells; of one that is not, all templates share the matrix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ...prune.patterns import to_matrix
from ..spec import Region

DENSE = 0.9  # part of the weights beyond which leaving out the others never pays
_CHUNK, _CHUNKS = 512, 64  # neighbours and places of a sample
_seen: deque[tuple[np.ndarray, str, np.ndarray | None]] = deque(maxlen=2)  # one template asks after the other


def sparse_matrix(region: Region, arg: int = 1) -> np.ndarray | None:
    """The constant weights of a matmul or a convolution (of one group) as ``[K, N]``, rows tap after tap, channels
    within; None where they are no constant, no matrix, or dense. Do not write to it."""
    at = region.operand(arg)
    const = None if at is None else region.inputs[at].const
    if const is None or not const.size or region.attrs.get("group", 1) != 1:
        return None
    op = "matmul" if region.op.startswith("matmul") else "conv"
    if op == "matmul" and (const.ndim < 2 or const.size != const.shape[-2] * const.shape[-1]):
        return None
    for known, known_op, matrix in _seen:
        if known is const and known_op == op:
            return matrix
    found = None
    if sampled_density(const) <= DENSE and np.count_nonzero(const) <= DENSE * const.size:
        flat = const.reshape(const.shape[-2:]) if op == "matmul" else const
        found = np.ascontiguousarray(to_matrix(flat, op))
    _seen.append((const, op, found))
    return found


def sampled_density(array: np.ndarray) -> float:
    """The part of an array that is not zero, by a look at pieces spread over it (of a small one, at all of it)."""
    if array.size <= 2 * _CHUNK * _CHUNKS or not (array.flags.c_contiguous or array.flags.f_contiguous):
        return np.count_nonzero(array) / max(1, array.size)
    flat = array.ravel(order="K")
    starts = np.linspace(0, flat.size - _CHUNK, _CHUNKS).astype(np.int64)
    return sum(np.count_nonzero(flat[s : s + _CHUNK]) for s in starts) / (_CHUNK * _CHUNKS)


def alive_columns(matrix: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Bool ``[K, groups]``: whether a row of the matrix has any weight among the columns of each group, groups of
    ``widths`` columns lying side by side (the last may hang over the edge)."""
    starts = np.cumsum([0, *widths[:-1]])
    return np.logical_or.reduceat(matrix != 0, starts, axis=1)


def compact(places: np.ndarray) -> tuple[np.ndarray, int]:
    """Non-negative offsets as small numbers, and what to multiply them by: two bytes each where that holds them."""
    unit = int(np.gcd.reduce(places.reshape(-1))) if places.size else 0
    small = places // max(1, unit)
    return small.astype(np.uint16 if small.max(initial=0) < 1 << 16 else np.int32), max(1, unit)
