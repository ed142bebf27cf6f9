"""Elementwise arithmetic on quantized tensors, bit for bit as ``ops.integers`` defines it."""

from __future__ import annotations

from typing import Any

from ..ops.integers import ADD_SHIFT
from ..ops.selection import step_bounds
from . import vecmath
from .tir import Builder, Expr, constant, dtype_of, lanes_of, like, maximum, minimum, shift_right

Node = dict[str, Any]


def shifted(x: Expr, zero_point: int, dtype: str) -> Expr:
    """``x - zero_point`` in a type that holds it."""
    from .functions import cast

    wide = cast(x, dtype)
    return wide - like(zero_point, wide) if zero_point else wide


def rescaled(k: Builder, sums: Expr, multiplier: Expr, attrs: Node) -> Expr:
    """``ops.integers.rescale``. The product is clipped as a float, so that what is converted fits an int32."""
    from .functions import cast

    zero_point, to = attrs["zero_point"], attrs["to"]
    low, high = step_bounds(attrs["low"], attrs["high"], to)
    real = k.bind(cast(sums, "float32") * multiplier, "real")
    steps = vecmath.round_even(k, k.bind(vecmath.bounded(real, low - zero_point, high - zero_point)))
    return cast(shifted(steps, -zero_point, "int32"), to)


def requantize(k: Builder, node: Node, x: Expr, multiplier: Expr) -> Expr:
    attrs = node["attrs"]
    wide = "int64" if dtype_of(x).endswith("64") else "int32"
    return rescaled(k, shifted(x, attrs["x_zero_point"], wide), multiplier, attrs)


def add_integer(k: Builder, node: Node, a: Expr, b: Expr, a_multiplier: Expr, b_multiplier: Expr) -> Expr:
    from .functions import cast

    attrs = node["attrs"]
    wide = "int64" if dtype_of(a).endswith("16") else "int32"
    parts = [
        shifted(x, attrs[zero], wide) * cast(m, wide)
        for x, zero, m in ((a, "a_zero_point", a_multiplier), (b, "b_zero_point", b_multiplier))
    ]
    half = constant(1 << (ADD_SHIFT - 1), wide, lanes_of(parts[0]))
    sums = shift_right(parts[0] + parts[1] + half, like(ADD_SHIFT, half))
    low, high = (like(v, sums) for v in step_bounds(attrs["low"], attrs["high"], attrs["to"]))
    placed = k.bind(sums + like(attrs["zero_point"], sums))
    return cast(minimum(maximum(placed, low), high), attrs["to"])


def mul_integer(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    wide = "int64" if dtype_of(a).endswith("16") else "int32"
    return shifted(a, node["attrs"]["a_zero_point"], wide) * shifted(b, node["attrs"]["b_zero_point"], wide)


FUNCTIONS = {"requantize": requantize, "add_integer": add_integer, "mul_integer": mul_integer}
