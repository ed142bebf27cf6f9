"""How each elementwise operator is computed on a scalar or on every lane of a vector, as one table.

``FUNCTIONS``: ``f(builder, node, *args) -> expression``; arguments have the same lanes. ``MOVES`` (injective operators:
an element of the result is an element of an argument) and ``COORDINATE`` (the value depends on where it is) get the
evaluator and the coordinates instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from . import vecmath
from .tir import Builder, Expr, as_dtype, constant, dtype_of, lanes_of, like, maximum, minimum, select

Function = Callable[..., Expr]


def cast(expr: Expr, dtype: str) -> Expr:
    """Numpy's conversion; from float to integer it truncates and saturates (as ONNX Runtime does on ARM)."""
    have, lanes = dtype_of(expr), lanes_of(expr)
    if have == dtype:
        return expr
    if dtype == "bool":
        return tirx.NE(expr, like(0, expr))
    if have == "bool":
        return select(expr, constant(1, dtype, lanes), constant(0, dtype, lanes))
    return tirx.Cast(as_dtype(dtype, lanes), expr)


def _is_float(expr: Expr) -> bool:
    return dtype_of(expr).startswith(("float", "bfloat"))


def _div(k: Builder, node: dict[str, Any], a: Expr, b: Expr) -> Expr:
    return a / b if _is_float(a) else tirx.truncdiv(a, b)


def _mod(k: Builder, node: dict[str, Any], a: Expr, b: Expr) -> Expr:
    if _is_float(a):
        return a - vecmath.floor(k, a / b) * b
    return tirx.floormod(a, b)


def _fmod(k: Builder, node: dict[str, Any], a: Expr, b: Expr) -> Expr:
    if _is_float(a):
        return a - vecmath.trunc(k, a / b) * b
    return tirx.truncmod(a, b)


