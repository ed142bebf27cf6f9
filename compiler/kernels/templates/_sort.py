"""Sorting inside a kernel: indices in scratch memory, compared by the keys that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Key = Callable[[Any], Any]  # the key of an element, as an expression
Before = Callable[[Any, Any], Any]  # whether the first key comes strictly before the second


def passes(most: int) -> int:
    """Rounds of merging that order ``most`` elements."""
    return max(0, (most - 1).bit_length())


def merge_sort(k: Any, scratch: Any, base: Any, most: int, count: Any, key: Key, before: Before) -> Any:
    """Orders the indices in ``scratch[base : base + count]`` (``count <= most``), equal keys as they stand; needs
    ``2 * most`` places from ``base`` on. Returns where the result begins."""
    from tvm import tirx

    rounds = passes(most)
    with k.loop(rounds) as i:
        width = k.bind(tirx.shift_left(tirx.IntImm("int32", 1), i), "width")
        source, target = k.bind(base + (i % 2) * most), k.bind(base + (1 - i % 2) * most)
        with k.loop(tirx.floordiv(count + 2 * width - 1, 2 * width)) as pair:
            _merge(k, scratch, source, target, pair * 2 * width, width, count, key, before)
    return base + (rounds % 2) * most


def _merge(
    k: Any, scratch: Any, source: Any, target: Any, low: Any, width: Any, count: Any, key: Key, before: Before
) -> None:
    from tvm import tirx

    from ..tir import constant, maximum, minimum, select

    low = k.bind(low, "low")
    middle, high = k.bind(minimum(low + width, count), "middle"), k.bind(minimum(low + 2 * width, count), "high")
    left, right = k.register("int32", 1, "left"), k.register("int32", 1, "right")
    left.set(low)
    right.set(middle)
    with k.loop(high - low) as i:
        a = k.bind(k.load(scratch, source + minimum(left.get(), middle - 1)), "a")
        b = k.bind(k.load(scratch, source + maximum(minimum(right.get(), high - 1), low)), "b")
        first = k.bind(before(key(b), key(a)), "first")
        ends = tirx.GE(left.get(), middle)
        take = k.bind(tirx.all(right.get() < high, tirx.any(ends, first)), "take")
        k.store(scratch, target + low + i, select(take, b, a))
        step = k.bind(select(take, constant(1, "int32"), constant(0, "int32")), "step")
        right.set(right.get() + step)
        left.set(left.get() + 1 - step)
