"""Small checks on shapes and axes that the inference rules share. Shapes may hold named, unbound dimensions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..types import Dim, TensorType
from .record import OpError


def shown(shape: Sequence[Dim]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def normal_axis(axis: int, rank: int, what: str = "axis") -> int:
    """``axis`` counted from the front; ``OpError`` outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise OpError(f"{what} must be in [{-rank}, {rank - 1}], got {axis}")
    return axis % rank


def whole(dim: Dim, why: str) -> int:
    """A dimension that must be bound here."""
    if isinstance(dim, str):
        raise OpError(f"dimension {dim!r} must be bound: {why}")
    return dim


def expect_length(values: Sequence[object], rank: int, what: str) -> None:
    if len(values) != rank:
        raise OpError(f"{what} must have {rank} values, one for each axis; got {len(values)}: {tuple(values)}")


def expect_rank(x: TensorType, rank: int, what: str) -> None:
    if x.rank != rank:
        raise OpError(f"{what} must have rank {rank}, got {x}")


def expect_index(x: TensorType, what: str = "indices") -> None:
    if x.dtype not in ("int32", "int64"):
        raise OpError(f"{what} must be i32 or i64, got {x}")


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
