"""How each elementwise operator is computed on a scalar or on every lane of a vector, as one table.

``FUNCTIONS``: ``f(builder, node, *args) -> expression``; arguments have the same lanes. ``MOVES`` (injective operators:
an element of the result is an element of an argument) and ``COORDINATE`` (the value depends on where it is) get the
evaluator and the coordinates instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from ..ops.numeric import THREEFRY_PARITY, THREEFRY_TURNS
from ..ops.selection import step_bounds
from . import integers, vecmath
from .tir import Builder, Expr, as_dtype, constant, dtype_of, lanes_of, like, maximum, minimum, select, splat

Function = Callable[..., Expr]
Node = dict[str, Any]


def cast(expr: Expr, dtype: str) -> Expr:
    """Numpy's conversion: floats toward 0 to integers (what does not fit is not defined), integers modulo the width."""
    have, lanes = dtype_of(expr), lanes_of(expr)
    if have == dtype:
        return expr
    if dtype == "bool":
        return tirx.NE(expr, like(0, expr))
    if have == "bool":
        return select(expr, constant(1, dtype, lanes), constant(0, dtype, lanes))
    if is_float(expr) and dtype in ("int8", "uint8", "int16", "uint16"):
        expr = tirx.Cast(as_dtype("int32", lanes), expr)  # so that negative numbers wrap
    return tirx.Cast(as_dtype(dtype, lanes), expr)


def is_float(expr: Expr) -> bool:
    return dtype_of(expr).startswith(("float", "bfloat"))


def _signed(x: Expr) -> bool:
    return not dtype_of(x).startswith(("uint", "bool"))


def _width(x: Expr) -> int:
    return int(dtype_of(x).lstrip("uint"))


