"""Arithmetic of memory orders and strided views, in elements."""

from __future__ import annotations

import math
from collections.abc import Sequence


def dense(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Strides of a tensor without gaps whose axes lie in memory in ``order``, outermost first (default: as named)."""
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def order_of(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The axes from the outermost to the innermost in memory; axes of one element keep their neighbours' place."""
    return tuple(sorted(range(len(shape)), key=lambda a: (-abs(strides[a]) if shape[a] > 1 else -math.inf, a)))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the tensor lies row-major without gaps (strides of one-element axes do not matter)."""
    expected = dense(shape)
    return all(d == 1 or s == e for d, s, e in zip(shape, strides, expected, strict=True))


def same_walk(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two stride tuples mean the same elements."""
    return all(d == 1 or s == t for d, s, t in zip(shape, a, b, strict=True))


def reshape_view(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of the reshaped tensor over the same bytes, or None where only a copy can do it."""
    if math.prod(shape) == 0:
        return dense(new)
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    result: list[int] = []
    i = 0
    remaining: list[int] = [d for d in new]
    j = 0
    while j < len(remaining):
        if remaining[j] == 1:
            result.append(0)
            j += 1
            continue
        size, k = remaining[j], j + 1
        have, first = old[i][0], i
        i += 1
        while size != have:
            if size < have:
                size *= remaining[k]
                k += 1
            else:
                have *= old[i][0]
                i += 1
        block = old[first:i]
        if any(block[n][1] != block[n + 1][1] * block[n + 1][0] for n in range(len(block) - 1)):
            return None
        step = block[-1][1]
        part: list[int] = []
        for d in reversed(remaining[j:k]):
            part.append(step)
            step *= d
        result += reversed(part)
        j = k
    return tuple(result)
