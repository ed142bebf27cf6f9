"""Arithmetic on shapes that may hold named, unbound dimensions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..types import Dim


def same_size(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes hold the same number of elements whatever the named dimensions are bound to."""
    return _factors(a) == _factors(b)


def missing_factor(whole_shape: Sequence[Dim], part: Sequence[Dim]) -> Dim | None:
    """The one dimension by which ``part`` must be multiplied to hold as many elements as ``whole_shape``."""
    (total, names), (count, used) = _factors(whole_shape), _factors(part)
    if count == 0 or total % count or used - names:
        return None
    rest = list((names - used).elements())
    if not rest:
        return total // count
    return rest[0] if len(rest) == 1 and total == count else None


def _factors(shape: Sequence[Dim]) -> tuple[int, Counter[str]]:
    count = math.prod(d for d in shape if isinstance(d, int))
    return count, Counter() if count == 0 else Counter(d for d in shape if isinstance(d, str))