def _div(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    """Of integers: truncated, by zero 0; the CPU's division traps on a zero and on the lowest number by -1."""
    if is_float(a):
        return a / b
    a, b = k.bind(a), k.bind(b)
    quotient = tirx.truncdiv(a, _harmless(k, b))
    if _signed(a):
        quotient = select(tirx.EQ(b, like(-1, b)), like(0, a) - a, quotient)
    return select(tirx.EQ(b, like(0, b)), like(0, b), quotient)


def _harmless(k: Builder, b: Expr) -> Expr:
    """A divisor with 0 and -1 replaced by 1 (by which every remainder is 0, as it is by -1)."""
    bad = tirx.EQ(b, like(0, b))
    if _signed(b):
        bad = tirx.Or(bad, tirx.EQ(b, like(-1, b)))
    return k.bind(select(bad, like(1, b), b))


def _mod(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    a, b = k.bind(a), k.bind(b)
    rest = k.bind(_fmod(k, node, a, b))
    if not _signed(a):
        return rest
    zero = like(0, rest)
    across = tirx.Or(tirx.And(rest < zero, b > zero), tirx.And(rest > zero, b < zero))
    return select(across, rest + b, rest)


def _fmod(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    if not is_float(a):
        return tirx.truncmod(a, _harmless(k, k.bind(b)))
    return vecmath.fmod(k, a, b)


def _relu(k: Builder, node: Node, x: Expr) -> Expr:
    return maximum(like(0, x), x)


def _clip(k: Builder, node: Node, x: Expr) -> Expr:
    """The bound comes first in each comparison, so that NaN passes."""
    low, high = node["attrs"]["low"], node["attrs"]["high"]
    if not is_float(x):
        low, high = _integer_bounds(x, low, high)
    if low is not None:
        x = maximum(like(low, x), k.bind(x))
    return x if high is None else minimum(like(high, x), k.bind(x))


def _integer_bounds(x: Expr, low: float | None, high: float | None) -> tuple[int | None, int | None]:
    """Bounds moved inward to integers that the type holds."""
    width, signed = _width(x), _signed(x)
    least, most = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)

    def held(bound: float | None, inward: Callable[[float], int]) -> int | None:
        if bound is None:
            return None
        return most if bound > most else least if bound < least else inward(bound)

    return held(low, math.ceil), held(high, math.floor)


def _sign(k: Builder, node: Node, x: Expr) -> Expr:
    x = k.bind(x)
    zero = like(0, x)
    other = x if is_float(x) else zero  # NaN and zeros stay
    below = select(x < zero, like(-1, x), other) if _signed(x) else other
    return select(x > zero, like(1, x), below)


def _extremum(name: str) -> Function:
    """NaN wins from both sides; bool is ordered."""
    combine = vecmath.combine(name)

    def function(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
        if dtype_of(a) == "bool":
            return tirx.Or(a, b) if name == "maximum" else tirx.And(a, b)
        if not is_float(a):
            return (maximum if name == "maximum" else minimum)(a, b)
        return combine(k.bind(a), k.bind(b))

    return function


def _shift(name: str) -> Function:
    """A count from the width on shifts everything out."""

    def function(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
        a, b = k.bind(a), k.bind(b)
        last = like(_width(a) - 1, b)
        far = tirx.Or(b > last, b < like(0, b)) if _signed(b) else b > last
        near = select(far, last, b)
        if name == "right" and _signed(a):
            return tirx.shift_right(a, near)
        shifted = (tirx.shift_left if name == "left" else tirx.shift_right)(a, near)
        return select(far, like(0, a), shifted)

    return function


def _quantize(k: Builder, node: Node, x: Expr, scale: Expr, zero: Expr | None = None) -> Expr:
    """The quotient is rounded to float32 before it is rounded to an integer, as in ONNX Runtime."""
    to = node["attrs"]["to"]
    exact = "float64" if dtype_of(x) == "float64" else "float32"
    low, high = step_bounds(node["attrs"].get("low"), node["attrs"].get("high"), to)
    if to == "int32" and exact == "float32":
        high -= 127  # the largest float32 below 2^31
    y = vecmath.round_even(k, cast(x, exact) / cast(scale, exact))
    if zero is not None:
        y = y + cast(zero, exact)
    return cast(vecmath.bounded(k.bind(y), low, high), to)


def _dequantize(k: Builder, node: Node, x: Expr, scale: Expr, zero: Expr | None = None) -> Expr:
    to = node["attrs"]["to"]
    exact = "float64" if to == "float64" else "float32"
    wide = cast(x, "int32")
    if zero is not None:
        wide = wide - cast(zero, "int32")
    return cast(cast(wide, exact) * cast(scale, exact), to)


def _compare(op: str) -> Function:
    table: dict[str, Callable[[Expr, Expr], Expr]] = {
        "equal": lambda a, b: tirx.EQ(a, b),
        "less": lambda a, b: tirx.LT(a, b),
        "less_equal": lambda a, b: tirx.LE(a, b),
        "greater": lambda a, b: tirx.GT(a, b),
        "greater_equal": lambda a, b: tirx.GE(a, b),
    }
    return lambda k, node, a, b: table[op](*((cast(v, "uint8") if dtype_of(v) == "bool" else v) for v in (a, b)))


def _xor(k: Builder, node: Node, a: Expr, b: Expr) -> Expr:
    return tirx.NE(cast(a, "uint8"), cast(b, "uint8"))


def _hard_sigmoid(k: Builder, node: Node, x: Expr) -> Expr:
    return vecmath.bounded(k.bind(x * like(node["attrs"]["alpha"], x) + like(node["attrs"]["beta"], x)), 0.0, 1.0)


def _hard_swish(k: Builder, node: Node, x: Expr) -> Expr:
    x = k.bind(x)
    return x * vecmath.bounded(k.bind(x * like(1 / 6, x) + like(0.5, x)), 0.0, 1.0)


def _leaky_relu(k: Builder, node: Node, x: Expr) -> Expr:
    x = k.bind(x)
    return select(x < like(0, x), x * like(node["attrs"]["alpha"], x), x)


def _isinf(k: Builder, node: Node, x: Expr) -> Expr:
    x = k.bind(x)
    up = tirx.EQ(x, like(float("inf"), x))
    down = tirx.EQ(x, like(float("-inf"), x))
    chosen = [e for e, wanted in ((up, node["attrs"]["positive"]), (down, node["attrs"]["negative"])) if wanted]
    return tirx.Or(*chosen) if len(chosen) == 2 else chosen[0] if chosen else constant(False, "bool", lanes_of(x))


def _abs(k: Builder, node: Node, x: Expr) -> Expr:
    x = k.bind(x)
    return x if not _signed(x) else vecmath.absolute(k, x) if is_float(x) else maximum(x, like(0, x) - x)


def _math(name: str) -> Function:
    return lambda k, node, *args: getattr(vecmath, name)(k, *args)


_BY_NAME = (  # operators that are functions of ``vecmath`` of the same name
    *("sqrt", "rsqrt", "exp", "log", "log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "silu", "softplus", "floor", "ceil", "pow"),
)

FUNCTIONS: dict[str, Function] = {
    "identity": lambda k, node, x: x,
    "stop_gradient": lambda k, node, x: x,
    "copy": lambda k, node, x: x,
    "neg": lambda k, node, x: like(0, x) - x if not is_float(x) else x * like(-1, x),
    "abs": _abs,
    "sign": _sign,
    "relu": _relu,
    "clip": _clip,
    "reciprocal": lambda k, node, x: like(1, x) / x,
    "cast": lambda k, node, x: cast(x, node["attrs"]["to"]),
    "logical_not": lambda k, node, x: tirx.Not(x),
    "bitwise_not": lambda k, node, x: tirx.bitwise_not(x),
    "isnan": lambda k, node, x: vecmath.isnan(x),
    "isinf": _isinf,
    "add": lambda k, node, a, b: a + b,
    "sub": lambda k, node, a, b: a - b,
    "mul": lambda k, node, a, b: a * b,
    "div": _div,
    "mod": _mod,
    "fmod": _fmod,
    "minimum": _extremum("minimum"),
    "maximum": _extremum("maximum"),
    "logical_and": lambda k, node, a, b: tirx.And(a, b),
    "logical_or": lambda k, node, a, b: tirx.Or(a, b),
    "logical_xor": _xor,
    "bitwise_and": lambda k, node, a, b: tirx.bitwise_and(a, b),
    "bitwise_or": lambda k, node, a, b: tirx.bitwise_or(a, b),
    "bitwise_xor": lambda k, node, a, b: tirx.bitwise_xor(a, b),
    "left_shift": _shift("left"),
    "right_shift": _shift("right"),
    "straight_through": lambda k, node, a, b: a,
    "where": lambda k, node, c, a, b: select(c, a, b),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "leaky_relu": _leaky_relu,
    "gelu": lambda k, node, x: vecmath.gelu(k, x, node["attrs"]["approximate"]),
    "elu": lambda k, node, x: vecmath.elu(k, x, node["attrs"]["alpha"]),
    **{op: _compare(op) for op in ("equal", "less", "less_equal", "greater", "greater_equal")},
    **{op: _math(op) for op in _BY_NAME},
    "round": _math("round_even"),
    **integers.FUNCTIONS,
}


def _transpose(ev: Any, node: Node, coords: list[Any], lanes: int) -> Expr:
    source: list[Any] = [None] * len(coords)
    for out_axis, in_axis in enumerate(node["attrs"]["perm"]):
        source[in_axis] = coords[out_axis]
    return ev.value(node["args"][0], source, lanes)


def _slice(ev: Any, node: Node, coords: list[Any], lanes: int) -> Expr:
    starts, steps = node["attrs"]["starts"], node["attrs"]["steps"]
    moved = [
        (b * step + start, None if s is None else s * step)
        for (b, s), start, step in zip(coords, starts, steps, strict=True)
    ]
    return ev.value(node["args"][0], moved, lanes)


def _expand(ev: Any, node: Node, coords: list[Any], lanes: int) -> Expr:
    return ev.value(node["args"][0], ev.broadcast(node["args"][0], node, coords), lanes)


MOVES: dict[str, Function] = {"transpose": _transpose, "slice": _slice, "expand": _expand}


def _iota(ev: Any, node: Node, coords: list[Any], lanes: int) -> Expr:
    from .evaluate import lanewise

    return cast(lanewise(coords[node["attrs"]["axis"]], lanes), node["dtype"])


def _trilu(ev: Any, node: Node, coords: list[Any], lanes: int) -> Expr:
    from .evaluate import lanewise

    row, column = lanewise(coords[-2], lanes), lanewise(coords[-1], lanes)
    offset = column - row
    k = like(int(node["attrs"]["k"]), offset)
    kept = offset >= k if node["attrs"]["upper"] else offset <= k
    x = ev.value(node["args"][0], coords, lanes)
    x = splat(x, lanes)
    return select(kept, x, like(0, x) if dtype_of(x) != "bool" else constant(False, "bool", lanes))


def _random_bits(ev: Any, node: Node, coords: list[Any], lanes: int) -> Expr:
    """``numeric.threefry`` of the flat index."""
    from .evaluate import lanewise

    k, shape = ev.k, node["shape"]
    place = cast(lanewise(ev.address([math.prod(shape[a + 1 :]) for a in range(len(shape))], coords), lanes), "uint32")
    first, second = (k.bind(ev.value(node["args"][0], [(i, 0)], 1)) for i in (0, 1))
    keys = [splat(e, lanes) for e in (first, second, k.bind(first ^ second ^ like(THREEFRY_PARITY, first)))]
    x, y = k.bind(place + keys[0]), keys[1]
    for r in range(13):
        turn = THREEFRY_TURNS[r % 8]
        x = k.bind(x + y)
        y = k.bind(tirx.bitwise_or(y << like(turn, y), y >> like(32 - turn, y)) ^ x)
        if r % 4 == 3:
            turns = (r + 1) // 4
            x, y = k.bind(x + keys[turns % 3]), k.bind(y + keys[(turns + 1) % 3] + like(turns, y))
    return x


COORDINATE: dict[str, Function] = {"iota": _iota, "trilu": _trilu, "random_bits": _random_bits}
