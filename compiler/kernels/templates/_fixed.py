"""Rescaling sums to 8 bits in integers, bit for bit as the float32 rule of ``ops.integers.rescale``.

The rule is a staircase: sums from a threshold on become a step or more. So is ``(offset + (sum M >> 32)) >> shift``,
and two staircases with the same thresholds are the same function. For each channel the multipliers M that keep every
threshold that its sums can reach are an interval; where it is empty (the float product was rounded to the other side
of a half) the channel keeps the float rule. Both fit one word: M, which is even, or the float's bits but for the sign
and a lowest bit of 1 instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.integers import NARROW
from ...ops.selection import step_bounds
from ..expr import Program
from ..spec import Region

_SHIFTS = range(13)  # of the second shift; more do not help multipliers that matter
_USUAL = 3  # taken where it is nearly as good as the best, so that layers share kernels
_ALLOWED = 0.06  # of the channels that the usual shift may cost
_GREATEST = (1 << 31) - 1
_FAR = 1 << 40


@dataclass(frozen=True)
class Fixed:
    """``words``: int32 a channel, M (even) or twice the bits of the float multiplier, plus 1; ``offset`` holds the
    zero point and the half that rounds; ``mixed``: whether any channel keeps the float rule."""

    words: np.ndarray
    offset: int
    shift: int

    @property
    def mixed(self) -> bool:
        return bool((self.words & 1).any())


def reach(weights: np.ndarray, bias: np.ndarray | None, dtype: str, zero_point: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest sum of each channel: weights ``[channel, ...]``, inputs of ``dtype``."""
    w = weights.reshape(len(weights), -1).astype(np.int64)
    low, high = (v - zero_point for v in step_bounds(None, None, dtype))
    zero = np.zeros(len(w), np.int64) if bias is None else np.asarray(bias, np.int64).reshape(-1)
    up, down = np.maximum(w, 0).sum(axis=1), np.minimum(w, 0).sum(axis=1)
    # a tap on padding counts as 0, which lies between unless the zero point is out of range
    low, high = min(low, 0), max(high, 0)
    return zero + up * low + down * high, zero + up * high + down * low


def fixed(
    multiplier: np.ndarray,
    zero_point: int,
    to: str,
    least: np.ndarray,
    most: np.ndarray,
    bounds: tuple[Any, Any] = (None, None),
) -> Fixed | None:
    """The words for channels whose sums lie in ``[least, most]``; None where the rule cannot be said so: no 8 bits,
    multipliers that are not positive, or sums beyond int32. ``bounds`` are ``low`` and ``high`` of the rule."""
    m = np.broadcast_to(np.asarray(multiplier, np.float32).reshape(-1), least.shape)
    if to not in NARROW or not (np.isfinite(m) & (m >= 0)).all():
        return None
    if least.min() < -(1 << 31) or most.max() > _GREATEST or (m.astype(np.float64) * 2.0**31).max() > 2.0**60:
        return None
    low, high = step_bounds(bounds[0], bounds[1], to)
    steps = np.arange(low + 1, high + 1, dtype=np.int64) - zero_point
    first = _thresholds(m[:, None], steps[None])
    found = {s: _multipliers(m, first, steps, 32 + s, least, most) for s in _SHIFTS if _offset(zero_point, s) < 1 << 30}
    lost = {s: int((words < 0).sum()) for s, words in found.items()}
    best = min(found, key=lambda s: (lost[s], s))
    shift = _USUAL if lost[_USUAL] - lost[best] <= _ALLOWED * len(m) else best
    bits = m.view(np.uint32).astype(np.int64) * 2 + 1
    words = np.where(found[shift] < 0, bits, found[shift]).astype(np.uint32).view(np.int32)
    return Fixed(words, _offset(zero_point, shift), shift)


def _offset(zero_point: int, shift: int) -> int:
    return int(zero_point * (1 << shift) + (1 << shift >> 1))


