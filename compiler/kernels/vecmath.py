"""Mathematical functions on scalars and on all lanes of a vector, written as polynomials and rationals.

float32 calls no libm function and has no branches, so that it vectorises on every target; float16 and bfloat16 are
computed in float32; float64 calls libm lane by lane. Coefficients are minimax fits of relative error (Lawson's
iteration), rounded to float32. Errors stay within 3 ulp unless a docstring says otherwise; infinities, NaN and zeros
come out as in IEEE 754 (a zero may lose its sign).

NaN passes through ``minimum(bound, x)``, since both compare and then take the second operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any

from tvm import tirx

from .tir import Builder, Expr, as_dtype, constant, dtype_of, lanes_of, like, maximum, minimum, reinterpret, select

Function = Callable[..., Expr]
BY_NAME: dict[str, tuple[Function, int]] = {}  # functions of float32 scalars that C calls, with how many they take

_LIBM = {"floor": "floorf", "ceil": "ceilf", "trunc": "truncf", "nearbyint": "rintf", "sqrt": "sqrtf"}
_ROUNDING = frozenset(("sse4_1", "asimd"))  # CPU features that bring instructions for floor, ceil, trunc, nearbyint
_LN2 = math.log(2)
_LN2_HIGH, _LN2_LOW = 0.693359375, _LN2 - 0.693359375  # the high part has few bits: its multiples are exact
_SHIFTER = 1.5 * 2**23  # added to a small float, leaves its nearest integer in the low bits
_SQRT_HALF = 0x3F3504F3  # bits of sqrt(1/2)
_INF = float("inf")

# q in exp(r) = 1 + r + r^2 q(r), |r| <= ln2 / 2
_EXP = (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.008368710055947304, 0.001381461275741458)
_EXPM1 = (0.4999999701976776, 0.1666654348373413, 0.04166720062494278, 0.00836651399731636, 0.0013882522471249104)
# p in log(1 + f) = f - f^2 / 2 + f^3 p(f), sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG = (
    *(0.3333331346511841, -0.25000008940696716, 0.2000211924314499, -0.1666799634695053, 0.14219552278518677),
    *(-0.1240558922290802, 0.11888163536787033, -0.11675650626420975, 0.0674663633108139),
)
# odd and even parts of sine and cosine over |r| <= pi / 4, in r^2
_SIN = (-0.16666655242443085, 0.008332177996635437, -0.0001951729936990887)
_COS = (0.04166664555668831, -0.0013887316454201937, 2.44331567955669e-05)
# atan(x) = x + x^3 p(x^2), |x| <= 1; asin(x) = x + x^3 p(x^2), |x| <= 1/2; sinh alike, |x| <= 1
_ATAN = (
    *(-0.33333298563957214, 0.19998548924922943, -0.14264242351055145, 0.10952185839414597, -0.0840344950556755),
    *(0.05795758217573166, -0.031177833676338196, 0.010914599522948265, -0.0017936202930286527),
)
_ASIN = (0.16666752099990845, 0.07495297491550446, 0.04547037556767464, 0.02417951636016369, 0.04216630384325981)
_SINH = (0.1666666716337204, 0.008333349600434303, 0.0001983615948120132, 2.8169513370812638e-06)
# tanh(x) = x p(x^2) / q(x^2), |x| <= 9.02; erf(x) alike, |x| <= 3.95
_TANH_P = (1.0, 0.13379709422588348, 0.0034940242767333984, 2.0583307559718378e-05, 1.3318826042052478e-08)
_TANH_Q = (1.0, 0.46713024377822876, 0.02587103471159935, 0.00032830756390467286, 7.761919960103114e-07)
_ERF_P = (
    *(1.1283791065216064, 0.19155189394950867, 0.05287560820579529, 0.0038082185201346874, 0.0002846870629582554),
    2.0258689801266883e-06,
)
_ERF_Q = (
    *(1.0, 0.5030910968780518, 0.11456023901700974, 0.015055202879011631, 0.0011707361554726958),
    3.783136708079837e-05,
)
# pi / 2 in parts of 8 bits (and the rest): multiples up to 2^16 are exact without a fused multiply-add
_HALF_PI = (1.5703125, 0.0004825592041015625, 1.2665987014770508e-06, 9.920935796805404e-10)


# -- element types -------------------------------------------------------------------------------------------------


def _libm(k: Builder, name: str, *args: Expr) -> Expr:
    """libm's function of float64 scalars, for each lane."""
    lanes = lanes_of(args[0])
    if lanes == 1:
        return tirx.call_pure_extern("float64", name, *args)
    held = [k.array("float64", lanes) for _ in args]
    for array, arg in zip(held, args, strict=True):
        k.store(array, 0, arg)
    result = k.array("float64", lanes)
    with k.loop(lanes) as lane:
        k.store(result, lane, tirx.call_pure_extern("float64", name, *(k.load(a, lane) for a in held)))
    return k.load(result, 0, lanes)