def _relu(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    return maximum(x, like(0, x))


def _clip(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    low, high = node["attrs"]["low"], node["attrs"]["high"]
    if low is not None:
        x = maximum(x, like(low, x))
    return x if high is None else minimum(x, like(high, x))


def _sign(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    zero = like(0, x)
    return select(x > zero, like(1, x), select(x < zero, like(-1, x), zero) if _signed(x) else zero)


def _signed(x: Expr) -> bool:
    return not dtype_of(x).startswith("uint")


def _quantize(k: Builder, node: dict[str, Any], x: Expr, scale: Expr, zero: Expr | None = None) -> Expr:
    to = node["attrs"]["to"]
    bits, signed = int(to.lstrip("uint")), not to.startswith("u")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    y = vecmath.round_even(k, x / scale)
    if zero is not None:
        y = y + cast(zero, dtype_of(x))
    return cast(minimum(maximum(y, like(low, y)), like(high, y)), to)


def _dequantize(k: Builder, node: dict[str, Any], x: Expr, scale: Expr, zero: Expr | None = None) -> Expr:
    wide = cast(x, "int32")
    if zero is not None:
        wide = wide - cast(zero, "int32")
    return cast(wide, node["attrs"]["to"]) * scale


def _compare(op: str) -> Function:
    table: dict[str, Callable[[Expr, Expr], Expr]] = {
        "equal": lambda a, b: tirx.EQ(a, b),
        "less": lambda a, b: tirx.LT(a, b),
        "less_equal": lambda a, b: tirx.LE(a, b),
        "greater": lambda a, b: tirx.GT(a, b),
        "greater_equal": lambda a, b: tirx.GE(a, b),
    }
    return lambda k, node, a, b: table[op](*((cast(v, "uint8") if dtype_of(v) == "bool" else v) for v in (a, b)))


def _xor(k: Builder, node: dict[str, Any], a: Expr, b: Expr) -> Expr:
    return tirx.NE(cast(a, "uint8"), cast(b, "uint8"))


def _hard_sigmoid(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    y = x * like(node["attrs"]["alpha"], x) + like(node["attrs"]["beta"], x)
    return minimum(maximum(y, like(0, x)), like(1, x))


def _hard_swish(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    return x * minimum(maximum(x * like(1 / 6, x) + like(0.5, x), like(0, x)), like(1, x))


def _leaky_relu(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    return select(x < like(0, x), x * like(node["attrs"]["alpha"], x), x)


def _isinf(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    up = tirx.EQ(x, like(float("inf"), x))
    down = tirx.EQ(x, like(float("-inf"), x))
    chosen = [e for e, wanted in ((up, node["attrs"]["positive"]), (down, node["attrs"]["negative"])) if wanted]
    return tirx.Or(*chosen) if len(chosen) == 2 else chosen[0] if chosen else constant(False, "bool", lanes_of(x))


def _abs(k: Builder, node: dict[str, Any], x: Expr) -> Expr:
    return x if not _signed(x) else vecmath.absolute(k, x) if _is_float(x) else maximum(x, like(0, x) - x)


def _math(name: str) -> Function:
    return lambda k, node, *args: getattr(vecmath, name)(k, *args)


FUNCTIONS: dict[str, Function] = {
    "identity": lambda k, node, x: x,
    "copy": lambda k, node, x: x,
    "neg": lambda k, node, x: like(0, x) - x if not _is_float(x) else x * like(-1, x),
    "abs": _abs,
    "sign": _sign,
    "relu": _relu,
    "clip": _clip,
    "reciprocal": lambda k, node, x: like(1, x) / x,
    "cast": lambda k, node, x: cast(x, node["attrs"]["to"]),
    "logical_not": lambda k, node, x: tirx.Not(x),
    "bitwise_not": lambda k, node, x: tirx.bitwise_not(x),
    "isnan": lambda k, node, x: tirx.NE(x, x),
    "isinf": _isinf,
    "add": lambda k, node, a, b: a + b,
    "sub": lambda k, node, a, b: a - b,
    "mul": lambda k, node, a, b: a * b,
    "div": _div,
    "mod": _mod,
    "fmod": _fmod,
    "minimum": lambda k, node, a, b: minimum(a, b),
    "maximum": lambda k, node, a, b: maximum(a, b),
    "logical_and": lambda k, node, a, b: tirx.And(a, b),
    "logical_or": lambda k, node, a, b: tirx.Or(a, b),
    "logical_xor": _xor,
    "bitwise_and": lambda k, node, a, b: tirx.bitwise_and(a, b),
    "bitwise_or": lambda k, node, a, b: tirx.bitwise_or(a, b),
    "bitwise_xor": lambda k, node, a, b: tirx.bitwise_xor(a, b),
    "left_shift": lambda k, node, a, b: tirx.shift_left(a, b),
    "right_shift": lambda k, node, a, b: tirx.shift_right(a, b),
    "where": lambda k, node, c, a, b: select(c, a, b),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "leaky_relu": _leaky_relu,
    "gelu": lambda k, node, x: vecmath.gelu(k, x, node["attrs"]["approximate"]),
    "elu": lambda k, node, x: vecmath.elu(k, x, node["attrs"]["alpha"]),
    **{op: _compare(op) for op in ("equal", "less", "less_equal", "greater", "greater_equal")},
    **{
        op: _math(op)
        for op in (
            "sqrt rsqrt exp log log1p expm1 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf sigmoid "
            "silu softplus floor ceil pow"
        ).split()
    },
    "round": _math("round_even"),
}


def _transpose(ev: Any, node: dict[str, Any], coords: list[Any], lanes: int) -> Expr:
    source: list[Any] = [None] * len(coords)
    for out_axis, in_axis in enumerate(node["attrs"]["perm"]):
        source[in_axis] = coords[out_axis]
    return ev.value(node["args"][0], source, lanes)


def _slice(ev: Any, node: dict[str, Any], coords: list[Any], lanes: int) -> Expr:
    starts, steps = node["attrs"]["starts"], node["attrs"]["steps"]
    moved = [
        (b * step + start, None if s is None else s * step)
        for (b, s), start, step in zip(coords, starts, steps, strict=True)
    ]
    return ev.value(node["args"][0], moved, lanes)


def _expand(ev: Any, node: dict[str, Any], coords: list[Any], lanes: int) -> Expr:
    return ev.value(node["args"][0], ev.broadcast(node["args"][0], node, coords), lanes)


MOVES: dict[str, Function] = {"transpose": _transpose, "slice": _slice, "expand": _expand}


def _iota(ev: Any, node: dict[str, Any], coords: list[Any], lanes: int) -> Expr:
    from .evaluate import lanewise

    return cast(lanewise(coords[node["attrs"]["axis"]], lanes), node["dtype"])


def _trilu(ev: Any, node: dict[str, Any], coords: list[Any], lanes: int) -> Expr:
    from .evaluate import lanewise

    row, column = lanewise(coords[-2], lanes), lanewise(coords[-1], lanes)
    offset = column - row
    k = like(int(node["attrs"]["k"]), offset)
    kept = offset >= k if node["attrs"]["upper"] else offset <= k
    x = ev.value(node["args"][0], coords, lanes)
    x = x if lanes_of(x) == lanes else tirx.Broadcast(x, lanes)
    return select(kept, x, like(0, x) if dtype_of(x) != "bool" else constant(False, "bool", lanes))


COORDINATE: dict[str, Function] = {"iota": _iota, "trilu": _trilu}