def _thresholds(m: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """For each channel and step the least sum that the float rule takes to it (or to more)."""
    guess = np.ceil((steps - 0.5) / np.maximum(m.astype(np.float64), 1e-30))
    near = np.clip(guess, -_FAR, _FAR).astype(np.int64)
    width = 4 + np.abs(near) // (1 << 21)
    below, above = near - width, near + width
    while (above - below > 1).any():
        middle = (below + above) // 2
        reached = np.rint(middle.astype(np.float32) * m) >= steps
        above, below = np.where(reached, middle, above), np.where(reached, below, middle)
    return np.asarray(above)


def _multipliers(
    m: np.ndarray, first: np.ndarray, steps: np.ndarray, total: int, least: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """M of each channel, an even number, or -1, for products shifted by ``total``. A sum s reaches a step where
    ``s M >= target``."""
    target = np.broadcast_to((2 * steps - 1)[None] * (1 << (total - 1)), first.shape)
    if total == 32:  # no bits below the result: the half would be lost
        return np.full(len(m), -1, np.int64)
    lowest, highest = np.full(first.shape, 1, np.int64), np.full(first.shape, _GREATEST, np.int64)
    bad = np.zeros(first.shape, bool)
    reaching = (first <= most[:, None], np.maximum(first, least[:, None]))  # this sum must reach the step
    missing = (first > least[:, None], np.minimum(first - 1, most[:, None]))  # this one must not
    for (given, s), exact in ((reaching, 0), (missing, 1)):
        place = np.where(s == 0, 1, s)
        quotient = -((-target) // place) if exact == 0 else target // place  # rounded inward for s > 0
        up = given & (s > 0)
        if exact == 0:
            lowest = np.where(up, np.maximum(lowest, quotient), lowest)
            highest = np.where(given & (s < 0), np.minimum(highest, target // place), highest)
            bad |= given & (s == 0) & (target > 0)
        else:
            highest = np.where(up, np.minimum(highest, -((-target) // place) - 1), highest)
            lowest = np.where(given & (s < 0), np.maximum(lowest, target // place + 1), lowest)
            bad |= given & (s == 0) & (target <= 0)
    low, high = lowest.max(axis=1), highest.min(axis=1)
    wanted = np.rint(np.minimum(m.astype(np.float64) * 2.0**total, 2.0**62)).astype(np.int64)
    low, high = low + low % 2, high - high % 2
    return np.asarray(np.where((low <= high) & ~bad.any(axis=1), np.clip(wanted + wanted % 2, low, high), -1))


def settled(region: Region, program: Program) -> Program:
    """The program with ``fixed`` (see ``_within_a_word``) among the attributes of each ``requantize`` of 8-bit numbers
    by one known multiplier."""
    nodes = [dict(n) for n in program["nodes"]]
    for node in nodes:
        if node["op"] != "requantize" or (dtype := _dtype(program, node["args"][0])) not in NARROW:
            continue
        multiplier, attrs = _number(region, program, node["args"][1]), node["attrs"]
        if multiplier is None:
            continue
        least, most = (np.array([v - attrs["x_zero_point"]], np.int64) for v in step_bounds(None, None, dtype))
        bounds = (attrs["low"], attrs["high"])
        found = _within_a_word(multiplier, attrs["zero_point"], attrs["to"], least, most, bounds)
        if found is not None:
            node["attrs"] = {**attrs, "fixed": found}
    return {**program, "nodes": nodes}


def _within_a_word(
    multiplier: np.ndarray, zero_point: int, to: str, least: np.ndarray, most: np.ndarray, bounds: tuple[Any, Any]
) -> list[int] | None:
    """M, the offset and a shift with which ``(offset + sum M) >> shift`` is the rule and fits an int32."""
    m, reached = multiplier.reshape(-1), max(1, int(max(abs(least[0]), abs(most[0]))))
    if to not in NARROW or not 0 < m[0] < 1 << 8:
        return None
    low, high = step_bounds(bounds[0], bounds[1], to)
    steps = np.arange(low + 1, high + 1, dtype=np.int64) - zero_point
    first = _thresholds(m[:, None], steps[None])
    for shift in range(21, 7, -1):
        if m[0] * 2.0**shift * reached >= 1 << 30 or (abs(zero_point) + 1) << shift >= 1 << 30:
            continue
        word = int(_multipliers(m, first, steps, shift, least, most)[0])
        if 0 < word * reached < 1 << 30:
            return [word, _offset(zero_point, shift), shift]
    return None


def _dtype(program: Program, at: int) -> str:
    first = len(program["inputs"])
    return str((program["inputs"][at] if at < first else program["nodes"][at - first])["dtype"])


def _number(region: Region, program: Program, at: int) -> np.ndarray | None:
    """A known number that all elements share."""
    first = len(program["inputs"])
    if at >= first:
        node = program["nodes"][at - first]
        return np.array([node["value"]], np.float32) if node["op"] == "const" else None
    array = region.inputs[at].const
    return array if array is not None and array.size == 1 else None


# -- in the kernel ---------------------------------------------------------------------------------------------------


def settled_value(sums: Any, attrs: dict[str, Any]) -> Any:
    """The rescaled sum as an int32 by what ``settled`` found."""
    from ..tir import constant, shift_right

    word, offset, shift = (constant(v, "int32") for v in attrs["fixed"])
    return _clipped(shift_right(sums * word + offset, shift), attrs)


def _clipped(value: Any, attrs: dict[str, Any]) -> Any:
    from ..integers import bounds_of, spread
    from ..tir import maximum, minimum

    low, high = bounds_of(attrs)
    return minimum(maximum(value, spread(low, value)), spread(high, value))


def in_integers(k: Any, sums: Any, word: Any, offset: Any, shift: int, attrs: dict[str, Any]) -> Any:
    """The rescaled sum as an int32: a product's upper half with the offset added, a shift, and a clip."""
    from tvm import tirx

    from ..tir import constant, shift_right

    wide = tirx.Cast("int64", sums) * tirx.Cast("int64", word)
    upper = tirx.Cast("int32", shift_right(wide, tirx.const(32, "int64"))) + offset
    return _clipped(shift_right(upper, constant(shift, "int32")), attrs)


def in_floats(k: Any, sums: Any, word: Any, attrs: dict[str, Any]) -> Any:
    """The same by the float rule."""
    from ..integers import rescaled
    from ..tir import constant, reinterpret, shift_right

    bits = shift_right(reinterpret("uint32", word), constant(1, "uint32"))
    return rescaled(k, sums, reinterpret("float32", bits), attrs)


def finish(
    k: Any,
    sums: Sequence[Any],
    word: Any,
    held: dict[str, Any],
    offset: Any,
    store: Callable[[Any, Any], None],
    spare: tuple[Any, Any, Any] | None = None,
) -> None:
    """Rescales sums of one channel and hands each to ``store(number, value of the result's type)``. ``held`` is
    ``{"shift", "mixed", "attrs"}``. ``spare`` is a buffer of int32, a place in it where sums may be put, and how a
    loop is made that stays one: then the float rule, which few channels need, is not written out for each sum."""
    from ..functions import cast
    from ..tir import constant

    attrs = held["attrs"]

    def whole() -> None:
        for i, s in enumerate(sums):
            store(i, cast(in_integers(k, s, word, offset, held["shift"], attrs), attrs["to"]))

    if not held["mixed"]:
        whole()
        return
    kept = k.bind(word & constant(1, "int32"), "kept")
    with k.when(kept.equal(0)):
        whole()
    with k.when(kept.equal(1)):
        if spare is None or len(sums) == 1:
            for i, s in enumerate(sums):
                store(i, in_floats(k, s, word, attrs))
            return
        each, at, loop = spare
        for i, s in enumerate(sums):
            k.store(each, at + i, s)
        with loop(len(sums)) as i:
            store(i, in_floats(k, k.load(each, at + i), word, attrs))