def _called(k: Builder, name: str, *args: Expr) -> Expr:
    """The C function of that name (``BY_NAME``) of float32 numbers, for each lane."""
    dtype = as_dtype("float32", lanes_of(args[0]))
    function = _LIBM.get(name, f"{name.lstrip('_')}_f32")
    return k.bind(tirx.call_pure_extern(dtype, function, *args))


def _native(k: Builder, name: str, *args: Expr) -> Expr:
    """The function of that name that the machine's compiler has."""
    return k.bind(tirx.call_pure_extern(as_dtype("float32", lanes_of(args[0])), k.native[name], *args))


def _typed(libm: str | None = None) -> Callable[[Function], Function]:
    """The function for every float type: written for float32, by libm's ``libm`` for float64 (None: as written)."""

    def decorate(function: Function) -> Function:
        BY_NAME[function.__name__.lstrip("_")] = (function, len(signature(function).parameters) - 1)

        @wraps(function)
        def typed(k: Builder, *args: Expr) -> Expr:
            dtype, lanes = dtype_of(args[0]), lanes_of(args[0])
            if dtype == "float64" and libm is not None:
                return _libm(k, libm, *args)
            if dtype in ("float16", "bfloat16"):
                wide = typed(k, *(k.bind(tirx.Cast(as_dtype("float32", lanes), a)) for a in args))
                return tirx.Cast(as_dtype(dtype, lanes), wide)
            if k.native.get(function.__name__) and dtype == "float32":
                return _native(k, function.__name__, *args)
            if k.calls and dtype == "float32":
                return _called(k, function.__name__, *args)
            return function(k, *(k.bind(a) for a in args))

        return typed

    return decorate


# -- pieces --------------------------------------------------------------------------------------------------------


