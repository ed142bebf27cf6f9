"""Elementwise arithmetic on quantized tensors, bit for bit as ``ops.integers`` defines it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from ..ops.integers import NARROW
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
    shift_left,
    shift_right,
    splat,
)

Node = dict[str, Any]
_SHIFTER = 1.5 * 2**23  # added to a float below 2^22, it leaves the nearest integer in the lowest bits


def cast(x: Expr, dtype: str) -> Expr:
    from .functions import cast  # which imports this module

    return cast(x, dtype)


Number = Any  # a Python integer, or an int32 that the kernel reads


def spread(value: Number, x: Expr) -> Expr:
    """A number in every lane of ``x``'s type."""
    return like(value, x) if isinstance(value, int) else splat(cast(value, dtype_of(x)), lanes_of(x))


def shifted(x: Expr, zero_point: Number, dtype: str) -> Expr:
    """``x - zero_point`` in a type that holds it."""
    wide = cast(x, dtype)
    return wide if isinstance(zero_point, int) and not zero_point else wide - spread(zero_point, wide)


def bounds_of(attrs: Node) -> tuple[Number, Number]:
    """The least and the greatest step."""
    low, high = attrs["low"], attrs["high"]
    known = [v if isinstance(v, int) else None for v in (low, high)]
    least, most = step_bounds(known[0], known[1], attrs["to"])
    return (least if low is known[0] else low), (most if high is known[1] else high)


def rescaled(k: Builder, sums: Expr, multiplier: Expr, attrs: Node) -> Expr:
    """``ops.integers.rescale``. The product is clipped as a float, so that what is converted fits an int32, unless
    ``attrs["fits"]`` says that it does (see ``expr.serialize``)."""
    zero_point, to = attrs["zero_point"], attrs["to"]
    low, high = bounds_of(attrs)
    if k.calls and to in NARROW and dtype_of(sums) == "int32":
        numbers = [spread(n, sums) for n in (zero_point, low, high)]
        return cast(tirx.call_pure_extern(str(sums.ty.dtype), "rescale", sums, multiplier, *numbers), to)
    if k.widens and to != "int32" and dtype_of(sums) == "int32":  # a GPU, which rounds by an instruction
        numbers = [spread(n, sums) for n in (zero_point, low, high)]
        factor = splat(multiplier, lanes_of(sums))
        return cast(tirx.call_pure_extern(str(sums.ty.dtype), "nv_rescale", sums, factor, *numbers), to)
    real = k.bind(cast(sums, "float32") * multiplier, "real")
    if attrs.get("fits") and _rounds(k, real):
        return narrowed(k, _nearest(k, real), zero_point, low, high, to)
    if _rounds(k, real):
        return narrowed(k, _nearest(k, _clipped(k, real, low, high, zero_point)), zero_point, low, high, to)
    if to in NARROW and lanes_of(real) > 1 and k.lanes > 1:
        return _by_bits(k, real, zero_point, low, high, to)
    whole = cast(vecmath.round_even(k, _clipped(k, real, low, high, zero_point)), "int32")
    return cast(whole + spread(zero_point, whole), to)


def _clipped(k: Builder, real: Expr, low: Number, high: Number, zero_point: Number) -> Expr:
    real = k.bind(maximum(spread(low - zero_point, real), real))
    return k.bind(minimum(spread(high - zero_point, real), real))


def _by_bits(k: Builder, real: Expr, zero_point: Number, low: Number, high: Number, to: str) -> Expr:
    """Without an instruction that rounds: added to 1.5 2^23, a float's lowest bits are those of the integer."""
    lanes = lanes_of(real)
    for name, bound in (("maximum", low - zero_point), ("minimum", high - zero_point)):
        real = k.call(f"llvm.{name}.v{lanes}f32", as_dtype("float32", lanes), real, spread(bound, real))
    bits = reinterpret(as_dtype("int32", lanes), k.bind(real + like(_SHIFTER, real)))
    steps = cast(k.bind(bits), to)
    return steps + spread(zero_point, steps)


