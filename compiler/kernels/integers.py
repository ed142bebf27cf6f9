"""Elementwise arithmetic on quantized tensors, bit for bit as ``ops.integers`` defines it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ops.integers import ADD_SHIFT, NARROW
from ..ops.selection import step_bounds
from . import vecmath
from .tir import (
    Builder,
    Expr,
    as_dtype,
    chosen,
    constant,
    dtype_of,
    joined,
    lanes_of,
    like,
    maximum,
    minimum,
    reinterpret,
    shift_right,
)

Node = dict[str, Any]
_SHIFTER = 1.5 * 2**23  # added to a float below 2^22, it leaves the nearest integer in the lowest bits


def cast(x: Expr, dtype: str) -> Expr:
    from .functions import cast  # which imports this module

    return cast(x, dtype)


def shifted(x: Expr, zero_point: int, dtype: str) -> Expr:
    """``x - zero_point`` in a type that holds it."""
    wide = cast(x, dtype)
    return wide - like(zero_point, wide) if zero_point else wide


def rescaled(k: Builder, sums: Expr, multiplier: Expr, attrs: Node) -> Expr:
    """``ops.integers.rescale``. The product is clipped as a float, so that what is converted fits an int32, unless
    ``attrs["fits"]`` says that it does (see ``expr.serialize``)."""
    zero_point, to = attrs["zero_point"], attrs["to"]
    low, high = step_bounds(attrs["low"], attrs["high"], to)
    real = k.bind(cast(sums, "float32") * multiplier, "real")
    if attrs.get("fits") and _rounds(k, real):
        return narrowed(k, _nearest(k, real), zero_point, low, high, to)
    if _rounds(k, real):
        real = k.bind(vecmath.bounded(real, low - zero_point, high - zero_point))
        return narrowed(k, _nearest(k, real), zero_point, low, high, to)
    if to in NARROW and lanes_of(real) > 1 and k.lanes > 1:
        return _by_bits(k, real, zero_point, low, high, to)
    real = k.bind(vecmath.bounded(real, low - zero_point, high - zero_point))
    return cast(shifted(vecmath.round_even(k, real), -zero_point, "int32"), to)


def _by_bits(k: Builder, real: Expr, zero_point: int, low: int, high: int, to: str) -> Expr:
    """Without an instruction that rounds: added to 1.5 2^23, a float's lowest bits are those of the integer."""
    lanes = lanes_of(real)
    for name, bound in (("maximum", low - zero_point), ("minimum", high - zero_point)):
        real = k.call(f"llvm.{name}.v{lanes}f32", as_dtype("float32", lanes), real, like(bound, real))
    bits = reinterpret(as_dtype("int32", lanes), k.bind(real + like(_SHIFTER, real)))
    steps = cast(k.bind(bits), to)
    return steps + like(zero_point, steps)