def polynomial(k: Builder, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule; the constant term comes first."""
    result = like(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        result = result * x + like(c, x)
    return k.bind(result)


def _bits(x: Expr) -> Expr:
    return reinterpret(as_dtype("int32", lanes_of(x)), x)


def _from_bits(i: Expr) -> Expr:
    return reinterpret(as_dtype("float32", lanes_of(i)), i)


def _to_float(i: Expr) -> Expr:
    return tirx.Cast(as_dtype("float32", lanes_of(i)), i)


def _int(value: int, x: Expr) -> Expr:
    return constant(value - (1 << 32) if value >= 1 << 31 else value, "int32", lanes_of(x))


def _shift_left(i: Expr, count: int) -> Expr:
    return tirx.shift_left(i, _int(count, i))


def _shift_right(i: Expr, count: int) -> Expr:
    return tirx.shift_right(i, _int(count, i))


def _power_of_two(k: Builder, n: Expr) -> Expr:
    """2^n of an integer in [-127, 128], where the ends give 0 and infinity."""
    return k.bind(_from_bits(k.bind(_shift_left(n + _int(127, n), 23))))


def bounded(x: Expr, low: float, high: float) -> Expr:
    """x clipped to [low, high]; NaN passes."""
    return minimum(like(high, x), maximum(like(low, x), x))


def copysign(k: Builder, magnitude: Expr, sign: Expr) -> Expr:
    """|magnitude| with the sign bit of ``sign`` (float32)."""
    kept = tirx.bitwise_and(_bits(k.bind(magnitude)), _int(0x7FFFFFFF, magnitude))
    return k.bind(_from_bits(k.bind(tirx.bitwise_or(kept, tirx.bitwise_and(_bits(sign), _int(0x80000000, sign))))))


def isnan(x: Expr) -> Expr:
    """Whether x is NaN (``x != x`` would be simplified away)."""
    return tirx.isnan(x)


def nearest(k: Builder, x: Expr, scale: float = 1.0) -> tuple[Expr, Expr]:
    """The integer nearest to ``x * scale`` (of magnitude below 2^22) as a float and as int32."""
    shifted = k.bind(x * like(scale, x) + like(_SHIFTER, x))
    number = k.bind(_bits(shifted) - _int(0x4B400000, x))
    return k.bind(shifted - like(_SHIFTER, x)), number


# -- rounding ------------------------------------------------------------------------------------------------------


def absolute(k: Builder, x: Expr) -> Expr:
    return tirx.abs(x)


def _rounding(name: str) -> Function:
    """floor, ceil, trunc or nearbyint: the CPU's instruction, else by adding and taking off 2^23."""

    def function(k: Builder, x: Expr) -> Expr:
        if dtype_of(x) == "float64" or k.calls or _ROUNDING & set(k.machine.get("features", ())):
            return getattr(tirx, name)(x)
        size = k.bind(absolute(k, x))
        shifted = k.bind(size + like(2.0**23, x))  # held, or the two constants would be cancelled
        near = k.bind(shifted - like(2.0**23, x))
        if name == "trunc":
            near = select(near > size, near - like(1, x), near)
        result = copysign(k, near, x)
        if name == "floor":
            result = select(result > x, result - like(1, x), result)
        elif name == "ceil":
            result = copysign(k, select(result < x, result + like(1, x), result), x)
        return select(size < like(2.0**23, x), result, x)

    function.__name__ = name
    return _typed()(function)


floor, ceil, trunc, round_even = (_rounding(n) for n in ("floor", "ceil", "trunc", "nearbyint"))


@_typed("fmod")
def fmod(k: Builder, a: Expr, b: Expr) -> Expr:
    """The remainder of truncated division; exact while the quotient is below 2^24 and multiplication is fused."""
    size, by = k.bind(absolute(k, a)), k.bind(absolute(k, b))
    quotient = trunc(k, size / by)
    rest = k.bind(select(tirx.EQ(quotient, like(0, quotient)), size, size - quotient * by))
    rest = k.bind(select(rest < like(0, rest), rest + by, rest))  # a quotient that was rounded up
    return k.bind(select(a < like(0, a), rest * like(-1, rest), rest))


# -- roots ---------------------------------------------------------------------------------------------------------


@_typed()
def sqrt(k: Builder, x: Expr) -> Expr:
    return tirx.sqrt(x)


@_typed()
def rsqrt(k: Builder, x: Expr) -> Expr:
    return like(1, x) / tirx.sqrt(x)


# -- exponential ---------------------------------------------------------------------------------------------------


def _exp_parts(k: Builder, x: Expr) -> tuple[Expr, Expr]:
    """r and n with x = n ln2 + r, |r| <= ln2 / 2."""
    count, n = nearest(k, x, 1 / _LN2)
    r = k.bind(count * like(-_LN2_HIGH, x) + x)
    return k.bind(count * like(-_LN2_LOW, x) + r), n


def _exp_scaled(k: Builder, x: Expr, shift: int) -> Expr:
    """exp(x) 2^shift over the whole range, denormal results included: scaled in two steps."""
    r, n = _exp_parts(k, k.bind(bounded(x, -104.5, 90.0)))
    n = k.bind(n + _int(shift, n)) if shift else n
    p = polynomial(k, r, (1.0, 1.0, *_EXP))
    half = k.bind(_shift_right(n, 1))
    return k.bind(p * _power_of_two(k, half) * _power_of_two(k, k.bind(n - half)))


@_typed("exp")
def exp(k: Builder, x: Expr) -> Expr:
    return _exp_scaled(k, x, 0)


def exp_fast(k: Builder, x: Expr, *, negative: bool = False) -> Expr:
    """exp(x) of float32 for use inside other functions: 0 below -87.7, infinity above 88.3. ``negative`` promises
    that x <= 0 (or NaN)."""
    if k.native:
        return _native(k, "exp_fast", x)
    if k.calls:
        return _called(k, "exp_fast", x)
    return _exp_fast(k, x, negative)


def _exp_fast(k: Builder, x: Expr, negative: bool = False) -> Expr:
    low = maximum(like(-88.0, x), x)
    x = k.bind(low if negative else minimum(like(88.8, x), low))
    shifted = k.bind(x * like(1 / _LN2, x) + like(_SHIFTER + 127, x))
    count = k.bind(shifted - like(_SHIFTER + 127, x))
    r = k.bind(count * like(-_LN2_HIGH, x) + x)
    r = k.bind(count * like(-_LN2_LOW, x) + r)
    return k.bind(polynomial(k, r, (1.0, 1.0, *_EXP)) * k.bind(_from_bits(k.bind(_shift_left(_bits(shifted), 23)))))


BY_NAME["exp_fast"] = (_exp_fast, 1)


@_typed("expm1")
def expm1(k: Builder, x: Expr) -> Expr:
    r, n = _exp_parts(k, k.bind(bounded(x, -18.0, 89.0)))
    near = k.bind(polynomial(k, r, _EXPM1) * k.bind(r * r) + r)
    scale = _power_of_two(k, k.bind(n - _int(1, n)))
    return k.bind(near * scale + (scale - like(0.5, x))) * like(2, x)


# -- logarithm -----------------------------------------------------------------------------------------------------


def _log_split(k: Builder, x: Expr) -> tuple[Expr, Expr]:
    """The exponent e (int32) and f with x = 2^e (1 + f), for positive normal x."""
    i = k.bind(_bits(x) - _int(_SQRT_HALF, x))
    mantissa = k.bind(tirx.bitwise_and(i, _int(0x007FFFFF, x)) + _int(_SQRT_HALF, x))
    return k.bind(_shift_right(i, 23)), k.bind(_from_bits(mantissa) - like(1, x))


def _log_join(k: Builder, f: Expr, e: Expr) -> Expr:
    """log(1 + f) + e ln2."""
    square = k.bind(f * f)
    y = k.bind(polynomial(k, f, _LOG) * f * square)
    y = k.bind(e * like(_LN2_LOW, f) + y)
    y = k.bind(square * like(-0.5, f) + y)
    return k.bind(e * like(_LN2_HIGH, f) + (f + y))


def _log_borders(k: Builder, inside: Expr, x: Expr, zero: float) -> Expr:
    """The logarithm's values at infinity, NaN, the zero of its argument, and below it."""
    finite = select(x < like(_INF, x), inside, x)
    below = select(tirx.EQ(x, like(zero, x)), like(-_INF, x), like(math.nan, x))
    return k.bind(select(x > like(zero, x), finite, below))


@_typed("log")
def log(k: Builder, x: Expr) -> Expr:
    small = x < like(2.0**-126, x)
    e, f = _log_split(k, k.bind(select(small, x * like(2.0**23, x), x)))
    exponent = k.bind(_to_float(e) - select(small, like(23, x), like(0, x)))
    return _log_borders(k, _log_join(k, f, exponent), x, 0.0)


@_typed("log1p")
def log1p(k: Builder, x: Expr) -> Expr:
    e, f = _log_split(k, k.bind(x + like(1, x)))
    down = _power_of_two(k, k.bind(_int(0, e) - e))
    near = k.bind(x * down + (down - like(1, x)))  # 1 + x less its rounding error
    f = k.bind(select(e < _int(30, e), near, f))
    return _log_borders(k, _log_join(k, f, k.bind(_to_float(e))), x, -1.0)


# -- hyperbolic ----------------------------------------------------------------------------------------------------


def _odd_rational(k: Builder, x: Expr, limit: float, p: Sequence[float], q: Sequence[float]) -> Expr:
    """x p(x^2) / q(x^2), 5 ulp. ``limit`` is a number at which the quotient is 1 with and without fused arithmetic."""
    x = k.bind(bounded(x, -limit, limit))
    square = k.bind(x * x)
    return k.bind(bounded(k.bind(x * polynomial(k, square, p) / polynomial(k, square, q)), -1.0, 1.0))


@_typed("tanh")
def tanh(k: Builder, x: Expr) -> Expr:
    return _odd_rational(k, x, 9.001679420471191, _TANH_P, _TANH_Q)


@_typed("erf")
def erf(k: Builder, x: Expr) -> Expr:
    return _odd_rational(k, x, 3.9267287254333496, _ERF_P, _ERF_Q)


@_typed("sinh")
def sinh(k: Builder, x: Expr) -> Expr:
    size = k.bind(absolute(k, x))
    half = _exp_scaled(k, size, -1)
    square = k.bind(x * x)
    near = polynomial(k, square, _SINH) * square * size + size
    return copysign(k, select(size < like(1, x), near, half - like(0.25, x) / half), x)


@_typed("cosh")
def cosh(k: Builder, x: Expr) -> Expr:
    half = _exp_scaled(k, k.bind(absolute(k, x)), -1)
    return half + like(0.25, x) / half


@_typed("asinh")
def asinh(k: Builder, x: Expr) -> Expr:
    size = k.bind(absolute(k, x))
    large = size > like(1e9, x)
    square = k.bind(size * size)
    inner = size + square / (tirx.sqrt(square + like(1, x)) + like(1, x))
    return copysign(k, log1p(k, select(large, size, inner)) + select(large, like(_LN2, x), like(0, x)), x)


@_typed("acosh")
def acosh(k: Builder, x: Expr) -> Expr:
    above = k.bind(x - like(1, x))
    large = x > like(1e9, x)
    inner = above + tirx.sqrt(above * (above + like(2, x)))
    result = log1p(k, select(large, x, inner)) + select(large, like(_LN2, x), like(0, x))
    return select(x < like(1, x), like(math.nan, x), result)


@_typed("atanh")
def atanh(k: Builder, x: Expr) -> Expr:
    size = k.bind(absolute(k, x))
    ratio = (size + size) / (like(1, x) - size)
    return copysign(k, log1p(k, ratio) * like(0.5, x), x)


# -- trigonometric -------------------------------------------------------------------------------------------------


def _quadrant(k: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """Sine and cosine of x less the nearest multiple of pi / 2, and the number of that multiple."""
    count, n = nearest(k, x, 2 / math.pi)
    r = x
    for part in _HALF_PI:
        r = k.bind(count * like(-part, x) + r)
    square = k.bind(r * r)
    sine = k.bind(polynomial(k, square, _SIN) * square * r + r)
    cosine = polynomial(k, square, _COS) * square * square + (square * like(-0.5, x) + like(1, x))
    return sine, k.bind(cosine), n


def _turned(k: Builder, sine: Expr, cosine: Expr, n: Expr) -> Expr:
    """The sine of an angle in quadrant n."""
    odd = tirx.EQ(tirx.bitwise_and(n, _int(1, n)), _int(1, n))
    chosen = k.bind(select(odd, cosine, sine))
    sign = _shift_left(tirx.bitwise_and(n, _int(2, n)), 30)
    return k.bind(bounded(_from_bits(k.bind(tirx.bitwise_xor(_bits(chosen), sign))), -1.0, 1.0))


@_typed("sin")
def sin(k: Builder, x: Expr) -> Expr:
    """Exact to 3 ulp for |x| < 10^5, to 3 ulp of 1 near other zeros; beyond, the quadrant is not certain."""
    sine, cosine, n = _quadrant(k, x)
    return _turned(k, sine, cosine, n)


@_typed("cos")
def cos(k: Builder, x: Expr) -> Expr:
    """As ``sin``."""
    sine, cosine, n = _quadrant(k, x)
    return _turned(k, sine, cosine, k.bind(n + _int(1, n)))


@_typed("tan")
def tan(k: Builder, x: Expr) -> Expr:
    """As ``sin``."""
    sine, cosine, n = _quadrant(k, x)
    odd = tirx.EQ(tirx.bitwise_and(n, _int(1, n)), _int(1, n))
    return k.bind(select(odd, cosine * like(-1, x), sine) / select(odd, sine, cosine))


@_typed("atan")
def atan(k: Builder, x: Expr) -> Expr:
    size = k.bind(absolute(k, x))
    steep = size > like(1, x)
    z = k.bind(select(steep, like(1, x) / size, size))
    square = k.bind(z * z)
    angle = k.bind(polynomial(k, square, _ATAN) * square * z + z)
    return copysign(k, select(steep, like(math.pi / 2, x) - angle, angle), x)


def _asin_half(k: Builder, size: Expr) -> tuple[Expr, Expr]:
    """For 0 <= size <= 1: whether it is above 1/2, and asin(size) or else asin(sqrt((1 - size) / 2))."""
    steep = size > like(0.5, size)
    square = k.bind(select(steep, (like(1, size) - size) * like(0.5, size), size * size))
    z = k.bind(select(steep, tirx.sqrt(square), size))
    return steep, k.bind(polynomial(k, square, _ASIN) * square * z + z)


@_typed("asin")
def asin(k: Builder, x: Expr) -> Expr:
    steep, angle = _asin_half(k, k.bind(absolute(k, x)))
    return copysign(k, select(steep, like(math.pi / 2, x) - (angle + angle), angle), x)


@_typed("acos")
def acos(k: Builder, x: Expr) -> Expr:
    steep, angle = _asin_half(k, k.bind(absolute(k, x)))
    double = k.bind(angle + angle)
    far = select(x < like(0, x), like(math.pi, x) - double, double)
    return k.bind(select(steep, far, like(math.pi / 2, x) - select(x < like(0, x), angle * like(-1, x), angle)))


# -- powers --------------------------------------------------------------------------------------------------------


def divided(k: Builder, a: Expr, b: Expr) -> Expr:
    """a / b where b is a number of things: to 2 ulp where the machine's compiler has a shorter way."""
    if k.native and dtype_of(a) == "float32":
        return k.bind(tirx.call_pure_extern(as_dtype("float32", lanes_of(a)), k.native["divided"], a, b))
    return a / b


def known_value(x: Expr) -> float | None:
    """The number that an expression is in every lane, if it is one that can be read off."""
    x = x.value if isinstance(x, tirx.Broadcast) else x
    return float(x.value) if isinstance(x, tirx.FloatImm | tirx.IntImm) else None


def pow(k: Builder, a: Expr, b: Expr) -> Expr:
    """a to the power b; by multiplication where b is a small integer known now."""
    known = known_value(b)
    is_float = dtype_of(a).startswith(("float", "bfloat"))
    if known is not None and is_float:
        if known == 0.5:
            return sqrt(k, a)
        if known == -0.5:
            return rsqrt(k, a)
        if known == int(known) and abs(known) <= 8:
            # the reciprocal first: the power of a small number would lose bits as a denormal
            return _repeated(k, like(1, a) / a if known < 0 else a, int(abs(known)))
    return _pow_float(k, a, b) if is_float else _pow_integer(k, a, b)


def _repeated(k: Builder, a: Expr, count: int) -> Expr:
    """a to the power of a number known now, by squaring."""
    a, result = k.bind(a), None
    while count:
        if count & 1:
            result = a if result is None else k.bind(result * a)
        count >>= 1
        a = k.bind(a * a) if count else a
    return like(1, a) if result is None else result


@_typed("pow")
def _pow_float(k: Builder, a: Expr, b: Expr) -> Expr:
    """By the logarithm in float64, which keeps 2 ulp where the result is large."""
    size = k.bind(absolute(k, a))
    result = _power_of_positive(k, size, b)
    falls = b < like(0, b)
    result = select(tirx.EQ(size, like(0, a)), select(falls, like(_INF, a), like(0, a)), result)
    result = select(tirx.EQ(size, like(_INF, a)), select(falls, like(0, a), like(_INF, a)), result)
    result = select(tirx.EQ(size, like(1, a)), like(1, a), result)
    half = k.bind(b * like(0.5, b))
    odd = tirx.And(tirx.EQ(round_even(k, b), b), tirx.NE(round_even(k, half), half))
    result = k.bind(result)
    result = k.bind(select(tirx.And(odd, _bits(a) < _int(0, a)), result * like(-1, a), result))
    outside = tirx.And(tirx.And(a < like(0, a), size < like(_INF, a)), tirx.NE(round_even(k, b), b))
    result = k.bind(select(outside, like(math.nan, a), result))
    result = k.bind(select(tirx.Or(isnan(a), isnan(b)), like(math.nan, a), result))
    return k.bind(select(tirx.Or(tirx.EQ(b, like(0, b)), tirx.EQ(a, like(1, a))), like(1, a), result))


def _power_of_positive(k: Builder, a: Expr, b: Expr) -> Expr:
    lanes = lanes_of(a)

    def long(value: int) -> Expr:
        return constant(value, "int64", lanes)

    wide = k.bind(tirx.Cast(as_dtype("float64", lanes), a))
    i = k.bind(reinterpret(as_dtype("int64", lanes), wide) - long(0x3FE6A09E667F3BCD))  # sqrt(1/2)
    mantissa = k.bind(tirx.bitwise_and(i, long((1 << 52) - 1)) + long(0x3FE6A09E667F3BCD))
    f = k.bind(reinterpret(as_dtype("float64", lanes), mantissa) - like(1, wide))
    s = k.bind(f / (f + like(2, f)))  # log(1 + f) = 2 atanh(s)
    square = k.bind(s * s)
    series = polynomial(k, square, [2 / (2 * j + 1) / _LN2 for j in range(8)])
    exponent = tirx.Cast(as_dtype("float64", lanes), k.bind(tirx.shift_right(i, long(52))))
    x = k.bind((series * s + exponent) * tirx.Cast(as_dtype("float64", lanes), b))
    x = k.bind(bounded(x, -300.0, 300.0))
    shifter = 1.5 * 2**52
    shifted = k.bind(x + like(shifter, x))
    r = k.bind((x - (shifted - like(shifter, x))) * like(_LN2, x))
    p = polynomial(k, r, [1 / math.factorial(j) for j in range(10)])
    n = k.bind(reinterpret(as_dtype("int64", lanes), shifted) + long(1023))
    scale = reinterpret(as_dtype("float64", lanes), k.bind(tirx.shift_left(n, long(52))))
    return k.bind(tirx.Cast(as_dtype("float32", lanes), p * scale))


def _pow_integer(k: Builder, a: Expr, b: Expr) -> Expr:
    """Square and multiply, modulo the width; a negative power is truncated toward 0 (of 0: 0)."""
    dtype, lanes = dtype_of(a), lanes_of(a)
    a, b = k.bind(a), k.bind(b)
    one, zero = like(1, a), like(0, a)
    base, left, result = (k.register(dtype, lanes) for _ in range(3))
    base.set(a)
    left.set(b)
    result.set(one)
    with k.loop(int(dtype.lstrip("uint")) - int(not dtype.startswith("u"))):
        result.set(result.get() * select(tirx.EQ(tirx.bitwise_and(left.get(), one), one), base.get(), one))
        base.set(base.get() * base.get())
        left.set(tirx.shift_right(left.get(), one))
    if dtype.startswith("u"):
        return result.get()
    odd = tirx.EQ(tirx.bitwise_and(b, one), one)
    of_minus_one = select(odd, like(-1, a), one)
    unit = select(tirx.EQ(a, one), one, select(tirx.EQ(a, like(-1, a)), of_minus_one, zero))
    return k.bind(select(b < zero, unit, result.get()))


# -- activations ---------------------------------------------------------------------------------------------------


def _exp_inner(k: Builder, x: Expr) -> Expr:
    return exp(k, x) if dtype_of(x) == "float64" else exp_fast(k, x)


@_typed()
def sigmoid(k: Builder, x: Expr) -> Expr:
    """1 / (1 + exp(-x)); 0 below -88.3."""
    return like(1, x) / (like(1, x) + _exp_inner(k, x * like(-1, x)))


@_typed()
def silu(k: Builder, x: Expr) -> Expr:
    return x / (like(1, x) + _exp_inner(k, x * like(-1, x)))


@_typed()
def softplus(k: Builder, x: Expr) -> Expr:
    tail = log1p(k, _exp_inner(k, k.bind(absolute(k, x) * like(-1, x))))
    return tail + maximum(like(0, x), x)


def gelu(k: Builder, x: Expr, approximate: str) -> Expr:
    """By the error function, or by tanh, which is x sigmoid(2 u)."""
    return _gelu_tanh(k, x) if approximate == "tanh" else _gelu_erf(k, x)


@_typed()
def _gelu_tanh(k: Builder, x: Expr) -> Expr:
    scale = -2 * math.sqrt(2 / math.pi)
    u = k.bind((x * x * like(0.044715 * scale, x) + like(scale, x)) * x)
    return x / (like(1, x) + _exp_inner(k, u))


@_typed()
def _gelu_erf(k: Builder, x: Expr) -> Expr:
    """Exact to 3 ulp above 0; below, to 1e-6 absolute."""
    half = k.bind(x * like(0.5, x))
    return half * erf(k, x * like(math.sqrt(0.5), x)) + half


def elu(k: Builder, x: Expr, alpha: float) -> Expr:
    """x above 0, alpha (exp(x) - 1) below."""
    x = k.bind(x)
    return k.bind(select(x < like(0, x), expm1(k, x) * like(alpha, x), x))


def combine(name: str) -> Callable[[Any, Any], Any]:
    """``maximum`` or ``minimum`` in which NaN wins from both sides."""
    better = maximum if name == "maximum" else minimum
    return lambda a, b: select(isnan(a), a, better(a, b))