def rescaled_parts(k: Builder, sums: Sequence[Expr], multipliers: Sequence[Expr], attrs: Node) -> Expr:
    """``rescaled`` of four vectors whose products fit (see ``rescaled``), as the machine packs them: each 128 bits of
    the result hold 128 bits of every one."""
    row = k.row(f"pack.{attrs['to']}", 4 * lanes_of(sums[0]))
    parts = [_nearest(k, k.bind(cast(s, "float32") * m)) for s, m in zip(sums, multipliers, strict=True)]
    zero = _words(attrs["zero_point"], row.lanes // 2)
    steps = k.instruction(row, **dict(zip("abcd", map(k.bind, parts), strict=True)), zero=zero)
    return _within(k, steps, *bounds_of(attrs))


def _words(zero: Number, lanes: int) -> Expr:
    return constant(zero, "int16", lanes) if isinstance(zero, int) else splat(cast(zero, "int16"), lanes)


def _rounds(k: Builder, real: Expr) -> bool:
    """Whether the machine rounds such a vector to int32 by itself."""
    lanes = lanes_of(real)
    return k.row("round", 1) is not None if lanes == 1 else lanes >= 4 and k.row("round") is not None


def _nearest(k: Builder, real: Expr) -> Expr:
    lanes = lanes_of(real)
    row = k.row("round", lanes)
    if row is not None:
        return k.instruction(row, a=real)
    row = k.row("round", k.lanes)
    if row is None or lanes % k.lanes:
        return k.call(f"llvm.lrint.v{lanes}i32.v{lanes}f32", as_dtype("int32", lanes), real)
    held = k.bind(real)
    return joined([k.instruction(row, a=_lanes(held, at, k.lanes)) for at in range(0, lanes, k.lanes)])


def narrowed(k: Builder, wide: Expr, zero: Number, low: Number, high: Number, to: str) -> Expr:
    """``clip(wide + zero, low, high)`` of int32 lanes as ``to``, by the machine's saturating packs if it has them."""
    lanes = lanes_of(wide)
    row = _pack_row(k, to, lanes) if dtype_of(wide) == "int32" else None
    if row is None:
        placed = k.bind(wide if isinstance(zero, int) and not zero else wide + spread(zero, wide))
        clip = k.row(f"clip.{to}", lanes) if dtype_of(wide) == "int32" else None
        if clip is not None:
            return _within(k, cast(k.instruction(clip, a=placed), to), low, high)
        return cast(minimum(maximum(placed, spread(low, placed)), spread(high, placed)), to)
    held = k.bind(wide)
    step = min(lanes, row.lanes)
    found = [_packed(k, row, _lanes(held, at, step), zero) for at in range(0, lanes, step)]
    steps = _within(k, joined(found), low, high)
    k.wide[id(steps)] = (steps, held, zero, low, high)
    return steps


def widened(k: Builder, x: Expr, dtype: str) -> Expr:
    """``x`` as ``dtype``. What has just been packed is clipped as it was before; LLVM drops the packing."""
    if id(x) not in k.wide or dtype != "int32":
        return cast(x, dtype)
    _, wide, zero, low, high = k.wide[id(x)]
    placed = k.bind(wide if isinstance(zero, int) and not zero else wide + spread(zero, wide))
    return k.bind(minimum(maximum(placed, spread(low, placed)), spread(high, placed)))


def _within(k: Builder, steps: Expr, low: Number, high: Number) -> Expr:
    """Clips where the bounds are narrower than the type's."""
    least, most = step_bounds(None, None, dtype_of(steps))
    steps = steps if isinstance(low, int) and low <= least else maximum(k.bind(steps), spread(low, steps))
    return steps if isinstance(high, int) and high >= most else minimum(k.bind(steps), spread(high, steps))


def _pack_row(k: Builder, to: str, lanes: int) -> Any:
    """The widest row that ``lanes`` fill to the half at least, or, for a vector of the smallest part, that one."""
    if to not in NARROW or lanes & (lanes - 1):
        return None
    return next((row for n in (2 * lanes, lanes, 4 * lanes) if (row := k.row(f"pack.{to}", n)) is not None), None) or (
        k.row(f"pack.{to}") if lanes > k.lanes else None
    )


def _packed(k: Builder, row: Any, wide: Expr, zero: Number) -> Expr:
    """As many lanes as the row packs, or a half or a quarter of them."""
    size = row.lanes // 4
    lanes = lanes_of(wide)
    parts = [k.bind(_lanes(wide, at, size)) for at in range(0, lanes, size)]
    given = dict(zip("abcd", parts * (4 // len(parts)), strict=True))
    steps = k.bind(k.instruction(row, **given, zero=_words(zero, 2 * size)))
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
    if "fixed" in attrs and lanes_of(x) == 1 and not k.calls:
        from .templates._fixed import settled_value

        return cast(settled_value(shifted(x, attrs["x_zero_point"], wide), attrs), attrs["to"])
    return rescaled(k, shifted(x, attrs["x_zero_point"], wide), multiplier, attrs)


def add_integer(
    k: Builder, node: Node, a: Expr, b: Expr, a_multiplier: Expr, b_multiplier: Expr, by: Expr | None = None
) -> Expr:
    attrs = node["attrs"]
    wide = "int64" if dtype_of(a).endswith("16") else "int32"
    parts = [widened(k, x, wide) * cast(m, wide) for x, m in ((a, a_multiplier), (b, b_multiplier))]
    one = constant(1, wide, lanes_of(parts[0]))
    shift = like(attrs["shift"], one) if by is None else cast(by, wide)
    half = like(1 << (attrs["shift"] - 1), one) if by is None else shift_left(one, shift - one)
    for m, zero in ((a_multiplier, "a_zero_point"), (b_multiplier, "b_zero_point")):
        if not isinstance(attrs[zero], int) or attrs[zero]:
            half = half - cast(m, wide) * spread(attrs[zero], half)
    point = attrs["zero_point"]
    known = by is None and lanes_of(one) == 1 and isinstance(point, int)
    if known and (2 * abs(point) + 1) << attrs["shift"] <= 1 << 31:
        half, point = half + like(point << attrs["shift"], half), 0  # a core's saturating shift then ends it
    sums = shift_right(parts[0] + parts[1] + half, shift)
    return narrowed(k, sums, point, *bounds_of(attrs), attrs["to"])


def mul_integer(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    wide = "int64" if dtype_of(a).endswith("16") else "int32"
    return shifted(a, node["attrs"]["a_zero_point"], wide) * shifted(b, node["attrs"]["b_zero_point"], wide)


FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "requantize": requantize,
    "add_integer": add_integer,
    "mul_integer": mul_integer,
}
