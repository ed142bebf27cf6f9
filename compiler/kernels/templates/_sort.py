"""Sorting inside a kernel, stably: entries in scratch memory, by radix or by merging.

An entry is an int64 that holds an order-preserving image of a key of up to 32 bits above the element's index; such
entries are sorted by the four bytes of the key. For wider keys it is the index alone, the key is looked up, and runs
are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Before = Callable[[Any, Any], Any]  # whether the first entry comes strictly before the second


_FEW = 64  # entries that are rather merged


def passes(most: int) -> int:
    """Rounds of merging that order ``most`` entries."""
    return max(0, (most - 1).bit_length())


def packed(k: Any, value: Any, index: Any, descending: bool) -> Any:
    """The entry of a key of up to 32 bits: ascending entries are sorted keys, equal ones in the order of ``index``."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant, dtype_of, like, reinterpret, select

    if dtype_of(value).startswith(("float", "bfloat")):
        value = k.bind(cast(value, "float32"), "key")
        value = select(tirx.EQ(value, like(0, value)), like(0, value), value)  # -0.0 equals 0.0
        bits = k.bind(reinterpret("int32", value), "bits")
        # negative numbers count backwards: all bits but the sign are flipped
        bits = k.bind(tirx.bitwise_xor(bits, select(bits < 0, constant(0x7FFFFFFF, "int32"), constant(0, "int32"))))
    else:
        bits = value
    wide = cast(bits, "int64")
    if dtype_of(bits) == "uint32":
        wide = wide - constant(1 << 31, "int64")
    if descending:
        wide = constant(-1, "int64") - wide
    return tirx.bitwise_or(tirx.shift_left(wide, constant(32, "int64")), cast(index, "int64"))


def unpacked(entry: Any) -> Any:
    """The index in an entry."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant

    return cast(tirx.bitwise_and(entry, constant(0x7FFFFFFF, "int64")), "int32")


def sort(k: Any, scratch: Any, most: int, count: Any) -> Any:
    """Orders the packed entries ``scratch[:count]``, as ``merge_sort`` does."""
    if most <= _FEW:
        return merge_sort(k, scratch, most, count, lambda a, b: a < b)
    counts = k.array("int32", 4 * 256, "counts")
    with k.loop(4 * 256) as i:
        k.store(counts, i, _number(0))
    with k.loop(count) as i:
        entry = k.bind(k.load(scratch, i), "entry")
        for byte in range(4):
            at = k.bind(byte * 256 + _digit(entry, byte), "at")
            k.store(counts, at, k.load(counts, at) + 1)
    with k.loop(4) as byte:  # from numbers to first places
        total = k.register("int32", 1, "total")
        total.set(_number(0))
        with k.loop(256) as i:
            here = k.bind(k.load(counts, byte * 256 + i), "here")
            k.store(counts, byte * 256 + i, total.get())
            total.set(total.get() + here)
    for byte in range(4):
        source, target = (byte % 2) * most, (1 - byte % 2) * most
        with k.loop(count) as i:
            entry = k.bind(k.load(scratch, source + i), "entry")
            at = k.bind(byte * 256 + _digit(entry, byte), "at")
            place = k.bind(k.load(counts, at), "place")
            k.store(scratch, target + place, entry)
            k.store(counts, at, place + 1)
    return 0


def _digit(entry: Any, byte: int) -> Any:
    """Byte ``byte`` of the key, lowest first; the highest one holds the sign."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant

    digit = cast(tirx.shift_right(entry, constant(32 + 8 * byte, "int64")), "int32")
    return tirx.bitwise_and(digit + (128 if byte == 3 else 0), _number(255))


def _number(value: int) -> Any:
    from ..tir import constant

    return constant(value, "int32")


def merge_sort(k: Any, scratch: Any, most: int, count: Any, before: Before) -> Any:
    """Orders ``scratch[:count]`` (``count <= most``); needs ``2 * most`` places. Returns where the result begins."""
    from tvm import tirx

    rounds = passes(most)
    with k.loop(rounds) as i:
        width = k.bind(tirx.shift_left(tirx.IntImm("int32", 1), i), "width")
        source, target = k.bind((i % 2) * most), k.bind((1 - i % 2) * most)
        with k.loop(tirx.floordiv(count + 2 * width - 1, 2 * width)) as pair:
            _merge(k, scratch, source, target, pair * 2 * width, width, count, before)
    return (rounds % 2) * most


def _merge(k: Any, scratch: Any, source: Any, target: Any, low: Any, width: Any, count: Any, before: Before) -> None:
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
        ends = tirx.GE(left.get(), middle)
        take = k.bind(tirx.all(right.get() < high, tirx.any(ends, before(b, a))), "take")
        k.store(scratch, target + low + i, select(take, b, a))
        step = k.bind(select(take, constant(1, "int32"), constant(0, "int32")), "step")
        right.set(right.get() + step)
        left.set(left.get() + 1 - step)