def rescaled_parts(k: Builder, sums: Sequence[Expr], multipliers: Sequence[Expr], attrs: Node) -> Expr:
    """``rescaled`` of four vectors whose products fit (see ``rescaled``), as the machine packs them: each 128 bits of
    the result hold 128 bits of every one."""
    row = k.row(f"pack.{attrs['to']}", 4 * lanes_of(sums[0]))
    parts = [_nearest(k, k.bind(cast(s, "float32") * m)) for s, m in zip(sums, multipliers, strict=True)]
    zero = constant(attrs["zero_point"], "int16", row.lanes // 2)
    steps = k.instruction(row, **dict(zip("abcd", map(k.bind, parts), strict=True)), zero=zero)
    return _within(k, steps, *step_bounds(attrs["low"], attrs["high"], attrs["to"]))


def _rounds(k: Builder, real: Expr) -> bool:
    """Whether the machine rounds such a vector to int32 by itself."""
    return lanes_of(real) >= 4 and k.row("round") is not None


def _nearest(k: Builder, real: Expr) -> Expr:
    lanes = lanes_of(real)
    return k.call(f"llvm.lrint.v{lanes}i32.v{lanes}f32", as_dtype("int32", lanes), real)


def narrowed(k: Builder, wide: Expr, zero: int, low: int, high: int, to: str) -> Expr:
    """``clip(wide + zero, low, high)`` of int32 lanes as ``to``, by the machine's saturating packs if it has them."""
    lanes = lanes_of(wide)
    row = _pack_row(k, to, lanes) if dtype_of(wide) == "int32" else None
    if row is None:
        placed = k.bind(shifted(wide, -zero, dtype_of(wide)))
        return cast(minimum(maximum(placed, like(low, placed)), like(high, placed)), to)
    held = k.bind(wide)
    step = min(lanes, row.lanes)
    found = [_packed(k, row, _lanes(held, at, step), zero) for at in range(0, lanes, step)]
    return _within(k, joined(found), low, high)


def _within(k: Builder, steps: Expr, low: int, high: int) -> Expr:
    """Clips where the bounds are narrower than the type's."""
    least, most = step_bounds(None, None, dtype_of(steps))
    steps = steps if low <= least else maximum(k.bind(steps), like(low, steps))
    return steps if high >= most else minimum(k.bind(steps), like(high, steps))


def _pack_row(k: Builder, to: str, lanes: int) -> Any:
    """The widest row that ``lanes`` fill to the half at least, or, for a vector of the smallest part, that one."""
    if to not in NARROW or lanes & (lanes - 1):
        return None
    return next((row for n in (2 * lanes, lanes, 4 * lanes) if (row := k.row(f"pack.{to}", n)) is not None), None) or (
        k.row(f"pack.{to}") if lanes > k.lanes else None
    )


def _packed(k: Builder, row: Any, wide: Expr, zero: int) -> Expr:
    """As many lanes as the row packs, or a half or a quarter of them."""
    size = row.lanes // 4
    lanes = lanes_of(wide)
    parts = [k.bind(_lanes(wide, at, size)) for at in range(0, lanes, size)]
    given = dict(zip("abcd", parts * (4 // len(parts)), strict=True))
    steps = k.bind(k.instruction(row, **given, zero=constant(zero, "int16", 2 * size)))
    to, groups = dtype_of(steps), size // 4
    if groups == 1 and lanes == row.lanes:
        return steps
    words = reinterpret(as_dtype("int32", size), steps)  # four bytes of each part in each 128 bits
    order = [4 * i + j for j in range(len(parts)) for i in range(groups)]
    return reinterpret(as_dtype(to, lanes), k.bind(chosen([words], order)))


def _lanes(vector: Expr, first: int, lanes: int) -> Expr:
    return vector if lanes == lanes_of(vector) else chosen([vector], range(first, first + lanes))


def requantize(k: Builder, node: Node, x: Expr, multiplier: Expr) -> Expr:
    attrs = node["attrs"]
    wide = "int64" if dtype_of(x).endswith("64") else "int32"
    return rescaled(k, shifted(x, attrs["x_zero_point"], wide), multiplier, attrs)


def add_integer(k: Builder, node: Node, a: Expr, b: Expr, a_multiplier: Expr, b_multiplier: Expr) -> Expr:
    attrs = node["attrs"]
    wide = "int64" if dtype_of(a).endswith("16") else "int32"
    parts = [cast(x, wide) * cast(m, wide) for x, m in ((a, a_multiplier), (b, b_multiplier))]
    half = constant(1 << (ADD_SHIFT - 1), wide, lanes_of(parts[0]))
    for m, zero in ((a_multiplier, "a_zero_point"), (b_multiplier, "b_zero_point")):
        if attrs[zero]:
            half = half - cast(m, wide) * like(attrs[zero], half)
    sums = shift_right(parts[0] + parts[1] + half, like(ADD_SHIFT, half))
    return narrowed(k, sums, attrs["zero_point"], *step_bounds(attrs["low"], attrs["high"], attrs["to"]), attrs["to"])


def mul_integer(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    wide = "int64" if dtype_of(a).endswith("16") else "int32"
    return shifted(a, node["attrs"]["a_zero_point"], wide) * shifted(b, node["attrs"]["b_zero_point"], wide)


FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "requantize": requantize,
    "add_integer": add_integer,
    "mul_integer": mul_integer,
}
